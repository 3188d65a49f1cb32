//! Profiles ([spec](https://spec.matrix.org/v1.19/client-server-api/#profiles)). The name and the avatar
//! are repeated in the user's membership events, by `worker/profile_repeater.rs`.

mod remote;
mod repeat;

use std::sync::Arc;

use futures_util::FutureExt;
use quick_cache::sync::Cache;
use ruma::{
    OwnedUserId, ServerName, UserId,
    profile::{ProfileFieldName, ProfileFieldValue, UserProfile},
};
use serde_json::Value;
use sotto_federation::client::ClientError;

use self::remote::Kept;
use super::{appservices::Appservices, federation::Federation, timeline::Timeline};
use crate::{
    clock::Clock,
    config::{self, ProfileLookup},
    storage::{Families, Storage, StorageError, log::Change},
};

/// The longest name of a field, in bytes
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#profiles)).
const MAX_KEY: usize = 255;
/// The largest profile, in bytes of JSON.
const MAX_PROFILE: usize = 65_536;
/// The longest name and the longest address of a picture, in bytes: they are repeated in every membership
/// event of the user.
const MAX_SHOWN: usize = 1_024;

/// Keeps the profiles of local users, and asks for those of others.
#[derive(Clone)]
pub(crate) struct Profiles {
    storage: Storage,
    timeline: Timeline,
    federation: Federation,
    clock: Clock,
    settings: config::Profiles,
    appservices: Appservices,
    kept: Arc<Cache<OwnedUserId, Kept>>,
}

/// What [`Profiles`] is made of.
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) timeline: Timeline,
    pub(crate) federation: Federation,
    pub(crate) clock: Clock,
    pub(crate) settings: config::Profiles,
    pub(crate) appservices: Appservices,
}

/// Why a profile did not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("the name of the field is too long")]
    KeyTooLarge,
    #[error("the name of the field is malformed")]
    BadKey,
    #[error("the profile would be too large")]
    ProfileTooLarge,
    #[error("the name or the address of the picture is too long")]
    TooLong,
    #[error("the value cannot be stored")]
    BadValue,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a profile is not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// There is no such user.
    #[error("there is no such profile")]
    Unknown,
    /// Whether there is such a user is not said.
    #[error("profiles are not shown to everybody")]
    Forbidden,
    /// The server of the user gave no answer.
    #[error(transparent)]
    Remote(#[from] ClientError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Profiles {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            storage,
            timeline,
            federation,
            clock,
            settings,
            appservices,
        } = parts;
        Self {
            storage,
            timeline,
            federation,
            clock,
            settings,
            appservices,
            kept: Arc::new(Cache::new(4_096)),
        }
    }

    /// The profile of a user, as far as the asker may see it; the server of a remote user is asked.
    pub(crate) async fn lookup(
        &self,
        asker: Option<&UserId>,
        user_id: &UserId,
    ) -> Result<UserProfile, LookupError> {
        let roster = self.storage.log().roster();
        let may = match (self.settings.lookup, asker) {
            (ProfileLookup::Anybody, _) | (ProfileLookup::Users, Some(_)) => true,
            (ProfileLookup::SharedRooms, Some(asker)) => {
                asker == user_id || roster.share_a_room(asker, user_id)
            }
            (ProfileLookup::Users | ProfileLookup::SharedRooms, None) => false,
        };
        if !may {
            return Err(LookupError::Forbidden);
        }
        if user_id.server_name() == self.timeline.server_name {
            self.own(user_id).await
        } else {
            self.remote(user_id).await
        }
    }

    /// The profile of a local user, as far as another server may see it.
    pub(crate) async fn lookup_for(
        &self,
        server: &ServerName,
        user_id: &UserId,
    ) -> Result<UserProfile, LookupError> {
        if user_id.server_name() != self.timeline.server_name {
            return Err(LookupError::Unknown);
        }
        let roster = self.storage.log().roster();
        let meets = || {
            let mut rooms = roster.rooms_shared_with(user_id).into_iter();
            rooms.any(|room_id| roster.has_server(server, &room_id))
        };
        if self.settings.lookup == ProfileLookup::SharedRooms && !meets() {
            return Err(LookupError::Forbidden);
        }
        self.own(user_id).await
    }

    async fn own(&self, user_id: &UserId) -> Result<UserProfile, LookupError> {
        let mut reader = self.storage.read().await?;
        if reader.accounts().by_id(user_id).await?.is_none() {
            drop(reader);
            let asked = self.appservices.ask_for_user(user_id).await;
            reader = self.storage.read().await?;
            if !asked || reader.accounts().by_id(user_id).await?.is_none() {
                return Err(LookupError::Unknown);
            }
        }
        let fields = reader.accounts().profile(user_id).await?;
        let parsed = fields.into_iter().filter_map(|(field, value)| {
            Some((field, serde_json::from_str::<Value>(&value).ok()?))
        });
        Ok(parsed.collect())
    }

    /// Sets a field.
    pub(crate) async fn set(
        &self,
        user_id: OwnedUserId,
        value: &ProfileFieldValue,
    ) -> Result<(), ProfileError> {
        let field = value.field_name();
        let json = serde_json::to_string(&*value.value()).map_err(|_| ProfileError::BadValue)?;
        if is_shown(&field) && json.len() > MAX_SHOWN {
            return Err(ProfileError::TooLong);
        }
        self.put(user_id, field, Some(json)).await
    }

    /// Removes a field.
    pub(crate) async fn remove(
        &self,
        user_id: OwnedUserId,
        field: ProfileFieldName,
    ) -> Result<(), ProfileError> {
        self.put(user_id, field, None).await
    }

    async fn put(
        &self,
        user_id: OwnedUserId,
        field: ProfileFieldName,
        value: Option<String>,
    ) -> Result<(), ProfileError> {
        check_key(field.as_str())?;
        let write = self.storage.write(move |tx| {
            async move {
                let name = field.as_str();
                if let Some(value) = &value {
                    let fields = tx.accounts().profile(&user_id).await?;
                    let others = fields.iter().filter(|(field, _)| field != name);
                    let size: usize = others.map(|(k, v)| k.len() + v.len() + 4).sum();
                    if size + name.len() + value.len() + 6 > MAX_PROFILE {
                        return Err(ProfileError::ProfileTooLarge);
                    }
                }
                tx.accounts()
                    .set_profile_field(&user_id, name, value.as_deref())
                    .await?;
                if is_shown(&field) {
                    let position = tx.log(Change::Profile {
                        user_id: user_id.clone(),
                    });
                    tx.profile_changes().set(&user_id, position).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

/// Whether membership events repeat a field.
fn is_shown(field: &ProfileFieldName) -> bool {
    matches!(
        field,
        ProfileFieldName::DisplayName | ProfileFieldName::AvatarUrl
    )
}

/// Names of fields are namespaced identifiers
/// ([spec](https://spec.matrix.org/v1.19/appendices/#common-namespaced-identifier-grammar)).
fn check_key(key: &str) -> Result<(), ProfileError> {
    if key.len() > MAX_KEY {
        return Err(ProfileError::KeyTooLarge);
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    if key.starts_with(|c: char| c.is_ascii_lowercase()) && key.chars().all(fits) {
        Ok(())
    } else {
        Err(ProfileError::BadKey)
    }
}
