//! Giving events their places: the state before each, the verdict, what becomes of the room.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    OwnedEventId, OwnedUserId, RoomId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};
use sotto_federation::room::{
    auth::{self, Judged, Verdict, create_event_id},
    pdu::Pdu,
    signing::Verified,
};

use super::{
    Errand, Incoming, Outcomes, Refused,
    bench::{Bench, Item},
    gather::Gathered,
    order::order,
};
use crate::{
    service::timeline::AuthState,
    storage::{
        Families, Storage, StorageError,
        append::{NewEvent, NewOutlier, Placement, Redaction},
        events::{Txn, TxnScope},
        rooms::{Head, Room},
        state_map::{self, EventNid, Node, NodeId, StateKeyId},
    },
};

/// How often events are placed again because somebody else was first.
const ATTEMPTS: usize = 16;

/// What is decided with the room in hand.
pub(super) struct Placing<'a> {
    pub(super) storage: &'a Storage,
    pub(super) room: &'a Room,
    pub(super) rules: &'a RoomVersionRules,
    pub(super) bench: Bench,
    pub(super) errand: Errand<'a>,
    /// The head as the events so far make it.
    pub(super) head: Head,
    pub(super) events: Vec<NewEvent>,
    pub(super) outliers: Vec<NewOutlier>,
    pub(super) nodes: Vec<(NodeId, Arc<Node>)>,
    pub(super) state_keys: Vec<(StateKeyId, Vec<u8>)>,
    pub(super) redactions: Vec<Redaction>,
    /// Redactions whose targets are not there.
    pub(super) waiting: Vec<Waits>,
    /// Redactions that waited for events that are placed now.
    pub(super) waited: Vec<(OwnedEventId, OwnedEventId)>,
    /// Events to be placed that stored ones build on, if only by way of others.
    pub(super) behind: BTreeSet<OwnedEventId>,
    /// Events that remain missing.
    pub(super) missing: BTreeSet<OwnedEventId>,
    pub(super) outcomes: Outcomes,
}

/// A redaction that waits for its event.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    pub(super) target: OwnedEventId,
    pub(super) by: OwnedEventId,
    pub(super) sender: OwnedUserId,
    /// What decides on whether it may redact.
    pub(super) auth: AuthState,
}

impl Incoming {
    /// Judges and appends gathered events.
    pub(super) async fn place(
        &self,
        room_id: &RoomId,
        rules: &RoomVersionRules,
        gathered: &Gathered,
        errand: Errand<'_>,
    ) -> Result<Outcomes, StorageError> {
        for _ in 0..ATTEMPTS {
            let slot = self.0.timeline.heads.hold(room_id).await?;
            let Some(room) = slot.room().cloned() else {
                break;
            };
            let Some(head) = room.head.clone() else { break };
            let bench = Bench::new(room.nid, self.0.timeline.events.clone());
            let mut placing = Placing::new(&self.0.storage, &room, head, rules, bench, errand);
            if !placing.load(gathered).await? {
                drop(slot);
                continue;
            }
            for event_id in order(gathered) {
                placing.add(gathered, &event_id).await?;
            }
            if let Some(outcomes) = placing.append(slot).await? {
                return Ok(outcomes);
            }
        }
        let busy = |id: &OwnedEventId| (id.clone(), Err(Refused::Busy));
        Ok(gathered.events.keys().map(busy).collect())
    }
}

impl<'a> Placing<'a> {
    pub(super) fn new(
        storage: &'a Storage,
        room: &'a Room,
        head: Head,
        rules: &'a RoomVersionRules,
        bench: Bench,
        errand: Errand<'a>,
    ) -> Self {
        Self {
            storage,
            room,
            rules,
            bench,
            errand,
            head,
            events: Vec::new(),
            outliers: Vec::new(),
            nodes: Vec::new(),
            state_keys: Vec::new(),
            redactions: Vec::new(),
            waiting: Vec::new(),
            waited: Vec::new(),
            behind: BTreeSet::new(),
            missing: BTreeSet::new(),
            outcomes: Outcomes::new(),
        }
    }

