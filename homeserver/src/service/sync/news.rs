//! The events that a client must learn of, by room.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedRoomId, RoomId, UInt, events::room::member::MembershipState};

use super::{
    Look, Sync,
    ahead::Needed,
    stretch::{self, Shown, Stretch},
};
use crate::{
    service::filter,
    storage::{
        Families, StorageError, events::StoredEvent, log::StreamPosition, rooms::Room,
        roster::Place,
    },
};

/// How many events of a room are sent when the client does not say.
const TIMELINE_LIMIT: usize = 10;
/// The same for a first sync, which is a look at all rooms at once: as many as a new room begins with.
const FIRST_TIMELINE_LIMIT: usize = 6;
/// How far back is looked in a room in which the newest events are not for the user to see.
const FARTHER: usize = 100;
/// How many events of a room are sent at most, and how far back a filter looks for those it wants.
const MAX_TIMELINE: usize = 1_000;

/// What happened in the rooms of a user.
#[derive(Debug, Default)]
pub(super) struct News {
    rooms: BTreeMap<OwnedRoomId, Shown>,
}

impl News {
    pub(super) async fn gather(sync: &Sync, look: &Look<'_>) -> Result<Self, StorageError> {
        let (mut fresh, mut known, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (room_id, place) in look.places.iter().filter(|place| look.wants(place.0)) {
            match place.membership {
                MembershipState::Join if look.is_fresh(place) => fresh.push(room_id.clone()),
                MembershipState::Join => known.push(room_id.clone()),
                MembershipState::Leave | MembershipState::Ban if look.wants_left(place) => {
                    gone.push((room_id, place));
                }
                _ => {}
            }
        }
        let reach = reach(look);
        let mut stretches = if let Some(entries) = &look.entries {
            stretch::from_memory(entries, |room_id| look.follows(room_id))
        } else {
            let rooms = sync.timeline.heads.rooms(&known).await?;
            let rooms: Vec<_> = rooms.values().collect();
            sync.stretches(&rooms, look.since, look.until, reach)
                .await?
        };
        let rooms = sync.timeline.heads.rooms(&fresh).await?;
        let rooms: Vec<_> = rooms.values().collect();
        let beginning = StreamPosition(i64::MIN);
        let fresh = sync.stretches(&rooms, beginning, look.until, reach).await?;
        stretches.extend(fresh);
        known.retain(|room_id| look.is_told_again(room_id) && !stretches.contains_key(room_id));
        if !known.is_empty() {
            let rooms = sync.timeline.heads.rooms(&known).await?;
            let nids: Vec<_> = rooms.values().map(|room| room.nid).collect();
            for (room_id, nid, state) in sync.states_at(&nids, look.until).await? {
                let stretch = stretches.entry(room_id).or_default();
                (stretch.nid, stretch.end) = (Some(nid), Some(state));
            }
        }
        if look.entries.is_none() || !rooms.is_empty() {
            let user_id = &look.ask.requester.user_id;
            sync.read_ahead(user_id, stretches.values(), &Needed::of(look))
                .await?;
        }
        let mut news = Self::default();
        for (room_id, stretch) in stretches {
            let shown = sync.joined_news(look, &room_id, stretch).await?;
            news.rooms.insert(room_id, shown);
        }
        for (room_id, place) in gone {
            let shown = sync.left_news(look, room_id, place).await?;
            news.rooms.insert(room_id.clone(), shown);
        }
        Ok(news)
    }

    /// All events of timelines.
    pub(super) fn events(&self) -> impl Iterator<Item = &Arc<StoredEvent>> {
        self.rooms.values().flat_map(|shown| &shown.events)
    }

    pub(super) fn of(&self, room_id: &RoomId) -> Option<&Shown> {
        self.rooms.get(room_id)
    }
}

impl Sync {
    async fn joined_news(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        stretch: Stretch,
    ) -> Result<Shown, StorageError> {
        let user_id = &look.ask.requester.user_id;
        let filter = &look.ask.filter.room.timeline;
        let (nid, more) = (stretch.nid, stretch.more);
        let mut shown = self.shown(stretch, user_id, filter, limit(look)).await?;
        let place = look.places.get(room_id);
        let joined_now = place.is_some_and(|place| place.since > look.since);
        let is_short = more && shown.events.len() < limit(look).min(reach(look));
        if is_short && place.is_some_and(|place| look.is_fresh(place)) {
            let room = self.timeline.heads.room(room_id).await?;
            let rooms: Vec<_> = room.iter().filter(|room| nid == Some(room.nid)).collect();
            let beginning = StreamPosition(i64::MIN);
            let farther = self.stretches(&rooms, beginning, look.until, FARTHER);
            if let Some(stretch) = farther.await?.remove(room_id) {
                shown = self.shown(stretch, user_id, filter, limit(look)).await?;
            }
        }
        // What follows is not the continuation of what the client has, if it has anything.
        shown.limited |= joined_now && !look.is_first();
        Ok(shown)
    }

