//! Workers that read the log forward and are woken only for what they want.
//!
//! The writer asks each of them about every entry, which is cheap, instead of waking all of them for each
//! message, which is not: waking a task costs more than a lone message may.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Change, Entry, Log, StreamPosition};

/// How far the log may go on before a worker is woken that wants nothing of it, so that it can write its
/// place down.
const WAKE_AFTER: i64 = 5_000;

/// The place of one worker in the wake of the log.
#[derive(Debug)]
pub(crate) struct Follower {
    log: Arc<Log>,
    interest: Arc<Interest>,
}

/// What a worker wants of the log, and what it was not told of yet.
pub(super) struct Interest {
    wants: Box<dyn Fn(&Change) -> bool + Send + Sync>,
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Debug)]
struct State {
    /// The first and the last entry that are wanted and perhaps not read.
    unread: Option<(StreamPosition, StreamPosition)>,
    /// Everything up to here was looked at.
    until: StreamPosition,
    woken: StreamPosition,
}

impl std::fmt::Debug for Interest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interest")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Begins to follow the log. `wants` is asked once for each entry that is published from now on, when
    /// the roster already knows of it.
    #[must_use]
    pub(crate) fn follow(
        self: &Arc<Self>,
        wants: impl Fn(&Change) -> bool + Send + Sync + 'static,
    ) -> Follower {
        // No entry may be published between the look at the position and the start of the interest.
        let mut interests = self.interests();
        let now = self.position();
        let interest = Arc::new(Interest {
            wants: Box::new(wants),
            state: Mutex::new(State {
                // Nobody knows what there was before.
                unread: Some((StreamPosition(0), now)),
                until: now,
                woken: now,
            }),
            notify: Notify::new(),
        });
        interests.push(interest.clone());
        Follower {
            log: self.clone(),
            interest,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut interests = self.log.interests();
        interests.retain(|interest| !Arc::ptr_eq(interest, &self.interest));
    }
}

impl Follower {
    /// Moves `read`, the position up to which the worker has read, over entries that it does not want.
    pub(crate) fn skip(&self, read: &mut StreamPosition) {
        let mut state = self.interest.lock();
        match state.unread {
            Some((first, last)) if *read < last => {
                *read = (*read).max(StreamPosition(first.0 - 1));
            }
            _ => {
                state.unread = None;
                *read = (*read).max(state.until);
            }
        }
    }

    /// Ends when there is something to read, perhaps also when there is not.
    pub(crate) async fn woken(&self) {
        self.interest.notify.notified().await;
    }
}

impl Interest {
    /// Looks at what was published.
    pub(super) fn look(&self, entries: &[Arc<Entry>], position: StreamPosition) {
        let mut wanted = entries.iter().filter(|entry| (self.wants)(&entry.change));
        let first = wanted.next().map(|entry| entry.position);
        let last = wanted.next_back().map(|entry| entry.position).or(first);
        let mut state = self.lock();
        state.until = position;
        if let (Some(first), Some(last)) = (first, last) {
            let before = state.unread.map(|(before, _)| before);
            state.unread = Some((before.unwrap_or(first), last));
        }
        if first.is_some() || position.0 - state.woken.0 >= WAKE_AFTER {
            state.woken = position;
            drop(state);
            self.notify.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use ruma::{room_id, server_name, user_id};

    use super::*;
    use crate::storage::roster::Roster;

    fn log() -> Arc<Log> {
        let roster = Roster::new(server_name!("a.org"), Vec::new());
        Arc::new(Log::new(StreamPosition(7), roster))
    }

    fn publish(log: &Log, position: i64, wanted: bool) {
        let change = if wanted {
            Change::Pushers {
                user_id: user_id!("@a:a.org").to_owned(),
            }
        } else {
            Change::Typing {
                room_id: room_id!("!a:a.org").to_owned(),
            }
        };
        let position = StreamPosition(position);
        log.publish(vec![Entry { position, change }], position);
    }

    fn follow(log: &Arc<Log>) -> Follower {
        log.follow(|change| matches!(change, Change::Pushers { .. }))
    }

    #[test]
    fn what_nobody_wants_wakes_nobody() {
        let log = log();
        let follower = follow(&log);
        publish(&log, 8, false);
        assert!(follower.woken().now_or_never().is_none());
        publish(&log, 9, true);
        assert!(follower.woken().now_or_never().is_some());
        publish(&log, 10, false);
        assert!(follower.woken().now_or_never().is_none());
        publish(&log, 9 + WAKE_AFTER, false);
        assert!(follower.woken().now_or_never().is_some());
    }

    #[test]
    fn what_was_there_before_is_not_skipped() {
        let log = log();
        let follower = follow(&log);
        publish(&log, 8, false);
        let mut read = StreamPosition(3);
        follower.skip(&mut read);
        assert_eq!(read, StreamPosition(3));
        read = StreamPosition(7);
        follower.skip(&mut read);
        assert_eq!(read, StreamPosition(8));
    }

    proptest! {
        /// Whenever the worker is not woken, it has read everything that it wants.
        #[test]
        fn nothing_wanted_is_skipped(steps in prop::collection::vec((any::<bool>(), 0..4_usize), 1..60)) {
            let log = log();
            let follower = follow(&log);
            let (mut read, mut got, mut wanted) = (StreamPosition(7), Vec::new(), Vec::new());
            for (position, (is_wanted, entries)) in (8..).zip(steps) {
                publish(&log, position, is_wanted);
                wanted.extend(is_wanted.then_some(StreamPosition(position)));
                // The worker may be late, and may fail after some entries.
                if entries == 0 {
                    continue;
                }
                follower.skip(&mut read);
                for entry in log.since(read).unwrap_or_default().iter().take(entries) {
                    read = entry.position;
                    if matches!(entry.change, Change::Pushers { .. }) {
                        got.push(entry.position);
                    }
                }
            }
            follower.skip(&mut read);
            let rest = log.since(read).unwrap_or_default();
            let rest = rest.iter().filter(|entry| matches!(entry.change, Change::Pushers { .. }));
            got.extend(rest.map(|entry| entry.position));
            prop_assert_eq!(got, wanted);
        }
    }
}
