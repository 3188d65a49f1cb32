//! Accounts: registration, login, and who an access token speaks for.

mod masquerade;
pub(crate) mod passwords;
pub(crate) mod sessions;

use std::sync::{Arc, atomic::AtomicU64};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt, future::BoxFuture};
use quick_cache::sync::Cache;
use ruma::{
    DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName,
    UserId, events::room::member::MembershipState,
};

pub(crate) use self::{
    masquerade::MasqueradeError,
    sessions::{AccessToken, NewDevice, Session},
};
use self::{
    passwords::{Hashed, Passwords},
    sessions::Known,
};
use crate::{
    clock::Clock,
    service::{
        appservices::{Appservices, ServiceId},
        rate_limits::{Action, Asker, RateLimits, TooOften},
    },
    storage::{
        Families, Storage, StorageError,
        accounts::{Account, Flag, Kind, Standing, TokenHash},
        registration_tokens::RegistrationToken,
        tokens::Generation,
        writer::Tx,
    },
};

/// The user and the device that a request comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Requester {
    pub(crate) user_id: OwnedUserId,
    /// Empty for an application service that names none.
    pub(crate) device_id: OwnedDeviceId,
    /// The application service that speaks for the user.
    pub(crate) service: Option<ServiceId>,
}

impl Requester {
    /// A device of a user, which speaks for itself.
    pub(crate) fn new(user_id: OwnedUserId, device_id: OwnedDeviceId) -> Self {
        Self {
            user_id,
            device_id,
            service: None,
        }
    }

    /// The device, if there is one.
    pub(crate) fn device(&self) -> Option<&DeviceId> {
        Some(&*self.device_id).filter(|device_id| !device_id.as_str().is_empty())
    }

    /// Whether it is the same device of the same user, no matter who speaks for it.
    pub(crate) fn is_same_device(&self, other: &Self) -> bool {
        self.device_id == other.device_id && self.user_id == other.user_id
    }
}

/// Accounts.
#[derive(Clone)]
pub(crate) struct Accounts(Arc<Inner>);

struct Inner {
    storage: Storage,
    clock: Clock,
    server_name: OwnedServerName,
    public_base_url: String,
    passwords: Passwords,
    limits: RateLimits,
    appservices: Appservices,
    /// Tokens that were good. Every way to make a token worthless goes through
    /// [`Accounts::forget_device`] or [`Accounts::forget_user`].
    tokens: Cache<TokenHash, Known>,
    /// What those may do for whom application services spoke; forgotten with the tokens.
    masks: Cache<Requester, Standing>,
    /// How often something was forgotten.
    forgotten: AtomicU64,
}

/// A new account.
pub(crate) struct NewAccount {
    pub(crate) user_id: OwnedUserId,
    pub(crate) password: Option<Hashed>,
    pub(crate) kind: Kind,
    /// Used up in the same transaction.
    pub(crate) registration_token: Option<TokenHash>,
    /// Opens a session.
    pub(crate) device: Option<NewDevice>,
}

/// Why there is no new account.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("the name is not allowed")]
    InvalidName,
    #[error("the name is taken")]
    NameTaken,
    /// An application service has the name for itself, or the name is not one of its own.
    #[error("the name is reserved")]
    Exclusive,
    #[error("the registration token is not valid")]
    BadToken,
    #[error("somebody has the address")]
    AddressTaken,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why nobody was logged in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// Unknown user or wrong password: which of them is not said.
    #[error("the name or the password is wrong")]
    WrongCredentials,
    #[error("the account is deactivated")]
    Deactivated,
    #[error("the account is locked")]
    Locked,
    #[error(transparent)]
    TooOften(#[from] TooOften),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl LoginError {
    /// What keeps an account from being logged in to.
    fn of(account: &Account) -> Option<Self> {
        if account.deactivated {
            Some(Self::Deactivated)
        } else if account.standing.locked {
            Some(Self::Locked)
        } else {
            None
        }
    }
}

impl NewAccount {
    async fn insert(
        &self,
        tx: &mut Tx,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), RegisterError> {
        let mut kind = self.kind;
        if let Some(token) = &self.registration_token {
            // The first token is told on the console: whoever has it runs the server.
            if kind == Kind::User && tx.accounts().none().await? {
                kind = Kind::Administrator;
            }
            let now = i64::from(now.0);
            if !tx.registration_tokens().take(*token, now).await? {
                return Err(RegisterError::BadToken);
            }
        }
        let user_id = &self.user_id;
        let hash = self.password.as_ref().map(|hash| hash.0.as_str());
        if !tx.accounts().insert(user_id, hash, kind, now).await? {
            return Err(RegisterError::NameTaken);
        }
        if kind != Kind::Guest {
            let name = serde_json::Value::from(user_id.localpart()).to_string();
            tx.accounts()
                .set_profile_field(user_id, "displayname", Some(&name))
                .await?;
        }
        Ok(())
    }
}

