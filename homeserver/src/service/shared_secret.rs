//! Accounts for whoever knows the secret in the configuration, as scripts and bridges written for Synapse
//! make them
//! ([Synapse](https://element-hq.github.io/synapse/latest/admin_api/register_api.html)).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::FutureExt;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use zeroize::Zeroizing;

use super::accounts::{Accounts, NewAccount, NewDevice, RegisterError, Session, random_id};
use crate::{
    clock::Clock,
    config::{Config, Secret},
    service::accounts::passwords::PasswordError,
    storage::accounts::Kind,
};

/// How long a nonce is good for, in milliseconds.
const LIFETIME: u64 = 60 * 1000;
/// How many nonces there can be at once: anybody can ask for them.
const CAPACITY: usize = 10_000;

/// Makes accounts for whoever knows the secret.
#[derive(Clone)]
pub(crate) struct SharedSecret {
    accounts: Accounts,
    clock: Clock,
    secret: Option<Secret>,
    /// When each nonce was given out. In memory: after a restart a script begins again.
    nonces: Arc<Mutex<HashMap<String, u64>>>,
}

/// What somebody asks for.
pub(crate) struct SecretWish {
    pub(crate) nonce: String,
    pub(crate) username: String,
    pub(crate) display_name: Option<String>,
    pub(crate) password: String,
    pub(crate) admin: bool,
    /// A word that Synapse's accounts can have; it is part of what is authenticated.
    pub(crate) user_type: Option<String>,
    /// The authentication code, in hexadecimal.
    pub(crate) mac: String,
}

/// Why there is no new account.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// The configuration has no secret.
    #[error("accounts are not made in this way")]
    Disabled,
    /// The nonce was not given out, was used, or is too old.
    #[error("the nonce is not known")]
    UnknownNonce,
    /// A part that is authenticated contains what separates the parts.
    #[error("`{0}` contains a null character")]
    NullCharacter(&'static str),
    /// Whoever asks does not know the secret.
    #[error("the authentication code is wrong")]
    WrongMac,
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl SharedSecret {
    pub(crate) fn new(accounts: Accounts, clock: Clock, config: &Config) -> Self {
        Self {
            accounts,
            clock,
            secret: config.registration_shared_secret.clone(),
            nonces: Arc::default(),
        }
    }

    /// A nonce for one account.
    pub(crate) fn nonce(&self) -> Result<String, SecretError> {
        if self.secret.is_none() {
            return Err(SecretError::Disabled);
        }
        let (nonce, now) = (random_id(), self.now());
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|_, given| now.saturating_sub(*given) < LIFETIME);
        if nonces.len() >= CAPACITY {
            nonces.clear();
        }
        nonces.insert(nonce.clone(), now);
        Ok(nonce)
    }

    /// Makes an account, and logs it in.
    pub(crate) async fn register(&self, wish: SecretWish) -> Result<Option<Session>, SecretError> {
        let secret = self.secret.as_ref().ok_or(SecretError::Disabled)?;
        self.take(&wish.nonce)?;
        for (part, name) in [(&wish.username, "username"), (&wish.password, "password")] {
            if part.contains('\0') {
                return Err(SecretError::NullCharacter(name));
            }
        }
        verify(secret, &wish)?;
        let user_id = self.accounts.new_user_id(&wish.username)?;
        let password = self.accounts.passwords().hash(wish.password).await?;
        let device = NewDevice {
            display_name: wish.display_name,
            ..NewDevice::default()
        };
        let new = NewAccount {
            user_id,
            password: Some(password),
            kind: if wish.admin {
                Kind::Administrator
            } else {
                Kind::User
            },
            registration_token: None,
            device: Some(device),
        };
        let register = self.accounts.register(new, |_| async { Ok(()) }.boxed());
        Ok(register.await?)
    }

    /// Uses a nonce up.
    fn take(&self, nonce: &str) -> Result<(), SecretError> {
        let now = self.now();
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        let given = nonces.remove(nonce);
        let good = given.is_some_and(|given| now.saturating_sub(given) < LIFETIME);
        good.then_some(()).ok_or(SecretError::UnknownNonce)
    }

    fn now(&self) -> u64 {
        self.clock.now().0.into()
    }
}

/// Checks the code over the parts with null characters between them, in constant time.
fn verify(secret: &Secret, wish: &SecretWish) -> Result<(), SecretError> {
    let admin = if wish.admin { "admin" } else { "notadmin" };
    let mut parts = vec![&*wish.nonce, &*wish.username, &*wish.password, admin];
    parts.extend(wish.user_type.as_deref());
    let message = Zeroizing::new(parts.join("\0"));
    let code = from_hex(&wish.mac).ok_or(SecretError::WrongMac)?;
    let mac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes());
    let mut mac = mac.map_err(|_| SecretError::WrongMac)?;
    mac.update(message.as_bytes());
    mac.verify_slice(&code).map_err(|_| SecretError::WrongMac)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect();
    let pairs = digits?;
    let pairs = pairs.chunks(2).map(|pair| match pair {
        [high, low] => Some((high << 4) | low),
        _ => None,
    });
    pairs.collect()
}
