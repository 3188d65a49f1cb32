//! Where an event happened, in words for people.

use ruma::{UserId, events::StateEventType};
use serde_json::Value;

use super::{PushSender, notice::Surroundings};
use crate::storage::{StorageError, state_map::NodeId};

impl PushSender {
    /// What a room and somebody in it are called, as a state has it.
    pub(super) async fn surroundings(
        &self,
        state: NodeId,
        sender: &UserId,
    ) -> Result<Surroundings, StorageError> {
        let text = async |event_type: StateEventType, state_key: &str, key: &str| {
            let events = &self.0.parts.events;
            let event = events.state_event(state, &event_type, state_key).await?;
            let content = event.and_then(|event| event.pdu.content_as::<Value>().ok());
            Ok::<_, StorageError>(content.and_then(|content| filled(content.get(key)?)))
        };
        Ok(Surroundings::new(
            text(StateEventType::RoomName, "", "name").await?,
            text(StateEventType::RoomCanonicalAlias, "", "alias").await?,
            text(StateEventType::RoomMember, sender.as_str(), "displayname").await?,
        ))
    }
}

impl Surroundings {
    fn new(name: Option<String>, alias: Option<String>, sender: Option<String>) -> Self {
        Self {
            room_name: name.or_else(|| alias.clone()),
            room_alias: alias,
            sender_display_name: sender,
        }
    }

    /// As [`PushSender::surroundings`], from what came with an invite.
    pub(super) fn of_stripped(stripped: &[Value], sender: &UserId) -> Self {
        let text = |event_type: &str, state_key: &str, key: &str| {
            let wanted =
                |event: &&Value| event["type"] == event_type && event["state_key"] == state_key;
            filled(&stripped.iter().find(wanted)?["content"][key])
        };
        Self::new(
            text("m.room.name", "", "name"),
            text("m.room.canonical_alias", "", "alias"),
            text("m.room.member", sender.as_str(), "displayname"),
        )
    }
}

/// A text that is not empty.
fn filled(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}