    /// Fetches what the events refer to. False if the head is not to be had: what it stands on was not
    /// committed.
    async fn load(&mut self, gathered: &Gathered) -> Result<bool, StorageError> {
        let extremities = self.head.extremities.clone();
        self.bench.load(extremities.clone()).await?;
        if extremities.iter().any(|id| self.bench.get(id).is_none()) {
            // Events of local users whose commit is under way: this write comes after them.
            let barrier = self
                .storage
                .write(|_| Box::pin(async { Ok::<_, StorageError>(()) }));
            barrier.await?;
            self.bench.load(extremities.clone()).await?;
            if extremities.iter().any(|id| self.bench.get(id).is_none()) {
                return Ok(false);
            }
        }
        let create = create_event_id(&self.room.room_id, self.rules);
        let pdus = gathered.events.values().chain(gathered.outliers.values());
        let targets: Vec<_> = pdus
            .clone()
            .filter_map(|pdu| pdu.redacts(self.rules))
            .collect();
        let referred = pdus.flat_map(|pdu| pdu.prev_events().iter().chain(pdu.auth_events()));
        let own = gathered.events.keys().chain(gathered.outliers.keys());
        let all = referred
            .chain(own)
            .chain(gathered.states.values().flatten())
            .chain(&targets)
            .chain(&create);
        let all = all.cloned().collect();
        self.bench.load(all).await?;
        let new: Vec<_> = gathered.events.keys().cloned().collect();
        let mut reader = self.storage.read().await?;
        let behind = reader.inbound().missing_among(self.room.nid, &new).await?;
        self.behind = with_ancestors(gathered, behind.into_iter().collect());
        self.waited = reader.inbound().redactions_of(&new).await?;
        drop(reader);
        let redactions: Vec<_> = self.waited.iter().map(|pair| pair.1.clone()).collect();
        self.bench.load(redactions).await?;
        Ok(true)
    }

    /// Judges one event.
    async fn add(
        &mut self,
        gathered: &Gathered,
        event_id: &OwnedEventId,
    ) -> Result<(), StorageError> {
        if let Some(pdu) = gathered.events.get(event_id) {
            let outcome = match self.bench.get(event_id).and_then(|item| item.after) {
                // It came in another way meanwhile.
                Some(_) => Ok(()),
                None => self.add_event(gathered, pdu).await?,
            };
            self.outcomes.insert(event_id.clone(), outcome);
        } else if let Some(pdu) = gathered.outliers.get(event_id)
            && self.bench.get(event_id).is_none()
        {
            let verified = Verified::from_stored(pdu.clone());
            let at_hand = |id: &ruma::EventId| self.bench.auth_event(id);
            if auth::missing_auth_events(&verified, &at_hand, self.rules).is_empty() {
                let judged = auth::judge_outlier(verified, &at_hand, self.rules);
                let nid = self.storage.counters().next_nid();
                self.bench.insert(Item {
                    nid,
                    pdu: Arc::new(judged.pdu().clone()),
                    after: None,
                    stored: None,
                });
                self.outliers.push(NewOutlier { nid, judged });
            }
        }
        Ok(())
    }

