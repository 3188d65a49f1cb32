//! Who is typing
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#typing-notifications)). Kept in memory only:
//! after a restart nobody types.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    api::federation::transactions::edu::TypingContent,
};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    storage::{
        Storage, StorageError,
        log::{Change, StreamPosition},
    },
};

/// The longest that one notice lasts.
const LONGEST: Duration = Duration::from_mins(2);
/// How long a notice from another server lasts if its end is lost.
const REMOTE: Duration = Duration::from_mins(1);
/// How often those who have stopped are looked for, while somebody types.
const SWEEP: Duration = Duration::from_millis(500);

/// Who is typing where.
#[derive(Clone, Debug)]
pub(crate) struct Typing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: Storage,
    clock: Clock,
    rooms: Mutex<HashMap<OwnedRoomId, TypingRoom>>,
    begun: Notify,
}

#[derive(Debug, Default)]
struct TypingRoom {
    /// Until when, in milliseconds since the Unix epoch.
    users: BTreeMap<OwnedUserId, u64>,
    /// When the set of users last changed.
    position: StreamPosition,
}

/// Why a notice was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TypingError {
    #[error("the user is not in the room")]
    NotJoined,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Typing {
    pub(crate) fn new(storage: Storage, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            storage,
            clock,
            rooms: Mutex::default(),
            begun: Notify::new(),
        }))
    }

    /// A local user types for some time, or stops.
    pub(crate) async fn set(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        lasts: Option<Duration>,
    ) -> Result<(), TypingError> {
        if !self.0.storage.log().roster().is_joined(user_id, room_id) {
            return Err(TypingError::NotJoined);
        }
        Ok(self.put(user_id, room_id, lasts).await?)
    }

    /// A notice of another server. What it may not say is ignored.
    pub(crate) async fn receive_remote(
        &self,
        origin: &ServerName,
        content: &TypingContent,
    ) -> Result<(), StorageError> {
        let TypingContent {
            room_id,
            user_id,
            typing,
            ..
        } = content;
        let roster = self.0.storage.log().roster();
        if user_id.server_name() != origin || !roster.may_be_joined(user_id, room_id) {
            return Ok(());
        }
        self.put(user_id, room_id, typing.then_some(REMOTE)).await
    }

    /// Who types in a room, and since when that is so; `None` if nobody did since the server started.
    pub(crate) fn in_room(&self, room_id: &RoomId) -> Option<(StreamPosition, Vec<OwnedUserId>)> {
        let now = self.now();
        let rooms = self.rooms();
        let room = rooms.get(room_id)?;
        let roster = self.0.storage.log().roster();
        let users = room.users.iter().filter(|(_, until)| **until > now);
        let users = users.filter(|(user_id, _)| roster.may_be_joined(user_id, room_id));
        Some((room.position, users.map(|user| user.0.clone()).collect()))
    }

    /// Ends notices whose time is up, until the server stops.
    pub(crate) async fn expire(self, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            let begun = self.0.begun.notified();
            if !self.anybody() {
                tokio::select! {
                    () = begun => {}
                    () = stopping.cancelled() => return,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP) => {}
                () = stopping.cancelled() => return,
            }
            for (room_id, user_id) in self.expired() {
                if let Err(error) = self.put(&user_id, &room_id, None).await {
                    tracing::warn!(%error, "a typing notice could not be ended");
                }
            }
        }
    }

    async fn put(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        lasts: Option<Duration>,
    ) -> Result<(), StorageError> {
        let lasts = lasts.map(|lasts| lasts.min(LONGEST).as_millis());
        let until = lasts.map(|lasts| self.now() + u64::try_from(lasts).unwrap_or_default());
        if self.extend(user_id, room_id, until) {
            return Ok(());
        }
        let (this, user_id, room_id) = (self.clone(), user_id.to_owned(), room_id.to_owned());
        let notice = json!({ "room_id": room_id, "user_id": user_id, "typing": until.is_some() });
        let servers = self
            .0
            .storage
            .log()
            .roster()
            .servers_to_tell(&user_id, &room_id);
        let write = self.0.storage.write(move |tx| {
            async move {
                let change = Change::Typing {
                    room_id: room_id.clone(),
                };
                for server in servers {
                    tx.push_edu(&server, "m.typing", &notice.to_string())
                        .await?;
                }
                let position = tx.log(change);
                // Before it is published, so that who is woken by it sees it.
                let mut rooms = this.rooms();
                let room = rooms.entry(room_id).or_default();
                match until {
                    Some(until) => room.users.insert(user_id, until),
                    None => room.users.remove(&user_id),
                };
                room.position = position;
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await?;
        self.0.begun.notify_one();
        Ok(())
    }

    /// Changes only until when the user types; false if that changes who types.
    fn extend(&self, user_id: &UserId, room_id: &RoomId, until: Option<u64>) -> bool {
        let mut rooms = self.rooms();
        let users = rooms.get_mut(room_id).map(|room| &mut room.users);
        match (users.and_then(|users| users.get_mut(user_id)), until) {
            (Some(now), Some(until)) => {
                *now = until;
                true
            }
            (None, None) => true,
            _ => false,
        }
    }

    fn anybody(&self) -> bool {
        self.rooms().values().any(|room| !room.users.is_empty())
    }

    fn expired(&self) -> Vec<(OwnedRoomId, OwnedUserId)> {
        let now = self.now();
        let rooms = self.rooms();
        let mut expired = Vec::new();
        for (room_id, room) in rooms.iter() {
            let over = room.users.iter().filter(|(_, until)| **until <= now);
            expired.extend(over.map(|(user_id, _)| (room_id.clone(), user_id.clone())));
        }
        expired
    }

    fn now(&self) -> u64 {
        self.0.clock.now().0.into()
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<OwnedRoomId, TypingRoom>> {
        self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
