//! The one log: every change that somebody must learn of has a [`StreamPosition`] from one sequence.
//!
//! The writer publishes what a commit contained, in order, after the commit. The newest entries stay in
//! memory (the *tail*), so that a sync that is up to date costs no SQL. Whoever waits, waits for the log
//! to be longer than a position: a wake-up can be lost or repeated without harm.

mod follower;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use ruma::{OwnedDeviceId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use tokio::sync::{Notify, watch};

use self::follower::Interest;
use super::{
    events::StoredEvent,
    roster::{Completed, Membership, Roster, ToldServers},
    state_map::EventNid,
};

/// How many entries stay in memory. A client that was away for longer is answered from the database.
const TAIL_CAPACITY: usize = 8_192;

/// A place in the log. Zero is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamPosition(pub(crate) i64);

/// One thing that changed.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// An event was added to the timeline of a room.
    Event(Arc<StoredEvent>),
    /// A local user was invited to, or removed from, a room in which the server itself has no timeline.
    OutsideMembership(Membership),
    /// A local user asked to join a room without having left it. Not stored: it only has clients told of the room
    /// that may not know it.
    JoinedAgain {
        /// Who.
        user_id: OwnedUserId,
        /// The room.
        room_id: OwnedRoomId,
    },
    /// Account data was set.
    AccountData {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// A read receipt moved.
    Receipt {
        /// The room.
        room_id: OwnedRoomId,
        /// Whose.
        user_id: OwnedUserId,
        /// Whether only the user's own clients may see it.
        private: bool,
    },
    /// The set of typing users of a room changed. Not stored: after a restart nobody types.
    Typing {
        /// The room.
        room_id: OwnedRoomId,
    },
    /// The presence of a user, local or remote, changed. Not stored: after a restart everybody is offline.
    Presence {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// The name or the picture of a local user changed.
    Profile {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// A message waits for a device.
    ToDevice {
        /// The user.
        user_id: OwnedUserId,
        /// The device.
        device_id: OwnedDeviceId,
    },
    /// The devices or the identity keys of a user, local or remote, changed.
    DeviceList {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// The number of one-time keys of a device, or the use of its fallback key, changed.
    OneTimeKeys {
        /// The user.
        user_id: OwnedUserId,
        /// The device.
        device_id: OwnedDeviceId,
    },
    /// A user signed the master key of another one, which only the signer may see.
    UserSignature {
        /// Who signed.
        signer: OwnedUserId,
        /// Whose key was signed.
        target: OwnedUserId,
    },
    /// The servers of a room whose members are missing were told.
    ToldServers(Arc<ToldServers>),
    /// The missing members of a room came.
    Completed(Arc<Completed>),
    /// The aliases that this server has for a room changed.
    Aliases {
        /// The room.
        room_id: OwnedRoomId,
    },
    /// A redaction took effect.
    Redacted {
        /// The room.
        room_id: OwnedRoomId,
        /// The event that is pruned now.
        target: EventNid,
    },
    /// A user follows a thread, or does not any more.
    ThreadSubscription {
        /// Who.
        user_id: OwnedUserId,
    },
    /// The pushers of a user changed.
    Pushers {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// Something other than an event waits for another server.
    FederationEdu {
        /// Which.
        destination: OwnedServerName,
    },
}

/// A change and its place.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Where it stands.
    pub(crate) position: StreamPosition,
    /// What it is.
    pub(crate) change: Change,
}

/// The tail of the log, and those who wait for it to grow.
#[derive(Debug)]
pub(crate) struct Log {
    published: watch::Sender<StreamPosition>,
    tail: RwLock<Tail>,
    waiting: Mutex<HashMap<OwnedUserId, Arc<Waiter>>>,
    roster: Roster,
    /// When the account data of users last changed, since the start.
    account_data: RwLock<HashMap<OwnedUserId, StreamPosition>>,
    interests: Mutex<Vec<Arc<Interest>>>,
}

#[derive(Debug)]
struct Tail {
    /// Everything after this position is in `entries`.
    complete_after: StreamPosition,
    entries: VecDeque<Arc<Entry>>,
}

#[derive(Debug, Default)]
struct Waiter {
    notify: Notify,
    /// Changed only while the map of waiters is locked.
    count: AtomicUsize,
}

impl Log {
    pub(super) fn new(at: StreamPosition, roster: Roster) -> Self {
        Self {
            published: watch::Sender::new(at),
            tail: RwLock::new(Tail {
                complete_after: at,
                entries: VecDeque::new(),
            }),
            waiting: Mutex::default(),
            roster,
            account_data: RwLock::default(),
            interests: Mutex::default(),
        }
    }

    /// Everything up to here is committed and can be read.
    #[must_use]
    pub(crate) fn position(&self) -> StreamPosition {
        *self.published.borrow()
    }

    /// The length of the log as it grows; for requests that wait for more. Workers use [`Log::follow`].
    #[must_use]
    pub(crate) fn positions(&self) -> watch::Receiver<StreamPosition> {
        self.published.subscribe()
    }

    /// Who of the local users is where, as of [`Log::position`].
    #[must_use]
    pub(crate) fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The entries after `position`, oldest first, if memory still has all of them.
    #[must_use]
    pub(crate) fn since(&self, position: StreamPosition) -> Option<Vec<Arc<Entry>>> {
        let tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
        (position >= tail.complete_after).then(|| {
            let start = tail
                .entries
                .partition_point(|entry| entry.position <= position);
            tail.entries.range(start..).cloned().collect()
        })
    }

    /// Memory has every entry after this position.
    #[must_use]
    pub(crate) fn reach(&self) -> StreamPosition {
        let tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
        tail.complete_after
    }

    /// As [`Log::since`], only those that are `wanted`.
    #[must_use]
    pub(crate) fn since_if(
        &self,
        position: StreamPosition,
        wanted: impl Fn(&Change) -> bool,
    ) -> Option<Vec<Arc<Entry>>> {
        let tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
        (position >= tail.complete_after).then(|| {
            let start = tail
                .entries
                .partition_point(|entry| entry.position <= position);
            let entries = tail.entries.range(start..);
            entries
                .filter(|entry| wanted(&entry.change))
                .cloned()
                .collect()
        })
    }

    /// When the account data of a user last changed, as far as that was since the start; zero otherwise.
    #[must_use]
    pub(crate) fn account_data_changed(&self, user_id: &UserId) -> StreamPosition {
        let changed = self.account_data.read();
        let changed = changed.unwrap_or_else(PoisonError::into_inner);
        changed.get(user_id).copied().unwrap_or_default()
    }

    /// Starts to watch for entries that concern `user_id`. Made before reading, so that nothing that
    /// comes after the read is missed.
    #[must_use]
    pub(crate) fn watch(self: &Arc<Self>, user_id: &UserId) -> Watch {
        let mut waiting = self.waiting();
        let waiter = waiting.entry(user_id.to_owned()).or_default().clone();
        waiter.count.fetch_add(1, Ordering::Relaxed);
        drop(waiting);
        Watch {
            log: self.clone(),
            user_id: user_id.to_owned(),
            waiter,
        }
    }

    /// Makes committed entries visible: called by the one writer, in the order of the positions.
    pub(super) fn publish(&self, entries: Vec<Entry>, position: StreamPosition) {
        let entries: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let mut audience = BTreeSet::new();
        for entry in &entries {
            // Before and after, so that who leaves learns of it as well as who joins.
            self.audience(&entry.change, &mut audience);
            if self.roster.apply(&entry.change) {
                self.audience(&entry.change, &mut audience);
            }
            if let Change::AccountData { user_id } = &entry.change {
                let changed = self.account_data.write();
                let mut changed = changed.unwrap_or_else(PoisonError::into_inner);
                changed.insert(user_id.clone(), entry.position);
            }
        }
        {
            let mut tail = self.tail.write().unwrap_or_else(PoisonError::into_inner);
            tail.entries.extend(entries.iter().cloned());
            while tail.entries.len() > TAIL_CAPACITY {
                if let Some(entry) = tail.entries.pop_front() {
                    tail.complete_after = entry.position;
                }
            }
        }
        {
            let interests = self.interests();
            self.published.send_replace(position);
            for interest in interests.iter() {
                interest.look(&entries, position);
            }
        }
        let waiting = self.waiting();
        for user_id in &audience {
            if let Some(waiter) = waiting.get(user_id) {
                waiter.notify.notify_waiters();
            }
        }
    }

    /// Adds the users among those who wait now that `change` concerns. Cost follows the smaller of two
    /// sets: who waits, and who is in the room.
    fn audience(&self, change: &Change, audience: &mut BTreeSet<OwnedUserId>) {
        let room = |room_id: &RoomId, audience: &mut BTreeSet<OwnedUserId>| {
            let waiting = self.waiting();
            self.roster
                .each_local_member(room_id, waiting.keys(), waiting.len(), |user_id| {
                    if waiting.contains_key(user_id) {
                        audience.insert(user_id.to_owned());
                    }
                });
        };
        match change {
            Change::Event(event) => {
                audience.extend(event.memberships.iter().map(|row| row.user_id.clone()));
                room(event.pdu.room_id(), audience);
            }
            Change::Completed(completed) => room(&completed.room_id, audience),
            Change::Receipt { room_id, .. }
            | Change::Redacted { room_id, .. }
            | Change::Typing { room_id } => room(room_id, audience),
            Change::OutsideMembership(Membership { user_id, .. })
            | Change::JoinedAgain { user_id, .. }
            | Change::AccountData { user_id }
            | Change::Profile { user_id }
            | Change::ThreadSubscription { user_id }
            | Change::ToDevice { user_id, .. }
            | Change::OneTimeKeys { user_id, .. }
            | Change::UserSignature {
                signer: user_id, ..
            } => {
                audience.insert(user_id.clone());
            }
            Change::Aliases { .. }
            | Change::FederationEdu { .. }
            | Change::Pushers { .. }
            | Change::ToldServers(_) => {}
            Change::DeviceList { user_id } | Change::Presence { user_id } => {
                audience.insert(user_id.clone());
                for room_id in self.roster.rooms_shared_with(user_id) {
                    room(&room_id, audience);
                }
            }
        }
    }

    fn interests(&self) -> MutexGuard<'_, Vec<Arc<Interest>>> {
        let interests = self.interests.lock();
        interests.unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<OwnedUserId, Arc<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for news of one user.
#[derive(Debug)]
pub(crate) struct Watch {
    log: Arc<Log>,
    user_id: OwnedUserId,
    waiter: Arc<Waiter>,
}

impl Watch {
    /// A future that ends when something that concerns the user was published after the call of this
    /// function.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.waiter.notify.notified()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut waiting = self.log.waiting();
        if self.waiter.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            waiting.remove(&self.user_id);
        }
    }
}