impl Accounts {
    pub(crate) fn new(
        storage: Storage,
        clock: Clock,
        server_name: OwnedServerName,
        public_base_url: String,
        limits: RateLimits,
        appservices: Appservices,
    ) -> Self {
        let (tokens, masks) = (Cache::new(100_000), Cache::new(100_000));
        Self(Arc::new(Inner {
            storage,
            clock,
            server_name,
            public_base_url,
            passwords: Passwords::new(),
            limits,
            appservices,
            tokens,
            masks,
            forgotten: AtomicU64::new(0),
        }))
    }

    /// Where clients reach this server.
    pub(crate) fn public_base_url(&self) -> &str {
        &self.0.public_base_url
    }

    /// Our name.
    pub(crate) fn server_name(&self) -> &ServerName {
        &self.0.server_name
    }

    /// The user id for a localpart, or for a full id of this server, as somebody's new account may have it.
    pub(crate) fn new_user_id(&self, name: &str) -> Result<OwnedUserId, RegisterError> {
        let user_id = self.proper_user_id(name)?;
        if self.0.appservices.reserve_user(&user_id, None) {
            return Err(RegisterError::Exclusive);
        }
        Ok(user_id)
    }

    /// As [`Accounts::new_user_id`], whoever has the name for themselves
    /// ([spec](https://spec.matrix.org/v1.19/appendices/#user-identifiers)).
    fn proper_user_id(&self, name: &str) -> Result<OwnedUserId, RegisterError> {
        let user_id = self.user_id(name).ok_or(RegisterError::InvalidName)?;
        let good = user_id.server_name() == self.0.server_name
            && !user_id.localpart().is_empty()
            && user_id.validate_strict().is_ok();
        if good {
            Ok(user_id)
        } else {
            Err(RegisterError::InvalidName)
        }
    }

    /// The user id that somebody logs in with: a localpart or a full id.
    pub(crate) fn user_id(&self, name: &str) -> Option<OwnedUserId> {
        UserId::parse_with_server_name(name.to_lowercase(), &self.0.server_name).ok()
    }

    /// Whether a name can be registered.
    pub(crate) async fn is_available(&self, name: &str) -> Result<(), RegisterError> {
        let user_id = self.new_user_id(name)?;
        let mut reader = self.0.storage.read().await?;
        match reader.accounts().by_id(&user_id).await? {
            None => Ok(()),
            Some(_) => Err(RegisterError::NameTaken),
        }
    }

    /// Who speaks for many.
    pub(crate) fn appservices(&self) -> &Appservices {
        &self.0.appservices
    }

    /// The time.
    pub(crate) fn clock(&self) -> MilliSecondsSinceUnixEpoch {
        self.0.clock.now()
    }

    /// How often people may ask for things.
    pub(crate) fn rate_limits(&self) -> &RateLimits {
        &self.0.limits
    }

    /// Hashes passwords.
    pub(crate) fn passwords(&self) -> &Passwords {
        &self.0.passwords
    }

    /// Makes an account, and logs it in if a device is given. `with` is done in the same transaction.
    pub(crate) async fn register<F>(
        &self,
        new: NewAccount,
        with: F,
    ) -> Result<Option<Session>, RegisterError>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<(), RegisterError>> + Send + 'static,
    {
        let session = new
            .device
            .as_ref()
            .map(|device| Session::new(new.user_id.clone(), device));
        let now = self.0.clock.now();
        let parts = session.as_ref().map(|session| {
            let tokens = session.tokens(i64::from(now.0), Generation(0));
            (tokens, session.requester.device_id.clone())
        });
        let write = self.0.storage.write(move |tx| {
            async move {
                new.insert(tx, now).await?;
                if let Some((tokens, device_id)) = parts {
                    let name = new.device.as_ref().and_then(|d| d.display_name.as_deref());
                    let user_id = &new.user_id;
                    tx.devices().upsert(user_id, &device_id, name, now).await?;
                    tokens.insert(tx, user_id, &device_id).await?;
                }
                with(tx).await
            }
            .boxed()
        });
        write.await?;
        Ok(session)
    }

