//! State resolution of room version 1
//! ([spec](https://spec.matrix.org/v1.19/rooms/v1/#state-resolution)).
//!
//! What the specification leaves open is done as the servers do that made these rooms: members are
//! resolved one by one, not seeing each other; a state that does not have a key does not conflict
//! with those that do; and where no event of a key is allowed, the one of least depth remains.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, events::StateEventType, room_version_rules::RoomVersionRules};
use sha1::{Digest, Sha1};

use super::{ResolveError, StateMap};
use crate::room::{auth::is_allowed, pdu::Pdu};

type Key = (StateEventType, String);

pub(super) fn resolve(
    rules: &RoomVersionRules,
    state_sets: &[StateMap],
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Result<StateMap, ResolveError> {
    let mut resolution = Resolution {
        rules,
        fetch,
        resolved: StateMap::new(),
    };
    let mut conflicted = resolution.begin(state_sets)?;

    let levels = (StateEventType::RoomPowerLevels, String::new());
    resolution.pass(&mut conflicted, |key| *key == levels, Pick::LastOfChain)?;
    let is_rule = |key: &Key| key.0 == StateEventType::RoomJoinRules;
    resolution.pass(&mut conflicted, is_rule, Pick::LastOfChain)?;
    let is_member = |key: &Key| key.0 == StateEventType::RoomMember;
    resolution.pass(&mut conflicted, is_member, Pick::LastOfChain)?;
    resolution.pass(&mut conflicted, |_| true, Pick::DeepestAllowed)?;
    Ok(resolution.resolved)
}

/// The events of keys in conflict, by ascending depth, then descending `sha1(event_id)`.
type Conflicted = BTreeMap<Key, Vec<Arc<Pdu>>>;

/// Which of the conflicting events of a key remains.
#[derive(Clone, Copy)]
enum Pick {
    /// The last of those that allow each other, one after the other.
    LastOfChain,
    /// The deepest that is allowed.
    DeepestAllowed,
}

struct Resolution<'a, F> {
    rules: &'a RoomVersionRules,
    fetch: F,
    resolved: StateMap,
}

impl<F: Fn(&EventId) -> Option<Arc<Pdu>>> Resolution<'_, F> {
    /// "Start by setting R to the union of the states to be resolved, excluding any conflicting
    /// events."
    fn begin(&mut self, state_sets: &[StateMap]) -> Result<Conflicted, ResolveError> {
        let mut union: BTreeMap<&Key, BTreeSet<&OwnedEventId>> = BTreeMap::new();
        for (key, id) in state_sets.iter().flatten() {
            union.entry(key).or_default().insert(id);
        }
        let mut conflicted = Conflicted::new();
        for (key, ids) in union {
            match ids.first() {
                Some(id) if ids.len() == 1 => {
                    self.resolved.insert(key.clone(), (*id).clone());
                }
                _ => {
                    let events = ids.into_iter().map(|id| self.event(id));
                    let mut events: Vec<_> = events.collect::<Result<_, _>>()?;
                    events.sort_by_cached_key(|event| (event.depth(), Reverse(digest(event))));
                    conflicted.insert(key.clone(), events);
                }
            }
        }
        Ok(conflicted)
    }

    /// Resolves the keys of one kind. They see what the passes before left, not each other.
    fn pass(
        &mut self,
        conflicted: &mut Conflicted,
        is_of_pass: impl Fn(&Key) -> bool,
        pick: Pick,
    ) -> Result<(), ResolveError> {
        let mut picked = StateMap::new();
        for (key, events) in conflicted.extract_if(.., |key, _| is_of_pass(key)) {
            let event = match pick {
                Pick::LastOfChain => self.last_of_chain(&key, &events)?,
                Pick::DeepestAllowed => self.deepest_allowed(&events)?,
            };
            picked.extend(event.map(|event| (key, event.event_id().to_owned())));
        }
        self.resolved.append(&mut picked);
        Ok(())
    }

    fn last_of_chain<'e>(
        &self,
        key: &Key,
        events: &'e [Arc<Pdu>],
    ) -> Result<Option<&'e Arc<Pdu>>, ResolveError> {
        let mut events = events.iter();
        let mut last = events.next();
        for event in events {
            if !self.is_allowed(event, Some((key, last)))? {
                break;
            }
            last = Some(event);
        }
        Ok(last)
    }

    fn deepest_allowed<'e>(
        &self,
        events: &'e [Arc<Pdu>],
    ) -> Result<Option<&'e Arc<Pdu>>, ResolveError> {
        for event in events.iter().rev() {
            if self.is_allowed(event, None)? {
                return Ok(Some(event));
            }
        }
        Ok(events.first())
    }

    /// Whether the rules allow an event by what is resolved, and by the event in `instead`.
    fn is_allowed(
        &self,
        event: &Arc<Pdu>,
        instead: Option<(&Key, Option<&Arc<Pdu>>)>,
    ) -> Result<bool, ResolveError> {
        let missing = std::cell::RefCell::new(None);
        let state = |event_type: &StateEventType, state_key: &str| {
            let key = (event_type.clone(), state_key.to_owned());
            if let Some((in_question, event)) = instead
                && *in_question == key
            {
                return event.cloned();
            }
            let id = self.resolved.get(&key)?;
            let event = (self.fetch)(id);
            if event.is_none() {
                missing.borrow_mut().get_or_insert_with(|| id.clone());
            }
            event
        };
        let allowed = is_allowed(event, state, self.rules);
        match missing.into_inner() {
            Some(id) => Err(ResolveError::MissingEvent(id)),
            None => Ok(allowed),
        }
    }

    fn event(&self, id: &EventId) -> Result<Arc<Pdu>, ResolveError> {
        (self.fetch)(id).ok_or_else(|| ResolveError::MissingEvent(id.to_owned()))
    }
}

/// The hash by which events of the same depth are ordered. Not for security.
fn digest(event: &Pdu) -> [u8; 20] {
    Sha1::digest(event.event_id().as_bytes()).into()
}
