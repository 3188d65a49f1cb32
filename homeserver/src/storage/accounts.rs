//! `users`, `profiles`: who may speak, and what they say of themselves.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use serde::Serialize;
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, dialect};

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
    pub(crate) standing: Standing,
}

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) kind: Kind,
    pub(crate) locked: bool,
    pub(crate) suspended: bool,
}

/// What an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Guest,
    User,
    Administrator,
    /// Of an application service: nobody signed up for it.
    Service,
}

impl Kind {
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Guest,
            2 => Self::Administrator,
            3 => Self::Service,
            _ => Self::User,
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::Guest => 0,
            Self::User => 1,
            Self::Administrator => 2,
            Self::Service => 3,
        }
    }
}

/// An account, as administrators see it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListedAccount {
    pub(crate) user_id: OwnedUserId,
    pub(crate) kind: Kind,
    pub(crate) created_at: i64,
    pub(crate) deactivated: bool,
    pub(crate) locked: bool,
    pub(crate) suspended: bool,
}

/// The columns of [`ListedAccount`].
const LISTED: &str = "user_id, kind, created_at, deactivated, locked, suspended";

/// What an administrator changes of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    Locked,
    Suspended,
}

impl Accounts<'_> {
    /// Makes an account; whether the name was free.
    pub(crate) async fn insert(
        &mut self,
        user_id: &UserId,
        password_hash: Option<&str>,
        kind: Kind,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO users (user_id, password_hash, kind, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (user_id) DO NOTHING",
        )
        .bind(user_id.as_str())
        .bind(password_hash)
        .bind(kind.number())
        .bind(i64::from(now.0))
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    pub(crate) async fn by_id(
        &mut self,
        user_id: &UserId,
    ) -> Result<Option<Account>, StorageError> {
        let row = sqlx::query(
            "SELECT password_hash, deactivated, kind, locked, suspended FROM users \
             WHERE user_id = $1",
        )
        .bind(user_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| {
            Ok(Account {
                password_hash: row.try_get(0)?,
                deactivated: row.try_get::<i64, _>(1)? != 0,
                standing: Standing {
                    kind: Kind::from_number(row.try_get(2)?),
                    locked: row.try_get::<i64, _>(3)? != 0,
                    suspended: row.try_get::<i64, _>(4)? != 0,
                },
            })
        })
        .transpose()
    }

    /// Sets the password; `None` for none.
    pub(crate) async fn set_password(
        &mut self,
        user_id: &UserId,
        password_hash: Option<&str>,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE users SET password_hash = $1 WHERE user_id = $2")
            .bind(password_hash)
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Makes a user of a guest, or an administrator of a user.
    pub(crate) async fn set_kind(
        &mut self,
        user_id: &UserId,
        kind: Kind,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE users SET kind = $1 WHERE user_id = $2")
            .bind(kind.number())
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Locks or suspends an account, or lifts that; whether there is such an account.
    pub(crate) async fn set_flag(
        &mut self,
        user_id: &UserId,
        flag: Flag,
        to: bool,
    ) -> Result<bool, StorageError> {
        let text = match flag {
            Flag::Locked => "UPDATE users SET locked = $1 WHERE user_id = $2",
            Flag::Suspended => "UPDATE users SET suspended = $1 WHERE user_id = $2",
        };
        let done = sqlx::query(text)
            .bind(i64::from(to))
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Ends an account for ever: nobody can log in, and nobody can have the name again.
    pub(crate) async fn deactivate(
        &mut self,
        user_id: &UserId,
        erase: bool,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "UPDATE users SET deactivated = 1, password_hash = NULL, \
             erased = CASE WHEN $1 = 1 THEN 1 ELSE erased END WHERE user_id = $2",
        )
        .bind(i64::from(erase))
        .bind(user_id.as_str())
        .execute(&mut *self.0)
        .await?;
        for text in [
            "DELETE FROM profiles WHERE user_id = $1",
            "DELETE FROM account_data WHERE user_id = $1",
            "DELETE FROM filters WHERE user_id = $1",
        ] {
            sqlx::query(text)
                .bind(user_id.as_str())
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// The users who asked for their messages to be hidden from those who come later.
    pub(crate) async fn erased(&mut self) -> Result<Vec<OwnedUserId>, StorageError> {
        let rows = sqlx::query("SELECT user_id FROM users WHERE erased = 1")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(user).collect()
    }

    /// The accounts of guests.
    pub(crate) async fn guests(&mut self) -> Result<Vec<OwnedUserId>, StorageError> {
        let rows = sqlx::query("SELECT user_id FROM users WHERE kind = 0 AND deactivated = 0")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(user).collect()
    }

    /// The users whose accounts were ended.
    pub(crate) async fn deactivated(&mut self) -> Result<Vec<OwnedUserId>, StorageError> {
        let rows = sqlx::query("SELECT user_id FROM users WHERE deactivated = 1")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter().map(user).collect()
    }

    /// Whether there is no account yet.
    pub(crate) async fn none(&mut self) -> Result<bool, StorageError> {
        let one = sqlx::query("SELECT 1 FROM users WHERE kind <> 3 LIMIT 1")
            .fetch_optional(&mut *self.0)
            .await?;
        Ok(one.is_none())
    }

    /// Accounts whose ids contain a text, by name.
    pub(crate) async fn list(
        &mut self,
        name: &str,
        most: u32,
    ) -> Result<Vec<ListedAccount>, StorageError> {
        let name = name.to_lowercase().replace('!', "!!");
        let pattern = format!("%{}%", name.replace('%', "!%").replace('_', "!_"));
        let sql = format!(
            "SELECT {LISTED} FROM users WHERE user_id LIKE $1 ESCAPE '!' ORDER BY user_id LIMIT $2"
        );
        let query = dialect::query(sql).bind(pattern).bind(i64::from(most));
        let rows = query.fetch_all(&mut *self.0).await?;
        rows.iter().map(listed).collect()
    }

    /// An account, as administrators see it.
    pub(crate) async fn listed(
        &mut self,
        user_id: &UserId,
    ) -> Result<Option<ListedAccount>, StorageError> {
        let sql = format!("SELECT {LISTED} FROM users WHERE user_id = $1");
        let query = dialect::query(sql).bind(user_id.as_str());
        let row = query.fetch_optional(&mut *self.0).await?;
        row.as_ref().map(listed).transpose()
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

fn user(row: &AnyRow) -> Result<OwnedUserId, StorageError> {
    let user_id: String = row.try_get(0)?;
    UserId::parse(&user_id).map_err(|_| StorageError::inconsistent("users", "user_id", &user_id))
}

fn listed(row: &AnyRow) -> Result<ListedAccount, StorageError> {
    let flag = |column| Ok::<_, StorageError>(row.try_get::<i64, _>(column)? != 0);
    Ok(ListedAccount {
        user_id: user(row)?,
        kind: Kind::from_number(row.try_get(1)?),
        created_at: row.try_get(2)?,
        deactivated: flag(3)?,
        locked: flag(4)?,
        suspended: flag(5)?,
    })
}
