//! `to_device`, `to_device_requests`, `to_device_received`: messages between devices
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging)).

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, ServerName, UserId};
use sqlx::{AnyConnection, Row};

use super::{
    Families, StorageError,
    log::{Change, StreamPosition},
    writer::Tx,
};

/// The tables of messages between devices.
#[derive(Debug)]
pub(crate) struct ToDevice<'t>(pub(super) &'t mut AnyConnection);

/// A message that waits.
#[derive(Clone, Debug)]
pub(crate) struct StoredMessage {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    pub(crate) position: StreamPosition,
    pub(crate) json: String,
}

impl Tx {
    /// Leaves an event for a device; `origin` is the other server from which it came, if it did.
    pub(crate) async fn leave_for_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        origin: Option<&ServerName>,
        json: &str,
    ) -> Result<(), StorageError> {
        let position = self.log(Change::ToDevice {
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
        });
        sqlx::query(
            "INSERT INTO to_device (user_id, device_id, position, json, origin) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(position.0)
        .bind(json)
        .bind(origin.map_or("", ServerName::as_str))
        .execute(self.connection())
        .await?;
        Ok(())
    }
}

impl ToDevice<'_> {
    /// What waits for a device between two positions, oldest first.
    pub(crate) async fn waiting(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        above: StreamPosition,
        up_to: StreamPosition,
        limit: i64,
    ) -> Result<Vec<(StreamPosition, String)>, StorageError> {
        let rows = sqlx::query(
            "SELECT position, json FROM to_device WHERE user_id = $1 AND device_id = $2
             AND position > $3 AND position <= $4 ORDER BY position LIMIT $5",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(above.0)
        .bind(up_to.0)
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| Ok((StreamPosition(row.try_get(0)?), row.try_get(1)?)))
            .collect()
    }

    /// What came for any device between two positions and still waits, oldest first.
    pub(crate) async fn between(
        &mut self,
        above: StreamPosition,
        up_to: StreamPosition,
        limit: i64,
    ) -> Result<Vec<StoredMessage>, StorageError> {
        let rows = sqlx::query(
            "SELECT user_id, device_id, position, json FROM to_device
             WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3",
        )
        .bind(above.0)
        .bind(up_to.0)
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                let user_id: String = row.try_get(0)?;
                let wrong = |_| StorageError::inconsistent("to_device", "user_id", &user_id);
                Ok(StoredMessage {
                    user_id: UserId::parse(&user_id).map_err(wrong)?,
                    device_id: row.try_get::<String, _>(1)?.into(),
                    position: StreamPosition(row.try_get(2)?),
                    json: row.try_get(3)?,
                })
            })
            .collect()
    }

    /// The devices of a user for which `limit` messages or more wait.
    pub(crate) async fn full(
        &mut self,
        user_id: &UserId,
        limit: i64,
    ) -> Result<Vec<OwnedDeviceId>, StorageError> {
        let rows = sqlx::query(
            "SELECT device_id FROM to_device WHERE user_id = $1
             GROUP BY device_id HAVING COUNT(*) >= $2",
        )
        .bind(user_id.as_str())
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| Ok(row.try_get::<String, _>(0)?.into()))
            .collect()
    }

    /// The devices of a user for which `limit` messages of another server or more wait.
    pub(crate) async fn full_of(
        &mut self,
        origin: &ServerName,
        user_id: &UserId,
        limit: i64,
    ) -> Result<Vec<OwnedDeviceId>, StorageError> {
        // That it is not empty is said for the index, which has such rows only.
        let rows = sqlx::query(
            "SELECT device_id FROM to_device WHERE origin = $1 AND origin <> '' AND user_id = $2
             GROUP BY device_id HAVING COUNT(*) >= $3",
        )
        .bind(origin.as_str())
        .bind(user_id.as_str())
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| Ok(row.try_get::<String, _>(0)?.into()))
            .collect()
    }

    /// Forgets what a device has confirmed.
    pub(crate) async fn delete_up_to(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND position <= $3",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Forgets everything that belongs to a device.
    pub(crate) async fn delete_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<(), StorageError> {
        for statement in [
            "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2",
            "DELETE FROM to_device_requests WHERE user_id = $1 AND device_id = $2",
        ] {
            sqlx::query(statement)
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Remembers a request of a local device; whether it is new.
    pub(crate) async fn begin_request(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        txn_id: &str,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO to_device_requests (user_id, device_id, txn_id, at)
             VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, device_id, txn_id) DO NOTHING",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(txn_id)
        .bind(i64::from(now.0))
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Remembers a message of another server; whether it is new.
    pub(crate) async fn begin_received(
        &mut self,
        origin: &ServerName,
        message_id: &str,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO to_device_received (origin, message_id, at) VALUES ($1, $2, $3)
             ON CONFLICT (origin, message_id) DO NOTHING",
        )
        .bind(origin.as_str())
        .bind(message_id)
        .bind(i64::from(now.0))
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The devices of a local user, to which a message for all of them goes.
    pub(crate) async fn devices_of(
        &mut self,
        user_id: &UserId,
    ) -> Result<Vec<OwnedDeviceId>, StorageError> {
        let rows =
            sqlx::query("SELECT device_id FROM devices WHERE user_id = $1 ORDER BY device_id")
                .bind(user_id.as_str())
                .fetch_all(&mut *self.0)
                .await?;
        rows.iter()
            .map(|row| Ok(row.try_get::<String, _>(0)?.into()))
            .collect()
    }
}
