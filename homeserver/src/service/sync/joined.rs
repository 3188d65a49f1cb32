//! Rooms that the user is in, or was in when something happened there.

use std::sync::Arc;

use ruma::{
    RoomId, UInt,
    api::client::sync::sync_events::UnreadNotificationsCount,
    api::client::sync::sync_events::v3::{
        JoinedRoom, LeftRoom, RoomSummary, State, StateEvents, Timeline,
    },
    events::{StateEventType, room::member::MembershipState},
};

use super::{Gathered, Look, Sync, news::RoomNews, state::Around};
use crate::{
    service::timeline::PageToken,
    storage::{
        Families, StorageError, events::StoredEvent, rooms::Room, roster::Place, state_map::NodeId,
    },
};

/// How many members stand for the name of a room that has none
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#calculating-the-display-name-for-a-room)).
const HEROES: usize = 5;

impl Sync {
    /// A room that the user is in; `None` if there is nothing new.
    pub(super) async fn joined(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        place: &Place,
        gathered: &Gathered,
    ) -> Result<Option<JoinedRoom>, StorageError> {
        let news = gathered.timeline.of(room_id);
        let new = look.is_new(place);
        let mut joined = JoinedRoom::new();
        joined.account_data = gathered.account_data.of_room(look, room_id);
        joined.ephemeral = gathered.ephemeral.of_room(look, room_id);
        if !news.is_empty() || new {
            let Some(room) = self.timeline.heads.room(room_id).await? else {
                return Ok(None);
            };
            let Some(around) = Self::around(&room, &news, new) else {
                return Ok(None);
            };
            joined.state = self.state_part(look, &news, around).await?;
            if new || !news.events.is_empty() || news.limited || !joined.state.is_empty() {
                joined.timeline = self.timeline(look, &news).await?;
            }
            if new || news.members {
                joined.summary = self.summary(look, &room, around.end).await?;
            }
        }
        if joined.is_empty() && !new {
            return Ok(None);
        }
        // Not counted here: a client counts for itself what it can decrypt.
        joined.unread_notifications = uncounted();
        Ok(Some(joined))
    }

    /// A room that the user has left; `None` if that is no news.
    pub(super) async fn left(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        place: &Place,
        gathered: &Gathered,
    ) -> Result<Option<LeftRoom>, StorageError> {
        if !look.wants_left(place) {
            return Ok(None);
        }
        let mut left = LeftRoom::new();
        left.account_data = gathered.account_data.of_room(look, room_id);
        let news = gathered.timeline.of(room_id);
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(Some(left));
        };
        // Without an event to start from there would be only the state of today, which the user may not see.
        let seen = !news.events.is_empty();
        if let Some(around) = Self::around(&room, &news, look.is_first()).filter(|_| seen) {
            left.timeline = self.timeline(look, &news).await?;
            left.state = self.state_part(look, &news, around).await?;
        }
        Ok(Some(left))
    }

    async fn timeline(&self, look: &Look<'_>, news: &RoomNews) -> Result<Timeline, StorageError> {
        let requester = &look.ask.requester;
        let mut timeline = Timeline::new();
        timeline.limited = news.limited;
        let first = news.events.first().and_then(|event| event.position);
        let before = first.map_or(look.until.0, |position| position - 1);
        timeline.prev_batch = Some(PageToken(before).to_string());
        for event in &news.events {
            let event = &self.current(event).await?;
            if self.visibility.allows(&requester.user_id, event).await? {
                timeline
                    .events
                    .push(self.events.for_client(event, requester).await?);
            }
        }
        Ok(timeline)
    }

    /// An event as it is now: one that was redacted since it came into the log is not shown as it was.
    async fn current(&self, event: &Arc<StoredEvent>) -> Result<Arc<StoredEvent>, StorageError> {
        if !self.storage.event_cache().is_stale(event.nid) {
            return Ok(event.clone());
        }
        let now = self.events.by_nids(&[event.nid]).await?.remove(&event.nid);
        Ok(now.unwrap_or_else(|| event.clone()))
    }

    fn around(room: &Room, news: &RoomNews, new: bool) -> Option<Around> {
        let head = room.head.as_ref()?.state;
        let start = news
            .events
            .first()
            .and_then(|event| event.state)
            .map(|state| state.before);
        let end = news
            .events
            .last()
            .and_then(|event| event.state)
            .map(|state| state.head);
        let start = start.unwrap_or(head);
        let known = if new {
            None
        } else {
            Some(news.state_before.unwrap_or(start))
        };
        Some(Around {
            known,
            start,
            end: end.unwrap_or(head),
        })
    }

    async fn state_part(
        &self,
        look: &Look<'_>,
        news: &RoomNews,
        around: Around,
    ) -> Result<State, StorageError> {
        let mut events = StateEvents::new();
        events.events = self.state(look, news, around).await?;
        Ok(if look.ask.use_state_after {
            State::After(events)
        } else {
            State::Before(events)
        })
    }

    /// How many are in the room, and who stands for its name.
    async fn summary(
        &self,
        look: &Look<'_>,
        room: &Room,
        state: NodeId,
    ) -> Result<RoomSummary, StorageError> {
        let members = self
            .storage
            .read()
            .await?
            .memberships()
            .of_room(room.nid)
            .await?;
        let count = |is: MembershipState| {
            let count = members.iter().filter(|member| member.1 == is).count();
            UInt::try_from(count).ok()
        };
        let mut summary = RoomSummary::new();
        summary.joined_member_count = count(MembershipState::Join);
        summary.invited_member_count = count(MembershipState::Invite);
        let mut named = false;
        for event_type in [StateEventType::RoomName, StateEventType::RoomCanonicalAlias] {
            named |= self
                .storage
                .state_get(state, &event_type, "")
                .await?
                .is_some();
        }
        if !named {
            let others = members.iter().filter(|m| m.0 != look.ask.requester.user_id);
            let here = |m: &&(_, MembershipState, _)| {
                matches!(m.1, MembershipState::Join | MembershipState::Invite)
            };
            let mut heroes: Vec<_> = others.clone().filter(here).collect();
            if heroes.is_empty() {
                heroes = others.collect();
            }
            heroes.sort_by_key(|member| member.2);
            summary.heroes = heroes
                .into_iter()
                .take(HEROES)
                .map(|m| m.0.clone())
                .collect();
        }
        Ok(summary)
    }
}

/// The counts that clients expect to find.
fn uncounted() -> UnreadNotificationsCount {
    let mut counts = UnreadNotificationsCount::new();
    counts.highlight_count = Some(UInt::MIN);
    counts.notification_count = Some(UInt::MIN);
    counts
}
