//! Repeats changed names and pictures in the rooms of their users.
//!
//! What is to be done is in the table `profile_changes`, so that it is done after a restart as well; the log
//! only says that there is something new.

use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::{
    service::profiles::Profiles,
    storage::{
        Families, Storage, StorageError,
        log::{Change, StreamPosition},
    },
};

/// How many changes are read at once.
const PAGE: i64 = 100;
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Repeats profiles.
pub(crate) struct ProfileRepeater {
    storage: Storage,
    profiles: Profiles,
    stopping: CancellationToken,
}

impl ProfileRepeater {
    pub(crate) fn new(storage: Storage, profiles: Profiles, stopping: CancellationToken) -> Self {
        Self {
            storage,
            profiles,
            stopping,
        }
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let log = self.storage.log().follow(is_profile);
        // There may be something left from before the start.
        let (mut read, mut waits) = (self.storage.log().position(), true);
        loop {
            log.skip(&mut read);
            waits |= self.is_news(&mut read);
            if waits {
                match self.work().await {
                    Ok(()) => waits = false,
                    Err(error) => {
                        tracing::error!(%error, "profiles cannot be repeated");
                        tokio::select! {
                            () = tokio::time::sleep(AFTER_ERROR) => continue,
                            () = self.stopping.cancelled() => return,
                        }
                    }
                }
            }
            tokio::select! {
                () = log.woken() => {}
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// Whether a profile changed since.
    fn is_news(&self, read: &mut StreamPosition) -> bool {
        let log = self.storage.log();
        let end = log.position();
        let Some(entries) = log.since(*read) else {
            *read = end;
            return true;
        };
        *read = entries.last().map_or(end, |entry| entry.position);
        entries.iter().any(|entry| is_profile(&entry.change))
    }

    async fn work(&self) -> Result<(), StorageError> {
        loop {
            let mut reader = self.storage.read().await?;
            let changes = reader.profile_changes().oldest(PAGE).await?;
            drop(reader);
            if changes.is_empty() || self.stopping.is_cancelled() {
                return Ok(());
            }
            for (user_id, position) in changes {
                tokio::select! {
                    repeated = self.profiles.repeat(&user_id) => repeated?,
                    // What is left is done after the next start.
                    () = self.stopping.cancelled() => return Ok(()),
                }
                let done = self.storage.write(move |tx| {
                    async move { tx.profile_changes().done(&user_id, position).await }.boxed()
                });
                done.await.map_err(|error: StorageError| error)?;
            }
        }
    }
}

fn is_profile(change: &Change) -> bool {
    matches!(change, Change::Profile { .. })
}
