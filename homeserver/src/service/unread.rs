//! What users have not read: notifications and highlights, by room and by thread
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications)).
//!
//! Nothing is written for it when a message is sent. The rules of a user are applied to the events after
//! the user's receipts when somebody asks: a client that syncs, or the worker of the user's pushers. The
//! result stays in memory with the position that it is true for, and the next question only looks at
//! what came since. So a room with ten thousand members who are not looking costs nobody anything.
//!
//! What counts is a function of the timeline, the receipts and the rules as they are now:
//!
//! - An event counts if the rules of the user notify of it, and neither it was redacted nor its sender is
//!   ignored; up to [`MOST_EVENTS`] events back.
//! - It is read by a receipt at it or after it, public or private, without thread or of its own thread;
//!   by an event of the user in the same thread; and if it is older than the user's membership.

mod gather;
mod levels;
mod marks;

use std::{collections::BTreeMap, sync::Arc};

use quick_cache::sync::Cache;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId, events::room::member::MembershipState,
};

pub(crate) use self::gather::Candidate;
use self::marks::Marks;
use super::{
    events::Events,
    heads::Heads,
    push_rules::{Context, Facts, Judge, Outcome, PushRules, Verdict},
};
use crate::storage::{Storage, StorageError, log::StreamPosition, state_map::EventNid};

/// How many of the newest events of a room are looked at to find those that count.
const MOST_EVENTS: i64 = 5_000;
/// For how many rooms of users the result stays in memory.
const CACHED: usize = 50_000;
/// How many steps lead from an event to its thread at most
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#marking-notifications-as-read)).
const HOPS: usize = 3;

/// Counts what users have not read. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Unread(Arc<Inner>);

struct Inner {
    storage: Storage,
    events: Events,
    heads: Heads,
    rules: PushRules,
    rooms: Cache<(OwnedUserId, OwnedRoomId), Arc<RoomUnread>>,
    facts: Cache<EventNid, Arc<Facts>>,
}

/// What a user has not read of a room.
#[derive(Clone, Debug)]
pub(crate) struct RoomUnread {
    /// Everything up to here is in it.
    upto: StreamPosition,
    /// Since when the user is in the room.
    since: StreamPosition,
    judge: Arc<Judge>,
    /// What the rules think of the number of members.
    size: Vec<bool>,
    marks: Marks,
    /// Oldest first.
    items: Vec<Item>,
}

/// An event that the user has yet to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) position: StreamPosition,
    pub(crate) nid: EventNid,
    /// The root; `None` in the main timeline.
    thread: Option<OwnedEventId>,
    highlight: bool,
    /// Whether other events say which thread it is in.
    indirect: bool,
}

/// How many events a user has yet to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Of which the user was notified.
    pub(crate) notifications: u32,
    /// Those among them that are marked out.
    pub(crate) highlights: u32,
}

impl Counts {
    fn add(&mut self, item: &Item) {
        self.notifications += 1;
        self.highlights += u32::from(item.highlight);
    }
}

impl RoomUnread {
    /// The whole room.
    pub(crate) fn total(&self) -> Counts {
        let mut counts = Counts::default();
        self.items.iter().for_each(|item| counts.add(item));
        counts
    }

    /// The main timeline, without threads.
    pub(crate) fn main(&self) -> Counts {
        let mut counts = Counts::default();
        let main = self.items.iter().filter(|item| item.thread.is_none());
        main.for_each(|item| counts.add(item));
        counts
    }

    /// The threads in which there is anything, by their roots.
    pub(crate) fn threads(&self) -> BTreeMap<OwnedEventId, Counts> {
        let mut threads: BTreeMap<_, Counts> = BTreeMap::new();
        for item in &self.items {
            if let Some(root) = &item.thread {
                threads.entry(root.clone()).or_default().add(item);
            }
        }
        threads
    }

    /// The events, oldest first.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Whether an event is among them.
    pub(crate) fn contains(&self, nid: EventNid) -> bool {
        self.items.iter().any(|item| item.nid == nid)
    }

    /// Drops what was read since.
    fn prune(&mut self) {
        let marks = &self.marks;
        self.items
            .retain(|item| item.position.0 > marks.of(item.thread.as_ref()));
    }
}

impl Unread {
    pub(crate) fn new(storage: Storage, events: Events, heads: Heads, rules: PushRules) -> Self {
        Self(Arc::new(Inner {
            storage,
            events,
            heads,
            rules,
            rooms: Cache::new(CACHED),
            facts: Cache::new(2_048),
        }))
    }

    /// What a user has not read of some rooms, as of now. Rooms in which the user is not are left out.
    pub(crate) async fn of_rooms(
        &self,
        user_id: &UserId,
        room_ids: impl IntoIterator<Item = OwnedRoomId>,
    ) -> Result<BTreeMap<OwnedRoomId, Arc<RoomUnread>>, StorageError> {
        let judge = self.0.rules.judge(user_id).await?;
        let until = self.0.storage.log().position();
        let (mut cold, mut warm) = (Vec::new(), BTreeMap::new());
        for room_id in room_ids {
            let Some(since) = self.joined_since(user_id, &room_id) else {
                continue;
            };
            let known = self.0.rooms.get(&(user_id.to_owned(), room_id.clone()));
            let known = known.filter(|known| {
                known.since == since
                    && Arc::ptr_eq(&known.judge, &judge)
                    && known.size == self.size(&judge, &room_id)
            });
            match known {
                Some(known) => drop(warm.insert(room_id, known)),
                None => cold.push(room_id),
            }
        }
        cold.extend(self.advance(user_id, &mut warm, until).await?);
        if !cold.is_empty() {
            warm.extend(self.recount(user_id, &judge, cold, until).await?);
        }
        for (room_id, room) in &warm {
            self.0
                .rooms
                .insert((user_id.to_owned(), room_id.clone()), room.clone());
        }
        Ok(warm)
    }

    /// What the rules of a user say about an event that somebody else sent.
    pub(crate) async fn verdict(
        &self,
        judge: &Judge,
        user_id: &UserId,
        event: &Candidate<'_>,
    ) -> Result<Verdict, StorageError> {
        let name = self.display_name(judge, user_id, event).await?;
        let facts = self.facts(event);
        self.judged(judge, &facts, event, name.as_deref()).await
    }

    /// What the rules of a user say about an invite to a room that the server is not in.
    pub(crate) fn outside_verdict(judge: &Judge, facts: &Facts) -> Verdict {
        if judge.ignored.contains(&facts.sender) {
            return Verdict::default();
        }
        match judge.rules.judge(facts, Context::default()) {
            Outcome::Decided(rule) => rule.verdict.clone(),
            Outcome::Nothing | Outcome::Asks => Verdict::default(),
        }
    }

    fn joined_since(&self, user_id: &UserId, room_id: &RoomId) -> Option<StreamPosition> {
        let place = self.0.storage.log().roster().place(user_id, room_id)?;
        (place.membership == MembershipState::Join).then_some(place.since)
    }

    fn size(&self, judge: &Judge, room_id: &RoomId) -> Vec<bool> {
        judge.rules.of_size(self.members(room_id))
    }

    fn members(&self, room_id: &RoomId) -> u64 {
        let count = self.0.storage.log().roster().member_count(room_id);
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}
