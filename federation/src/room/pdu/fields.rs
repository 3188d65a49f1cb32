//! The fields of an event, typed.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedRoomId, OwnedUserId, RoomId, UInt, events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::PduError;

#[derive(Clone)]
pub(super) struct Fields {
    pub(super) room_id: OwnedRoomId,
    /// Whether the event itself says in which room it is.
    pub(super) names_room: bool,
    pub(super) sender: OwnedUserId,
    pub(super) origin_server_ts: MilliSecondsSinceUnixEpoch,
    pub(super) event_type: TimelineEventType,
    pub(super) state_key: Option<String>,
    pub(super) content: Box<RawValue>,
    pub(super) prev_events: Vec<OwnedEventId>,
    pub(super) auth_events: Vec<OwnedEventId>,
    pub(super) depth: UInt,
    /// `redacts` beside the content, of redactions only.
    pub(super) redacts: Option<OwnedEventId>,
}

impl Fields {
    /// Takes the fields from an event whose format is to be checked.
    pub(super) fn from_object(
        object: &CanonicalJsonObject,
        event_id: &EventId,
    ) -> Result<Self, PduError> {
        let event_type = TimelineEventType::from(string(object, "type")?);
        let names_room = object.contains_key("room_id");
        let room_id = if names_room {
            parse(object, "room_id")?
        } else {
            created_room_id(&event_type, event_id)?
        };
        let redacts = (event_type == TimelineEventType::RoomRedaction)
            .then(|| parse(object, "redacts").ok())
            .flatten();
        Ok(Self {
            room_id,
            names_room,
            sender: parse(object, "sender")?,
            origin_server_ts: MilliSecondsSinceUnixEpoch(uint(object, "origin_server_ts")?),
            state_key: match object.get("state_key") {
                None => None,
                Some(CanonicalJsonValue::String(key)) => Some(key.clone()),
                Some(_) => return Err(PduError::Field("state_key")),
            },
            content: match object.get("content") {
                Some(content @ CanonicalJsonValue::Object(_)) => {
                    serde_json::value::to_raw_value(content).map_err(|_| PduError::NotCanonical)?
                }
                _ => return Err(PduError::Field("content")),
            },
            prev_events: event_ids(object, "prev_events")?,
            auth_events: event_ids(object, "auth_events")?,
            depth: uint(object, "depth")?,
            event_type,
            redacts,
        })
    }

    /// Takes the fields from an event that was written by us.
    pub(super) fn from_json(json: &RawValue, event_id: &EventId) -> Result<Self, PduError> {
        let stored: Stored<'_> = serde_json::from_str(json.get()).map_err(|_| PduError::Format)?;
        let names_room = stored.room_id.is_some();
        let room_id = match stored.room_id {
            Some(room_id) => room_id,
            None => created_room_id(&stored.event_type, event_id)?,
        };
        let redacts = (stored.event_type == TimelineEventType::RoomRedaction)
            .then(|| {
                stored
                    .redacts
                    .and_then(|raw| serde_json::from_str(raw.get()).ok())
            })
            .flatten();
        Ok(Self {
            room_id,
            names_room,
            sender: stored.sender,
            origin_server_ts: stored.origin_server_ts,
            event_type: stored.event_type,
            state_key: stored.state_key,
            content: stored.content.to_owned(),
            prev_events: stored.prev_events,
            auth_events: stored.auth_events,
            depth: stored.depth,
            redacts,
        })
    }
}

#[derive(Deserialize)]
struct Stored<'a> {
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(rename = "type")]
    event_type: TimelineEventType,
    state_key: Option<String>,
    #[serde(borrow)]
    content: &'a RawValue,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: UInt,
    /// Raw, because any type may have a field of this name with any value.
    #[serde(borrow)]
    redacts: Option<&'a RawValue>,
}

/// The room that a create event makes when it does not name one
/// ([spec](https://spec.matrix.org/v1.19/rooms/v12/#room-ids-as-hashes-of-the-create-event)).
fn created_room_id(
    event_type: &TimelineEventType,
    event_id: &EventId,
) -> Result<OwnedRoomId, PduError> {
    if *event_type != TimelineEventType::RoomCreate {
        return Err(PduError::Field("room_id"));
    }
    RoomId::new_v2(event_id.localpart()).map_err(|_| PduError::Field("room_id"))
}

fn string<'a>(object: &'a CanonicalJsonObject, field: &'static str) -> Result<&'a str, PduError> {
    object
        .get(field)
        .and_then(CanonicalJsonValue::as_str)
        .ok_or(PduError::Field(field))
}

fn parse<T: for<'a> TryFrom<&'a str>>(
    object: &CanonicalJsonObject,
    field: &'static str,
) -> Result<T, PduError> {
    T::try_from(string(object, field)?).map_err(|_| PduError::Field(field))
}

fn uint(object: &CanonicalJsonObject, field: &'static str) -> Result<UInt, PduError> {
    object
        .get(field)
        .and_then(CanonicalJsonValue::as_integer)
        .and_then(|integer| UInt::try_from(i64::from(integer)).ok())
        .ok_or(PduError::Field(field))
}

fn event_ids(
    object: &CanonicalJsonObject,
    field: &'static str,
) -> Result<Vec<OwnedEventId>, PduError> {
    object
        .get(field)
        .and_then(CanonicalJsonValue::as_array)
        .ok_or(PduError::Field(field))?
        .iter()
        .map(|id| {
            id.as_str()
                .and_then(|id| id.try_into().ok())
                .ok_or(PduError::Field(field))
        })
        .collect()
}
