//! `POST /keys/device_signing/upload`: the keys with which a user vouches for devices and for other users
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#cross-signing)).

use std::collections::BTreeSet;

use futures_util::FutureExt;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, OwnedUserId, UserId,
    encryption::{CrossSigningKey, KeyUsage},
    serde::Raw,
};
use serde_json::{Value, json};
use vodozemac::Ed25519PublicKey;

use super::{
    E2eKeys,
    query::{self, Asker},
    upload::has_key,
    verify::{self, KeyError},
};
use crate::{
    service::device_lists,
    storage::{Families, StorageError, log::Change, writer::Tx},
};

/// What a user uploads.
#[derive(Debug)]
pub(crate) struct NewCrossSigningKeys {
    pub(crate) master: Option<Raw<CrossSigningKey>>,
    pub(crate) self_signing: Option<Raw<CrossSigningKey>>,
    pub(crate) user_signing: Option<Raw<CrossSigningKey>>,
}

/// Keys that were checked, and may be stored with the consent that they need.
#[derive(Debug)]
pub(crate) struct CheckedCrossSigningKeys {
    user_id: OwnedUserId,
    keys: Vec<(KeyUsage, CanonicalJsonObject)>,
    /// The master key that there was when they were checked.
    master_before: Option<CanonicalJsonObject>,
    pub(crate) consent: Consent,
}

/// Whether the user must prove who they are before keys are stored (MSC3967).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    /// Nothing is replaced.
    NotNeeded,
    /// Something is.
    Needed,
}

