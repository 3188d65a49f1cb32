//! Telling other servers who is there
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#presence)).
//!
//! What changes within a moment is told at once, to the servers that share a room with the user, and only
//! what is so by then. Nothing is stored: a server that was away learns of it with the next change.

use std::{
    collections::BTreeSet,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, UserId, events::room::member::MembershipState, presence::PresenceState};
use serde_json::Value;

use super::FederationSender;
use crate::storage::events::StoredEvent;

/// How often other servers learn of changes, at most.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(1);
/// How many users one server is told of at once.
const MOST_USERS: usize = 200;

impl FederationSender {
    /// The presence of a user changed; those of other servers are none of ours to tell.
    pub(super) fn saw(&self, user_id: &UserId) {
        let own = self.0.federation.server_name();
        if user_id.server_name() == own && self.0.presence.federates() {
            self.seen().insert(user_id.to_owned());
        }
    }

    /// Whether anybody's presence is to be told.
    pub(super) fn has_seen(&self) -> bool {
        !self.seen().is_empty()
    }

    /// Puts the users whose presence changed into the queues of the servers that share rooms with them.
    pub(super) fn tell_presence(&self) {
        let users = std::mem::take(&mut *self.seen());
        let roster = self.0.storage.log().roster();
        for user_id in users {
            let mut servers = BTreeSet::new();
            for room_id in roster.rooms_shared_with(&user_id) {
                servers.extend(roster.remote_servers(&room_id));
            }
            for server in servers {
                self.0.queues.push_presence(&server, [user_id.clone()]);
                self.wake(server);
            }
        }
    }

    /// Those who meet in a room learn who of the others is there.
    pub(super) fn introduce(&self, event: &StoredEvent) {
        let roster = self.0.storage.log().roster();
        let own = self.0.federation.server_name();
        if !self.0.presence.federates() {
            return;
        }
        for row in &event.memberships {
            if row.place.membership != MembershipState::Join {
                continue;
            }
            let home = row.user_id.server_name();
            if home == own {
                if !self.is_offline(&row.user_id) {
                    for server in roster.remote_servers(&row.room_id) {
                        self.0.queues.push_presence(&server, [row.user_id.clone()]);
                        self.wake(server);
                    }
                }
                continue;
            }
            let members = roster.local_members(&row.room_id).into_iter();
            let there: Vec<_> = members
                .filter(|user_id| !self.is_offline(user_id))
                .collect();
            if !there.is_empty() {
                self.0.queues.push_presence(home, there);
                self.wake(home.to_owned());
            }
        }
    }

    /// What a server is told of users.
    pub(super) fn notice(&self, users: &BTreeSet<OwnedUserId>) -> Option<Value> {
        let users: BTreeSet<_> = users.iter().take(MOST_USERS).cloned().collect();
        (!users.is_empty()).then(|| self.0.presence.notice(&users))
    }

    fn is_offline(&self, user_id: &UserId) -> bool {
        self.0.presence.status(user_id).presence == PresenceState::Offline
    }

    fn seen(&self) -> MutexGuard<'_, BTreeSet<OwnedUserId>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
