//! Rooms that get the members which were not told with the join: everything that was placed meanwhile moves on
//! top of the whole state, and is judged again. What turns out to be wrong changes nothing any more, and what was
//! rejected without reason is taken in as if it came now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OwnedEventId, RoomId};
use sotto_federation::room::{
    auth::{self, Verdict},
    pdu::Pdu,
    signing::Verified,
    version,
};

use super::{
    Errand, Incoming,
    bench::{Bench, Item},
    gather::Gathered,
    place::{Placing, get},
};
use crate::storage::{
    Families, StorageError,
    append::{Append, AppendError, Gaps, NewOutlier},
    events::{States, StoredEvent, StoredVerdict},
    partial_joins::{Completion, Members, PartialJoin, Rebased, Turn},
    rooms::Head,
    state_map::{Changed, EventNid, NodeId, StateKeyId},
};

/// The members of a room, and what comes with them.
#[derive(Debug)]
pub(crate) struct Whole {
    /// The state before the join, with its members.
    pub(crate) state: Changed,
    pub(crate) state_keys: Vec<(StateKeyId, Vec<u8>)>,
    /// All events of that state and of its auth chain.
    pub(crate) events: Vec<(EventNid, Arc<Pdu>)>,
    /// Those that are not stored.
    pub(crate) outliers: Vec<NewOutlier>,
}

/// From one state onto another.
struct Rebase {
    from: NodeId,
    onto: NodeId,
    /// Events that turned out to be wrong, and so change nothing.
    wrong: BTreeSet<EventNid>,
}

impl Incoming {
    /// Completes a room; false if somebody was in the way.
    pub(crate) async fn complete(
        &self,
        room_id: &RoomId,
        partial: &PartialJoin,
        whole: Whole,
    ) -> Result<bool, StorageError> {
        let lane = self.lane(room_id);
        let _turn = lane.lock().await;
        let slot = self.0.timeline.heads.hold(room_id).await?;
        let Some(mut room) = slot.room().filter(|room| room.partial).cloned() else {
            return Ok(true);
        };
        let rules = version::rules(&room.version);
        let (Some(head), Some(rules)) = (room.head.clone(), rules) else {
            return Ok(true);
        };
        // From here on it is judged as any other.
        room.partial = false;
        let storage = &self.0.storage;
        let bench = Bench::new(room.nid, self.0.timeline.events.clone());
        let (expected, errand) = (head.version, Errand::Told);
        let mut placing = Placing::new(storage, &room, head, &rules, bench, errand);
        for (nid, pdu) in whole.events {
            placing.bench.insert(Item {
                nid,
                pdu,
                after: None,
                stored: None,
            });
        }
        let completion = placing.complete(partial, whole.state.root).await?;
        let again = placing.turned_out_right(&completion);
        let mut nodes = whole.state.nodes;
        nodes.append(&mut placing.nodes);
        let append = Append {
            room_nid: room.nid,
            room_id: room.room_id.clone(),
            version: room.version.clone(),
            expected: Some(expected),
            head: Head {
                version: expected + 1,
                state: completion.after,
                ..placing.head
            },
            events: Vec::new(),
            outliers: whole.outliers,
            nodes,
            state_keys: whole.state_keys,
            redactions: Vec::new(),
            gaps: Gaps {
                members: Some(Members::Came(completion)),
                ..Gaps::default()
            },
        };
        let done = match slot.append(append).await {
            Ok(done) => done.is_some(),
            Err(AppendError::HeadMoved | AppendError::Repeated(_)) => false,
            Err(AppendError::Storage(error)) => return Err(error),
        };
        if done && !again.events.is_empty() {
            self.place(room_id, &rules, &again, errand).await?;
        }
        Ok(done)
    }
}

