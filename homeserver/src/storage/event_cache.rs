//! Events in memory.

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{EventId, OwnedEventId};
use sotto_federation::room::pdu::Pdu;

use super::{events::StoredEvent, state_map::EventNid};

/// Events in memory. What was read stays true: the one change that an event can see, its redaction, goes
/// through [`EventCache::replace`].
#[derive(Debug)]
pub(crate) struct EventCache {
    by_id: Cache<OwnedEventId, Arc<StoredEvent>>,
    by_nid: Cache<EventNid, Arc<StoredEvent>>,
    /// Events whose commit is under way, for those that already build on them.
    pending: Cache<EventNid, Arc<Pdu>>,
    /// Events that the tail of the log may still hold as they were before their redaction.
    stale: Cache<EventNid, ()>,
    redacted: Cache<EventNid, ()>,
}

impl EventCache {
    /// Whether an event changed since it came into the log: it was redacted.
    pub(crate) fn is_stale(&self, nid: EventNid) -> bool {
        self.stale.get(&nid).is_some()
    }

    pub(super) fn new() -> Self {
        Self {
            by_id: Cache::new(16_384),
            by_nid: Cache::new(16_384),
            pending: Cache::new(4_096),
            stale: Cache::new(16_384),
            redacted: Cache::new(16_384),
        }
    }

    pub(crate) fn by_id(&self, event_id: &EventId) -> Option<Arc<StoredEvent>> {
        self.by_id.get(event_id)
    }

    pub(crate) fn by_nid(&self, nid: EventNid) -> Option<Arc<StoredEvent>> {
        self.by_nid.get(&nid)
    }

    pub(crate) fn pending(&self, nid: EventNid) -> Option<Arc<Pdu>> {
        self.pending.get(&nid)
    }

    pub(crate) fn insert_pending(&self, nid: EventNid, pdu: Arc<Pdu>) {
        self.pending.insert(nid, pdu);
    }

    /// Forgets an event that was redacted in the database, and never keeps it as it was again. The writer says
    /// so before anybody learns of the redaction.
    pub(super) fn redact(&self, nid: EventNid) {
        self.redacted.insert(nid, ());
        self.forget(nid);
    }

    /// Forgets an event that changed in the database.
    pub(crate) fn forget(&self, nid: EventNid) {
        self.stale.insert(nid, ());
        if let Some((_, event)) = self.by_nid.remove(&nid) {
            self.by_id.remove(event.pdu.event_id());
        }
    }

    /// Keeps an event that is in the database; not as it was before its redaction, which may have come while
    /// somebody read it, or together with it.
    pub(crate) fn replace(&self, event: &Arc<StoredEvent>) {
        let event_id = event.pdu.event_id();
        self.by_id.insert(event_id.to_owned(), event.clone());
        self.by_nid.insert(event.nid, event.clone());
        // Looked at last: what is marked after this removes the event itself.
        if event.redacted_by.is_none() && self.redacted.get(&event.nid).is_some() {
            self.by_nid.remove(&event.nid);
            self.by_id.remove(event_id);
        }
    }
}
