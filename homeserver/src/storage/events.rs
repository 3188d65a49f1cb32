//! `events`: every event once, with the state around it.

pub(super) mod rows;
mod txn;

use std::sync::{Arc, OnceLock};

use ruma::{
    EventId, OwnedEventId, RoomVersionId, ServerName, events::AnySyncTimelineEvent, serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use sotto_federation::room::{auth::Verdict, pdu::Pdu};
use sqlx::{
    Any, AnyConnection, Row,
    any::{AnyArguments, AnyRow},
    query::Query,
};

pub(crate) use self::txn::{Txn, TxnScope};
use super::{
    StorageError,
    append::{NewEvent, NewOutlier},
    dialect,
    log::StreamPosition,
    rooms::RoomNid,
    roster::Membership,
    state_map::{EventNid, NodeId},
};

/// An event as it is stored. Never changes, but for a redaction, which replaces the whole value.
#[derive(Debug)]
pub(crate) struct StoredEvent {
    pub(crate) nid: EventNid,
    pub(crate) room_nid: RoomNid,
    /// The event.
    pub(crate) pdu: Arc<Pdu>,
    pub(crate) version: RoomVersionId,
    pub(crate) verdict: StoredVerdict,
    /// The place in the log; negative for events fetched from the past; `None` where clients do not see
    /// the event.
    pub(crate) position: Option<i64>,
    /// `None` for outliers.
    pub(crate) state: Option<States>,
    /// The current state of the room before the event was added; known only for entries of the log.
    pub(crate) head_before: Option<NodeId>,
    pub(crate) replaces: Option<EventNid>,
    /// The redaction that applies.
    pub(crate) redacted_by: Option<OwnedEventId>,
    pub(crate) txn: Option<Txn>,
    /// The memberships that changed with it; filled only for entries of the log.
    pub(crate) memberships: Vec<Membership>,
    pub(crate) membership_nids: Vec<EventNid>,
    /// The event in client format without anything that depends on who asks; made once, when first asked.
    pub(crate) client_json: OnceLock<Raw<AnySyncTimelineEvent>>,
}

impl StoredEvent {
    /// The same event, showing less.
    pub(crate) fn showing(&self, pdu: Pdu) -> Self {
        Self {
            nid: self.nid,
            room_nid: self.room_nid,
            pdu: Arc::new(pdu),
            version: self.version.clone(),
            verdict: self.verdict,
            position: self.position,
            state: self.state,
            head_before: self.head_before,
            replaces: self.replaces,
            redacted_by: self.redacted_by.clone(),
            txn: self.txn.clone(),
            memberships: self.memberships.clone(),
            membership_nids: self.membership_nids.clone(),
            client_json: OnceLock::new(),
        }
    }
}

/// The content of `m.relates_to`.
#[derive(Debug, Deserialize)]
pub(crate) struct Relation {
    pub(crate) event_id: OwnedEventId,
    pub(crate) rel_type: String,
}

impl Relation {
    /// What an event relates to, if it says so
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events)).
    pub(crate) fn of(pdu: &Pdu) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "m.relates_to")]
            relates_to: Relation,
        }
        // Most events relate to nothing: they are not parsed for it.
        if pdu.is_state() || !pdu.content().get().contains("m.relates_to") {
            return None;
        }
        let content = pdu.content_as::<Content>().ok();
        content.map(|content| content.relates_to)
    }

    /// Whether it puts new content in the place of another event's.
    pub(crate) fn is_edit(&self) -> bool {
        self.rel_type == "m.replace"
    }
}

/// The states around an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct States {
    pub(crate) before: NodeId,
    pub(crate) after: NodeId,
    /// The current state of the room when the event was added.
    pub(crate) head: NodeId,
}

/// What was decided about a stored event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredVerdict {
    Accepted,
    SoftFailed,
    Rejected,
}

impl StoredVerdict {
    fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Accepted => Self::Accepted,
            Verdict::SoftFailed(_) => Self::SoftFailed,
            Verdict::Rejected(_) => Self::Rejected,
        }
    }
}

