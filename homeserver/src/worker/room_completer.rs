//! Completes rooms that were joined without their members.
//!
//! What is to be done is in the table `partial_joins`, so that it goes on after a restart; the log only says
//! that there is something new.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ruma::{OwnedRoomId, RoomId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    service::membership::Remote,
    storage::{
        Storage, StorageError,
        log::{Change, StreamPosition},
    },
};

/// How long to wait when no server told the members: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(2);
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Completes rooms.
pub(crate) struct RoomCompleter {
    storage: Storage,
    remote: Remote,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// The rooms that are being completed.
    running: Arc<Mutex<BTreeSet<OwnedRoomId>>>,
}

impl RoomCompleter {
    pub(crate) fn new(
        storage: Storage,
        remote: Remote,
        (tasks, stopping): (TaskTracker, CancellationToken),
    ) -> Self {
        Self {
            storage,
            remote,
            tasks,
            stopping,
            running: Arc::default(),
        }
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let log = self.storage.log().follow(is_partial_join);
        let mut read = StreamPosition(0);
        loop {
            log.skip(&mut read);
            read = self.storage.log().position();
            if let Err(error) = self.begin().await {
                tracing::error!(%error, "rooms cannot be completed");
                tokio::select! {
                    () = tokio::time::sleep(AFTER_ERROR) => continue,
                    () = self.stopping.cancelled() => return,
                }
            }
            tokio::select! {
                () = log.woken() => {}
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// Begins with the rooms that nobody is at.
    async fn begin(&self) -> Result<(), StorageError> {
        for room_id in self.remote.incomplete().await? {
            if !self.enter(&room_id) {
                continue;
            }
            let (remote, stopping) = (self.remote.clone(), self.stopping.clone());
            let running = Running {
                running: self.running.clone(),
                room_id,
            };
            self.tasks.spawn(async move {
                tokio::select! {
                    () = complete(&remote, &running.room_id) => {}
                    () = stopping.cancelled() => {}
                }
            });
        }
        Ok(())
    }

    fn enter(&self, room_id: &RoomId) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(room_id.to_owned())
    }
}

/// A room that is being completed, until this is dropped.
struct Running {
    running: Arc<Mutex<BTreeSet<OwnedRoomId>>>,
    room_id: OwnedRoomId,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.room_id);
    }
}

async fn complete(remote: &Remote, room_id: &RoomId) {
    let mut pause = FIRST_PAUSE;
    loop {
        match remote.complete(room_id).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::error!(%room_id, %error, "a room was not completed"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn is_partial_join(change: &Change) -> bool {
    matches!(change, Change::ToldServers(_))
}
