//! The few entries of a state that decide on one event.

use std::sync::Arc;

use ruma::{
    EventId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};

use super::{Rejection, Step, auth_types, create_event_id};
use crate::room::pdu::Pdu;

/// What a state has for each of an event's auth types and for the create event.
///
/// The rules ask for nothing else: they could not be applied to the auth events if they did.
pub(super) struct Snapshot(Vec<Entry>);

struct Entry {
    event_type: StateEventType,
    state_key: String,
    event: Option<Arc<Pdu>>,
}

impl Snapshot {
    /// Of the state that the auth events of an event make.
    pub(super) fn of_auth_events(
        pdu: &Pdu,
        auth_events: &impl Fn(&EventId) -> Option<Arc<Pdu>>,
        rules: &RoomVersionRules,
    ) -> Result<Self, Rejection> {
        let mut snapshot = Self::keys(pdu, rules)?;
        let create = (*pdu.event_type() != TimelineEventType::RoomCreate)
            .then(|| create_event_id(pdu.room_id(), rules))
            .flatten();
        for id in pdu.auth_events().iter().chain(&create) {
            let event = auth_events(id).ok_or_else(|| missing(id))?;
            let entry = snapshot.0.iter_mut().find(|entry| entry.is_of(&event));
            // The selection is checked elsewhere; an event that is not part of it proves nothing.
            if let Some(entry) = entry {
                entry.event = Some(event);
            }
        }
        Ok(snapshot)
    }

    /// Of a state.
    pub(super) fn of_state(
        pdu: &Pdu,
        state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
        rules: &RoomVersionRules,
    ) -> Result<Self, Rejection> {
        Ok(Self::keys(pdu, rules)?.same_keys(state))
    }

    /// What another state has in the same places.
    pub(super) fn same_keys(
        &self,
        state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    ) -> Self {
        let entry = |entry: &Entry| Entry {
            event_type: entry.event_type.clone(),
            state_key: entry.state_key.clone(),
            event: state(&entry.event_type, &entry.state_key),
        };
        Self(self.0.iter().map(entry).collect())
    }

    pub(super) fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        self.0
            .iter()
            .find(|entry| entry.event_type == *event_type && entry.state_key == state_key)
            .and_then(|entry| entry.event.clone())
    }

    pub(super) fn by_id(&self, event_id: &EventId) -> Option<Arc<Pdu>> {
        self.ids()
            .zip(self.events())
            .find(|(id, _)| *id == event_id)
            .map(|(_, event)| event.clone())
    }

    /// Whether an event has exactly these as its auth events.
    pub(super) fn is_selected_by(&self, pdu: &Pdu, rules: &RoomVersionRules) -> bool {
        let is_named = |id: &EventId| pdu.auth_events().iter().any(|auth_id| auth_id == id);
        let create = create_event_id(pdu.room_id(), rules);
        let selected = || self.ids().filter(|id| create.as_deref() != Some(*id));
        selected().count() == pdu.auth_events().len() && selected().all(is_named)
    }

    fn keys(pdu: &Pdu, rules: &RoomVersionRules) -> Result<Self, Rejection> {
        let (event_type, content) = (pdu.event_type(), pdu.content());
        let mut keys = auth_types(event_type, pdu.sender(), pdu.state_key(), content, rules)?;
        if *event_type != TimelineEventType::RoomCreate
            && !keys
                .iter()
                .any(|(event_type, _)| *event_type == StateEventType::RoomCreate)
        {
            keys.push((StateEventType::RoomCreate, String::new()));
        }
        let entry = |(event_type, state_key)| Entry {
            event_type,
            state_key,
            event: None,
        };
        Ok(Self(keys.into_iter().map(entry).collect()))
    }

    fn events(&self) -> impl Iterator<Item = &Arc<Pdu>> {
        self.0.iter().filter_map(|entry| entry.event.as_ref())
    }

    fn ids(&self) -> impl Iterator<Item = &EventId> {
        self.events().map(|event| event.event_id())
    }
}

/// The same events in the same places, for snapshots of the same keys.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.0
            .iter()
            .map(Entry::event_id)
            .eq(other.0.iter().map(Entry::event_id))
    }
}

impl Entry {
    fn event_id(&self) -> Option<&EventId> {
        self.event.as_deref().map(Pdu::event_id)
    }

    fn is_of(&self, pdu: &Pdu) -> bool {
        pdu.state_key() == Some(&self.state_key)
            && pdu.event_type().to_string() == self.event_type.to_string()
    }
}

fn missing(event_id: &EventId) -> Rejection {
    Rejection {
        step: Step::MissingAuthEvent,
        reason: format!("{event_id} is missing"),
    }
}