impl StoredEvent {
    pub(super) fn new(
        room_nid: RoomNid,
        event: NewEvent,
        position: Option<i64>,
        memberships: Vec<Membership>,
        version: &RoomVersionId,
    ) -> Self {
        Self {
            nid: event.nid,
            room_nid,
            verdict: StoredVerdict::of(event.judged.verdict()),
            pdu: Arc::new(event.judged.into_pdu()),
            version: version.clone(),
            position,
            state: Some(States {
                before: event.state_before,
                after: event.state_after,
                head: event.head_state,
            }),
            head_before: Some(event.head_before),
            replaces: event.replaces,
            redacted_by: None,
            txn: event.txn,
            membership_nids: event.memberships.iter().map(|row| row.2).collect(),
            memberships,
            client_json: OnceLock::new(),
        }
    }

    pub(super) fn outlier(room_nid: RoomNid, outlier: NewOutlier, version: &RoomVersionId) -> Self {
        Self {
            nid: outlier.nid,
            room_nid,
            verdict: match outlier.judged.rejection() {
                None => StoredVerdict::Accepted,
                Some(_) => StoredVerdict::Rejected,
            },
            pdu: Arc::new(outlier.judged.into_pdu()),
            version: version.clone(),
            position: None,
            state: None,
            head_before: None,
            replaces: None,
            redacted_by: None,
            txn: None,
            membership_nids: Vec::new(),
            memberships: Vec::new(),
            client_json: OnceLock::new(),
        }
    }

    /// Whether it is on this server to tell the others of the event: it was made here, or handed in here
    /// by a server that was not in the room
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#joining-rooms)).
    #[must_use]
    pub(crate) fn is_ours_to_send(&self, own: &ServerName) -> bool {
        let scope = self.txn.as_ref().map(|txn| &txn.scope);
        let ours = self.pdu.sender().server_name() == own && scope != Some(&TxnScope::passed_on());
        let handed_in = scope == Some(&TxnScope::handed_in());
        self.is_accepted() && (ours || handed_in || self.is_for_another())
    }

    /// Whether the server of its sender does not know of the event.
    pub(crate) fn is_for_another(&self) -> bool {
        let for_another = |txn: &Txn| txn.scope == TxnScope::for_another();
        self.txn.as_ref().is_some_and(for_another)
    }

    /// Whether other events may build on this one.
    #[must_use]
    pub(crate) fn is_accepted(&self) -> bool {
        self.verdict == StoredVerdict::Accepted
    }

    /// The place in the log of an event of the live timeline.
    #[must_use]
    pub(crate) fn log_position(&self) -> Option<StreamPosition> {
        self.position
            .filter(|position| *position > 0)
            .map(StreamPosition)
    }
}

const COLUMNS: &str = "events.nid, events.event_id, events.room_nid, events.position, events.json, \
     events.verdict, events.state_before, events.state_after, events.head_state, events.replaces, \
     events.redacted_by, events.txn_scope, events.txn_id, rooms.version, rooms.room_id";

const FROM: &str = "FROM events JOIN rooms ON rooms.room_nid = events.room_nid";

/// The table `events`.
#[derive(Debug)]
pub(crate) struct Events<'t>(pub(super) &'t mut AnyConnection);

/// Which part of a timeline, and from which end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slice {
    /// Newest first, positions at or below this one.
    Backwards { at_most: i64 },
    /// Oldest first, positions above this one.
    Forwards { above: i64 },
}

