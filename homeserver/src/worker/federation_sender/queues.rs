//! What waits for each server, in memory.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use ruma::{OwnedServerName, OwnedUserId, ServerName};

use crate::storage::{destinations::Behind, events::StoredEvent, log::StreamPosition};

/// A server with more events waiting than this is behind, and gets them from the database.
const LONGEST: usize = 1_000;

/// The queues of all servers.
#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: Mutex<HashMap<OwnedServerName, Queue>>,
    /// Events up to here are in the queues that they belong into.
    filled: AtomicI64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Events that wait, oldest first; those of the transaction under way are still here.
    events: VecDeque<Waiting>,
    /// Set while the server is behind.
    behind: Option<Behind>,
    /// The newest event that is not in the queue because the server is behind.
    passed_over: StreamPosition,
    /// Whether a task sends to the server.
    busy: bool,
    /// Whether the task must look again before it ends.
    news: bool,
    /// Whether something other than events may wait, in the database.
    edus: bool,
    /// Local users of whose presence the server is to learn, whatever it is by then.
    presence: BTreeSet<OwnedUserId>,
}

/// An event and its place.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) position: StreamPosition,
    pub(super) event: Arc<StoredEvent>,
}

/// What to do for a server next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send these, the oldest that wait.
    Send {
        events: Vec<Waiting>,
        /// Whether something other than events may wait, in the database.
        edus: bool,
        /// Of whose presence to tell. They wait no longer: presence that does not arrive is old anyway.
        presence: BTreeSet<OwnedUserId>,
    },
    /// Find out what it missed.
    CatchUp(Behind),
}

impl Queues {
    /// Adds an event; whether somebody has to be woken for it.
    pub(super) fn push(
        &self,
        server: &ServerName,
        event: &Arc<StoredEvent>,
        position: StreamPosition,
    ) -> bool {
        let mut queues = self.lock();
        let queue = queues.entry(server.to_owned()).or_default();
        queue.news = true;
        if queue.behind.is_some() {
            queue.passed_over = position;
        } else {
            queue.events.push_back(Waiting {
                position,
                event: event.clone(),
            });
        }
        !queue.busy
    }

    /// Something other than an event waits in the database.
    pub(super) fn push_edu(&self, server: &ServerName) {
        let mut queues = self.lock();
        let queue = queues.entry(server.to_owned()).or_default();
        (queue.edus, queue.news) = (true, true);
    }

    /// The server is to learn of the presence of local users, unless it is behind.
    pub(super) fn push_presence(
        &self,
        server: &ServerName,
        users: impl IntoIterator<Item = OwnedUserId>,
    ) {
        let mut queues = self.lock();
        let queue = queues.entry(server.to_owned()).or_default();
        if queue.behind.is_none() {
            queue.presence.extend(users);
            queue.news = true;
        }
    }

    /// The database was found to have nothing more, before anything came again.
    pub(super) fn no_edus(&self, server: &ServerName) {
        if let Some(queue) = self.lock().get_mut(server)
            && !queue.news
        {
            queue.edus = false;
        }
    }

    /// The router has come this far.
    pub(super) fn fill(&self, position: StreamPosition) {
        self.filled.store(position.0, Ordering::Release);
    }

    /// Takes the task of sending to a server; false if somebody has it.
    pub(super) fn begin(&self, server: &ServerName) -> bool {
        let mut queues = self.lock();
        let queue = queues.entry(server.to_owned()).or_default();
        queue.news = true;
        !std::mem::replace(&mut queue.busy, true)
    }

    /// What to do next.
    pub(super) fn next(&self, server: &ServerName, most: usize) -> Next {
        let mut queues = self.lock();
        let queue = queues.entry(server.to_owned()).or_default();
        queue.news = false;
        match queue.behind {
            Some(behind) => Next::CatchUp(behind),
            None => Next::Send {
                events: queue.events.iter().take(most).cloned().collect(),
                edus: queue.edus,
                presence: std::mem::take(&mut queue.presence),
            },
        }
    }

    /// Gives the task of sending back, if nothing came meanwhile.
    pub(super) fn end(&self, server: &ServerName) -> bool {
        let mut queues = self.lock();
        let Some(queue) = queues.get_mut(server) else {
            return true;
        };
        let waits = queue.edus || !queue.events.is_empty() || !queue.presence.is_empty();
        if queue.news || waits {
            return false;
        }
        queue.busy = false;
        if queue.behind.is_none() {
            queues.remove(server);
        }
        true
    }

    /// Gives the task of sending back, whatever waits: the server stops.
    pub(super) fn abandon(&self, server: &ServerName) {
        if let Some(queue) = self.lock().get_mut(server) {
            queue.busy = false;
        }
    }

    /// Removes events that were sent.
    pub(super) fn sent(&self, server: &ServerName, count: usize) {
        if let Some(queue) = self.lock().get_mut(server)
            && queue.behind.is_none()
        {
            queue.events.drain(..count.min(queue.events.len()));
        }
    }

    /// Whether more waits than memory should hold.
    pub(super) fn is_too_long(&self, server: &ServerName) -> bool {
        let queues = self.lock();
        queues
            .get(server)
            .is_some_and(|queue| queue.events.len() > LONGEST)
    }

    /// What a server has got: everything before the oldest event that waits for it.
    pub(super) fn delivered(&self, server: &ServerName) -> StreamPosition {
        // Read first: what is put into the queue from now on is later.
        let filled = StreamPosition(self.filled.load(Ordering::Acquire));
        let queues = self.lock();
        let oldest = queues.get(server).and_then(|queue| queue.events.front());
        oldest.map_or(filled, |oldest| StreamPosition(oldest.position.0 - 1))
    }

    /// From now on the server is behind. It is written down already.
    pub(super) fn set_behind(&self, server: &ServerName, behind: Behind) {
        let mut queues = self.lock();
        let queue = queues.entry(server.to_owned()).or_default();
        if let Some(last) = queue.events.back() {
            queue.passed_over = last.position;
        }
        queue.events.clear();
        queue.presence.clear();
        queue.behind = Some(behind);
    }

    /// The server has got everything up to `position`; whether that is all, so that it is not behind any
    /// more.
    pub(super) fn catch_up(&self, server: &ServerName, position: StreamPosition) -> bool {
        let mut queues = self.lock();
        let Some(queue) = queues.get_mut(server) else {
            return true;
        };
        if queue.passed_over <= position {
            queue.behind = None;
            return true;
        }
        if let Some(behind) = &mut queue.behind {
            behind.position = position;
        }
        false
    }

    /// The oldest event that waits for a server that is not behind.
    pub(super) fn oldest(&self) -> Option<StreamPosition> {
        let queues = self.lock();
        let fronts = queues.values().filter_map(|queue| queue.events.front());
        fronts.map(|waiting| waiting.position).min()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnedServerName, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
