//! The events between two positions, by room: from memory if it has them, else from the database.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedRoomId, RoomId, UInt, events::room::member::MembershipState};

use super::{Look, Sync, state::is_member};
use crate::{
    service::filter,
    storage::{
        Families, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
        rooms::Room,
        state_map::NodeId,
    },
};

/// How many events of a room are sent when the client does not say.
const TIMELINE_LIMIT: usize = 10;
/// How many events of a room are sent at most, and how far back a filter looks for those it wants.
const MAX_TIMELINE: usize = 1_000;

/// What happened in the rooms of a user.
#[derive(Debug, Default)]
pub(super) struct News {
    rooms: BTreeMap<OwnedRoomId, RoomNews>,
}

/// What happened in a room: the newest events, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct RoomNews {
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Whether there were more.
    pub(super) limited: bool,
    /// The state that the client had, if it is known without asking the database.
    pub(super) state_before: Option<NodeId>,
    /// How many events there were, also such that the client does not want to see.
    seen: usize,
    /// Whether somebody's membership changed.
    pub(super) members: bool,
}

impl RoomNews {
    pub(super) fn is_empty(&self) -> bool {
        self.seen == 0
    }

    /// Adds the next event, if it is wanted.
    fn push(&mut self, look: &Look<'_>, event: Arc<StoredEvent>) {
        self.seen += 1;
        self.members |= is_member(&event);
        if filter::wants_event(&look.ask.filter.room.timeline, &event.pdu) {
            self.events.push(event);
        }
    }
}

impl News {
    pub(super) async fn gather(sync: &Sync, look: &Look<'_>) -> Result<Self, StorageError> {
        if look.entries.is_some() {
            let mut news = Self::from_memory(look);
            // A room that was joined in the meantime has a past that memory may not have.
            let new: Vec<_> = look
                .places
                .iter()
                .filter(|(_, p)| p.membership == MembershipState::Join && look.is_new(p))
                .filter(|(room_id, _)| look.wants(room_id))
                .map(|(room_id, _)| room_id.clone())
                .collect();
            news.rooms
                .extend(Self::from_database(sync, look, new).await?.rooms);
            Ok(news)
        } else {
            let rooms = look
                .places
                .iter()
                .filter(|(room_id, place)| match place.membership {
                    _ if !look.wants(room_id) => false,
                    MembershipState::Join => true,
                    MembershipState::Leave | MembershipState::Ban => look.wants_left(place),
                    _ => false,
                });
            let rooms = rooms.map(|(room_id, _)| room_id.clone()).collect();
            Self::from_database(sync, look, rooms).await
        }
    }

    pub(super) fn of(&self, room_id: &RoomId) -> RoomNews {
        self.rooms.get(room_id).cloned().unwrap_or_default()
    }

    fn from_memory(look: &Look<'_>) -> Self {
        let mut rooms: BTreeMap<OwnedRoomId, RoomNews> = BTreeMap::new();
        for entry in look.entries.iter().flatten() {
            let Change::Event(event) = &entry.change else {
                continue;
            };
            let Some(place) = look.places.get(event.pdu.room_id()) else {
                continue;
            };
            if place.membership != MembershipState::Join && entry.position > place.since {
                continue;
            }
            let room = rooms.entry(event.pdu.room_id().to_owned()).or_default();
            if room.is_empty() {
                room.state_before = event.head_before;
            }
            room.push(look, event.clone());
        }
        let limit = limit(look);
        for room in rooms.values_mut() {
            if room.events.len() > limit {
                room.events.drain(..room.events.len() - limit);
                room.limited = true;
            }
        }
        Self { rooms }
    }

    async fn from_database(
        sync: &Sync,
        look: &Look<'_>,
        room_ids: Vec<OwnedRoomId>,
    ) -> Result<Self, StorageError> {
        let mut rooms = BTreeMap::new();
        // Rooms that are new to the client begin at the beginning, the others after its token.
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for room_id in room_ids {
            let Some(place) = look.places.get(&room_id) else {
                continue;
            };
            let Some(room) = sync.timeline.heads.room(&room_id).await? else {
                continue;
            };
            let joined = place.membership == MembershipState::Join;
            if joined && look.is_new(place) {
                new.push(room);
            } else {
                old.push(room);
            }
        }
        for (list, above) in [(new, StreamPosition(i64::MIN)), (old, look.since)] {
            Self::read(sync, look, &list, above, &mut rooms).await?;
        }
        Ok(Self { rooms })
    }

    async fn read(
        sync: &Sync,
        look: &Look<'_>,
        rooms: &[Room],
        above: StreamPosition,
        found: &mut BTreeMap<OwnedRoomId, RoomNews>,
    ) -> Result<(), StorageError> {
        if rooms.is_empty() {
            return Ok(());
        }
        let limit = limit(look);
        let nids: Vec<_> = rooms.iter().map(|room| room.nid).collect();
        let filtered = !filter::allows_all(&look.ask.filter.room.timeline);
        let reach = if filtered { MAX_TIMELINE } else { limit + 1 };
        let asked = i64::try_from(reach).unwrap_or(i64::MAX);
        let mut reader = sync.storage.read().await?;
        for event in reader
            .events()
            .newest(&nids, above.0, look.until.0, asked)
            .await?
        {
            let event = sync.events.keep(event);
            let room_id = event.pdu.room_id().to_owned();
            let after_leaving = look.places.get(&room_id).is_some_and(|place| {
                place.membership != MembershipState::Join
                    && event
                        .position
                        .is_some_and(|position| position > place.since.0)
            });
            if !after_leaving {
                found.entry(room_id).or_default().push(look, event);
            }
        }
        for news in found.values_mut() {
            news.limited |= news.seen >= reach;
            if news.events.len() > limit {
                news.events.drain(..news.events.len() - limit);
                news.limited = true;
            }
        }
        // The state that the client had is that of the last event that it saw.
        if above.0 > 0 {
            let news: Vec<_> = rooms
                .iter()
                .filter(|r| found.contains_key(&r.room_id))
                .map(|r| r.nid)
                .collect();
            for event in reader.events().newest(&news, i64::MIN, above.0, 1).await? {
                if let Some(news) = found.get_mut(event.pdu.room_id()) {
                    news.state_before = event.state.map(|state| state.head);
                }
            }
        }
        Ok(())
    }
}

/// How many events of a room the client wants.
fn limit(look: &Look<'_>) -> usize {
    let asked = look
        .ask
        .filter
        .room
        .timeline
        .limit
        .map(|limit: UInt| u64::from(limit));
    let asked = asked
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(TIMELINE_LIMIT);
    asked.clamp(1, MAX_TIMELINE)
}
