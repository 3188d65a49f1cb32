//! Making accounts ([spec](https://spec.matrix.org/v1.19/client-server-api/#account-registration)).

use futures_util::FutureExt;
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::client::uiaa::{AuthData, AuthType},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    accounts::{
        Accounts, NewAccount, NewDevice, RegisterError, Session,
        passwords::{Hashed, PasswordError},
        random_id,
        sessions::Bearer,
    },
    threepids::Threepids,
    uia::{Demand, Proof, Uia, UiaError, email, registration_token},
};
use crate::{
    config,
    storage::{Families, StorageError, accounts::Kind, threepids::Owned},
};

/// For what a session of user-interactive authentication is opened.
const PURPOSE: &str = "register";

/// Makes accounts.
#[derive(Clone)]
pub(crate) struct Registration {
    accounts: Accounts,
    uia: Uia,
    threepids: Threepids,
    open_to: config::Registration,
    /// What everybody goes through.
    asked: Vec<AuthType>,
    guests: bool,
}

/// What somebody asks for who wants an account.
#[derive(Default)]
pub(crate) struct Wish {
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) device: NewDevice,
    pub(crate) inhibit_login: bool,
    pub(crate) guest_access_token: Option<String>,
    pub(crate) auth: Option<AuthData>,
}

/// What is kept of the first request: later ones may leave it out.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(default)]
struct Remembered {
    username: Option<String>,
    password: Option<String>,
    device_id: Option<OwnedDeviceId>,
    display_name: Option<String>,
    inhibit_login: bool,
    refreshes: bool,
    /// The account that came of it.
    registered: Option<OwnedUserId>,
}

/// A new account, and its session if one was wanted.
pub(crate) struct Registered {
    pub(crate) user_id: OwnedUserId,
    pub(crate) session: Option<Session>,
}

