//! `device_keys`: the identity keys of devices, of local users and of remote users whose lists we follow.

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sqlx::{AnyConnection, Row};

use super::{StorageError, dialect};

/// The table `device_keys`.
#[derive(Debug)]
pub(crate) struct DeviceKeys<'t>(pub(super) &'t mut AnyConnection);

/// The keys of a device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceKeysRow {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    /// As uploaded.
    pub(crate) json: String,
    /// For local devices: what the user calls it.
    pub(crate) display_name: Option<String>,
}

impl DeviceKeys<'_> {
    /// The keys of all devices of some users.
    pub(crate) async fn of_users(
        &mut self,
        user_ids: &[OwnedUserId],
    ) -> Result<Vec<DeviceKeysRow>, StorageError> {
        let mut found = Vec::new();
        for piece in dialect::pieces(user_ids) {
            let mut query = dialect::query(format!(
                "SELECT device_keys.user_id, device_keys.device_id, device_keys.json, \
                 devices.display_name FROM device_keys LEFT JOIN devices \
                 ON devices.user_id = device_keys.user_id \
                 AND devices.device_id = device_keys.device_id \
                 WHERE device_keys.user_id IN ({})",
                dialect::numbered(1, piece.len())
            ));
            for user_id in piece {
                query = query.bind(user_id.as_str());
            }
            for row in query.fetch_all(&mut *self.0).await? {
                let user_id: String = row.try_get(0)?;
                let device_id: String = row.try_get(1)?;
                found.push(DeviceKeysRow {
                    user_id: parse(&user_id)?,
                    device_id: device_id.into(),
                    json: row.try_get(2)?,
                    display_name: row.try_get(3)?,
                });
            }
        }
        Ok(found)
    }

    /// The keys of a device, as uploaded.
    pub(crate) async fn by_id(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<String>, StorageError> {
        let query = sqlx::query_scalar(
            "SELECT json FROM device_keys WHERE user_id = $1 AND device_id = $2",
        );
        Ok(query
            .bind(user_id.as_str())
            .bind(device_id.as_str())
            .fetch_optional(&mut *self.0)
            .await?)
    }

    pub(crate) async fn set(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        json: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO device_keys (user_id, device_id, json) VALUES ($1, $2, $3)
             ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(json)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(crate) async fn delete(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2")
            .bind(user_id.as_str())
            .bind(device_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    pub(crate) async fn delete_of_user(&mut self, user_id: &UserId) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM device_keys WHERE user_id = $1")
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}

fn parse(user_id: &str) -> Result<OwnedUserId, StorageError> {
    UserId::parse(user_id)
        .map_err(|_| StorageError::inconsistent("device_keys", "user_id", user_id))
}
