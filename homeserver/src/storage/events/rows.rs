//! The rows of events: inserting them, and putting the redacted form in the place of one.

use std::sync::Arc;

use sqlx::{Any, AnyConnection, any::AnyArguments, query::Query};

use super::{StoredEvent, StoredVerdict};
use crate::storage::{StorageError, append::Redaction, dialect};

/// Replaces an event by its redacted form.
pub(in crate::storage) async fn redact(
    connection: &mut AnyConnection,
    redaction: &Redaction,
) -> Result<(), StorageError> {
    sqlx::query("UPDATE events SET json = $1, redacted_by = $2 WHERE nid = $3")
        .bind(redaction.pruned.json().get().to_owned())
        .bind(redaction.by.to_string())
        .bind(redaction.target.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// The columns that [`bind`] fills, in its order.
pub(in crate::storage) const ROW: &str = "nid, event_id, room_nid, position, json, verdict, state_before, \
     state_after, head_state, replaces, txn_scope, txn_id";

/// How an event that was an outlier so far gets its place.
pub(in crate::storage) const PLACE: &str = "ON CONFLICT (nid) DO UPDATE SET position = excluded.position, \
     verdict = excluded.verdict, state_before = excluded.state_before, \
     state_after = excluded.state_after, head_state = excluded.head_state, \
     replaces = excluded.replaces";

/// Inserts events; one that was an outlier so far gets its place.
pub(in crate::storage) async fn insert(
    connection: &mut AnyConnection,
    events: &[Arc<StoredEvent>],
) -> Result<(), StorageError> {
    insert_with(connection, events, PLACE).await
}

/// Inserts outliers; what is there already stays as it is.
pub(in crate::storage) async fn insert_outliers(
    connection: &mut AnyConnection,
    events: &[Arc<StoredEvent>],
) -> Result<(), StorageError> {
    insert_with(connection, events, "ON CONFLICT (event_id) DO NOTHING").await
}

async fn insert_with(
    connection: &mut AnyConnection,
    events: &[Arc<StoredEvent>],
    conflict: &str,
) -> Result<(), StorageError> {
    for piece in dialect::pieces(events) {
        let sql = format!(
            "INSERT INTO events ({ROW}) VALUES {} {conflict}",
            dialect::rows(piece.len(), 12)
        );
        let query = piece
            .iter()
            .fold(dialect::query(sql), |query, event| bind(query, event));
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Binds the row of an event.
pub(in crate::storage) fn bind<'q>(
    query: Query<'q, Any, AnyArguments>,
    event: &StoredEvent,
) -> Query<'q, Any, AnyArguments> {
    let before = event.state.map(|state| state.before);
    let after = event
        .state
        .filter(|s| s.after != s.before)
        .map(|state| state.after);
    let head = event
        .state
        .filter(|s| s.head != s.after)
        .map(|state| state.head);
    query
        .bind(event.nid.0)
        .bind(event.pdu.event_id().to_string())
        .bind(event.room_nid.0)
        .bind(event.position)
        .bind(event.pdu.json().get().to_owned())
        .bind(match event.verdict {
            StoredVerdict::Accepted => 0_i64,
            StoredVerdict::SoftFailed => 1,
            StoredVerdict::Rejected => 2,
        })
        .bind(before.map(|id| id.0.to_vec()))
        .bind(after.map(|id| id.0.to_vec()))
        .bind(head.map(|id| id.0.to_vec()))
        .bind(event.replaces.map(|nid| nid.0))
        .bind(event.txn.as_ref().map(|txn| txn.scope.0.clone()))
        .bind(event.txn.as_ref().map(|txn| txn.id.to_string()))
}
