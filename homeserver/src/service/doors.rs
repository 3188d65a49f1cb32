//! Whether a room of ours lets somebody in who is not invited, or knock
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms)).

use std::sync::Arc;

use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    events::StateEventType,
    room_version_rules::RoomVersionRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};
use serde::Deserialize;
use sotto_federation::room::pdu::Pdu;

use super::events::Events;
use crate::storage::{Storage, StorageError, rooms::Room};

/// Knows who may come in.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    storage: Storage,
    events: Events,
}

/// Why somebody may not come in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    /// The rules of the room do not allow it.
    #[error("the room does not allow it")]
    Forbidden,
    /// Whether the user may join depends on rooms that are not known here.
    #[error("this server cannot tell whether the user may join")]
    UnableToAuthorize,
    /// The user may join, but nobody here can open the room.
    #[error("this server cannot let the user join")]
    UnableToGrant,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

#[derive(Default, Deserialize)]
struct JoinRules {
    join_rule: String,
    #[serde(default)]
    allow: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Allow {
    #[serde(rename = "type")]
    kind: String,
    room_id: OwnedRoomId,
}

impl Doors {
    pub(crate) fn new(storage: Storage, events: Events) -> Self {
        Self { storage, events }
    }

    /// Whether somebody who is not invited may join; by whom of ours, if it takes one.
    pub(crate) async fn may_join(
        &self,
        room: &Room,
        rules: &RoomVersionRules,
        user_id: &UserId,
    ) -> Result<Option<OwnedUserId>, DoorError> {
        let join_rules = self.join_rules(room).await?;
        let restricted = match join_rules.join_rule.as_str() {
            "public" => return Ok(None),
            "restricted" => rules.authorization.restricted_join_rule,
            "knock_restricted" => rules.authorization.knock_restricted_join_rule,
            _ => false,
        };
        if !restricted {
            return Err(DoorError::Forbidden);
        }
        let roster = self.storage.log().roster();
        let mut all_known = true;
        for allow in join_rules.allow {
            let Ok(Allow { kind, room_id }) = serde_json::from_value(allow) else {
                continue;
            };
            if kind != "m.room_membership" {
                continue;
            }
            if roster.local_members(&room_id).is_empty() {
                all_known = false;
            } else if roster.is_joined(user_id, &room_id) {
                return self.inviter(room, rules).await.map(Some);
            }
        }
        Err(if all_known {
            DoorError::Forbidden
        } else {
            DoorError::UnableToAuthorize
        })
    }

    /// Whether one may knock.
    pub(crate) async fn may_knock(
        &self,
        room: &Room,
        rules: &RoomVersionRules,
    ) -> Result<(), DoorError> {
        let allowed = match self.join_rules(room).await?.join_rule.as_str() {
            "knock" => rules.authorization.knocking,
            "knock_restricted" => rules.authorization.knock_restricted_join_rule,
            _ => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(DoorError::Forbidden)
        }
    }

    /// A member of ours who may invite.
    async fn inviter(
        &self,
        room: &Room,
        rules: &RoomVersionRules,
    ) -> Result<OwnedUserId, DoorError> {
        let rules = &rules.authorization;
        let create = self.state(room, StateEventType::RoomCreate).await?;
        let creators = create
            .as_ref()
            .and_then(|create| RoomCreateEvent::new(&**create).creators(rules).ok())
            .unwrap_or_default();
        let levels = self.state(room, StateEventType::RoomPowerLevels).await?;
        let may = |user_id: &UserId| {
            let creator = creators.contains(user_id);
            if creator && rules.explicitly_privilege_room_creators {
                return true;
            }
            // Without levels everybody may invite.
            levels.as_ref().is_none_or(|levels| {
                let levels = RoomPowerLevelsEvent::new(&**levels);
                let needed = levels.get_as_int_or_default(RoomPowerLevelsIntField::Invite, rules);
                let has = levels.user_power_level(user_id, rules);
                matches!((has, needed), (Ok(has), Ok(needed)) if has >= needed)
            })
        };
        let members = self.storage.log().roster().local_members(&room.room_id);
        let inviter = members.into_iter().find(|user_id| may(user_id));
        inviter.ok_or(DoorError::UnableToGrant)
    }

    async fn state(
        &self,
        room: &Room,
        event_type: StateEventType,
    ) -> Result<Option<Arc<Pdu>>, StorageError> {
        let Some(head) = &room.head else {
            return Ok(None);
        };
        let found = self.events.state_pdu(head.state, &event_type, "").await?;
        Ok(found.map(|(_, pdu)| pdu))
    }

    async fn join_rules(&self, room: &Room) -> Result<JoinRules, DoorError> {
        let event = self.state(room, StateEventType::RoomJoinRules).await?;
        let content = event.and_then(|event| event.content_as().ok());
        Ok(content.unwrap_or_default())
    }
}
