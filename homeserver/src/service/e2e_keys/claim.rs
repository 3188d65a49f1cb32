//! `POST /keys/claim`: handing out one-time keys
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysclaim)).

use std::collections::BTreeMap;

use futures_util::FutureExt;
use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedOneTimeKeyId, OwnedUserId, encryption::OneTimeKey,
    serde::Raw,
};
use serde_json::value::RawValue;

use super::E2eKeys;
use crate::storage::{Families, StorageError, log::Change};

/// Which keys are wanted.
pub(crate) type Claims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>;
/// Keys that were handed out.
pub(crate) type Claimed =
    BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>>>;

impl E2eKeys {
    /// Hands out keys of local devices, each at most once, oldest first, then the fallback key. A device
    /// without any is left out. The answer may get lost; the keys are gone all the same.
    pub(crate) async fn claim_local(&self, claims: Claims) -> Result<Claimed, StorageError> {
        let epoch = self.storage.otk_epoch().clone();
        let write = self.storage.write(move |tx| {
            async move {
                let mut claimed = Claimed::new();
                for (user_id, devices) in claims {
                    for (device_id, algorithm) in devices {
                        let mut keys = tx.one_time_keys();
                        let Some(key) = keys.claim(&user_id, &device_id, &algorithm).await? else {
                            continue;
                        };
                        tx.log(Change::OneTimeKeys {
                            user_id: user_id.clone(),
                            device_id: device_id.clone(),
                        });
                        let broken =
                            || StorageError::inconsistent("one_time_keys", "json", &key.key_id);
                        let id = OwnedOneTimeKeyId::try_from(key.key_id.as_str())
                            .map_err(|_| broken())?;
                        let json = RawValue::from_string(key.json).map_err(|_| {
                            StorageError::inconsistent("one_time_keys", "json", id.as_str())
                        })?;
                        let user = claimed.entry(user_id.clone()).or_default();
                        user.entry(device_id)
                            .or_default()
                            .insert(id, Raw::from_json(json));
                    }
                }
                let number = if claimed.is_empty() {
                    None
                } else {
                    Some(epoch.count(tx).await?)
                };
                Ok::<_, StorageError>((claimed, number))
            }
            .boxed()
        });
        let (claimed, number) = write.await?;
        if let Some(number) = number {
            self.storage.otk_epoch().reached(number)?;
        }
        Ok(claimed)
    }
}
