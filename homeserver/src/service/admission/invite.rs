//! Invites of our users to rooms of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room)).

use ruma::{
    EventId, OwnedRoomId, RoomId, RoomVersionId, ServerName, UserId,
    events::room::member::MembershipState,
};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use sotto_federation::room::{
    builder::{Expected, countersign},
    pdu::Pdu,
    version,
};

use super::{Admission, AdmissionError};
use crate::{
    service::sync::outside::strip,
    storage::{
        Families, StorageError,
        log::Change,
        rooms::RoomNid,
        roster::{Membership, Place},
    },
};

/// The most stripped events that are kept of an invite, and the most bytes of all of them.
const MOST_STRIPPED: usize = 64;
const MOST_BYTES: usize = 256 * 1024;

/// An invite as it came in.
pub(crate) struct Invite<'a> {
    pub(crate) origin: &'a ServerName,
    pub(crate) room_id: &'a RoomId,
    pub(crate) event_id: &'a EventId,
    pub(crate) version: &'a RoomVersionId,
    pub(crate) event: &'a RawValue,
    /// What the other server tells of the room, full or stripped events.
    pub(crate) room_state: Vec<Box<RawValue>>,
}

impl Admission {
    /// Checks and signs an invite, and lets the user know.
    pub(crate) async fn invite(&self, invite: Invite<'_>) -> Result<Box<RawValue>, AdmissionError> {
        let rules = version::rules(invite.version)
            .ok_or_else(|| AdmissionError::IncompatibleVersion(invite.version.clone()))?;
        let parsed = Pdu::parse(invite.event, &rules)?;
        let expected = Expected::Invite {
            event_id: invite.event_id,
            room_id: invite.room_id,
            origin: invite.origin,
        };
        let us = &self.0.timeline.server_name;
        let countersigned = countersign(parsed, expected, &rules, us, &self.0.key)?;
        let pdu = self.verified(countersigned, &rules).await?;
        let user_id = pdu.membership_target().ok_or(AdmissionError::OtherEvent)?;
        let mut reader = self.0.storage.read().await?;
        let known = reader.accounts().by_id(user_id).await?;
        drop(reader);
        if known.is_none() {
            return Err(AdmissionError::UnknownUser);
        }
        if let Some(room) = self.0.timeline.heads.room(invite.room_id).await?
            && room.version != *invite.version
        {
            return Err(AdmissionError::IncompatibleVersion(room.version));
        }
        let resident = !self
            .0
            .storage
            .log()
            .roster()
            .local_members(invite.room_id)
            .is_empty();
        // In a room of ours the invite comes as any other event does.
        if !resident {
            let stripped = stripped(&pdu, &invite.room_state);
            self.tell(user_id, &invite, stripped).await?;
        }
        Ok(pdu.json().to_owned())
    }

    /// The user is invited, as far as sync is concerned.
    async fn tell(
        &self,
        user_id: &UserId,
        invite: &Invite<'_>,
        stripped: String,
    ) -> Result<(), StorageError> {
        let (user_id, version) = (user_id.to_owned(), invite.version.clone());
        let room_id: OwnedRoomId = invite.room_id.to_owned();
        let counters = self.0.storage.counters();
        let (fresh, event_nid) = (RoomNid(counters.next_nid().0), counters.next_nid());
        let joined = self.0.storage.log().roster().place(&user_id, &room_id);
        let write = self.0.storage.write(move |tx| {
            Box::pin(async move {
                tx.rooms().insert_outside(fresh, &room_id, &version).await?;
                let room = tx.rooms().by_id(&room_id).await?;
                let nid = room.map_or(fresh, |room| room.nid);
                let position = tx.next_position();
                let row = Membership {
                    room_id,
                    user_id,
                    place: Place {
                        joined_until: joined.and_then(|place| place.joined_until),
                        ..Place::new(MembershipState::Invite, position)
                    },
                };
                tx.memberships()
                    .set_outside(nid, &row, event_nid, Some(&stripped))
                    .await?;
                tx.log_at(position, Change::OutsideMembership(row));
                Ok::<_, StorageError>(())
            })
        });
        write.await?;
        // Memory may still say that there is no such room.
        self.0.timeline.heads.hold(invite.room_id).await?.forget();
        Ok(())
    }
}

/// What the user sees of the room, and the invite itself.
fn stripped(pdu: &Pdu, room_state: &[Box<RawValue>]) -> String {
    let mut events: Vec<Box<RawValue>> = Vec::new();
    events.extend(strip(pdu).map(ruma::serde::Raw::into_json));
    let mut bytes = 0;
    for event in room_state.iter().take(MOST_STRIPPED) {
        if let Some(event) = strip_json(event, pdu.room_id()) {
            bytes += event.get().len();
            if bytes > MOST_BYTES {
                break;
            }
            events.push(event);
        }
    }
    serde_json::to_string(&events).unwrap_or_default()
}

/// The four members of a stripped event, if they are what they must be and the event does not say that it
/// belongs to another room.
fn strip_json(event: &RawValue, room_id: &RoomId) -> Option<Box<RawValue>> {
    let mut event: serde_json::Map<String, Value> = serde_json::from_str(event.get()).ok()?;
    if let Some(other) = event.get("room_id")
        && other.as_str() != Some(room_id.as_str())
    {
        return None;
    }
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    UserId::parse(text("sender")?).ok()?;
    let (_, _) = (text("type")?, text("state_key")?);
    if !event.get("content")?.is_object() || text("type") == Some("m.room.member") && same(&event) {
        return None;
    }
    event.retain(|name, _| matches!(name.as_str(), "content" | "sender" | "state_key" | "type"));
    to_raw_value(&event).ok()
}

/// The invite itself is in the list once already.
fn same(event: &serde_json::Map<String, Value>) -> bool {
    event
        .get("content")
        .and_then(|content| content.get("membership"))
        .and_then(Value::as_str)
        == Some("invite")
}
