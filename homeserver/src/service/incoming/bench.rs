//! The events of one room that are at hand while others are being placed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId};
use sotto_federation::room::pdu::Pdu;

use crate::{
    service::events::Events,
    storage::{
        StorageError,
        events::StoredEvent,
        rooms::RoomNid,
        state_map::{EventNid, NodeId},
    },
};

/// Events by id and by number; stored ones, and those that are about to be.
#[derive(Debug)]
pub(super) struct Bench {
    room_nid: RoomNid,
    events: Events,
    items: HashMap<OwnedEventId, Item>,
    ids: HashMap<EventNid, OwnedEventId>,
    /// Events of other rooms, to which events of this one refer.
    foreign: HashMap<OwnedEventId, Arc<Pdu>>,
}

/// An event at hand.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) nid: EventNid,
    pub(super) pdu: Arc<Pdu>,
    /// The state after it; `None` for outliers.
    pub(super) after: Option<NodeId>,
    /// The event as it is stored, if it is.
    pub(super) stored: Option<Arc<StoredEvent>>,
}

impl Bench {
    pub(super) fn new(room_nid: RoomNid, events: Events) -> Self {
        Self {
            room_nid,
            events,
            items: HashMap::new(),
            ids: HashMap::new(),
            foreign: HashMap::new(),
        }
    }

    /// Fetches stored events of the room by their ids; those of other rooms are good for one thing only
    /// ([`Bench::auth_event`]).
    pub(super) async fn load(&mut self, mut asked: Vec<OwnedEventId>) -> Result<(), StorageError> {
        asked.retain(|id| !self.items.contains_key(id) && !self.foreign.contains_key(id));
        asked.sort_unstable();
        asked.dedup();
        for event in self.events.by_ids(&asked).await?.into_values() {
            self.keep(event);
        }
        Ok(())
    }

    /// Fetches stored events of the room by their numbers.
    pub(super) async fn load_nids(&mut self, mut asked: Vec<EventNid>) -> Result<(), StorageError> {
        asked.retain(|nid| !self.ids.contains_key(nid));
        asked.sort_unstable();
        asked.dedup();
        for event in self.events.by_nids(&asked).await?.into_values() {
            self.keep(event);
        }
        Ok(())
    }

    /// Fetches an event, and what is behind it in its auth chain, about as many events as said; whether the
    /// event is there.
    pub(super) async fn load_back(
        &mut self,
        event_id: &EventId,
        most: usize,
    ) -> Result<bool, StorageError> {
        let (mut next, mut seen) = (vec![event_id.to_owned()], BTreeSet::new());
        while !next.is_empty() && seen.len() < most {
            self.load(next.clone()).await?;
            seen.extend(next.iter().cloned());
            let items = next.iter().filter_map(|id| self.items.get(id));
            let further = items.flat_map(|item| item.pdu.auth_events());
            let further: BTreeSet<_> = further.filter(|id| !seen.contains(*id)).collect();
            next = further.into_iter().cloned().collect();
        }
        Ok(self.items.contains_key(event_id))
    }

    pub(super) fn get(&self, event_id: &EventId) -> Option<&Item> {
        self.items.get(event_id)
    }

    pub(super) fn pdu(&self, event_id: &EventId) -> Option<Arc<Pdu>> {
        self.items.get(event_id).map(|item| item.pdu.clone())
    }

    /// An event that another one names as what allows it: of whatever room, since events of other rooms allow
    /// nothing.
    pub(super) fn auth_event(&self, event_id: &EventId) -> Option<Arc<Pdu>> {
        let foreign = || self.foreign.get(event_id).cloned();
        self.pdu(event_id).or_else(foreign)
    }

    pub(super) fn by_nid(&self, nid: EventNid) -> Option<&Item> {
        self.ids.get(&nid).and_then(|id| self.items.get(id))
    }

    /// Puts an event on the bench that is about to be stored.
    pub(super) fn insert(&mut self, item: Item) {
        let event_id = item.pdu.event_id().to_owned();
        self.ids.insert(item.nid, event_id.clone());
        self.items.insert(event_id, item);
    }

    fn keep(&mut self, event: Arc<StoredEvent>) {
        if event.room_nid == self.room_nid {
            self.insert(Item {
                nid: event.nid,
                pdu: event.pdu.clone(),
                after: event.state.map(|state| state.after),
                stored: Some(event),
            });
        } else {
            let event_id = event.pdu.event_id().to_owned();
            self.foreign.insert(event_id, event.pdu.clone());
        }
    }
}
