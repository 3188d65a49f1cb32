//! What is to be looked at for each pusher: no notifications, but the rooms in which there may be some.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedRoomId, OwnedUserId};
use tokio::sync::Notify;

use crate::storage::{
    log::StreamPosition,
    pushers::{Progress, PusherId},
};

/// The pushers, and what is to be looked at for each of them.
#[derive(Debug, Default)]
pub(super) struct Queues(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Everything up to here in the log is marked.
    filled: StreamPosition,
    pushers: HashMap<PusherId, Queue>,
    users: HashMap<OwnedUserId, BTreeSet<PusherId>>,
    names: Arc<HashSet<OwnedUserId>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Everything up to here was looked at.
    done: StreamPosition,
    waiting: Work,
    /// What a task is looking at.
    taken: Option<Work>,
    running: bool,
    /// Its gateway does not answer, which is written down.
    failing: bool,
    hurry: Arc<Notify>,
}

/// What is to be looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    /// Every room.
    pub(super) all: bool,
    pub(super) rooms: BTreeSet<OwnedRoomId>,
    /// Whether the user may have less to read than before.
    pub(super) read: bool,
    /// The first entry of the log that is to be looked at.
    first: Option<StreamPosition>,
    /// Everything up to here was looked at before.
    pub(super) after: StreamPosition,
    /// Nothing after this is to be looked at yet: rooms may not be marked for it.
    pub(super) until: StreamPosition,
}

/// Something happened in a room of a user.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) user_id: OwnedUserId,
    pub(super) room_id: OwnedRoomId,
    /// Whether the user may have less to read than before.
    pub(super) read: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        !self.all && self.rooms.is_empty()
    }

    fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.read |= other.read;
        self.rooms.extend(other.rooms);
        self.first = match (self.first, other.first) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

impl Queues {
    /// Takes the next entry of the log in: the rooms that it marks. It is one step, so that nobody sees
    /// the position without the rooms.
    pub(super) fn apply(&self, position: StreamPosition, marks: Vec<Mark>) {
        let mut state = self.lock();
        let State { pushers, users, .. } = &mut *state;
        for mark in marks {
            for id in users.get(&mark.user_id).into_iter().flatten() {
                if let Some(queue) = pushers.get_mut(id) {
                    queue.waiting.merge(Work {
                        rooms: [mark.room_id.clone()].into(),
                        read: mark.read,
                        first: Some(position),
                        ..Work::default()
                    });
                }
            }
        }
        state.filled = position;
    }

    /// Learns of a pusher. One that is known stays as it is.
    pub(super) fn add(&self, id: &PusherId, progress: &Progress, at: StreamPosition) {
        let mut state = self.lock();
        let state = &mut *state;
        state.pushers.entry(id.clone()).or_insert_with(|| Queue {
            // What was looked at without result is not written down for each pusher.
            done: if progress.failures > 0 {
                progress.position
            } else {
                progress.position.max(at)
            },
            failing: progress.failures > 0,
            ..Queue::default()
        });
        let of_user = state.users.entry(id.user_id.clone()).or_default();
        of_user.insert(id.clone());
        Arc::make_mut(&mut state.names).insert(id.user_id.clone());
    }

    /// Forgets a pusher that is gone.
    pub(super) fn remove(&self, id: &PusherId) {
        let mut state = self.lock();
        state.pushers.remove(id);
        if let Some(of_user) = state.users.get_mut(&id.user_id) {
            of_user.remove(id);
            if of_user.is_empty() {
                state.users.remove(&id.user_id);
                Arc::make_mut(&mut state.names).remove(&id.user_id);
            }
        }
    }

    /// The users who have a pusher.
    pub(super) fn users(&self) -> Arc<HashSet<OwnedUserId>> {
        self.lock().names.clone()
    }

    pub(super) fn has_pushers(&self) -> bool {
        !self.lock().pushers.is_empty()
    }

    /// Everything is to be looked at.
    pub(super) fn mark_all(&self, id: &PusherId) {
        if let Some(queue) = self.lock().pushers.get_mut(id) {
            queue.waiting.all = true;
        }
    }

    /// The pushers that have something to look at and no task that does.
    pub(super) fn idle(&self) -> Vec<PusherId> {
        let state = self.lock();
        let idle = state.pushers.iter();
        let idle = idle.filter(|(_, queue)| !queue.running && !queue.waiting.is_empty());
        idle.map(|(id, _)| id.clone()).collect()
    }

    /// Claims the task of a pusher; whether there was none.
    pub(super) fn begin(&self, id: &PusherId) -> bool {
        let mut state = self.lock();
        let queue = state.pushers.get_mut(id);
        queue.is_some_and(|queue| !std::mem::replace(&mut queue.running, true))
    }

    /// Takes what is to be looked at; `None` ends the task.
    pub(super) fn take(&self, id: &PusherId) -> Option<Work> {
        let mut state = self.lock();
        let until = state.filled;
        let queue = state.pushers.get_mut(id)?;
        if queue.waiting.is_empty() {
            queue.running = false;
            return None;
        }
        let work = Work {
            after: queue.done,
            until,
            ..std::mem::take(&mut queue.waiting)
        };
        queue.taken = Some(work.clone());
        Some(work)
    }

    /// Everything that was taken was looked at.
    pub(super) fn finish(&self, id: &PusherId) {
        if let Some(queue) = self.lock().pushers.get_mut(id)
            && let Some(taken) = queue.taken.take()
        {
            queue.done = taken.until.max(queue.done);
            queue.failing = false;
        }
    }

    /// What was taken is to be looked at again, from `done` on.
    pub(super) fn put_back(&self, id: &PusherId, done: StreamPosition, failing: bool) {
        if let Some(queue) = self.lock().pushers.get_mut(id)
            && let Some(taken) = queue.taken.take()
        {
            queue.waiting.merge(taken);
            queue.done = done.max(queue.done);
            queue.failing = failing;
        }
    }

    /// Ends the pause of a pusher whose gateway did not answer.
    pub(super) fn hurry(&self, id: &PusherId) {
        if let Some(queue) = self.lock().pushers.get(id) {
            queue.hurry.notify_waiters();
        }
    }

    /// What [`Queues::hurry`] tells.
    pub(super) fn hurried(&self, id: &PusherId) -> Arc<Notify> {
        let state = self.lock();
        let queue = state.pushers.get(id);
        queue.map(|queue| queue.hurry.clone()).unwrap_or_default()
    }

    /// Everything up to here was looked at for all pushers but those of which it is written down that
    /// they are behind.
    pub(super) fn durable(&self) -> StreamPosition {
        let state = self.lock();
        let queues = state.pushers.values().filter(|queue| !queue.failing);
        let first = queues.flat_map(|queue| {
            let taken = queue.taken.as_ref().and_then(|work| work.first);
            [queue.waiting.first, taken]
        });
        let first = first.flatten().min();
        first.map_or(state.filled, |first| {
            StreamPosition(first.0 - 1).min(state.filled)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
