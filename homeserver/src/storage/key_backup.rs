//! `key_backup_versions`, `key_backup_sessions`: room keys that clients encrypted for themselves
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups)).

use ruma::{OwnedUserId, RoomId, UserId};
use sqlx::{Any, AnyConnection, Row, any::AnyRow, query::Query};

use super::{StorageError, dialect};

/// The tables of key backups.
#[derive(Debug)]
pub(crate) struct KeyBackup<'t>(pub(super) &'t mut AnyConnection);

/// The number of a version of a user's backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackupVersion(pub(crate) i64);

/// A version of a user's backup.
#[derive(Clone, Debug)]
pub(crate) struct VersionRow {
    pub(crate) version: BackupVersion,
    pub(crate) algorithm: String,
    /// JSON.
    pub(crate) auth_data: String,
    pub(crate) etag: i64,
    pub(crate) deleted: bool,
}

/// A room key in a backup.
#[derive(Clone)]
pub(crate) struct SessionRow {
    pub(crate) room_id: String,
    pub(crate) session_id: String,
    pub(crate) first_message_index: i64,
    pub(crate) forwarded_count: i64,
    pub(crate) is_verified: bool,
    /// JSON.
    pub(crate) session_data: String,
}

/// Which room keys of a version: all, those of a room, or one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Which<'a> {
    pub(crate) room_id: Option<&'a RoomId>,
    pub(crate) session_id: Option<&'a str>,
}

const COLUMNS: usize = 8;
/// An existing key gives way to one that is better: verified, then from an earlier message, then less
/// often forwarded.
const BETTER: &str = "(excluded.is_verified > key_backup_sessions.is_verified \
    OR (excluded.is_verified = key_backup_sessions.is_verified \
    AND (excluded.first_message_index < key_backup_sessions.first_message_index \
    OR (excluded.first_message_index = key_backup_sessions.first_message_index \
    AND excluded.forwarded_count < key_backup_sessions.forwarded_count))))";

