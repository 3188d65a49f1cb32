//! Fetching stale device lists of remote users until they are right
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#device-management)).

use std::time::Duration;

use futures_util::{FutureExt, future::join_all};
use ruma::UserId;
use tokio_util::sync::CancellationToken;

use super::{E2eKeys, remote::FetchError};
use crate::{
    clock::Clock,
    storage::{Families, StorageError, device_lists::Stale},
};

/// How many lists are fetched at the same time.
const AT_ONCE: i64 = 32;
/// The pause after the first failure and the longest, in milliseconds.
const FIRST_PAUSE: i64 = 2_000;
const LONGEST_PAUSE: i64 = 60 * 60 * 1_000;
/// How long to sleep at most while something is stale: the clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(5);

impl E2eKeys {
    /// Runs until the server stops.
    pub(crate) async fn refresh(self, clock: Clock, stopping: CancellationToken) {
        loop {
            let next = self.refresh_due(&clock).await.unwrap_or_else(|error| {
                tracing::error!(%error, "stale device lists cannot be read");
                Some(AFTER_ERROR)
            });
            let pause = async {
                match next {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                () = self.stale.notified() => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Fetches what is due; for how long there is nothing more to do.
    async fn refresh_due(&self, clock: &Clock) -> Result<Option<Duration>, StorageError> {
        loop {
            let mut reader = self.storage.read().await?;
            let stale = reader.device_lists().stale(AT_ONCE).await?;
            drop(reader);
            let now = i64::from(clock.now().0);
            let Some(first) = stale.first() else {
                return Ok(None);
            };
            if let Ok(left) = u64::try_from(first.retry_at - now)
                && left > 0
            {
                return Ok(Some(Duration::from_millis(left).min(LONGEST_SLEEP)));
            }
            let due = stale.iter().filter(|stale| stale.retry_at <= now);
            let outcomes = join_all(due.map(|stale| self.refetch(stale, clock))).await;
            outcomes.into_iter().collect::<Result<(), _>>()?;
        }
    }

    async fn refetch(&self, stale: &Stale, clock: &Clock) -> Result<(), StorageError> {
        let user_id = &stale.user_id;
        if !self.is_followed(user_id) {
            // Nobody here asks, and nobody there tells.
            return self.try_again_at(user_id, None, 0).await;
        }
        match self.fetch(user_id).await {
            Ok(()) => Ok(()),
            Err(FetchError::Storage(error)) => Err(error),
            Err(error) => {
                tracing::debug!(%user_id, %error, "a device list was not fetched");
                let doublings = u32::try_from(stale.failures.clamp(0, 20)).unwrap_or(20);
                let pause = (FIRST_PAUSE << doublings).min(LONGEST_PAUSE);
                let at = i64::from(clock.now().0).saturating_add(pause);
                self.try_again_at(user_id, Some(at), stale.failures + 1)
                    .await
            }
        }
    }

    async fn try_again_at(
        &self,
        user_id: &UserId,
        at: Option<i64>,
        failures: i64,
    ) -> Result<(), StorageError> {
        let user_id = user_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move { tx.device_lists().set_retry_at(&user_id, at, failures).await }.boxed()
        });
        write.await
    }
}
