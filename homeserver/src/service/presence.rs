//! Who is there ([spec](https://spec.matrix.org/v1.19/client-server-api/#presence)).
//!
//! Kept in memory only: after a restart everybody is offline until they are heard of. A change takes a place in
//! the log; what is told of a user is worked out from what their devices said whenever somebody asks.
//! That somebody is active is read off the log, so nobody who sends anything need say so.

mod early;
mod state;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::FutureExt;
use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId, presence::PresenceState};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

pub(crate) use self::state::Status;
use self::{
    early::Early,
    state::{Local, Remote},
};
use super::accounts::Requester;
use crate::{
    clock::Clock,
    config,
    storage::{
        Storage, StorageError,
        log::{Change, StreamPosition},
    },
};

/// The longest message that users show, in bytes.
const MAX_MESSAGE: usize = 1_024;
/// How many users another server may tell of at once.
const MOST_UPDATES: usize = 1_000;

/// Knows who is there. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Presence(Arc<Inner>);

struct Inner {
    storage: Storage,
    clock: Clock,
    settings: config::Presence,
    known: Mutex<HashMap<OwnedUserId, Known>>,
    early: Early,
    /// Somebody came of whom nothing was known.
    begun: Notify,
    /// When something may next change by itself, in milliseconds since the Unix epoch.
    due: AtomicU64,
}

/// What is known of a user.
#[derive(Debug)]
struct Known {
    source: Source,
    /// What was last told to those who watch.
    told: Status,
    /// When that was, in the log and by the clock.
    position: StreamPosition,
    told_at: u64,
}

#[derive(Debug)]
enum Source {
    Local(Local),
    Remote(Remote),
}

impl Known {
    fn new(source: Source) -> Self {
        Self {
            source,
            told: Status::offline(),
            position: StreamPosition(0),
            told_at: 0,
        }
    }

    fn status(&self, now: u64) -> Status {
        match &self.source {
            Source::Local(local) => local.status(now),
            Source::Remote(remote) => remote.status(now),
        }
    }

    /// Whether those who watch must learn of what is so now.
    fn is_news(&self, now: u64) -> bool {
        let status = self.status(now);
        status.presence != self.told.presence || status.message != self.told.message
    }
}

