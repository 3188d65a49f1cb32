//! What a user was notified of, or would have been
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#listing-notifications)).
//!
//! No list is kept: the rules of the user are applied to the events of the user's rooms, newest first.

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, events::AnySyncTimelineEvent,
    events::room::member::MembershipState, serde::Raw,
};
use serde_json::Value;

use super::{
    accounts::Requester,
    events::Events,
    push_rules::{Judge, PushRules},
    unread::Unread,
};
use crate::storage::{Families, Storage, StorageError, log::StreamPosition, unread::TimelineEvent};

/// How many events are read at once.
const PAGE: i64 = 100;
/// How many events are looked at, at most, to fill an answer.
const MOST: usize = 5_000;

/// Lists notifications.
#[derive(Clone)]
pub(crate) struct Notifications {
    storage: Storage,
    events: Events,
    rules: PushRules,
    unread: Unread,
}

/// Which notifications.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// Those before this position.
    pub(crate) before: Option<StreamPosition>,
    pub(crate) limit: usize,
    pub(crate) only_highlights: bool,
}

/// A part of the list, newest first.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) notifications: Vec<Notification>,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<StreamPosition>,
}

/// An event that the user was notified of.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) actions: Vec<Value>,
    pub(crate) event: Raw<AnySyncTimelineEvent>,
    pub(crate) read: bool,
    pub(crate) room_id: OwnedRoomId,
    pub(crate) at: MilliSecondsSinceUnixEpoch,
}

impl Notifications {
    pub(crate) fn new(storage: Storage, events: Events, rules: PushRules, unread: Unread) -> Self {
        Self {
            storage,
            events,
            rules,
            unread,
        }
    }

    /// A part of the list.
    pub(crate) async fn page(&self, requester: &Requester, ask: Ask) -> Result<Page, StorageError> {
        let user_id = &requester.user_id;
        let mut places = self.storage.log().roster().places(user_id);
        places.retain(|_, place| place.membership == MembershipState::Join);
        let rooms: Vec<_> = places.keys().cloned().collect();
        let judge = self.rules.judge(user_id).await?;
        let unread = self.unread.of_rooms(user_id, rooms.clone()).await?;
        let mut at = match ask.before {
            Some(before) => StreamPosition(before.0.saturating_sub(1)),
            None => self.storage.log().position(),
        };
        let mut notifications = Vec::new();
        for _ in 0..MOST / usize::try_from(PAGE).unwrap_or(1) {
            let mut reader = self.storage.read().await?;
            let events = reader.unread().newest(&rooms, at, PAGE).await?;
            drop(reader);
            let full = i64::try_from(events.len()).is_ok_and(|count| count >= PAGE);
            for event in events {
                at = event.position;
                let room_id = event.pdu.room_id();
                let since = places.get(room_id).map_or(at, |place| place.since);
                if event.position <= since {
                    continue;
                }
                let Some(mut notification) = self.listed(requester, &judge, &event, ask).await?
                else {
                    continue;
                };
                let unread = unread.get(room_id);
                notification.read = !unread.is_some_and(|room| room.contains(event.nid));
                notifications.push(notification);
                if notifications.len() >= ask.limit {
                    let next = Some(at);
                    return Ok(Page {
                        notifications,
                        next,
                    });
                }
            }
            if !full {
                let next = None;
                return Ok(Page {
                    notifications,
                    next,
                });
            }
            at = StreamPosition(at.0 - 1);
        }
        let next = Some(StreamPosition(at.0 + 1));
        Ok(Page {
            notifications,
            next,
        })
    }

    /// An event as it stands in the list, if it does.
    async fn listed(
        &self,
        requester: &Requester,
        judge: &Judge,
        event: &TimelineEvent,
        ask: Ask,
    ) -> Result<Option<Notification>, StorageError> {
        let user_id = &requester.user_id;
        if event.redacted || event.pdu.sender() == user_id {
            return Ok(None);
        }
        let verdict = self.unread.verdict(judge, user_id, &event.into()).await?;
        if !verdict.notify || (ask.only_highlights && !verdict.highlight) {
            return Ok(None);
        }
        let stored = self.events.by_nids(&[event.nid]).await?.remove(&event.nid);
        let Some(stored) = stored else {
            return Ok(None);
        };
        Ok(Some(Notification {
            actions: verdict.actions,
            event: self.events.for_client(&stored, requester).await?,
            read: true,
            room_id: event.pdu.room_id().to_owned(),
            at: event.pdu.origin_server_ts(),
        }))
    }
}
