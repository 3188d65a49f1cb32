//! The machine: what it is made of, and the two halves of every request.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex as SyncMutex, PoisonError, RwLock},
};

use ruma::{
    DeviceId, OwnedDeviceId, OwnedRoomId, OwnedTransactionId, OwnedUserId, TransactionId, UserId,
};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, Notify};
use vodozemac::{Curve25519PublicKey, Ed25519PublicKey};

use super::{
    account::StoredAccount,
    cache::Cache,
    cross_signing, devices,
    error::{MachineError, MarkError, OpenError},
    keys,
    outbox::Outgoing,
    requests::{Alarm, Failure, OutgoingRequest, Response},
    rotation::DirectRotation,
    trust::{SharePolicy, TrustRequirement},
    verification::{QrSupport, Verifications},
};
use crate::{
    environment::{self, Environment},
    store::{Batch, Store, StoreError, Table, Visit},
};

/// Requests that were given out longer ago than this count as lost.
pub(crate) const IN_FLIGHT_MS: u64 = 60_000;
/// The row that says that the server serves wrong keys for this device.
const OWN_DEVICE_MISMATCH: &str = "own_device_mismatch";

/// The encryption of one device of one user.
///
/// Calls are serialized inside; share one machine between tasks, but open no second one over the
/// same store. Only a machine in another process may have the same store, if that
/// [is shared](crate::store::SqliteOptions::shared): each begins its operations with what the other has
/// written. What is in memory alone is in one of them: verifications go on where they began, and the
/// answer to a request is for the one that asked.
pub struct Machine {
    store: Arc<dyn Store>,
    environment: Arc<dyn Environment>,
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    ed25519: Ed25519PublicKey,
    curve25519: Curve25519PublicKey,
    device_keys: RwLock<Value>,
    settings: RwLock<Settings>,
    volatile: Mutex<Volatile>,
    /// Requests whose answers will not be reported. Apart from the rest, as one gives up without waiting.
    given_up: SyncMutex<Vec<OwnedTransactionId>>,
    imported: Notify,
}

/// What the application decides.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    share_policy: SharePolicy,
    trust_requirement: TrustRequirement,
    pub(crate) direct_rotation: DirectRotation,
    pub(crate) qr_support: QrSupport,
}

/// What an operation works with: what is in memory, and the store, in which no other process is meanwhile.
pub(crate) struct Working<'m> {
    /// Goes first: whoever comes next has the memory when it asks for its turn.
    _visit: Visit,
    volatile: MutexGuard<'m, Volatile>,
}

impl Deref for Working<'_> {
    type Target = Volatile;

    fn deref(&self) -> &Volatile {
        &self.volatile
    }
}

impl DerefMut for Working<'_> {
    fn deref_mut(&mut self) -> &mut Volatile {
        &mut self.volatile
    }
}

/// What may be forgotten: the requests under way. If the process dies, so do their answers.
#[derive(Default)]
pub(crate) struct Volatile {
    pub(crate) in_flight: HashMap<OwnedTransactionId, InFlight>,
    /// Numbers the key queries in the order in which they were asked.
    pub(crate) queries: u64,
    pub(crate) cache: Cache,
    /// Rooms whose session everybody who can have it has got. Emptied whenever something about
    /// devices changes.
    pub(crate) settled: HashMap<OwnedRoomId, (String, BTreeSet<OwnedUserId>)>,
    pub(crate) verifications: Verifications,
    /// The backup has all keys.
    pub(crate) backup_idle: bool,
    /// The newest query whose answer was taken, for each user.
    pub(crate) answered: HashMap<OwnedUserId, u64>,
    /// The generation of the store; zero if no other process uses it.
    pub(crate) generation: u64,
    /// The last upload that was given out.
    pub(crate) uploading: Option<OwnedTransactionId>,
    /// The last query that was asked before another process wrote.
    pub(crate) overtaken: u64,
}

pub(crate) struct InFlight {
    pub(crate) since: u64,
    pub(crate) what: Asked,
}

/// What has to be known about a request to take its answer.
pub(crate) enum Asked {
    Upload {
        key_ids: BTreeSet<String>,
    },
    Query {
        order: u64,
        generations: BTreeMap<OwnedUserId, u64>,
    },
    Claim {
        devices: BTreeSet<(OwnedUserId, OwnedDeviceId)>,
    },
    SigningKeys,
}

impl Volatile {
    /// Something about devices or identities changed: what follows from them is not known any more.
    pub(crate) fn devices_changed(&mut self) {
        self.settled.clear();
        self.cache.forget_senders();
    }

    /// Forgets what may be otherwise since another process has written. Requests stay: their answers come here.
    fn forget(&mut self, generation: u64) {
        self.generation = generation;
        self.devices_changed();
        self.cache = Cache::default();
        self.backup_idle = false;
        self.overtaken = self.queries;
    }

