//! Appending events to rooms: the head of each room is compared and swapped, and what many appends have in
//! common is written with one statement.

pub(super) mod lone;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, events::room::member::MembershipState,
};
use sotto_federation::room::{
    auth::{Judged, JudgedOutlier, Verdict},
    pdu::Pdu,
};

use super::{
    StorageError, dialect,
    events::{self, StoredEvent, Txn},
    inbound::Inbound,
    log::{Change, StreamPosition},
    partial_joins::{self, Members},
    relations,
    rooms::{self, Head, RoomNid},
    roster::{Membership, Place, ToldServers},
    search_words,
    state_map::{EventNid, Node, NodeId, StateKeyId},
    writer::Tx,
};

/// Events to add to one room, in order.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) room_nid: RoomNid,
    pub(crate) room_id: OwnedRoomId,
    pub(crate) version: RoomVersionId,
    /// The version of the head that everything here was decided upon; `None` to make the room.
    pub(crate) expected: Option<i64>,
    /// The head afterwards.
    pub(crate) head: Head,
    pub(crate) events: Vec<NewEvent>,
    /// Events without a place in the graph of the room as we have it, such as the auth chain of a join.
    pub(crate) outliers: Vec<NewOutlier>,
    pub(crate) nodes: Vec<(NodeId, Arc<Node>)>,
    pub(crate) state_keys: Vec<(StateKeyId, Vec<u8>)>,
    /// Redactions that take effect with these events.
    pub(crate) redactions: Vec<Redaction>,
    pub(crate) gaps: Gaps,
}

/// What events leave open in the graph of a room, and what they close.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Events that stored ones build on and that are not there.
    pub(crate) missing: Vec<OwnedEventId>,
    /// Events that were missing, and are not any more.
    pub(crate) closed: Vec<OwnedEventId>,
    /// Redactions of events that are not there: the event, and its redaction.
    pub(crate) redactions: Vec<(OwnedEventId, OwnedEventId)>,
    /// What becomes of members that were not told.
    pub(crate) members: Option<Members>,
}

impl Gaps {
    fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.closed.is_empty()
            && self.redactions.is_empty()
            && self.members.is_none()
    }
}

/// An event that is pruned.
#[derive(Clone, Debug)]
pub(crate) struct Redaction {
    pub(crate) target: EventNid,
    pub(crate) pruned: Arc<Pdu>,
    pub(crate) by: OwnedEventId,
}

/// An event with what was decided about it.
#[derive(Debug)]
pub(crate) struct NewEvent {
    pub(crate) nid: EventNid,
    pub(crate) judged: Judged,
    pub(crate) placement: Placement,
    pub(crate) state_before: NodeId,
    pub(crate) state_after: NodeId,
    /// The current state of the room before this event is added.
    pub(crate) head_before: NodeId,
    /// The current state of the room once this event is in.
    pub(crate) head_state: NodeId,
    /// The state event that this one replaces.
    pub(crate) replaces: Option<EventNid>,
    /// The memberships that change in the current state, with the event that says so.
    pub(crate) memberships: Vec<(OwnedUserId, MembershipState, EventNid)>,
    pub(crate) txn: Option<Txn>,
}

/// An event outside of the graph.
#[derive(Debug)]
pub(crate) struct NewOutlier {
    pub(crate) nid: EventNid,
    pub(crate) judged: JudgedOutlier,
}

/// Where clients find an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// At the end of the timeline, if it was accepted.
    Timeline,
    /// Before everything that the room has so far.
    Past,
}

/// The events as they are stored now.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) events: Vec<Arc<StoredEvent>>,
}

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// The room went on since its head was read: gather and decide again.
    #[error("the head of the room has moved")]
    HeadMoved,
    /// A local client made an event with this transaction id before.
    #[error("the transaction was carried out before")]
    Repeated(OwnedEventId),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Applies appends in order; one result for each. An error means that the transaction is lost.
