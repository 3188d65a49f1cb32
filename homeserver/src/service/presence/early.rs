//! What other servers say too early: whoever comes into a room of another server is told who is there, before
//! the join is complete here and anybody knows whom that is about.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedUserId, UserId};

use super::state::Remote;

/// Of how many users this is kept at most, and for how long, in milliseconds.
const MOST: usize = 1_000;
const KEPT_FOR: u64 = 60_000;

/// Users with whom nobody here shares a room, yet.
#[derive(Debug, Default)]
pub(super) struct Early(Mutex<HashMap<OwnedUserId, Remote>>);

impl Early {
    /// Keeps what is said of a user, if there is room for it.
    pub(super) fn keep(&self, user_id: OwnedUserId, remote: Remote) {
        let mut early = self.lock();
        let now = remote.heard;
        if early.len() >= MOST {
            early.retain(|_, remote| now < remote.heard + KEPT_FOR);
        }
        if early.len() < MOST {
            early.insert(user_id, remote);
        }
    }

    /// What was said of users who are known by now; what is too old is forgotten.
    pub(super) fn take(
        &self,
        now: u64,
        is_known: impl Fn(&UserId) -> bool,
    ) -> HashMap<OwnedUserId, Remote> {
        let mut early = self.lock();
        if early.is_empty() {
            return HashMap::new();
        }
        let (known, unknown) = std::mem::take(&mut *early)
            .into_iter()
            .filter(|(_, remote)| now < remote.heard + KEPT_FOR)
            .partition(|(user_id, _)| is_known(user_id));
        *early = unknown;
        known
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnedUserId, Remote>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use ruma::user_id;

    use super::*;
    use crate::service::presence::Status;

    #[test]
    fn what_came_too_early_is_kept_for_a_minute() {
        let early = Early::default();
        let (alice, bob) = (user_id!("@alice:b.test"), user_id!("@bob:b.test"));
        let heard = |heard| Remote {
            status: Status::offline(),
            heard,
        };
        early.keep(alice.to_owned(), heard(1_000));
        early.keep(bob.to_owned(), heard(30_000));
        assert!(early.take(2_000, |_| false).is_empty());
        let taken = early.take(61_000, |_| true);
        assert_eq!(taken.into_keys().collect::<Vec<_>>(), [bob]);
        assert!(early.take(61_000, |_| true).is_empty());
    }

    #[test]
    fn strangers_do_not_fill_memory() {
        let early = Early::default();
        for number in 0..2 * MOST {
            let user_id = UserId::parse(format!("@u{number}:b.test")).unwrap();
            let status = Status::offline();
            early.keep(user_id, Remote { status, heard: 1 });
        }
        assert_eq!(early.take(2, |_| true).len(), MOST);
    }
}
