//! Application services speaking for their users
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/#identity-assertion)).

use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use ruma::{OwnedDeviceId, OwnedUserId, UserId};

use super::{Accounts, NewAccount, NewDevice, RegisterError, Requester, Session};
use crate::{
    service::{accounts::sessions::Known, appservices::Appservice},
    storage::{Families, StorageError, accounts::Kind},
};

/// Why a service does not speak for somebody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MasqueradeError {
    #[error("the user is not one of the service")]
    NotCovered,
    #[error("the user is not registered")]
    NotRegistered,
    #[error("the user has no such device")]
    UnknownDevice,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Accounts {
    /// Whom a service speaks for, and what they may do.
    pub(crate) async fn masquerade(
        &self,
        service: &Appservice,
        user_id: Option<&str>,
        device_id: Option<&str>,
    ) -> Result<Known, MasqueradeError> {
        let user_id = match user_id {
            None => service.sender.clone(),
            Some(user_id) => UserId::parse(user_id).map_err(|_| MasqueradeError::NotCovered)?,
        };
        if !service.covers_user(&user_id) {
            return Err(MasqueradeError::NotCovered);
        }
        let device_id: OwnedDeviceId = device_id.unwrap_or_default().into();
        let requester = Requester {
            user_id,
            device_id,
            service: Some(service.id.clone()),
        };
        if let Some(standing) = self.0.masks.get(&requester) {
            return Ok(Known::new(requester, standing));
        }
        let before = self.0.forgotten.load(Ordering::SeqCst);
        let mut reader = self.0.storage.read().await?;
        let account = reader.accounts().by_id(&requester.user_id).await?;
        let account = account.filter(|account| !account.deactivated);
        let account = account.ok_or(MasqueradeError::NotRegistered)?;
        if let Some(device_id) = requester.device()
            && (reader
                .devices()
                .by_id(&requester.user_id, device_id)
                .await?)
                .is_none()
        {
            return Err(MasqueradeError::UnknownDevice);
        }
        drop(reader);
        self.0.masks.insert(requester.clone(), account.standing);
        // Something was forgotten while we looked: it may have been this.
        if self.0.forgotten.load(Ordering::SeqCst) != before {
            self.0.masks.remove(&requester);
        }
        Ok(Known::new(requester, account.standing))
    }

    /// Makes an account for a service, without a password
    /// ([spec](https://spec.matrix.org/v1.19/application-service-api/#server-admin-style-permissions)).
    pub(crate) async fn register_for(
        &self,
        service: &Appservice,
        name: &str,
        device: Option<NewDevice>,
    ) -> Result<(OwnedUserId, Option<Session>), RegisterError> {
        let user_id = self.proper_user_id(name)?;
        let reserved = self.0.appservices.reserve_user(&user_id, Some(&service.id));
        if reserved || !service.covers_user(&user_id) {
            return Err(RegisterError::Exclusive);
        }
        let new = NewAccount {
            user_id: user_id.clone(),
            password: None,
            kind: Kind::Service,
            registration_token: None,
            device,
        };
        let session = self.register(new, |_| async { Ok(()) }.boxed()).await?;
        Ok((user_id, session))
    }

    /// The senders of services are there without being registered.
    pub(crate) async fn make_senders(&self) -> Result<(), StorageError> {
        for service in self.0.appservices.all() {
            if self.account(&service.sender).await?.is_some() {
                continue;
            }
            let new = NewAccount {
                user_id: service.sender.clone(),
                password: None,
                kind: Kind::Service,
                registration_token: None,
                device: None,
            };
            // Nothing else can be wrong: the name was free a moment ago.
            let made = self.register(new, |_| async { Ok(()) }.boxed()).await;
            if let Err(RegisterError::Storage(error)) = made {
                return Err(error);
            }
        }
        Ok(())
    }
}
