//! Devices ([spec](https://spec.matrix.org/v1.19/client-server-api/#device-management)).

use futures_util::FutureExt;
use ruma::{DeviceId, OwnedDeviceId, UserId, api::client::device::Device};

use super::accounts::{Accounts, Requester};
use crate::storage::{Families, Storage, StorageError, log::Change};

/// The devices of local users.
#[derive(Clone)]
pub(crate) struct Devices {
    storage: Storage,
    accounts: Accounts,
}

impl Devices {
    pub(crate) fn new(storage: Storage, accounts: Accounts) -> Self {
        Self { storage, accounts }
    }

    pub(crate) async fn of_user(&self, user_id: &UserId) -> Result<Vec<Device>, StorageError> {
        self.storage.read().await?.devices().of_user(user_id).await
    }

    pub(crate) async fn by_id(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<Device>, StorageError> {
        self.storage
            .read()
            .await?
            .devices()
            .by_id(user_id, device_id)
            .await
    }

    /// Deletes devices with everything that belongs to them: tokens, keys, waiting messages.
    pub(crate) async fn delete(
        &self,
        user_id: &UserId,
        device_ids: Vec<OwnedDeviceId>,
    ) -> Result<(), StorageError> {
        let requesters: Vec<_> = device_ids
            .iter()
            .map(|id| Requester {
                user_id: user_id.to_owned(),
                device_id: id.clone(),
            })
            .collect();
        let user_id = user_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move {
                for device_id in &device_ids {
                    tx.devices().delete(&user_id, device_id).await?;
                }
                tx.log(Change::DeviceList { user_id });
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        let outcome = write.await;
        for requester in requesters {
            self.accounts.forget_device(&requester);
        }
        outcome
    }
}