    /// Makes a user of a guest, under the same name.
    pub(crate) async fn upgrade_guest(
        &self,
        user_id: OwnedUserId,
        password: Hashed,
    ) -> Result<(), StorageError> {
        let owner = user_id.clone();
        let write = self.0.storage.write(move |tx| {
            async move {
                tx.accounts()
                    .set_password(&owner, Some(&password.0))
                    .await?;
                tx.accounts().set_kind(&owner, Kind::User).await
            }
            .boxed()
        });
        write.await?;
        self.forget_user(&user_id);
        Ok(())
    }

    /// Sets another password.
    pub(crate) async fn set_password(
        &self,
        user_id: OwnedUserId,
        password: Hashed,
    ) -> Result<(), StorageError> {
        let write = self.0.storage.write(move |tx| {
            async move {
                tx.accounts()
                    .set_password(&user_id, Some(&password.0))
                    .await
            }
            .boxed()
        });
        write.await
    }

    /// Whether a registration token can be used now.
    pub(crate) async fn registration_token_is_good(
        &self,
        token: &str,
    ) -> Result<bool, StorageError> {
        let token = AccessToken(token.to_owned()).hash();
        let now = i64::from(self.0.clock.now().0);
        let mut reader = self.0.storage.read().await?;
        reader.registration_tokens().is_good(token, now).await
    }

    /// Makes the token with which the first account can be registered, if there is no account yet.
    pub(crate) async fn first_registration_token(&self) -> Result<Option<String>, StorageError> {
        if !self.0.storage.read().await?.accounts().none().await? {
            return Ok(None);
        }
        let token = random_id();
        let row = RegistrationToken {
            hash: AccessToken(token.clone()).hash(),
            uses_left: Some(1),
            created_at: i64::from(self.0.clock.now().0),
            expires_at: None,
        };
        let write = self
            .0
            .storage
            .write(move |tx| async move { tx.registration_tokens().insert(row).await }.boxed());
        write.await?;
        Ok(Some(token))
    }

    /// Whether the account is a guest's.
    pub(crate) async fn is_guest(&self, user_id: &UserId) -> Result<bool, StorageError> {
        let account = self.account(user_id).await?;
        Ok(account.is_some_and(|account| account.standing.kind == Kind::Guest))
    }

    /// The account of a local user.
    pub(crate) async fn account(&self, user_id: &UserId) -> Result<Option<Account>, StorageError> {
        let mut reader = self.0.storage.read().await?;
        reader.accounts().by_id(user_id).await
    }

    /// Checks a password.
    pub(crate) async fn check_password(
        &self,
        user_id: &UserId,
        password: String,
    ) -> Result<(), LoginError> {
        let asker = || Asker::User(user_id.to_owned());
        self.0.limits.take(Action::Password, asker())?;
        let account = self.account(user_id).await?;
        let hash = account
            .as_ref()
            .and_then(|account| account.password_hash.clone());
        // The same work whether the account exists or not, so that time does not tell.
        let good = self.0.passwords.verify(password, hash).await;
        let Some(account) = account.filter(|_| good) else {
            return Err(LoginError::WrongCredentials);
        };
        self.0.limits.give_back(Action::Password, asker());
        LoginError::of(&account).map_or(Ok(()), Err)
    }

    /// Whether somebody who has proved to be this user may log in.
    pub(crate) async fn may_log_in(&self, user_id: &UserId) -> Result<(), LoginError> {
        match self.account(user_id).await? {
            None => Err(LoginError::WrongCredentials),
            Some(account) => LoginError::of(&account).map_or(Ok(()), Err),
        }
    }

    /// Locks or suspends an account, or lifts that; whether there is such an account.
    pub(crate) async fn set_flag(
        &self,
        user_id: OwnedUserId,
        flag: Flag,
        to: bool,
    ) -> Result<bool, StorageError> {
        let owner = user_id.clone();
        let write = self
            .0
            .storage
            .write(move |tx| async move { tx.accounts().set_flag(&owner, flag, to).await }.boxed());
        let found: bool = write.await?;
        self.forget_user(&user_id);
        Ok(found)
    }

    /// The rooms that a local user is joined to.
    pub(crate) fn joined_rooms(&self, user_id: &UserId) -> Vec<ruma::OwnedRoomId> {
        let places = self.0.storage.log().roster().places(user_id);
        let joined = places
            .into_iter()
            .filter(|(_, p)| p.membership == MembershipState::Join);
        joined.map(|(room_id, _)| room_id).collect()
    }
}

/// 192 random bits, as 32 characters that are safe in URLs.
pub(crate) fn random_id() -> String {
    let mut bytes = [0_u8; 24];
    #[expect(
        clippy::expect_used,
        reason = "a machine without randomness must not make secrets"
    )]
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}
