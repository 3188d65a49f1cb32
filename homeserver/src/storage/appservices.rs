//! `appservices`: how far application services have got.

use sqlx::{AnyConnection, Row};

use super::{StorageError, log::StreamPosition};

/// The table `appservices`.
#[derive(Debug)]
pub(crate) struct Appservices<'t>(pub(super) &'t mut AnyConnection);

/// How far a service has got.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    /// Everything up to here was put into a transaction, or need not be.
    pub(crate) position: StreamPosition,
    /// The last transaction.
    pub(crate) txn_id: i64,
    /// What is in it, as long as it is not confirmed.
    pub(crate) body: Option<String>,
}

impl Appservices<'_> {
    /// How far a service has got; `None` for a new one.
    pub(crate) async fn cursor(&mut self, id: &str) -> Result<Option<Cursor>, StorageError> {
        let row = sqlx::query("SELECT position, txn_id, body FROM appservices WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *self.0)
            .await?;
        row.map(|row| {
            Ok(Cursor {
                position: StreamPosition(row.try_get(0)?),
                txn_id: row.try_get(1)?,
                body: row.try_get(2)?,
            })
        })
        .transpose()
    }

    /// Moves a service forward.
    pub(crate) async fn set(&mut self, id: &str, cursor: &Cursor) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO appservices (id, position, txn_id, body) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE SET position = excluded.position,
             txn_id = excluded.txn_id, body = excluded.body",
        )
        .bind(id)
        .bind(cursor.position.0)
        .bind(cursor.txn_id)
        .bind(cursor.body.as_deref())
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
