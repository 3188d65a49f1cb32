//! `relations`: which events relate to which
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events)).

use std::sync::Arc;

use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use sqlx::{
    Any, AnyConnection, Row,
    any::{AnyArguments, AnyRow},
    query::Query,
};

use super::{
    StorageError, dialect,
    events::{Relation, Slice, StoredEvent},
    rooms::RoomNid,
    state_map::EventNid,
};

/// The kinds of relations of which events are told a summary.
pub(super) const BUNDLED: [&str; 3] = ["m.reference", "m.replace", "m.thread"];

/// How many events are asked for with one statement.
const AT_ONCE: usize = 4_096;

type AnyQuery<'q> = Query<'q, Any, AnyArguments>;

/// The table `relations`.
#[derive(Debug)]
pub(crate) struct Relations<'t>(pub(super) &'t mut AnyConnection);

/// Which of the events that relate to one are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelationsAsk<'a> {
    pub(crate) parent: &'a EventId,
    /// How many relations may lie between an event and the parent, at most.
    pub(crate) depth: i64,
    pub(crate) rel_type: Option<&'a str>,
    pub(crate) event_type: Option<&'a str>,
    pub(crate) slice: Slice,
    pub(crate) limit: i64,
}

/// What events of one type by one sender add up to.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) parent: OwnedEventId,
    /// The room that the related events are in.
    pub(crate) room_nid: RoomNid,
    pub(crate) rel_type: String,
    pub(crate) event_type: String,
    pub(crate) sender: OwnedUserId,
    pub(crate) count: u64,
    /// The position of the newest.
    pub(crate) last: i64,
}

/// A thread: the event that it starts from, and the position of its newest event.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) root: OwnedEventId,
    pub(crate) last: i64,
}

impl Relations<'_> {
    /// The events that relate to one, in the order of the slice.
    pub(crate) async fn children(
        &mut self,
        ask: RelationsAsk<'_>,
    ) -> Result<Vec<EventNid>, StorageError> {
        let (bound, order) = match ask.slice {
            Slice::Backwards { at_most } => (
                at_most,
                "relations.position <= $3 ORDER BY relations.position DESC",
            ),
            Slice::Forwards { above } => (
                above,
                "relations.position > $3 ORDER BY relations.position ASC",
            ),
        };
        let sql = format!(
            "WITH RECURSIVE related (event_id, depth) AS (\
             SELECT child_event_id, 1 FROM relations WHERE parent_event_id = $1 UNION \
             SELECT relations.child_event_id, related.depth + 1 FROM related \
             JOIN relations ON relations.parent_event_id = related.event_id \
             WHERE related.depth < $2) \
             SELECT relations.child_nid FROM relations \
             WHERE relations.child_event_id IN (SELECT event_id FROM related) \
             AND ($4 = '' OR relations.rel_type = $4) AND ($5 = '' OR relations.event_type = $5) \
             AND {order} LIMIT $6"
        );
        let rows = dialect::query(sql)
            .bind(ask.parent.as_str().to_owned())
            .bind(ask.depth)
            .bind(bound)
            .bind(ask.rel_type.unwrap_or_default().to_owned())
            .bind(ask.event_type.unwrap_or_default().to_owned())
            .bind(ask.limit);
        let rows = rows.fetch_all(&mut *self.0).await?;
        rows.iter()
            .map(|row| Ok(EventNid(row.try_get(0)?)))
            .collect()
    }

    /// What a user has said of an event by annotations of one type.
    pub(crate) async fn annotations(
        &mut self,
        parent: &EventId,
        event_type: &str,
        sender: &UserId,
    ) -> Result<Vec<EventNid>, StorageError> {
        let rows = sqlx::query(
            "SELECT child_nid FROM relations WHERE parent_event_id = $1 \
             AND rel_type = 'm.annotation' AND event_type = $2 AND sender = $3",
        );
        let rows = rows
            .bind(parent.as_str())
            .bind(event_type)
            .bind(sender.as_str())
            .fetch_all(&mut *self.0)
            .await?;
        rows.iter()
            .map(|row| Ok(EventNid(row.try_get(0)?)))
            .collect()
    }

    /// What relates to each of some events, added up.
    pub(crate) async fn groups(
        &mut self,
        parents: &[OwnedEventId],
    ) -> Result<Vec<Group>, StorageError> {
        let mut groups = Vec::new();
        for piece in parents.chunks(AT_ONCE) {
            let sql = format!(
                "SELECT parent_event_id, rel_type, event_type, sender, COUNT(*), MAX(position), room_nid \
                 FROM relations WHERE parent_event_id IN ({}) \
                 AND rel_type IN ('m.replace', 'm.thread', 'm.reference') \
                 GROUP BY parent_event_id, rel_type, event_type, sender, room_nid",
                padded_list(piece)
            );
            for row in padded(dialect::query(sql), piece)
                .fetch_all(&mut *self.0)
                .await?
            {
                groups.push(group(&row)?);
            }
        }
        Ok(groups)
    }

    /// The first events that refer to each of some events: at most `limit` of each, oldest first.
    pub(crate) async fn references(
        &mut self,
        parents: &[OwnedEventId],
        limit: i64,
    ) -> Result<Vec<(OwnedEventId, EventNid)>, StorageError> {
        let mut references = Vec::new();
        for piece in parents.chunks(AT_ONCE) {
            let sql = format!(
                "SELECT parent_event_id, child_nid FROM (SELECT parent_event_id, child_nid, position, \
                 ROW_NUMBER() OVER (PARTITION BY parent_event_id ORDER BY position) AS place \
                 FROM relations WHERE parent_event_id IN ({}) AND rel_type = 'm.reference') numbered \
                 WHERE place <= {limit} ORDER BY position",
                padded_list(piece)
            );
            for row in padded(dialect::query(sql), piece)
                .fetch_all(&mut *self.0)
                .await?
            {
                let parent = parent(&row.try_get::<String, _>(0)?)?;
                references.push((parent, EventNid(row.try_get(1)?)));
            }
        }
        Ok(references)
    }

    /// The threads of what was said in a room up to `until` whose newest event is at or before `at_most`, the
    /// liveliest first.
    pub(crate) async fn threads(
        &mut self,
        room_nid: RoomNid,
        until: i64,
        at_most: i64,
        limit: i64,
    ) -> Result<Vec<Thread>, StorageError> {
        let rows = sqlx::query(
            "SELECT parent_event_id, MAX(position) FROM relations \
             WHERE room_nid = $1 AND rel_type = 'm.thread' AND position <= $2 \
             GROUP BY parent_event_id HAVING MAX(position) <= $3 \
             ORDER BY MAX(position) DESC LIMIT $4",
        );
        let rows = rows
            .bind(room_nid.0)
            .bind(until)
            .bind(at_most)
            .bind(limit)
            .fetch_all(&mut *self.0)
            .await?;
        let thread = |row: &AnyRow| {
            Ok(Thread {
                root: parent(&row.try_get::<String, _>(0)?)?,
                last: row.try_get(1)?,
            })
        };
        rows.iter().map(thread).collect()
    }
}

