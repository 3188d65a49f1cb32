//! What is around an event that was found
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3search)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedUserId,
    api::client::{filter::RoomEventFilter, search::search_events::v3::EventContext},
    events::{AnyTimelineEvent, StateEventType},
    serde::Raw,
};
use serde::{Deserialize, Serialize};

use super::Search;
use crate::{
    service::{
        accounts::Requester,
        timeline::{Direction, PageAsk, PageToken, ReadError},
    },
    storage::{StorageError, events::StoredEvent},
};

/// How many events come before and after one, at most.
const MOST: usize = 50;

/// What is around an event.
#[derive(Serialize)]
pub(super) struct Around {
    /// The nearest first.
    events_before: Vec<Raw<AnyTimelineEvent>>,
    events_after: Vec<Raw<AnyTimelineEvent>>,
    start: String,
    end: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile_info: Option<BTreeMap<OwnedUserId, Profile>>,
}

/// What somebody was called at that time.
#[derive(Serialize, Deserialize)]
struct Profile {
    displayname: Option<String>,
    avatar_url: Option<String>,
}

/// Events on one side.
struct Side {
    events: Vec<Arc<StoredEvent>>,
    end: PageToken,
}

impl Search {
    /// What is around an event, as far as the user may see it.
    pub(super) async fn around(
        &self,
        requester: &Requester,
        event: &StoredEvent,
        wanted: &EventContext,
    ) -> Result<Around, ReadError> {
        let position = event.position.unwrap_or_default();
        let limit = |limit: ruma::UInt| usize::try_from(limit).unwrap_or(MOST).min(MOST);
        let earlier = PageToken(position - 1);
        let before = self.side(
            requester,
            event,
            earlier,
            Direction::Backwards,
            limit(wanted.before_limit),
        );
        let before = before.await?;
        let later = PageToken(position);
        let after = self.side(
            requester,
            event,
            later,
            Direction::Forwards,
            limit(wanted.after_limit),
        );
        let after = after.await?;
        let profile_info = if wanted.include_profile {
            let events = before.events.iter().chain(&after.events);
            let mut senders: BTreeSet<_> =
                events.map(|event| event.pdu.sender().to_owned()).collect();
            senders.insert(event.pdu.sender().to_owned());
            Some(self.profiles(event, senders).await?)
        } else {
            None
        };
        Ok(Around {
            events_before: self.relations.bundled(requester, &before.events).await?,
            events_after: self.relations.bundled(requester, &after.events).await?,
            start: before.end.to_string(),
            end: after.end.to_string(),
            profile_info,
        })
    }

    async fn side(
        &self,
        requester: &Requester,
        event: &StoredEvent,
        from: PageToken,
        direction: Direction,
        limit: usize,
    ) -> Result<Side, ReadError> {
        if limit == 0 {
            return Ok(Side {
                events: Vec::new(),
                end: from,
            });
        }
        let ask = PageAsk {
            from: Some(from),
            direction,
            limit,
            filter: &RoomEventFilter::default(),
        };
        let room_id = event.pdu.room_id();
        let page = self.timeline.page(&requester.user_id, room_id, ask).await?;
        Ok(Side {
            events: page.events,
            end: page.end.unwrap_or(page.reached),
        })
    }

    /// What people were called when an event was sent.
    async fn profiles(
        &self,
        event: &StoredEvent,
        users: BTreeSet<OwnedUserId>,
    ) -> Result<BTreeMap<OwnedUserId, Profile>, StorageError> {
        let mut found = BTreeMap::new();
        let Some(state) = event.state else {
            return Ok(found);
        };
        let events = &self.timeline.events;
        for user_id in users {
            let member = StateEventType::RoomMember;
            let member = events
                .state_event(state.after, &member, user_id.as_str())
                .await?;
            let profile = member.and_then(|member| member.pdu.content_as().ok());
            found.extend(profile.map(|profile| (user_id, profile)));
        }
        Ok(found)
    }
}
