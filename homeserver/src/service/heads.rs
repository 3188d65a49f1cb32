//! The heads of rooms, in a pipeline.
//!
//! The head of a room is held while an event is decided upon, not while it is committed: the next event
//! builds on the head that this one will make. Should the commit fail, whatever was built on it fails too,
//! because the database compares heads before it swaps them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, RoomId};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::storage::{
    Families, Storage, StorageError,
    append::{Append, AppendError, Appended},
    partial_joins::Members,
    rooms::Room,
};

/// How long a request waits for the members of a room.
const PATIENCE: Duration = Duration::from_secs(30);

/// The heads that are in memory.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    storage: Storage,
    slots: Arc<Cache<OwnedRoomId, Arc<Shared>>>,
}

/// What is known of a room.
#[derive(Debug)]
struct Shared {
    /// `None` if memory does not have it.
    next: Arc<Mutex<Option<Next>>>,
    committed: watch::Sender<Committed>,
}

/// A room as the next event will find it.
#[derive(Debug)]
struct Next {
    room: Room,
    /// How many appends had failed when this was built. If more have, it may be built on what is not there.
    failures: u64,
}

/// How far the appends to a room have come.
#[derive(Clone, Copy, Debug)]
struct Committed {
    /// The version of the head that is in the database, or an earlier one.
    version: i64,
    /// How many appends failed.
    failures: u64,
}

impl Default for Shared {
    fn default() -> Self {
        let nothing = Committed {
            version: i64::MIN,
            failures: 0,
        };
        Self {
            next: Arc::default(),
            committed: watch::Sender::new(nothing),
        }
    }
}

impl Shared {
    /// Says that this version of the head is in the database.
    fn reached(&self, version: i64) {
        self.committed.send_if_modified(|committed| {
            let news = version > committed.version;
            committed.version = committed.version.max(version);
            news
        });
    }

    fn failed(&self) {
        self.committed
            .send_modify(|committed| committed.failures += 1);
    }

    fn failures(&self) -> u64 {
        self.committed.borrow().failures
    }

    /// Whether the next event can build on this.
    fn is_good(&self, next: Option<&Next>) -> bool {
        next.is_some_and(|next| next.failures == self.failures())
    }

    /// Puts there what the database has.
    fn fill(&self, next: &mut Option<Next>, room: Option<Room>, failures: u64) {
        if let Some(room) = &room {
            self.reached(room.head_version);
        }
        *next = room.map(|room| Next { room, failures });
    }
}

/// A room that nobody else appends to while this is held. Not to be held over a network call.
#[derive(Debug)]
pub(crate) struct Slot {
    storage: Storage,
    shared: Arc<Shared>,
    guard: OwnedMutexGuard<Option<Next>>,
    /// How many appends had failed when the room was found.
    failures: u64,
}

impl Heads {
    pub(crate) fn new(storage: Storage) -> Self {
        Self {
            storage,
            slots: Arc::new(Cache::new(16_384)),
        }
    }

    /// Takes hold of a room; the room is `None` if the server does not know it.
    pub(crate) async fn hold(&self, room_id: &RoomId) -> Result<Slot, StorageError> {
        let shared = self.shared(room_id);
        let mut guard = shared.next.clone().lock_owned().await;
        let failures = shared.failures();
        if guard.as_ref().is_none_or(|next| next.failures != failures) {
            let room = self.storage.read().await?.rooms().by_id(room_id).await?;
            shared.fill(&mut guard, room, failures);
        }
        Ok(Slot {
            storage: self.storage.clone(),
            shared,
            guard,
            failures,
        })
    }

    fn shared(&self, room_id: &RoomId) -> Arc<Shared> {
        if let Some(slot) = self.slots.get(room_id) {
            return slot;
        }
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.slots.get_or_insert_with(room_id, fresh) {
            Ok(slot) => slot,
            Err(never) => match never {},
        }
    }

