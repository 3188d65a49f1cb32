//! What clients need to call each other
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3voipturnserver)).

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use ruma::UserId;
use sha1::Sha1;

use crate::{clock::Clock, config};

/// Lets local users through the TURN servers.
#[derive(Clone)]
pub(crate) struct Calls {
    settings: config::Turn,
    clock: Clock,
}

/// How a user gets through the TURN servers.
pub(crate) struct TurnAccess {
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) uris: Vec<String>,
    pub(crate) ttl: Duration,
}

impl Calls {
    pub(crate) fn new(settings: config::Turn, clock: Clock) -> Self {
        Self { settings, clock }
    }

    /// How a user gets through the TURN servers, if there are any: with a password that ends with its time, or with one
    /// that all users share.
    pub(crate) fn turn(&self, user_id: &UserId) -> Option<TurnAccess> {
        let config::Turn {
            uris,
            shared_secret,
            username,
            password,
            ttl_seconds,
        } = &self.settings;
        if uris.is_empty() {
            return None;
        }
        let ttl = Duration::from_secs(*ttl_seconds);
        let (username, password) = match (shared_secret, username, password) {
            (Some(secret), _, _) => {
                let now = u64::from(self.clock.now().0) / 1_000;
                let username = format!("{}:{user_id}", now + ttl_seconds);
                let password = self::password(secret, &username)?;
                (username, password)
            }
            (None, Some(username), Some(password)) => (username.clone(), password.clone()),
            _ => return None,
        };
        Some(TurnAccess {
            username,
            password,
            uris: uris.clone(),
            ttl,
        })
    }
}

/// The password that goes with a name, as TURN servers work it out from the secret that they share with
/// this one.
fn password(secret: &str, username: &str) -> Option<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(username.as_bytes());
    Some(STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2202, test case 2.
    #[test]
    fn the_password_is_an_hmac() {
        let password = password("Jefe", "what do ya want for nothing?");
        let expected = "7/zfauXrL6LSdBbV8YTfnCWafHk=";
        assert_eq!(password.as_deref(), Some(expected));
    }
}
