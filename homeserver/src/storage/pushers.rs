//! `pushers`: where users want to be notified.

use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use serde_json::{Map, Value};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, dialect, log::StreamPosition};

/// The table `pushers`.
#[derive(Debug)]
pub(crate) struct Pushers<'t>(pub(super) &'t mut AnyConnection);

/// What names a pusher.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PusherId {
    pub(crate) user_id: OwnedUserId,
    pub(crate) app_id: String,
    pub(crate) pushkey: String,
}

impl std::fmt::Debug for PusherId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever knows the push key can send notifications to the device.
        f.debug_struct("PusherId")
            .field("user_id", &self.user_id)
            .field("app_id", &self.app_id)
            .finish_non_exhaustive()
    }
}

/// A row of the table `pushers`.
#[derive(Clone, Debug)]
pub(crate) struct StoredPusher {
    pub(crate) id: PusherId,
    pub(crate) device_id: OwnedDeviceId,
    /// What else the client said of it.
    pub(crate) details: Map<String, Value>,
    pub(crate) enabled: bool,
    /// Milliseconds since the Unix epoch.
    pub(crate) set_at: i64,
    pub(crate) progress: Progress,
}

/// How far a pusher has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Notifications up to here were delivered, or need not be.
    pub(crate) position: StreamPosition,
    /// The number of unread notifications that was last delivered.
    pub(crate) badge: Option<i64>,
    /// How often in a row the gateway did not take a notification, and since when.
    pub(crate) failures: u32,
    pub(crate) failing_since: Option<i64>,
}

const COLUMNS: &str = "user_id, app_id, pushkey, device_id, details, enabled, set_at, position, badge, \
     failures, failing_since";

impl Pushers<'_> {
    /// All of them.
    pub(crate) async fn all(&mut self) -> Result<Vec<StoredPusher>, StorageError> {
        let rows = dialect::query(format!("SELECT {COLUMNS} FROM pushers"))
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(read).collect()
    }

    /// Those of a user.
    pub(crate) async fn of_user(
        &mut self,
        user_id: &UserId,
    ) -> Result<Vec<StoredPusher>, StorageError> {
        let sql =
            format!("SELECT {COLUMNS} FROM pushers WHERE user_id = $1 ORDER BY set_at, pushkey");
        let rows = dialect::query(sql)
            .bind(user_id.as_str())
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(read).collect()
    }

    /// One of them.
    pub(crate) async fn by_id(
        &mut self,
        id: &PusherId,
    ) -> Result<Option<StoredPusher>, StorageError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3"
        );
        let row = dialect::query(sql)
            .bind(id.user_id.as_str())
            .bind(id.app_id.as_str())
            .bind(id.pushkey.as_str())
            .fetch_optional(&mut *self.0)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Makes a pusher, or takes the place of the one with its id.
    pub(crate) async fn set(&mut self, pusher: &StoredPusher) -> Result<(), StorageError> {
        let details = Value::Object(pusher.details.clone()).to_string();
        sqlx::query(
            "INSERT INTO pushers (user_id, app_id, pushkey, device_id, details, enabled, set_at, \
             position, badge, failures, failing_since) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET \
             device_id = excluded.device_id, details = excluded.details, \
             enabled = excluded.enabled, set_at = excluded.set_at, position = excluded.position, \
             badge = excluded.badge, failures = excluded.failures, \
             failing_since = excluded.failing_since",
        )
        .bind(pusher.id.user_id.as_str())
        .bind(pusher.id.app_id.as_str())
        .bind(pusher.id.pushkey.as_str())
        .bind(pusher.device_id.as_str())
        .bind(details)
        .bind(i64::from(pusher.enabled))
        .bind(pusher.set_at)
        .bind(pusher.progress.position.0)
        .bind(pusher.progress.badge)
        .bind(i64::from(pusher.progress.failures))
        .bind(pusher.progress.failing_since)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Remembers how far a pusher has got; whether there still is one.
    pub(crate) async fn progressed(
        &mut self,
        id: &PusherId,
        progress: Progress,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "UPDATE pushers SET position = $1, badge = $2, failures = $3, failing_since = $4 \
             WHERE user_id = $5 AND app_id = $6 AND pushkey = $7",
        )
        .bind(progress.position.0)
        .bind(progress.badge)
        .bind(i64::from(progress.failures))
        .bind(progress.failing_since)
        .bind(id.user_id.as_str())
        .bind(id.app_id.as_str())
        .bind(id.pushkey.as_str())
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Removes a pusher; whether it was there.
    pub(crate) async fn delete(&mut self, id: &PusherId) -> Result<bool, StorageError> {
        let done =
            sqlx::query("DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3")
                .bind(id.user_id.as_str())
                .bind(id.app_id.as_str())
                .bind(id.pushkey.as_str())
                .execute(&mut *self.0)
                .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Removes the pushers that others have with the same app and key: the device is in other hands.
    pub(crate) async fn delete_of_others(&mut self, id: &PusherId) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM pushers WHERE user_id <> $1 AND app_id = $2 AND pushkey = $3")
            .bind(id.user_id.as_str())
            .bind(id.app_id.as_str())
            .bind(id.pushkey.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}

fn read(row: &AnyRow) -> Result<StoredPusher, StorageError> {
    let user_id: String = row.try_get(0)?;
    let wrong = |column| StorageError::inconsistent("pushers", column, &user_id);
    let details: String = row.try_get(4)?;
    Ok(StoredPusher {
        id: PusherId {
            user_id: UserId::parse(&user_id).map_err(|_| wrong("user_id"))?,
            app_id: row.try_get(1)?,
            pushkey: row.try_get(2)?,
        },
        device_id: OwnedDeviceId::from(row.try_get::<String, _>(3)?),
        details: serde_json::from_str(&details).map_err(|_| wrong("details"))?,
        enabled: row.try_get::<i64, _>(5)? != 0,
        set_at: row.try_get(6)?,
        progress: Progress {
            position: StreamPosition(row.try_get(7)?),
            badge: row.try_get(8)?,
            failures: u32::try_from(row.try_get::<i64, _>(9)?).unwrap_or(u32::MAX),
            failing_since: row.try_get(10)?,
        },
    })
}
