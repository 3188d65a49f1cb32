//! Backups of room keys
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups)).
//!
//! Clients encrypt the keys; the server keeps them by room and session, and lets a better copy of a key
//! replace a worse one. What a backup is encrypted with, and the encrypted keys, are opaque: whether they are
//! what the algorithm wants is for the clients to check, who must not trust the server with it anyway.

use futures_util::FutureExt;
use ruma::{OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::storage::{
    Families, Storage, StorageError,
    key_backup::{BackupVersion, SessionRow, VersionRow, Which},
};

/// The largest key, in bytes: as large as an event may be.
const MAX_SESSION: usize = 65_536;
/// The longest session id, in bytes.
const MAX_SESSION_ID: usize = 255;
/// The largest authentication data, in bytes.
const MAX_AUTH_DATA: usize = 65_536;
/// The most keys in one version.
const MAX_SESSIONS: i64 = 200_000;

/// Keeps the backups.
#[derive(Clone, Debug)]
pub(crate) struct KeyBackup {
    storage: Storage,
}

/// What a backup is encrypted with, as clients describe it.
#[derive(Deserialize)]
pub(crate) struct Description {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

/// A version of a backup, and how full it is.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub(crate) row: VersionRow,
    pub(crate) filling: Filling,
}

/// How many keys there are, and a number that changes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filling {
    pub(crate) etag: i64,
    pub(crate) count: i64,
}

/// A key as clients send and receive it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Key {
    first_message_index: u64,
    forwarded_count: u64,
    is_verified: bool,
    session_data: Box<RawValue>,
}

