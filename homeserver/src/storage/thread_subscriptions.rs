//! `thread_subscriptions`: which threads users follow.

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, log::StreamPosition};

/// The table `thread_subscriptions`.
#[derive(Debug)]
pub(crate) struct ThreadSubscriptions<'t>(pub(super) &'t mut AnyConnection);

/// How a user stands to a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subscription {
    /// The user did follow it.
    Ended,
    /// A client began to follow it by itself.
    Automatic,
    /// The user wanted to follow it.
    Manual,
}

/// A row of the table `thread_subscriptions`.
#[derive(Clone, Debug)]
pub(crate) struct Subscribed {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) root: OwnedEventId,
    pub(crate) subscription: Subscription,
    pub(crate) position: StreamPosition,
}

impl ThreadSubscriptions<'_> {
    /// How a user stands to a thread, and since when; `None` if they never followed it.
    pub(crate) async fn of(
        &mut self,
        user_id: &UserId,
        room_id: &RoomId,
        root: &EventId,
    ) -> Result<Option<(Subscription, StreamPosition)>, StorageError> {
        let row = sqlx::query(
            "SELECT kind, position FROM thread_subscriptions \
             WHERE user_id = $1 AND room_id = $2 AND root_event_id = $3",
        )
        .bind(user_id.as_str())
        .bind(room_id.as_str())
        .bind(root.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        let read = |row: AnyRow| {
            let subscription = Subscription::read(row.try_get(0)?, root.as_str())?;
            Ok((subscription, StreamPosition(row.try_get(1)?)))
        };
        row.map(read).transpose()
    }

    /// Sets how a user stands to a thread.
    pub(crate) async fn set(
        &mut self,
        user_id: &UserId,
        subscribed: &Subscribed,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO thread_subscriptions (user_id, room_id, root_event_id, kind, position) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_id, room_id, root_event_id) \
             DO UPDATE SET kind = excluded.kind, position = excluded.position",
        )
        .bind(user_id.as_str())
        .bind(subscribed.room_id.as_str())
        .bind(subscribed.root.as_str())
        .bind(subscribed.subscription.kind())
        .bind(subscribed.position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// What changed for a user after `since`, up to `until`, the newest first.
    pub(crate) async fn changed(
        &mut self,
        user_id: &UserId,
        since: StreamPosition,
        until: StreamPosition,
        limit: i64,
    ) -> Result<Vec<Subscribed>, StorageError> {
        let rows = sqlx::query(
            "SELECT room_id, root_event_id, kind, position FROM thread_subscriptions \
             WHERE user_id = $1 AND position > $2 AND position <= $3 \
             ORDER BY position DESC LIMIT $4",
        )
        .bind(user_id.as_str())
        .bind(since.0)
        .bind(until.0)
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter().map(read).collect()
    }
}

impl Subscription {
    fn kind(self) -> i64 {
        match self {
            Self::Ended => 0,
            Self::Automatic => 1,
            Self::Manual => 2,
        }
    }

    fn read(kind: i64, row: &str) -> Result<Self, StorageError> {
        match kind {
            0 => Ok(Self::Ended),
            1 => Ok(Self::Automatic),
            2 => Ok(Self::Manual),
            _ => Err(StorageError::inconsistent(
                "thread_subscriptions",
                "kind",
                row,
            )),
        }
    }
}

fn read(row: &AnyRow) -> Result<Subscribed, StorageError> {
    let (room_id, root): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let wrong = |column| StorageError::inconsistent("thread_subscriptions", column, &root);
    Ok(Subscribed {
        room_id: RoomId::parse(&room_id).map_err(|_| wrong("room_id"))?,
        root: EventId::parse(&root).map_err(|_| wrong("root_event_id"))?,
        subscription: Subscription::read(row.try_get(2)?, &root)?,
        position: StreamPosition(row.try_get(3)?),
    })
}
