//! `devices`: the devices of local users.

use ruma::{
    DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, UInt, UserId, api::client::device::Device,
};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::StorageError;

/// The table `devices`.
#[derive(Debug)]
pub(crate) struct Devices<'t>(pub(super) &'t mut AnyConnection);

impl Devices<'_> {
    /// Adds a device, or renames it if it exists and a name is given.
    pub(crate) async fn upsert(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: Option<&str>,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO devices (user_id, device_id, display_name, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (user_id, device_id)
             DO UPDATE SET display_name = COALESCE(excluded.display_name, devices.display_name)",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(display_name)
        .bind(i64::from(now.0))
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(crate) async fn of_user(&mut self, user_id: &UserId) -> Result<Vec<Device>, StorageError> {
        let rows = sqlx::query(
            "SELECT device_id, display_name, last_seen_at, last_seen_ip FROM devices
             WHERE user_id = $1 ORDER BY created_at",
        )
        .bind(user_id.as_str())
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter().map(read).collect()
    }

    pub(crate) async fn by_id(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<Device>, StorageError> {
        let row = sqlx::query(
            "SELECT device_id, display_name, last_seen_at, last_seen_ip FROM devices
             WHERE user_id = $1 AND device_id = $2",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        row.as_ref().map(read).transpose()
    }

    pub(crate) async fn rename(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: &str,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE devices SET display_name = $1 WHERE user_id = $2 AND device_id = $3")
            .bind(display_name)
            .bind(user_id.as_str())
            .bind(device_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Removes a device with its pushers; whether it was there.
    pub(crate) async fn delete(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<bool, StorageError> {
        sqlx::query("DELETE FROM pushers WHERE user_id = $1 AND device_id = $2")
            .bind(user_id.as_str())
            .bind(device_id.as_str())
            .execute(&mut *self.0)
            .await?;
        let done = sqlx::query("DELETE FROM devices WHERE user_id = $1 AND device_id = $2")
            .bind(user_id.as_str())
            .bind(device_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}

fn read(row: &AnyRow) -> Result<Device, StorageError> {
    let device_id: String = row.try_get(0)?;
    let mut device = Device::new(OwnedDeviceId::from(device_id));
    device.display_name = row.try_get(1)?;
    device.last_seen_ts = row
        .try_get::<Option<i64>, _>(2)?
        .and_then(|at| UInt::try_from(at).ok())
        .map(MilliSecondsSinceUnixEpoch);
    device.last_seen_ip = row.try_get(3)?;
    Ok(device)
}
