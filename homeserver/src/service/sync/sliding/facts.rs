//! What lists of rooms are sorted and filtered by. Kept in memory: when a room was last written in, what
//! kind of room it is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ruma::{
    OwnedRoomId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
};
use serde::Deserialize;

use super::super::Sync;
use crate::storage::{
    StorageError,
    events::StoredEvent,
    log::{Change, Log, StreamPosition},
    rooms::Room,
};

/// How many events are looked at to find one that moves a room up.
const REACH: i64 = 50;

/// What is known of rooms.
#[derive(Clone, Debug, Default)]
pub(in crate::service::sync) struct Facts(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Up to where the log has been read.
    at: StreamPosition,
    rooms: HashMap<OwnedRoomId, Fact>,
}

/// What is known of a room.
#[derive(Clone, Debug, Default)]
pub(super) struct Fact {
    /// When something was written that moves the room up, if that is not too long ago to look for.
    pub(super) bumped: Option<i64>,
    /// The type, once it was asked for; empty for rooms without. It never changes.
    pub(super) kind: Option<String>,
    /// Whether it is known to be encrypted. It never ceases to be.
    pub(super) encrypted: bool,
}

impl Facts {
    /// Moves forward to the end of the log.
    fn caught_up(&self, log: &Log) -> MutexGuard<'_, Inner> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = log.position();
        if inner.at < now {
            if let Some(entries) = log.since(inner.at) {
                for entry in entries.iter().filter(|entry| entry.position <= now) {
                    apply(&mut inner.rooms, &entry.change);
                }
            } else {
                inner.rooms.clear();
            }
            inner.at = now;
        }
        inner
    }
}

impl Sync {
    /// What is known of each of some rooms.
    pub(super) async fn facts(
        &self,
        rooms: &[OwnedRoomId],
    ) -> Result<HashMap<OwnedRoomId, Fact>, StorageError> {
        let log = self.storage.log();
        let mut found = HashMap::with_capacity(rooms.len());
        let mut missing = Vec::new();
        let at = {
            let inner = self.facts.caught_up(log);
            for room_id in rooms {
                match inner.rooms.get(room_id) {
                    Some(fact) => drop(found.insert(room_id.clone(), fact.clone())),
                    None => missing.push(room_id.clone()),
                }
            }
            inner.at
        };
        if missing.is_empty() {
            return Ok(found);
        }
        let rooms = self.timeline.heads.rooms(&missing).await?;
        // What a room is follows from these.
        let states = self.storage.states();
        let decisive = [StateEventType::RoomCreate, StateEventType::RoomEncryption];
        let decisive = decisive.map(|event_type| states.key(&event_type, ""));
        let heads = rooms.values().filter_map(|room| room.head.as_ref());
        let keys: Vec<_> = heads
            .flat_map(|head| decisive.map(|key| (head.state, key)))
            .collect();
        self.events.fetch(&keys, []).await?;
        let mut open: Vec<&Room> = rooms.values().collect();
        let mut loaded: HashMap<_, _> = missing
            .into_iter()
            .map(|room_id| (room_id, Fact::default()))
            .collect();
        for reach in [1, REACH] {
            let nids: Vec<_> = open.iter().map(|room| room.nid).collect();
            let newest = self.events.newest(&nids, 0, at.0, reach).await?;
            for event in newest.into_iter().flatten() {
                if moves_up(&event)
                    && let Some(fact) = loaded.get_mut(event.pdu.room_id())
                {
                    fact.bumped = event.position.max(fact.bumped);
                }
            }
            open.retain(|room| {
                loaded
                    .get(&room.room_id)
                    .is_some_and(|f| f.bumped.is_none())
            });
        }
        // What was written meanwhile is not in what was read.
        let mut inner = self.facts.caught_up(log);
        if let Some(entries) = log.since(at) {
            for entry in entries.iter().filter(|entry| entry.position <= inner.at) {
                apply(&mut loaded, &entry.change);
            }
            inner.rooms.extend(loaded.clone());
        }
        drop(inner);
        found.extend(loaded);
        Ok(found)
    }

    /// The type of a room; empty for one without.
    pub(super) async fn kind(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        fact: &Fact,
    ) -> Result<String, StorageError> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "type")]
            kind: Option<String>,
        }
        if let Some(kind) = &fact.kind {
            return Ok(kind.clone());
        }
        let Some(head) = self
            .timeline
            .heads
            .room(room_id)
            .await?
            .and_then(|r| r.head)
        else {
            // What comes with an invite may say it.
            let (_, stripped) = self.stripped_state(user_id, room_id).await?;
            let create = stripped.iter().find(|event| {
                let event_type = event.get_field::<String>("type");
                event_type.is_ok_and(|t| t.as_deref() == Some("m.room.create"))
            });
            let content = create.and_then(|event| event.get_field::<Content>("content").ok());
            let kind = content.flatten().and_then(|content| content.kind);
            return Ok(kind.unwrap_or_default());
        };
        let create = StateEventType::RoomCreate;
        let create = self.events.state_pdu(head.state, &create, "").await?;
        let content = create.and_then(|(_, pdu)| pdu.content_as::<Content>().ok());
        let kind = content.and_then(|content| content.kind).unwrap_or_default();
        self.learn(room_id, |fact| fact.kind = Some(kind.clone()));
        Ok(kind)
    }

    /// Whether a room that the server is in is encrypted.
    pub(super) async fn encrypted(
        &self,
        room_id: &RoomId,
        fact: &Fact,
    ) -> Result<bool, StorageError> {
        if fact.encrypted {
            return Ok(true);
        }
        let Some(head) = self
            .timeline
            .heads
            .room(room_id)
            .await?
            .and_then(|r| r.head)
        else {
            return Ok(false);
        };
        let encryption = StateEventType::RoomEncryption;
        let found = self.storage.state_get(head.state, &encryption, "").await?;
        if found.is_some() {
            self.learn(room_id, |fact| fact.encrypted = true);
        }
        Ok(found.is_some())
    }

    fn learn(&self, room_id: &RoomId, learn: impl FnOnce(&mut Fact)) {
        let mut inner = self.facts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fact) = inner.rooms.get_mut(room_id) {
            learn(fact);
        }
    }
}

fn apply(rooms: &mut HashMap<OwnedRoomId, Fact>, change: &Change) {
    if let Change::Event(event) = change
        && moves_up(event)
        && let Some(fact) = rooms.get_mut(event.pdu.room_id())
    {
        fact.bumped = event.position.max(fact.bumped);
    }
}

/// Whether an event is something that people want to see: it moves its room up in lists.
fn moves_up(event: &StoredEvent) -> bool {
    let other = || {
        let event_type = event.pdu.event_type().to_string();
        matches!(
            event_type.as_str(),
            "m.poll.start"
                | "org.matrix.msc3381.poll.start"
                | "m.call.invite"
                | "m.beacon_info"
                | "org.matrix.msc3672.beacon_info"
        )
    };
    match event.pdu.event_type() {
        TimelineEventType::RoomCreate
        | TimelineEventType::RoomMessage
        | TimelineEventType::RoomEncrypted
        | TimelineEventType::Sticker => true,
        _ => other(),
    }
}