    async fn add_event(
        &mut self,
        gathered: &Gathered,
        pdu: &Pdu,
    ) -> Result<Result<(), Refused>, StorageError> {
        let verified = Verified::from_stored(pdu.clone());
        let at_hand = |id: &ruma::EventId| self.bench.auth_event(id);
        if !auth::missing_auth_events(&verified, &at_hand, self.rules).is_empty() {
            return Ok(Err(Refused::MissingAuthEvents));
        }
        let before = match self.state_before(gathered, pdu).await? {
            Ok(before) => before,
            Err(refused) => return Ok(Err(refused)),
        };
        let auth_before = self.auth_state(before, pdu).await?;
        // What was allowed when it happened is history, whoever may do what by now: only news soft-fail.
        let now = if self.is_past(pdu) {
            before
        } else {
            self.head.state
        };
        let auth_now = self.auth_state(now, pdu).await?;
        let at_hand = |id: &ruma::EventId| self.bench.auth_event(id);
        let get_before = |event_type: &_, key: &_| get(&auth_before, event_type, key);
        let get_now = |event_type: &_, key: &_| get(&auth_now, event_type, key);
        let mut judged = auth::judge(verified, &at_hand, get_before, get_now, self.rules);
        if gathered.unwanted.contains(pdu.event_id()) && !self.is_past(pdu) {
            judged = judged.refused_by_policy_server();
        }
        let outcome = match judged.verdict() {
            Verdict::Rejected(rejection) => Err(Refused::Rejected(rejection.clone())),
            Verdict::Accepted | Verdict::SoftFailed(_) => Ok(()),
        };
        let mut redacted_by = None;
        if judged.verdict().is_accepted() {
            self.redact(&judged, &auth_before)?;
            redacted_by = self.redacted_before_it_came(&judged).await?;
        }
        if redacted_by.is_some() {
            let wrong = |_| StorageError::inconsistent("events", "json", pdu.event_id().as_str());
            judged = judged.redacted(self.rules).map_err(wrong)?;
        }
        let pruned = Arc::new(judged.pdu().clone());
        let target = self.put(judged, before).await?;
        self.redactions
            .extend(redacted_by.map(|by| Redaction { target, pruned, by }));
        Ok(outcome)
    }

    /// The state before an event: what its previous events leave behind, and where some of them are
    /// missing, what the sending server said.
    async fn state_before(
        &mut self,
        gathered: &Gathered,
        pdu: &Pdu,
    ) -> Result<Result<NodeId, Refused>, StorageError> {
        let after = |id: &OwnedEventId| self.bench.get(id).and_then(|item| item.after);
        let mut states: BTreeSet<_> = pdu.prev_events().iter().filter_map(after).collect();
        let missing: Vec<_> = pdu
            .prev_events()
            .iter()
            .filter(|id| after(id).is_none())
            .cloned()
            .collect();
        if pdu.prev_events().is_empty() && self.is_create_event(pdu).await? {
            return Ok(Ok(state_map::empty().0));
        }
        if self.room.partial && !missing.is_empty() {
            // Nobody is asked for a state before all members are fetched anyway.
            states.insert(self.head.state);
        } else if !missing.is_empty() || pdu.prev_events().is_empty() {
            match self.told_states(gathered, pdu, &missing).await? {
                Some(told) => states.extend(told),
                None => return Ok(Err(Refused::MissingPrevEvents)),
            }
        }
        let resolved = self.resolve(&states).await?;
        if resolved.is_some() {
            self.missing.extend(missing);
        }
        Ok(resolved.ok_or(Refused::Unresolvable))
    }

    /// Whether an event is the one with which the room begins, as its current state has it. Any other that
    /// claims to be is none: whoever could begin the room again would own it.
    async fn is_create_event(&self, pdu: &Pdu) -> Result<bool, StorageError> {
        let create = StateEventType::RoomCreate;
        let nid = self.storage.state_get(self.head.state, &create, "").await?;
        let item = self.bench.get(pdu.event_id());
        Ok(item.is_some_and(|item| Some(item.nid) == nid))
    }

    /// Whether an event belongs before what is here.
    fn is_past(&self, pdu: &Pdu) -> bool {
        self.errand == Errand::History || self.behind.contains(pdu.event_id())
    }

    /// The parts of a state that decide on an event.
    pub(super) async fn auth_state(
        &mut self,
        state: NodeId,
        pdu: &Pdu,
    ) -> Result<AuthState, StorageError> {
        let types = auth::auth_types(
            pdu.event_type(),
            pdu.sender(),
            pdu.state_key(),
            pdu.content(),
            self.rules,
        );
        let create = (StateEventType::RoomCreate, String::new());
        let levels = (StateEventType::RoomPowerLevels, String::new());
        let mut found = AuthState::new();
        let types = types.unwrap_or_default().into_iter();
        for key in types.chain([create, levels]) {
            if found.contains_key(&key) {
                continue;
            }
            let nid = self.storage.state_get(state, &key.0, &key.1).await?;
            let part = match nid {
                Some(nid) => self.pdu_of(nid).await?,
                // As long as it is not known who the members are, who says so is believed, if the room
                // allowed it once: with the members all of this is judged again.
                None if self.room.partial => self.named(pdu, &key),
                None => None,
            };
            found.extend(part.map(|part| (key, part)));
        }
        Ok(found)
    }

