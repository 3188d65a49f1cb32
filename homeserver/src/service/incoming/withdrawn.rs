//! Invites and knocks that are taken back while this server is not in the room: all that it gets is the event
//! by which somebody in the room says so.

use std::collections::BTreeSet;

use ruma::{
    OwnedEventId, OwnedServerName, OwnedUserId, RoomId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use sotto_federation::room::{
    pdu::{Pdu, Unverified},
    version,
};

use super::Incoming;
use crate::{
    service::outside::let_out,
    storage::{Families, StorageError, memberships::OutsideEvent, rooms::Room},
};

impl Incoming {
    /// Lets users of ours go who are not invited any more, or do not get in.
    pub(super) async fn withdrawn(
        &self,
        room_id: &RoomId,
        pdus: &[&RawValue],
    ) -> Result<(), StorageError> {
        let storage = &self.0.storage;
        if !storage.log().roster().local_members(room_id).is_empty() {
            return Ok(());
        }
        let Some(room) = self.0.timeline.heads.room(room_id).await? else {
            return Ok(());
        };
        let Some(rules) = version::rules(&room.version) else {
            return Ok(());
        };
        let mut found = Vec::new();
        for pdu in pdus {
            let Ok(parsed) = Pdu::parse(pdu, &rules) else {
                continue;
            };
            if parsed.room_id() == room_id && self.takes_back(&room, &parsed).await? {
                found.push(parsed);
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        for (_, verified) in self.verify(found, &rules).await {
            let Ok(pdu) = verified else { continue };
            let Some(user_id) = pdu.membership_target() else {
                continue;
            };
            if let Some(place) = storage.log().roster().place(user_id, room_id) {
                let_out(storage, &room, user_id, place, Some(&pdu)).await?;
            }
        }
        Ok(())
    }

    /// Whether an event takes back what one of ours is to a room: it builds on the invite or knock that we
    /// know, and comes from a server of whom that told.
    async fn takes_back(&self, room: &Room, event: &Unverified) -> Result<bool, StorageError> {
        #[derive(Deserialize)]
        struct Content {
            membership: MembershipState,
        }
        let target = event.state_key().and_then(|key| UserId::parse(key).ok());
        let content = event.content_as::<Content>().ok();
        let (Some(target), Some(content)) = (target, content) else {
            return Ok(false);
        };
        let is = self.0.storage.log().roster().place(&target, &room.room_id);
        let is = is.map(|place| place.membership);
        let fits = *event.event_type() == TimelineEventType::RoomMember
            && matches!(
                content.membership,
                MembershipState::Leave | MembershipState::Ban
            )
            && matches!(is, Some(MembershipState::Invite | MembershipState::Knock));
        if !fits {
            return Ok(false);
        }
        let mut reader = self.0.storage.read().await?;
        let known = reader
            .memberships()
            .outside_event(room.nid, &target)
            .await?;
        Ok(known.is_some_and(|known| {
            is_about(event.auth_events(), &known)
                && servers(&known).contains(event.sender().server_name())
        }))
    }
}

fn is_about(auth_events: &[OwnedEventId], known: &OutsideEvent) -> bool {
    auth_events.contains(&known.event_id)
}

/// The servers of all who sent what was told of the room.
fn servers(known: &OutsideEvent) -> BTreeSet<OwnedServerName> {
    #[derive(Deserialize)]
    struct Stripped {
        sender: OwnedUserId,
    }
    let events: Vec<Stripped> = serde_json::from_str(&known.stripped_state).unwrap_or_default();
    let servers = events.iter().map(|event| event.sender.server_name());
    servers.map(ToOwned::to_owned).collect()
}
