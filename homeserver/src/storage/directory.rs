//! `room_aliases` and `published_rooms`: under which names rooms are found, and which are listed.

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, UserId};
use sqlx::{AnyConnection, Row};

use super::{
    StorageError, dialect,
    rooms::{self, Room},
};

/// The tables `room_aliases` and `published_rooms`.
#[derive(Debug)]
pub(crate) struct Directory<'t>(pub(super) &'t mut AnyConnection);

/// What a local alias stands for.
#[derive(Clone, Debug)]
pub(crate) struct Alias {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) creator: OwnedUserId,
}

impl Directory<'_> {
    /// What a local alias stands for.
    pub(crate) async fn alias(
        &mut self,
        alias: &RoomAliasId,
    ) -> Result<Option<Alias>, StorageError> {
        let row = sqlx::query("SELECT room_id, creator FROM room_aliases WHERE alias = $1")
            .bind(alias.as_str())
            .fetch_optional(&mut *self.0)
            .await?;
        let wrong = |column| StorageError::inconsistent("room_aliases", column, alias.as_str());
        row.map(|row| {
            let (room_id, creator): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Alias {
                room_id: RoomId::parse(&room_id).map_err(|_| wrong("room_id"))?,
                creator: UserId::parse(&creator).map_err(|_| wrong("creator"))?,
            })
        })
        .transpose()
    }

    /// Gives a room an alias; whether it was free.
    pub(crate) async fn insert_alias(
        &mut self,
        alias: &RoomAliasId,
        room_id: &RoomId,
        creator: &UserId,
    ) -> Result<bool, StorageError> {
        let done = sqlx::query(
            "INSERT INTO room_aliases (alias, room_id, creator) VALUES ($1, $2, $3)
             ON CONFLICT (alias) DO NOTHING",
        )
        .bind(alias.as_str())
        .bind(room_id.as_str())
        .bind(creator.as_str())
        .execute(&mut *self.0)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes an alias from the room that has it now.
    pub(crate) async fn delete_alias(
        &mut self,
        alias: &RoomAliasId,
        room_id: &RoomId,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM room_aliases WHERE alias = $1 AND room_id = $2")
            .bind(alias.as_str())
            .bind(room_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// The local aliases of a room.
    pub(crate) async fn aliases_of(
        &mut self,
        room_id: &RoomId,
    ) -> Result<Vec<OwnedRoomAliasId>, StorageError> {
        let rows = sqlx::query("SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias")
            .bind(room_id.as_str())
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| {
                let alias: String = row.try_get(0)?;
                RoomAliasId::parse(&alias)
                    .map_err(|_| StorageError::inconsistent("room_aliases", "alias", &alias))
            })
            .collect()
    }

    /// All local aliases, and their rooms.
    pub(crate) async fn all_aliases(
        &mut self,
    ) -> Result<Vec<(OwnedRoomAliasId, OwnedRoomId)>, StorageError> {
        let rows = sqlx::query("SELECT alias, room_id FROM room_aliases")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| {
                let (alias, room_id): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                let wrong = |column| StorageError::inconsistent("room_aliases", column, &alias);
                Ok((
                    RoomAliasId::parse(&alias).map_err(|_| wrong("alias"))?,
                    RoomId::parse(&room_id).map_err(|_| wrong("room_id"))?,
                ))
            })
            .collect()
    }

    /// Lists a room.
    pub(crate) async fn publish(
        &mut self,
        room_id: &RoomId,
        network: &str,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO published_rooms (room_id, network) VALUES ($1, $2)
             ON CONFLICT (room_id, network) DO NOTHING",
        )
        .bind(room_id.as_str())
        .bind(network)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Takes a room off the list.
    pub(crate) async fn unpublish(
        &mut self,
        room_id: &RoomId,
        network: &str,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM published_rooms WHERE room_id = $1 AND network = $2")
            .bind(room_id.as_str())
            .bind(network)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Whether a room is listed.
    pub(crate) async fn is_published(
        &mut self,
        room_id: &RoomId,
        network: &str,
    ) -> Result<bool, StorageError> {
        let row = sqlx::query("SELECT 1 FROM published_rooms WHERE room_id = $1 AND network = $2")
            .bind(room_id.as_str())
            .bind(network)
            .fetch_optional(&mut *self.0)
            .await?;
        Ok(row.is_some())
    }

    /// The rooms that are listed under a network; under any for `None`.
    pub(crate) async fn published(
        &mut self,
        network: Option<&str>,
    ) -> Result<Vec<Room>, StorageError> {
        let columns = rooms::COLUMNS;
        let sql = format!(
            "SELECT {columns} FROM rooms WHERE head_state IS NOT NULL AND room_id IN \
             (SELECT room_id FROM published_rooms WHERE network = $1 OR $2 = 1)"
        );
        let query = dialect::query(sql)
            .bind(network.unwrap_or_default())
            .bind(i64::from(network.is_none()));
        let rows = query.fetch_all(&mut *self.0).await?;
        rows.iter().map(rooms::read).collect()
    }
}
