//! Which threads users follow
//! ([MSC4306](https://github.com/matrix-org/matrix-spec-proposals/pull/4306)), and how their clients learn of it
//! ([MSC4308](https://github.com/matrix-org/matrix-spec-proposals/pull/4308)).

use std::collections::BTreeMap;

use futures_util::FutureExt;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use serde::Serialize;

use super::timeline::{ReadError, Timeline};
use crate::storage::{
    Families, Storage, StorageError,
    events::Relation,
    log::{Change, StreamPosition},
    thread_subscriptions::{Subscribed, Subscription},
};

/// How many changes are told at once.
const MOST: usize = 100;

/// Keeps which threads users follow.
#[derive(Clone)]
pub(crate) struct ThreadSubscriptions {
    storage: Storage,
    timeline: Timeline,
}

/// Why a user does not follow a thread.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubscribeError {
    #[error("there is no such event, or none that the user may see")]
    UnknownThread,
    #[error("the event is not in the thread")]
    NotInThread,
    #[error("the user ended the subscription after that event")]
    EndedLater,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<StorageError> for SubscribeError {
    fn from(error: StorageError) -> Self {
        Self::Read(error.into())
    }
}

/// What changed, as clients are told it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Changes {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subscribed: BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, Begun>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unsubscribed: BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, Ended>>,
    /// Up to where there are older changes that were not told.
    #[serde(skip)]
    pub(crate) rest: Option<StreamPosition>,
}

#[derive(Debug, Serialize)]
struct Begun {
    automatic: bool,
    bump_stamp: i64,
}

#[derive(Debug, Serialize)]
struct Ended {
    bump_stamp: i64,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribed.is_empty() && self.unsubscribed.is_empty()
    }

    fn add(&mut self, change: Subscribed) {
        let Subscribed {
            room_id,
            root,
            subscription,
            position: StreamPosition(bump_stamp),
        } = change;
        if subscription == Subscription::Ended {
            let room = self.unsubscribed.entry(room_id).or_default();
            room.insert(root, Ended { bump_stamp });
        } else {
            let automatic = subscription == Subscription::Automatic;
            let room = self.subscribed.entry(room_id).or_default();
            room.insert(
                root,
                Begun {
                    automatic,
                    bump_stamp,
                },
            );
        }
    }
}

impl ThreadSubscriptions {
    pub(crate) fn new(storage: Storage, timeline: Timeline) -> Self {
        Self { storage, timeline }
    }

    /// Whether a user follows a thread by the doing of a client alone; `None` if they do not follow it.
    pub(crate) async fn is_automatic(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
    ) -> Result<Option<bool>, SubscribeError> {
        self.thread(user_id, room_id, root).await?;
        let mut reader = self.storage.read().await?;
        let found = reader
            .thread_subscriptions()
            .of(user_id, room_id, root)
            .await?;
        Ok(match found {
            None | Some((Subscription::Ended, _)) => None,
            Some((subscription, _)) => Some(subscription == Subscription::Automatic),
        })
    }

    /// A user follows a thread from now on: by their own wish, or because of an event in it.
    pub(crate) async fn subscribe(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
        cause: Option<&EventId>,
    ) -> Result<(), SubscribeError> {
        self.thread(user_id, room_id, root).await?;
        let cause = match cause {
            Some(cause) => Some(self.cause(user_id, room_id, root, cause).await?),
            None => None,
        };
        self.change(user_id, room_id, root, move |now| match (cause, now) {
            // Who has left a thread is not brought back by what was said before.
            (Some(cause), Some((Subscription::Ended, since))) if cause <= since.0 => {
                Err(SubscribeError::EndedLater)
            }
            (Some(_), Some((Subscription::Automatic | Subscription::Manual, _)))
            | (None, Some((Subscription::Manual, _))) => Ok(None),
            (Some(_), _) => Ok(Some(Subscription::Automatic)),
            (None, _) => Ok(Some(Subscription::Manual)),
        })
        .await
    }

    /// A user does not follow a thread any more.
    pub(crate) async fn unsubscribe(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
    ) -> Result<(), SubscribeError> {
        self.thread(user_id, room_id, root).await?;
        self.change(user_id, room_id, root, |now| match now {
            None | Some((Subscription::Ended, _)) => Ok(None),
            Some(_) => Ok(Some(Subscription::Ended)),
        })
        .await
    }

    /// What changed for a user after `since`, up to `until`: the newest, at most `limit`.
    pub(crate) async fn changes(
        &self,
        user_id: &UserId,
        since: StreamPosition,
        until: StreamPosition,
        limit: usize,
    ) -> Result<Changes, StorageError> {
        let limit = limit.clamp(1, MOST);
        let asked = i64::try_from(limit + 1).unwrap_or(i64::MAX);
        let mut reader = self.storage.read().await?;
        let mut table = reader.thread_subscriptions();
        let mut found = table.changed(user_id, since, until, asked).await?;
        let mut changes = Changes {
            rest: found.get(limit).map(|first_untold| first_untold.position),
            ..Changes::default()
        };
        found.truncate(limit);
        for change in found {
            changes.add(change);
        }
        Ok(changes)
    }

    /// The event that a thread starts from, if the user may see it.
    async fn thread(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
    ) -> Result<(), SubscribeError> {
        let root = self.timeline.visible_event(user_id, room_id, root).await?;
        root.map(drop).ok_or(SubscribeError::UnknownThread)
    }

    /// The place of an event of a thread.
    async fn cause(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
        cause: &EventId,
    ) -> Result<i64, SubscribeError> {
        let event = self.timeline.visible_event(user_id, room_id, cause).await?;
        let event = event.filter(|event| {
            Relation::of(&event.pdu).is_some_and(|relation| {
                relation.rel_type == "m.thread" && relation.event_id == root
            })
        });
        let position = event.and_then(|event| event.position);
        position.ok_or(SubscribeError::NotInThread)
    }

    /// Changes how a user stands to a thread, if `decide` says so.
    async fn change<F>(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
        decide: F,
    ) -> Result<(), SubscribeError>
    where
        F: FnOnce(
                Option<(Subscription, StreamPosition)>,
            ) -> Result<Option<Subscription>, SubscribeError>
            + Send
            + 'static,
    {
        let (user_id, room_id, root) = (user_id.to_owned(), room_id.to_owned(), root.to_owned());
        let write = self.storage.write(move |tx| {
            async move {
                let now = tx
                    .thread_subscriptions()
                    .of(&user_id, &room_id, &root)
                    .await?;
                let Some(subscription) = decide(now)? else {
                    return Ok(());
                };
                let change = Change::ThreadSubscription {
                    user_id: user_id.clone(),
                };
                let subscribed = Subscribed {
                    room_id,
                    root,
                    subscription,
                    position: tx.log(change),
                };
                Ok(tx.thread_subscriptions().set(&user_id, &subscribed).await?)
            }
            .boxed()
        });
        write.await
    }
}
