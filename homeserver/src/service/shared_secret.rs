//! Accounts made by whoever knows the shared secret of the configuration, as the tools of other servers
//! make them: `register_new_matrix_user` and many scripts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::FutureExt;
use sha1::{Digest, Sha1};
use zeroize::Zeroizing;

use super::accounts::{
    Accounts, NewAccount, NewDevice, RegisterError, Session, passwords::PasswordError, random_id,
};
use crate::{clock::Clock, config::Config, storage::accounts::Kind};

/// How long a nonce can be used, in milliseconds.
const LIFETIME: u64 = 60_000;
/// How many nonces there can be at once.
const CAPACITY: usize = 1_000;
/// The block of SHA-1, in bytes.
const BLOCK: usize = 64;

/// Makes accounts for those who know the secret.
#[derive(Clone)]
pub(crate) struct SharedSecret {
    accounts: Accounts,
    clock: Clock,
    secret: Option<Arc<Zeroizing<String>>>,
    nonces: Arc<Mutex<HashMap<String, u64>>>,
}

/// What is asked for.
pub(crate) struct Application {
    pub(crate) nonce: String,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) administrator: bool,
    pub(crate) user_type: Option<String>,
    pub(crate) mac: String,
}

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedSecretError {
    #[error("the configuration has no shared secret")]
    Disabled,
    #[error("the nonce is not one, or too old")]
    UnknownNonce,
    #[error("whoever made the request does not know the secret")]
    WrongMac,
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl SharedSecret {
    pub(crate) fn new(accounts: Accounts, clock: Clock, config: &Config) -> Self {
        let secret = config.registration_shared_secret.clone();
        Self {
            accounts,
            clock,
            secret: secret.map(|secret| Arc::new(Zeroizing::new(secret))),
            nonces: Arc::default(),
        }
    }

    /// Something to put into a request, once.
    pub(crate) fn nonce(&self) -> Result<String, SharedSecretError> {
        if self.secret.is_none() {
            return Err(SharedSecretError::Disabled);
        }
        let now = u64::from(self.clock.now().0);
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|_, made| *made + LIFETIME > now);
        if nonces.len() >= CAPACITY {
            nonces.clear();
        }
        let nonce = random_id();
        nonces.insert(nonce.clone(), now);
        Ok(nonce)
    }

    /// Makes an account and logs it in.
    pub(crate) async fn register(
        &self,
        application: Application,
    ) -> Result<Session, SharedSecretError> {
        let secret = self.secret.as_ref().ok_or(SharedSecretError::Disabled)?;
        if !self.take(&application.nonce) {
            return Err(SharedSecretError::UnknownNonce);
        }
        let expected = hex(&hmac(secret.as_bytes(), &application.signed()));
        if !same(
            expected.as_bytes(),
            application.mac.to_lowercase().as_bytes(),
        ) {
            return Err(SharedSecretError::WrongMac);
        }
        let user_id = self.accounts.new_user_id(&application.username)?;
        let new = NewAccount {
            user_id,
            password: Some(self.accounts.passwords().hash(application.password).await?),
            kind: if application.administrator {
                Kind::Administrator
            } else {
                Kind::User
            },
            registration_token: None,
            device: Some(NewDevice::default()),
        };
        let registered = self.accounts.register(new, |_| async { Ok(()) }.boxed());
        let session = registered.await?;
        session.ok_or(SharedSecretError::UnknownNonce)
    }

    fn take(&self, nonce: &str) -> bool {
        let now = u64::from(self.clock.now().0);
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces
            .remove(nonce)
            .is_some_and(|made| made + LIFETIME > now)
    }
}

impl Application {
    /// What the code stands for.
    fn signed(&self) -> Zeroizing<Vec<u8>> {
        let kind = if self.administrator {
            "admin"
        } else {
            "notadmin"
        };
        let mut parts = vec![&*self.nonce, &*self.username, &*self.password, kind];
        parts.extend(self.user_type.as_deref());
        Zeroizing::new(parts.join("\0").into_bytes())
    }
}

/// HMAC-SHA1 ([RFC 2104](https://www.rfc-editor.org/rfc/rfc2104)), which these tools use.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 20] {
    let mut block = [0_u8; BLOCK];
    let hashed = Sha1::digest(key);
    let key = if key.len() > BLOCK {
        hashed.as_slice()
    } else {
        key
    };
    for (place, byte) in block.iter_mut().zip(key) {
        *place = *byte;
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha1::new().chain_update(padded(0x36)).chain_update(message);
    let outer = Sha1::new().chain_update(padded(0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect()
}

/// Compares in constant time.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [RFC 2202](https://www.rfc-editor.org/rfc/rfc2202), cases 2 and 6.
    #[test]
    fn hmac_of_the_rfc() {
        let code = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&code), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let code = hmac(&[0xaa; 80], text);
        assert_eq!(hex(&code), "aa4ae5e15272d00e95705637ce8a3b55ed402112");
    }
}