/// Why cross-signing keys were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrossSigningError {
    /// A key does not have the form it must have.
    #[error("the {usage} key is malformed")]
    Malformed {
        /// Which.
        usage: KeyUsage,
    },
    /// A key is not one.
    #[error("the {usage} key is not a key")]
    BadKey {
        /// Which.
        usage: KeyUsage,
        /// Why not.
        source: KeyError,
    },
    /// There is no master key that could have signed the others.
    #[error("there is no master key")]
    NoMasterKey,
    /// The master key did not sign a key.
    #[error("the {usage} key is not signed by the master key")]
    NotSigned {
        /// Which.
        usage: KeyUsage,
    },
    /// Two keys are the same.
    #[error("a key is used for two purposes")]
    Reused,
    /// A key is the id of a device of the user.
    #[error("a key has the name of a device")]
    NamesDevice,
    /// Somebody else replaced the keys in the meantime.
    #[error("the keys were replaced in the meantime")]
    Outdated,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl E2eKeys {
    /// Checks new cross-signing keys.
    pub(crate) async fn check_cross_signing(
        &self,
        user_id: &UserId,
        new: NewCrossSigningKeys,
    ) -> Result<CheckedCrossSigningKeys, CrossSigningError> {
        let mut keys = Vec::new();
        for (usage, raw) in [
            (KeyUsage::Master, new.master),
            (KeyUsage::SelfSigning, new.self_signing),
            (KeyUsage::UserSigning, new.user_signing),
        ] {
            if let Some(raw) = raw {
                let key = check_shape(&raw, user_id, &usage)?;
                keys.push((usage, key));
            }
        }
        let users = [user_id.to_owned()];
        let mut reader = self.storage.read().await?;
        let stored = reader.cross_signing().of_users(&users).await?;
        let stored: Vec<_> = stored
            .into_iter()
            .filter_map(|row| Some((row.usage, verify::object(&row.json)?)))
            .collect();
        let of = |keys: &[(KeyUsage, CanonicalJsonObject)], usage: &KeyUsage| {
            keys.iter()
                .find(|key| key.0 == *usage)
                .map(|key| key.1.clone())
        };
        let master_before = of(&stored, &KeyUsage::Master);
        let master = of(&keys, &KeyUsage::Master).or_else(|| master_before.clone());
        let master = master.ok_or(CrossSigningError::NoMasterKey)?;
        check_signatures(&keys, &master, user_id)?;
        let devices = reader.devices().of_user(user_id).await?;
        let names = devices.iter().map(|device| device.device_id.as_str());
        check_distinct(&keys, names)?;
        let unchanged = |(usage, key): &(KeyUsage, CanonicalJsonObject)| {
            of(&stored, usage)
                .is_some_and(|old| verify::signed_part(&old) == verify::signed_part(key))
        };
        let consent = if master_before.is_none() || keys.iter().all(unchanged) {
            Consent::NotNeeded
        } else {
            Consent::Needed
        };
        keys.retain(|key| !unchanged(key));
        Ok(CheckedCrossSigningKeys {
            user_id: user_id.to_owned(),
            keys,
            master_before,
            consent,
        })
    }

    /// Stores keys that were checked, and tells everybody.
    pub(crate) async fn set_cross_signing(
        &self,
        checked: CheckedCrossSigningKeys,
    ) -> Result<(), CrossSigningError> {
        if checked.keys.is_empty() {
            return Ok(());
        }
        let followers = device_lists::followers(&self.storage, &checked.user_id);
        let write = self.storage.write(move |tx| {
            async move {
                let user_id = checked.user_id;
                let users = [user_id.clone()];
                let stored = tx.cross_signing().of_users(&users).await?;
                let master = stored.iter().find(|row| row.usage == KeyUsage::Master);
                if master.and_then(|row| verify::object(&row.json)) != checked.master_before {
                    return Err(CrossSigningError::Outdated);
                }
                if checked.keys.iter().any(|key| key.0 == KeyUsage::Master) {
                    // What the former master key vouched for is worth nothing now.
                    tx.cross_signing().delete_of_user(&user_id).await?;
                    let before = checked.master_before.as_ref();
                    if let Some(public) = before.and_then(query::public_key) {
                        let mut keys = tx.cross_signing();
                        keys.delete_signatures_on(&user_id, public).await?;
                    }
                }
                // Nobody else ever sees with which key a user vouches for others.
                let private = checked
                    .keys
                    .iter()
                    .all(|key| key.0 == KeyUsage::UserSigning);
                for (usage, key) in checked.keys {
                    let json = CanonicalJsonValue::Object(key).to_string();
                    tx.cross_signing().set(&user_id, &usage, &json).await?;
                }
                if private {
                    tx.log(Change::UserSignature {
                        signer: user_id.clone(),
                        target: user_id,
                    });
                } else {
                    announce(tx, &followers, &user_id).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

/// Tells everybody that the identity keys of a user changed: other servers by `m.signing_key_update`
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#definition-msigning_key_update)).
pub(super) async fn announce(
    tx: &mut Tx,
    followers: &BTreeSet<OwnedServerName>,
    user_id: &UserId,
) -> Result<(), StorageError> {
    tx.change_device_list(user_id).await?;
    if followers.is_empty() {
        return Ok(());
    }
    let wanted = [(user_id.to_owned(), Vec::new())].into();
    let found = query::read(tx, Asker::Server, &wanted).await?;
    let value = |key: Option<&Raw<CrossSigningKey>>| {
        key.and_then(|key| serde_json::to_value(key).ok())
            .unwrap_or(Value::Null)
    };
    let mut content = json!({ "user_id": user_id });
    for (name, keys) in [
        ("master_key", &found.master_keys),
        ("self_signing_key", &found.self_signing_keys),
    ] {
        if let key @ Value::Object(_) = value(keys.get(user_id)) {
            content[name] = key;
        }
    }
    let content = content.to_string();
    for destination in followers {
        tx.push_edu(destination, "m.signing_key_update", &content)
            .await?;
    }
    Ok(())
}

/// Reads a cross-signing key
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#cross-signing)): one key, named by itself.
pub(super) fn check_shape(
    raw: &Raw<CrossSigningKey>,
    user_id: &UserId,
    usage: &KeyUsage,
) -> Result<CanonicalJsonObject, CrossSigningError> {
    let malformed = || CrossSigningError::Malformed {
        usage: usage.clone(),
    };
    let key = raw.deserialize().map_err(|_| malformed())?;
    let object = verify::object(raw.json().get()).ok_or_else(malformed)?;
    let one = key.keys.len() == 1 && key.usage.contains(usage) && key.user_id == user_id;
    let (key_id, public) = key
        .keys
        .iter()
        .next()
        .filter(|_| one)
        .ok_or_else(malformed)?;
    verify::ed25519(public).map_err(|source| CrossSigningError::BadKey {
        usage: usage.clone(),
        source,
    })?;
    if key_id.as_str() == format!("ed25519:{public}") {
        Ok(object)
    } else {
        Err(malformed())
    }
}

/// The one public key in a cross-signing key that was checked.
pub(super) fn parsed_key(key: &CanonicalJsonObject) -> Option<(String, Ed25519PublicKey)> {
    let public = query::public_key(key)?;
    Some((format!("ed25519:{public}"), verify::ed25519(public).ok()?))
}

fn check_signatures(
    keys: &[(KeyUsage, CanonicalJsonObject)],
    master: &CanonicalJsonObject,
    user_id: &UserId,
) -> Result<(), CrossSigningError> {
    let (key_id, public) = parsed_key(master).ok_or(CrossSigningError::NoMasterKey)?;
    for (usage, key) in keys.iter().filter(|key| key.0 != KeyUsage::Master) {
        verify::verify(key, user_id, &key_id, &public).map_err(|_| {
            CrossSigningError::NotSigned {
                usage: usage.clone(),
            }
        })?;
    }
    Ok(())
}

/// Each key has one purpose, and none has the name of a device, or signatures would be ambiguous.
fn check_distinct<'a>(
    keys: &[(KeyUsage, CanonicalJsonObject)],
    device_ids: impl Iterator<Item = &'a str>,
) -> Result<(), CrossSigningError> {
    let publics: BTreeSet<_> = keys
        .iter()
        .filter_map(|key| query::public_key(&key.1))
        .collect();
    let mut device_ids = device_ids.map(|id| format!("ed25519:{id}"));
    let is_device = device_ids.any(|id| keys.iter().any(|key| has_key(&key.1, &id)));
    if is_device {
        return Err(CrossSigningError::NamesDevice);
    }
    if publics.len() == keys.len() {
        Ok(())
    } else {
        Err(CrossSigningError::Reused)
    }
}
