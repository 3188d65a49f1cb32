//! The keys of servers: our own, published; those of others, fetched, checked and kept.
//!
//! A server is asked itself; what it said is kept in the database. Where it does not answer, a server that
//! takes part in the matter anyway can be asked about it, and is believed for that one matter only: it
//! could have made the keys up.

mod notary;

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream};
use quick_cache::sync::Cache;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId,
    ServerName, ServerSigningKeyId, UInt, serde::Base64,
};
use serde_json::value::{RawValue, to_raw_value};
use sotto_federation::{
    client::{ClientError, FetchedKeys},
    room::signing::{PublicKeyMap, RequiredKeys, SigningKey},
    server_keys::{self, KeysError},
    transaction::Backoff,
};
use tokio::sync::Mutex;

pub(crate) use self::notary::Question;
use super::federation::Federation;
use crate::{
    clock::Clock,
    storage::{
        Families, Storage, StorageError,
        server_keys::{MOST_LISTS, PublishedKeys},
    },
};

/// For how long others may believe what we say about our keys.
const OWN_VALIDITY_MS: u32 = 24 * 60 * 60 * 1000;
/// How long one server has time to tell its keys.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long all servers together have before a notary is asked about those that have not answered.
const GRACE: Duration = Duration::from_secs(2);
/// How many servers are asked at the same time.
const AT_ONCE: usize = 64;
/// A server that answered, but not with the key that is sought, is asked again so often, and then not before
/// a pause.
const ANSWERS_WITHOUT_PAUSE: u32 = 8;
const PAUSE_AFTER_ANSWER: Duration = Duration::from_mins(1);
/// A server that did not answer is asked again at the latest after this.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// But after this if it seems to make a request itself, which cannot be known without its keys.
const PAUSE_BEFORE_REQUEST: Duration = Duration::from_secs(5);

/// Knows the keys of servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ServerKeys(Arc<Inner>);

struct Inner {
    storage: Storage,
    federation: Federation,
    clock: Clock,
    key: Arc<SigningKey>,
    slots: Cache<OwnedServerName, Arc<Mutex<Slot>>>,
}

/// What is known of one server. Locked while the server is asked: everybody else waits for that answer.
#[derive(Default)]
struct Slot {
    /// Whether the database was asked.
    loaded: bool,
    keys: Option<Arc<server_keys::ServerKeys>>,
    /// What the server published, the newest first; one list for each set of keys.
    lists: Vec<PublishedKeys>,
    /// How often it answered, and since when that is counted.
    answers: u32,
    counted_since: Option<MilliSecondsSinceUnixEpoch>,
    backoff: Backoff,
    /// When it did not answer.
    away_at: Option<MilliSecondsSinceUnixEpoch>,
    not_before: Option<MilliSecondsSinceUnixEpoch>,
}

/// The keys of the servers that signed some events.
#[derive(Debug, Default)]
pub(crate) struct KnownKeys(BTreeMap<OwnedServerName, Arc<server_keys::ServerKeys>>);

impl KnownKeys {
    /// The keys for one of the events, for [`sotto_federation::room::signing::verify`].
    pub(crate) fn key_map(&self, required: &RequiredKeys) -> PublicKeyMap {
        server_keys::select(required, |server| self.0.get(server).cloned()).keys
    }

    /// What the server itself said goes before what is said about it.
    fn add(&mut self, server: OwnedServerName, keys: &Arc<server_keys::ServerKeys>) {
        let keys = match self.0.get(&server) {
            Some(earlier) => Arc::new(server_keys::ServerKeys::clone(keys).with_earlier(earlier)),
            None => keys.clone(),
        };
        self.0.insert(server, keys);
    }

    fn missing(
        &self,
        required: &[RequiredKeys],
    ) -> BTreeMap<OwnedServerName, Vec<OwnedServerSigningKeyId>> {
        let select = |required| server_keys::select(required, |server| self.0.get(server).cloned());
        required
            .iter()
            .flat_map(|required| select(required).missing)
            .collect()
    }
}

impl ServerKeys {
    pub(crate) fn new(
        storage: Storage,
        federation: Federation,
        clock: Clock,
        key: Arc<SigningKey>,
    ) -> Self {
        Self(Arc::new(Inner {
            storage,
            federation,
            clock,
            key,
            slots: Cache::new(10_000),
        }))
    }