/// Why there is no new account.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    #[error("nobody may register")]
    Closed,
    #[error("there are no guests")]
    NoGuests,
    #[error("the guest is not the one whose token it is")]
    OtherGuest,
    #[error("there is no password")]
    NoPassword,
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Uia(#[from] UiaError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Registration {
    pub(crate) fn new(
        accounts: Accounts,
        uia: Uia,
        threepids: Threepids,
        config: &config::Config,
    ) -> Self {
        let captcha = config
            .captcha
            .as_ref()
            .is_some_and(|captcha| captcha.required);
        let captcha = captcha.then_some(AuthType::ReCaptcha);
        let terms = config.terms.as_ref().map(|_| AuthType::Terms);
        let asked = captcha.into_iter().chain(terms).collect();
        Self {
            accounts,
            uia,
            threepids,
            open_to: config.registration,
            asked,
            guests: config.guests,
        }
    }

    /// Makes a guest
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#guest-access)).
    pub(crate) async fn guest(&self, device: NewDevice) -> Result<Registered, RegistrationError> {
        if !self.guests {
            return Err(RegistrationError::NoGuests);
        }
        let device = NewDevice {
            device_id: None,
            ..device
        };
        let user_id = self.accounts.new_user_id(&random_name())?;
        let new = NewAccount {
            user_id: user_id.clone(),
            password: None,
            kind: Kind::Guest,
            registration_token: None,
            device: Some(device),
        };
        let session = self
            .accounts
            .register(new, |_| async { Ok(()) }.boxed())
            .await?;
        Ok(Registered { user_id, session })
    }

    /// Makes an account, or says what is to be proved before.
    pub(crate) async fn register(&self, wish: Wish) -> Result<Registered, RegistrationError> {
        let flows = self.flows()?;
        let session = wish.auth.as_ref().and_then(AuthData::session);
        let remembered = match session {
            Some(session) => self.uia.remembered(PURPOSE, session).await?,
            None => None,
        };
        let remembered = remembered.and_then(|json| serde_json::from_value(json).ok());
        let remembered: Remembered = remembered.unwrap_or_default();
        if let Some(user_id) = remembered.registered.clone() {
            return self.again(user_id, remembered.with(&wish)).await;
        }
        let mut all = remembered.with(&wish);
        let guest = self.upgraded(&wish, all.username.as_deref()).await?;
        // Said before the client goes through the stages for nothing.
        if let Some(name) = &all.username
            && guest.is_none()
        {
            self.accounts.is_available(name).await?;
        }
        if wish.auth.is_none() {
            all.password = self.hash(wish.password.clone()).await?;
        }
        let demand = Demand {
            purpose: PURPOSE.to_owned(),
            flows,
            auth: wish.auth.as_ref(),
            user_id: None,
            remember: json!(all),
        };
        let proof = self.uia.collect(demand).await?;
        if all.password.is_none() {
            all.password = self.hash(wish.password).await?;
        }
        self.finish(all, guest, proof).await
    }

    async fn finish(
        &self,
        all: Remembered,
        guest: Option<OwnedUserId>,
        proof: Proof,
    ) -> Result<Registered, RegistrationError> {
        let password = all.password.clone().map(Hashed);
        let password = password.ok_or(RegistrationError::NoPassword)?;
        if let Some(user_id) = guest {
            self.accounts
                .upgrade_guest(user_id.clone(), password)
                .await?;
            return self.again(user_id, all).await;
        }
        let name = all.username.clone().unwrap_or_else(random_name);
        let user_id = self.accounts.new_user_id(&name)?;
        let new = NewAccount {
            user_id: user_id.clone(),
            password: Some(password),
            kind: Kind::User,
            registration_token: registration_token(&proof.completed),
            device: all.device(),
        };
        let mut remembered: Remembered =
            serde_json::from_value(proof.remembered).unwrap_or_default();
        remembered.registered = Some(user_id.clone());
        let remembered = json!(remembered).to_string();
        let uia_session = proof.session;
        let address = email(&proof.completed).map(|(threepid, validated_at)| Owned {
            threepid,
            validated_at,
            added_at: validated_at,
        });
        let owner = user_id.clone();
        let register = self.accounts.register(new, move |tx| {
            async move {
                if let Some(address) = address
                    && !tx.threepids().insert(&owner, &address).await?
                {
                    return Err(RegisterError::AddressTaken);
                }
                // The client may not get the answer, and ask again.
                if let Some(uia_session) = uia_session
                    && let Some(mut row) = tx.uia().by_id(uia_session).await?
                {
                    row.remembered = remembered;
                    tx.uia().set(uia_session, &row).await?;
                }
                Ok(())
            }
            .boxed()
        });
        let session = register.await?;
        Ok(Registered { user_id, session })
    }

    /// The account is there already: the answer got lost.
    async fn again(
        &self,
        user_id: OwnedUserId,
        all: Remembered,
    ) -> Result<Registered, RegistrationError> {
        let session = match all.device() {
            Some(device) => Some(self.accounts.open_session(user_id.clone(), device).await?),
            None => None,
        };
        Ok(Registered { user_id, session })
    }

    /// The guest who wants to become a user.
    async fn upgraded(
        &self,
        wish: &Wish,
        username: Option<&str>,
    ) -> Result<Option<OwnedUserId>, RegistrationError> {
        let Some(token) = &wish.guest_access_token else {
            return Ok(None);
        };
        let named = username.and_then(|name| self.accounts.user_id(name));
        match self.accounts.authenticate(token).await? {
            Bearer::Known(known)
                if known.is_guest() && named.as_ref() == Some(&known.requester.user_id) =>
            {
                Ok(Some(known.requester.user_id))
            }
            _ => Err(RegistrationError::OtherGuest),
        }
    }

    /// What is to be proved.
    fn flows(&self) -> Result<Vec<Vec<AuthType>>, RegistrationError> {
        let mut all = self.asked.clone();
        match self.open_to {
            config::Registration::Closed => return Err(RegistrationError::Closed),
            config::Registration::Open => {}
            config::Registration::Token => all.insert(0, AuthType::RegistrationToken),
        }
        let with = |more: AuthType| {
            let mut flow = all.clone();
            flow.push(more);
            flow
        };
        let mut flows = vec![if all.is_empty() {
            with(AuthType::Dummy)
        } else {
            all.clone()
        }];
        if self.threepids.has_mail() {
            flows.push(with(AuthType::EmailIdentity));
        }
        Ok(flows)
    }

    async fn hash(&self, password: Option<String>) -> Result<Option<String>, PasswordError> {
        match password {
            Some(password) => {
                let Hashed(hash) = self.accounts.passwords().hash(password).await?;
                Ok(Some(hash))
            }
            None => Ok(None),
        }
    }
}

impl Remembered {
    /// What was asked first, and now.
    fn with(self, wish: &Wish) -> Self {
        Self {
            username: wish.username.clone().or(self.username),
            password: self.password,
            device_id: wish.device.device_id.clone().or(self.device_id),
            display_name: wish.device.display_name.clone().or(self.display_name),
            inhibit_login: wish.inhibit_login || self.inhibit_login,
            refreshes: wish.device.refreshes || self.refreshes,
            registered: self.registered,
        }
    }

    /// The device to log in, if one is wanted.
    fn device(&self) -> Option<NewDevice> {
        (!self.inhibit_login).then(|| NewDevice {
            device_id: self.device_id.clone(),
            display_name: self.display_name.clone(),
            refreshes: self.refreshes,
        })
    }
}

/// A name for somebody who chose none. Only letters and digits: names that begin with `_` are by custom those
/// of application services.
fn random_name() -> String {
    let id = random_id().to_lowercase();
    id.chars().filter(char::is_ascii_alphanumeric).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_are_nobodys_else() {
        for _ in 0..1_000 {
            let name = random_name();
            assert!(name.len() > 12 && name.chars().all(char::is_alphanumeric));
        }
    }
}