    /// Forgets the requests that nobody will answer any more.
    pub(crate) fn expire(&mut self, now: u64) {
        self.in_flight
            .retain(|_, request| request.since.saturating_add(IN_FLIGHT_MS) > now);
    }
}

impl Machine {
    /// Opens the machine of a device; makes its keys if the store has none.
    ///
    /// The new keys are stored when this returns, before anything can upload them.
    pub async fn open(
        store: Arc<dyn Store>,
        environment: Arc<dyn Environment>,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Self, OpenError> {
        let visit = store.enter().await?;
        let generation = visit.generation();
        let mut batch = Batch::new(&*store);
        let account = StoredAccount::load_or_create(&mut batch, user_id, device_id).await?;
        devices::track(&mut batch, user_id).await?;
        batch.commit().await?;
        let (ed25519, curve25519) = (account.olm.ed25519_key(), account.olm.curve25519_key());
        let stored = cross_signing::stored_device_keys(&Batch::new(&*store)).await?;
        let device_keys = match stored {
            Some(keys) => keys,
            None => keys::own_device_keys(&account.olm, user_id, device_id)?,
        };
        drop(visit);
        let volatile = Volatile {
            generation,
            ..Volatile::default()
        };
        Ok(Self {
            store,
            environment,
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            ed25519,
            curve25519,
            device_keys: RwLock::new(device_keys),
            settings: RwLock::default(),
            volatile: Mutex::new(volatile),
            given_up: SyncMutex::default(),
            imported: Notify::new(),
        })
    }

    /// The user.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// The device.
    #[must_use]
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// The fingerprint of the device: its Ed25519 key.
    #[must_use]
    pub fn ed25519_key(&self) -> Ed25519PublicKey {
        self.ed25519
    }

    /// The key by which Olm knows the device.
    #[must_use]
    pub fn curve25519_key(&self) -> Curve25519PublicKey {
        self.curve25519
    }

    /// The requests that should be sent now. Repeats those whose success was not reported.
    pub async fn outgoing_requests(&self) -> Result<Vec<OutgoingRequest>, MachineError> {
        let mut volatile = self.lock().await?;
        volatile.expire(self.now());
        let mut requests = Vec::new();
        requests.extend(self.upload_request(&mut volatile).await?);
        requests.extend(self.due_queries(&mut volatile).await?);
        requests.extend(self.unwedging_claim(&mut volatile).await?);
        requests.extend(self.signature_uploads().await?);
        requests.extend(self.answer_secret_requests(&mut volatile).await?);
        let batch = self.batch();
        for (_, outgoing) in batch.list::<Outgoing>(Table::Outbox, "").await? {
            requests.push(outgoing.into_request());
        }
        Ok(requests)
    }

    /// Takes the answer to a request. What it says about foreign devices may be alarming.
    pub async fn mark_request_as_sent(
        &self,
        id: &TransactionId,
        response: &Response,
    ) -> Result<Vec<Alarm>, MarkError> {
        let mut volatile = self.lock().await?;
        if let Response::ToDevice(_) = response {
            self.remove_from_outbox(id).await?;
            return Ok(Vec::new());
        }
        if let Response::SignaturesUpload(response) = response {
            for (user_id, keys) in &response.failures {
                tracing::warn!(%user_id, count = keys.len(), "signatures were refused");
            }
            self.remove_signature_upload(id).await?;
            return Ok(Vec::new());
        }
        let request = volatile
            .in_flight
            .remove(id)
            .ok_or(MarkError::UnknownRequest)?;
        volatile.devices_changed();
        Ok(match (response, request.what) {
            (Response::KeysUpload(response), Asked::Upload { key_ids }) => {
                self.take_upload(id, response, &key_ids).await?;
                Vec::new()
            }
            (Response::KeysQuery(response), Asked::Query { order, generations }) => {
                self.take_query(&mut volatile, response, order, &generations)
                    .await?
            }
            (Response::KeysClaim(response), Asked::Claim { devices }) => {
                self.take_claim(response, &devices).await?
            }
            (Response::SigningKeysUpload(_), Asked::SigningKeys) => {
                self.take_signing_keys().await?;
                // What was asked before the upload knows nothing of it.
                let asked = volatile.queries;
                volatile
                    .answered
                    .insert(self.user_id().to_owned(), asked + 1);
                volatile.queries += 1;
                Vec::new()
            }
            _ => return Err(MarkError::UnknownRequest),
        })
    }

    /// Takes note that a request failed.
    pub async fn mark_request_as_failed(
        &self,
        id: &TransactionId,
        failure: Failure,
    ) -> Result<Vec<Alarm>, MachineError> {
        let mut volatile = self.lock().await?;
        match volatile.in_flight.remove(id).map(|request| request.what) {
            Some(Asked::Upload { .. }) if failure == Failure::OneTimeKeyExists => {
                self.abandon_upload().await?;
                return Ok(vec![Alarm::StoreForked]);
            }
            Some(Asked::Query { generations, .. }) => {
                self.fail_query(generations.keys()).await?;
            }
            Some(Asked::Claim { devices }) => self.fail_claim(&devices).await?,
            None if failure == Failure::Permanent => {
                self.remove_from_outbox(id).await?;
                self.remove_signature_upload(id).await?;
            }
            Some(Asked::Upload { .. } | Asked::SigningKeys) | None => {}
        }
        Ok(Vec::new())
    }

    /// Takes note that nobody waits for the answers to these requests any more, whether they were sent or not:
    /// what they asked is asked again, at once.
    pub fn give_up_requests(&self, ids: impl IntoIterator<Item = OwnedTransactionId>) {
        let given_up = self.given_up.lock();
        given_up.unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    /// Whether the server was seen to serve other keys for this device than its own.
    pub async fn own_device_mismatch(&self) -> Result<bool, MachineError> {
        Ok(own_device_mismatch(&self.batch()).await?)
    }

    /// The own device keys, with the signature of the own identity once it has signed them.
    pub(crate) fn device_keys(&self) -> Value {
        let keys = self.device_keys.read();
        keys.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_device_keys(&self, keys: Value) {
        let stored = self.device_keys.write();
        *stored.unwrap_or_else(PoisonError::into_inner) = keys;
    }

    pub(crate) fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with_settings(&self, change: impl FnOnce(&mut Settings)) {
        let settings = self.settings.write();
        change(&mut settings.unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn qr_support(&self) -> QrSupport {
        self.settings().qr_support
    }

    /// Which devices get keys.
    #[must_use]
    pub fn share_policy(&self) -> SharePolicy {
        self.settings().share_policy
    }

    /// Decides which devices get keys from the next message on. Not stored.
    pub async fn set_share_policy(&self, policy: SharePolicy) {
        self.memory().await.devices_changed();
        self.with_settings(|settings| settings.share_policy = policy);
    }

    /// How much has to be known about a sender.
    #[must_use]
    pub fn trust_requirement(&self) -> TrustRequirement {
        self.settings().trust_requirement
    }

    /// Decides how much has to be known about a sender. Not stored.
    pub fn set_trust_requirement(&self, requirement: TrustRequirement) {
        self.with_settings(|settings| settings.trust_requirement = requirement);
    }

    /// Returns once room keys came in another way than with a sync: from a file, a backup or a
    /// bundle. [`Machine::inbox`] names them. Keys that came since the last call count.
    pub async fn room_keys_imported(&self) {
        self.imported.notified().await;
    }

    /// Takes note that room keys came in another way than with a sync.
    pub(crate) fn note_import(&self, volatile: &mut Volatile, keys: usize) {
        if keys > 0 {
            volatile.backup_idle = false;
            self.imported.notify_one();
        }
    }

    pub(crate) fn environment(&self) -> &dyn Environment {
        &*self.environment
    }

    pub(crate) fn now(&self) -> u64 {
        environment::now_ms(&*self.environment)
    }

    /// Begins an operation: nobody else is in one, neither here nor in another process. What another has
    /// written since the last one makes us forget what we know.
    pub(crate) async fn lock(&self) -> Result<Working<'_>, StoreError> {
        let mut volatile = self.memory().await;
        let visit = self.store.enter().await?;
        if volatile.generation != visit.generation() {
            if let Some(keys) = cross_signing::stored_device_keys(&self.batch()).await? {
                self.set_device_keys(keys);
            }
            volatile.forget(visit.generation());
        }
        Ok(Working {
            _visit: visit,
            volatile,
        })
    }

    /// What is in memory alone.
    pub(crate) async fn memory(&self) -> MutexGuard<'_, Volatile> {
        let mut volatile = self.volatile.lock().await;
        let given_up = self.given_up.lock();
        for id in given_up.unwrap_or_else(PoisonError::into_inner).drain(..) {
            volatile.in_flight.remove(&id);
        }
        volatile
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch::new(&*self.store)
    }
}

pub(crate) async fn own_device_mismatch(batch: &Batch<'_>) -> Result<bool, StoreError> {
    Ok(batch
        .get(Table::Meta, "", OWN_DEVICE_MISMATCH)
        .await?
        .unwrap_or(false))
}

pub(crate) fn set_own_device_mismatch(batch: &mut Batch<'_>) -> Result<(), StoreError> {
    batch.put(Table::Meta, "", OWN_DEVICE_MISMATCH, &true)
}

impl fmt::Debug for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Machine")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}
