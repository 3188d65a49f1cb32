//! What whoever runs the server can do with it: for `sotto admin`.

mod rooms;
mod tokens;

use futures_util::FutureExt;
use ruma::{OwnedUserId, UserId};
use serde::Serialize;

use super::{
    accounts::{Accounts, NewAccount, RegisterError, passwords::PasswordError, random_id},
    deactivation::Deactivation,
    devices::Devices,
    membership::Membership,
    room_summaries::RoomSummaries,
};
use crate::{
    clock::Clock,
    storage::{
        Families, Storage, StorageError,
        accounts::{Flag, Kind, ListedAccount},
    },
};

/// Administers.
#[derive(Clone)]
pub(crate) struct Administration {
    storage: Storage,
    clock: Clock,
    accounts: Accounts,
    devices: Devices,
    deactivation: Deactivation,
    membership: Membership,
    summaries: RoomSummaries,
}

/// What the service is made of.
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) accounts: Accounts,
    pub(crate) devices: Devices,
    pub(crate) deactivation: Deactivation,
    pub(crate) membership: Membership,
    pub(crate) summaries: RoomSummaries,
}

/// An account, as administrators see it.
#[derive(Debug, Serialize)]
pub(crate) struct UserShown {
    #[serde(flatten)]
    pub(crate) account: ListedAccount,
    pub(crate) joined_rooms: usize,
    pub(crate) uploaded_bytes: i64,
    pub(crate) devices: Vec<DeviceShown>,
}

/// A device, as administrators see it.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceShown {
    pub(crate) device_id: String,
    pub(crate) name: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub(crate) last_seen: Option<i64>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdministrationError {
    #[error("there is no such user here")]
    UnknownUser,
    #[error("the account was ended")]
    Deactivated,
    #[error("there is no such device")]
    UnknownDevice,
    #[error("there is no such room here")]
    UnknownRoom,
    #[error("there is no such token, or more than one")]
    UnknownToken,
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Administration {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            storage: parts.storage,
            clock: parts.clock,
            accounts: parts.accounts,
            devices: parts.devices,
            deactivation: parts.deactivation,
            membership: parts.membership,
            summaries: parts.summaries,
        }
    }

    /// The id of a user of this server.
    pub(crate) fn local(&self, name: &str) -> Result<OwnedUserId, AdministrationError> {
        let user_id = self.accounts.user_id(name);
        user_id
            .filter(|user_id| user_id.server_name() == self.accounts.server_name())
            .ok_or(AdministrationError::UnknownUser)
    }

    /// Accounts, by name.
    pub(crate) async fn users(
        &self,
        name: &str,
        most: u32,
    ) -> Result<Vec<ListedAccount>, AdministrationError> {
        let mut reader = self.storage.read().await?;
        Ok(reader.accounts().list(name, most).await?)
    }

    /// An account with its devices.
    pub(crate) async fn user(&self, user_id: &UserId) -> Result<UserShown, AdministrationError> {
        let mut reader = self.storage.read().await?;
        let account = reader.accounts().listed(user_id).await?;
        let account = account.ok_or(AdministrationError::UnknownUser)?;
        let uploaded_bytes = reader.media().bytes_of(user_id).await?;
        let devices = reader.devices().of_user(user_id).await?;
        let devices = devices.into_iter().map(|device| DeviceShown {
            device_id: device.device_id.to_string(),
            name: device.display_name,
            last_seen: device.last_seen_ts.map(|at| i64::from(at.0)),
        });
        Ok(UserShown {
            account,
            joined_rooms: self.accounts.joined_rooms(user_id).len(),
            uploaded_bytes,
            devices: devices.collect(),
        })
    }

    /// Makes an account; its password.
    pub(crate) async fn create(
        &self,
        name: &str,
        admin: bool,
        password: Option<String>,
    ) -> Result<(OwnedUserId, String), AdministrationError> {
        let user_id = self.accounts.new_user_id(name)?;
        let password = password.unwrap_or_else(random_id);
        let hashed = self.accounts.passwords().hash(password.clone()).await?;
        let new = NewAccount {
            user_id: user_id.clone(),
            password: Some(hashed),
            kind: if admin {
                Kind::Administrator
            } else {
                Kind::User
            },
            registration_token: None,
            device: None,
        };
        let register = self.accounts.register(new, |_| async { Ok(()) }.boxed());
        register.await?;
        Ok((user_id, password))
    }

    /// Sets another password; which.
    pub(crate) async fn reset_password(
        &self,
        user_id: OwnedUserId,
        password: Option<String>,
        keep_devices: bool,
    ) -> Result<String, AdministrationError> {
        self.active(&user_id).await?;
        let password = password.unwrap_or_else(random_id);
        let hashed = self.accounts.passwords().hash(password.clone()).await?;
        self.accounts.set_password(user_id.clone(), hashed).await?;
        if !keep_devices {
            self.log_out(&user_id, None).await?;
        }
        Ok(password)
    }

    /// Ends an account.
    pub(crate) async fn deactivate(
        &self,
        user_id: OwnedUserId,
        erase: bool,
    ) -> Result<(), AdministrationError> {
        self.active(&user_id).await?;
        self.deactivation.deactivate(user_id, erase).await?;
        Ok(())
    }

    /// Makes an administrator of a user, or a user of an administrator.
    pub(crate) async fn set_admin(
        &self,
        user_id: OwnedUserId,
        admin: bool,
    ) -> Result<(), AdministrationError> {
        self.active(&user_id).await?;
        let kind = if admin {
            Kind::Administrator
        } else {
            Kind::User
        };
        let owner = user_id.clone();
        let write = self
            .storage
            .write(move |tx| async move { tx.accounts().set_kind(&owner, kind).await }.boxed());
        let set: Result<(), StorageError> = write.await;
        self.accounts.forget_user(&user_id);
        Ok(set?)
    }

    /// Locks an account, or unlocks it.
    pub(crate) async fn set_locked(
        &self,
        user_id: OwnedUserId,
        locked: bool,
    ) -> Result<(), AdministrationError> {
        let found = self
            .accounts
            .set_flag(user_id, Flag::Locked, locked)
            .await?;
        found.then_some(()).ok_or(AdministrationError::UnknownUser)
    }

    /// Logs out a device, or all; how many.
    pub(crate) async fn log_out(
        &self,
        user_id: &UserId,
        device: Option<&str>,
    ) -> Result<usize, AdministrationError> {
        let of_user = self.devices.of_user(user_id).await?;
        let ids = of_user.into_iter().map(|known| known.device_id);
        let ids: Vec<_> = ids
            .filter(|known| device.is_none_or(|device| known.as_str() == device))
            .collect();
        if device.is_some() && ids.is_empty() {
            return Err(AdministrationError::UnknownDevice);
        }
        let many = ids.len();
        self.devices.delete(user_id, ids).await?;
        Ok(many)
    }

    /// Refuses what can only be done with accounts that go on.
    async fn active(&self, user_id: &UserId) -> Result<(), AdministrationError> {
        match self.accounts.account(user_id).await? {
            None => Err(AdministrationError::UnknownUser),
            Some(account) if account.deactivated => Err(AdministrationError::Deactivated),
            Some(_) => Ok(()),
        }
    }
}
