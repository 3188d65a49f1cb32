//! `filters`: filters that clients stored.

use ruma::UserId;
use sqlx::AnyConnection;

use super::StorageError;

/// The table `filters`.
#[derive(Debug)]
pub(crate) struct Filters<'t>(pub(super) &'t mut AnyConnection);

impl Filters<'_> {
    /// Keeps a filter, given as JSON; once, however often it is stored.
    pub(crate) async fn insert(
        &mut self,
        user_id: &UserId,
        filter_id: &str,
        definition: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO filters (user_id, filter_id, definition) VALUES ($1, $2, $3) \
             ON CONFLICT (user_id, filter_id) DO NOTHING",
        )
        .bind(user_id.as_str())
        .bind(filter_id)
        .bind(definition)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// A filter of a user, as JSON.
    pub(crate) async fn definition(
        &mut self,
        user_id: &UserId,
        filter_id: &str,
    ) -> Result<Option<String>, StorageError> {
        let definition = sqlx::query_scalar(
            "SELECT definition FROM filters WHERE user_id = $1 AND filter_id = $2",
        )
        .bind(user_id.as_str())
        .bind(filter_id)
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(definition)
    }
}
