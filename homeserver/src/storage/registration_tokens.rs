//! `registration_tokens`: with which people register.

use sqlx::{AnyConnection, Row};

use super::{StorageError, accounts::TokenHash};

/// The table `registration_tokens`.
#[derive(Debug)]
pub(crate) struct RegistrationTokens<'t>(pub(super) &'t mut AnyConnection);

/// A token, as far as it is known.
#[derive(Clone, Copy)]
pub(crate) struct RegistrationToken {
    pub(crate) hash: TokenHash,
    /// How many accounts it is still good for; `None` for any number.
    pub(crate) uses_left: Option<i64>,
    pub(crate) created_at: i64,
    /// Milliseconds since the Unix epoch; `None` for never.
    pub(crate) expires_at: Option<i64>,
}

impl RegistrationTokens<'_> {
    /// Adds a token.
    pub(crate) async fn insert(&mut self, token: RegistrationToken) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO registration_tokens (token_hash, uses_left, created_at, expires_at) \
             VALUES ($1, $2, $3, $4) \
             ON CONFLICT (token_hash) DO UPDATE SET uses_left = excluded.uses_left",
        )
        .bind(token.hash.0.to_vec())
        .bind(token.uses_left)
        .bind(token.created_at)
        .bind(token.expires_at)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Whether somebody may register with the token now.
    pub(crate) async fn is_good(
        &mut self,
        token: TokenHash,
        now: i64,
    ) -> Result<bool, StorageError> {
        let row = sqlx::query(
            "SELECT 1 FROM registration_tokens WHERE token_hash = $1 \
             AND (uses_left IS NULL OR uses_left > 0) AND (expires_at IS NULL OR expires_at > $2)",
        )
        .bind(token.0.to_vec())
        .bind(now)
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(row.is_some())
    }

    /// Takes one use of the token; whether there was one left.
    pub(crate) async fn take(&mut self, token: TokenHash, now: i64) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "UPDATE registration_tokens SET uses_left = uses_left - 1 WHERE token_hash = $1 \
             AND (uses_left IS NULL OR uses_left > 0) AND (expires_at IS NULL OR expires_at > $2)",
        )
        .bind(token.0.to_vec())
        .bind(now)
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// All of them, the oldest first.
    pub(crate) async fn all(&mut self) -> Result<Vec<RegistrationToken>, StorageError> {
        let query = sqlx::query(
            "SELECT token_hash, uses_left, created_at, expires_at FROM registration_tokens \
             ORDER BY created_at, token_hash",
        );
        let rows = query.fetch_all(&mut *self.0).await?;
        let read = |row: &sqlx::any::AnyRow| {
            let hash: Vec<u8> = row.try_get(0)?;
            let broken =
                |_| StorageError::inconsistent("registration_tokens", "token_hash", "a hash");
            Ok(RegistrationToken {
                hash: TokenHash(hash.try_into().map_err(broken)?),
                uses_left: row.try_get(1)?,
                created_at: row.try_get(2)?,
                expires_at: row.try_get(3)?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Deletes a token; whether there was one.
    pub(crate) async fn delete(&mut self, token: TokenHash) -> Result<bool, StorageError> {
        let done = sqlx::query("DELETE FROM registration_tokens WHERE token_hash = $1")
            .bind(token.0.to_vec())
            .execute(&mut *self.0)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