/// Why a presence was not set or told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PresenceError {
    #[error("there is no such presence")]
    UnknownState,
    #[error("the status message is too long")]
    MessageTooLong,
    #[error("the user does not share a room with the other")]
    Forbidden,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Presence {
    pub(crate) fn new(storage: Storage, clock: Clock, settings: config::Presence) -> Self {
        Self(Arc::new(Inner {
            storage,
            clock,
            settings,
            known: Mutex::default(),
            early: Early::default(),
            begun: Notify::new(),
            due: AtomicU64::new(u64::MAX),
        }))
    }

    /// Whether other servers learn of local users, and are listened to.
    pub(crate) fn federates(&self) -> bool {
        self.0.settings.enabled && self.0.settings.federation
    }

    /// A user says what they are
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3presenceuseridstatus)).
    pub(crate) async fn set(
        &self,
        requester: &Requester,
        presence: PresenceState,
        message: Option<String>,
    ) -> Result<(), PresenceError> {
        if !is_known(&presence) {
            return Err(PresenceError::UnknownState);
        }
        if message
            .as_ref()
            .is_some_and(|text| text.len() > MAX_MESSAGE)
        {
            return Err(PresenceError::MessageTooLong);
        }
        let message = message.filter(|text| !text.is_empty());
        if self.0.settings.enabled {
            let now = self.now();
            self.local(&requester.user_id, |local| {
                let active = presence == PresenceState::Online;
                local.says(requester.device_id.clone(), presence, now);
                local.set_message(message);
                if active {
                    local.acts(now);
                }
            });
            self.tell([requester.user_id.clone()]).await?;
        }
        Ok(())
    }

    /// What a user may know of another
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3presenceuseridstatus)).
    pub(crate) fn of_user(
        &self,
        asker: &UserId,
        user_id: &UserId,
    ) -> Result<Status, PresenceError> {
        let roster = self.0.storage.log().roster();
        if asker != user_id && !roster.share_a_room(asker, user_id) {
            return Err(PresenceError::Forbidden);
        }
        Ok(self.status(user_id))
    }

    /// What a user is now.
    pub(crate) fn status(&self, user_id: &UserId) -> Status {
        let now = self.now();
        let known = self.known();
        let status = known.get(user_id).map(|known| known.status(now));
        status.unwrap_or_else(Status::offline)
    }

    /// When what is told of a user last changed, in the log.
    pub(crate) fn position(&self, user_id: &UserId) -> Option<StreamPosition> {
        self.known().get(user_id).map(|known| known.position)
    }

    /// Everybody of whom anything is known.
    pub(crate) fn everybody(&self) -> Vec<OwnedUserId> {
        self.known().keys().cloned().collect()
    }

    /// What other servers say of their users
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#presence)). What they may not say is left
    /// out.
    pub(crate) async fn receive_remote(
        &self,
        origin: &ServerName,
        content: &Value,
    ) -> Result<(), StorageError> {
        if !self.federates() {
            return Ok(());
        }
        let now = self.now();
        let updates = content.get("push").and_then(Value::as_array);
        let updates = updates.into_iter().flatten().take(MOST_UPDATES);
        let updates = updates.filter_map(|update| Update::deserialize(update).ok());
        let mut heard = Vec::new();
        for update in updates {
            if update.user_id.server_name() != origin || !is_known(&update.presence) {
                continue;
            }
            let (user_id, remote) = (update.user_id.clone(), update.remote(now));
            if self.0.storage.log().roster().knows(&user_id) {
                heard.push((user_id, remote));
            } else {
                self.0.early.keep(user_id, remote);
                self.0.begun.notify_one();
            }
        }
        self.hear(heard).await
    }

    /// Notes what is said of users of other servers.
    async fn hear(
        &self,
        said: impl IntoIterator<Item = (OwnedUserId, Remote)>,
    ) -> Result<(), StorageError> {
        let mut heard = Vec::new();
        for (user_id, remote) in said {
            let source = Source::Remote(remote);
            let mut known = self.known();
            if let Some(known) = known.get_mut(&user_id) {
                known.source = source;
            } else {
                known.insert(user_id.clone(), Known::new(source));
            }
            heard.push(user_id);
        }
        self.look_again(Some(self.now() + state::SILENT_AFTER));
        self.tell(heard).await
    }

    /// What other servers are told of local users, as the content of an `m.presence`.
    pub(crate) fn notice(&self, users: &BTreeSet<OwnedUserId>) -> Value {
        let now = self.now();
        let push = users.iter().map(|user_id| {
            let status = self.status(user_id);
            let mut update = content(&status, now);
            update["user_id"] = json!(user_id);
            // Others do without it, but not all can.
            if status.last_active.is_none() {
                update["last_active_ago"] = json!(0);
            }
            update
        });
        json!({ "push": push.collect::<Vec<_>>() })
    }

    /// What clients get, as an `m.presence` event.
    pub(crate) fn event(&self, user_id: &UserId) -> Value {
        let content = content(&self.status(user_id), self.now());
        json!({ "type": "m.presence", "sender": user_id, "content": content })
    }

    /// Gives what is news about some users a place in the log.
    async fn tell(&self, users: impl IntoIterator<Item = OwnedUserId>) -> Result<(), StorageError> {
        let now = self.now();
        let news: Vec<_> = {
            let known = self.known();
            let is_news =
                |user_id: &OwnedUserId| known.get(user_id).is_some_and(|k| k.is_news(now));
            users.into_iter().filter(is_news).collect()
        };
        self.publish(news).await
    }

    async fn publish(&self, users: Vec<OwnedUserId>) -> Result<(), StorageError> {
        if users.is_empty() {
            return Ok(());
        }
        let this = self.clone();
        let write = self.0.storage.write(move |tx| {
            async move {
                for user_id in users {
                    let change = Change::Presence {
                        user_id: user_id.clone(),
                    };
                    let position = tx.log(change);
                    let now = this.now();
                    // Before it is published, so that who is woken by it sees it.
                    if let Some(known) = this.known().get_mut(&user_id) {
                        known.told = known.status(now);
                        (known.position, known.told_at) = (position, now);
                    }
                }
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await?;
        self.0.begun.notify_one();
        Ok(())
    }

    /// Changes what is known of a local user.
    fn local(&self, user_id: &UserId, change: impl FnOnce(&mut Local)) {
        let mut known = self.known();
        let entry = known.entry(user_id.to_owned());
        let entry = entry.or_insert_with(|| Known::new(Source::Local(Local::default())));
        if let Source::Local(local) = &mut entry.source {
            change(local);
            self.look_again(local.due(self.now()));
        }
    }

    /// At this time something may change by itself.
    fn look_again(&self, due: Option<u64>) {
        if let Some(due) = due {
            self.0.due.fetch_min(due, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.0.clock.now().0.into()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<OwnedUserId, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device that asks for news.
#[derive(Debug)]
struct Key {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
}

/// What another server says of a user.
#[derive(Debug, Deserialize)]
struct Update {
    user_id: OwnedUserId,
    presence: PresenceState,
    status_msg: Option<String>,
    last_active_ago: Option<u64>,
    #[serde(default)]
    currently_active: Option<bool>,
}

impl Update {
    fn remote(self, now: u64) -> Remote {
        let message = self.status_msg.filter(|text| text.len() <= MAX_MESSAGE);
        let status = Status {
            currently_active: self.currently_active == Some(true)
                && self.presence == PresenceState::Online,
            presence: self.presence,
            message: message.filter(|text| !text.is_empty()),
            last_active: self.last_active_ago.map(|ago| now.saturating_sub(ago)),
        };
        Remote { status, heard: now }
    }
}

fn is_known(presence: &PresenceState) -> bool {
    matches!(
        presence,
        PresenceState::Online | PresenceState::Unavailable | PresenceState::Offline
    )
}

/// The content of an `m.presence` event
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mpresence)).
fn content(status: &Status, now: u64) -> Value {
    let mut content = json!({ "presence": status.presence });
    if let Some(last) = status.last_active {
        content["last_active_ago"] = json!(now.saturating_sub(last));
    }
    if status.presence == PresenceState::Online {
        content["currently_active"] = json!(status.currently_active);
    }
    if let Some(message) = &status.message {
        content["status_msg"] = json!(message);
    }
    content
}
