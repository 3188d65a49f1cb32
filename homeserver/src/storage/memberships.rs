//! `memberships`: what each user is to each room, as the current state has it.

use ruma::{
    EventId, OwnedEventId, OwnedUserId, RoomId, UserId, events::room::member::MembershipState,
};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{
    StorageError, dialect,
    log::StreamPosition,
    rooms::RoomNid,
    roster::{Membership, Place},
    state_map::EventNid,
};

/// The table `memberships`.
#[derive(Debug)]
pub(crate) struct Memberships<'t>(pub(super) &'t mut AnyConnection);

/// Why a user is invited or knocking, where this server is not in the room.
#[derive(Clone)]
pub(crate) struct OutsideEvent {
    pub(crate) event_id: OwnedEventId,
    /// What was told of the room, as JSON.
    pub(crate) stripped_state: String,
}

impl Memberships<'_> {
    /// All places of local users, and the joined places of all others: what the roster starts with.
    pub(crate) async fn all(&mut self) -> Result<Vec<Membership>, StorageError> {
        let rows = sqlx::query(
            "SELECT rooms.room_id, memberships.user_id, memberships.membership, \
             memberships.position, memberships.forgotten, memberships.joined_until \
             FROM memberships JOIN rooms ON rooms.room_nid = memberships.room_nid",
        )
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter().map(read).collect()
    }

    /// The members of a room, whatever their membership is, with the event that says so.
    pub(crate) async fn of_room(
        &mut self,
        room_nid: RoomNid,
    ) -> Result<Vec<(OwnedUserId, MembershipState, EventNid)>, StorageError> {
        let rows = sqlx::query(
            "SELECT user_id, membership, event_nid FROM memberships WHERE room_nid = $1",
        )
        .bind(room_nid.0)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                let user_id: String = row.try_get(0)?;
                let membership: String = row.try_get(1)?;
                let parsed = UserId::parse(&user_id)
                    .map_err(|_| StorageError::inconsistent("memberships", "user_id", &user_id))?;
                Ok((
                    parsed,
                    MembershipState::from(membership),
                    EventNid(row.try_get(2)?),
                ))
            })
            .collect()
    }

    /// The first of the members of each room other than a user, at most `limit`: those who are there or
    /// invited before those who were.
    pub(crate) async fn first_others(
        &mut self,
        rooms: &[RoomNid],
        user_id: &UserId,
        limit: i64,
    ) -> Result<Vec<(RoomNid, OwnedUserId, MembershipState)>, StorageError> {
        let mut found = Vec::new();
        let sql = |list| {
            format!(
                "SELECT room_nid, user_id, membership FROM (SELECT room_nid, user_id, membership, \
                 ROW_NUMBER() OVER (PARTITION BY room_nid ORDER BY CASE membership \
                 WHEN 'join' THEN 0 WHEN 'invite' THEN 0 ELSE 1 END, event_nid) AS place \
                 FROM memberships WHERE user_id <> $1 AND room_nid IN ({list})) AS members \
                 WHERE place <= $2 ORDER BY room_nid, place"
            )
        };
        let query = |list| dialect::query(sql(list)).bind(user_id.as_str()).bind(limit);
        let rows = dialect::rows_for(self.0, rooms, 3, query, |query, room| query.bind(room.0));
        for row in rows.await? {
            let user_id: String = row.try_get(1)?;
            let parsed = UserId::parse(&user_id)
                .map_err(|_| StorageError::inconsistent("memberships", "user_id", &user_id))?;
            let membership: String = row.try_get(2)?;
            found.push((RoomNid(row.try_get(0)?), parsed, membership.into()));
        }
        Ok(found)
    }

    /// Remembers that the user wants to hear no more of the room.
    pub(crate) async fn forget(
        &mut self,
        room_nid: RoomNid,
        user_id: &UserId,
    ) -> Result<(), StorageError> {
        sqlx::query("UPDATE memberships SET forgotten = 1 WHERE room_nid = $1 AND user_id = $2")
            .bind(room_nid.0)
            .bind(user_id.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// Sets a membership outside of any timeline, such as an invite from another server.
    pub(crate) async fn set_outside(
        &mut self,
        room_nid: RoomNid,
        membership: &Membership,
        event: EventNid,
        told: Option<&OutsideEvent>,
    ) -> Result<(), StorageError> {
        upsert(&mut *self.0, &[(room_nid, membership.clone(), event)]).await?;
        sqlx::query(
            "UPDATE memberships SET stripped_state = $1, outside_event = $2 \
             WHERE room_nid = $3 AND user_id = $4",
        )
        .bind(told.map(|told| told.stripped_state.as_str()))
        .bind(told.map(|told| told.event_id.as_str()))
        .bind(room_nid.0)
        .bind(membership.user_id.as_str())
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// What [`Memberships::set_outside`] keeps of a user, as long as nothing else happened.
    pub(crate) async fn outside_event(
        &mut self,
        room_nid: RoomNid,
        user_id: &UserId,
    ) -> Result<Option<OutsideEvent>, StorageError> {
        let row = sqlx::query(
            "SELECT outside_event, stripped_state FROM memberships WHERE room_nid = $1 \
             AND user_id = $2 AND outside_event IS NOT NULL AND stripped_state IS NOT NULL",
        )
        .bind(room_nid.0)
        .bind(user_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| {
            let event_id: String = row.try_get(0)?;
            let wrong =
                |_| StorageError::inconsistent("memberships", "outside_event", user_id.as_str());
            Ok(OutsideEvent {
                event_id: EventId::parse(&event_id).map_err(wrong)?,
                stripped_state: row.try_get(1)?,
            })
        })
        .transpose()
    }

    /// The membership event of a user, and the stripped state that came with an invite.
    pub(crate) async fn outside(
        &mut self,
        room_nid: RoomNid,
        user_id: &UserId,
    ) -> Result<Option<(EventNid, Option<String>)>, StorageError> {
        let row = sqlx::query(
            "SELECT event_nid, stripped_state FROM memberships WHERE room_nid = $1 AND user_id = $2",
        )
        .bind(room_nid.0)
        .bind(user_id.as_str())
        .fetch_optional(&mut *self.0)
        .await?;
        row.map(|row| Ok((EventNid(row.try_get(0)?), row.try_get(1)?)))
            .transpose()
    }
}

pub(super) async fn upsert(
    connection: &mut AnyConnection,
    rows: &[(RoomNid, Membership, EventNid)],
) -> Result<(), StorageError> {
    for piece in dialect::pieces(rows) {
        let sql = format!(
            "INSERT INTO memberships (room_nid, user_id, membership, event_nid, position) VALUES {} \
             ON CONFLICT (room_nid, user_id) DO UPDATE SET membership = excluded.membership, \
             event_nid = excluded.event_nid, forgotten = 0, position = CASE \
             WHEN memberships.membership = excluded.membership THEN memberships.position \
             ELSE excluded.position END, \
             stripped_state = NULL, outside_event = NULL, joined_until = CASE \
             WHEN excluded.membership = 'join' THEN NULL \
             WHEN memberships.membership = 'join' THEN excluded.position \
             ELSE memberships.joined_until END",
            dialect::rows(piece.len(), 5)
        );
        let query = piece
            .iter()
            .fold(dialect::query(sql), |query, (room_nid, row, nid)| {
                query
                    .bind(room_nid.0)
                    .bind(row.user_id.to_string())
                    .bind(row.place.membership.to_string())
                    .bind(nid.0)
                    .bind(row.place.since.0)
            });
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

fn read(row: &AnyRow) -> Result<Membership, StorageError> {
    let room_id: String = row.try_get(0)?;
    let user_id: String = row.try_get(1)?;
    let membership: String = row.try_get(2)?;
    let wrong = |column| StorageError::inconsistent("memberships", column, &user_id);
    Ok(Membership {
        room_id: RoomId::parse(&room_id).map_err(|_| wrong("room_nid"))?,
        user_id: UserId::parse(&user_id).map_err(|_| wrong("user_id"))?,
        place: Place {
            membership: MembershipState::from(membership),
            since: StreamPosition(row.try_get(3)?),
            forgotten: row.try_get::<i64, _>(4)? != 0,
            joined_until: row.try_get::<Option<i64>, _>(5)?.map(StreamPosition),
        },
    })
}
