//! Which state events go with a timeline
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#syncing)).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::filter::LazyLoadOptions,
    events::{AnySyncStateEvent, StateEventType, TimelineEventType},
    serde::Raw,
};

use super::{Look, Sync, stretch::Shown};
use crate::{
    service::{filter, relations::Bundles},
    storage::{
        StorageError,
        events::StoredEvent,
        state_map::{EventNid, NodeId, StateKeyId},
    },
};

/// The state around a timeline.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// What the client has; `None` if it knows nothing of the room.
    pub(super) known: Option<NodeId>,
    /// Before the first event of the timeline.
    pub(super) start: NodeId,
    /// After the last.
    pub(super) end: NodeId,
}

impl Sync {
    /// The state events to send with a timeline: before it, or, where the client asks for that, after it.
    pub(super) async fn state(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
        news: &Shown,
        around: Around,
    ) -> Result<Vec<Raw<AnySyncStateEvent>>, StorageError> {
        let requester = &look.ask.requester;
        let options = look.ask.filter.room.state.lazy_load_options;
        let lazy = !options.is_disabled();
        let to = around.end;
        let mut nids: BTreeMap<StateKeyId, EventNid> = match around.known {
            None if lazy => self.lazy_state(to, &requester.user_id).await?,
            None => self.storage.state_entries(to).await?,
            Some(known) => self.changed(known, to).await?,
        };
        if lazy && news.completed.is_some() {
            self.without_members_of_old(&mut nids).await?;
        }
        // Those who speak, as far as nothing else makes them be told.
        let mut speakers = BTreeMap::new();
        if lazy {
            for (key, user_id, nid) in self.senders(news, to).await? {
                if let Entry::Vacant(vacant) = nids.entry(key) {
                    vacant.insert(nid);
                    speakers.insert(key, user_id);
                }
            }
        }
        if !look.ask.use_state_after {
            let known = around.known.filter(|_| !lazy);
            self.rewind(&mut nids, news, around.start, known).await?;
        }
        let once = LazyLoadOptions::Enabled {
            include_redundant_members: false,
        };
        if options == once && around.known.is_some() {
            nids.retain(|key, nid| {
                speakers.get(key).is_none_or(|user_id| {
                    !self
                        .members
                        .knows(requester, look.since, room_id, user_id, *nid)
                })
            });
        }
        let nids: Vec<_> = nids.into_values().collect();
        let events = self.events.by_nids(&nids).await?;
        let filter = &look.ask.filter.room.state;
        let wanted: Vec<_> = events
            .values()
            .filter(|event| filter::wants_event(filter, &event.pdu))
            .collect();
        if lazy {
            let sent = wanted.iter().copied().chain(&news.events);
            let sent = sent.filter_map(|event| Some((event.pdu.membership_target()?, event.nid)));
            self.members.tell(requester, look.until, room_id, sent);
        }
        let no_bundles = Bundles::default();
        let mut state = Vec::with_capacity(wanted.len());
        for event in wanted {
            state.push(self.show(look, event, &no_bundles).await?.cast_unchecked());
        }
        Ok(state)
    }

    /// Leaves out the members that were there before, though this server did not know it: they are no
    /// change, and who loads them when it needs them asks for them then.
    async fn without_members_of_old(
        &self,
        nids: &mut BTreeMap<StateKeyId, EventNid>,
    ) -> Result<(), StorageError> {
        let asked: Vec<_> = nids.values().copied().collect();
        let events = self.events.by_nids(&asked).await?;
        nids.retain(|_, nid| {
            let event = events.get(nid);
            event.is_none_or(|event| !is_member(event) || event.position.is_some())
        });
        Ok(())
    }

    /// Takes what the timeline changes, and only that, back to what it was before the timeline.
    ///
    /// Where the room forked, the state before the first event may be older than what the client has: what
    /// it learned of the other branch must stay, and nothing in the timeline would tell it again.
    async fn rewind(
        &self,
        nids: &mut BTreeMap<StateKeyId, EventNid>,
        news: &Shown,
        start: NodeId,
        known: Option<NodeId>,
    ) -> Result<(), StorageError> {
        for event in &news.events {
            let Some(state_key) = event.pdu.state_key() else {
                continue;
            };
            let event_type = event.pdu.event_type().to_string().into();
            let key = self.storage.states().key(&event_type, state_key);
            if nids.remove(&key).is_none() {
                continue;
            }
            let before = self
                .storage
                .state_get(start, &event_type, state_key)
                .await?;
            let had = match known {
                Some(known) => {
                    self.storage
                        .state_get(known, &event_type, state_key)
                        .await?
                }
                None => None,
            };
            nids.extend(before.filter(|_| before != had).map(|nid| (key, nid)));
        }
        Ok(())
    }

    pub(super) async fn changed(
        &self,
        from: NodeId,
        to: NodeId,
    ) -> Result<BTreeMap<StateKeyId, EventNid>, StorageError> {
        let differences = self.storage.state_difference(from, to).await?;
        Ok(differences
            .into_iter()
            .filter_map(|d| Some((d.key, d.after?)))
            .collect())
    }

    /// A state without its members, but for the user.
    pub(super) async fn lazy_state(
        &self,
        state: NodeId,
        user_id: &UserId,
    ) -> Result<BTreeMap<StateKeyId, EventNid>, StorageError> {
        let mut entries = self.storage.state_entries(state).await?;
        let keys: Vec<_> = entries.keys().copied().collect();
        let pairs = self.storage.state_pairs(&keys).await?;
        entries.retain(|key, _| {
            pairs.get(key).is_some_and(|pair| {
                pair.0 != StateEventType::RoomMember || pair.1 == user_id.as_str()
            })
        });
        Ok(entries)
    }

    /// The membership events of those who speak in a timeline.
    pub(super) async fn senders(
        &self,
        news: &Shown,
        state: NodeId,
    ) -> Result<Vec<(StateKeyId, OwnedUserId, EventNid)>, StorageError> {
        let senders: BTreeSet<OwnedUserId> = news
            .events
            .iter()
            .map(|event| event.pdu.sender().to_owned())
            .collect();
        let mut found = Vec::with_capacity(senders.len());
        for sender in senders {
            let member = StateEventType::RoomMember;
            let nid = self
                .storage
                .state_get(state, &member, sender.as_str())
                .await?;
            if let Some(nid) = nid {
                let key = self.storage.states().key(&member, sender.as_str());
                found.push((key, sender, nid));
            }
        }
        Ok(found)
    }
}

/// Whether an event says who is in the room.
pub(super) fn is_member(event: &Arc<StoredEvent>) -> bool {
    *event.pdu.event_type() == TimelineEventType::RoomMember
}
