//! What happened in rooms between two positions of the log: from memory if it has it, else from the
//! database.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::client::filter::RoomEventFilter,
    events::{AnySyncTimelineEvent, room::member::MembershipState},
    serde::Raw,
};

use super::{Sync, state::is_member};
use crate::{
    service::{filter, timeline::membership},
    storage::{
        StorageError,
        events::StoredEvent,
        log::{Change, Entry, StreamPosition},
        rooms::{Room, RoomNid},
        roster::Completed,
        state_map::NodeId,
    },
};

/// The newest events of a room between two positions, oldest first, whoever may see them.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretch {
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// Whether there are older ones between the two positions.
    pub(super) more: bool,
    /// The state of the room at the first position, if the client had any then.
    pub(super) before: Option<NodeId>,
    /// The state of the room at the second position.
    pub(super) end: Option<NodeId>,
    /// The room.
    pub(super) nid: Option<RoomNid>,
    /// When its missing members came, if they did.
    pub(super) completed: Option<StreamPosition>,
}

/// As much of a [`Stretch`] as a user wants and may see.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// What was told of the room from outside, after the events.
    pub(super) outside: Vec<Raw<AnySyncTimelineEvent>>,
    /// Whether there were more.
    pub(super) limited: bool,
    /// Whether somebody's membership changed.
    pub(super) members: bool,
    /// Whether anything happened, also what the user does not want or may not see.
    pub(super) any: bool,
    /// The room, if there is anything to tell of it.
    pub(super) nid: Option<RoomNid>,
    pub(super) before: Option<NodeId>,
    pub(super) end: Option<NodeId>,
    /// When members came that were there all the time, if they did.
    pub(super) completed: Option<StreamPosition>,
}

impl Stretch {
    fn push(&mut self, event: Arc<StoredEvent>) {
        if self.events.is_empty() && self.before.is_none() {
            self.before = event.head_before;
        }
        self.nid = Some(event.room_nid);
        self.end = event.state.map(|state| state.head).or(self.end);
        self.events.push(event);
    }

    /// Goes on with the members that were missing.
    fn complete(&mut self, completed: &Completed) {
        if self.events.is_empty() && self.before.is_none() {
            self.before = Some(completed.before);
        }
        self.nid = Some(completed.room_nid);
        self.end = Some(completed.after);
        self.completed = Some(completed.position);
    }
}

/// The stretches of the rooms that are wanted, from the entries of the log between the two positions.
pub(super) fn from_memory(
    entries: &[Arc<Entry>],
    wanted: impl Fn(&RoomId) -> bool,
) -> BTreeMap<OwnedRoomId, Stretch> {
    let mut rooms: BTreeMap<OwnedRoomId, Stretch> = BTreeMap::new();
    for entry in entries {
        if let Change::Completed(completed) = &entry.change
            && wanted(&completed.room_id)
        {
            let stretch = rooms.entry(completed.room_id.clone()).or_default();
            stretch.complete(completed);
        }
        if let Change::Event(event) = &entry.change {
            let room_id = event.pdu.room_id();
            if let Some(stretch) = rooms.get_mut(room_id) {
                stretch.push(event.clone());
            } else if wanted(room_id) {
                let stretch = rooms.entry(room_id.to_owned()).or_default();
                stretch.push(event.clone());
            }
        }
    }
    rooms
}

impl Sync {
    /// The stretches of rooms from the database, of each the newest `reach` events. Rooms in which nothing
    /// happened have none.
    pub(super) async fn stretches(
        &self,
        rooms: &[&Room],
        above: StreamPosition,
        until: StreamPosition,
        reach: usize,
    ) -> Result<BTreeMap<OwnedRoomId, Stretch>, StorageError> {
        let mut found: BTreeMap<OwnedRoomId, Stretch> = BTreeMap::new();
        if rooms.is_empty() {
            return Ok(found);
        }
        let nids: Vec<_> = rooms.iter().map(|room| room.nid).collect();
        let asked = i64::try_from(reach.saturating_add(1)).unwrap_or(i64::MAX);
        let newest = self.events.newest(&nids, above.0, until.0, asked);
        for events in newest.await? {
            let mut stretch = Stretch::default();
            let room_id = events.first().map(|event| event.pdu.room_id().to_owned());
            for event in events {
                stretch.push(event);
            }
            found.extend(room_id.map(|room_id| (room_id, stretch)));
        }
        let mut touched = Vec::new();
        for stretch in found.values_mut() {
            // What memory knows of the state before belongs to another event than the first.
            stretch.before = None;
            if stretch.events.len() > reach {
                stretch.events.drain(..stretch.events.len() - reach);
                stretch.more = true;
            }
            touched.extend(stretch.events.first().map(|event| event.room_nid));
        }
        self.completions(rooms, &mut found, above, until);
        if above.0 > 0 {
            for (room_id, _, state) in self.states_at(&touched, above).await? {
                if let Some(stretch) = found.get_mut(&room_id) {
                    stretch.before = Some(state);
                }
            }
        }
        Ok(found)
    }

