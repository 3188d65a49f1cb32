//! `receipts`: how far each user has read each room.

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, dialect, log::StreamPosition};

/// The table `receipts`.
#[derive(Debug)]
pub(crate) struct Receipts<'t>(pub(super) &'t mut AnyConnection);

/// A row of the table `receipts`.
#[derive(Clone, Debug)]
pub(crate) struct StoredReceipt {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) user_id: OwnedUserId,
    pub(crate) receipt_type: String,
    /// `main`, or the id of the root of a thread; `None` for one without thread.
    pub(crate) thread_id: Option<String>,
    pub(crate) event_id: OwnedEventId,
    /// The place of that event in the log, if it is known.
    pub(crate) event_position: Option<i64>,
    /// Milliseconds since the Unix epoch.
    pub(crate) received_at: i64,
}

impl StoredReceipt {
    /// Whether only the user may see it.
    pub(crate) fn is_private(&self) -> bool {
        self.receipt_type == "m.read.private"
    }
}

impl Receipts<'_> {
    /// Where the receipt of the same user, room, type and thread stands now: the event, and its place in
    /// the log.
    pub(crate) async fn place(
        &mut self,
        receipt: &StoredReceipt,
    ) -> Result<Option<(String, Option<i64>)>, StorageError> {
        let row = sqlx::query(
            "SELECT event_id, event_position FROM receipts \
             WHERE room_id = $1 AND user_id = $2 AND receipt_type = $3 AND thread_id = $4",
        )
        .bind(receipt.room_id.as_str())
        .bind(receipt.user_id.as_str())
        .bind(receipt.receipt_type.as_str())
        .bind(receipt.thread_id.as_deref().unwrap_or_default())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .transpose()
    }

    /// Sets a receipt.
    pub(crate) async fn set(
        &mut self,
        receipt: &StoredReceipt,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, \
             event_position, received_at, position) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE SET \
             event_id = excluded.event_id, event_position = excluded.event_position, \
             received_at = excluded.received_at, position = excluded.position",
        )
        .bind(receipt.room_id.as_str())
        .bind(receipt.user_id.as_str())
        .bind(receipt.receipt_type.as_str())
        .bind(receipt.thread_id.as_deref().unwrap_or_default())
        .bind(receipt.event_id.as_str())
        .bind(receipt.event_position)
        .bind(receipt.received_at)
        .bind(position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// The receipts of rooms that were set after `since`, up to `until`, as far as `user_id` may see
    /// them: all but the private ones of others.
    pub(crate) async fn changed(
        &mut self,
        room_ids: &[OwnedRoomId],
        user_id: &UserId,
        since: StreamPosition,
        until: StreamPosition,
    ) -> Result<Vec<StoredReceipt>, StorageError> {
        let mut found = self.all_changed(room_ids, since, until).await?;
        found.retain(|receipt| receipt.user_id == user_id || !receipt.is_private());
        Ok(found)
    }

    /// As [`Receipts::changed`], also those that only their users may see.
    pub(crate) async fn all_changed(
        &mut self,
        room_ids: &[OwnedRoomId],
        since: StreamPosition,
        until: StreamPosition,
    ) -> Result<Vec<StoredReceipt>, StorageError> {
        let sql = |list| {
            format!(
                "SELECT room_id, user_id, receipt_type, thread_id, event_id, event_position, \
                 received_at FROM receipts WHERE position > $1 AND position <= $2 \
                 AND room_id IN ({list})"
            )
        };
        let query = |list| dialect::query(sql(list)).bind(since.0).bind(until.0);
        let rows = dialect::rows_for(self.0, room_ids, 3, query, |query, id| {
            query.bind(id.as_str())
        });
        rows.await?.iter().map(read).collect()
    }
}

fn read(row: &AnyRow) -> Result<StoredReceipt, StorageError> {
    let room_id: String = row.try_get(0)?;
    let user_id: String = row.try_get(1)?;
    let thread_id: String = row.try_get(3)?;
    let event_id: String = row.try_get(4)?;
    let wrong = |column| StorageError::inconsistent("receipts", column, &user_id);
    Ok(StoredReceipt {
        room_id: RoomId::parse(&room_id).map_err(|_| wrong("room_id"))?,
        user_id: UserId::parse(&user_id).map_err(|_| wrong("user_id"))?,
        receipt_type: row.try_get(2)?,
        thread_id: Some(thread_id).filter(|thread_id| !thread_id.is_empty()),
        event_id: EventId::parse(&event_id).map_err(|_| wrong("event_id"))?,
        event_position: row.try_get(5)?,
        received_at: row.try_get(6)?,
    })
}
