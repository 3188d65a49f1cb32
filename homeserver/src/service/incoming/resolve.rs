//! States where the graph of a room branches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, events::StateEventType};
use sotto_federation::room::{
    auth::auth_types,
    pdu::Pdu,
    state::{self, Outside, ResolveError, StateMap},
};

use super::{bench::Item, difference::Difference, gather::Gathered, place::Placing};
use crate::storage::{
    StorageError,
    state_map::{self, EventNid, NodeId, StateKeyId},
    state_nodes::pair,
};

/// How many events are fetched behind one that turns out to be needed, at first.
const FIRST_REACH: usize = 64;
/// How many events on which all states agree are fetched together.
const AT_ONCE: usize = 64;

/// Where states differ, and what decides on it.
struct Conflict {
    /// Of each state, what not all have.
    sets: Vec<StateMap>,
    /// Of the auth chain of each state, what not all have.
    chains: Vec<BTreeSet<OwnedEventId>>,
    /// What all have.
    agreed: BTreeMap<StateKeyId, EventNid>,
    /// The first number among the events of the sets.
    oldest: Option<EventNid>,
}

impl Placing<'_> {
    /// What several states make together; `None` if that cannot be found out
    /// ([spec](https://spec.matrix.org/v1.19/rooms/v12/#state-resolution)).
    pub(super) async fn resolve(
        &mut self,
        states: &BTreeSet<NodeId>,
    ) -> Result<Option<NodeId>, StorageError> {
        let Some(first) = states.first().copied() else {
            return Ok(Some(state_map::empty().0));
        };
        if states.len() == 1 {
            return Ok(Some(first));
        }
        let mut entries = Vec::with_capacity(states.len());
        for state in states {
            entries.push(self.storage.state_entries(*state).await?);
        }
        let (conflicted, agreed) = split(&entries);
        let mut sets = Vec::with_capacity(entries.len());
        for entries in &entries {
            let nids = conflicted.iter().filter_map(|key| entries.get(key));
            sets.push(self.by_event_id(nids.copied().collect()).await?);
        }
        let conflict = self.conflict(sets, agreed).await?;
        match self.settle(&conflict).await? {
            Some(resolved) => {
                let base = entries.first().map(|entries| (first, entries));
                self.keep_resolved(base, conflicted, &resolved).await
            }
            None => Ok(None),
        }
    }

    /// Finds out what has to be known of a conflict.
    async fn conflict(
        &mut self,
        sets: Vec<StateMap>,
        agreed: BTreeMap<StateKeyId, EventNid>,
    ) -> Result<Conflict, StorageError> {
        let chains = self.auth_difference(&sets, &agreed).await?;
        let differing = sets.iter().flat_map(StateMap::values);
        let nid = |id: &OwnedEventId| self.bench.get(id).map(|item| item.nid);
        let oldest = differing.clone().filter_map(nid).min();
        let checked: BTreeSet<_> = differing.chain(chains.iter().flatten()).cloned().collect();
        self.load_checks(&checked, &agreed).await?;
        Ok(Conflict {
            sets,
            chains,
            agreed,
            oldest,
        })
    }

    /// What becomes of a conflict; `None` if that cannot be found out. The algorithm says what it needs beyond
    /// what is at hand, which is little most of the time, though it may be all that is behind the conflict.
    async fn settle(&mut self, conflict: &Conflict) -> Result<Option<StateMap>, StorageError> {
        let mut reach = FIRST_REACH;
        loop {
            let keys = self.storage.states();
            let unconflicted = |event_type: &StateEventType, state_key: &str| {
                let nid = conflict.agreed.get(&keys.key(event_type, state_key))?;
                Some(self.bench.by_nid(*nid)?.pdu.event_id().to_owned())
            };
            let outside = Outside {
                unconflicted,
                fetch: |id: &EventId| self.bench.pdu(id),
                older: |id: &EventId| {
                    let item = self.bench.get(id);
                    item.is_some_and(|item| Some(item.nid) < conflict.oldest)
                },
            };
            let (sets, chains) = (&conflict.sets, conflict.chains.clone());
            match state::resolve_conflicted(self.rules, sets, chains, outside) {
                Ok(resolved) => return Ok(Some(resolved)),
                Err(ResolveError::MissingEvent(id)) if self.bench.load_back(&id, reach).await? => {
                    reach = reach.saturating_mul(2);
                }
                Err(error) => {
                    let room_id = &self.room.room_id;
                    tracing::warn!(%room_id, %error, "states were not resolved");
                    return Ok(None);
                }
            }
        }
    }

    /// For each state, the events of its auth chain that are not in all the others'.
    async fn auth_difference(
        &mut self,
        sets: &[StateMap],
        agreed: &BTreeMap<StateKeyId, EventNid>,
    ) -> Result<Vec<BTreeSet<OwnedEventId>>, StorageError> {
        let mut walk = Difference::new(sets.len(), agreed.values().copied());
        for (index, set) in sets.iter().enumerate() {
            let state = BTreeSet::from([index]);
            let events = set.values().filter_map(|id| self.bench.get(id));
            let auth = events.flat_map(|item| item.pdu.auth_events().to_vec());
            self.add_auth(&mut walk, auth.collect(), &state).await?;
        }
        while let Some((nid, states)) = walk.next() {
            if self.bench.by_nid(nid).is_none() {
                let ahead = walk.ahead(AT_ONCE).chain([nid]).collect();
                self.bench.load_nids(ahead).await?;
            }
            let auth = self.bench.by_nid(nid);
            let auth = auth.map(|item| item.pdu.auth_events().to_vec());
            self.add_auth(&mut walk, auth.unwrap_or_default(), &states)
                .await?;
        }
        let id = |nid: EventNid| Some(self.bench.by_nid(nid)?.pdu.event_id().to_owned());
        let ids = |nids: BTreeSet<EventNid>| nids.into_iter().filter_map(id).collect();
        Ok(walk.found().into_iter().map(ids).collect())
    }

    async fn add_auth(
        &mut self,
        walk: &mut Difference,
        auth_events: Vec<OwnedEventId>,
        states: &BTreeSet<usize>,
    ) -> Result<(), StorageError> {
        self.bench.load(auth_events.clone()).await?;
        for item in auth_events.iter().filter_map(|id| self.bench.get(id)) {
            walk.add(item.nid, states);
        }
        Ok(())
    }

    /// Fetches the events by which others are checked: those that they name, and the undisputed ones.
    async fn load_checks(
        &mut self,
        events: &BTreeSet<OwnedEventId>,
        agreed: &BTreeMap<StateKeyId, EventNid>,
    ) -> Result<(), StorageError> {
        let items = events.iter().filter_map(|id| self.bench.get(id));
        let auth_events = items.flat_map(|item| item.pdu.auth_events().to_vec());
        self.bench.load(auth_events.collect()).await?;
        let mut wanted = BTreeSet::new();
        let keys = self.storage.states();
        for item in events.iter().filter_map(|id| self.bench.get(id)) {
            let pdu = &item.pdu;
            let (sender, state_key) = (pdu.sender(), pdu.state_key());
            let types = auth_types(
                pdu.event_type(),
                sender,
                state_key,
                pdu.content(),
                self.rules,
            );
            for (event_type, state_key) in types.unwrap_or_default() {
                wanted.extend(agreed.get(&keys.key(&event_type, &state_key)));
            }
        }
        for event_type in [StateEventType::RoomCreate, StateEventType::RoomPowerLevels] {
            wanted.extend(agreed.get(&keys.key(&event_type, "")));
        }
        self.bench
            .load_nids(wanted.into_iter().copied().collect())
            .await
    }

    /// A state with what was resolved in place of what was in conflict.
    async fn keep_resolved(
        &mut self,
        base: Option<(NodeId, &BTreeMap<StateKeyId, EventNid>)>,
        conflicted: BTreeSet<StateKeyId>,
        resolved: &StateMap,
    ) -> Result<Option<NodeId>, StorageError> {
        let Some((base, entries)) = base else {
            return Ok(None);
        };
        let keys = self.storage.states();
        let nid = |id: &OwnedEventId| self.bench.get(id).map(|item| item.nid);
        let resolved: BTreeMap<_, _> = resolved
            .iter()
            .map(|((event_type, state_key), id)| (keys.key(event_type, state_key), nid(id)))
            .collect();
        let changes: BTreeMap<_, _> = conflicted
            .into_iter()
            .map(|key| (key, resolved.get(&key).copied().flatten()))
            .filter(|(key, nid)| entries.get(key).copied() != *nid)
            .collect();
        let made = self.storage.state_change(base, &changes).await?;
        self.nodes.extend(made.nodes);
        Ok(Some(made.root))
    }

    /// A state that is given by the ids of its events, and whether it has all of them. Those that are not at
    /// hand, or that cannot be part of a state, are left out; `None` without a create event.
    async fn state_of_ids(
        &mut self,
        ids: &[OwnedEventId],
    ) -> Result<Option<(NodeId, bool)>, StorageError> {
        let mut state = StateMap::new();
        for item in ids.iter().filter_map(|id| self.bench.get(id)) {
            if let Some(key) = key_of(item)
                && !item.pdu.is_rejected()
            {
                state.insert(key, item.pdu.event_id().to_owned());
            }
        }
        if !state.contains_key(&(StateEventType::RoomCreate, String::new())) {
            return Ok(None);
        }
        let is_whole = state.len() == ids.len();
        Ok(Some((self.keep_state(&state).await?, is_whole)))
    }

    /// The states that the sending server told: the one before an event, or those after the events before it
    /// that are missing. `None` if it did not.
    pub(super) async fn told_states(
        &mut self,
        gathered: &Gathered,
        pdu: &Pdu,
        missing: &[OwnedEventId],
    ) -> Result<Option<Vec<NodeId>>, StorageError> {
        if let Some(ids) = gathered.states.get(pdu.event_id()) {
            let state = self.state_of_ids(ids).await?;
            return Ok(state.map(|(state, _)| vec![state]));
        }
        let mut states = Vec::with_capacity(missing.len());
        for id in missing {
            let (Some(ids), Some(item)) = (gathered.states.get(id), self.bench.get(id).cloned())
            else {
                return Ok(None);
            };
            let Some((before, is_whole)) = self.state_of_ids(ids).await? else {
                return Ok(None);
            };
            // Nobody judged it so far but by its auth events. A part of the state cannot do that: what allows it may
            // be in the rest.
            let is_refused = is_whole && !self.is_allowed(&item.pdu, before).await?;
            let after = self.state_after(before, item.nid, &item.pdu).await?.0;
            states.push(if is_refused { before } else { after });
        }
        Ok(Some(states).filter(|states| !states.is_empty()))
    }

    /// The state after an event, and what the event replaces in it.
    pub(super) async fn state_after(
        &mut self,
        before: NodeId,
        nid: EventNid,
        pdu: &Arc<Pdu>,
    ) -> Result<(NodeId, Option<EventNid>), StorageError> {
        let Some(state_key) = pdu.state_key().filter(|_| !pdu.is_rejected()) else {
            return Ok((before, None));
        };
        let event_type = StateEventType::from(pdu.event_type().to_string());
        let storage = self.storage;
        let key = storage.states().key(&event_type, state_key);
        let replaces = storage.state_get(before, &event_type, state_key).await?;
        let changes = BTreeMap::from([(key, Some(nid))]);
        let made = storage.state_change(before, &changes).await?;
        self.nodes.extend(made.nodes);
        self.state_keys.push((key, pair(&event_type, state_key)));
        storage.event_cache().insert_pending(nid, pdu.clone());
        Ok((made.root, replaces))
    }

    /// The form in which states are resolved.
    async fn by_event_id(&mut self, nids: Vec<EventNid>) -> Result<StateMap, StorageError> {
        self.bench.load_nids(nids.clone()).await?;
        let lost = |nid: &EventNid| {
            StorageError::inconsistent("state_nodes", "node", &format!("event {}", nid.0))
        };
        nids.iter()
            .map(|nid| {
                let item = self.bench.by_nid(*nid).ok_or_else(|| lost(nid))?;
                let key = key_of(item).ok_or_else(|| lost(nid))?;
                Ok((key, item.pdu.event_id().to_owned()))
            })
            .collect()
    }

    /// The form in which states are stored.
    async fn keep_state(&mut self, state: &StateMap) -> Result<NodeId, StorageError> {
        let mut changes = BTreeMap::new();
        for ((event_type, state_key), event_id) in state {
            let key = self.storage.states().key(event_type, state_key);
            changes.insert(key, self.bench.get(event_id).map(|item| item.nid));
            self.state_keys.push((key, pair(event_type, state_key)));
        }
        let empty = state_map::empty().0;
        let made = self.storage.state_change(empty, &changes).await?;
        self.nodes.extend(made.nodes);
        Ok(made.root)
    }
}

fn key_of(item: &Item) -> Option<(StateEventType, String)> {
    let state_key = item.pdu.state_key()?.to_owned();
    Some((item.pdu.event_type().to_string().into(), state_key))
}

/// The keys on which states differ, and the entries on which all agree.
fn split(
    states: &[BTreeMap<StateKeyId, EventNid>],
) -> (BTreeSet<StateKeyId>, BTreeMap<StateKeyId, EventNid>) {
    let (mut conflicted, mut agreed) = (BTreeSet::new(), BTreeMap::new());
    for (key, nid) in states.iter().flatten() {
        if states.iter().all(|state| state.get(key) == Some(nid)) {
            agreed.insert(*key, *nid);
        } else {
            conflicted.insert(*key);
        }
    }
    (conflicted, agreed)
}
