//! Reading in few trips what many rooms need: what follows room by room then finds it in memory.

use std::collections::BTreeSet;

use ruma::{UserId, events::StateEventType};

use super::{Look, Sync, stretch::Stretch};
use crate::storage::{
    StorageError,
    state_map::{EventNid, NodeId, StateKeyId},
};

/// How many rooms are read together: what is known of them for that time is in memory at once.
const AT_ONCE: usize = 256;

/// What is needed of the states in which stretches end.
#[derive(Clone, Debug, Default)]
pub(super) struct Needed {
    /// Of all of them.
    pub(super) keys: Vec<StateKeyId>,
    /// And what else.
    pub(super) rest: Rest,
}

/// What is needed of states beside keys that are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rest {
    #[default]
    Nothing,
    AllButMembers,
    Everything,
}

impl Needed {
    /// What a client of `/sync` is told of rooms whether it asks for it or not.
    pub(super) fn of(look: &Look<'_>) -> Self {
        let lazy = &look.ask.filter.room.state.lazy_load_options;
        let rest = match look.ask.since {
            Some(_) => Rest::Nothing,
            None if lazy.is_disabled() => Rest::Everything,
            None => Rest::AllButMembers,
        };
        Self {
            rest,
            ..Self::default()
        }
    }
}

impl Sync {
    /// Reads what decides on what a user may see of stretches, and what is needed of the states around them.
    pub(super) async fn read_ahead(
        &self,
        user_id: &UserId,
        stretches: impl Iterator<Item = &Stretch>,
        needed: &Needed,
    ) -> Result<(), StorageError> {
        let stretches: Vec<_> = stretches.collect();
        for piece in stretches.chunks(AT_ONCE) {
            self.read_piece(user_id, piece, needed).await?;
        }
        Ok(())
    }

    async fn read_piece(
        &self,
        user_id: &UserId,
        stretches: &[&Stretch],
        needed: &Needed,
    ) -> Result<(), StorageError> {
        let states = self.storage.states();
        let own = states.key(&StateEventType::RoomMember, user_id.as_str());
        let visibility = states.key(&StateEventType::RoomHistoryVisibility, "");
        let (mut keys, mut ends, mut nids) = (Vec::new(), Vec::new(), Vec::new());
        for stretch in stretches {
            let start = stretch.events.first().and_then(|event| event.state);
            for event in &stretch.events {
                nids.extend(event.replaces);
                let after = event.state.map(|state| state.after);
                keys.extend(after.map(|after| (after, own)));
                keys.extend(after.map(|after| (after, visibility)));
                let sender = states.key(&StateEventType::RoomMember, event.pdu.sender().as_str());
                keys.extend(stretch.end.map(|end| (end, sender)));
                if let (Some(start), Some(state_key)) = (start, event.pdu.state_key()) {
                    let event_type = event.pdu.event_type().to_string().into();
                    keys.push((start.before, states.key(&event_type, state_key)));
                }
            }
            ends.extend(stretch.end);
        }
        let wanted = |end: &NodeId| {
            let end = *end;
            needed.keys.iter().map(move |key| (end, *key))
        };
        keys.extend(ends.iter().flat_map(wanted));
        if needed.rest != Rest::Nothing {
            nids.extend(self.entries(&ends, needed.rest).await?);
        }
        self.events.fetch(&keys, nids).await
    }

    /// The events of states.
    async fn entries(&self, states: &[NodeId], rest: Rest) -> Result<Vec<EventNid>, StorageError> {
        let entries = self.storage.states_entries(states).await?;
        let entries = entries.into_iter().flatten();
        if rest == Rest::Everything {
            return Ok(entries.map(|(_, nid)| nid).collect());
        }
        let entries: Vec<_> = entries.collect();
        let keys: BTreeSet<_> = entries.iter().map(|(key, _)| *key).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        let pairs = self.storage.state_pairs(&keys).await?;
        let is_other = |key: &StateKeyId| {
            let pair = pairs.get(key);
            pair.is_some_and(|pair| pair.0 != StateEventType::RoomMember)
        };
        let others = entries.into_iter().filter(|(key, _)| is_other(key));
        Ok(others.map(|(_, nid)| nid).collect())
    }
}
