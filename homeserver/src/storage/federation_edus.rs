//! `federation_edus`: what waits to be sent to other servers, beside events
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#edus)).

use ruma::{OwnedServerName, ServerName};
use sqlx::{AnyConnection, Row};

use super::{
    Families, StorageError,
    log::{Change, StreamPosition},
    writer::Tx,
};

/// The table `federation_edus`.
#[derive(Debug)]
pub(crate) struct FederationEdus<'t>(pub(super) &'t mut AnyConnection);

/// A unit that waits.
#[derive(Clone, Debug)]
pub(crate) struct WaitingEdu {
    /// Its place among those for the same destination.
    pub(crate) position: StreamPosition,
    /// Its `edu_type`.
    pub(crate) kind: String,
    /// Its `content`, as JSON.
    pub(crate) content: String,
}

impl FederationEdus<'_> {
    /// The oldest units that wait for a destination.
    pub(crate) async fn waiting(
        &mut self,
        destination: &ServerName,
        limit: i64,
    ) -> Result<Vec<WaitingEdu>, StorageError> {
        let rows = sqlx::query(
            "SELECT position, kind, content FROM federation_edus WHERE destination = $1
             ORDER BY position LIMIT $2",
        )
        .bind(destination.as_str())
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(WaitingEdu {
                    position: StreamPosition(row.try_get(0)?),
                    kind: row.try_get(1)?,
                    content: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// The destinations for which something waits.
    pub(crate) async fn destinations(&mut self) -> Result<Vec<OwnedServerName>, StorageError> {
        let rows = sqlx::query("SELECT DISTINCT destination FROM federation_edus")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| {
                let name: String = row.try_get(0)?;
                ServerName::parse(&name).map_err(|_| {
                    StorageError::inconsistent("federation_edus", "destination", &name)
                })
            })
            .collect()
    }

    /// Forgets what the destination has confirmed: everything up to a position.
    pub(crate) async fn delete_up_to(
        &mut self,
        destination: &ServerName,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM federation_edus WHERE destination = $1 AND position <= $2")
            .bind(destination.as_str())
            .bind(position.0)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    async fn insert(
        &mut self,
        destination: &ServerName,
        position: StreamPosition,
        kind: &str,
        content: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO federation_edus (destination, position, kind, content)
             VALUES ($1, $2, $3, $4)",
        )
        .bind(destination.as_str())
        .bind(position.0)
        .bind(kind)
        .bind(content)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}

impl Tx {
    /// Leaves a unit for another server: it is sent until the server confirms it.
    pub(crate) async fn push_edu(
        &mut self,
        destination: &ServerName,
        kind: &str,
        content: &str,
    ) -> Result<(), StorageError> {
        let position = self.log(Change::FederationEdu {
            destination: destination.to_owned(),
        });
        self.federation_edus()
            .insert(destination, position, kind, content)
            .await
    }
}
