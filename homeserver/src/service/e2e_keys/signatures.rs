//! `POST /keys/signatures/upload`: vouching for a device or for a user
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload)).

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use ruma::{
    CanonicalJsonObject, DeviceId, OwnedDeviceId, OwnedUserId, UserId,
    api::client::keys::upload_signatures::v3::SignedKeys, encryption::KeyUsage,
};
use serde_json::value::RawValue;
use vodozemac::Ed25519PublicKey;

use super::{
    E2eKeys,
    cross_signing::{self, parsed_key},
    upload::signing_key,
    verify,
};
use crate::{
    service::device_lists::{self, DeviceChange},
    storage::{Families, StorageError, cross_signing::SignatureRow, log::Change},
};

/// What was not taken, by user and key.
pub(crate) type Failures = BTreeMap<OwnedUserId, BTreeMap<String, SignatureFailure>>;

/// Why a signature was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureFailure {
    /// There is no such key, or nothing that could have signed it.
    #[error("there is no such key")]
    NotFound,
    /// The object is not the one that is stored.
    #[error("the signed object is another one")]
    Differs,
    /// The signature is missing or wrong.
    #[error("the signature is wrong")]
    InvalidSignature,
}

/// What signatures are checked against.
struct Known {
    user_id: OwnedUserId,
    devices: BTreeMap<OwnedDeviceId, CanonicalJsonObject>,
    self_signing: Option<(String, Ed25519PublicKey)>,
    user_signing: Option<(String, Ed25519PublicKey)>,
    masters: BTreeMap<OwnedUserId, CanonicalJsonObject>,
}

impl E2eKeys {
    /// Takes signatures of a user; what was not taken.
    pub(crate) async fn add_signatures(
        &self,
        user_id: &UserId,
        signed: BTreeMap<OwnedUserId, SignedKeys>,
    ) -> Result<Failures, StorageError> {
        let known = self.known(user_id, signed.keys()).await?;
        let (mut failures, mut rows) = (Failures::new(), Vec::new());
        for (target, keys) in &signed {
            for (key_id, json) in keys {
                match known.check(target, key_id, json) {
                    Ok(good) => rows.extend(good),
                    Err(failure) => {
                        let of_user = failures.entry(target.clone()).or_default();
                        of_user.insert(key_id.to_owned(), failure);
                    }
                }
            }
        }
        if !rows.is_empty() {
            self.store_signatures(known, rows).await?;
        }
        Ok(failures)
    }

    async fn known(
        &self,
        user_id: &UserId,
        targets: impl Iterator<Item = &OwnedUserId>,
    ) -> Result<Known, StorageError> {
        let own = [user_id.to_owned()];
        let users: BTreeSet<_> = targets.cloned().chain(own.clone()).collect();
        let mut reader = self.storage.read().await?;
        let mut known = Known {
            user_id: user_id.to_owned(),
            devices: BTreeMap::new(),
            self_signing: None,
            user_signing: None,
            masters: BTreeMap::new(),
        };
        for row in reader.device_keys().of_users(&own).await? {
            if let Some(keys) = verify::object(&row.json) {
                known.devices.insert(row.device_id, keys);
            }
        }
        let users: Vec<_> = users.into_iter().collect();
        for row in reader.cross_signing().of_users(&users).await? {
            let Some(key) = verify::object(&row.json) else {
                continue;
            };
            match row.usage {
                KeyUsage::Master => drop(known.masters.insert(row.user_id, key)),
                KeyUsage::SelfSigning if row.user_id == user_id => {
                    known.self_signing = parsed_key(&key);
                }
                KeyUsage::UserSigning if row.user_id == user_id => {
                    known.user_signing = parsed_key(&key);
                }
                _ => {}
            }
        }
        Ok(known)
    }

    async fn store_signatures(
        &self,
        known: Known,
        rows: Vec<SignatureRow>,
    ) -> Result<(), StorageError> {
        let followers = device_lists::followers(&self.storage, &known.user_id);
        let write = self.storage.write(move |tx| {
            async move {
                let (mut devices, mut own_master) = (BTreeSet::new(), false);
                for row in &rows {
                    let position = tx.log(Change::UserSignature {
                        signer: row.signer_user_id.clone(),
                        target: row.target_user_id.clone(),
                    });
                    tx.cross_signing().add_signature(row, position).await?;
                    if row.target_user_id != known.user_id {
                        continue;
                    }
                    let device_id = <&DeviceId>::from(row.target_key_id.as_str());
                    if known.devices.contains_key(device_id) {
                        devices.insert(device_id);
                    } else {
                        own_master = true;
                    }
                }
                for device_id in devices {
                    let change = DeviceChange::Updated;
                    device_lists::announce(tx, &followers, &known.user_id, device_id, change)
                        .await?;
                }
                if own_master {
                    cross_signing::announce(tx, &followers, &known.user_id).await?;
                }
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await
    }
}

impl Known {
    /// The good signatures on one object.
    fn check(
        &self,
        target: &UserId,
        key_id: &str,
        json: &RawValue,
    ) -> Result<Vec<SignatureRow>, SignatureFailure> {
        let object = verify::object(json.get()).ok_or(SignatureFailure::Differs)?;
        let own_device = self
            .devices
            .get(<&DeviceId>::from(key_id))
            .filter(|_| target == self.user_id);
        let master = || {
            let master = self.masters.get(target)?;
            (parsed_key(master)?.0 == format!("ed25519:{key_id}")).then_some(master)
        };
        let (stored, signers) = if let Some(device) = own_device {
            (device, self.self_signing.clone().into_iter().collect())
        } else {
            let master = master().ok_or(SignatureFailure::NotFound)?;
            let signers = if target == self.user_id {
                self.own_devices()
            } else {
                self.user_signing.clone().into_iter().collect()
            };
            (master, signers)
        };
        if signers.is_empty() {
            return Err(SignatureFailure::NotFound);
        }
        if verify::signed_part(stored) != verify::signed_part(&object) {
            return Err(SignatureFailure::Differs);
        }
        let mut rows = Vec::new();
        for (signer_key_id, key) in signers {
            let user_id = &self.user_id;
            let Some(signature) = verify::signature(&object, user_id, &signer_key_id) else {
                continue;
            };
            verify::verify(&object, user_id, &signer_key_id, &key)
                .map_err(|_| SignatureFailure::InvalidSignature)?;
            rows.push(SignatureRow {
                target_user_id: target.to_owned(),
                target_key_id: key_id.to_owned(),
                signer_user_id: user_id.clone(),
                signature: signature.to_owned(),
                signer_key_id,
            });
        }
        if rows.is_empty() {
            return Err(SignatureFailure::InvalidSignature);
        }
        Ok(rows)
    }

    fn own_devices(&self) -> Vec<(String, Ed25519PublicKey)> {
        let key = |(device_id, keys): (&OwnedDeviceId, &CanonicalJsonObject)| {
            Some((
                format!("ed25519:{device_id}"),
                signing_key(keys, device_id)?,
            ))
        };
        self.devices.iter().filter_map(key).collect()
    }
}
