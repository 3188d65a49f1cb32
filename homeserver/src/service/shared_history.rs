//! What other servers may read of the rooms that they share with us
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName, events::StateEventType,
};
use serde_json::value::RawValue;
use sotto_federation::room::{redaction, version};

use super::{
    events::Events,
    server_acl::ServerAcls,
    timeline::{Direction, Timeline},
};
use crate::storage::{Storage, StorageError, events::StoredEvent, rooms::Room, state_map::NodeId};

/// The most events that are given at once.
const MOST_EVENTS: usize = 100;

/// Reads for other servers.
#[derive(Clone)]
pub(crate) struct SharedHistory {
    storage: Storage,
    timeline: Timeline,
    acls: ServerAcls,
}

/// Why a server gets nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// The server takes no part in the room, or there is none.
    #[error("this server is not in the room")]
    UnknownRoom,
    /// The asking server is not in the room, or kept out of it.
    #[error("the asking server is not in the room")]
    NotInRoom,
    /// The server has just come into the room, and does not know yet who is in it.
    #[error("this server does not know the members of the room yet")]
    Partial,
    /// There is no such event, or the asking server may not see it.
    #[error("there is no such event")]
    UnknownEvent,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Events in the format of the federation.
pub(crate) type Pdus = Vec<Box<RawValue>>;

impl SharedHistory {
    pub(crate) fn new(storage: Storage, timeline: Timeline, acls: ServerAcls) -> Self {
        Self {
            storage,
            timeline,
            acls,
        }
    }

    /// The room, if we take part in it and its access control list lets the server in.
    pub(crate) async fn open(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
    ) -> Result<Room, ShareError> {
        let roster = self.storage.log().roster();
        if roster.local_members(room_id).is_empty() {
            return Err(ShareError::UnknownRoom);
        }
        self.known(origin, room_id).await
    }

    /// A room of which we have something, if its access control list lets the server in.
    async fn known(&self, origin: &ServerName, room_id: &RoomId) -> Result<Room, ShareError> {
        let room = self.timeline.heads.room(room_id).await?;
        let room = room.filter(|room| room.head.is_some());
        let room = room.ok_or(ShareError::UnknownRoom)?;
        if !self.acls.allows(&room, origin).await? {
            return Err(ShareError::NotInRoom);
        }
        Ok(room)
    }

    /// What was said in a room while we took part, for a server that has somebody in it. Also after the last
    /// of us left: nobody else may have the events before that leave, without which it cannot be placed.
    async fn shared(&self, origin: &ServerName, room_id: &RoomId) -> Result<Room, ShareError> {
        let room = self.known(origin, room_id).await?;
        let servers = self.storage.log().roster().remote_servers(room_id);
        if servers.contains(origin) {
            Ok(room)
        } else {
            Err(ShareError::NotInRoom)
        }
    }

    /// One event.
    pub(crate) async fn event(
        &self,
        origin: &ServerName,
        event_id: &EventId,
    ) -> Result<Box<RawValue>, ShareError> {
        let event = self.events().by_id(event_id).await?;
        let event = event.ok_or(ShareError::UnknownEvent)?;
        // Not in the room and no such event are the same to one who asks by the id alone.
        let shared = self.shared(origin, event.pdu.room_id()).await;
        let room = shared.map_err(|error| match error {
            ShareError::Storage(error) => ShareError::Storage(error),
            _ => ShareError::UnknownEvent,
        })?;
        Ok(self.as_seen_by(origin, &room, &event).await?)
    }