pub(super) async fn apply(
    tx: &mut Tx,
    appends: Vec<Append>,
) -> Result<Vec<Result<Appended, AppendError>>, StorageError> {
    let mut repeated = repeated(tx, &appends).await?;
    let swapped = swap_heads(tx, &appends, &repeated).await?;
    let mut results = Vec::with_capacity(appends.len());
    let mut rows = Rows::default();
    for (index, (append, swapped)) in appends.into_iter().zip(swapped).enumerate() {
        if let Some(event_id) = repeated.remove(&index) {
            results.push(Err(AppendError::Repeated(event_id)));
            continue;
        }
        if !swapped {
            results.push(Err(AppendError::HeadMoved));
            continue;
        }
        let Append {
            room_nid,
            room_id,
            version,
            events,
            outliers,
            nodes,
            state_keys,
            redactions,
            mut gaps,
            ..
        } = append;
        let members = gaps.members.take();
        tell_servers(tx, &room_id, members.as_ref());
        if !gaps.is_empty() {
            rows.gaps.push((room_nid, gaps));
        }
        rows.nodes.extend(nodes);
        rows.state_keys.extend(state_keys);
        for outlier in outliers {
            rows.outliers
                .push(Arc::new(StoredEvent::outlier(room_nid, outlier, &version)));
        }
        let events: Vec<_> = events
            .into_iter()
            .map(|event| place(tx, room_nid, &room_id, &version, event))
            .collect();
        rows.events.extend(events.iter().cloned());
        // After the events: one may be redacted as it comes.
        for redaction in redactions {
            tx.log(Change::Redacted {
                room_id: room_id.clone(),
                target: redaction.target,
            });
            rows.redactions.push(redaction);
        }
        rows.memberships
            .extend(events.iter().flat_map(|event| membership_rows(event)));
        rows.members
            .extend(members.map(|members| (room_nid, room_id, members)));
        results.push(Ok(Appended { events }));
    }
    rows.insert(tx).await?;
    Ok(results)
}

fn membership_rows(event: &StoredEvent) -> impl Iterator<Item = (RoomNid, Membership, EventNid)> {
    let rows = event.memberships.iter().zip(&event.membership_nids);
    rows.map(|(membership, nid)| (event.room_nid, membership.clone(), *nid))
}

/// Says which servers are in a room, before anything that they have to be told of.
fn tell_servers(tx: &mut Tx, room_id: &OwnedRoomId, members: Option<&Members>) {
    let servers = match members {
        Some(Members::Missing(partial)) => partial.servers.clone(),
        Some(Members::Known) => Vec::new(),
        Some(Members::Came(_)) | None => return,
    };
    let since = tx.next_position();
    let told = ToldServers {
        room_id: room_id.clone(),
        servers,
        since,
    };
    tx.log_at(since, Change::ToldServers(Arc::new(told)));
}

