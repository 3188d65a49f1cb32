//! Accounts: registration, login, and who an access token speaks for.

use std::{fmt, sync::Arc};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use quick_cache::sync::Cache;
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, UserId, events::room::member::MembershipState,
};
use sha2::{Digest, Sha256};

use crate::{
    clock::Clock,
    config::Registration,
    service::device_lists::{self, DeviceChange},
    storage::{Families, Storage, StorageError, accounts::TokenHash},
};

/// The user and the device that a request comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Requester {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
}

/// Accounts.
#[derive(Clone)]
pub(crate) struct Accounts(Arc<Inner>);

struct Inner {
    storage: Storage,
    clock: Clock,
    server_name: OwnedServerName,
    registration: Registration,
    public_base_url: String,
    /// Tokens that were good. Every way to make a token worthless goes through
    /// [`Accounts::forget_device`].
    tokens: Cache<TokenHash, Requester>,
}

/// A secret that lets its holder act as a device.
#[derive(Clone)]
pub(crate) struct AccessToken(pub(crate) String);

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

/// A new session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) requester: Requester,
    pub(crate) token: AccessToken,
}

/// What a new device is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewDevice {
    pub(crate) device_id: Option<OwnedDeviceId>,
    pub(crate) display_name: Option<String>,
}

/// Why there is no new account.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("the name is not allowed")]
    InvalidName,
    #[error("the name is taken")]
    NameTaken,
    #[error("the registration token is not valid")]
    BadToken,
    #[error("the password could not be hashed")]
    Hash,
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
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Accounts {
    pub(crate) fn new(
        storage: Storage,
        clock: Clock,
        server_name: OwnedServerName,
        registration: Registration,
        public_base_url: String,
    ) -> Self {
        let tokens = Cache::new(100_000);
        Self(Arc::new(Inner {
            storage,
            clock,
            server_name,
            registration,
            public_base_url,
            tokens,
        }))
    }

    /// Where clients reach this server.
    pub(crate) fn public_base_url(&self) -> &str {
        &self.0.public_base_url
    }

    /// Who may register.
    pub(crate) fn registration(&self) -> Registration {
        self.0.registration
    }

    /// The user id for a localpart, or for a full id of this server, as a new account may have it
    /// ([spec](https://spec.matrix.org/v1.19/appendices/#user-identifiers)).
    pub(crate) fn new_user_id(&self, name: &str) -> Result<OwnedUserId, RegisterError> {
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

    /// Makes an account, with the token that it takes in the same transaction, and logs it in if a
    /// device is given.
    pub(crate) async fn register(
        &self,
        user_id: OwnedUserId,
        password: Option<String>,
        registration_token: Option<String>,
        device: Option<NewDevice>,
    ) -> Result<Option<Session>, RegisterError> {
        let hash = match password {
            Some(password) => Some(hash(password).await.ok_or(RegisterError::Hash)?),
            None => None,
        };
        let session = device
            .as_ref()
            .map(|device| Session::new(user_id.clone(), device));
        let parts = session
            .as_ref()
            .map(|s| (s.token.hash(), s.requester.device_id.clone()));
        let now = self.0.clock.now();
        let display_name = device.and_then(|device| device.display_name);
        self.0
            .storage
            .write(move |tx| {
                async move {
                    if let Some(token) = registration_token {
                        let token = AccessToken(token).hash();
                        if !tx.accounts().use_registration_token(token).await? {
                            return Err(RegisterError::BadToken);
                        }
                    }
                    if !tx.accounts().insert(&user_id, hash.as_deref(), now).await? {
                        return Err(RegisterError::NameTaken);
                    }
                    let name = serde_json::Value::from(user_id.localpart()).to_string();
                    tx.accounts()
                        .set_profile_field(&user_id, "displayname", Some(&name))
                        .await?;
                    if let Some((token, device_id)) = parts {
                        let name = display_name.as_deref();
                        tx.devices().upsert(&user_id, &device_id, name, now).await?;
                        tx.accounts()
                            .insert_access_token(token, &user_id, &device_id)
                            .await?;
                    }
                    Ok(())
                }
                .boxed()
            })
            .await?;
        Ok(session)
    }

    /// Whether a registration token can be used now.
    pub(crate) async fn registration_token_is_good(
        &self,
        token: &str,
    ) -> Result<bool, StorageError> {
        let token = AccessToken(token.to_owned()).hash();
        self.0
            .storage
            .read()
            .await?
            .accounts()
            .registration_token_is_good(token)
            .await
    }

    /// Makes the token with which the first account can be registered, if there is no account yet.
    pub(crate) async fn first_registration_token(&self) -> Result<Option<String>, StorageError> {
        if !self.0.storage.read().await?.accounts().none().await? {
            return Ok(None);
        }
        let token = random_id();
        let hash = AccessToken(token.clone()).hash();
        let write = self.0.storage.write(move |tx| {
            async move { tx.accounts().insert_registration_token(hash, Some(1)).await }.boxed()
        });
        write.await?;
        Ok(Some(token))
    }

    /// Checks a password.
    pub(crate) async fn check_password(
        &self,
        user_id: &UserId,
        password: String,
    ) -> Result<(), LoginError> {
        let account = self
            .0
            .storage
            .read()
            .await?
            .accounts()
            .by_id(user_id)
            .await?;
        let hash = account
            .as_ref()
            .and_then(|account| account.password_hash.clone());
        // The same work whether the account exists or not, so that time does not tell.
        let good = verify(password, hash).await;
        match account {
            Some(account) if good && account.deactivated => Err(LoginError::Deactivated),
            Some(_) if good => Ok(()),
            _ => Err(LoginError::WrongCredentials),
        }
    }

    /// Opens a session for a user who has proved to be who they say.
    pub(crate) async fn open_session(
        &self,
        user_id: OwnedUserId,
        device: NewDevice,
    ) -> Result<Session, StorageError> {
        let session = Session::new(user_id.clone(), &device);
        let (token, device_id) = (session.token.hash(), session.requester.device_id.clone());
        let now = self.0.clock.now();
        let followers = device_lists::followers(&self.0.storage, &user_id);
        self.forget_device(&session.requester);
        let write = self.0.storage.write(move |tx| {
            async move {
                // Logging in again with a device makes its former token worthless.
                tx.devices()
                    .delete_access_tokens(&user_id, &device_id)
                    .await?;
                let name = device.display_name.as_deref();
                tx.devices().upsert(&user_id, &device_id, name, now).await?;
                tx.accounts()
                    .insert_access_token(token, &user_id, &device_id)
                    .await?;
                let change = DeviceChange::Updated;
                device_lists::announce(tx, &followers, &user_id, &device_id, change).await
            }
            .boxed()
        });
        write.await?;
        Ok(session)
    }

    /// Who an access token speaks for.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
    ) -> Result<Option<Requester>, StorageError> {
        let hash = AccessToken(token.to_owned()).hash();
        if let Some(requester) = self.0.tokens.get(&hash) {
            return Ok(Some(requester));
        }
        let found = self
            .0
            .storage
            .read()
            .await?
            .accounts()
            .by_access_token(hash)
            .await?;
        Ok(found.map(|(user_id, device_id)| {
            let requester = Requester { user_id, device_id };
            self.0.tokens.insert(hash, requester.clone());
            requester
        }))
    }

    /// Forgets the tokens of a device in memory; called before they are deleted, and after.
    pub(crate) fn forget_device(&self, requester: &Requester) {
        self.0.tokens.retain(|_, known| known != requester);
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

impl AccessToken {
    fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl Session {
    fn new(user_id: OwnedUserId, device: &NewDevice) -> Self {
        let fresh = || {
            random_id()
                .replace(['-', '_'], "")
                .chars()
                .take(10)
                .collect::<String>()
        };
        let device_id = device
            .device_id
            .clone()
            .unwrap_or_else(|| fresh().to_uppercase().into());
        Self {
            requester: Requester { user_id, device_id },
            token: AccessToken(format!("sotto_{}", random_id())),
        }
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

/// Hashes a password, off the threads that answer requests.
async fn hash(password: String) -> Option<String> {
    tokio::task::spawn_blocking(move || {
        let hash = Argon2::default().hash_password(password.as_bytes());
        hash.ok().map(|hash| hash.to_string())
    })
    .await
    .ok()
    .flatten()
}

async fn verify(password: String, hash: Option<String>) -> bool {
    tokio::task::spawn_blocking(move || {
        let known = hash
            .as_deref()
            .and_then(|hash| PasswordHash::new(hash).ok());
        if let Some(known) = known {
            Argon2::default()
                .verify_password(password.as_bytes(), &known)
                .is_ok()
        } else {
            drop(Argon2::default().hash_password(password.as_bytes()));
            false
        }
    })
    .await
    .unwrap_or(false)
}