impl Placing<'_> {
    async fn complete(
        &mut self,
        partial: &PartialJoin,
        onto: NodeId,
    ) -> Result<Completion, StorageError> {
        let mut rebase = Rebase {
            from: partial.state,
            onto,
            wrong: BTreeSet::new(),
        };
        let stored = self.events_since(partial.join).await?;
        let mut events = Vec::with_capacity(stored.len());
        for event in stored.values() {
            let Some(states) = event.state else { continue };
            let nid = event.nid;
            let before = self.rebase(&rebase, states.before).await?;
            // The join was judged by who fetched the members.
            let allowed = nid == partial.join || self.is_allowed(&event.pdu, before).await?;
            let turn = match (event.verdict == StoredVerdict::Rejected, allowed) {
                (false, false) => Turn::Wrong,
                (true, true) => Turn::Right,
                (true, false) | (false, true) => Turn::None,
            };
            if turn != Turn::None {
                tracing::info!(event_id = %event.pdu.event_id(), ?turn, "the members are known");
                self.turn(event, turn)?;
            }
            if turn == Turn::Wrong {
                rebase.wrong.insert(nid);
            }
            let states = States {
                before,
                after: self.rebase(&rebase, states.after).await?,
                head: states.head,
            };
            events.push(Rebased { nid, states, turn });
        }
        self.head.extremities = self.right_extremities(&rebase.wrong).await?;
        if self.head.extremities.is_empty() {
            let join = stored.get(&partial.join);
            let join = join.map(|join| join.pdu.event_id().to_owned());
            self.head.extremities.extend(join);
        }
        let before = self.head.state;
        let after = self.rebase(&rebase, before).await?;
        Ok(Completion {
            events,
            memberships: self.memberships(before, after).await?,
            before,
            after,
        })
    }

    /// From now on, others that name an event as what allows them are judged by what it turned out to be.
    fn turn(&mut self, event: &StoredEvent, turn: Turn) -> Result<(), StorageError> {
        let (id, json) = (event.pdu.event_id().to_owned(), event.pdu.json().to_owned());
        let wrong = |_| StorageError::inconsistent("events", "json", event.pdu.event_id().as_str());
        let pdu = Pdu::from_storage(id, json, turn == Turn::Wrong).map_err(wrong)?;
        self.bench.insert(Item {
            nid: event.nid,
            pdu: Arc::new(pdu),
            after: event.state.map(|states| states.after),
            stored: None,
        });
        Ok(())
    }

    /// The events that were rejected without reason.
    fn turned_out_right(&self, completion: &Completion) -> Gathered {
        let events = completion.events.iter();
        let right = events.filter(|event| event.turn == Turn::Right);
        let items = right.filter_map(|event| self.bench.by_nid(event.nid));
        let pdus = items.map(|item| (item.pdu.event_id().to_owned(), (*item.pdu).clone()));
        Gathered {
            events: pdus.collect(),
            ..Gathered::default()
        }
    }

    /// The forward extremities; instead of events that turned out to be wrong, what those build on.
    async fn right_extremities(
        &mut self,
        wrong: &BTreeSet<EventNid>,
    ) -> Result<Vec<OwnedEventId>, StorageError> {
        let (mut right, mut seen) = (Vec::new(), BTreeSet::new());
        let mut next = self.head.extremities.clone();
        while let Some(id) = next.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            self.bench.load(vec![id.clone()]).await?;
            match self.bench.get(&id).filter(|item| item.after.is_some()) {
                Some(item) if wrong.contains(&item.nid) => {
                    next.extend(item.pdu.prev_events().iter().cloned());
                }
                Some(_) => right.push(id),
                None => {}
            }
        }
        Ok(right)
    }

    /// The events that got their places since the join, and the join.
    async fn events_since(
        &mut self,
        join: EventNid,
    ) -> Result<BTreeMap<EventNid, Arc<StoredEvent>>, StorageError> {
        // Events of local users whose commit is under way: this write comes after them.
        let barrier = self
            .storage
            .write(|_| Box::pin(async { Ok::<_, StorageError>(()) }));
        barrier.await?;
        let mut reader = self.storage.read().await?;
        let room = self.room.nid;
        let nids = reader.partial_joins().events_since(room, join).await?;
        drop(reader);
        self.bench.load_nids(nids.clone()).await?;
        let stored = |nid| self.bench.by_nid(nid)?.stored.clone();
        Ok(nids
            .iter()
            .filter_map(|nid| Some((*nid, stored(*nid)?)))
            .collect())
    }

    /// A state with the members: what differs from the state without them differs from the one with them.
    async fn rebase(&mut self, rebase: &Rebase, state: NodeId) -> Result<NodeId, StorageError> {
        let differences = self.storage.state_difference(rebase.from, state).await?;
        let right = differences
            .into_iter()
            .filter(|differs| differs.after.is_none_or(|nid| !rebase.wrong.contains(&nid)));
        let changes = right.map(|differs| (differs.key, differs.after)).collect();
        let made = self.storage.state_change(rebase.onto, &changes).await?;
        self.nodes.extend(made.nodes);
        Ok(made.root)
    }

    /// Whether a state allows an event.
    pub(super) async fn is_allowed(
        &mut self,
        pdu: &Pdu,
        before: NodeId,
    ) -> Result<bool, StorageError> {
        self.bench.load(pdu.auth_events().to_vec()).await?;
        let state = self.auth_state(before, pdu).await?;
        let at_hand = |id: &ruma::EventId| self.bench.auth_event(id);
        let part = |event_type: &_, key: &_| get(&state, event_type, key);
        let verified = Verified::from_stored(pdu.clone());
        let judged = auth::judge(verified, &at_hand, part, part, self.rules);
        Ok(!matches!(judged.verdict(), Verdict::Rejected(_)))
    }
}
