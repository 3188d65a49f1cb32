//! Sessions: opening them, keeping them open, and who an access token speaks for
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#client-authentication)).

use std::{fmt, sync::atomic::Ordering, time::Duration};

use futures_util::FutureExt;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sha2::{Digest, Sha256};

use super::{Accounts, Requester, random_id};
use crate::{
    service::device_lists::{self, DeviceChange},
    storage::{
        Families, StorageError,
        accounts::{Kind, Standing, TokenHash},
        tokens::{AccessRow, Generation, NewAccess, Purpose},
        writer::Tx,
    },
};

/// How long an access token is good that can be refreshed.
const REFRESHABLE: Duration = Duration::from_mins(5);
/// How long a login token is good
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv1loginget_token)).
pub(crate) const LOGIN_TOKEN: Duration = Duration::from_mins(2);
/// How long other services may ask who somebody is.
pub(crate) const OPENID_TOKEN: Duration = Duration::from_hours(1);

/// A secret that lets its holder act as a device.
#[derive(Clone)]
pub(crate) struct AccessToken(pub(crate) String);

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

impl AccessToken {
    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

/// A new session, or new tokens for one.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) requester: Requester,
    pub(crate) token: AccessToken,
    /// What the client renews the access token with, if it can.
    pub(crate) refresh: Option<AccessToken>,
    pub(crate) expires_in: Option<Duration>,
}

/// What a new device is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewDevice {
    pub(crate) device_id: Option<OwnedDeviceId>,
    pub(crate) display_name: Option<String>,
    /// Whether the client can renew its access token.
    pub(crate) refreshes: bool,
}

/// What an access token is.
#[derive(Clone, Debug)]
pub(crate) enum Bearer {
    /// It speaks for somebody.
    Known(Known),
    /// It did, and its session goes on with another.
    Expired,
    /// Nobody's.
    Unknown,
}

/// Who an access token speaks for, and what they may do.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) requester: Requester,
    pub(crate) standing: Standing,
    expires_at: Option<i64>,
}