    /// What we publish
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server)).
    pub(crate) fn own(&self) -> Result<CanonicalJsonObject, KeysError> {
        let until = self.0.clock.now().0.saturating_add(OWN_VALIDITY_MS.into());
        let until = MilliSecondsSinceUnixEpoch(until);
        server_keys::own_response(self.0.federation.server_name(), &self.0.key, &[], until)
    }

    /// The keys with which one event is verified: see [`ServerKeys::known`].
    pub(crate) async fn key_map(
        &self,
        required: &RequiredKeys,
        notaries: &[OwnedServerName],
    ) -> Result<PublicKeyMap, StorageError> {
        let known = self.known(std::slice::from_ref(required), notaries).await?;
        Ok(known.key_map(required))
    }

    /// The keys with which events are verified. Servers that cannot be reached are looked up with the
    /// `notaries`; what is still not known then is left out.
    pub(crate) async fn known(
        &self,
        required: &[RequiredKeys],
        notaries: &[OwnedServerName],
    ) -> Result<KnownKeys, StorageError> {
        let mut wanted: BTreeMap<OwnedServerName, Vec<Wanted>> = BTreeMap::new();
        for required in required {
            for (server, ids) in &required.servers {
                let ids: Vec<_> = ids.iter().cloned().collect();
                let wants = wanted.entry(server.clone()).or_default();
                let same = |wanted: &&mut Wanted| {
                    wanted.ids == ids && wanted.at.is_none() == required.valid_at.is_none()
                };
                match wants.iter_mut().find(same) {
                    // Valid at the later of two times is valid at the earlier.
                    Some(wanted) => wanted.at = wanted.at.max(required.valid_at),
                    None => wants.push(Wanted {
                        ids,
                        at: required.valid_at,
                    }),
                }
            }
        }
        self.load(wanted.keys()).await?;
        let lookups = wanted.into_iter().map(|(server, wants)| async move {
            let keys = self.of_server(&server, &wants).await?;
            Ok::<_, StorageError>(keys.map(|keys| (server, keys)))
        });
        let mut lookups = pin!(stream::iter(lookups).buffer_unordered(AT_ONCE));
        let mut known = KnownKeys::default();
        let mut late = false;
        if !notaries.is_empty() {
            // One server of a hundred that is gone must not hold up a join.
            let in_time = async {
                while let Some(found) = lookups.next().await {
                    known.0.extend(found?);
                }
                Ok::<_, StorageError>(())
            };
            match tokio::time::timeout(GRACE, in_time).await {
                Ok(found) => found?,
                Err(_) => late = true,
            }
            self.ask_notaries(required, notaries, &mut known).await;
        }
        if notaries.is_empty() || late && !known.missing(required).is_empty() {
            while let Some(found) = lookups.next().await {
                if let Some((server, keys)) = found? {
                    known.add(server, &keys);
                }
            }
        }
        Ok(known)
    }

    /// The key with which a server may have signed a request to us.
    pub(crate) async fn for_request(
        &self,
        server: &ServerName,
        id: &ServerSigningKeyId,
    ) -> Result<Option<Base64>, StorageError> {
        let now = self.0.clock.now();
        let wanted = Wanted {
            ids: vec![id.to_owned()],
            at: Some(now),
        };
        self.slot(server).lock().await.stir(now);
        let keys = self
            .of_server(server, std::slice::from_ref(&wanted))
            .await?;
        Ok(keys.and_then(|keys| keys.for_request(id, now).cloned()))
    }

    /// Whether a server, when it was last asked for its keys, did not answer.
    pub(crate) async fn is_away(&self, server: &ServerName) -> bool {
        self.slot(server).lock().await.away_at.is_some()
    }

    /// A request of this server was authenticated, so it is there: what waits for it can be sent.
    pub(crate) fn heard_from(&self, server: &ServerName) {
        self.0.federation.heard_from(server);
    }

    fn slot(&self, server: &ServerName) -> Arc<Mutex<Slot>> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.0.slots.get_or_insert_with(server, fresh) {
            Ok(slot) => slot,
            Err(never) => match never {},
        }
    }

    /// The keys of a server, which is asked if a wanted key is not among those that are known.
    async fn of_server(
        &self,
        server: &ServerName,
        wants: &[Wanted],
    ) -> Result<Option<Arc<server_keys::ServerKeys>>, StorageError> {
        if server == self.0.federation.server_name() {
            return Ok(self.own_keys());
        }
        let slot = self.slot(server);
        let mut slot = slot.lock().await;
        self.load_slot(server, &mut slot).await?;
        let satisfied = |slot: &Slot| {
            let keys = slot.keys.as_deref();
            keys.is_some_and(|keys| wants.iter().all(|wanted| wanted.is_in(keys)))
        };
        if !satisfied(&slot) {
            self.refresh(server, &mut slot).await?;
        }
        Ok(slot.keys.clone())
    }

    fn own_keys(&self) -> Option<Arc<server_keys::ServerKeys>> {
        let json = to_raw_value(&self.own().ok()?).ok()?;
        let name = self.0.federation.server_name();
        let keys = server_keys::ServerKeys::parse(&json, name, self.0.clock.now());
        keys.ok().map(Arc::new)
    }

    /// Asks a server, unless that was tried lately.
    async fn refresh(&self, server: &ServerName, slot: &mut Slot) -> Result<(), StorageError> {
        let now = self.0.clock.now();
        if slot.not_before.is_some_and(|not_before| now < not_before) {
            return Ok(());
        }
        let asked = self.0.federation.client().server_keys(server);
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(fetched)) => {
                self.keep(server, &fetched).await?;
                slot.take(fetched);
                slot.backoff = slot.backoff.recovered();
                slot.answered(now);
            }
            // It is there; but has no keys to tell at this moment.
            Ok(Err(error @ ClientError::Matrix(_))) => {
                tracing::debug!(%server, %error, "a server did not tell its keys");
                slot.answered(now);
            }
            Ok(Err(error)) => {
                tracing::debug!(%server, %error, "a server did not tell its keys");
                slot.failed(now);
            }
            Err(_) => {
                tracing::debug!(%server, "a server did not tell its keys in time");
                slot.failed(now);
            }
        }
        Ok(())
    }

    async fn keep(&self, server: &ServerName, fetched: &FetchedKeys) -> Result<(), StorageError> {
        let (server, key_ids) = (server.to_owned(), key_ids(&fetched.json));
        let keys = PublishedKeys {
            json: fetched.json.clone(),
            fetched_at: fetched.fetched_at,
        };
        let write = self.0.storage.write(move |tx| {
            async move { tx.server_keys().insert(&server, &key_ids, &keys).await }.boxed()
        });
        write.await
    }

    /// Reads what the database has of several servers, in one trip.
    async fn load(
        &self,
        servers: impl Iterator<Item = &OwnedServerName>,
    ) -> Result<(), StorageError> {
        let unknown: Vec<_> = servers
            .filter(|server| self.0.slots.peek(*server).is_none())
            .cloned()
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut reader = self.0.storage.read().await?;
        let mut found = reader.server_keys().by_servers(&unknown).await?;
        drop(reader);
        for server in unknown {
            let lists = found.remove(&server).unwrap_or_default();
            self.slot(&server).lock().await.fill(&server, lists);
        }
        Ok(())
    }

    async fn load_slot(&self, server: &ServerName, slot: &mut Slot) -> Result<(), StorageError> {
        if slot.loaded {
            return Ok(());
        }
        let names = [server.to_owned()];
        let mut reader = self.0.storage.read().await?;
        let mut found = reader.server_keys().by_servers(&names).await?;
        slot.fill(server, found.remove(server).unwrap_or_default());
        Ok(())
    }

    async fn ask_notaries(
        &self,
        required: &[RequiredKeys],
        notaries: &[OwnedServerName],
        known: &mut KnownKeys,
    ) {
        for notary in notaries {
            let mut missing = known.missing(required);
            // We know our own keys, and a server that is asked itself is no notary.
            missing.remove(self.0.federation.server_name());
            missing.remove(notary);
            if missing.is_empty() {
                return;
            }
            let valid_at = required
                .iter()
                .filter_map(|required| required.valid_at)
                .max();
            // The keys of the future are nobody's to know.
            let valid_at = valid_at.map(|at| at.min(self.0.clock.now()));
            let client = self.0.federation.client();
            match client
                .server_keys_from_notary(notary, &missing, valid_at)
                .await
            {
                Ok(lists) => {
                    for FetchedKeys { keys, .. } in lists {
                        let server = keys.server_name().to_owned();
                        let keys = match known.0.get(&server) {
                            // What the server itself said goes before what is said about it.
                            Some(own) => server_keys::ServerKeys::clone(own).with_earlier(&keys),
                            None => keys,
                        };
                        known.0.insert(server, Arc::new(keys));
                    }
                }
                Err(error) => tracing::debug!(%notary, %error, "a notary did not tell keys"),
            }
        }
    }
}