    /// Adds that the members of rooms came between the two positions.
    fn completions(
        &self,
        rooms: &[&Room],
        found: &mut BTreeMap<OwnedRoomId, Stretch>,
        above: StreamPosition,
        until: StreamPosition,
    ) {
        for room in rooms {
            let completed = self.storage.log().roster().completed(&room.room_id, until);
            let Some(completed) = completed.filter(|completed| completed.position > above) else {
                continue;
            };
            let stretch = found.entry(room.room_id.clone()).or_default();
            let last = stretch.events.last().and_then(|event| event.position);
            let (before, end) = (stretch.before, stretch.end);
            stretch.complete(&completed);
            if !stretch.events.is_empty() {
                stretch.before = before;
            }
            if last > Some(completed.position.0) {
                stretch.end = end;
            }
        }
    }

    /// The current states of rooms as they were at a position.
    pub(super) async fn states_at(
        &self,
        rooms: &[RoomNid],
        at: StreamPosition,
    ) -> Result<Vec<(OwnedRoomId, RoomNid, NodeId)>, StorageError> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let last = self.events.newest(rooms, i64::MIN, at.0, 1).await?;
        let roster = self.storage.log().roster();
        let state = |event: Arc<StoredEvent>| {
            let room_id = event.pdu.room_id().to_owned();
            // No event says when missing members came.
            let completed = roster.completed(&room_id, at);
            let completed = completed.filter(|c| Some(c.position.0) > event.position);
            let head = completed.map(|completed| completed.after);
            Some((
                room_id,
                event.room_nid,
                head.or(event.state.map(|state| state.head))?,
            ))
        };
        Ok(last.into_iter().flatten().filter_map(state).collect())
    }

    /// What a user wants and may see of a stretch: the newest events, at most `limit`.
    pub(super) async fn shown(
        &self,
        stretch: Stretch,
        user_id: &UserId,
        filter: &RoomEventFilter,
        limit: usize,
    ) -> Result<Shown, StorageError> {
        let mut shown = Shown {
            limited: stretch.more,
            members: stretch.completed.is_some(),
            any: !stretch.events.is_empty(),
            nid: stretch.nid,
            before: stretch.before,
            end: stretch.end,
            completed: stretch.completed,
            events: Vec::new(),
            outside: Vec::new(),
        };
        for event in &stretch.events {
            shown.members |= self.moves_somebody(event).await?;
        }
        let visibility = &self.timeline.visibility;
        for event in stretch.events.iter().rev() {
            if !filter::wants_event(filter, &event.pdu) {
                continue;
            }
            let event = self.current(event).await?;
            let view = match visibility.view(user_id, event.clone()).await? {
                None => {
                    visibility
                        .view_of_state(user_id, event, stretch.end)
                        .await?
                }
                view => view,
            };
            let Some(event) = view else {
                continue;
            };
            if shown.events.len() == limit {
                shown.limited = true;
                break;
            }
            shown.events.push(event);
        }
        shown.events.reverse();
        // Somebody may have moved in what is left out: told the same, whether memory has it or not.
        shown.members |= shown.limited;
        Ok(shown)
    }

    /// Whether somebody came, went, or was invited: not whether a member has another name or picture.
    async fn moves_somebody(&self, event: &Arc<StoredEvent>) -> Result<bool, StorageError> {
        if !is_member(event) {
            return Ok(false);
        }
        let Some(replaces) = event.replaces else {
            return Ok(true);
        };
        let before = self.events.by_nids(&[replaces]).await?.remove(&replaces);
        let before = before.and_then(|before| membership(&before.pdu));
        Ok(before != membership(&event.pdu))
    }

    /// An event as it is now: one that was redacted since it came into the log is not shown as it was.
    async fn current(&self, event: &Arc<StoredEvent>) -> Result<Arc<StoredEvent>, StorageError> {
        if !self.storage.event_cache().is_stale(event.nid) {
            return Ok(event.clone());
        }
        let now = self.events.by_nids(&[event.nid]).await?.remove(&event.nid);
        Ok(now.unwrap_or_else(|| event.clone()))
    }

    /// Whether a user was joined in a state.
    pub(super) async fn was_joined(
        &self,
        state: Option<NodeId>,
        user_id: &UserId,
    ) -> Result<bool, StorageError> {
        let Some(state) = state else {
            return Ok(false);
        };
        let membership = self.timeline.visibility.membership(state, user_id).await?;
        Ok(membership == MembershipState::Join)
    }
}
