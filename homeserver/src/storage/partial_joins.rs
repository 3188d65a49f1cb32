//! `partial_joins`, `completed_joins`: rooms whose members this server was not told when it joined
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid)).

use std::sync::Arc;

use ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName,
    events::room::member::MembershipState,
};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{
    StorageError, dialect,
    events::States,
    log::{Change, StreamPosition},
    rooms::RoomNid,
    roster::{Completed, Membership, Place, Roster, ToldServers},
    state_map::{EventNid, NodeId},
    writer::Tx,
};

/// A join to a room whose members are yet to come.
#[derive(Clone, Debug)]
pub(crate) struct PartialJoin {
    pub(crate) join: EventNid,
    /// The servers that are said to be in the room, the one that told first.
    pub(crate) servers: Vec<OwnedServerName>,
    /// The state before the join, as far as it was told.
    pub(crate) state: NodeId,
}

/// What an append does about the members of a room that were not told.
#[derive(Debug)]
pub(crate) enum Members {
    /// They are yet to come.
    Missing(PartialJoin),
    /// They came with a new join.
    Known,
    /// They came.
    Came(Completion),
}

/// A room with its members.
#[derive(Debug)]
pub(crate) struct Completion {
    /// The events since the join, on top of the whole state.
    pub(crate) events: Vec<Rebased>,
    /// Whom the room has that it had not.
    pub(crate) memberships: Vec<(OwnedUserId, MembershipState, EventNid)>,
    /// The current state before, and after.
    pub(crate) before: NodeId,
    pub(crate) after: NodeId,
}

/// An event whose states got the members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rebased {
    pub(crate) nid: EventNid,
    pub(crate) states: States,
    pub(crate) turn: Turn,
}

/// What the members show of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It was judged rightly.
    None,
    /// It was not allowed.
    Wrong,
    /// It was rejected, though it was allowed. It loses its place, to be taken in again.
    Right,
}

/// The tables of joins without members.
#[derive(Debug)]
pub(crate) struct PartialJoins<'t>(pub(super) &'t mut AnyConnection);

impl PartialJoins<'_> {
    /// All rooms whose members are missing.
    pub(crate) async fn all(&mut self) -> Result<Vec<(OwnedRoomId, PartialJoin)>, StorageError> {
        let rows = sqlx::query(
            "SELECT p.join_nid, p.servers, p.state, rooms.room_id \
             FROM partial_joins p JOIN rooms ON rooms.room_nid = p.room_nid",
        )
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| Ok((room_id(row, 3)?, read(row)?)))
            .collect()
    }

    /// What is known of a room whose members are missing.
    pub(crate) async fn of(
        &mut self,
        room_nid: RoomNid,
    ) -> Result<Option<PartialJoin>, StorageError> {
        let row =
            sqlx::query("SELECT join_nid, servers, state FROM partial_joins WHERE room_nid = $1")
                .bind(room_nid.0)
                .fetch_optional(&mut *self.0)
                .await?;
        row.as_ref().map(read).transpose()
    }

    /// The events that got their places in a room since a join, and the join.
    pub(crate) async fn events_since(
        &mut self,
        room_nid: RoomNid,
        join: EventNid,
    ) -> Result<Vec<EventNid>, StorageError> {
        let nids: Vec<i64> = sqlx::query_scalar(
            "SELECT nid FROM events \
             WHERE room_nid = $1 AND nid >= $2 AND state_before IS NOT NULL ORDER BY nid",
        )
        .bind(room_nid.0)
        .bind(join.0)
        .fetch_all(&mut *self.0)
        .await?;
        Ok(nids.into_iter().map(EventNid).collect())
    }

    /// Tells the roster what it begins with.
    pub(super) async fn load(&mut self, roster: &Roster) -> Result<(), StorageError> {
        let told = |(room_id, partial): (OwnedRoomId, PartialJoin)| ToldServers {
            room_id,
            servers: partial.servers,
            since: StreamPosition(0),
        };
        let told: Vec<_> = self.all().await?.into_iter().map(told).collect();
        roster.load(&told, self.completed().await?);
        Ok(())
    }

    /// When the members of rooms came.
    async fn completed(&mut self) -> Result<Vec<Completed>, StorageError> {
        let rows = sqlx::query(
            "SELECT c.position, c.room_nid, c.state_before, c.state_after, rooms.room_id \
             FROM completed_joins c JOIN rooms ON rooms.room_nid = c.room_nid ORDER BY c.position",
        )
        .fetch_all(&mut *self.0)
        .await?;
        let completed = |row: &AnyRow| {
            Ok(Completed {
                position: StreamPosition(row.try_get(0)?),
                room_nid: RoomNid(row.try_get(1)?),
                before: node(row, 2)?,
                after: node(row, 3)?,
                room_id: room_id(row, 4)?,
                memberships: Vec::new(),
            })
        };
        rows.iter().map(completed).collect()
    }
}