    /// The state before an event and its auth chain, each event as the server may see it.
    pub(crate) async fn state_events(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<(Pdus, Pdus), ShareError> {
        let room = self.shared(origin, room_id).await?;
        let (state, chain) = self.state(origin, room_id, event_id).await?;
        let state = self.all_as_seen_by(origin, &room, &state).await?;
        Ok((state, self.all_as_seen_by(origin, &room, &chain).await?))
    }

    async fn all_as_seen_by(
        &self,
        origin: &ServerName,
        room: &Room,
        events: &[Arc<StoredEvent>],
    ) -> Result<Pdus, StorageError> {
        let mut seen = Pdus::with_capacity(events.len());
        for event in events {
            seen.push(self.as_seen_by(origin, room, event).await?);
        }
        Ok(seen)
    }

    /// The state before an event, and its auth chain.
    pub(crate) async fn state(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<(Vec<Arc<StoredEvent>>, Vec<Arc<StoredEvent>>), ShareError> {
        let room = self.shared(origin, room_id).await?;
        if room.partial {
            return Err(ShareError::Partial);
        }
        let event = self.in_room(&room, event_id).await?;
        // What was rejected is no part of the room.
        let state = event.state.filter(|_| !event.pdu.is_rejected());
        let state = state.ok_or(ShareError::UnknownEvent)?;
        Ok(self.snapshot(state.before).await?)
    }

    /// All events of a state, and of their auth chains.
    pub(crate) async fn snapshot(
        &self,
        state: NodeId,
    ) -> Result<(Vec<Arc<StoredEvent>>, Vec<Arc<StoredEvent>>), StorageError> {
        let state = self.events().full_state(state).await?;
        let chain = self.auth_chain(&state).await?;
        Ok((state, chain))
    }

    /// The auth chain of an event, each event as the server may see it.
    pub(crate) async fn event_auth(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<Pdus, ShareError> {
        let room = self.shared(origin, room_id).await?;
        let event = self.in_room(&room, event_id).await?;
        let chain = self.auth_chain(std::slice::from_ref(&event)).await?;
        Ok(self.all_as_seen_by(origin, &room, &chain).await?)
    }

    /// The event closest to a time that the server may see
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1timestamp_to_eventroomid)).
    pub(crate) async fn at_time(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        time: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<Arc<StoredEvent>, ShareError> {
        let room = self.shared(origin, room_id).await?;
        let until = self.storage.log().position().0;
        let found = self.timeline.by_distance(room.nid, time, direction, until);
        for event in found.await? {
            if self.visible(origin, &room, &event).await? {
                return Ok(event);
            }
        }
        Err(ShareError::UnknownEvent)
    }

    /// Events from some on backwards, the given ones included.
    pub(crate) async fn backfill(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Pdus, ShareError> {
        let room = self.shared(origin, room_id).await?;
        let walk = Walk {
            from: from.to_vec(),
            until: BTreeSet::new(),
            limit: limit.min(MOST_EVENTS),
        };
        self.walk(origin, &room, walk).await
    }

    /// Events between some and others, oldest first
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid)).
    pub(crate) async fn missing(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
    ) -> Result<Pdus, ShareError> {
        let room = self.shared(origin, room_id).await?;
        let latest: Vec<_> = latest.iter().take(MOST_EVENTS).cloned().collect();
        let found = self.events().by_ids(&latest).await?;
        let here = found.values().filter(|event| event.room_nid == room.nid);
        let from = here.flat_map(|event| event.pdu.prev_events()).cloned();
        let walk = Walk {
            from: from.collect(),
            until: earliest.iter().chain(&latest).cloned().collect(),
            limit: limit.min(MOST_EVENTS),
        };
        let mut events = self.walk(origin, &room, walk).await?;
        events.reverse();
        Ok(events)
    }

    /// Walks backwards along `prev_events`, breadth first.
    async fn walk(&self, origin: &ServerName, room: &Room, walk: Walk) -> Result<Pdus, ShareError> {
        let (mut seen, mut pdus) = (walk.until, Pdus::new());
        let mut next = walk.from;
        next.truncate(MOST_EVENTS);
        while !next.is_empty() {
            next.retain(|id| seen.insert(id.clone()));
            let found = self.events().by_ids(&next).await?;
            let mut further = Vec::new();
            for event in next.iter().filter_map(|id| found.get(id)) {
                let placed = event.room_nid == room.nid && event.state.is_some();
                if !placed || event.pdu.is_rejected() {
                    continue;
                }
                if pdus.len() >= walk.limit {
                    return Ok(pdus);
                }
                pdus.push(self.as_seen_by(origin, room, event).await?);
                further.extend(event.pdu.prev_events().iter().cloned());
            }
            next = further;
        }
        Ok(pdus)
    }

    /// The event, or, for one who may not see it, what holds the graph together.
    async fn as_seen_by(
        &self,
        origin: &ServerName,
        room: &Room,
        event: &StoredEvent,
    ) -> Result<Box<RawValue>, StorageError> {
        if self.visible(origin, room, event).await? {
            return Ok(event.pdu.json().to_owned());
        }
        let wrong = || StorageError::inconsistent("events", "json", event.pdu.event_id().as_str());
        let rules = version::rules(&event.version).ok_or_else(wrong)?;
        let redacted = redaction::redact(&event.pdu, &rules).map_err(|_| wrong())?;
        Ok(redacted.json().to_owned())
    }

    /// A server that is in the room may see what one of its users may see, but for what erased users said,
    /// and what the room is now
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility)).
    async fn visible(
        &self,
        origin: &ServerName,
        room: &Room,
        event: &StoredEvent,
    ) -> Result<bool, StorageError> {
        let head = room.head.as_ref();
        if let (Some(state_key), Some(head)) = (event.pdu.state_key(), head) {
            let event_type = StateEventType::from(event.pdu.event_type().to_string());
            let current = self.storage.state_get(head.state, &event_type, state_key);
            if current.await? == Some(event.nid) {
                return Ok(true);
            }
        }
        if self.storage.is_erased(event.pdu.sender()) {
            return Ok(false);
        }
        self.timeline.visibility.allows_server(origin, event).await
    }

    async fn in_room(
        &self,
        room: &Room,
        event_id: &EventId,
    ) -> Result<Arc<StoredEvent>, ShareError> {
        let event = self.events().by_id(event_id).await?;
        let event = event.filter(|event| event.room_nid == room.nid);
        event.ok_or(ShareError::UnknownEvent)
    }

    /// The auth chain of events, the oldest first: each after those on which it rests.
    pub(crate) async fn auth_chain(
        &self,
        from: &[Arc<StoredEvent>],
    ) -> Result<Vec<Arc<StoredEvent>>, StorageError> {
        let mut chain = BTreeMap::new();
        let ids = |events: &[Arc<StoredEvent>]| -> BTreeSet<OwnedEventId> {
            let auth_events = events.iter().flat_map(|event| event.pdu.auth_events());
            auth_events.cloned().collect()
        };
        let mut next = ids(from);
        while !next.is_empty() {
            next.retain(|id| !chain.contains_key(id));
            let asked: Vec<_> = next.into_iter().collect();
            let found = self.events().by_ids(&asked).await?;
            let events: Vec<_> = found.values().cloned().collect();
            chain.extend(found);
            next = ids(&events);
        }
        let mut chain: Vec<_> = chain.into_values().collect();
        chain.sort_by_key(|event: &Arc<StoredEvent>| event.pdu.depth());
        Ok(chain)
    }

    fn events(&self) -> &Events {
        &self.timeline.events
    }
}

struct Walk {
    from: Vec<OwnedEventId>,
    until: BTreeSet<OwnedEventId>,
    limit: usize,
}

/// Events in the format of the federation.
pub(crate) fn pdus(events: &[Arc<StoredEvent>]) -> Pdus {
    events
        .iter()
        .map(|event| event.pdu.json().to_owned())
        .collect()
}