    /// What happened up to when the user left, and how.
    pub(super) async fn left_news(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        place: &Place,
    ) -> Result<Shown, StorageError> {
        let user_id = &look.ask.requester.user_id;
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(Shown::default());
        };
        let seen_until = place
            .joined_until
            .filter(|until| look.is_first() || *until > look.since);
        let mut shown = Shown::default();
        if let Some(until) = seen_until {
            let since = if look.is_first() {
                StreamPosition(i64::MIN)
            } else {
                look.since
            };
            let reach = reach(look);
            let mut stretches = self.stretches(&[&room], since, until, reach).await?;
            let stretch = stretches.remove(room_id).unwrap_or_default();
            let filter = &look.ask.filter.room.timeline;
            shown = self.shown(stretch, user_id, filter, limit(look)).await?;
            if !self.was_joined(shown.before, user_id).await? {
                // Came and went: the client knows nothing of the room.
                shown.before = None;
            }
        }
        if seen_until != Some(place.since) {
            self.add_own_leave(look, &room, &mut shown).await?;
        }
        Ok(shown)
    }

    /// Adds how one who was not in the room any more was banned, or how an invite ended.
    async fn add_own_leave(
        &self,
        look: &Look<'_>,
        room: &Room,
        shown: &mut Shown,
    ) -> Result<(), StorageError> {
        let user_id = &look.ask.requester.user_id;
        let mut reader = self.storage.read().await?;
        let own = reader.memberships().outside(room.nid, user_id).await?;
        drop(reader);
        if let Some((nid, told)) = own {
            let own = self.events.by_nids(&[nid]).await?.remove(&nid);
            let filter = &look.ask.filter.room.timeline;
            if own.is_none() && filter::wants_type_in(filter, &room.room_id, "m.room.member") {
                let told = told.and_then(|told| serde_json::from_str::<Vec<_>>(&told).ok());
                shown.outside = told.unwrap_or_default();
                shown.any |= !shown.outside.is_empty();
            }
            let wanted = own.filter(|event| filter::wants_event(filter, &event.pdu));
            shown.any |= wanted.is_some();
            shown.events.extend(wanted);
        }
        Ok(())
    }
}

/// How many events of a room the client wants.
fn limit(look: &Look<'_>) -> usize {
    let usual = if look.is_first() {
        FIRST_TIMELINE_LIMIT
    } else {
        TIMELINE_LIMIT
    };
    let asked = look.ask.filter.room.timeline.limit;
    let asked = asked.map(|limit: UInt| u64::from(limit));
    let asked = asked
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usual);
    asked.min(MAX_TIMELINE)
}

/// How many events of a room are looked at to find those that the client wants.
fn reach(look: &Look<'_>) -> usize {
    if filter::allows_all(&look.ask.filter.room.timeline) {
        limit(look).max(1)
    } else {
        MAX_TIMELINE
    }
}