    /// Many rooms as [`Heads::room`] finds them. Those that memory does not have are read together.
    pub(crate) async fn rooms(
        &self,
        room_ids: &[OwnedRoomId],
    ) -> Result<BTreeMap<OwnedRoomId, Room>, StorageError> {
        let mut guards = Vec::new();
        for room_id in room_ids {
            let shared = self.shared(room_id);
            // One that is held right now is waited for below.
            if let Ok(guard) = shared.next.clone().try_lock_owned()
                && !shared.is_good(guard.as_ref())
            {
                let failures = shared.failures();
                guards.push((room_id.clone(), shared, guard, failures));
            }
        }
        if !guards.is_empty() {
            let missing: Vec<_> = guards.iter().map(|(room_id, ..)| room_id.clone()).collect();
            let read = self.storage.read().await?.rooms().by_ids(&missing).await?;
            let mut read: BTreeMap<_, _> = read
                .into_iter()
                .map(|room| (room.room_id.clone(), room))
                .collect();
            for (room_id, shared, mut guard, failures) in guards {
                shared.fill(&mut guard, read.remove(&room_id), failures);
            }
        }
        let mut rooms = BTreeMap::new();
        for room_id in room_ids {
            if let Some(room) = self.room(room_id).await? {
                rooms.insert(room_id.clone(), room);
            }
        }
        Ok(rooms)
    }

    /// The room with everything that was appended so far, once that is in the database: nobody is shown
    /// what a crash could take back.
    pub(crate) async fn room(&self, room_id: &RoomId) -> Result<Option<Room>, StorageError> {
        loop {
            let slot = self.hold(room_id).await?;
            let mut committed = slot.shared.committed.subscribe();
            let failures = committed.borrow().failures;
            let Some(room) = slot.room().cloned() else {
                return Ok(None);
            };
            drop(slot);
            let decided =
                |now: &Committed| now.version >= room.head_version || now.failures != failures;
            // Should the sender be gone, whoever appended is gone too: look again.
            let done = committed.wait_for(decided).await;
            if done.is_ok_and(|now| now.version >= room.head_version) {
                return Ok(Some(room));
            }
        }
    }
}

impl Heads {
    /// Waits, though not for ever, until the members of a room are known.
    pub(crate) async fn whole(&self, room_id: &RoomId) -> Result<(), StorageError> {
        let waiting = async {
            let mut positions = self.storage.log().positions();
            while self.room(room_id).await?.is_some_and(|room| room.partial) {
                if positions.changed().await.is_err() {
                    return Err(StorageError::Stopped);
                }
            }
            Ok(())
        };
        // What is known by then has to do.
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or(Ok(()))
    }
}

impl Slot {
    /// The room.
    pub(crate) fn room(&self) -> Option<&Room> {
        self.guard.as_ref().map(|next| &next.room)
    }

    /// Appends, and lets go of the room as soon as the order is fixed. `None` if the head had moved:
    /// gather and decide again. Memory learns the outcome also if whoever waits for it goes away.
    pub(crate) async fn append(mut self, append: Append) -> Result<Option<Appended>, AppendError> {
        let after = Room {
            nid: append.room_nid,
            room_id: append.room_id.clone(),
            version: append.version.clone(),
            head_version: append.head.version,
            head: Some(append.head.clone()),
            partial: match &append.gaps.members {
                Some(Members::Missing(_)) => true,
                Some(Members::Known | Members::Came(_)) => false,
                None => self.guard.as_ref().is_some_and(|next| next.room.partial),
            },
        };
        let mut changed: Vec<_> = Vec::new();
        if let Some(Members::Came(completion)) = &append.gaps.members {
            changed.extend(completion.events.iter().map(|event| event.nid));
        }
        let (storage, shared) = (self.storage.clone(), self.shared.clone());
        let version = after.head_version;
        let learn = move |outcome: &Result<Appended, AppendError>| match outcome {
            Ok(appended) => {
                for nid in changed {
                    storage.event_cache().forget(nid);
                }
                for event in &appended.events {
                    storage.event_cache().replace(event);
                }
                shared.reached(version);
            }
            Err(_) => shared.failed(),
        };
        let answer = self.storage.enqueue(append, learn).await?;
        *self.guard = Some(Next {
            room: after,
            failures: self.failures,
        });
        drop(self.guard);
        match answer.await.unwrap_or(Err(StorageError::Stopped.into())) {
            Ok(appended) => Ok(Some(appended)),
            Err(AppendError::HeadMoved) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets what memory has of the room, after something outside of appends changed it.
    pub(crate) fn forget(mut self) {
        *self.guard = None;
    }
}
