//! What users are to rooms that this server is not in: invited, or knocking.

use futures_util::FutureExt;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, RoomId, RoomVersionId, UserId,
    events::room::member::MembershipState,
};
use serde::Serialize;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use sotto_federation::room::pdu::Pdu;

use super::{heads::Heads, sync::outside::strip};
use crate::storage::{
    Families, Storage, StorageError,
    log::Change,
    memberships::OutsideEvent,
    rooms::{Room, RoomNid},
    roster::{Membership, Place},
};

/// The most stripped events that are kept of a room, and the most bytes of all of them.
const MOST_STRIPPED: usize = 64;
const MOST_BYTES: usize = 256 * 1024;

/// What a user becomes to a room.
#[derive(Debug)]
pub(crate) struct Outside<'a> {
    pub(crate) user_id: &'a UserId,
    pub(crate) room_id: &'a RoomId,
    pub(crate) version: &'a RoomVersionId,
    pub(crate) membership: MembershipState,
    /// The event that says so.
    pub(crate) event_id: &'a EventId,
    /// What [`stripped`] made.
    pub(crate) stripped: String,
}

impl Outside<'_> {
    /// Keeps it, and lets the user's clients know.
    pub(crate) async fn keep(self, storage: &Storage, heads: &Heads) -> Result<(), StorageError> {
        let Self {
            membership,
            stripped,
            ..
        } = self;
        let told = OutsideEvent {
            event_id: self.event_id.to_owned(),
            stripped_state: stripped,
        };
        let (user_id, version) = (self.user_id.to_owned(), self.version.clone());
        let room_id = self.room_id.to_owned();
        let counters = storage.counters();
        let (fresh, event_nid) = (RoomNid(counters.next_nid().0), counters.next_nid());
        let before = storage.log().roster().place(&user_id, &room_id);
        let write = storage.write(move |tx| {
            async move {
                tx.rooms().insert_outside(fresh, &room_id, &version).await?;
                let room = tx.rooms().by_id(&room_id).await?;
                let nid = room.map_or(fresh, |room| room.nid);
                let position = tx.next_position();
                let row = Membership {
                    room_id,
                    user_id,
                    place: Place {
                        joined_until: before.and_then(|place| place.joined_until),
                        ..Place::new(membership, position)
                    },
                };
                tx.memberships()
                    .set_outside(nid, &row, event_nid, Some(&told))
                    .await?;
                tx.log_at(position, Change::OutsideMembership(row));
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await?;
        // Memory may still say that there is no such room.
        heads.hold(self.room_id).await?.forget();
        Ok(())
    }
}

/// What a user was to a room that this server is not in ends here, and the user's clients hear of it. `by` is
/// the event that says so.
pub(crate) async fn let_out(
    storage: &Storage,
    room: &Room,
    user_id: &UserId,
    place: Place,
    by: Option<&Pdu>,
) -> Result<(), StorageError> {
    let nid = room.nid;
    let told = by.map(|by| OutsideEvent {
        event_id: by.event_id().to_owned(),
        stripped_state: told(by),
    });
    let (room_id, user_id) = (room.room_id.clone(), user_id.to_owned());
    let write = storage.write(move |tx| {
        async move {
            let outside = tx.memberships().outside(nid, &user_id).await?;
            let Some((event, _)) = outside else {
                return Ok(());
            };
            let position = tx.next_position();
            let row = Membership {
                room_id,
                user_id,
                place: Place {
                    joined_until: place.joined_until,
                    ..Place::new(MembershipState::Leave, position)
                },
            };
            tx.memberships()
                .set_outside(nid, &row, event, told.as_ref())
                .await?;
            tx.log_at(position, Change::OutsideMembership(row));
            Ok::<_, StorageError>(())
        }
        .boxed()
    });
    write.await
}

/// An event as clients get it, in a list: what is told of rooms from outside is one.
fn told(pdu: &Pdu) -> String {
    // Not through `Value`: events of old room versions have numbers that it cannot hold.
    #[derive(Serialize)]
    struct Told<'a> {
        content: &'a RawValue,
        event_id: &'a EventId,
        origin_server_ts: MilliSecondsSinceUnixEpoch,
        sender: &'a UserId,
        state_key: Option<&'a str>,
        #[serde(rename = "type")]
        event_type: String,
    }
    let told = Told {
        content: pdu.content(),
        event_id: pdu.event_id(),
        origin_server_ts: pdu.origin_server_ts(),
        sender: pdu.sender(),
        state_key: pdu.state_key(),
        event_type: pdu.event_type().to_string(),
    };
    serde_json::to_string(&[told]).unwrap_or_default()
}

/// What the user sees of the room: the membership event, and what another server told, full or stripped
/// events ([spec](https://spec.matrix.org/v1.19/client-server-api/#stripped-state)).
pub(crate) fn stripped(pdu: &Pdu, room_state: &[Box<RawValue>]) -> String {
    let mut events: Vec<Box<RawValue>> = Vec::new();
    events.extend(strip(pdu).map(ruma::serde::Raw::into_json));
    let mut bytes = 0;
    for event in room_state.iter().take(MOST_STRIPPED) {
        if let Some(event) = strip_json(event, pdu) {
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
/// belongs to another room. The membership event itself is in the list already.
fn strip_json(event: &RawValue, own: &Pdu) -> Option<Box<RawValue>> {
    let mut event: Map<String, Value> = serde_json::from_str(event.get()).ok()?;
    if let Some(other) = event.get("room_id")
        && other.as_str() != Some(own.room_id().as_str())
    {
        return None;
    }
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    UserId::parse(text("sender")?).ok()?;
    let (kind, state_key) = (text("type")?, text("state_key")?);
    if !event.get("content")?.is_object()
        || kind == "m.room.member" && Some(state_key) == own.state_key()
    {
        return None;
    }
    event.retain(|name, _| matches!(name.as_str(), "content" | "sender" | "state_key" | "type"));
    to_raw_value(&event).ok()
}
