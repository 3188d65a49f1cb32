//! The own identity: making it, keeping its private keys, and signing with them.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>

use std::collections::BTreeMap;

use ruma::{
    OwnedTransactionId, OwnedUserId, TransactionId, UserId,
    api::client::keys::{upload_signatures, upload_signing_keys},
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::to_raw_value};
use vodozemac::{Ed25519SecretKey, base64_encode};
use zeroize::Zeroizing;

use super::{
    account::StoredAccount,
    devices::{self, Device, TrackedUser},
    error::{MachineError, SigningError},
    identity::{self, Identity},
    identity_keys::{IdentityKey, Usage, private_key, signed_by},
    keys,
    machine::{Asked, InFlight, Machine},
    requests::{OutgoingRequest, Request},
    secret::Secret,
};
use crate::{
    environment,
    store::{Batch, StoreError, Table},
};

const PENDING: &str = "pending_identity";
const OWN_DEVICE_KEYS: &str = "own_device_keys";

/// What to do about the own identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrap {
    /// Make one if the user has none.
    IfMissing,
    /// Make a new one, whatever there is. Everybody who verified the user is warned, and servers
    /// want the user's password for it.
    Reset,
}

/// Private keys that are stored, but that the server may not have yet.
#[derive(Serialize, Deserialize)]
struct Pending {
    seeds: BTreeMap<String, Secret>,
}

/// Signatures that wait to be uploaded: objects by user and key.
pub(crate) type Signatures = BTreeMap<OwnedUserId, BTreeMap<String, Value>>;

/// The three keys of an identity.
struct Keys {
    master: Ed25519SecretKey,
    self_signing: Ed25519SecretKey,
    user_signing: Ed25519SecretKey,
}

impl Keys {
    fn generate() -> Self {
        Self {
            master: Ed25519SecretKey::new(),
            self_signing: Ed25519SecretKey::new(),
            user_signing: Ed25519SecretKey::new(),
        }
    }

    fn of(&self, usage: Usage) -> &Ed25519SecretKey {
        match usage {
            Usage::Master => &self.master,
            Usage::SelfSigning => &self.self_signing,
            Usage::UserSigning => &self.user_signing,
        }
    }

    fn seeds(&self) -> BTreeMap<String, Secret> {
        let seed = |key: &Ed25519SecretKey| {
            let bytes = Zeroizing::new(*key.to_bytes());
            Secret::new(base64_encode(*bytes))
        };
        Usage::ALL
            .iter()
            .map(|usage| (usage.secret_name().to_owned(), seed(self.of(*usage))))
            .collect()
    }

    fn from_seeds(seeds: &BTreeMap<String, Secret>) -> Option<Self> {
        let key = |usage: Usage| private_key(seeds.get(usage.secret_name())?.expose());
        Some(Self {
            master: key(Usage::Master)?,
            self_signing: key(Usage::SelfSigning)?,
            user_signing: key(Usage::UserSigning)?,
        })
    }

    /// The object of a key, signed by the master key unless it is that.
    fn object(&self, user_id: &UserId, usage: Usage) -> Result<Value, MachineError> {
        let object = IdentityKey::make(user_id, usage, self.of(usage)).object;
        if usage == Usage::Master {
            return Ok(object);
        }
        Ok(signed_by(&object, user_id, &self.master)?)
    }
}

