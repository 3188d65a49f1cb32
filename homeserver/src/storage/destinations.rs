//! `followers` and `destinations`: how far workers have read the log, and other servers have got.

use ruma::{OwnedServerName, RoomId, ServerName};
use sqlx::{AnyConnection, Row};

use super::{StorageError, log::StreamPosition, state_map::EventNid};

/// The tables `followers` and `destinations`.
#[derive(Debug)]
pub(crate) struct Destinations<'t>(pub(super) &'t mut AnyConnection);

/// A server that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    /// It has got, or need not get, everything up to here.
    pub(crate) position: StreamPosition,
    /// How often in a row it did not answer.
    pub(crate) failures: u32,
    /// When it last did not, in milliseconds since the Unix epoch.
    pub(crate) failed_at: i64,
}

impl Destinations<'_> {
    /// How far a worker has read; `None` if it never did.
    pub(crate) async fn follower(
        &mut self,
        name: &str,
    ) -> Result<Option<StreamPosition>, StorageError> {
        let found = sqlx::query_scalar("SELECT position FROM followers WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *self.0)
            .await?;
        Ok(found.map(StreamPosition))
    }

    /// Moves a worker forward.
    pub(crate) async fn follow(
        &mut self,
        name: &str,
        position: StreamPosition,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO followers (name, position) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET position = excluded.position",
        )
        .bind(name)
        .bind(position.0)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// All servers that are behind.
    pub(crate) async fn behind(&mut self) -> Result<Vec<(OwnedServerName, Behind)>, StorageError> {
        let rows =
            sqlx::query("SELECT server_name, position, failures, failed_at FROM destinations")
                .fetch_all(&mut *self.0)
                .await?;
        rows.iter()
            .map(|row| {
                let name: String = row.try_get(0)?;
                let wrong = || StorageError::inconsistent("destinations", "server_name", &name);
                let behind = Behind {
                    position: StreamPosition(row.try_get(1)?),
                    failures: u32::try_from(row.try_get::<i64, _>(2)?).unwrap_or(u32::MAX),
                    failed_at: row.try_get(3)?,
                };
                Ok((ServerName::parse(&name).map_err(|_| wrong())?, behind))
            })
            .collect()
    }

    /// Remembers that a server is behind.
    pub(crate) async fn set_behind(
        &mut self,
        server: &ServerName,
        behind: Behind,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO destinations (server_name, position, failures, failed_at)
             VALUES ($1, $2, $3, $4) ON CONFLICT (server_name) DO UPDATE SET
             position = excluded.position, failures = excluded.failures,
             failed_at = excluded.failed_at",
        )
        .bind(server.as_str())
        .bind(behind.position.0)
        .bind(i64::from(behind.failures))
        .bind(behind.failed_at)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// A server has got everything.
    pub(crate) async fn caught_up(&mut self, server: &ServerName) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM destinations WHERE server_name = $1")
            .bind(server.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// The events after a position by which users of a server came to be out of rooms.
    pub(crate) async fn departures(
        &mut self,
        server: &ServerName,
        after: StreamPosition,
    ) -> Result<Vec<EventNid>, StorageError> {
        // Server names have none of the characters that mean something to LIKE.
        let rows = sqlx::query(
            "SELECT event_nid FROM memberships WHERE position > $1 AND user_id LIKE $2
             AND membership IN ('leave', 'ban')",
        )
        .bind(after.0)
        .bind(format!("%:{server}"))
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| Ok(EventNid(row.try_get(0)?)))
            .collect()
    }

    /// Since when a server has had a member in a room without a break, as far as its present members
    /// tell.
    pub(crate) async fn in_room_since(
        &mut self,
        server: &ServerName,
        room_id: &RoomId,
    ) -> Result<Option<StreamPosition>, StorageError> {
        let since: Option<i64> = sqlx::query_scalar(
            "SELECT MIN(memberships.position) FROM memberships
             JOIN rooms ON rooms.room_nid = memberships.room_nid
             WHERE rooms.room_id = $1 AND memberships.user_id LIKE $2
             AND memberships.membership = 'join'",
        )
        .bind(room_id.as_str())
        .bind(format!("%:{server}"))
        .fetch_one(&mut *self.0)
        .await?;
        Ok(since.map(StreamPosition))
    }
}