impl std::fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerKeys").finish_non_exhaustive()
    }
}

/// One of these keys, valid at this time.
#[derive(Debug)]
struct Wanted {
    ids: Vec<OwnedServerSigningKeyId>,
    at: Option<MilliSecondsSinceUnixEpoch>,
}

impl Wanted {
    fn is_in(&self, keys: &server_keys::ServerKeys) -> bool {
        self.ids
            .iter()
            .any(|id| keys.for_event(id, self.at).is_some())
    }
}

impl Slot {
    fn fill(&mut self, server: &ServerName, lists: Vec<PublishedKeys>) {
        if self.loaded {
            return;
        }
        self.loaded = true;
        for list in lists.into_iter().rev() {
            if let Ok(keys) = server_keys::ServerKeys::parse(&list.json, server, list.fetched_at) {
                self.add(keys, list);
            }
        }
    }

    fn take(&mut self, fetched: FetchedKeys) {
        let list = PublishedKeys {
            json: fetched.json,
            fetched_at: fetched.fetched_at,
        };
        self.add(fetched.keys, list);
    }

    fn add(&mut self, keys: server_keys::ServerKeys, list: PublishedKeys) {
        let ids = key_ids(&list.json);
        self.lists.retain(|other| key_ids(&other.json) != ids);
        self.lists.insert(0, list);
        self.lists.truncate(MOST_LISTS);
        let keys = match &self.keys {
            Some(earlier) => keys.with_earlier(earlier),
            None => keys,
        };
        self.keys = Some(Arc::new(keys));
    }

