//! `users`, `access_tokens`, `registration_tokens`, `profiles`: who may speak, and what they say of
//! themselves.

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use sqlx::{AnyConnection, Row};

use super::StorageError;

/// The tables of accounts.
#[derive(Debug)]
pub(crate) struct Accounts<'t>(pub(super) &'t mut AnyConnection);

/// The hash of a token: what is stored of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TokenHash(pub(crate) [u8; 32]);

/// A local account.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) password_hash: Option<String>,
    pub(crate) deactivated: bool,
}

impl Accounts<'_> {
    /// Makes an account; whether the name was free.
    pub(crate) async fn insert(
        &mut self,
        user_id: &UserId,
        password_hash: Option<&str>,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO users (user_id, password_hash, created_at) VALUES ($1, $2, $3)
             ON CONFLICT (user_id) DO NOTHING",
        )
        .bind(user_id.as_str())
        .bind(password_hash)
        .bind(i64::from(now.0))
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    pub(crate) async fn by_id(
        &mut self,
        user_id: &UserId,
    ) -> Result<Option<Account>, StorageError> {
        let row = sqlx::query("SELECT password_hash, deactivated FROM users WHERE user_id = $1")
            .bind(user_id.as_str())
            .fetch_optional(&mut *self.0)
            .await?;
        row.map(|row| {
            Ok(Account {
                password_hash: row.try_get(0)?,
                deactivated: row.try_get::<i64, _>(1)? != 0,
            })
        })
        .transpose()
    }

    /// Whether there is no account yet.
    pub(crate) async fn none(&mut self) -> Result<bool, StorageError> {
        let one = sqlx::query("SELECT 1 FROM users LIMIT 1")
            .fetch_optional(&mut *self.0)
            .await?;
        Ok(one.is_none())
    }

    pub(crate) async fn insert_access_token(
        &mut self,
        token: TokenHash,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO access_tokens (token_hash, user_id, device_id) VALUES ($1, $2, $3)",
        )
        .bind(token.0.to_vec())
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Whose token it is.
    pub(crate) async fn by_access_token(
        &mut self,
        token: TokenHash,
    ) -> Result<Option<(OwnedUserId, OwnedDeviceId)>, StorageError> {
        let row = sqlx::query("SELECT user_id, device_id FROM access_tokens WHERE token_hash = $1")
            .bind(token.0.to_vec())
            .fetch_optional(&mut *self.0)
            .await?;
        row.map(|row| {
            let user_id: String = row.try_get(0)?;
            let device_id: String = row.try_get(1)?;
            let user_id = UserId::parse(&user_id)
                .map_err(|_| StorageError::inconsistent("access_tokens", "user_id", &user_id))?;
            Ok((user_id, device_id.into()))
        })
        .transpose()
    }

    /// Adds a registration token; `uses` of `None` is any number.
    pub(crate) async fn insert_registration_token(
        &mut self,
        token: TokenHash,
        uses: Option<i64>,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO registration_tokens (token_hash, uses_left) VALUES ($1, $2)
             ON CONFLICT (token_hash) DO UPDATE SET uses_left = excluded.uses_left",
        )
        .bind(token.0.to_vec())
        .bind(uses)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Whether somebody may register with the token now.
    pub(crate) async fn registration_token_is_good(
        &mut self,
        token: TokenHash,
    ) -> Result<bool, StorageError> {
        let row = sqlx::query(
            "SELECT 1 FROM registration_tokens
             WHERE token_hash = $1 AND (uses_left IS NULL OR uses_left > 0)",
        )
        .bind(token.0.to_vec())
        .fetch_optional(&mut *self.0)
        .await?;
        Ok(row.is_some())
    }

    /// Takes one use of the token; whether there was one left.
    pub(crate) async fn use_registration_token(
        &mut self,
        token: TokenHash,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "UPDATE registration_tokens SET uses_left = uses_left - 1
             WHERE token_hash = $1 AND (uses_left IS NULL OR uses_left > 0)",
        )
        .bind(token.0.to_vec())
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The profile fields of a local user, each as JSON.
    pub(crate) async fn profile(
        &mut self,
        user_id: &UserId,
    ) -> Result<Vec<(String, String)>, StorageError> {
        let rows = sqlx::query("SELECT field, value FROM profiles WHERE user_id = $1")
            .bind(user_id.as_str())
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    /// Sets a profile field to the JSON `value`; removes it for `None`.
    pub(crate) async fn set_profile_field(
        &mut self,
        user_id: &UserId,
        field: &str,
        value: Option<&str>,
    ) -> Result<(), StorageError> {
        let query = match value {
            Some(_) => {
                "INSERT INTO profiles (user_id, field, value) VALUES ($1, $2, $3)
                 ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value"
            }
            None => "DELETE FROM profiles WHERE user_id = $1 AND field = $2",
        };
        let query = sqlx::query(query).bind(user_id.as_str()).bind(field);
        let query = match value {
            Some(value) => query.bind(value),
            None => query,
        };
        query.execute(&mut *self.0).await?;
        Ok(())
    }
}
