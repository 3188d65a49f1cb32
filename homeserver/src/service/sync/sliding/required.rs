//! The state that a client requires of a room.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    RoomId, UserId,
    events::{AnySyncStateEvent, StateEventType},
    serde::Raw,
};

use super::{
    super::{Sync, stretch::Shown},
    Slide,
    connection::Patterns,
    plan::Planned,
};
use crate::storage::{
    StorageError,
    state_map::{EventNid, NodeId, StateKeyId},
};

/// The own membership event.
const ME: &str = "$ME";
/// The membership events of those who speak.
const LAZY: &str = "$LAZY";
/// Any type, or any state key.
const ANY: &str = "*";
const MEMBER: &str = "m.room.member";

/// What is required, for one user.
pub(super) struct Required<'a> {
    patterns: &'a Patterns,
    user_id: &'a UserId,
}

impl<'a> Required<'a> {
    pub(super) fn new(patterns: &'a Patterns, user_id: &'a UserId) -> Self {
        Self { patterns, user_id }
    }

    fn is_lazy(&self) -> bool {
        let lazy = |(event_type, key): &(String, String)| {
            key == LAZY && (event_type == MEMBER || event_type == ANY)
        };
        self.patterns.iter().any(lazy)
    }

    /// Whether one key of the state is required, whoever speaks.
    pub(super) fn has(&self, event_type: &str, state_key: &str) -> bool {
        let members_apart = event_type == MEMBER && self.is_lazy();
        self.patterns.iter().any(|(wanted_type, wanted_key)| {
            let type_fits = wanted_type == event_type || (wanted_type == ANY && !members_apart);
            let key_fits = match wanted_key.as_str() {
                ANY => true,
                ME => state_key == self.user_id.as_str(),
                key => key == state_key,
            };
            type_fits && key_fits
        })
    }

    /// The keys that are named, if none is a pattern.
    pub(super) fn exact(&self) -> Option<BTreeSet<(&str, &str)>> {
        let patterns = self.patterns.iter().filter(|(_, key)| key != LAZY);
        let keys = patterns.map(|(event_type, key)| match key.as_str() {
            _ if event_type == ANY => None,
            ANY => None,
            ME => Some((event_type.as_str(), self.user_id.as_str())),
            key => Some((event_type.as_str(), key)),
        });
        keys.collect()
    }
}

/// What part of the required state is told.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// What changed since a state.
    Since(NodeId),
}

impl Sync {
    /// The required state of a room, for a timeline that ends in `end`.
    pub(super) async fn required_state(
        &self,
        slide: &Slide<'_>,
        room_id: &RoomId,
        planned: &Planned,
        shown: &Shown,
        (part, end): (Part, NodeId),
    ) -> Result<Vec<Raw<AnySyncStateEvent>>, StorageError> {
        let patterns = &planned.wanted.required;
        let required = Required::new(patterns, &slide.look.ask.requester.user_id);
        let mut nids = match part {
            Part::Whole => self.whole(&required, end).await?,
            Part::Since(before) => self.since(&required, before, end).await?,
        };
        if required.is_lazy() {
            for (key, user_id, nid) in self.senders(shown, end).await? {
                let known =
                    self.members
                        .knows(slide.connection, slide.look.since, room_id, &user_id, nid);
                if matches!(part, Part::Whole) || !known {
                    nids.insert(key, nid);
                }
            }
        }
        let nids: Vec<_> = nids.into_values().collect();
        let events = self.events.by_nids(&nids).await?;
        let members = events.values().chain(&shown.events);
        let members = members.filter_map(|e| Some((e.pdu.membership_target()?, e.nid)));
        self.members
            .tell(slide.connection, slide.look.until, room_id, members);
        let mut state = Vec::with_capacity(events.len());
        for event in events.values() {
            let json = self.events.for_client(event, &slide.look.ask.requester);
            state.push(json.await?.cast_unchecked());
        }
        Ok(state)
    }

    async fn whole(
        &self,
        required: &Required<'_>,
        state: NodeId,
    ) -> Result<BTreeMap<StateKeyId, EventNid>, StorageError> {
        if let Some(keys) = required.exact() {
            let mut found = BTreeMap::new();
            for (event_type, key) in keys {
                let event_type = StateEventType::from(event_type);
                let nid = self.storage.state_get(state, &event_type, key).await?;
                let id = self.storage.states().key(&event_type, key);
                found.extend(nid.map(|nid| (id, nid)));
            }
            return Ok(found);
        }
        let entries = self.storage.state_entries(state).await?;
        self.only(required, entries, false).await
    }

    /// What changed. Of members also those who may not be known to the client: who are, must not go stale.
    async fn since(
        &self,
        required: &Required<'_>,
        before: NodeId,
        end: NodeId,
    ) -> Result<BTreeMap<StateKeyId, EventNid>, StorageError> {
        let changed = self.changed(before, end).await?;
        self.only(required, changed, required.is_lazy()).await
    }

    async fn only(
        &self,
        required: &Required<'_>,
        mut entries: BTreeMap<StateKeyId, EventNid>,
        members: bool,
    ) -> Result<BTreeMap<StateKeyId, EventNid>, StorageError> {
        let keys: Vec<_> = entries.keys().copied().collect();
        let pairs = self.storage.state_pairs(&keys).await?;
        entries.retain(|key, _| {
            pairs.get(key).is_some_and(|pair| {
                let event_type = pair.0.to_string();
                (members && event_type == MEMBER) || required.has(&event_type, &pair.1)
            })
        });
        Ok(entries)
    }

    /// Whether state changed that the client required before, and does not require now.
    pub(super) async fn changed_unseen(
        &self,
        user_id: &UserId,
        (old, new): (&Patterns, &Patterns),
        (before, end): (NodeId, NodeId),
    ) -> Result<bool, StorageError> {
        if old.is_subset(new) {
            return Ok(false);
        }
        let old = self
            .since(&Required::new(old, user_id), before, end)
            .await?;
        let new = self
            .since(&Required::new(new, user_id), before, end)
            .await?;
        Ok(old.keys().any(|key| !new.contains_key(key)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn patterns() {
        let me = UserId::parse("@me:x.test").unwrap();
        let patterns = |list: &[(&str, &str)]| -> Patterns {
            let owned = list.iter().map(|(t, k)| ((*t).to_owned(), (*k).to_owned()));
            owned.collect()
        };
        let lazy = patterns(&[("*", "*"), (MEMBER, LAZY), (MEMBER, ME)]);
        let lazy = Required::new(&lazy, &me);
        assert!(lazy.is_lazy() && lazy.exact().is_none());
        assert!(lazy.has("m.room.name", "") && lazy.has(MEMBER, "@me:x.test"));
        assert!(!lazy.has(MEMBER, "@other:x.test"));
        let all = patterns(&[("*", "")]);
        let all = Required::new(&all, &me);
        assert!(all.has("m.room.name", "") && !all.has("m.space.child", "!a:x.test"));
        let exact = patterns(&[("m.room.name", ""), (MEMBER, ME), (MEMBER, LAZY)]);
        let exact = Required::new(&exact, &me);
        let keys = exact.exact().unwrap();
        assert_eq!(keys.len(), 2);
        assert!(!exact.has("m.room.topic", ""));
    }
}
