//! `POST /keys/upload`: what a device publishes of itself
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#uploading-keys)).

use std::collections::BTreeMap;

use futures_util::FutureExt;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, DeviceId, EventEncryptionAlgorithm, OwnedOneTimeKeyId,
    UserId,
    encryption::{DeviceKeys, OneTimeKey},
    serde::Raw,
};
use vodozemac::Ed25519PublicKey;

use super::{
    E2eKeys, KeyCounts, query,
    verify::{self, KeyError, SignatureError},
};
use crate::{
    service::{
        accounts::Requester,
        device_lists::{self, DeviceChange},
    },
    storage::{Families, StorageError, log::Change, one_time_keys::KeyRow, writer::Tx},
};

/// The largest object with the keys of a device, in bytes.
const MAX_DEVICE_KEYS: usize = 8 * 1024;
/// The largest one-time key, in bytes.
const MAX_KEY: usize = 1024;
/// How many one-time keys one request may have.
const MAX_KEYS: usize = 500;
/// How many one-time keys of one algorithm wait for a device, and of how many algorithms.
const MAX_WAITING: u32 = 500;
const MAX_ALGORITHMS: usize = 16;
/// The algorithm of clients whose keys are real.
const OLM: EventEncryptionAlgorithm = EventEncryptionAlgorithm::OlmV1Curve25519AesSha2;

/// What a device uploads.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the specification")]
pub(crate) struct Upload {
    pub(crate) device_keys: Option<Raw<DeviceKeys>>,
    pub(crate) one_time_keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>,
    pub(crate) fallback_keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>,
}

/// Why keys were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The device keys do not have the form they must have.
    #[error("the device keys are malformed")]
    MalformedDeviceKeys,
    /// They say that they belong to somebody else.
    #[error("the device keys name another user or device")]
    NotOwnDevice,
    /// One of the keys is not one.
    #[error("{key_id} is not a key")]
    BadKey {
        /// Which.
        key_id: String,
        /// Why not.
        source: KeyError,
    },
    /// A signature is wrong.
    #[error("the signature of {key_id} is wrong")]
    BadSignature {
        /// On which key.
        key_id: String,
    },
    /// A device that signed its keys cannot get others.
    #[error("the device has other keys")]
    Immutable,
    /// A device has the name of a cross-signing key, which would make its signatures ambiguous.
    #[error("the device has the name of a cross-signing key")]
    DeviceIdIsKey,
    /// Another key with the same id waits.
    #[error("a key with the id {key_id} already exists")]
    Exists {
        /// The id.
        key_id: String,
        /// The key that waits.
        old: String,
        /// The key that was refused.
        new: String,
    },
    /// Too many or too large.
    #[error("the keys are too many or too large")]
    TooLarge,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Device keys that were read and checked.
#[derive(Clone, Debug)]
pub(crate) struct CheckedDeviceKeys {
    object: CanonicalJsonObject,
    /// The key with which the device signs, if it is one.
    ed25519: Option<Ed25519PublicKey>,
    signed: bool,
}

impl E2eKeys {
    /// Takes keys of the device that asks; what it then has to hand out.
    pub(crate) async fn upload(
        &self,
        requester: &Requester,
        upload: Upload,
    ) -> Result<KeyCounts, UploadError> {
        let Requester {
            user_id, device_id, ..
        } = requester.clone();
        let device_keys = match upload.device_keys {
            None => None,
            Some(keys) => Some(CheckedDeviceKeys::check(&keys, &user_id, &device_id)?),
        };
        if upload.one_time_keys.len() + upload.fallback_keys.len() > MAX_KEYS {
            return Err(UploadError::TooLarge);
        }
        let one_time_keys = rows(upload.one_time_keys)?;
        let fallback_keys = rows(upload.fallback_keys)?;
        let followers = device_lists::followers(&self.storage, &user_id);
        let write = self.storage.write(move |tx| {
            async move {
                let signing_key = match &device_keys {
                    Some(keys) => keys.ed25519,
                    None => tx
                        .device_keys()
                        .by_id(&user_id, &device_id)
                        .await?
                        .and_then(|json| signing_key(&verify::object(&json)?, &device_id)),
                };
                for key in one_time_keys.iter().chain(&fallback_keys) {
                    check_signature(key, &user_id, &device_id, signing_key.as_ref())?;
                }
                if let Some(keys) = device_keys
                    && keys.store(tx, &user_id, &device_id).await?
                {
                    let change = DeviceChange::Updated;
                    device_lists::announce(tx, &followers, &user_id, &device_id, change).await?;
                }
                store_keys(tx, &user_id, &device_id, one_time_keys, fallback_keys).await
            }
            .boxed()
        });
        write.await?;
        Ok((*self.counts(requester).await?).clone())
    }
}

