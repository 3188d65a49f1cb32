//! The fields of an event, typed.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, Int, MilliSecondsSinceUnixEpoch,
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt, events::TimelineEventType,
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::PduError;
use crate::room::object::Object;

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
    /// The content of power levels with odd numbers, as the rules of authorization are to read it.
    pub(super) levels: Option<Box<RawValue>>,
    pub(super) prev_events: Vec<OwnedEventId>,
    pub(super) auth_events: Vec<OwnedEventId>,
    pub(super) depth: UInt,
    /// `redacts` beside the content, of redactions only.
    pub(super) redacts: Option<OwnedEventId>,
}

impl Fields {
    /// Takes the fields from an event whose format is to be checked.
    pub(super) fn from_object(event: &Object, event_id: &EventId) -> Result<Self, PduError> {
        let object = event.map();
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
        let content = match object.get("content") {
            Some(CanonicalJsonValue::Object(_)) => event.field("content"),
            _ => None,
        };
        let content = content.ok_or(PduError::Field("content"))?;
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
            levels: levels(&event_type, &content),
            content,
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
            levels: levels(&stored.event_type, stored.content),
            event_type: stored.event_type,
            state_key: stored.state_key,
            content: stored.content.to_owned(),
            prev_events: stored.prev_events.into_iter().map(|r| r.0).collect(),
            auth_events: stored.auth_events.into_iter().map(|r| r.0).collect(),
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
    prev_events: Vec<Reference>,
    auth_events: Vec<Reference>,
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
        .map(|reference| {
            let id = match reference {
                CanonicalJsonValue::Array(pair) => pair.first(),
                id => Some(id),
            };
            id.and_then(CanonicalJsonValue::as_str)
                .and_then(|id| id.try_into().ok())
                .ok_or(PduError::Field(field))
        })
        .collect()
}

/// The id of another event, by itself or, up to room version 2, in a pair with its hashes.
struct Reference(OwnedEventId);

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Id(OwnedEventId),
            Pair(OwnedEventId, IgnoredAny),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Id(id) | Form::Pair(id, _) => id,
        }))
    }
}

/// Power levels with the odd numbers that room versions up to 5 let pass, as the rules are to read
/// them: what follows the decimal point does not count
/// ([spec](https://spec.matrix.org/v1.19/rooms/v1/#mroompower_levels-events-accept-values-as-floats)).
/// `None` if there are none.
fn levels(event_type: &TimelineEventType, content: &RawValue) -> Option<Box<RawValue>> {
    if *event_type != TimelineEventType::RoomPowerLevels {
        return None;
    }
    let mut value = serde_json::from_str(content.get()).ok()?;
    truncate(&mut value).then(|| to_raw_value(&value).ok())?
}

/// Makes every number an integer that a power level can be. Whether there was another one.
fn truncate(value: &mut Value) -> bool {
    match value {
        Value::Number(number) if number.as_i64().and_then(Int::new).is_none() => {
            let float = number.as_f64().unwrap_or(0.0).trunc();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it saturates, as it should"
            )]
            let integer = (float as i64).clamp(Int::MIN.into(), Int::MAX.into());
            *value = integer.into();
            true
        }
        Value::Array(items) => items
            .iter_mut()
            .fold(false, |any, item| truncate(item) | any),
        Value::Object(map) => map
            .values_mut()
            .fold(false, |any, item| truncate(item) | any),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
