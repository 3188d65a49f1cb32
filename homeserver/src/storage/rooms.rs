//! `rooms`: the rooms that the server knows, and the head of each.

use std::collections::BTreeSet;

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{StorageError, append::Append, dialect, state_map::NodeId};

/// The number that stands for a room in this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoomNid(pub(crate) i64);

/// A room that the server knows.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the specification")]
pub(crate) struct Room {
    pub(crate) nid: RoomNid,
    pub(crate) room_id: OwnedRoomId,
    pub(crate) version: RoomVersionId,
    /// `None` while the server takes no part in the room, such as with an invite.
    pub(crate) head: Option<Head>,
    /// The version of the head, also where there is none.
    pub(crate) head_version: i64,
    /// Whether the members are missing: they were not told with the join, and are yet to come.
    pub(crate) partial: bool,
}

/// What the next event of a room builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Rises by one with every append.
    pub(crate) version: i64,
    /// The forward extremities.
    pub(crate) extremities: Vec<OwnedEventId>,
    /// The current state.
    pub(crate) state: NodeId,
    /// The greatest depth among the extremities.
    pub(crate) depth: i64,
}

/// The table `rooms`.
#[derive(Debug)]
pub(crate) struct Rooms<'t>(pub(super) &'t mut AnyConnection);

pub(super) const COLUMNS: &str = "room_nid, room_id, version, head_version, head_extremities, head_state, head_depth, \
     (SELECT COUNT(*) FROM partial_joins WHERE partial_joins.room_nid = rooms.room_nid)";

