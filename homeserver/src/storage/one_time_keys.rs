//! `one_time_keys`, `fallback_keys`: keys with which others open a secure channel to a device
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys)).
//!
//! A one-time key is handed out at most once: the statement that finds it marks it, and the answer leaves
//! after the commit. The marked key stays, because a device whose upload was not answered uploads the same
//! keys again, when somebody may have them already.

use std::collections::BTreeMap;

use ruma::{DeviceId, OneTimeKeyAlgorithm, UserId};
use sqlx::{AnyConnection, Row};

use super::{StorageError, dialect, log::StreamPosition};

/// The tables of keys that are handed out.
#[derive(Debug)]
pub(crate) struct OneTimeKeys<'t>(pub(super) &'t mut AnyConnection);

/// A key with its full id, `algorithm:name`.
#[derive(Clone, Debug)]
pub(crate) struct KeyRow {
    pub(crate) key_id: String,
    pub(crate) algorithm: String,
    pub(crate) json: String,
}

/// A key that was uploaded before.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) json: String,
    pub(crate) claimed: bool,
}

/// A key that was handed out.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub(crate) key_id: String,
    pub(crate) json: String,
}

impl OneTimeKeys<'_> {
    /// Those of the keys whose ids were uploaded before, by id.
    pub(crate) async fn existing(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        keys: &[KeyRow],
    ) -> Result<BTreeMap<String, Known>, StorageError> {
        let mut found = BTreeMap::new();
        for piece in dialect::pieces(keys) {
            let mut query = dialect::query(format!(
                "SELECT key_id, json, claimed FROM one_time_keys \
                 WHERE user_id = $1 AND device_id = $2 \
                 AND key_id IN ({})",
                dialect::numbered(3, piece.len())
            ))
            .bind(user_id.as_str())
            .bind(device_id.as_str());
            for key in piece {
                query = query.bind(&key.key_id);
            }
            for row in query.fetch_all(&mut *self.0).await? {
                let known = Known {
                    json: row.try_get(1)?,
                    claimed: row.try_get::<i64, _>(2)? != 0,
                };
                found.insert(row.try_get(0)?, known);
            }
        }
        Ok(found)
    }

    /// Adds keys, also under the ids of keys that were handed out.
    pub(crate) async fn insert(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        keys: &[KeyRow],
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        for piece in dialect::pieces(keys) {
            let mut query = dialect::query(format!(
                "INSERT INTO one_time_keys (user_id, device_id, key_id, algorithm, position, json) \
                 VALUES {} ON CONFLICT (user_id, device_id, key_id) DO UPDATE \
                 SET position = excluded.position, json = excluded.json, claimed = 0",
                dialect::rows(piece.len(), 6)
            ));
            for key in piece {
                query = query
                    .bind(user_id.as_str())
                    .bind(device_id.as_str())
                    .bind(&key.key_id)
                    .bind(&key.algorithm)
                    .bind(position.0)
                    .bind(&key.json);
            }
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    /// All keys of a device that may still be handed out.
    pub(crate) async fn of_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Vec<KeyRow>, StorageError> {
        let rows = sqlx::query(
            "SELECT key_id, algorithm, json FROM one_time_keys
             WHERE user_id = $1 AND device_id = $2 AND claimed = 0
             UNION ALL SELECT key_id, algorithm, json FROM fallback_keys
             WHERE user_id = $1 AND device_id = $2",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(KeyRow {
                    key_id: row.try_get(0)?,
                    algorithm: row.try_get(1)?,
                    json: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// Forgets a key, be it a one-time key or a fallback key.
    pub(crate) async fn delete(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        key_id: &str,
    ) -> Result<(), StorageError> {
        for statement in [
            "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND key_id = $3",
            "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND key_id = $3",
        ] {
            sqlx::query(statement)
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .bind(key_id)
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Sets the fallback key for an algorithm, unused; whether that changed anything.
    pub(crate) async fn set_fallback(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        key: &KeyRow,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, json)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_id, device_id, algorithm)
             DO UPDATE SET key_id = excluded.key_id, json = excluded.json, used = 0
             WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.json <> excluded.json",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(&key.algorithm)
        .bind(&key.key_id)
        .bind(&key.json)
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Takes the oldest one-time key, or else uses the fallback key.
    pub(crate) async fn claim(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        algorithm: &OneTimeKeyAlgorithm,
    ) -> Result<Option<Claimed>, StorageError> {
        for statement in [
            "UPDATE one_time_keys SET claimed = 1
             WHERE user_id = $1 AND device_id = $2 AND key_id = (
                 SELECT key_id FROM one_time_keys
                 WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND claimed = 0
                 ORDER BY position, key_id LIMIT 1
             ) RETURNING key_id, json",
            "UPDATE fallback_keys SET used = 1
             WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 RETURNING key_id, json",
        ] {
            let row = sqlx::query(statement)
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .bind(algorithm.as_str())
                .fetch_optional(&mut *self.0)
                .await?;
            if let Some(row) = row {
                return Ok(Some(Claimed {
                    key_id: row.try_get(0)?,
                    json: row.try_get(1)?,
                }));
            }
        }
        Ok(None)
    }

    /// How many one-time keys of each algorithm a device has.
    pub(crate) async fn counts(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<BTreeMap<OneTimeKeyAlgorithm, u32>, StorageError> {
        let rows = sqlx::query(
            "SELECT algorithm, COUNT(*) FROM one_time_keys
             WHERE user_id = $1 AND device_id = $2 AND claimed = 0 GROUP BY algorithm",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                let count: i64 = row.try_get(1)?;
                Ok((
                    row.try_get::<String, _>(0)?.into(),
                    u32::try_from(count).unwrap_or(u32::MAX),
                ))
            })
            .collect()
    }

    /// The algorithms for which a device has a fallback key that nobody has used.
    pub(crate) async fn unused_fallback_keys(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Vec<OneTimeKeyAlgorithm>, StorageError> {
        let rows = sqlx::query(
            "SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2
             AND used = 0 ORDER BY algorithm",
        )
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| Ok(row.try_get::<String, _>(0)?.into()))
            .collect()
    }

    /// Forgets all keys of a device.
    pub(crate) async fn delete_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<(), StorageError> {
        for statement in [
            "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2",
            "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2",
        ] {
            sqlx::query(statement)
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }
}