impl Events<'_> {
    /// Events by their ids, in no order; unknown ones are left out.
    pub(crate) async fn by_ids(
        &mut self,
        ids: &[OwnedEventId],
    ) -> Result<Vec<StoredEvent>, StorageError> {
        self.by("event_id", ids, |query, id| query.bind(id.to_string()))
            .await
    }

    /// Events of timelines by their positions, in no order.
    pub(crate) async fn by_positions(
        &mut self,
        positions: &[i64],
    ) -> Result<Vec<StoredEvent>, StorageError> {
        self.by("position", positions, |query, id| query.bind(*id))
            .await
    }

    /// Events by their numbers, in no order.
    pub(crate) async fn by_nids(
        &mut self,
        nids: &[EventNid],
    ) -> Result<Vec<StoredEvent>, StorageError> {
        self.by("nid", nids, |query, id| query.bind(id.0)).await
    }

    async fn by<'q, K>(
        &mut self,
        column: &str,
        keys: &'q [K],
        bind: impl Fn(Query<'q, Any, AnyArguments>, &'q K) -> Query<'q, Any, AnyArguments>,
    ) -> Result<Vec<StoredEvent>, StorageError> {
        let sql = |list| format!("SELECT {COLUMNS} {FROM} WHERE events.{column} IN ({list})");
        let query = |list| dialect::query(sql(list));
        let rows = dialect::rows_for(self.0, keys, 1, query, bind).await?;
        rows.iter().map(read).collect()
    }

    /// A part of the timeline of a room.
    pub(crate) async fn slice(
        &mut self,
        room_nid: RoomNid,
        slice: Slice,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StorageError> {
        let (comparison, from) = match slice {
            Slice::Backwards { at_most } => ("<= $2 ORDER BY events.position DESC", at_most),
            Slice::Forwards { above } => ("> $2 ORDER BY events.position ASC", above),
        };
        let sql = format!(
            "SELECT {COLUMNS} {FROM} WHERE events.room_nid = $1 AND events.position {comparison} LIMIT $3"
        );
        let rows = dialect::query(sql)
            .bind(room_nid.0)
            .bind(from)
            .bind(limit)
            .fetch_all(&mut *self.0);
        rows.await?.iter().map(read).collect()
    }

    /// The newest events of many rooms, at most `limit` each, above and up to a position: by room, in no
    /// order; nothing for a room without any.
    pub(crate) async fn newest(
        &mut self,
        rooms: &[RoomNid],
        above: i64,
        at_most: i64,
        limit: i64,
    ) -> Result<Vec<Vec<EventNid>>, StorageError> {
        // One row for a room: rows cost more than what is in them. Each room reads its newest rows alone,
        // where a window function would number all that it has.
        let sql = |list| {
            format!(
                "SELECT (SELECT string_agg(CAST(nid AS TEXT), ',') FROM (SELECT nid \
                 FROM events WHERE events.room_nid = rooms.room_nid AND position > $1 \
                 AND position <= $2 ORDER BY position DESC LIMIT $3) AS newest) \
                 FROM rooms WHERE rooms.room_nid IN ({list})"
            )
        };
        let query = |list| {
            dialect::query(sql(list))
                .bind(above)
                .bind(at_most)
                .bind(limit)
        };
        let rows = dialect::rows_for(self.0, rooms, 4, query, |query, room| query.bind(room.0));
        let mut found = Vec::new();
        for row in rows.await? {
            if let Some(list) = row.try_get::<Option<String>, _>(0)? {
                let nids = list.split(',');
                let nids = nids.map(|nid| parse("nid", nid, nid.parse()).map(EventNid));
                found.push(nids.collect::<Result<_, _>>()?);
            }
        }
        Ok(found)
    }

    /// Events that were fetched from the past, from before a (negative) position on, in the order in which they
    /// came.
    pub(crate) async fn past(
        &mut self,
        before: i64,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StorageError> {
        let sql = format!(
            "SELECT {COLUMNS} {FROM} WHERE events.position < $1 ORDER BY events.position DESC LIMIT $2"
        );
        let rows = dialect::query(sql).bind(before).bind(limit);
        rows.fetch_all(&mut *self.0)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// Events of the whole log after a position, oldest first: for workers that read forward.
    pub(crate) async fn after(
        &mut self,
        position: StreamPosition,
        at_most: StreamPosition,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StorageError> {
        let sql = format!(
            "SELECT {COLUMNS} {FROM} WHERE events.position > $1 AND events.position <= $2 \
             ORDER BY events.position ASC LIMIT $3"
        );
        let rows = dialect::query(sql)
            .bind(position.0)
            .bind(at_most.0)
            .bind(limit);
        rows.fetch_all(&mut *self.0)
            .await?
            .iter()
            .map(read)
            .collect()
    }
}

/// The events that clients made with these transaction ids.
pub(super) async fn by_txns(
    connection: &mut AnyConnection,
    keys: &[(RoomNid, &Txn)],
) -> Result<Vec<(RoomNid, Txn, OwnedEventId)>, StorageError> {
    let mut found = Vec::new();
    for piece in dialect::pieces(keys) {
        let sql = format!(
            "SELECT events.room_nid, events.txn_scope, events.txn_id, events.event_id FROM events \
             JOIN (VALUES {}) AS v ON events.txn_id = v.column1 AND events.txn_scope = v.column2 \
             AND events.room_nid = v.column3",
            dialect::rows(piece.len(), 3)
        );
        let query = piece
            .iter()
            .fold(dialect::query(sql), |query, (room_nid, txn)| {
                query
                    .bind(txn.id.to_string())
                    .bind(txn.scope.0.clone())
                    .bind(room_nid.0)
            });
        for row in query.fetch_all(&mut *connection).await? {
            let id: String = row.try_get(3)?;
            let txn = Txn {
                scope: TxnScope(row.try_get(1)?),
                id: row.try_get::<String, _>(2)?.into(),
            };
            let event_id = parse("event_id", &id, EventId::parse(&id))?;
            found.push((RoomNid(row.try_get(0)?), txn, event_id));
        }
    }
    Ok(found)
}

fn read(row: &AnyRow) -> Result<StoredEvent, StorageError> {
    let event_id: String = row.try_get(1)?;
    let id = parse("event_id", &event_id, EventId::parse(&event_id))?;
    let verdict = match row.try_get::<i64, _>(5)? {
        0 => StoredVerdict::Accepted,
        1 => StoredVerdict::SoftFailed,
        _ => StoredVerdict::Rejected,
    };
    let json = parse("json", &event_id, RawValue::from_string(row.try_get(4)?))?;
    let version: String = row.try_get(13)?;
    let rejected = verdict == StoredVerdict::Rejected;
    let pdu = parse("json", &event_id, Pdu::from_storage(id, json, rejected))?;
    let before = node(row.try_get(6)?);
    let after = node(row.try_get(7)?);
    let head = node(row.try_get(8)?);
    let txn_id: Option<String> = row.try_get(12)?;
    let scope: Option<String> = row.try_get(11)?;
    let redacted_by: Option<String> = row.try_get(10)?;
    Ok(StoredEvent {
        nid: EventNid(row.try_get(0)?),
        room_nid: RoomNid(row.try_get(2)?),
        pdu: Arc::new(pdu),
        version: parse(
            "version",
            &event_id,
            RoomVersionId::try_from(version.as_str()),
        )?,
        verdict,
        position: row.try_get(3)?,
        state: before.map(|before| {
            let after = after.unwrap_or(before);
            States {
                before,
                after,
                head: head.unwrap_or(after),
            }
        }),
        head_before: None,
        replaces: row.try_get::<Option<i64>, _>(9)?.map(EventNid),
        redacted_by: redacted_by
            .map(|id| parse("redacted_by", &event_id, EventId::parse(&id)))
            .transpose()?,
        txn: scope.zip(txn_id).map(|(scope, id)| Txn {
            scope: TxnScope(scope),
            id: id.into(),
        }),
        memberships: Vec::new(),
        membership_nids: Vec::new(),
        client_json: OnceLock::new(),
    })
}

fn node(bytes: Option<Vec<u8>>) -> Option<NodeId> {
    bytes.and_then(|bytes| bytes.try_into().ok()).map(NodeId)
}

fn parse<T, E>(column: &'static str, row: &str, parsed: Result<T, E>) -> Result<T, StorageError> {
    parsed.map_err(|_| StorageError::inconsistent("events", column, row))
}
