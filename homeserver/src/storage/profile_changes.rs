//! `profile_changes`: whose name or picture has yet to be repeated in their rooms.

use ruma::{OwnedUserId, UserId};
use sqlx::{AnyConnection, Row};

use super::{StorageError, log::StreamPosition};

/// The table `profile_changes`.
#[derive(Debug)]
pub(crate) struct ProfileChanges<'t>(pub(super) &'t mut AnyConnection);

impl ProfileChanges<'_> {
    /// Notes that a profile changed.
    pub(crate) async fn set(
        &mut self,
        user_id: &UserId,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO profile_changes (user_id, position) VALUES ($1, $2)
             ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        )
        .bind(user_id.as_str())
        .bind(position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// The oldest changes.
    pub(crate) async fn oldest(
        &mut self,
        limit: i64,
    ) -> Result<Vec<(OwnedUserId, StreamPosition)>, StorageError> {
        let rows =
            sqlx::query("SELECT user_id, position FROM profile_changes ORDER BY position LIMIT $1")
                .bind(limit)
                .fetch_all(&mut *self.0)
                .await?;
        rows.iter()
            .map(|row| {
                let user_id: String = row.try_get(0)?;
                let parsed = UserId::parse(&user_id).map_err(|_| {
                    StorageError::inconsistent("profile_changes", "user_id", &user_id)
                })?;
                Ok((parsed, StreamPosition(row.try_get(1)?)))
            })
            .collect()
    }

    /// Forgets a change, unless there was another one since.
    pub(crate) async fn done(
        &mut self,
        user_id: &UserId,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM profile_changes WHERE user_id = $1 AND position = $2")
            .bind(user_id.as_str())
            .bind(position.0)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}