/// Why a backup was not read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyBackupError {
    /// There is no such version.
    #[error("there is no such version")]
    UnknownVersion,
    /// The version is not the newest any more.
    #[error("the version is not the current one")]
    WrongVersion {
        /// The newest.
        current: BackupVersion,
    },
    /// The backup does not have the key.
    #[error("there is no such key")]
    UnknownKey,
    /// The object does not have the form it must have.
    #[error("the object does not have the form it must have")]
    Malformed,
    /// The algorithm of a version cannot change.
    #[error("the algorithm does not match")]
    AlgorithmDiffers,
    /// The version in the body is not the one in the path.
    #[error("the version in the body does not match")]
    VersionDiffers,
    /// Too large or too many.
    #[error("the keys are too large or too many")]
    TooLarge,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl KeyBackup {
    pub(crate) fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// Begins a new version, which is the current one from now on.
    pub(crate) async fn create(
        &self,
        user_id: OwnedUserId,
        description: &str,
    ) -> Result<BackupVersion, KeyBackupError> {
        let Description {
            algorithm,
            auth_data,
            ..
        } = describe(description)?;
        let write = self.storage.write(move |tx| {
            async move {
                let mut backup = tx.key_backup();
                backup.create(&user_id, &algorithm, auth_data.get()).await
            }
            .boxed()
        });
        Ok(write.await?)
    }

    /// A version, or the current one.
    pub(crate) async fn info(
        &self,
        user_id: &UserId,
        version: Option<&str>,
    ) -> Result<Info, KeyBackupError> {
        let mut reader = self.storage.read().await?;
        let mut backup = reader.key_backup();
        let row = match version {
            Some(version) => backup.version(user_id, number(version)?).await?,
            None => backup.current(user_id).await?,
        };
        let row = existing(row)?;
        let count = backup.count(user_id, row.version).await?;
        let filling = Filling {
            etag: row.etag,
            count,
        };
        Ok(Info { row, filling })
    }

    /// Replaces the authentication data of a version.
    pub(crate) async fn update(
        &self,
        user_id: OwnedUserId,
        version: &str,
        description: &str,
    ) -> Result<(), KeyBackupError> {
        let description = describe(description)?;
        if description.version.is_some_and(|body| body != version) {
            return Err(KeyBackupError::VersionDiffers);
        }
        let number = number(version)?;
        let write = self.storage.write(move |tx| {
            async move {
                let mut backup = tx.key_backup();
                let row = existing(backup.version(&user_id, number).await?)?;
                if row.algorithm != description.algorithm {
                    return Err(KeyBackupError::AlgorithmDiffers);
                }
                let auth_data = description.auth_data.get();
                backup.set_auth_data(&user_id, number, auth_data).await?;
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Deletes a version with its keys. One that was deleted before may be deleted again.
    pub(crate) async fn delete_version(
        &self,
        user_id: OwnedUserId,
        version: &str,
    ) -> Result<(), KeyBackupError> {
        let number = number(version)?;
        let write = self.storage.write(move |tx| {
            async move {
                let mut backup = tx.key_backup();
                let row = backup.version(&user_id, number).await?;
                if !row.ok_or(KeyBackupError::UnknownVersion)?.deleted {
                    backup.delete_version(&user_id, number).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Adds keys to the current version: room, session, and the key as JSON.
    pub(crate) async fn put(
        &self,
        user_id: OwnedUserId,
        version: &str,
        keys: &[(&RoomId, &str, &str)],
    ) -> Result<Filling, KeyBackupError> {
        let number = number(version)?;
        let rows = keys
            .iter()
            .map(|(room_id, session_id, json)| row(room_id, session_id, json));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let write = self.storage.write(move |tx| {
            async move {
                let mut backup = tx.key_backup();
                let asked = existing(backup.version(&user_id, number).await?)?;
                let current = existing(backup.current(&user_id).await?)?.version;
                if current != number {
                    return Err(KeyBackupError::WrongVersion { current });
                }
                let etag = if backup.put(&user_id, number, &rows).await? > 0 {
                    backup.raise_etag(&user_id, number).await?
                } else {
                    asked.etag
                };
                let count = backup.count(&user_id, number).await?;
                if count > MAX_SESSIONS {
                    return Err(KeyBackupError::TooLarge);
                }
                Ok(Filling { etag, count })
            }
            .boxed()
        });
        write.await
    }

    /// Keys of a version; of any, so that an older backup can be read.
    pub(crate) async fn keys(
        &self,
        user_id: &UserId,
        version: &str,
        which: Which<'_>,
    ) -> Result<Vec<(String, String, Key)>, KeyBackupError> {
        let number = number(version)?;
        let mut reader = self.storage.read().await?;
        let mut backup = reader.key_backup();
        existing(backup.version(user_id, number).await?)?;
        let rows = backup.sessions(user_id, number, which).await?;
        if rows.is_empty() && which.session_id.is_some() {
            return Err(KeyBackupError::UnknownKey);
        }
        rows.into_iter().map(key).collect()
    }

    /// Deletes keys of a version.
    pub(crate) async fn delete(
        &self,
        user_id: OwnedUserId,
        version: &str,
        which: Which<'_>,
    ) -> Result<Filling, KeyBackupError> {
        let number = number(version)?;
        let room_id = which.room_id.map(ToOwned::to_owned);
        let session_id = which.session_id.map(ToOwned::to_owned);
        let write = self.storage.write(move |tx| {
            async move {
                let mut backup = tx.key_backup();
                let row = existing(backup.version(&user_id, number).await?)?;
                let which = Which {
                    room_id: room_id.as_deref(),
                    session_id: session_id.as_deref(),
                };
                let etag = if backup.delete(&user_id, number, which).await? > 0 {
                    backup.raise_etag(&user_id, number).await?
                } else {
                    row.etag
                };
                let count = backup.count(&user_id, number).await?;
                Ok::<_, KeyBackupError>(Filling { etag, count })
            }
            .boxed()
        });
        write.await
    }
}

fn number(version: &str) -> Result<BackupVersion, KeyBackupError> {
    let number = version.parse();
    Ok(BackupVersion(
        number.map_err(|_| KeyBackupError::UnknownVersion)?,
    ))
}

fn existing(row: Option<VersionRow>) -> Result<VersionRow, KeyBackupError> {
    row.filter(|row| !row.deleted)
        .ok_or(KeyBackupError::UnknownVersion)
}

fn describe(json: &str) -> Result<Description, KeyBackupError> {
    let description: Description =
        serde_json::from_str(json).map_err(|_| KeyBackupError::Malformed)?;
    let auth_data = description.auth_data.get();
    if auth_data.len() > MAX_AUTH_DATA || description.algorithm.len() > MAX_SESSION_ID {
        Err(KeyBackupError::TooLarge)
    } else {
        Ok(description)
    }
}

fn row(room_id: &RoomId, session_id: &str, json: &str) -> Result<SessionRow, KeyBackupError> {
    let key: Key = serde_json::from_str(json).map_err(|_| KeyBackupError::Malformed)?;
    if json.len() > MAX_SESSION || session_id.len() > MAX_SESSION_ID {
        return Err(KeyBackupError::TooLarge);
    }
    let number = |number: u64| i64::try_from(number).map_err(|_| KeyBackupError::Malformed);
    Ok(SessionRow {
        room_id: room_id.to_string(),
        session_id: session_id.to_owned(),
        first_message_index: number(key.first_message_index)?,
        forwarded_count: number(key.forwarded_count)?,
        is_verified: key.is_verified,
        session_data: key.session_data.get().to_owned(),
    })
}

fn key(row: SessionRow) -> Result<(String, String, Key), KeyBackupError> {
    let broken =
        |column| StorageError::inconsistent("key_backup_sessions", column, &row.session_id);
    let index = u64::try_from(row.first_message_index);
    let forwarded = u64::try_from(row.forwarded_count);
    let key = Key {
        first_message_index: index.map_err(|_| broken("first_message_index"))?,
        forwarded_count: forwarded.map_err(|_| broken("forwarded_count"))?,
        is_verified: row.is_verified,
        session_data: RawValue::from_string(row.session_data.clone())
            .map_err(|_| broken("session_data"))?,
    };
    Ok((row.room_id, row.session_id, key))
}
