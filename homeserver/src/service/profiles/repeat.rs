//! Repeating a profile in the rooms of its user.

use ruma::{
    RoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::{Map, Value, value::to_raw_value};
use sotto_federation::room::builder::BuildError;

use super::Profiles;
use crate::{
    service::timeline::{SendError, StatePart},
    storage::StorageError,
};

impl Profiles {
    /// Repeats the profile as it is now in all rooms of the user. What already is so is not said again,
    /// and a room that does not let the user speak is left as it is.
    pub(crate) async fn repeat(&self, user_id: &UserId) -> Result<(), StorageError> {
        let rooms = self.storage.log().roster().places(user_id);
        let joined = rooms
            .iter()
            .filter(|(_, place)| place.membership == MembershipState::Join);
        for (room_id, _) in joined {
            let mut repeated = self.repeat_in(user_id, room_id).await;
            while let Err(SendError::Overtaken) = repeated {
                repeated = self.repeat_in(user_id, room_id).await;
            }
            match repeated {
                Ok(()) => {}
                Err(SendError::Storage(error)) => return Err(error),
                Err(error) => {
                    tracing::info!(%room_id, %error, "a profile could not be repeated in a room");
                }
            }
        }
        Ok(())
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
        let profile = self.timeline.profile(user_id).await?;
        for name in ["displayname", "avatar_url"] {
            match profile.get(name) {
                Some(value) => content.insert(name.to_owned(), value.clone()),
                None => content.remove(name),
            };
        }
        let content =
            to_raw_value(&content).map_err(|_| SendError::Malformed(BuildError::NotCanonical))?;
        let part = StatePart {
            // Whoever leaves meanwhile must not come back by this.
            instead_of: Some(now.event_id().to_owned()),
            ..StatePart::now(member, user_id.as_str(), content)
        };
        self.timeline.set_state(user_id, room_id, part).await?;
        Ok(())
    }
}
