//! Pushers: where users want to be notified
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3pushersset)).

use futures_util::FutureExt;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value};

use super::accounts::Requester;
use crate::{
    clock::Clock,
    storage::{
        Families, Storage, StorageError,
        log::{Change, StreamPosition},
        pushers::{Progress, PusherId, StoredPusher},
    },
};

/// The longest push key, in bytes.
const MAX_PUSHKEY: usize = 512;
/// The longest id of an app.
const MAX_APP_ID: usize = 64;
/// The most that a client may say of a pusher, in bytes.
const MAX_DETAILS: usize = 16 * 1024;
/// The most pushers that a user may have.
const MAX_PUSHERS: usize = 100;
/// The path of every push gateway
/// ([spec](https://spec.matrix.org/v1.19/push-gateway-api/#post_matrixpushv1notify)).
const PATH: &str = "/_matrix/push/v1/notify";

/// Keeps pushers.
#[derive(Clone, Debug)]
pub(crate) struct Pushers {
    storage: Storage,
    clock: Clock,
}

/// A pusher as a client describes it.
#[derive(Clone, Debug)]
pub(crate) struct NewPusher {
    pub(crate) app_id: String,
    pub(crate) pushkey: String,
    /// What else it says, `data` among it.
    pub(crate) details: Map<String, Value>,
    pub(crate) enabled: bool,
    /// Whether other users may have the same pusher.
    pub(crate) append: bool,
}

/// Why a pusher was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PusherError {
    #[error("the push key is too long")]
    PushkeyTooLong,
    #[error("the id of the app is too long")]
    AppIdTooLong,
    #[error("too much is said of the pusher")]
    TooLarge,
    #[error("the user has too many pushers")]
    TooMany,
    #[error("the URL is not one of a push gateway")]
    Url,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Pushers {
    pub(crate) fn new(storage: Storage, clock: Clock) -> Self {
        Self { storage, clock }
    }

    /// The pushers of a user.
    pub(crate) async fn of_user(
        &self,
        user_id: &UserId,
    ) -> Result<Vec<StoredPusher>, StorageError> {
        self.storage.read().await?.pushers().of_user(user_id).await
    }

    /// Makes a pusher, or changes it.
    pub(crate) async fn set(
        &self,
        requester: Requester,
        pusher: NewPusher,
    ) -> Result<(), PusherError> {
        check(&pusher)?;
        let now = i64::from(self.clock.now().0);
        let write = self.storage.write(move |tx| {
            async move {
                let id = PusherId {
                    user_id: requester.user_id.clone(),
                    app_id: pusher.app_id,
                    pushkey: pusher.pushkey,
                };
                let known = tx.pushers().of_user(&id.user_id).await?;
                let before = known.iter().find(|known| known.id == id);
                if before.is_none() && known.len() >= MAX_PUSHERS {
                    return Err(PusherError::TooMany);
                }
                let position = tx.log(Change::Pushers {
                    user_id: id.user_id.clone(),
                });
                if !pusher.append {
                    tx.pushers().delete_of_others(&id).await?;
                }
                let stored = StoredPusher {
                    id,
                    device_id: requester.device_id,
                    details: pusher.details,
                    enabled: pusher.enabled,
                    set_at: now,
                    progress: progress(before, position),
                };
                tx.pushers().set(&stored).await?;
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Removes a pusher, if there is one.
    pub(crate) async fn remove(
        &self,
        user_id: OwnedUserId,
        app_id: String,
        pushkey: String,
    ) -> Result<(), StorageError> {
        let id = PusherId {
            user_id,
            app_id,
            pushkey,
        };
        let write = self.storage.write(move |tx| {
            async move {
                if tx.pushers().delete(&id).await? {
                    tx.log(Change::Pushers {
                        user_id: id.user_id,
                    });
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

/// Where a pusher begins: one that was on goes on where it was, and its gateway is tried at once.
fn progress(before: Option<&StoredPusher>, now: StreamPosition) -> Progress {
    match before.filter(|before| before.enabled) {
        Some(before) if before.progress.failures > 0 => Progress {
            failures: 1,
            ..before.progress
        },
        Some(before) => before.progress,
        None => Progress {
            position: now,
            badge: None,
            failures: 0,
            failing_since: None,
        },
    }
}

fn check(pusher: &NewPusher) -> Result<(), PusherError> {
    if pusher.pushkey.len() > MAX_PUSHKEY {
        return Err(PusherError::PushkeyTooLong);
    }
    if pusher.app_id.chars().count() > MAX_APP_ID {
        return Err(PusherError::AppIdTooLong);
    }
    let size = serde_json::to_string(&pusher.details).map_or(usize::MAX, |text| text.len());
    if size > MAX_DETAILS {
        return Err(PusherError::TooLarge);
    }
    let url = pusher.details.get("data").and_then(|data| data.get("url"));
    let url = url
        .and_then(Value::as_str)
        .and_then(|url| reqwest::Url::parse(url).ok());
    let url = url.ok_or(PusherError::Url)?;
    // What is said to a gateway on this machine crosses no network; otherwise it must be encrypted.
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let secure = url.scheme() == "https" || (url.scheme() == "http" && local);
    if secure && url.path() == PATH && url.username().is_empty() && url.password().is_none() {
        Ok(())
    } else {
        Err(PusherError::Url)
    }
}