impl KeyBackup<'_> {
    /// The newest version that is not deleted.
    pub(crate) async fn current(
        &mut self,
        user_id: &UserId,
    ) -> Result<Option<VersionRow>, StorageError> {
        let row = sqlx::query(
            "SELECT version, algorithm, auth_data, etag, deleted FROM key_backup_versions
             WHERE user_id = $1 AND deleted = 0 ORDER BY version DESC LIMIT 1",
        )
        .bind(user_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        row.as_ref().map(version).transpose()
    }

    /// A version, deleted or not.
    pub(crate) async fn version(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
    ) -> Result<Option<VersionRow>, StorageError> {
        let row = sqlx::query(
            "SELECT version, algorithm, auth_data, etag, deleted FROM key_backup_versions
             WHERE user_id = $1 AND version = $2",
        )
        .bind(user_id.as_str())
        .bind(number.0)
        .fetch_optional(&mut *self.0)
        .await?;
        row.as_ref().map(version).transpose()
    }

    /// Begins a new version.
    pub(crate) async fn create(
        &mut self,
        user_id: &UserId,
        algorithm: &str,
        auth_data: &str,
    ) -> Result<BackupVersion, StorageError> {
        let number = sqlx::query_scalar(
            "INSERT INTO key_backup_versions (user_id, version, algorithm, auth_data)
             SELECT $1, COALESCE(MAX(version), 0) + 1, $2, $3 FROM key_backup_versions
             WHERE user_id = $1 RETURNING version",
        )
        .bind(user_id.as_str())
        .bind(algorithm)
        .bind(auth_data)
        .fetch_one(&mut *self.0)
        .await?;
        Ok(BackupVersion(number))
    }

    pub(crate) async fn set_auth_data(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
        auth_data: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "UPDATE key_backup_versions SET auth_data = $1 WHERE user_id = $2 AND version = $3",
        )
        .bind(auth_data)
        .bind(user_id.as_str())
        .bind(number.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Deletes a version with all its keys.
    pub(crate) async fn delete_version(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
    ) -> Result<(), StorageError> {
        for sql in [
            "DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2",
            "UPDATE key_backup_versions SET deleted = 1, auth_data = '{}'
             WHERE user_id = $1 AND version = $2",
        ] {
            sqlx::query(sql)
                .bind(user_id.as_str())
                .bind(number.0)
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Deletes everything that a user has backed up.
    pub(crate) async fn delete_of_user(&mut self, user_id: &UserId) -> Result<(), StorageError> {
        for sql in [
            "DELETE FROM key_backup_sessions WHERE user_id = $1",
            "DELETE FROM key_backup_versions WHERE user_id = $1",
        ] {
            sqlx::query(sql)
                .bind(user_id.as_str())
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Says that the keys of a version changed.
    pub(crate) async fn raise_etag(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
    ) -> Result<i64, StorageError> {
        let etag = sqlx::query_scalar(
            "UPDATE key_backup_versions SET etag = etag + 1 WHERE user_id = $1 AND version = $2
             RETURNING etag",
        )
        .bind(user_id.as_str())
        .bind(number.0)
        .fetch_one(&mut *self.0)
        .await?;
        Ok(etag)
    }

    /// How many keys a version has.
    pub(crate) async fn count(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
    ) -> Result<i64, StorageError> {
        let count = sqlx::query_scalar(
            "SELECT COUNT(*) FROM key_backup_sessions WHERE user_id = $1 AND version = $2",
        )
        .bind(user_id.as_str())
        .bind(number.0)
        .fetch_one(&mut *self.0)
        .await?;
        Ok(count)
    }

    /// Adds keys, and replaces those that are worse; how many rows changed. No two of `sessions` may
    /// have the same name.
    pub(crate) async fn put(
        &mut self,
        user_id: &OwnedUserId,
        number: BackupVersion,
        sessions: &[SessionRow],
    ) -> Result<u64, StorageError> {
        let mut changed = 0;
        for piece in dialect::pieces(sessions) {
            let mut query = dialect::query(format!(
                "INSERT INTO key_backup_sessions (user_id, version, room_id, session_id, \
                 first_message_index, forwarded_count, is_verified, session_data) VALUES {} \
                 ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET \
                 first_message_index = excluded.first_message_index, \
                 forwarded_count = excluded.forwarded_count, \
                 is_verified = excluded.is_verified, session_data = excluded.session_data \
                 WHERE {BETTER}",
                dialect::rows(piece.len(), COLUMNS)
            ));
            for session in piece {
                query = query
                    .bind(user_id.as_str())
                    .bind(number.0)
                    .bind(&session.room_id)
                    .bind(&session.session_id)
                    .bind(session.first_message_index)
                    .bind(session.forwarded_count)
                    .bind(i64::from(session.is_verified))
                    .bind(&session.session_data);
            }
            changed += query.execute(&mut *self.0).await?.rows_affected();
        }
        Ok(changed)
    }

    /// Some keys of a version.
    pub(crate) async fn sessions(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
        which: Which<'_>,
    ) -> Result<Vec<SessionRow>, StorageError> {
        let sql = format!(
            "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, \
             session_data FROM key_backup_sessions WHERE {}",
            which.condition()
        );
        let query = which.bind(dialect::query(sql), user_id, number);
        let rows = query.fetch_all(&mut *self.0).await?;
        rows.iter().map(session).collect()
    }

    /// Deletes some keys of a version; how many.
    pub(crate) async fn delete(
        &mut self,
        user_id: &UserId,
        number: BackupVersion,
        which: Which<'_>,
    ) -> Result<u64, StorageError> {
        let sql = format!(
            "DELETE FROM key_backup_sessions WHERE {}",
            which.condition()
        );
        let query = which.bind(dialect::query(sql), user_id, number);
        Ok(query.execute(&mut *self.0).await?.rows_affected())
    }
}

impl<'a> Which<'a> {
    fn condition(self) -> &'static str {
        match (self.room_id, self.session_id) {
            (None, _) => "user_id = $1 AND version = $2",
            (Some(_), None) => "user_id = $1 AND version = $2 AND room_id = $3",
            (Some(_), Some(_)) => {
                "user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4"
            }
        }
    }

    fn bind(
        self,
        mut query: Query<'a, Any, sqlx::any::AnyArguments>,
        user_id: &'a UserId,
        number: BackupVersion,
    ) -> Query<'a, Any, sqlx::any::AnyArguments> {
        query = query.bind(user_id.as_str()).bind(number.0);
        if let Some(room_id) = self.room_id {
            query = query.bind(room_id.as_str());
            if let Some(session_id) = self.session_id {
                query = query.bind(session_id);
            }
        }
        query
    }
}

fn version(row: &AnyRow) -> Result<VersionRow, StorageError> {
    Ok(VersionRow {
        version: BackupVersion(row.try_get(0)?),
        algorithm: row.try_get(1)?,
        auth_data: row.try_get(2)?,
        etag: row.try_get(3)?,
        deleted: row.try_get::<i64, _>(4)? != 0,
    })
}

fn session(row: &AnyRow) -> Result<SessionRow, StorageError> {
    Ok(SessionRow {
        room_id: row.try_get(0)?,
        session_id: row.try_get(1)?,
        first_message_index: row.try_get(2)?,
        forwarded_count: row.try_get(3)?,
        is_verified: row.try_get::<i64, _>(4)? != 0,
        session_data: row.try_get(5)?,
    })
}
