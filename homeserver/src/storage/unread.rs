//! What users have not read: their receipts, and the events after them.

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use serde_json::value::RawValue;
use sotto_federation::room::pdu::Pdu;
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{
    StorageError, dialect,
    log::StreamPosition,
    state_map::{EventNid, NodeId},
};

/// How many rooms are looked at with one statement.
const ROOMS_AT_ONCE: usize = 32;

/// The tables `receipts` and `events`, for those who read.
#[derive(Debug)]
pub(crate) struct Unread<'t>(pub(super) &'t mut AnyConnection);

/// Up to where a user has read.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) thread: MarkedThread,
    /// The place of the event in the timeline.
    pub(crate) position: i64,
}

/// What a receipt is about
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MarkedThread {
    Unthreaded,
    Main,
    Thread(OwnedEventId),
}

/// An event as it is in the timeline now, without what only others need to know of it.
#[derive(Debug)]
pub(crate) struct TimelineEvent {
    pub(crate) nid: EventNid,
    pub(crate) position: StreamPosition,
    pub(crate) pdu: Pdu,
    pub(crate) state_before: Option<NodeId>,
    pub(crate) redacted: bool,
}

impl Unread<'_> {
    /// Up to where a user has read some rooms, in public and in private.
    pub(crate) async fn marks(
        &mut self,
        user_id: &UserId,
        room_ids: &[OwnedRoomId],
    ) -> Result<Vec<Mark>, StorageError> {
        let sql = |list| {
            format!(
                "SELECT room_id, thread_id, event_position FROM receipts WHERE user_id = $1 \
                 AND receipt_type IN ('m.read', 'm.read.private') \
                 AND event_position IS NOT NULL AND room_id IN ({list})"
            )
        };
        let query = |list| dialect::query(sql(list)).bind(user_id.as_str());
        let rows = dialect::rows_for(self.0, room_ids, 2, query, |query, id| {
            query.bind(id.as_str())
        });
        rows.await?.iter().map(mark).collect()
    }

    /// The events of rooms, each after a position of its own, up to `until`: of each room the newest
    /// `most`, oldest first.
    pub(crate) async fn events_after(
        &mut self,
        rooms: &[(OwnedRoomId, i64)],
        until: StreamPosition,
        most: i64,
    ) -> Result<Vec<TimelineEvent>, StorageError> {
        let mut found = Vec::new();
        for piece in rooms.chunks(ROOMS_AT_ONCE).flat_map(dialect::pieces) {
            // Where the newest begin is looked up for each room, by its index: numbering the rows would read
            // all that nobody ever read.
            let sql = format!(
                "SELECT events.nid, events.event_id, events.position, events.json, \
                 events.state_before, events.redacted_by FROM (SELECT rooms.room_nid, \
                 COALESCE((SELECT older.position FROM events AS older \
                 WHERE older.room_nid = rooms.room_nid AND older.position > asked.column2 \
                 AND older.position <= ${until} ORDER BY older.position DESC LIMIT 1 OFFSET ${most}), \
                 asked.column2) AS above FROM (VALUES {}) AS asked \
                 JOIN rooms ON rooms.room_id = asked.column1) AS bounds \
                 JOIN events ON events.room_nid = bounds.room_nid \
                 AND events.position > bounds.above AND events.position <= ${until} \
                 ORDER BY events.position ASC",
                dialect::rows(piece.len(), 2),
                until = piece.len() * 2 + 1,
                most = piece.len() * 2 + 2,
            );
            let query = piece
                .iter()
                .fold(dialect::query(sql), |query, (id, above)| {
                    query.bind(id.to_string()).bind(*above)
                });
            let rows = query.bind(until.0).bind(most).fetch_all(&mut *self.0);
            for row in &rows.await? {
                found.push(event(row)?);
            }
        }
        Ok(found)
    }

    /// The newest events of the rooms that a user is in, at or below a position, newest first; also from
    /// before the user came.
    pub(crate) async fn newest(
        &mut self,
        room_ids: &[OwnedRoomId],
        at_most: StreamPosition,
        most: i64,
    ) -> Result<Vec<TimelineEvent>, StorageError> {
        let sql = |list| {
            format!(
                "SELECT events.nid, events.event_id, events.position, events.json, \
                 events.state_before, events.redacted_by FROM events \
                 JOIN rooms ON rooms.room_nid = events.room_nid \
                 WHERE events.position > 0 AND events.position <= $1 AND rooms.room_id IN ({list}) \
                 ORDER BY events.position DESC LIMIT $2"
            )
        };
        let query = |list| dialect::query(sql(list)).bind(at_most.0).bind(most);
        let rows = dialect::rows_for(self.0, room_ids, 3, query, |query, id| {
            query.bind(id.as_str())
        });
        let found: Result<Vec<_>, _> = rows.await?.iter().map(event).collect();
        let mut found = found?;
        found.sort_by_key(|event| std::cmp::Reverse(event.position));
        found.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(found)
    }
}

fn mark(row: &AnyRow) -> Result<Mark, StorageError> {
    let room_id: String = row.try_get(0)?;
    let thread_id: String = row.try_get(1)?;
    let wrong = |column| StorageError::inconsistent("receipts", column, &room_id);
    Ok(Mark {
        thread: match thread_id.as_str() {
            "" => MarkedThread::Unthreaded,
            "main" => MarkedThread::Main,
            root => MarkedThread::Thread(EventId::parse(root).map_err(|_| wrong("thread_id"))?),
        },
        position: row.try_get(2)?,
        room_id: RoomId::parse(&room_id).map_err(|_| wrong("room_id"))?,
    })
}

fn event(row: &AnyRow) -> Result<TimelineEvent, StorageError> {
    let event_id: String = row.try_get(1)?;
    let wrong = |column| StorageError::inconsistent("events", column, &event_id);
    let id = EventId::parse(&event_id).map_err(|_| wrong("event_id"))?;
    let json = RawValue::from_string(row.try_get(3)?).map_err(|_| wrong("json"))?;
    let before: Option<Vec<u8>> = row.try_get(4)?;
    let redacted_by: Option<String> = row.try_get(5)?;
    Ok(TimelineEvent {
        nid: EventNid(row.try_get(0)?),
        position: StreamPosition(row.try_get(2)?),
        pdu: Pdu::from_storage(id, json, false).map_err(|_| wrong("json"))?,
        state_before: before.and_then(|id| id.try_into().ok()).map(NodeId),
        redacted: redacted_by.is_some(),
    })
}