/// As many parameters as [`padded`] binds. Few different lengths need few statements prepared.
fn padded_list(ids: &[OwnedEventId]) -> String {
    dialect::numbered(1, ids.len().next_power_of_two())
}

/// Binds a list of ids, which ends with repetitions.
fn padded<'q>(query: AnyQuery<'q>, ids: &[OwnedEventId]) -> AnyQuery<'q> {
    let padded = ids.iter().cycle().take(ids.len().next_power_of_two());
    padded.fold(query, |query, id| query.bind(id.to_string()))
}

/// Keeps in mind what some new events relate to.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    events: &[Arc<StoredEvent>],
) -> Result<(), StorageError> {
    let rows: Vec<_> = events
        .iter()
        .filter_map(|event| Some((event, event.position?, Relation::of(&event.pdu)?)))
        .collect();
    for piece in dialect::pieces(&rows) {
        let sql = format!(
            "INSERT INTO relations (child_nid, child_event_id, parent_event_id, rel_type, event_type, \
             sender, room_nid, position) VALUES {} ON CONFLICT (child_nid) DO NOTHING",
            dialect::rows(piece.len(), 8)
        );
        let query = piece
            .iter()
            .fold(dialect::query(sql), |query, (event, position, relation)| {
                query
                    .bind(event.nid.0)
                    .bind(event.pdu.event_id().to_string())
                    .bind(relation.event_id.to_string())
                    .bind(relation.rel_type.clone())
                    .bind(event.pdu.event_type().to_string())
                    .bind(event.pdu.sender().to_string())
                    .bind(event.room_nid.0)
                    .bind(*position)
            });
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// What was redacted relates to nothing any more.
pub(super) async fn forget(
    connection: &mut AnyConnection,
    child: EventNid,
) -> Result<(), StorageError> {
    sqlx::query("DELETE FROM relations WHERE child_nid = $1")
        .bind(child.0)
        .execute(connection)
        .await?;
    Ok(())
}

fn group(row: &AnyRow) -> Result<Group, StorageError> {
    let sender: String = row.try_get(3)?;
    let wrong = |_| StorageError::inconsistent("relations", "sender", &sender);
    Ok(Group {
        parent: parent(&row.try_get::<String, _>(0)?)?,
        rel_type: row.try_get(1)?,
        event_type: row.try_get(2)?,
        sender: UserId::parse(&sender).map_err(wrong)?,
        count: u64::try_from(row.try_get::<i64, _>(4)?).unwrap_or_default(),
        last: row.try_get(5)?,
        room_nid: RoomNid(row.try_get(6)?),
    })
}

fn parent(id: &str) -> Result<OwnedEventId, StorageError> {
    let wrong = |_| StorageError::inconsistent("relations", "parent_event_id", id);
    EventId::parse(id).map_err(wrong)
}