impl CheckedDeviceKeys {
    /// Reads the keys of a device. Keys that clients will use must be usable; a signature that is there
    /// must be right. Test suites upload keys under invented algorithms, which nobody will use.
    pub(crate) fn check(
        raw: &Raw<DeviceKeys>,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Self, UploadError> {
        if raw.json().get().len() > MAX_DEVICE_KEYS {
            return Err(UploadError::TooLarge);
        }
        let keys = raw
            .deserialize()
            .map_err(|_| UploadError::MalformedDeviceKeys)?;
        let object = verify::object(raw.json().get()).ok_or(UploadError::MalformedDeviceKeys)?;
        if keys.user_id != user_id || keys.device_id != device_id {
            return Err(UploadError::NotOwnDevice);
        }
        let real = keys.algorithms.contains(&OLM);
        let own_key_id = format!("ed25519:{device_id}");
        let signed = verify::is_signed(&object, user_id, &own_key_id);
        for (key_id, key) in &keys.keys {
            let bad = |source| UploadError::BadKey {
                key_id: key_id.to_string(),
                source,
            };
            let of_own = key_id
                .as_str()
                .split_once(':')
                .is_some_and(|(algorithm, name)| {
                    matches!(algorithm, "ed25519" | "curve25519") && name == device_id.as_str()
                });
            if !of_own {
                continue;
            }
            let bytes = verify::key_bytes(key);
            // What nobody signed and nobody can take for a key deceives no one.
            let matters = signed && (real || matches!(key.len(), 43 | 44));
            if matters || verify::misleads(key) {
                bytes.map_err(bad)?;
            }
            if real && (signed || bytes.is_ok()) && key_id.as_str().starts_with("curve25519:") {
                verify::check_curve25519(key).map_err(bad)?;
            }
        }
        let ed25519 = signing_key(&object, device_id);
        if real && signed {
            let key = keys.keys.iter().find(|(id, _)| id.as_str() == own_key_id);
            let key = key.ok_or(UploadError::MalformedDeviceKeys)?.1;
            let key = verify::ed25519(key).map_err(|source| UploadError::BadKey {
                key_id: own_key_id.clone(),
                source,
            })?;
            verify::verify(&object, user_id, &own_key_id, &key)
                .map_err(|_| UploadError::BadSignature { key_id: own_key_id })?;
        }
        Ok(Self {
            object,
            ed25519: if real { ed25519 } else { None },
            signed: real && signed,
        })
    }

    /// Reads the keys of a device of another server, as [`CheckedDeviceKeys::check`] does. What claims no
    /// algorithm that clients know says nothing that anybody could be deceived with: the device is told of,
    /// in the form in which clients expect devices.
    pub(super) fn check_remote(
        raw: &Raw<DeviceKeys>,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Self, UploadError> {
        match Self::check(raw, user_id, device_id) {
            Err(UploadError::MalformedDeviceKeys) => {}
            checked => return checked,
        }
        let malformed = || UploadError::MalformedDeviceKeys;
        let mut object = verify::object(raw.json().get()).ok_or_else(malformed)?;
        let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
        for (name, default) in [
            ("algorithms", CanonicalJsonValue::Array(Vec::new())),
            (
                "device_id",
                CanonicalJsonValue::String(device_id.to_string()),
            ),
            ("keys", empty()),
            ("signatures", empty()),
            ("user_id", CanonicalJsonValue::String(user_id.to_string())),
        ] {
            object.entry(name.to_owned()).or_insert(default);
        }
        let is = |name: &str, value: &str| {
            object.get(name).and_then(CanonicalJsonValue::as_str) == Some(value)
        };
        let known = |algorithm: &CanonicalJsonValue| algorithm.as_str() == Some(OLM.as_str());
        let algorithms = object
            .get("algorithms")
            .and_then(CanonicalJsonValue::as_array);
        let keys = object.get("keys").and_then(CanonicalJsonValue::as_object);
        let usable =
            |key: &CanonicalJsonValue| key.as_str().is_some_and(|key| !verify::misleads(key));
        if is("user_id", user_id.as_str())
            && is("device_id", device_id.as_str())
            && algorithms.is_some_and(|algorithms| !algorithms.iter().any(known))
            && keys.is_some_and(|keys| keys.values().all(usable))
        {
            Ok(Self {
                object,
                ed25519: None,
                signed: false,
            })
        } else {
            Err(malformed())
        }
    }

    /// The keys, with the name that the server of the device gave it.
    pub(super) fn into_named(self, display_name: Option<String>) -> CanonicalJsonObject {
        let mut object = self.object;
        if display_name.is_some() {
            query::name(&mut object, display_name);
        }
        object
    }

    /// The keys.
    pub(super) fn into_object(self) -> CanonicalJsonObject {
        self.object
    }

    /// Stores the keys; whether that changed anything.
    async fn store(
        self,
        tx: &mut Tx,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<bool, UploadError> {
        let cross_signing = tx.cross_signing().of_users(&[user_id.to_owned()]).await?;
        let is_key = |json: &str| {
            verify::object(json).is_some_and(|key| has_key(&key, &format!("ed25519:{device_id}")))
        };
        if cross_signing.iter().any(|row| is_key(&row.json)) {
            return Err(UploadError::DeviceIdIsKey);
        }
        let before = tx.device_keys().by_id(user_id, device_id).await?;
        let before = before.as_deref().and_then(verify::object);
        if before.as_ref() == Some(&self.object) {
            return Ok(false);
        }
        if let Some(before) = before
            && before.get("keys") != self.object.get("keys")
        {
            let own_key_id = format!("ed25519:{device_id}");
            if self.signed && verify::is_signed(&before, user_id, &own_key_id) {
                return Err(UploadError::Immutable);
            }
            tx.cross_signing()
                .delete_signatures_on(user_id, device_id.as_str())
                .await?;
        }
        drop_forged(tx, user_id, device_id, self.ed25519.as_ref()).await?;
        let json = CanonicalJsonValue::Object(self.object).to_string();
        tx.device_keys().set(user_id, device_id, &json).await?;
        Ok(true)
    }
}

/// The Ed25519 key in the keys of a device.
pub(super) fn signing_key(
    device_keys: &CanonicalJsonObject,
    device_id: &DeviceId,
) -> Option<Ed25519PublicKey> {
    let keys = device_keys.get("keys")?.as_object()?;
    let key = keys.get(&format!("ed25519:{device_id}"))?.as_str()?;
    verify::ed25519(key).ok()
}

/// Whether an object has a key of this id.
pub(super) fn has_key(object: &CanonicalJsonObject, key_id: &str) -> bool {
    let keys = object.get("keys").and_then(CanonicalJsonValue::as_object);
    keys.is_some_and(|keys| keys.contains_key(key_id))
}

/// Reads one-time keys or fallback keys.
fn rows(keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>) -> Result<Vec<KeyRow>, UploadError> {
    keys.into_iter()
        .map(|(key_id, raw)| {
            let key_id = key_id.to_string();
            let bad = |source| UploadError::BadKey {
                key_id: key_id.clone(),
                source,
            };
            if raw.json().get().len() > MAX_KEY || key_id.len() > 255 {
                return Err(UploadError::TooLarge);
            }
            let value: CanonicalJsonValue =
                serde_json::from_str(raw.json().get()).map_err(|_| bad(KeyError::NotBase64))?;
            let algorithm = key_id.split(':').next().unwrap_or_default().to_owned();
            if algorithm == "signed_curve25519" {
                let key = value.as_object().and_then(|object| object.get("key"));
                let key = key.and_then(CanonicalJsonValue::as_str);
                verify::check_curve25519(key.ok_or_else(|| bad(KeyError::NotBase64))?)
                    .map_err(bad)?;
            }
            Ok(KeyRow {
                json: value.to_string(),
                algorithm,
                key_id,
            })
        })
        .collect()
}

/// Checks the signature of the device on a key, if there is one and the device is known.
fn check_signature(
    row: &KeyRow,
    user_id: &UserId,
    device_id: &DeviceId,
    key: Option<&Ed25519PublicKey>,
) -> Result<(), UploadError> {
    let (Some(key), "signed_curve25519") = (key, row.algorithm.as_str()) else {
        return Ok(());
    };
    let object = verify::object(&row.json).unwrap_or_default();
    match verify::verify(&object, user_id, &format!("ed25519:{device_id}"), key) {
        Ok(()) | Err(SignatureError::Missing) => Ok(()),
        Err(SignatureError::Wrong) => Err(UploadError::BadSignature {
            key_id: row.key_id.clone(),
        }),
    }
}

/// Drops the keys that came before the device keys, when nobody could tell, and are not signed by them.
async fn drop_forged(
    tx: &mut Tx,
    user_id: &UserId,
    device_id: &DeviceId,
    key: Option<&Ed25519PublicKey>,
) -> Result<(), StorageError> {
    let mut rows = tx.one_time_keys().of_device(user_id, device_id).await?;
    rows.retain(|row| check_signature(row, user_id, device_id, key).is_err());
    if rows.is_empty() {
        return Ok(());
    }
    for row in rows {
        let mut keys = tx.one_time_keys();
        keys.delete(user_id, device_id, &row.key_id).await?;
    }
    // The device learns of it, and uploads others.
    tx.log(Change::OneTimeKeys {
        user_id: user_id.to_owned(),
        device_id: device_id.to_owned(),
    });
    Ok(())
}

async fn store_keys(
    tx: &mut Tx,
    user_id: &UserId,
    device_id: &DeviceId,
    mut one_time_keys: Vec<KeyRow>,
    fallback_keys: Vec<KeyRow>,
) -> Result<(), UploadError> {
    let existing = tx
        .one_time_keys()
        .existing(user_id, device_id, &one_time_keys)
        .await?;
    for key in &one_time_keys {
        if let Some(old) = existing.get(&key.key_id)
            && !old.claimed
            && old.json != key.json
        {
            return Err(UploadError::Exists {
                key_id: key.key_id.clone(),
                old: old.json.clone(),
                new: key.json.clone(),
            });
        }
    }
    // A key that went does not come back; another one may have its id.
    one_time_keys.retain(|key| {
        existing
            .get(&key.key_id)
            .is_none_or(|old| old.json != key.json)
    });
    let mut changed = !one_time_keys.is_empty();
    for key in &fallback_keys {
        changed |= tx
            .one_time_keys()
            .set_fallback(user_id, device_id, key)
            .await?;
    }
    if changed {
        let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
        let position = tx.log(Change::OneTimeKeys {
            user_id: user_id.clone(),
            device_id: device_id.clone(),
        });
        tx.one_time_keys()
            .insert(&user_id, &device_id, &one_time_keys, position)
            .await?;
    }
    if !one_time_keys.is_empty() {
        let waiting = tx.one_time_keys().counts(user_id, device_id).await?;
        if waiting.len() > MAX_ALGORITHMS || waiting.values().any(|count| *count > MAX_WAITING) {
            return Err(UploadError::TooLarge);
        }
    }
    Ok(())
}
