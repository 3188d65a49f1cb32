//! Keys of devices and users
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption)).
//!
//! The server keeps public keys, checks what it can check, hands each one-time key out at most once, and
//! tells everybody concerned of every change. It never sees anything secret.

pub(crate) mod claim;
pub(crate) mod cross_signing;
pub(crate) mod query;
mod refresh;
pub(crate) mod remote;
pub(crate) mod signatures;
pub(crate) mod upload;
pub(crate) mod verify;

use std::{collections::BTreeMap, sync::Arc};

use quick_cache::sync::Cache;
use ruma::{OneTimeKeyAlgorithm, OwnedUserId, UInt};
use tokio::sync::{Mutex, Notify};

use super::{accounts::Requester, federation::Federation};
use crate::storage::{
    Families, Storage, StorageError,
    log::{Change, Entry, StreamPosition},
};

/// The keys of devices and users.
#[derive(Clone, Debug)]
pub(crate) struct E2eKeys {
    storage: Storage,
    federation: Federation,
    counts: Arc<Counts>,
    /// Lists of remote users are to be fetched.
    stale: Arc<Notify>,
    /// Who fetches the list of a remote user waits here for whoever does so already.
    turns: Arc<Cache<OwnedUserId, Arc<Mutex<()>>>>,
}

/// What is known of the one-time keys of devices, and as of when.
type Counts = Cache<(String, String), (StreamPosition, Arc<KeyCounts>)>;

/// What a device has to hand out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyCounts {
    pub(crate) one_time_keys: BTreeMap<OneTimeKeyAlgorithm, UInt>,
    pub(crate) unused_fallback_keys: Vec<OneTimeKeyAlgorithm>,
}

impl E2eKeys {
    pub(crate) fn new(storage: Storage, federation: Federation) -> Self {
        Self {
            storage,
            federation,
            counts: Arc::new(Cache::new(10_000)),
            stale: Arc::default(),
            turns: Arc::new(Cache::new(10_000)),
        }
    }

    /// What a device has to hand out. What memory knows is used if the log says that nothing changed
    /// since.
    pub(crate) async fn counts(
        &self,
        requester: &Requester,
    ) -> Result<Arc<KeyCounts>, StorageError> {
        let log = self.storage.log();
        let now = log.position();
        let key = (
            requester.user_id.to_string(),
            requester.device_id.to_string(),
        );
        if let Some((at, counts)) = self.counts.get(&key)
            && (at == now
                || log
                    .since(at)
                    .is_some_and(|entries| !entries.iter().any(|entry| concerns(entry, requester))))
        {
            if at != now {
                self.counts.insert(key, (now, counts.clone()));
            }
            return Ok(counts);
        }
        let mut reader = self.storage.read().await?;
        let (user_id, device_id) = (&requester.user_id, &requester.device_id);
        let stored = reader.one_time_keys().counts(user_id, device_id).await?;
        let mut one_time_keys: BTreeMap<_, _> = stored
            .into_iter()
            .map(|(algorithm, count)| (algorithm, count.into()))
            .collect();
        // Said also when it is zero: some clients take what is absent for what did not change.
        one_time_keys
            .entry(OneTimeKeyAlgorithm::SignedCurve25519)
            .or_default();
        let counts = Arc::new(KeyCounts {
            one_time_keys,
            unused_fallback_keys: reader
                .one_time_keys()
                .unused_fallback_keys(user_id, device_id)
                .await?,
        });
        self.counts.insert(key, (now, counts.clone()));
        Ok(counts)
    }
}

/// Whether an entry of the log says that the keys of a device were used or filled up.
fn concerns(entry: &Entry, requester: &Requester) -> bool {
    matches!(
        &entry.change,
        Change::OneTimeKeys { user_id, device_id }
            if *user_id == requester.user_id && *device_id == requester.device_id
    )
}