    /// The membership that an event names as what allows it.
    fn named(&self, pdu: &Pdu, (event_type, key): &(StateEventType, String)) -> Option<Arc<Pdu>> {
        let auth_events = pdu.auth_events().iter();
        let mut named = auth_events.filter_map(|id| self.bench.pdu(id));
        named.find(|pdu| {
            *event_type == StateEventType::RoomMember
                && *pdu.event_type() == TimelineEventType::RoomMember
                && pdu.state_key() == Some(key)
                && !pdu.is_rejected()
        })
    }

    pub(super) async fn pdu_of(&mut self, nid: EventNid) -> Result<Option<Arc<Pdu>>, StorageError> {
        if let Some(pdu) = self.storage.event_cache().pending(nid) {
            return Ok(Some(pdu));
        }
        self.bench.load_nids(vec![nid]).await?;
        Ok(self.bench.by_nid(nid).map(|item| item.pdu.clone()))
    }

    /// Puts a judged event into the graph, and finds out what the room becomes.
    async fn put(&mut self, judged: Judged, before: NodeId) -> Result<EventNid, StorageError> {
        let pdu = Arc::new(judged.pdu().clone());
        let known = self.bench.get(pdu.event_id()).map(|item| item.nid);
        let nid = known.unwrap_or_else(|| self.storage.counters().next_nid());
        let (after, replaces) = self.state_after(before, nid, &pdu).await?;
        self.bench.insert(Item {
            nid,
            pdu: pdu.clone(),
            after: Some(after),
            stored: None,
        });
        let handed_in = self.errand == Errand::HandedIn(pdu.event_id());
        let txn = handed_in.then(|| Txn {
            scope: TxnScope::handed_in(),
            id: pdu.event_id().as_str().into(),
        });
        let head_before = self.head.state;
        let behind = self.is_past(&pdu);
        if judged.verdict().is_accepted() && !behind {
            self.advance(&pdu).await?;
        }
        let memberships = self.memberships(head_before, self.head.state).await?;
        self.events.push(NewEvent {
            nid,
            judged,
            placement: if behind {
                Placement::Past
            } else {
                Placement::Timeline
            },
            state_before: before,
            state_after: after,
            head_before,
            head_state: self.head.state,
            replaces,
            memberships,
            txn,
        });
        Ok(nid)
    }

    /// Makes an accepted event a forward extremity: the state of the room is what all of them leave
    /// behind. Where that cannot be found out, the room stays as it is.
    async fn advance(&mut self, pdu: &Pdu) -> Result<(), StorageError> {
        let mut extremities = self.head.extremities.clone();
        extremities.retain(|id| !pdu.prev_events().contains(id));
        extremities.push(pdu.event_id().to_owned());
        let after = |id: &OwnedEventId| self.bench.get(id).and_then(|item| item.after);
        let states = extremities.iter().filter_map(after).collect();
        if let Some(state) = self.resolve(&states).await? {
            self.head.state = state;
            self.head.extremities = extremities;
            let depth = i64::try_from(pdu.depth()).unwrap_or(i64::MAX - 1);
            self.head.depth = self.head.depth.max(depth);
        }
        Ok(())
    }
}

/// Events, and those among the gathered ones on which they build.
fn with_ancestors(gathered: &Gathered, events: Vec<OwnedEventId>) -> BTreeSet<OwnedEventId> {
    let (mut open, mut all) = (events, BTreeSet::new());
    while let Some(id) = open.pop() {
        if let Some(pdu) = gathered.events.get(&id)
            && all.insert(id)
        {
            open.extend(pdu.prev_events().iter().cloned());
        }
    }
    all
}

pub(super) fn get(state: &AuthState, event_type: &StateEventType, key: &str) -> Option<Arc<Pdu>> {
    state.get(&(event_type.clone(), key.to_owned())).cloned()
}
