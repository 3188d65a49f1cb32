//! `account_data`: what users keep on the server for their own clients.

use ruma::{OwnedRoomId, RoomId, UserId};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, log::StreamPosition};

/// The table `account_data`.
#[derive(Debug)]
pub(crate) struct AccountData<'t>(pub(super) &'t mut AnyConnection);

/// A row of the table `account_data`.
#[derive(Clone)]
pub(crate) struct Item {
    /// `None` for global account data.
    pub(crate) room_id: Option<OwnedRoomId>,
    pub(crate) event_type: String,
    /// JSON.
    pub(crate) content: String,
    pub(crate) position: StreamPosition,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Item")
            .field("room_id", &self.room_id)
            .field("event_type", &self.event_type)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl AccountData<'_> {
    /// The content of one type.
    pub(crate) async fn content(
        &mut self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
    ) -> Result<Option<String>, StorageError> {
        let content = sqlx::query_scalar(
            "SELECT content FROM account_data \
             WHERE user_id = $1 AND room_id = $2 AND event_type = $3",
        )
        .bind(user_id.as_str())
        .bind(room_id.map_or("", RoomId::as_str))
        .bind(event_type)
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(content)
    }

    /// Sets the content of one type.
    pub(crate) async fn set(
        &mut self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
        content: &str,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO account_data (user_id, room_id, event_type, content, position) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_id, room_id, event_type) \
             DO UPDATE SET content = excluded.content, position = excluded.position",
        )
        .bind(user_id.as_str())
        .bind(room_id.map_or("", RoomId::as_str))
        .bind(event_type)
        .bind(content)
        .bind(position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// All of a user that was set after `since`, up to `until`.
    pub(crate) async fn changed(
        &mut self,
        user_id: &UserId,
        since: StreamPosition,
        until: StreamPosition,
    ) -> Result<Vec<Item>, StorageError> {
        let rows = sqlx::query(
            "SELECT room_id, event_type, content, position FROM account_data \
             WHERE user_id = $1 AND position > $2 AND position <= $3 ORDER BY position",
        )
        .bind(user_id.as_str())
        .bind(since.0)
        .bind(until.0)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &AnyRow) -> Result<Item, StorageError> {
    let room_id: String = row.try_get(0)?;
    let event_type: String = row.try_get(1)?;
    let room_id = if room_id.is_empty() {
        None
    } else {
        let wrong = |_| StorageError::inconsistent("account_data", "room_id", &event_type);
        Some(RoomId::parse(&room_id).map_err(wrong)?)
    };
    Ok(Item {
        room_id,
        event_type,
        content: row.try_get(2)?,
        position: StreamPosition(row.try_get(3)?),
    })
}
