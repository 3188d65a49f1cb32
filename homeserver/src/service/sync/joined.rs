//! Rooms that the user is in, or was in when something happened there.

use ruma::{
    RoomId,
    api::client::sync::sync_events::v3::{JoinedRoom, LeftRoom, State, StateEvents, Timeline},
    events::AnySyncStateEvent,
    serde::Raw,
};

use super::{Gathered, Look, Sync, state::Around, stretch::Shown};
use crate::{
    service::{relations::Bundles, timeline::PageToken},
    storage::{StorageError, roster::Place},
};

impl Sync {
    /// A room that the user is in; `None` if there is nothing new.
    pub(super) async fn joined(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        place: &Place,
        gathered: &Gathered,
    ) -> Result<Option<JoinedRoom>, StorageError> {
        let new = look.is_new(room_id, place);
        let mut joined = JoinedRoom::new();
        joined.state = state(look, Vec::new());
        joined.account_data = gathered.account_data.of_room(look, room_id);
        joined.ephemeral = gathered.ephemeral.of_room(look, room_id);
        if let Some(news) = gathered.timeline.of(room_id)
            && let Some(around) = around(news, new)
        {
            joined.state = self.state_part(look, room_id, news, around).await?;
            if look.is_fresh(place)
                || !news.events.is_empty()
                || news.limited
                || !joined.state.is_empty()
            {
                joined.timeline = self.timeline(look, news, &gathered.bundles).await?;
            }
            if let Some(summary) = gathered.summaries.of(room_id) {
                joined.summary = summary.clone();
            }
        } else if new {
            // The server is not in the room yet.
            return Ok(None);
        }
        if joined.is_empty() && !new && !gathered.unread.is_news(room_id) {
            return Ok(None);
        }
        gathered.unread.tell(look, room_id, &mut joined);
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
        left.state = state(look, Vec::new());
        left.account_data = gathered.account_data.of_room(look, room_id);
        if let Some(news) = gathered.timeline.of(room_id).filter(|news| news.any) {
            left.timeline = self.timeline(look, news, &gathered.bundles).await?;
            if let Some(around) = around(news, look.is_first()) {
                left.state = self.state_part(look, room_id, news, around).await?;
            }
        }
        Ok(Some(left))
    }

    async fn timeline(
        &self,
        look: &Look<'_>,
        news: &Shown,
        bundles: &Bundles,
    ) -> Result<Timeline, StorageError> {
        let mut timeline = Timeline::new();
        timeline.limited = news.limited;
        let first = news.events.first().and_then(|event| event.position);
        let before = first.map_or(look.until.0, |position| position - 1);
        timeline.prev_batch = Some(PageToken(before).to_string());
        for event in &news.events {
            timeline.events.push(self.show(look, event, bundles).await?);
        }
        timeline.events.extend(news.outside.iter().cloned());
        Ok(timeline)
    }

    async fn state_part(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        news: &Shown,
        around: Around,
    ) -> Result<State, StorageError> {
        let events = self.state(look, room_id, news, around).await?;
        Ok(state(look, events))
    }
}

fn state(look: &Look<'_>, events: Vec<Raw<AnySyncStateEvent>>) -> State {
    let events = StateEvents::with_events(events);
    if look.ask.use_state_after {
        State::After(events)
    } else {
        State::Before(events)
    }
}

/// The states around what is shown of a room; `None` where nothing is known of them.
fn around(news: &Shown, new: bool) -> Option<Around> {
    let end = news.end?;
    let first = news.events.first().and_then(|event| event.state);
    Some(Around {
        known: news.before.filter(|_| !new),
        start: first.map_or(end, |state| state.before),
        end,
    })
}
