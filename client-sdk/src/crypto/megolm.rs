//! Inbound Megolm sessions: the keys to rooms.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#mmegolmv1aes-sha2>

use ruma::{OwnedRoomId, RoomId};
use serde::{Deserialize, Serialize};
use vodozemac::megolm::{
    InboundGroupSession, InboundGroupSessionPickle, SessionConfig, SessionKey, SessionOrdering,
};

use super::{
    error::RejectedMessage,
    history::SharedHistory,
    keys::MEGOLM,
    trust::{SenderData, SenderTrust},
};
use crate::store::{Batch, StoreError, Table};

/// An inbound session and who gave it to us.
pub(crate) struct InboundSession {
    /// Boxed, as it is large and lives across many awaits.
    pub(crate) megolm: Box<InboundGroupSession>,
    pub(crate) owner: SenderData,
    /// Its creator allows that people who come later get it.
    pub(crate) shared_history: bool,
}

#[derive(Serialize)]
struct RowRef<'a> {
    pickle: InboundGroupSessionPickle,
    owner: &'a SenderData,
    shared_history: bool,
}

#[derive(Deserialize)]
pub(crate) struct Row {
    pickle: InboundGroupSessionPickle,
    owner: SenderData,
    #[serde(default)]
    shared_history: bool,
}

/// The row of a session that its owner did not give to us.
const IMPORTED: &str = "imported";

/// The room and the session that a partition belongs to.
pub(crate) fn split(partition: &str) -> Option<(OwnedRoomId, String)> {
    let (room_id, session_id) = partition.split_once(' ')?;
    Some((room_id.try_into().ok()?, session_id.to_owned()))
}

/// The partition of everything that belongs to one session. Session ids have no spaces.
pub(crate) fn session_partition(room_id: &RoomId, session_id: &str) -> String {
    format!("{room_id} {session_id}")
}

impl InboundSession {
    /// The sessions with this id in this room, one for each device that gave us the key.
    ///
    /// A key is kept for each giver, so that nobody can claim a session by sending its key first:
    /// the event's sender decides which of them is used.
    async fn load_all(
        batch: &Batch<'_>,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Vec<Self>, StoreError> {
        let rows: Vec<(String, Row)> = batch
            .list(
                Table::InboundSessions,
                &session_partition(room_id, session_id),
            )
            .await?;
        Ok(rows
            .into_iter()
            .map(|(_, row)| Self::from_row(row))
            .collect())
    }

    fn save(&self, batch: &mut Batch<'_>, room_id: &RoomId) -> Result<(), StoreError> {
        let partition = session_partition(room_id, &self.megolm.session_id());
        let row = RowRef {
            pickle: self.megolm.pickle(),
            owner: &self.owner,
            shared_history: self.shared_history,
        };
        let id = if self.owner.trust == SenderTrust::Imported {
            IMPORTED
        } else {
            &self.owner.curve25519
        };
        batch.put(Table::InboundSessions, &partition, id, &row)?;
        batch.put(Table::SessionNames, "", &partition, &String::new())
    }

    /// The room and the id of every session.
    pub(crate) async fn names(batch: &Batch<'_>) -> Result<Vec<(OwnedRoomId, String)>, StoreError> {
        let rows: Vec<(String, String)> = batch.list(Table::SessionNames, "").await?;
        Ok(rows
            .into_iter()
            .filter_map(|(name, _)| split(&name))
            .collect())
    }

    /// The sessions that a version of the backup does not have.
    pub(crate) async fn not_in_backup(
        batch: &Batch<'_>,
        version: &str,
    ) -> Result<Vec<(OwnedRoomId, String)>, StoreError> {
        let rows: Vec<(String, String)> = batch.list(Table::SessionNames, "").await?;
        let waiting = rows.into_iter().filter(|(_, at)| at != version);
        Ok(waiting.filter_map(|(name, _)| split(&name)).collect())
    }

    pub(crate) fn note_backup(
        batch: &mut Batch<'_>,
        room_id: &RoomId,
        session_id: &str,
        version: &str,
    ) -> Result<(), StoreError> {
        let name = session_partition(room_id, session_id);
        batch.put(Table::SessionNames, "", &name, &version)
    }

    /// The copy of a session of whose owner we know most.
    pub(crate) async fn best(
        batch: &Batch<'_>,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<Self>, StoreError> {
        let mut all = Self::load_all(batch, room_id, session_id).await?;
        all.sort_by_key(|session| (session.owner.trust, session.megolm.first_known_index()));
        Ok(all.pop())
    }

    /// Stores a session that its owner did not give to us, if it opens more than those that we
    /// have. It replaces none of them.
    pub(crate) async fn add_imported(
        mut self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
    ) -> Result<bool, StoreError> {
        for mut known in Self::load_all(batch, room_id, &self.megolm.session_id()).await? {
            let better = self.megolm.compare(&mut known.megolm) == SessionOrdering::Better;
            if !better {
                return Ok(false);
            }
        }
        self.save(batch, room_id)?;
        Ok(true)
    }

    /// Stores the session, unless we have the same or an earlier state of it from the same device.
    ///
    /// Returns whether it was stored.
    pub(crate) async fn add(
        mut self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
    ) -> Result<bool, StoreError> {
        let partition = session_partition(room_id, &self.megolm.session_id());
        let row: Option<Row> = batch
            .get(Table::InboundSessions, &partition, &self.owner.curve25519)
            .await?;
        if let Some(mut known) = row.map(Self::from_row) {
            let better = self.megolm.compare(&mut known.megolm) == SessionOrdering::Better;
            if !better || self.owner.user_id != known.owner.user_id {
                return Ok(false);
            }
        }
        self.save(batch, room_id)?;
        Ok(true)
    }
}

impl InboundSession {
    pub(crate) fn from_row(row: Row) -> Self {
        Self {
            megolm: Box::new(InboundGroupSession::from_pickle(row.pickle)),
            owner: row.owner,
            shared_history: row.shared_history,
        }
    }
}

/// The content of an `m.room_key`.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mroom_key>
#[derive(Serialize, Deserialize)]
pub(crate) struct RoomKeyContent {
    pub(crate) algorithm: String,
    pub(crate) room_id: OwnedRoomId,
    pub(crate) session_id: String,
    pub(crate) session_key: String,
    #[serde(flatten)]
    pub(crate) sharing: SharedHistory,
}

impl RoomKeyContent {
    /// The session that the key makes, whose id has to be the one that is claimed.
    pub(crate) fn into_session(
        self,
        owner: SenderData,
    ) -> Result<(OwnedRoomId, InboundSession), RejectedMessage> {
        if self.algorithm != MEGOLM {
            return Err(RejectedMessage::InvalidRoomKey);
        }
        let key = SessionKey::from_base64(&self.session_key)
            .map_err(|_| RejectedMessage::InvalidRoomKey)?;
        let megolm = Box::new(InboundGroupSession::new(&key, SessionConfig::version_1()));
        if megolm.session_id() != self.session_id {
            return Err(RejectedMessage::InvalidRoomKey);
        }
        let session = InboundSession {
            megolm,
            owner,
            shared_history: self.sharing.is_allowed(),
        };
        Ok((self.room_id, session))
    }
}
