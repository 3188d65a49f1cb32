//! `external_ids`: how other systems call local users.

use ruma::{OwnedUserId, UserId};
use sqlx::{AnyConnection, Row};

use super::StorageError;

/// The table `external_ids`.
#[derive(Debug)]
pub(crate) struct ExternalIds<'t>(pub(super) &'t mut AnyConnection);

impl ExternalIds<'_> {
    /// The local user whom another system calls so.
    pub(crate) async fn user(
        &mut self,
        provider: &str,
        external_id: &str,
    ) -> Result<Option<OwnedUserId>, StorageError> {
        let row = sqlx::query(
            "SELECT user_id FROM external_ids WHERE provider = $1 AND external_id = $2",
        )
        .bind(provider)
        .bind(external_id)
        .fetch_optional(&mut *self.0)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let user_id: String = row.try_get(0)?;
        let parsed = UserId::parse(&user_id);
        let parsed =
            parsed.map_err(|_| StorageError::inconsistent("external_ids", "user_id", &user_id));
        parsed.map(Some)
    }

    /// Remembers how another system calls a local user.
    pub(crate) async fn insert(
        &mut self,
        provider: &str,
        external_id: &str,
        user_id: &UserId,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO external_ids (provider, external_id, user_id) VALUES ($1, $2, $3) \
             ON CONFLICT (provider, external_id) DO NOTHING",
        )
        .bind(provider)
        .bind(external_id)
        .bind(user_id.as_str())
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
