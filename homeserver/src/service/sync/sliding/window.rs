//! Which rooms a request looks at: the windows of its lists, and its subscriptions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedRoomId, RoomId, UInt,
    api::client::sync::sync_events::v5::{Response, request::ListFilters, response::List},
    directory::RoomTypeFilter,
    events::{StateEventType, room::member::MembershipState},
};

use super::{super::Sync, Slide, connection::Patterns, facts::Fact};
use crate::storage::{StorageError, roster::Place};

/// The most events of a room in one reply.
const MAX_TIMELINE: usize = 1_000;

/// What a request looks at.
pub(super) struct Window {
    pub(super) rooms: BTreeMap<OwnedRoomId, Wanted>,
    /// The rooms in the window of each list.
    pub(super) lists: BTreeMap<String, BTreeSet<OwnedRoomId>>,
    /// The rooms that are conversations of two, as the user's clients say.
    pub(super) direct: Arc<BTreeSet<OwnedRoomId>>,
    pub(super) facts: std::collections::HashMap<OwnedRoomId, Fact>,
}

/// What a request wants of a room.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) limit: usize,
    pub(super) required: Patterns,
}

impl Wanted {
    fn add(&mut self, limit: UInt, required: &[(StateEventType, String)]) {
        let limit = usize::try_from(u64::from(limit)).unwrap_or(MAX_TIMELINE);
        self.limit = self.limit.max(limit.min(MAX_TIMELINE));
        let patterns = required
            .iter()
            .map(|(event_type, key)| (event_type.to_string(), key.clone()));
        self.required.extend(patterns);
    }
}

/// When something last happened in a room that a user wants to see.
pub(super) fn stamp(place: &Place, fact: Option<&Fact>) -> i64 {
    let bumped = fact.and_then(|fact| fact.bumped);
    let bumped = bumped.filter(|_| place.membership == MembershipState::Join);
    bumped.unwrap_or(place.since.0).max(0)
}

impl Sync {
    /// What a request looks at; the lists go into the reply.
    pub(super) async fn window(
        &self,
        slide: &Slide<'_>,
        response: &mut Response,
    ) -> Result<Window, StorageError> {
        let look = &slide.look;
        let listed = self.listed(slide).await?;
        let ids: Vec<_> = listed.keys().map(|id| (*id).to_owned()).collect();
        let facts = self.facts(&ids).await?;
        let mut sorted: Vec<_> = listed
            .iter()
            .map(|(room_id, place)| (-stamp(place, facts.get(*room_id)), *room_id, *place))
            .collect();
        sorted.sort_unstable_by_key(|(stamp, room_id, _)| (*stamp, *room_id));
        let mut window = Window {
            rooms: BTreeMap::new(),
            lists: BTreeMap::new(),
            direct: self.direct.of(&look.ask.requester.user_id).await?,
            facts,
        };
        for (name, list) in &slide.request.lists {
            let mut rooms = Vec::new();
            for (_, room_id, place) in &sorted {
                let fits = match &list.filters {
                    None => true,
                    Some(filters) => self.fits(slide, &window, filters, (room_id, place)).await?,
                };
                if fits {
                    rooms.push(*room_id);
                }
            }
            let seen = in_ranges(&rooms, &list.ranges);
            let details = &list.room_details;
            for room_id in &seen {
                let wanted = window.rooms.entry(room_id.clone()).or_default();
                wanted.add(details.timeline_limit, &details.required_state);
            }
            window.lists.insert(name.clone(), seen);
            let mut told = List::default();
            told.count = UInt::try_from(rooms.len()).unwrap_or(UInt::MAX);
            response.lists.insert(name.clone(), told);
        }
        for (room_id, subscription) in &slide.request.room_subscriptions {
            if listed.contains_key(&**room_id) {
                let wanted = window.rooms.entry(room_id.clone()).or_default();
                wanted.add(subscription.timeline_limit, &subscription.required_state);
            }
        }
        Ok(window)
    }

    /// The rooms that a client can see: where the user is, is invited, or asks to be let in, and where the
    /// user was until now.
    async fn listed<'a>(
        &self,
        slide: &'a Slide<'_>,
    ) -> Result<BTreeMap<&'a RoomId, &'a Place>, StorageError> {
        let look = &slide.look;
        let user_id = &look.ask.requester.user_id;
        let ignored = self.timeline.visibility.ignored(user_id).await?;
        let blocked = self.timeline.visibility.blocks_invites(user_id).await?;
        let mut listed = BTreeMap::new();
        for (room_id, place) in &look.places {
            let visible = match place.membership {
                MembershipState::Join | MembershipState::Knock => true,
                MembershipState::Invite if blocked => false,
                MembershipState::Invite if ignored.is_empty() => true,
                MembershipState::Invite => {
                    let (from, _) = self.stripped_state(user_id, room_id).await?;
                    from.is_none_or(|from| !ignored.contains(&from))
                }
                _ => !look.is_first() && place.since > look.since,
            };
            if visible {
                listed.insert(&**room_id, place);
            }
        }
        Ok(listed)
    }

    async fn fits(
        &self,
        slide: &Slide<'_>,
        window: &Window,
        filters: &ListFilters,
        (room_id, place): (&RoomId, &Place),
    ) -> Result<bool, StorageError> {
        let fact = window.facts.get(room_id).cloned().unwrap_or_default();
        let invited = place.membership == MembershipState::Invite;
        if filters.is_invite.is_some_and(|wanted| wanted != invited) {
            return Ok(false);
        }
        let direct = window.direct.contains(room_id);
        if filters.is_dm.is_some_and(|wanted| wanted != direct) {
            return Ok(false);
        }
        if let Some(wanted) = filters.is_encrypted
            && wanted != self.encrypted(room_id, &fact).await?
        {
            return Ok(false);
        }
        if filters.room_types.is_empty() && filters.not_room_types.is_empty() {
            return Ok(true);
        }
        let user_id = &slide.look.ask.requester.user_id;
        let kind = self.kind(user_id, room_id, &fact).await?;
        let kind = RoomTypeFilter::from(Some(kind).filter(|kind| !kind.is_empty()));
        let wanted = filters.room_types.is_empty() || filters.room_types.contains(&kind);
        Ok(wanted && !filters.not_room_types.contains(&kind))
    }
}

/// The rooms at some places of a list.
fn in_ranges(rooms: &[&RoomId], ranges: &[(UInt, UInt)]) -> BTreeSet<OwnedRoomId> {
    let mut seen = BTreeSet::new();
    for range in ranges {
        let [from, to] =
            [range.0, range.1].map(|at| usize::try_from(u64::from(at)).unwrap_or(usize::MAX));
        let length = to.saturating_add(1).saturating_sub(from);
        let rooms = rooms.iter().skip(from).take(length);
        seen.extend(rooms.map(|room_id| (*room_id).to_owned()));
    }
    seen
}

/// The rooms that the user's clients call direct
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#direct-messaging)).
pub(in crate::service::sync) fn direct_rooms(json: &str) -> Option<BTreeSet<OwnedRoomId>> {
    let content: BTreeMap<String, Vec<String>> = serde_json::from_str(json).ok()?;
    let rooms = content.into_values().flatten();
    Some(rooms.filter_map(|id| RoomId::parse(id).ok()).collect())
}
