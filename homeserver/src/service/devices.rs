//! Devices ([spec](https://spec.matrix.org/v1.19/client-server-api/#device-management)).

use std::collections::BTreeSet;

use futures_util::FutureExt;
use ruma::{DeviceId, OwnedDeviceId, OwnedServerName, UserId, api::client::device::Device};

use super::accounts::{Accounts, Requester};
use crate::{
    service::device_lists::{self, DeviceChange},
    storage::{Families, Storage, StorageError, writer::Tx},
};

/// The longest name of a device, in bytes.
const MAX_NAME: usize = 400;

/// Why a device was not renamed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenameError {
    /// The user has no such device.
    #[error("there is no such device")]
    UnknownDevice,
    /// The name is too long.
    #[error("the name is too long")]
    TooLong,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

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

    /// Changes the name of a device.
    pub(crate) async fn rename(
        &self,
        user_id: &UserId,
        device_id: OwnedDeviceId,
        display_name: Option<String>,
    ) -> Result<(), RenameError> {
        if display_name
            .as_ref()
            .is_some_and(|name| name.len() > MAX_NAME)
        {
            return Err(RenameError::TooLong);
        }
        let followers = device_lists::followers(&self.storage, user_id);
        let user_id = user_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move {
                let known = tx.devices().by_id(&user_id, &device_id).await?;
                let known = known.ok_or(RenameError::UnknownDevice)?;
                let Some(name) =
                    display_name.filter(|name| known.display_name.as_ref() != Some(name))
                else {
                    return Ok(());
                };
                tx.devices().rename(&user_id, &device_id, &name).await?;
                let change = DeviceChange::Updated;
                device_lists::announce(tx, &followers, &user_id, &device_id, change).await?;
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Makes a device of a user, for an application service; whether there was none
    /// ([spec](https://spec.matrix.org/v1.19/application-service-api/#creating-devices)).
    pub(crate) async fn create(
        &self,
        user_id: &UserId,
        device_id: OwnedDeviceId,
        display_name: Option<String>,
    ) -> Result<bool, RenameError> {
        if display_name
            .as_ref()
            .is_some_and(|name| name.len() > MAX_NAME)
        {
            return Err(RenameError::TooLong);
        }
        let followers = device_lists::followers(&self.storage, user_id);
        let (user_id, now) = (user_id.to_owned(), self.accounts.clock());
        let write = self.storage.write(move |tx| {
            async move {
                if (tx.devices().by_id(&user_id, &device_id).await?).is_some() {
                    return Ok(false);
                }
                let name = display_name.as_deref();
                tx.devices().upsert(&user_id, &device_id, name, now).await?;
                let change = DeviceChange::Updated;
                device_lists::announce(tx, &followers, &user_id, &device_id, change).await?;
                Ok::<_, StorageError>(true)
            }
            .boxed()
        });
        Ok(write.await?)
    }

    /// Deletes devices with everything that belongs to them: tokens, keys, waiting messages.
    pub(crate) async fn delete(
        &self,
        user_id: &UserId,
        device_ids: Vec<OwnedDeviceId>,
    ) -> Result<(), StorageError> {
        let requesters: Vec<_> = device_ids
            .iter()
            .map(|id| Requester::new(user_id.to_owned(), id.clone()))
            .collect();
        let followers = device_lists::followers(&self.storage, user_id);
        let user_id = user_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move {
                delete(tx, &followers, &user_id, &device_ids).await?;
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

/// Deletes devices, in a transaction of somebody else.
pub(super) async fn delete(
    tx: &mut Tx,
    followers: &BTreeSet<OwnedServerName>,
    user_id: &UserId,
    device_ids: &[OwnedDeviceId],
) -> Result<(), StorageError> {
    for device_id in device_ids {
        tx.tokens().delete_of_device(user_id, device_id).await?;
        if !tx.devices().delete(user_id, device_id).await? {
            continue;
        }
        tx.device_keys().delete(user_id, device_id).await?;
        tx.cross_signing()
            .delete_signatures_on(user_id, device_id.as_str())
            .await?;
        tx.one_time_keys().delete_device(user_id, device_id).await?;
        tx.to_device().delete_device(user_id, device_id).await?;
        let change = DeviceChange::Deleted;
        device_lists::announce(tx, followers, user_id, device_id, change).await?;
    }
    Ok(())
}