    /// The server is there, so it may be asked again; but not by everybody all the time.
    fn answered(&mut self, now: MilliSecondsSinceUnixEpoch) {
        let is_over = |since| after(since, PAUSE_AFTER_ANSWER) <= now;
        self.away_at = None;
        if self.counted_since.is_none_or(is_over) {
            (self.counted_since, self.answers) = (Some(now), 0);
        }
        self.answers += 1;
        let enough = self.answers >= ANSWERS_WITHOUT_PAUSE;
        self.not_before = enough.then(|| after(now, PAUSE_AFTER_ANSWER));
    }

    /// Somebody who says to be this server makes a request: it may be back.
    fn stir(&mut self, now: MilliSecondsSinceUnixEpoch) {
        let soon = self.away_at.map(|at| after(at, PAUSE_BEFORE_REQUEST));
        if soon.is_some_and(|soon| soon <= now) {
            self.not_before = None;
        }
    }

    fn failed(&mut self, now: MilliSecondsSinceUnixEpoch) {
        self.backoff = self.backoff.failed();
        self.away_at = Some(now);
        self.not_before = Some(after(now, self.backoff.pause(0).min(LONGEST_PAUSE)));
    }
}

/// The ids of the current keys of a list, sorted.
fn key_ids(json: &RawValue) -> String {
    #[derive(serde::Deserialize)]
    struct List {
        verify_keys: serde_json::Map<String, serde_json::Value>,
    }
    let list = serde_json::from_str::<List>(json.get());
    let mut ids = list.map_or_else(
        |_| Vec::new(),
        |list| list.verify_keys.keys().cloned().collect::<Vec<_>>(),
    );
    ids.sort_unstable();
    ids.join(" ")
}

fn after(time: MilliSecondsSinceUnixEpoch, duration: Duration) -> MilliSecondsSinceUnixEpoch {
    let milliseconds = UInt::try_from(duration.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(time.0.saturating_add(milliseconds))
}