impl Rooms<'_> {
    pub(crate) async fn by_id(&mut self, room_id: &RoomId) -> Result<Option<Room>, StorageError> {
        let sql = format!("SELECT {COLUMNS} FROM rooms WHERE room_id = $1");
        let row = dialect::query(sql)
            .bind(room_id.as_str())
            .fetch_optional(&mut *self.0)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Many rooms, in no order; unknown ones are left out.
    pub(crate) async fn by_ids(
        &mut self,
        room_ids: &[OwnedRoomId],
    ) -> Result<Vec<Room>, StorageError> {
        let sql = |list| format!("SELECT {COLUMNS} FROM rooms WHERE room_id IN ({list})");
        let query = |list| dialect::query(sql(list));
        let rows = dialect::rows_for(self.0, room_ids, 1, query, |query, id| {
            query.bind(id.as_str())
        });
        rows.await?.iter().map(read).collect()
    }

    /// The rooms that the server takes, or took, part in.
    pub(crate) async fn with_head(&mut self) -> Result<Vec<OwnedRoomId>, StorageError> {
        let rows = sqlx::query("SELECT room_id FROM rooms WHERE head_state IS NOT NULL")
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| {
                let room_id: String = row.try_get(0)?;
                RoomId::parse(&room_id)
                    .map_err(|_| StorageError::inconsistent("rooms", "room_id", &room_id))
            })
            .collect()
    }

    /// Says since when the users of this server may not join a room; `None` if they may.
    pub(crate) async fn set_blocked(
        &mut self,
        room_id: &RoomId,
        since: Option<i64>,
    ) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM blocked_rooms WHERE room_id = $1")
            .bind(room_id.as_str())
            .execute(&mut *self.0)
            .await?;
        if let Some(since) = since {
            sqlx::query("INSERT INTO blocked_rooms (room_id, blocked_at) VALUES ($1, $2)")
                .bind(room_id.as_str())
                .bind(since)
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    /// Whether the users of this server may not join a room.
    pub(crate) async fn is_blocked(&mut self, room_id: &RoomId) -> Result<bool, StorageError> {
        let row = sqlx::query("SELECT 1 FROM blocked_rooms WHERE room_id = $1")
            .bind(room_id.as_str())
            .fetch_optional(&mut *self.0)
            .await?;
        Ok(row.is_some())
    }

    /// Makes a room known of which the server has no event in a timeline: the target of an invite.
    pub(crate) async fn insert_outside(
        &mut self,
        nid: RoomNid,
        room_id: &RoomId,
        version: &RoomVersionId,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO rooms (room_nid, room_id, version, head_version, head_extremities, head_depth)
             VALUES ($1, $2, $3, 0, '', 0) ON CONFLICT (room_id) DO NOTHING",
        )
        .bind(nid.0)
        .bind(room_id.as_str())
        .bind(version.as_str())
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Sets the version of a room of which the server has no event in a timeline.
    pub(crate) async fn correct_version(
        &mut self,
        nid: RoomNid,
        version: &RoomVersionId,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE rooms SET version = $2 WHERE room_nid = $1 AND head_state IS NULL")
            .bind(nid.0)
            .bind(version.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}

/// Makes the room of an append that starts it; whether there was none of this id.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    append: &Append,
) -> Result<bool, StorageError> {
    let Append {
        room_nid,
        room_id,
        version,
        head,
        ..
    } = append;
    let done = sqlx::query(
        "INSERT INTO rooms (room_nid, room_id, version, head_version, head_extremities, head_state, head_depth)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (room_id) DO NOTHING",
    )
    .bind(room_nid.0)
    .bind(room_id.as_str())
    .bind(version.as_str())
    .bind(head.version)
    .bind(joined(&head.extremities))
    .bind(head.state.0.to_vec())
    .bind(head.depth)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Compares and swaps many heads with one statement; the rooms in which it succeeded.
pub(super) async fn swap_heads(
    connection: &mut AnyConnection,
    swaps: &[(RoomNid, i64, &Head)],
) -> Result<BTreeSet<RoomNid>, StorageError> {
    let mut swapped = BTreeSet::new();
    for piece in dialect::pieces(swaps) {
        let sql = format!(
            "UPDATE rooms SET head_version = v.column3, head_extremities = v.column4, \
             head_state = v.column5, head_depth = v.column6 FROM (VALUES {}) AS v \
             WHERE rooms.room_nid = v.column1 AND rooms.head_version = v.column2 \
             RETURNING rooms.room_nid",
            dialect::rows(piece.len(), 6)
        );
        let query = piece
            .iter()
            .fold(dialect::query(sql), |query, (nid, expected, head)| {
                query
                    .bind(nid.0)
                    .bind(*expected)
                    .bind(head.version)
                    .bind(joined(&head.extremities))
                    .bind(head.state.0.to_vec())
                    .bind(head.depth)
            });
        for row in query.fetch_all(&mut *connection).await? {
            swapped.insert(RoomNid(row.try_get(0)?));
        }
    }
    Ok(swapped)
}

/// Event ids in one column.
pub(super) fn joined(ids: &[OwnedEventId]) -> String {
    ids.iter()
        .map(|id| id.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

pub(super) fn read(row: &AnyRow) -> Result<Room, StorageError> {
    let room_id: String = row.try_get(1)?;
    let wrong = |column| StorageError::inconsistent("rooms", column, &room_id);
    let version: String = row.try_get(2)?;
    let extremities: String = row.try_get(4)?;
    let state: Option<Vec<u8>> = row.try_get(5)?;
    let head_version = row.try_get(3)?;
    let head = match state {
        None => None,
        Some(state) => Some(Head {
            version: head_version,
            extremities: extremities
                .split_whitespace()
                .map(|id| EventId::parse(id).map_err(|_| wrong("head_extremities")))
                .collect::<Result<_, _>>()?,
            state: NodeId(state.try_into().map_err(|_| wrong("head_state"))?),
            depth: row.try_get(6)?,
        }),
    };
    Ok(Room {
        nid: RoomNid(row.try_get(0)?),
        version: RoomVersionId::try_from(version.as_str()).map_err(|_| wrong("version"))?,
        head,
        head_version,
        partial: row.try_get::<i64, _>(7)? > 0,
        room_id: RoomId::parse(&room_id).map_err(|_| wrong("room_id"))?,
    })
}
