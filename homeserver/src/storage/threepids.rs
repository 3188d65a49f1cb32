//! `threepids`, `threepid_sessions`, `threepid_bindings`: addresses that people have elsewhere.

use ruma::{OwnedUserId, UserId};
use sqlx::{AnyConnection, Row};

use super::{StorageError, accounts::TokenHash};

/// The tables of third-party identifiers.
#[derive(Debug)]
pub(crate) struct Threepids<'t>(pub(super) &'t mut AnyConnection);

/// An address, and of what kind it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Threepid {
    pub(crate) medium: String,
    pub(crate) address: String,
}

/// An address of a user; times are in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) threepid: Threepid,
    pub(crate) validated_at: i64,
    pub(crate) added_at: i64,
}

/// Somebody is about to show that an address is theirs.
#[derive(Clone)]
pub(crate) struct ValidationRow {
    pub(crate) client_secret: TokenHash,
    pub(crate) token: TokenHash,
    pub(crate) threepid: Threepid,
    pub(crate) send_attempt: i64,
    pub(crate) next_link: String,
    pub(crate) opened_at: i64,
    pub(crate) validated_at: Option<i64>,
}

impl Threepids<'_> {
    /// Whose address it is.
    pub(crate) async fn owner(
        &mut self,
        threepid: &Threepid,
    ) -> Result<Option<OwnedUserId>, StorageError> {
        let text = "SELECT user_id FROM threepids WHERE medium = $1 AND address = $2";
        let row = sqlx::query(text)
            .bind(&threepid.medium)
            .bind(&threepid.address)
            .fetch_optional(&mut *self.0)
            .await?;
        row.map(|row| {
            let user_id: String = row.try_get(0)?;
            UserId::parse(&user_id)
                .map_err(|_| StorageError::inconsistent("threepids", "user_id", &user_id))
        })
        .transpose()
    }

    /// The addresses of a user.
    pub(crate) async fn of_user(&mut self, user_id: &UserId) -> Result<Vec<Owned>, StorageError> {
        let rows = sqlx::query(
            "SELECT medium, address, validated_at, added_at FROM threepids \
             WHERE user_id = $1 ORDER BY added_at",
        )
        .bind(user_id.as_str())
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Owned {
                    threepid: Threepid {
                        medium: row.try_get(0)?,
                        address: row.try_get(1)?,
                    },
                    validated_at: row.try_get(2)?,
                    added_at: row.try_get(3)?,
                })
            })
            .collect()
    }

    /// Gives an address to a user; whether nobody else has it.
    pub(crate) async fn insert(
        &mut self,
        user_id: &UserId,
        owned: &Owned,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO threepids (medium, address, user_id, validated_at, added_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (medium, address) \
             DO UPDATE SET validated_at = excluded.validated_at \
             WHERE threepids.user_id = excluded.user_id",
        )
        .bind(&owned.threepid.medium)
        .bind(&owned.threepid.address)
        .bind(user_id.as_str())
        .bind(owned.validated_at)
        .bind(owned.added_at)
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes an address from a user.
    pub(crate) async fn delete(
        &mut self,
        user_id: &UserId,
        threepid: &Threepid,
    ) -> Result<(), StorageError> {
        let text = "DELETE FROM threepids WHERE user_id = $1 AND medium = $2 AND address = $3";
        sqlx::query(text)
            .bind(user_id.as_str())
            .bind(&threepid.medium)
            .bind(&threepid.address)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Takes all addresses from a user.
    pub(crate) async fn delete_of_user(&mut self, user_id: &UserId) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM threepids WHERE user_id = $1")
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Opens a validation, or changes it; those that were opened before `oldest` are forgotten.
    pub(crate) async fn set_validation(
        &mut self,
        sid: &str,
        row: &ValidationRow,
        oldest: i64,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM threepid_sessions WHERE opened_at < $1")
            .bind(oldest)
            .execute(&mut *self.0)
            .await?;
        sqlx::query(
            "INSERT INTO threepid_sessions (sid, client_secret_hash, token_hash, medium, address, \
             send_attempt, next_link, opened_at, validated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (sid) \
             DO UPDATE SET token_hash = excluded.token_hash, \
             send_attempt = excluded.send_attempt, validated_at = excluded.validated_at",
        )
        .bind(sid)
        .bind(row.client_secret.0.to_vec())
        .bind(row.token.0.to_vec())
        .bind(&row.threepid.medium)
        .bind(&row.threepid.address)
        .bind(row.send_attempt)
        .bind(&row.next_link)
        .bind(row.opened_at)
        .bind(row.validated_at)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(crate) async fn validation(
        &mut self,
        sid: &str,
    ) -> Result<Option<ValidationRow>, StorageError> {
        let row = sqlx::query(
            "SELECT client_secret_hash, token_hash, medium, address, send_attempt, next_link, \
             opened_at, validated_at FROM threepid_sessions WHERE sid = $1",
        )
        .bind(sid)
        .fetch_optional(&mut *self.0)
        .await?;
        let hash = |bytes: Vec<u8>| {
            let wrong = |_| StorageError::inconsistent("threepid_sessions", "hash", sid);
            bytes.try_into().map(TokenHash).map_err(wrong)
        };
        row.map(|row| {
            Ok(ValidationRow {
                client_secret: hash(row.try_get(0)?)?,
                token: hash(row.try_get(1)?)?,
                threepid: Threepid {
                    medium: row.try_get(2)?,
                    address: row.try_get(3)?,
                },
                send_attempt: row.try_get(4)?,
                next_link: row.try_get(5)?,
                opened_at: row.try_get(6)?,
                validated_at: row.try_get(7)?,
            })
        })
        .transpose()
    }

    /// Where identifiers of a user were bound.
    pub(crate) async fn bindings(
        &mut self,
        user_id: &UserId,
    ) -> Result<Vec<(Threepid, String)>, StorageError> {
        let rows = sqlx::query(
            "SELECT medium, address, id_server FROM threepid_bindings WHERE user_id = $1",
        )
        .bind(user_id.as_str())
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                let threepid = Threepid {
                    medium: row.try_get(0)?,
                    address: row.try_get(1)?,
                };
                Ok((threepid, row.try_get(2)?))
            })
            .collect()
    }

    /// Notes a binding.
    pub(crate) async fn insert_binding(
        &mut self,
        user_id: &UserId,
        threepid: &Threepid,
        id_server: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO threepid_bindings (user_id, medium, address, id_server) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, medium, address, id_server) DO NOTHING",
        )
        .bind(user_id.as_str())
        .bind(&threepid.medium)
        .bind(&threepid.address)
        .bind(id_server)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Forgets a binding.
    pub(crate) async fn delete_binding(
        &mut self,
        user_id: &UserId,
        threepid: &Threepid,
        id_server: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "DELETE FROM threepid_bindings \
             WHERE user_id = $1 AND medium = $2 AND address = $3 AND id_server = $4",
        )
        .bind(user_id.as_str())
        .bind(&threepid.medium)
        .bind(&threepid.address)
        .bind(id_server)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
