//! Profiles ([spec](https://spec.matrix.org/v1.19/client-server-api/#profiles)). The name and the avatar
//! are repeated in the user's membership events; a task writes those after the change was answered.

use futures_util::FutureExt;
use ruma::{
    OwnedUserId, RoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
    profile::{ProfileFieldName, ProfileFieldValue, UserProfile},
};
use serde_json::{Map, Value, value::to_raw_value};
use sotto_federation::room::builder::BuildError;
use tokio_util::task::TaskTracker;

use super::timeline::{SendError, Timeline};
use crate::storage::{Families, Storage, StorageError};

/// The longest name of a field, in bytes
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#profiles)).
const MAX_KEY: usize = 255;
/// The largest profile, in bytes of JSON.
const MAX_PROFILE: usize = 65_536;

/// Keeps the profiles of local users.
#[derive(Clone)]
pub(crate) struct Profiles {
    storage: Storage,
    timeline: Timeline,
    tasks: TaskTracker,
}

/// Why a profile did not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("the name of the field is too long")]
    KeyTooLarge,
    #[error("the profile would be too large")]
    ProfileTooLarge,
    #[error("the value cannot be stored")]
    BadValue,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Profiles {
    pub(crate) fn new(storage: Storage, timeline: Timeline, tasks: TaskTracker) -> Self {
        Self {
            storage,
            timeline,
            tasks,
        }
    }

    /// The profile of a user; `None` if there is no such user.
    pub(crate) async fn of_user(
        &self,
        user_id: &UserId,
    ) -> Result<Option<UserProfile>, StorageError> {
        if user_id.server_name() != self.timeline.server_name {
            return Ok(None);
        }
        let mut reader = self.storage.read().await?;
        if reader.accounts().by_id(user_id).await?.is_none() {
            return Ok(None);
        }
        let fields = reader.accounts().profile(user_id).await?;
        let parsed = fields.into_iter().filter_map(|(field, value)| {
            Some((field, serde_json::from_str::<Value>(&value).ok()?))
        });
        Ok(Some(parsed.collect()))
    }

    /// Sets a field.
    pub(crate) async fn set(
        &self,
        user_id: OwnedUserId,
        value: &ProfileFieldValue,
    ) -> Result<(), ProfileError> {
        let field = value.field_name();
        if field.as_str().len() > MAX_KEY {
            return Err(ProfileError::KeyTooLarge);
        }
        let json = serde_json::to_string(&*value.value()).map_err(|_| ProfileError::BadValue)?;
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
        let shown = matches!(
            field,
            ProfileFieldName::DisplayName | ProfileFieldName::AvatarUrl
        );
        let owner = user_id.clone();
        let write = self.storage.write(move |tx| {
            async move {
                let name = field.as_str();
                if let Some(value) = &value {
                    let fields = tx.accounts().profile(&owner).await?;
                    let others = fields.iter().filter(|(field, _)| field != name);
                    let size: usize = others.map(|(k, v)| k.len() + v.len() + 4).sum();
                    if size + name.len() + value.len() + 6 > MAX_PROFILE {
                        return Err(ProfileError::ProfileTooLarge);
                    }
                }
                tx.accounts()
                    .set_profile_field(&owner, name, value.as_deref())
                    .await?;
                Ok(())
            }
            .boxed()
        });
        write.await?;
        if shown {
            let this = self.clone();
            self.tasks.spawn(async move { this.repeat(&user_id).await });
        }
        Ok(())
    }

    /// Repeats the profile as it is now in all rooms of the user. Of several that run at once the last
    /// one wins, and what already is so is not said again.
    async fn repeat(&self, user_id: &UserId) {
        let rooms = self.storage.log().roster().places(user_id);
        let joined = rooms
            .iter()
            .filter(|(_, place)| place.membership == MembershipState::Join);
        for (room_id, _) in joined {
            if let Err(error) = self.repeat_in(user_id, room_id).await {
                tracing::info!(%room_id, %error, "a profile could not be repeated in a room");
            }
        }
    }

    async fn repeat_in(&self, user_id: &UserId, room_id: &RoomId) -> Result<(), SendError> {
        let member = StateEventType::RoomMember;
        let room = self.timeline.heads.room(room_id).await?;
        let Some(head) = room.and_then(|room| room.head) else {
            return Ok(());
        };
        let events = &self.timeline.events;
        let found = events
            .state_pdu(head.state, &member, user_id.as_str())
            .await?;
        let Some((_, now)) = found else {
            return Ok(());
        };
        let Ok(mut content) = now.content_as::<Map<String, Value>>() else {
            return Ok(());
        };
        if content.get("membership").and_then(Value::as_str) != Some("join") {
            return Ok(());
        }
        // What explained the first join does not explain this one.
        content.remove("reason");
        content.remove("join_authorised_via_users_server");
        let fields = self
            .storage
            .read()
            .await?
            .accounts()
            .profile(user_id)
            .await?;
        for name in ["displayname", "avatar_url"] {
            let value = fields.iter().find(|(field, _)| field == name);
            match value.and_then(|(_, value)| serde_json::from_str(value).ok()) {
                Some(value) => content.insert(name.to_owned(), value),
                None => content.remove(name),
            };
        }
        let content =
            to_raw_value(&content).map_err(|_| SendError::Malformed(BuildError::NotCanonical))?;
        self.timeline
            .set_state(user_id, room_id, member, user_id.to_string(), content)
            .await?;
        Ok(())
    }
}