impl Machine {
    /// Begins to make an identity for the user: the request has to be sent, with authentication if
    /// the server asks for it, and its answer reported. The private keys are stored when this
    /// returns; the same request is given again until it has succeeded.
    ///
    /// `None` if there is an identity, or if it is not known yet whether there is one: then the
    /// outgoing requests have to be sent first.
    pub async fn bootstrap_cross_signing(
        &self,
        how: Bootstrap,
    ) -> Result<Option<OutgoingRequest>, MachineError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let tracked = TrackedUser::load(&batch, self.user_id()).await?;
        let known = Identity::load(&batch, self.user_id()).await?;
        let unsure = tracked.is_none_or(|tracked| tracked.outdated);
        if how == Bootstrap::IfMissing && (known.is_some() || unsure) {
            return Ok(None);
        }
        let pending: Option<Pending> = batch.get(Table::Meta, "", PENDING).await?;
        let keys = pending.and_then(|pending| Keys::from_seeds(&pending.seeds));
        let keys = keys.unwrap_or_else(Keys::generate);
        let seeds = keys.seeds();
        batch.put(Table::Meta, "", PENDING, &Pending { seeds })?;
        batch.commit().await?;
        let mut request = upload_signing_keys::v3::Request::new();
        let object = |usage| raw(&keys.object(self.user_id(), usage)?);
        request.master_key = Some(object(Usage::Master)?);
        request.self_signing_key = Some(object(Usage::SelfSigning)?);
        request.user_signing_key = Some(object(Usage::UserSigning)?);
        let id = environment::transaction_id(self.environment())?;
        let in_flight = InFlight {
            since: self.now(),
            what: Asked::SigningKeys,
        };
        volatile.in_flight.insert(id.clone(), in_flight);
        Ok(Some(OutgoingRequest {
            id,
            request: Request::SigningKeysUpload(request),
        }))
    }

    /// The server has the new identity: it is ours from now on.
    pub(crate) async fn take_signing_keys(&self) -> Result<(), MachineError> {
        let mut batch = self.batch();
        let pending: Option<Pending> = batch.get(Table::Meta, "", PENDING).await?;
        let Some(pending) = pending else {
            return Ok(());
        };
        let Some(keys) = Keys::from_seeds(&pending.seeds) else {
            return Ok(());
        };
        for (name, seed) in &pending.seeds {
            batch.put(Table::Secrets, "", name, seed)?;
        }
        batch.delete(Table::Meta, "", PENDING);
        identity::forget_own_identity_change(&mut batch);
        // What the former identity vouched for is not vouched for any more, and nobody is to blame.
        for (_, mut other) in batch.list::<Identity>(Table::Identities, "").await? {
            other.was_verified = false;
            other.verified_by = None;
            other.save(&mut batch)?;
        }
        let public = |usage| IdentityKey::make(self.user_id(), usage, keys.of(usage));
        let master = public(Usage::Master);
        let own = Identity {
            user_id: self.user_id().to_owned(),
            master: master.text,
            master_object: master.object,
            self_signing: Some(public(Usage::SelfSigning).text),
            user_signing: Some(public(Usage::UserSigning).text),
            violated: false,
            verified_by: None,
            was_verified: false,
            trusted: false,
        };
        identity::trust_own(&mut batch, own.clone()).await?;
        self.sign_own(&mut batch, &own, &keys.self_signing).await?;
        Ok(batch.commit().await?)
    }

    /// Signs this device with the self-signing key, and the master key with this device.
    pub(crate) async fn sign_own(
        &self,
        batch: &mut Batch<'_>,
        own: &Identity,
        self_signing: &Ed25519SecretKey,
    ) -> Result<(), MachineError> {
        let signed = signed_by(&self.device_keys(), self.user_id(), self_signing)?;
        let mut both = self.device_keys();
        merge_signatures(&mut both, &signed);
        batch.put(Table::Meta, "", OWN_DEVICE_KEYS, &both)?;
        self.set_device_keys(both);
        let account = StoredAccount::load(batch).await?;
        let fields = keys::without_signatures(&own.master_object)?;
        let Value::Object(fields) = fields else {
            return Err(MachineError::Encode);
        };
        let master = keys::sign(fields, &account.olm, self.user_id(), self.device_id())?;
        let objects = [
            (self.device_id().to_string(), signed),
            (own.master.clone(), master),
        ];
        let all = Signatures::from([(self.user_id().to_owned(), objects.into())]);
        self.queue_signatures(batch, &all)
    }

    /// Vouches for a device of the user. The person has to have made sure that it is theirs.
    pub async fn sign_own_device(&self, device: &Device) -> Result<(), SigningError> {
        let mut volatile = self.lock().await?;
        volatile.devices_changed();
        let mut batch = self.batch();
        self.sign_device_in(&mut batch, device).await?;
        Ok(batch.commit().await?)
    }

    pub(crate) async fn sign_device_in(
        &self,
        batch: &mut Batch<'_>,
        device: &Device,
    ) -> Result<(), SigningError> {
        if device.user_id != self.user_id() {
            return Err(SigningError::NotOwn);
        }
        let key = own_key(batch, Usage::SelfSigning).await?;
        let key = key.ok_or(SigningError::NoPrivateKey)?;
        let object = device.object.as_ref().ok_or(SigningError::Unknown)?;
        let signed = signed_by(object, self.user_id(), &key)?;
        let mut device = device.clone();
        device.signed_by = Some(key.public_key().to_base64());
        device.save(batch)?;
        let objects = BTreeMap::from([(device.device_id.to_string(), signed)]);
        let all = Signatures::from([(self.user_id().to_owned(), objects)]);
        Ok(self.queue_signatures(batch, &all)?)
    }

    /// Vouches for another user's identity, whose master key has to be `master`: what the person
    /// has compared, not what the server shows by now.
    pub async fn sign_user(&self, user_id: &UserId, master: &str) -> Result<(), SigningError> {
        let mut volatile = self.lock().await?;
        volatile.devices_changed();
        let mut batch = self.batch();
        self.sign_user_in(&mut batch, user_id, master).await?;
        Ok(batch.commit().await?)
    }

    pub(crate) async fn sign_user_in(
        &self,
        batch: &mut Batch<'_>,
        user_id: &UserId,
        master: &str,
    ) -> Result<(), SigningError> {
        let key = own_key(batch, Usage::UserSigning).await?;
        let key = key.ok_or(SigningError::NoPrivateKey)?;
        let identity = Identity::load(batch, user_id).await?;
        let mut identity = identity
            .filter(|identity| identity.master == master)
            .ok_or(SigningError::Unknown)?;
        let signed = signed_by(&identity.master_object, self.user_id(), &key)?;
        identity.verified_by = Some(key.public_key().to_base64());
        identity.was_verified = true;
        identity.violated = false;
        identity.save(batch)?;
        let objects = BTreeMap::from([(master.to_owned(), signed)]);
        let all = Signatures::from([(user_id.to_owned(), objects)]);
        Ok(self.queue_signatures(batch, &all)?)
    }

    /// Takes private keys of the own identity from a place that the user opened; those that do not
    /// belong to the identity that is known are refused. Returns how many were taken.
    ///
    /// With the master key, or the two others, the identity is trusted from now on, and this
    /// device is signed.
    pub async fn take_private_keys(
        &self,
        seeds: &BTreeMap<String, Secret>,
    ) -> Result<usize, MachineError> {
        let mut volatile = self.lock().await?;
        volatile.devices_changed();
        let mut batch = self.batch();
        let taken = self.take_private_keys_in(&mut batch, seeds).await?;
        batch.commit().await?;
        Ok(taken)
    }

    pub(crate) async fn take_private_keys_in(
        &self,
        batch: &mut Batch<'_>,
        seeds: &BTreeMap<String, Secret>,
    ) -> Result<usize, MachineError> {
        let Some(own) = Identity::load(batch, self.user_id()).await? else {
            return Ok(0);
        };
        let mut taken = 0;
        for usage in Usage::ALL {
            let public = match usage {
                Usage::Master => Some(&own.master),
                Usage::SelfSigning => own.self_signing.as_ref(),
                Usage::UserSigning => own.user_signing.as_ref(),
            };
            let Some(seed) = seeds.get(usage.secret_name()) else {
                continue;
            };
            let key = private_key(seed.expose())
                .filter(|key| Some(&key.public_key().to_base64()) == public);
            if key.is_none() {
                tracing::warn!(name = usage.secret_name(), "refused a private key");
                continue;
            }
            batch.put(Table::Secrets, "", usage.secret_name(), seed)?;
            taken += 1;
        }
        if taken == 0 {
            return Ok(0);
        }
        identity::trust_own(batch, own.clone()).await?;
        if let Some(key) = own_key(batch, Usage::SelfSigning).await? {
            self.sign_own(batch, &own, &key).await?;
        }
        Ok(taken)
    }

    /// The secrets of the user that this device has, by name: the private keys of the identity, and
    /// that of the backup.
    pub async fn secrets(&self) -> Result<BTreeMap<String, Secret>, MachineError> {
        let rows: Vec<(String, Secret)> = self.batch().list(Table::Secrets, "").await?;
        Ok(rows.into_iter().collect())
    }

    /// Whether this device can sign the user's devices and other users.
    pub async fn has_private_keys(&self) -> Result<bool, MachineError> {
        let batch = self.batch();
        for usage in Usage::ALL {
            if own_key(&batch, usage).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the own identity vouches for this device, as far as this device knows.
    pub async fn is_cross_signed(&self) -> Result<bool, MachineError> {
        let Some(own) = Identity::load(&self.batch(), self.user_id()).await? else {
            return Ok(false);
        };
        let Some(name) = own.self_signing else {
            return Ok(false);
        };
        let key = keys::ed25519(&name);
        let signed = |key| keys::verify(&self.device_keys(), self.user_id(), &name, &key).is_ok();
        Ok(key.is_some_and(signed))
    }

    /// Takes the signature of the own identity, which another device may have made.
    pub(crate) fn take_own_signatures(
        &self,
        batch: &mut Batch<'_>,
        served: &Value,
    ) -> Result<(), StoreError> {
        let mut both = self.device_keys();
        merge_signatures(&mut both, served);
        if both != self.device_keys() {
            batch.put(Table::Meta, "", OWN_DEVICE_KEYS, &both)?;
            self.set_device_keys(both);
        }
        Ok(())
    }

    pub(crate) fn queue_signatures(
        &self,
        batch: &mut Batch<'_>,
        signatures: &Signatures,
    ) -> Result<(), MachineError> {
        let id = environment::transaction_id(self.environment())?;
        Ok(batch.put(Table::SignatureUploads, "", id.as_str(), signatures)?)
    }

    pub(crate) async fn signature_uploads(&self) -> Result<Vec<OutgoingRequest>, MachineError> {
        let rows: Vec<(String, Signatures)> =
            self.batch().list(Table::SignatureUploads, "").await?;
        let mut requests = Vec::new();
        for (id, signatures) in rows {
            let signed = serde_json::to_value(signatures)
                .and_then(serde_json::from_value)
                .map_err(|_| MachineError::Encode)?;
            requests.push(OutgoingRequest {
                id: OwnedTransactionId::from(id),
                request: Request::SignaturesUpload(upload_signatures::v3::Request::new(signed)),
            });
        }
        Ok(requests)
    }

    pub(crate) async fn remove_signature_upload(
        &self,
        id: &TransactionId,
    ) -> Result<(), MachineError> {
        let mut batch = self.batch();
        batch.delete(Table::SignatureUploads, "", id.as_str());
        Ok(batch.commit().await?)
    }
}

/// The own device keys with all signatures, if the identity has signed them.
pub(crate) async fn stored_device_keys(batch: &Batch<'_>) -> Result<Option<Value>, StoreError> {
    batch.get(Table::Meta, "", OWN_DEVICE_KEYS).await
}

/// A private key of the own identity.
pub(crate) async fn own_key(
    batch: &Batch<'_>,
    usage: Usage,
) -> Result<Option<Ed25519SecretKey>, StoreError> {
    let seed: Option<Secret> = batch.get(Table::Secrets, "", usage.secret_name()).await?;
    Ok(seed.and_then(|seed| private_key(seed.expose())))
}

/// Another device of the own user, that the identity vouches for, while the identity is trusted.
pub(crate) async fn is_verified_own_device(
    batch: &Batch<'_>,
    own_id: &UserId,
    curve25519: &str,
) -> Result<bool, StoreError> {
    let device = devices::load_device_by_curve25519(batch, own_id, curve25519).await?;
    let own = Identity::load(batch, own_id).await?;
    Ok(matches!((device, own), (Some(device), Some(own))
        if own.trusted && own.vouches_for(&device) && !device.deleted))
}

fn merge_signatures(object: &mut Value, other: &Value) {
    let added = other.get("signatures").and_then(Value::as_object);
    let Some(mine) = object.get_mut("signatures").and_then(Value::as_object_mut) else {
        return;
    };
    for (user, signatures) in added.into_iter().flatten() {
        let (Some(Value::Object(mine)), Some(added)) = (mine.get_mut(user), signatures.as_object())
        else {
            continue;
        };
        mine.extend(added.clone());
    }
}

fn raw<T>(value: &Value) -> Result<Raw<T>, MachineError> {
    to_raw_value(value)
        .map(Raw::from_json)
        .map_err(|_| MachineError::Encode)
}