/// Carries out what an append does about the members of a room; who the members are is for the caller to store.
pub(super) async fn apply(
    tx: &mut Tx,
    room: RoomNid,
    room_id: &RoomId,
    members: Members,
) -> Result<Vec<(Membership, EventNid)>, StorageError> {
    sqlx::query("DELETE FROM partial_joins WHERE room_nid = $1")
        .bind(room.0)
        .execute(&mut *tx.connection)
        .await?;
    match members {
        Members::Known => Ok(Vec::new()),
        Members::Missing(partial) => {
            insert(&mut tx.connection, room, &partial).await?;
            Ok(Vec::new())
        }
        Members::Came(completion) => complete(tx, room, room_id, completion).await,
    }
}

async fn insert(
    connection: &mut AnyConnection,
    room: RoomNid,
    partial: &PartialJoin,
) -> Result<(), StorageError> {
    let servers: Vec<_> = partial.servers.iter().map(|name| name.as_str()).collect();
    sqlx::query(
        "INSERT INTO partial_joins (room_nid, join_nid, servers, state) VALUES ($1, $2, $3, $4)",
    )
    .bind(room.0)
    .bind(partial.join.0)
    .bind(servers.join(" "))
    .bind(partial.state.0.to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

async fn complete(
    tx: &mut Tx,
    room: RoomNid,
    room_id: &RoomId,
    completion: Completion,
) -> Result<Vec<(Membership, EventNid)>, StorageError> {
    let position = tx.next_position();
    let row = |(user_id, membership, nid): (OwnedUserId, MembershipState, EventNid)| {
        let room_id = room_id.to_owned();
        let place = Place::new(membership, position);
        let membership = Membership {
            room_id,
            user_id,
            place,
        };
        (membership, nid)
    };
    let rows: Vec<_> = completion.memberships.into_iter().map(row).collect();
    tx.log_at(
        position,
        Change::Completed(Arc::new(Completed {
            position,
            room_id: room_id.to_owned(),
            room_nid: room,
            before: completion.before,
            after: completion.after,
            memberships: rows.iter().map(|(row, _)| row.clone()).collect(),
        })),
    );
    sqlx::query(
        "INSERT INTO completed_joins (position, room_nid, state_before, state_after) \
         VALUES ($1, $2, $3, $4)",
    )
    .bind(position.0)
    .bind(room.0)
    .bind(completion.before.0.to_vec())
    .bind(completion.after.0.to_vec())
    .execute(&mut *tx.connection)
    .await?;
    for event in &completion.events {
        rebase(&mut tx.connection, event).await?;
    }
    Ok(rows)
}

/// Puts an event onto other states. The current state when it was added stays what it was.
async fn rebase(connection: &mut AnyConnection, event: &Rebased) -> Result<(), StorageError> {
    let States {
        before,
        after,
        head,
    } = event.states;
    let verdict = match event.turn {
        Turn::None => "verdict",
        Turn::Wrong => "2",
        Turn::Right => return displace(connection, event.nid).await,
    };
    let sql = format!(
        "UPDATE events SET state_before = $2, state_after = $3, head_state = $4, \
         verdict = {verdict} WHERE nid = $1"
    );
    dialect::query(sql)
        .bind(event.nid.0)
        .bind(before.0.to_vec())
        .bind((after != before).then(|| after.0.to_vec()))
        .bind((head != after).then(|| head.0.to_vec()))
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes an event an outlier, as if it had never come.
async fn displace(connection: &mut AnyConnection, nid: EventNid) -> Result<(), StorageError> {
    sqlx::query(
        "UPDATE events SET state_before = NULL, state_after = NULL, head_state = NULL, \
         replaces = NULL WHERE nid = $1",
    )
    .bind(nid.0)
    .execute(connection)
    .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<PartialJoin, StorageError> {
    let servers: String = row.try_get(1)?;
    let wrong = || StorageError::inconsistent("partial_joins", "servers", &servers);
    let name = |name| ServerName::parse(name).map_err(|_| wrong());
    Ok(PartialJoin {
        join: EventNid(row.try_get(0)?),
        servers: servers
            .split_whitespace()
            .map(name)
            .collect::<Result<_, _>>()?,
        state: node(row, 2)?,
    })
}

fn node(row: &AnyRow, column: usize) -> Result<NodeId, StorageError> {
    let bytes: Vec<u8> = row.try_get(column)?;
    let id = bytes.try_into();
    let wrong = |_| StorageError::inconsistent("partial_joins", "state", "a node");
    Ok(NodeId(id.map_err(wrong)?))
}

fn room_id(row: &AnyRow, column: usize) -> Result<OwnedRoomId, StorageError> {
    let text: String = row.try_get(column)?;
    RoomId::parse(&text).map_err(|_| StorageError::inconsistent("rooms", "room_id", &text))
}
