//! Sessions that were used last, and what is known about their owners.
//!
//! Nothing here is believed: a session counts only while the store has the very bytes that it was
//! made from, so whatever else changes a row makes the copy worthless. Reading the bytes is cheap;
//! making a session of them costs as much as using it.

use std::collections::{HashMap, VecDeque};

use ruma::{OwnedRoomId, RoomId};

use super::{megolm::InboundSession, outbound::OutboundSession, trust::SenderData};
use crate::store::{self, StoreError, Table};

/// Inbound sessions that are kept.
const SESSIONS: usize = 64;
/// Owners of sessions that are kept.
const SENDERS: usize = 256;

/// An inbound session and the row that it was made from.
pub(crate) struct Loaded {
    pub(crate) session: InboundSession,
    partition: String,
    id: String,
    bytes: store::Value,
}

#[derive(Default)]
pub(crate) struct Cache {
    outbound: HashMap<OwnedRoomId, (store::Value, OutboundSession)>,
    inbound: VecDeque<Loaded>,
    senders: HashMap<SenderData, SenderData>,
}

impl Cache {
    /// The session of a row.
    pub(crate) fn inbound(
        &mut self,
        partition: &str,
        id: String,
        bytes: store::Value,
    ) -> Result<Loaded, StoreError> {
        let is_it = |loaded: &Loaded| loaded.partition == partition && loaded.id == id;
        let known = self.inbound.iter().position(is_it);
        let known = known.and_then(|at| self.inbound.remove(at));
        if let Some(known) = known.filter(|known| *known.bytes == *bytes) {
            return Ok(known);
        }
        let row = store::decode(Table::InboundSessions, &bytes)?;
        Ok(Loaded {
            session: InboundSession::from_row(row),
            partition: partition.to_owned(),
            id,
            bytes,
        })
    }

    /// Keeps a session. Its ratchet may have moved on: it opens the same messages as before.
    pub(crate) fn keep_inbound(&mut self, loaded: Loaded) {
        if self.inbound.len() >= SESSIONS {
            self.inbound.pop_back();
        }
        self.inbound.push_front(loaded);
    }

    /// The session of a row.
    pub(crate) fn outbound(
        &mut self,
        room_id: &RoomId,
        bytes: &store::Value,
    ) -> Result<OutboundSession, StoreError> {
        match self.outbound.remove(room_id) {
            Some((known, session)) if *known == **bytes => Ok(session),
            _ => OutboundSession::decode(bytes),
        }
    }

    /// Keeps a session that was stored as these bytes.
    pub(crate) fn keep_outbound(
        &mut self,
        room_id: &RoomId,
        bytes: store::Value,
        session: OutboundSession,
    ) {
        if self.outbound.len() >= SESSIONS {
            self.outbound.clear();
        }
        self.outbound.insert(room_id.to_owned(), (bytes, session));
    }

    /// What is known by now about the owner of a session.
    pub(crate) fn sender(&self, owner: &SenderData) -> Option<SenderData> {
        self.senders.get(owner).cloned()
    }

    pub(crate) fn keep_sender(&mut self, owner: SenderData, now: SenderData) {
        if self.senders.len() >= SENDERS {
            self.senders.clear();
        }
        self.senders.insert(owner, now);
    }

    pub(crate) fn forget_senders(&mut self) {
        self.senders.clear();
    }
}
