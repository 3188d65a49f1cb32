//! Rooms that the user is in, or was in when something happened there.

use ruma::{
    RoomId, UInt,
    api::client::sync::sync_events::v3::{
        JoinedRoom, LeftRoom, RoomSummary, State, StateEvents, Timeline,
    },
    events::{StateEventType, room::member::MembershipState},
};

use super::{
    Look, Sync,
    news::{News, RoomNews},
    state::{Around, is_member},
};
use crate::{
    service::timeline::PageToken,
    storage::{Families, StorageError, rooms::Room, roster::Place, state_map::NodeId},
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
        news: &News,
    ) -> Result<Option<JoinedRoom>, StorageError> {
        let news = news.of(room_id);
        let new = look.is_new(place);
        let mut joined = JoinedRoom::new();
        if !news.events.is_empty() || new {
            let Some(room) = self.timeline.heads.room(room_id).await? else {
                return Ok(None);
            };
            let Some(around) = self.around(&room, &news, new) else {
                return Ok(None);
            };
            joined.timeline = self.timeline(look, &news).await?;
            joined.state = self.state_part(look, &news, around).await?;
            if new || news.events.iter().any(is_member) {
                joined.summary = self.summary(look, &room, around.end).await?;
            }
        }
        Ok((!joined.is_empty() || new).then_some(joined))
    }

    /// A room that the user has left; `None` if that is no news.
    pub(super) async fn left(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        place: &Place,
        news: &News,
    ) -> Result<Option<LeftRoom>, StorageError> {
        let wanted = place.since > look.since && !look.is_first() && !place.forgotten;
        if !wanted {
            return Ok(None);
        }
        let mut left = LeftRoom::new();
        let news = news.of(room_id);
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(Some(left));
        };
        if let Some(around) = self.around(&room, &news, false) {
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
            if self.visibility.allows(&requester.user_id, event).await? {
                timeline
                    .events
                    .push(self.events.for_client(event, requester).await?);
            }
        }
        Ok(timeline)
    }

    fn around(&self, room: &Room, news: &RoomNews, new: bool) -> Option<Around> {
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