/// Gives an event its place in the log.
#[expect(clippy::similar_names, reason = "the number of a room, and its id")]
fn place(
    tx: &mut Tx,
    room_nid: RoomNid,
    room_id: &OwnedRoomId,
    version: &RoomVersionId,
    event: NewEvent,
) -> Arc<StoredEvent> {
    let accepted = matches!(event.judged.verdict(), Verdict::Accepted);
    let memberships = |position: StreamPosition,
                       rows: &[(OwnedUserId, MembershipState, EventNid)]| {
        let row =
            |(user_id, membership, _): &(OwnedUserId, MembershipState, EventNid)| Membership {
                room_id: room_id.clone(),
                user_id: user_id.clone(),
                place: Place::new(membership.clone(), position),
            };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    match event.placement {
        Placement::Timeline if accepted => {
            let position = tx.next_position();
            let rows = memberships(position, &event.memberships);
            let event = Arc::new(StoredEvent::new(
                room_nid,
                event,
                Some(position.0),
                rows,
                version,
            ));
            tx.log_at(position, Change::Event(event.clone()));
            event
        }
        Placement::Past if accepted => {
            let past = tx.counters.next_past();
            Arc::new(StoredEvent::new(
                room_nid,
                event,
                Some(past),
                Vec::new(),
                version,
            ))
        }
        Placement::Timeline | Placement::Past => {
            Arc::new(StoredEvent::new(room_nid, event, None, Vec::new(), version))
        }
    }
}

/// Which of the appends a client sent before, by the ids of its transactions: already stored, or in this
/// very batch.
async fn repeated(
    tx: &mut Tx,
    appends: &[Append],
) -> Result<BTreeMap<usize, OwnedEventId>, StorageError> {
    let mut found = BTreeMap::new();
    let mut asked: HashMap<(RoomNid, &Txn), (usize, OwnedEventId)> = HashMap::new();
    for (index, append) in appends.iter().enumerate() {
        for event in &append.events {
            let Some(txn) = &event.txn else { continue };
            match asked.entry((append.room_nid, txn)) {
                Entry::Occupied(first) => {
                    found.insert(index, first.get().1.clone());
                }
                Entry::Vacant(first) => {
                    first.insert((index, event.judged.pdu().event_id().to_owned()));
                }
            }
        }
    }
    let keys: Vec<_> = asked.keys().copied().collect();
    for (room_nid, txn, event_id) in events::by_txns(&mut tx.connection, &keys).await? {
        for (index, append) in appends.iter().enumerate() {
            let same = |event: &NewEvent| event.txn.as_ref() == Some(&txn);
            if append.room_nid == room_nid && append.events.iter().any(same) {
                found.insert(index, event_id.clone());
            }
        }
    }
    Ok(found)
}

/// Which of the appends may go on: those whose chain of heads, room by room, starts at the head that the
/// database has.
async fn swap_heads(
    tx: &mut Tx,
    appends: &[Append],
    repeated: &BTreeMap<usize, OwnedEventId>,
) -> Result<Vec<bool>, StorageError> {
    let mut may = vec![false; appends.len()];
    // room → (index of the first, version expected by it, index of the last of the chain)
    let mut chains: HashMap<RoomNid, (Option<i64>, usize)> = HashMap::new();
    for (index, append) in appends.iter().enumerate() {
        if repeated.contains_key(&index) {
            continue;
        }
        match chains.get_mut(&append.room_nid) {
            None => {
                chains.insert(append.room_nid, (append.expected, index));
                may[index] = true;
            }
            Some((_, last)) => {
                if append.expected == Some(appends[*last].head.version) {
                    *last = index;
                    may[index] = true;
                }
            }
        }
    }
    let mut swaps = Vec::new();
    let mut made = BTreeSet::new();
    for (room_nid, (expected, last)) in &chains {
        let append = &appends[*last];
        match expected {
            None if rooms::insert(&mut tx.connection, append).await? => {
                made.insert(*room_nid);
            }
            None => {}
            Some(expected) => swaps.push((*room_nid, *expected, &append.head)),
        }
    }
    let swapped = rooms::swap_heads(&mut tx.connection, &swaps).await?;
    for (index, append) in appends.iter().enumerate() {
        let room_nid = &append.room_nid;
        may[index] &= swapped.contains(room_nid) || made.contains(room_nid);
    }
    Ok(may)
}

/// What all appends of a batch insert.
#[derive(Default)]
struct Rows {
    outliers: Vec<Arc<StoredEvent>>,
    events: Vec<Arc<StoredEvent>>,
    nodes: Vec<(NodeId, Arc<Node>)>,
    state_keys: Vec<(StateKeyId, Vec<u8>)>,
    memberships: Vec<(RoomNid, Membership, EventNid)>,
    redactions: Vec<Redaction>,
    gaps: Vec<(RoomNid, Gaps)>,
    members: Vec<(RoomNid, OwnedRoomId, Members)>,
}

impl Rows {
    async fn insert(self, tx: &mut Tx) -> Result<(), StorageError> {
        events::rows::insert_outliers(&mut tx.connection, &self.outliers).await?;
        events::rows::insert(&mut tx.connection, &self.events).await?;
        relations::insert(&mut tx.connection, &self.events).await?;
        for piece in dialect::pieces(&self.nodes) {
            let sql = format!(
                "INSERT INTO state_nodes (id, node) VALUES {} ON CONFLICT (id) DO NOTHING",
                dialect::rows(piece.len(), 2)
            );
            let query = piece.iter().fold(dialect::query(sql), |query, (id, node)| {
                query.bind(id.0.to_vec()).bind(node.encode())
            });
            query.execute(&mut *tx.connection).await?;
        }
        for piece in dialect::pieces(&self.state_keys) {
            let sql = format!(
                "INSERT INTO state_keys (id, pair) VALUES {} ON CONFLICT (id) DO NOTHING",
                dialect::rows(piece.len(), 2)
            );
            let query = piece.iter().fold(dialect::query(sql), |query, (id, pair)| {
                query.bind(id.0.cast_signed()).bind(pair.clone())
            });
            query.execute(&mut *tx.connection).await?;
        }
        for redaction in &self.redactions {
            search_words::forget(&mut tx.connection, redaction.target).await?;
            events::rows::redact(&mut tx.connection, redaction).await?;
            relations::forget(&mut tx.connection, redaction.target).await?;
        }
        for (room_nid, gaps) in &self.gaps {
            let mut inbound = Inbound(&mut tx.connection);
            inbound.add_missing(*room_nid, &gaps.missing).await?;
            inbound.remove_missing(*room_nid, &gaps.closed).await?;
            inbound.add_redactions(&gaps.redactions).await?;
        }
        let mut memberships = self.memberships;
        for (room_nid, room_id, members) in self.members {
            let came = partial_joins::apply(tx, room_nid, &room_id, members).await?;
            memberships.extend(came.into_iter().map(|(row, nid)| (room_nid, row, nid)));
        }
        // A user may change twice in one batch: the last one counts, and one statement must not touch
        // a row twice.
        let mut last: HashMap<_, _> = HashMap::new();
        for (room_nid, membership, nid) in memberships {
            last.insert(
                (room_nid, membership.user_id.clone()),
                (room_nid, membership, nid),
            );
        }
        let rows: Vec<_> = last.into_values().collect();
        super::memberships::upsert(&mut tx.connection, &rows).await
    }
}
