//! One message alone in its transaction, as on a server where few write at once: one trip to the database.

use sqlx::AnyConnection;

use super::{Append, AppendError, Appended, NewEvent, Placement, place};
use crate::storage::{
    StorageError,
    dialect::{self, Dialect, UpdateThenInsert},
    events::{self, Relation},
    rooms,
    writer::Tx,
};

/// Whether an append is one event that changes nothing but the head of its room and relates to nothing, with nothing to reserve.
pub(in crate::storage) fn is_lone(tx: &Tx, append: &Append) -> bool {
    let Append {
        expected: Some(_),
        events,
        outliers,
        nodes,
        state_keys,
        redactions,
        gaps,
        ..
    } = append
    else {
        return false;
    };
    let [event] = events.as_slice() else {
        return false;
    };
    let alone = outliers.is_empty() && nodes.is_empty() && state_keys.is_empty();
    alone
        && redactions.is_empty()
        && gaps.is_empty()
        && is_message(event)
        && tx.counters.have_reserves()
}

fn is_message(event: &NewEvent) -> bool {
    event.placement == Placement::Timeline
        && event.memberships.is_empty()
        && Relation::of(event.judged.pdu()).is_none()
}

/// Carries out an append that is [`is_lone`], in a transaction of its own that it begins and commits.
pub(in crate::storage) async fn apply(
    tx: &mut Tx,
    dialect: Dialect,
    append: Append,
) -> Result<Result<Appended, AppendError>, StorageError> {
    let Append {
        room_nid,
        room_id,
        version,
        expected,
        head,
        events,
        ..
    } = append;
    let events: Vec<_> = events
        .into_iter()
        .map(|event| place(tx, room_nid, &room_id, &version, event))
        .collect();
    for event in &events {
        let statement = dialect.update_then_insert(&parts(&into()));
        let query = events::rows::bind(dialect::query(statement), event)
            .bind(expected)
            .bind(head.version)
            .bind(rooms::joined(&head.extremities))
            .bind(head.state.0.to_vec())
            .bind(head.depth);
        if dialect
            .run_update_then_insert(query, &mut tx.connection)
            .await?
        {
            continue;
        }
        tx.forget_entries();
        let keys: Vec<_> = event.txn.iter().map(|txn| (room_nid, txn)).collect();
        let mut before = events::by_txns(&mut tx.connection, &keys).await?;
        return Ok(Err(match before.pop() {
            Some((_, _, event_id)) => AppendError::Repeated(event_id),
            None => AppendError::HeadMoved,
        }));
    }
    Ok(Ok(Appended { events }))
}

/// Makes a connection ready for [`apply`].
pub(in crate::storage) async fn prepare(
    connection: &mut AnyConnection,
    dialect: Dialect,
) -> Result<(), StorageError> {
    let into = into();
    let parts = parts(&into);
    Ok(dialect
        .prepare_update_then_insert(connection, &parts)
        .await?)
}

fn into() -> String {
    format!("events ({})", events::rows::ROW)
}

fn parts(into: &str) -> UpdateThenInsert<'_> {
    UpdateThenInsert {
        name: "lone_event",
        parameters: 17,
        update: "UPDATE rooms SET head_version = $14, head_extremities = $15, head_state = $16, \
            head_depth = $17 WHERE room_nid = $3 AND head_version = $13 AND NOT EXISTS (SELECT 1 \
            FROM events WHERE txn_id = $12 AND txn_scope = $11 AND room_nid = $3)",
        into,
        values: "$1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12",
        conflict: events::rows::PLACE,
    }
}
