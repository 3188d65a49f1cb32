//! What memory knows of which events have something to be bundled with them. New events mostly have nothing, and
//! to know that without asking the database keeps syncs cheap.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
};

use ruma::OwnedEventId;

use super::{
    append::NewEvent,
    counters::Counters,
    events::{Relation, StoredEvent},
    relations::BUNDLED,
    state_map::EventNid,
};

/// How many events are remembered.
const CAPACITY: usize = 65_536;

/// Which events others relate to.
#[derive(Debug)]
pub(crate) struct Related(RwLock<Inner>);

#[derive(Debug)]
struct Inner {
    /// What relates to events with greater numbers is known.
    complete_above: EventNid,
    parents: HashSet<OwnedEventId>,
}

impl Related {
    pub(super) fn new(counters: &Counters) -> Self {
        Self(RwLock::new(Inner {
            complete_above: counters.next_nid(),
            parents: HashSet::new(),
        }))
    }

    /// Takes note of events that are about to be stored.
    pub(super) fn note(&self, events: &[NewEvent], counters: &Counters) {
        let relations = events.iter().filter_map(|e| Relation::of(e.judged.pdu()));
        let relations = relations.filter(|relation| BUNDLED.contains(&&*relation.rel_type));
        let parents: Vec<_> = relations.map(|relation| relation.event_id).collect();
        if parents.is_empty() {
            return;
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if inner.parents.len() > CAPACITY {
            inner.complete_above = counters.next_nid();
            inner.parents.clear();
        }
        inner.parents.extend(parents);
    }

    /// Whether there may be something to be bundled with an event.
    pub(crate) fn may_have(&self, event: &StoredEvent) -> bool {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // What relates to history may have been here before it was fetched.
        let is_history = event.position.is_none_or(|position| position < 0);
        is_history
            || event.nid <= inner.complete_above
            || inner.parents.contains(event.pdu.event_id())
    }
}
