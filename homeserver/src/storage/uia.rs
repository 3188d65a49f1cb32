//! `uia_sessions`: who is in the middle of proving who they are.

use ruma::MilliSecondsSinceUnixEpoch;
use sqlx::{AnyConnection, Row};

use super::{StorageError, accounts::TokenHash};

/// The table `uia_sessions`.
#[derive(Debug)]
pub(crate) struct Uia<'t>(pub(super) &'t mut AnyConnection);

/// An open session. The two objects are JSON.
#[derive(Clone)]
pub(crate) struct SessionRow {
    pub(crate) purpose: String,
    pub(crate) completed: String,
    pub(crate) remembered: String,
    pub(crate) opened_at: i64,
}

impl Uia<'_> {
    pub(crate) async fn by_id(
        &mut self,
        session: TokenHash,
    ) -> Result<Option<SessionRow>, StorageError> {
        let row = sqlx::query(
            "SELECT purpose, completed, remembered, opened_at FROM uia_sessions
             WHERE session_hash = $1",
        )
        .bind(session.0.to_vec())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| {
            Ok(SessionRow {
                purpose: row.try_get(0)?,
                completed: row.try_get(1)?,
                remembered: row.try_get(2)?,
                opened_at: row.try_get(3)?,
            })
        })
        .transpose()
    }

    /// Opens a session, or changes what was done in it.
    pub(crate) async fn set(
        &mut self,
        session: TokenHash,
        row: &SessionRow,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO uia_sessions (session_hash, purpose, completed, remembered, opened_at)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (session_hash)
             DO UPDATE SET completed = excluded.completed, remembered = excluded.remembered",
        )
        .bind(session.0.to_vec())
        .bind(&row.purpose)
        .bind(&row.completed)
        .bind(&row.remembered)
        .bind(row.opened_at)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Ends a session; whether it was open.
    pub(crate) async fn delete(&mut self, session: TokenHash) -> Result<bool, StorageError> {
        let done = sqlx::query("DELETE FROM uia_sessions WHERE session_hash = $1")
            .bind(session.0.to_vec())
            .execute(&mut *self.0)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Ends the sessions that were opened before.
    pub(crate) async fn delete_before(
        &mut self,
        opened_at: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM uia_sessions WHERE opened_at < $1")
            .bind(i64::from(opened_at.0))
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}
