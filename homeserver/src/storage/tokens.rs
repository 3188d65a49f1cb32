//! `access_tokens`, `refresh_tokens`, `short_tokens`: secrets that speak for somebody, all as hashes.

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{
    StorageError,
    accounts::{Kind, Standing, TokenHash},
};

/// The tables of tokens.
#[derive(Debug)]
pub(crate) struct Tokens<'t>(pub(super) &'t mut AnyConnection);

/// How often a session was refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(pub(crate) i64);

/// What is known of an access token.
#[derive(Clone, Debug)]
pub(crate) struct AccessRow {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    pub(crate) expires_at: Option<i64>,
    pub(crate) generation: Generation,
    /// Whether it was used before, or there is nothing that its first use would end.
    pub(crate) settled: bool,
    pub(crate) standing: Standing,
}

/// An access token that is new.
#[derive(Clone, Copy)]
pub(crate) struct NewAccess {
    pub(crate) token: TokenHash,
    pub(crate) expires_at: Option<i64>,
    pub(crate) generation: Generation,
}

/// What a short-lived token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Opening a session.
    Login,
    /// Telling another service who somebody is.
    OpenId,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::OpenId => "openid",
        }
    }
}

impl Tokens<'_> {
    /// Adds an access token. One that follows another waits for its first use.
    pub(crate) async fn insert_access(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        new: NewAccess,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO access_tokens \
             (token_hash, user_id, device_id, expires_at, generation, settled) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(new.token.0.to_vec())
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(new.expires_at)
        .bind(new.generation.0)
        .bind(i64::from(new.generation.0 == 0))
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Whose token it is.
    pub(crate) async fn access(
        &mut self,
        token: TokenHash,
    ) -> Result<Option<AccessRow>, StorageError> {
        let row = sqlx::query(
            "SELECT t.user_id, t.device_id, t.expires_at, t.generation, t.settled, \
             u.kind, u.locked, u.suspended \
             FROM access_tokens t JOIN users u ON u.user_id = t.user_id WHERE t.token_hash = $1",
        )
        .bind(token.0.to_vec())
        .fetch_optional(&mut *self.0)
        .await?;
        row.as_ref().map(read).transpose()
    }

    /// Adds a refresh token.
    pub(crate) async fn insert_refresh(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        token: TokenHash,
        generation: Generation,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO refresh_tokens (token_hash, user_id, device_id, generation) \
             VALUES ($1, $2, $3, $4)",
        )
        .bind(token.0.to_vec())
        .bind(user_id.as_str())
        .bind(device_id.as_str())
        .bind(generation.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// The session that a refresh token belongs to.
    pub(crate) async fn refresh(
        &mut self,
        token: TokenHash,
    ) -> Result<Option<(OwnedUserId, OwnedDeviceId, Generation)>, StorageError> {
        let row = sqlx::query(
            "SELECT user_id, device_id, generation FROM refresh_tokens WHERE token_hash = $1",
        )
        .bind(token.0.to_vec())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| {
            let device_id: String = row.try_get(1)?;
            Ok((
                user(&row, "refresh_tokens")?,
                device_id.into(),
                Generation(row.try_get(2)?),
            ))
        })
        .transpose()
    }

    /// Ends what a session had before this generation. The access tokens of the one right before it
    /// only expire, so that a request that crossed the refresh does not log the client out.
    pub(crate) async fn settle(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        generation: Generation,
    ) -> Result<(), StorageError> {
        for text in [
            "DELETE FROM refresh_tokens \
             WHERE user_id = $1 AND device_id = $2 AND generation < $3",
            "DELETE FROM access_tokens \
             WHERE user_id = $1 AND device_id = $2 AND generation < $3 - 1",
            "UPDATE access_tokens SET expires_at = 0 \
             WHERE user_id = $1 AND device_id = $2 AND generation < $3",
            "UPDATE access_tokens SET settled = 1 \
             WHERE user_id = $1 AND device_id = $2 AND generation = $3",
        ] {
            sqlx::query(text)
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .bind(generation.0)
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Makes every token of a device worthless.
    pub(crate) async fn delete_of_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<(), StorageError> {
        for text in [
            "DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2",
            "DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2",
        ] {
            sqlx::query(text)
                .bind(user_id.as_str())
                .bind(device_id.as_str())
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Adds a token that is good for one thing until `expires_at`, and forgets those that ended before `now`.
    pub(crate) async fn insert_short(
        &mut self,
        token: TokenHash,
        purpose: Purpose,
        user_id: &UserId,
        (now, expires_at): (i64, i64),
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM short_tokens WHERE expires_at < $1")
            .bind(now)
            .execute(&mut *self.0)
            .await?;
        sqlx::query(
            "INSERT INTO short_tokens (token_hash, purpose, user_id, expires_at) \
             VALUES ($1, $2, $3, $4)",
        )
        .bind(token.0.to_vec())
        .bind(purpose.as_str())
        .bind(user_id.as_str())
        .bind(expires_at)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Whom a short-lived token speaks for.
    pub(crate) async fn short(
        &mut self,
        token: TokenHash,
        purpose: Purpose,
        now: i64,
    ) -> Result<Option<OwnedUserId>, StorageError> {
        let row = sqlx::query(
            "SELECT user_id FROM short_tokens \
             WHERE token_hash = $1 AND purpose = $2 AND expires_at >= $3",
        )
        .bind(token.0.to_vec())
        .bind(purpose.as_str())
        .bind(now)
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| user(&row, "short_tokens")).transpose()
    }

    /// Takes a short-lived token out of use.
    pub(crate) async fn delete_short(&mut self, token: TokenHash) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM short_tokens WHERE token_hash = $1")
            .bind(token.0.to_vec())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Takes all short-lived tokens of a user out of use.
    pub(crate) async fn delete_short_of_user(
        &mut self,
        user_id: &UserId,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM short_tokens WHERE user_id = $1")
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}

fn user(row: &AnyRow, table: &'static str) -> Result<OwnedUserId, StorageError> {
    let user_id: String = row.try_get("user_id")?;
    UserId::parse(&user_id).map_err(|_| StorageError::inconsistent(table, "user_id", &user_id))
}

fn read(row: &AnyRow) -> Result<AccessRow, StorageError> {
    let device_id: String = row.try_get(1)?;
    Ok(AccessRow {
        user_id: user(row, "access_tokens")?,
        device_id: device_id.into(),
        expires_at: row.try_get(2)?,
        generation: Generation(row.try_get(3)?),
        settled: row.try_get::<i64, _>(4)? != 0,
        standing: Standing {
            kind: Kind::from_number(row.try_get(5)?),
            locked: row.try_get::<i64, _>(6)? != 0,
            suspended: row.try_get::<i64, _>(7)? != 0,
        },
    })
}