/// Why there are no new tokens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefreshError {
    #[error("the refresh token is not known")]
    UnknownToken,
    #[error("the account is locked")]
    Locked,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Accounts {
    /// Whether this is the name of a cross-signing key of the user, which no device can have: signatures would be
    /// ambiguous.
    pub(crate) async fn names_key(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<bool, StorageError> {
        let mut reader = self.0.storage.read().await?;
        let keys = reader
            .cross_signing()
            .of_users(&[user_id.to_owned()])
            .await?;
        // The only key in each is named by itself.
        let name = format!("\"ed25519:{device_id}\"");
        Ok(keys.iter().any(|key| key.json.contains(&name)))
    }

    /// Opens a session for a user who has proved to be who they say.
    pub(crate) async fn open_session(
        &self,
        user_id: OwnedUserId,
        device: NewDevice,
    ) -> Result<Session, StorageError> {
        let session = Session::new(user_id.clone(), &device);
        let tokens = session.tokens(self.now(), Generation(0));
        let device_id = session.requester.device_id.clone();
        let now = self.0.clock.now();
        let followers = device_lists::followers(&self.0.storage, &user_id);
        self.forget_device(&session.requester);
        let write = self.0.storage.write(move |tx| {
            async move {
                // Logging in again with a device makes its former tokens worthless.
                tx.tokens().delete_of_device(&user_id, &device_id).await?;
                let name = device.display_name.as_deref();
                tx.devices().upsert(&user_id, &device_id, name, now).await?;
                tokens.insert(tx, &user_id, &device_id).await?;
                let change = DeviceChange::Updated;
                device_lists::announce(tx, &followers, &user_id, &device_id, change).await
            }
            .boxed()
        });
        write.await?;
        self.forget_device(&session.requester);
        Ok(session)
    }

    /// Gives new tokens for a refresh token. The old ones are good until one of the new is used, so
    /// that a lost answer costs nobody their session
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#refreshing-access-tokens)).
    pub(crate) async fn refresh(&self, token: String) -> Result<Session, RefreshError> {
        let used = AccessToken(token).hash();
        let now = self.now();
        let write = self.0.storage.write(move |tx| {
            async move {
                let known = tx.tokens().refresh(used).await?;
                let (user_id, device_id, generation) = known.ok_or(RefreshError::UnknownToken)?;
                let account = tx.accounts().by_id(&user_id).await?;
                if account.is_none_or(|account| account.standing.locked) {
                    return Err(RefreshError::Locked);
                }
                tx.tokens().settle(&user_id, &device_id, generation).await?;
                let device = NewDevice {
                    device_id: Some(device_id.clone()),
                    display_name: None,
                    refreshes: true,
                };
                let session = Session::new(user_id.clone(), &device);
                let tokens = session.tokens(now, Generation(generation.0 + 1));
                tokens.insert(tx, &user_id, &device_id).await?;
                Ok(session)
            }
            .boxed()
        });
        let session: Session = write.await?;
        self.forget_device(&session.requester);
        Ok(session)
    }

    /// Who an access token speaks for.
    pub(crate) async fn authenticate(&self, token: &str) -> Result<Bearer, StorageError> {
        let hash = AccessToken(token.to_owned()).hash();
        let expired = |at: Option<i64>| at.is_some_and(|at| at <= self.now());
        if let Some(known) = self.0.tokens.get(&hash) {
            if expired(known.expires_at) {
                return Ok(Bearer::Expired);
            }
            return Ok(Bearer::Known(known));
        }
        let before = self.0.forgotten.load(Ordering::SeqCst);
        let found = self.0.storage.read().await?.tokens().access(hash).await?;
        let Some(row) = found else {
            return Ok(Bearer::Unknown);
        };
        if expired(row.expires_at) {
            return Ok(Bearer::Expired);
        }
        if !row.settled {
            self.settle(&row).await?;
        }
        let known = Known {
            requester: Requester::new(row.user_id, row.device_id),
            standing: row.standing,
            expires_at: row.expires_at,
        };
        self.0.tokens.insert(hash, known.clone());
        // Something was forgotten while we looked: it may have been this.
        if row.settled && self.0.forgotten.load(Ordering::SeqCst) != before {
            self.0.tokens.remove(&hash);
        }
        Ok(Bearer::Known(known))
    }

    /// The first use of a new access token ends those that it took the place of.
    async fn settle(&self, row: &AccessRow) -> Result<(), StorageError> {
        let requester = Requester::new(row.user_id.clone(), row.device_id.clone());
        let (user_id, device_id) = (row.user_id.clone(), row.device_id.clone());
        let generation = row.generation;
        let write = self.0.storage.write(move |tx| {
            async move { tx.tokens().settle(&user_id, &device_id, generation).await }.boxed()
        });
        write.await?;
        self.forget_device(&requester);
        Ok(())
    }

    /// Forgets the tokens of a device in memory; called before they are deleted, and after.
    pub(crate) fn forget_device(&self, requester: &Requester) {
        self.0.forgotten.fetch_add(1, Ordering::SeqCst);
        self.0
            .tokens
            .retain(|_, known| !known.requester.is_same_device(requester));
        self.0
            .masks
            .retain(|mask, _| !mask.is_same_device(requester));
    }

    /// Forgets what is known of a user in memory; called when what they may do has changed.
    pub(crate) fn forget_user(&self, user_id: &UserId) {
        self.0.forgotten.fetch_add(1, Ordering::SeqCst);
        self.0
            .tokens
            .retain(|_, known| known.requester.user_id != user_id);
        self.0.masks.retain(|mask, _| mask.user_id != user_id);
    }

    /// Makes a token with which another service can ask who somebody is.
    pub(crate) async fn openid_token(&self, user_id: OwnedUserId) -> Result<String, StorageError> {
        self.short_token(user_id, Purpose::OpenId, OPENID_TOKEN)
            .await
    }

    /// Makes a token with which another device of the user can log in.
    pub(crate) async fn login_token(&self, user_id: OwnedUserId) -> Result<String, StorageError> {
        self.short_token(user_id, Purpose::Login, LOGIN_TOKEN).await
    }

    async fn short_token(
        &self,
        user_id: OwnedUserId,
        purpose: Purpose,
        lifetime: Duration,
    ) -> Result<String, StorageError> {
        let token = random_id();
        let hash = AccessToken(token.clone()).hash();
        let now = self.now();
        let until = now + milliseconds(lifetime);
        let write = self.0.storage.write(move |tx| {
            async move {
                tx.tokens()
                    .insert_short(hash, purpose, &user_id, (now, until))
                    .await
            }
            .boxed()
        });
        write.await?;
        Ok(token)
    }

    /// Whom an `OpenID` token speaks for.
    pub(crate) async fn openid_user(
        &self,
        token: String,
    ) -> Result<Option<OwnedUserId>, StorageError> {
        let hash = AccessToken(token).hash();
        let now = self.now();
        let mut reader = self.0.storage.read().await?;
        reader.tokens().short(hash, Purpose::OpenId, now).await
    }

    /// Whom a login token speaks for. It can be used once.
    pub(crate) async fn take_login_token(
        &self,
        token: String,
    ) -> Result<Option<OwnedUserId>, StorageError> {
        let hash = AccessToken(token).hash();
        let now = self.now();
        let write = self.0.storage.write(move |tx| {
            async move {
                let user_id = tx.tokens().short(hash, Purpose::Login, now).await?;
                tx.tokens().delete_short(hash).await?;
                Ok::<_, StorageError>(user_id)
            }
            .boxed()
        });
        write.await
    }

    fn now(&self) -> i64 {
        i64::from(self.0.clock.now().0)
    }
}

impl Known {
    /// Somebody for whom an application service speaks.
    pub(super) fn new(requester: Requester, standing: Standing) -> Self {
        Self {
            requester,
            standing,
            expires_at: None,
        }
    }

    pub(crate) fn is_guest(&self) -> bool {
        self.standing.kind == Kind::Guest
    }
}

/// Tokens on their way into the database.
pub(super) struct NewTokens {
    access: NewAccess,
    refresh: Option<TokenHash>,
}

impl NewTokens {
    pub(super) async fn insert(
        self,
        tx: &mut Tx,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<(), StorageError> {
        let generation = self.access.generation;
        tx.tokens()
            .insert_access(user_id, device_id, self.access)
            .await?;
        if let Some(token) = self.refresh {
            tx.tokens()
                .insert_refresh(user_id, device_id, token, generation)
                .await?;
        }
        Ok(())
    }
}

impl Session {
    pub(super) fn new(user_id: OwnedUserId, device: &NewDevice) -> Self {
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
        let refresh = || AccessToken(format!("sottor_{}", random_id()));
        Self {
            requester: Requester::new(user_id, device_id),
            token: AccessToken(format!("sotto_{}", random_id())),
            refresh: device.refreshes.then(refresh),
            expires_in: device.refreshes.then_some(REFRESHABLE),
        }
    }

    /// What of it is stored.
    pub(super) fn tokens(&self, now: i64, generation: Generation) -> NewTokens {
        NewTokens {
            access: NewAccess {
                token: self.token.hash(),
                expires_at: self.expires_in.map(|lifetime| now + milliseconds(lifetime)),
                generation,
            },
            refresh: self.refresh.as_ref().map(AccessToken::hash),
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
