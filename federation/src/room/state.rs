//! What the state of a room is where its graph branches.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::{RoomVersionRules, StateResolutionV2Rules, StateResolutionVersion},
    state_res::{self, utils::event_id_set::EventIdSet},
};

use super::{auth::auth_types, pdu::Pdu};

mod v1;

/// The state of a room: of each type and state key, the event that was last.
pub type StateMap = BTreeMap<(StateEventType, String), OwnedEventId>;

/// Resolves several states of a room into one
/// ([spec](https://spec.matrix.org/v1.19/rooms/v12/#state-resolution)).
///
/// * `state_sets`: the states, one for each branch.
/// * `auth_chains`: for each state, the ids of all events in the auth chains of its events. Ids
///   that are in all chains make no difference and may be left out of all of them. Room version 1
///   does not look at them.
/// * `fetch`: any event of the room.
///
/// The result depends neither on the order of the states nor on that of the chains.
pub fn resolve(
    rules: &RoomVersionRules,
    state_sets: &[StateMap],
    auth_chains: Vec<BTreeSet<OwnedEventId>>,
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Result<StateMap, ResolveError> {
    resolve_among(rules, state_sets, auth_chains, fetch, |_| false)
}

fn resolve_among(
    rules: &RoomVersionRules,
    state_sets: &[StateMap],
    auth_chains: Vec<BTreeSet<OwnedEventId>>,
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
    older: impl Fn(&EventId) -> bool,
) -> Result<StateMap, ResolveError> {
    match &rules.state_res {
        StateResolutionVersion::V1 => v1::resolve(rules, state_sets, fetch),
        StateResolutionVersion::V2(v2) => {
            resolve_v2(rules, *v2, state_sets, auth_chains, fetch, older)
        }
        _ => Err(ResolveError::UnsupportedRoomVersion),
    }
}

fn resolve_v2(
    rules: &RoomVersionRules,
    state_res_rules: StateResolutionV2Rules,
    state_sets: &[StateMap],
    auth_chains: Vec<BTreeSet<OwnedEventId>>,
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
    older: impl Fn(&EventId) -> bool,
) -> Result<StateMap, ResolveError> {
    let maps: Vec<state_res::StateMap<OwnedEventId>> = state_sets
        .iter()
        .map(|set| {
            set.iter()
                .map(|(key, id)| (key.clone(), id.clone()))
                .collect()
        })
        .collect();
    let chains = auth_chains
        .into_iter()
        .map(|chain| chain.into_iter().collect())
        .collect();

    // The algorithm passes over conflicted events that it cannot find. That would give a state on
    // which other servers do not agree.
    let missing = RefCell::new(None);
    let fetch = |id: &EventId| {
        let event = fetch(id);
        if event.is_none() {
            missing.borrow_mut().get_or_insert_with(|| id.to_owned());
        }
        event
    };
    let resolved = state_res::resolve(
        &rules.authorization,
        &state_res_rules,
        &maps,
        chains,
        &fetch,
        |conflicted| conflicted_subgraph(conflicted.values().flatten(), fetch, &older),
    )
    .map_err(|_| ResolveError::Malformed);
    if let Some(event_id) = missing.into_inner() {
        return Err(ResolveError::MissingEvent(event_id));
    }
    Ok(resolved?.into_iter().collect())
}

/// What [`resolve_conflicted`] asks beyond what differs.
#[derive(Clone, Copy, Debug)]
pub struct Outside<U, F, O> {
    /// The event of a key on which all states agree.
    pub unconflicted: U,
    /// Any event of the room.
    pub fetch: F,
    /// Whether an event is known to be older than all that differ: none of those is in its auth chain.
    pub older: O,
}

/// [`resolve`], given only what differs: the work does not grow with what all states agree on.
///
/// * `conflicted_sets`: of each state, the keys for which not all states have the same event.
/// * `auth_chains`: as for [`resolve`], of the whole states; what all chains share may be left out.
///
/// Returns the resolved events of keys on which the states do not agree; a key that is missing
/// there has no event.
pub fn resolve_conflicted(
    rules: &RoomVersionRules,
    conflicted_sets: &[StateMap],
    auth_chains: Vec<BTreeSet<OwnedEventId>>,
    outside: Outside<
        impl Fn(&StateEventType, &str) -> Option<OwnedEventId>,
        impl Fn(&EventId) -> Option<Arc<Pdu>>,
        impl Fn(&EventId) -> bool,
    >,
) -> Result<StateMap, ResolveError> {
    let Outside {
        unconflicted,
        fetch,
        older,
    } = outside;
    let mut sets = conflicted_sets.to_vec();
    let v2_rules = rules.state_res.v2_rules();
    if !v2_rules.is_some_and(|v2| v2.begin_iterative_auth_checks_with_empty_state_map) {
        // The checks start from the unconflicted state, of which they ask for nothing but this.
        let conflicted = conflicted_sets.iter().flat_map(BTreeMap::values);
        let checked_too = v2_rules.map(|_| difference(&auth_chains));
        let checked = conflicted.chain(checked_too.into_iter().flatten());
        let keys = keys_of_checks(checked, rules, &fetch)?;
        for (event_type, state_key) in keys {
            let Some(id) = unconflicted(&event_type, &state_key) else {
                continue;
            };
            for set in &mut sets {
                set.insert((event_type.clone(), state_key.clone()), id.clone());
            }
        }
    }
    let mut resolved = resolve_among(rules, &sets, auth_chains, fetch, older)?;
    resolved.retain(|(event_type, state_key), _| unconflicted(event_type, state_key).is_none());
    Ok(resolved)
}

/// Every key that the authorization of one of these events may ask for, and that of the power
/// levels, by which events are ordered.
fn keys_of_checks<'a>(
    ids: impl Iterator<Item = &'a OwnedEventId>,
    rules: &RoomVersionRules,
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Result<BTreeSet<(StateEventType, String)>, ResolveError> {
    let mut keys = BTreeSet::from([
        (StateEventType::RoomCreate, String::new()),
        (StateEventType::RoomPowerLevels, String::new()),
    ]);
    for id in ids {
        let pdu = fetch(id).ok_or_else(|| ResolveError::MissingEvent(id.clone()))?;
        let (event_type, content) = (pdu.event_type(), pdu.content());
        // A malformed event is passed over by the checks too.
        let types = auth_types(event_type, pdu.sender(), pdu.state_key(), content, rules);
        keys.extend(types.unwrap_or_default());
    }
    Ok(keys)
}

/// The events that are not in all auth chains.
fn difference(auth_chains: &[BTreeSet<OwnedEventId>]) -> impl Iterator<Item = &OwnedEventId> {
    auth_chains
        .iter()
        .flatten()
        .filter(|id| auth_chains.iter().any(|chain| !chain.contains(*id)))
}

/// The events on the paths along `auth_events` from one conflicted event to another, with both
/// ends ([spec](https://spec.matrix.org/v1.19/rooms/v12/#state-resolution)).
///
/// One walk over the auth chains is enough: everything that it meets can be reached from a
/// conflicted event, so what remains to be known is whether a conflicted event can be reached
/// from there.
fn conflicted_subgraph<'a>(
    conflicted: impl Iterator<Item = &'a OwnedEventId>,
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
    older: impl Fn(&EventId) -> bool,
) -> Option<EventIdSet<OwnedEventId>> {
    enum Visit {
        Enter(OwnedEventId),
        Leave(OwnedEventId, Arc<Pdu>),
    }

    let conflicted: BTreeSet<&OwnedEventId> = conflicted.collect();
    let mut leads_to_conflict: BTreeMap<OwnedEventId, bool> = BTreeMap::new();
    let mut stack: Vec<Visit> = conflicted
        .iter()
        .map(|id| Visit::Enter((*id).clone()))
        .collect();
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Enter(id) => {
                if leads_to_conflict.contains_key(&id) {
                    continue;
                }
                let pdu = fetch(&id)?;
                if older(&id) {
                    leads_to_conflict.insert(id, false);
                    continue;
                }
                // Said here already, so that nothing is entered twice, and put right on leaving.
                leads_to_conflict.insert(id.clone(), conflicted.contains(&id));
                stack.push(Visit::Leave(id, Arc::clone(&pdu)));
                stack.extend(pdu.auth_events().iter().cloned().map(Visit::Enter));
            }
            Visit::Leave(id, pdu) => {
                if pdu
                    .auth_events()
                    .iter()
                    .any(|id| leads_to_conflict.get(id) == Some(&true))
                {
                    leads_to_conflict.insert(id, true);
                }
            }
        }
    }
    Some(
        leads_to_conflict
            .into_iter()
            .filter_map(|(id, leads)| leads.then_some(id))
            .collect(),
    )
}

/// Why states cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The room version has another algorithm, which is not known here.
    #[error("state resolution of this room version is not supported")]
    UnsupportedRoomVersion,
    /// This event is needed and was not found.
    #[error("event {0} is missing")]
    MissingEvent(OwnedEventId),
    /// An event that would have been rejected is part of a state.
    #[error("a state has a malformed event")]
    Malformed,
}

#[cfg(test)]
mod ruma_tests;
#[cfg(test)]
mod tests;
