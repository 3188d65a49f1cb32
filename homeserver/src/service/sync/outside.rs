//! Rooms that the user is invited to or knocks at
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#stripped-state)).

use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::sync::sync_events::v3::{InviteState, InvitedRoom, KnockState, KnockedRoom},
    events::{AnyStrippedStateEvent, StateEventType},
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sotto_federation::room::pdu::Pdu;

use super::{Look, Sync};
use crate::storage::{Families, StorageError};

/// The parts of the state that tell what a room is.
const STRIPPED: [StateEventType; 8] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
    StateEventType::RoomMember,
];

/// Who made the membership event, and the stripped state.
type Stripped = (Option<OwnedUserId>, Vec<Raw<AnyStrippedStateEvent>>);

impl Sync {
    pub(super) async fn invited(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
    ) -> Result<Option<InvitedRoom>, StorageError> {
        let user_id = &look.ask.requester.user_id;
        if self.timeline.visibility.blocks_invites(user_id).await? {
            return Ok(None);
        }
        let mut state = InviteState::new();
        let (from, events) = self.stripped_state(user_id, room_id).await?;
        // Nobody is invited by those whom they ignore.
        let ignored = self.timeline.visibility.ignored(user_id).await?;
        if from.is_some_and(|from| ignored.contains(&from)) {
            return Ok(None);
        }
        state.events = events;
        Ok(Some(InvitedRoom::from(state)))
    }

    pub(super) async fn knocked(
        &self,
        look: &Look<'_>,
        room_id: &RoomId,
    ) -> Result<KnockedRoom, StorageError> {
        let mut state = KnockState::new();
        let user_id = &look.ask.requester.user_id;
        state.events = self.stripped_state(user_id, room_id).await?.1;
        Ok(KnockedRoom::from(state))
    }

    /// What the user may know of the room: from its state if the server is in it, else from what came
    /// with the invite; and the user's own membership event, whose sender comes first.
    pub(super) async fn stripped_state(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Stripped, StorageError> {
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok((None, Vec::new()));
        };
        let outside = self
            .storage
            .read()
            .await?
            .memberships()
            .outside(room.nid, user_id)
            .await?;
        let Some((nid, stripped)) = outside else {
            return Ok((None, Vec::new()));
        };
        let own = self.events.by_nids(&[nid]).await?.remove(&nid);
        let from = own.as_ref().map(|own| own.pdu.sender().to_owned());
        let mut found: Vec<_> = own.iter().filter_map(|event| strip(&event.pdu)).collect();
        if let Some(stripped) = stripped {
            let rest = serde_json::from_str::<Vec<Raw<AnyStrippedStateEvent>>>(&stripped);
            found.extend(rest.unwrap_or_default());
            return Ok((from, found));
        }
        let Some(head) = room.head else {
            return Ok((from, found));
        };
        for event_type in STRIPPED {
            let inviter = own.as_ref().map_or("", |event| event.pdu.sender().as_str());
            let key = if event_type == StateEventType::RoomMember {
                inviter
            } else {
                ""
            };
            let event = self
                .events
                .state_event(head.state, &event_type, key)
                .await?;
            found.extend(event.and_then(|event| strip(&event.pdu)));
        }
        Ok((from, found))
    }
}

/// An event as somebody outside of the room may see it.
pub(crate) fn strip(pdu: &Pdu) -> Option<Raw<AnyStrippedStateEvent>> {
    // Not through `Value`: events of old room versions have numbers that it cannot hold.
    #[derive(Serialize)]
    struct Stripped<'a> {
        content: &'a RawValue,
        sender: &'a UserId,
        state_key: &'a str,
        #[serde(rename = "type")]
        event_type: String,
    }
    let stripped = Stripped {
        content: pdu.content(),
        sender: pdu.sender(),
        state_key: pdu.state_key()?,
        event_type: pdu.event_type().to_string(),
    };
    to_raw_value(&stripped).ok().map(Raw::from_json)
}
