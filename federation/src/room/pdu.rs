//! Events as servers exchange them.

use ruma::{
    CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UserId,
    events::TimelineEventType,
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
    serde::{
        Base64,
        base64::{Standard, UrlSafe},
    },
    state_res::{Event, check_pdu_format},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use self::fields::Fields;
use super::object::Object;

mod fields;

/// The largest event, in bytes of canonical JSON with its signatures
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#size-limits)).
pub const MAX_BYTES: usize = 65_536;

/// An event in the format of the federation
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#pdus)). Immutable.
///
/// A `Pdu` that somebody owns was either verified or read from our own database.
#[derive(Clone)]
pub struct Pdu {
    event_id: OwnedEventId,
    fields: Fields,
    rejected: bool,
    json: Box<RawValue>,
    unsigned: Option<Box<RawValue>>,
}

impl Pdu {
    /// Reads an event that somebody sent us.
    ///
    /// Checks that it is canonical JSON, if its room version asks for that, and in the format of its
    /// room version, and finds out its id
    /// (step 1 of
    /// [the checks](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu)).
    pub fn parse(json: &RawValue, rules: &RoomVersionRules) -> Result<Unverified, PduError> {
        let mut object = Object::parse(json, rules.authorization.strict_canonical_json)?;
        let unsigned = object.take("unsigned");

        // The size is judged below, with the signatures and to the byte.
        let mut map = object.map().clone();
        map.remove("signatures");
        check_pdu_format(&map, &rules.event_format).map_err(|_| PduError::Format)?;
        for field in ["auth_events", "prev_events"] {
            check_references(map.get(field), rules)
                .then_some(())
                .ok_or(PduError::Field(field))?;
        }

        let mut pdu = Self::from_object(&object, event_id(&object, rules)?)?;
        pdu.unsigned = unsigned;
        Ok(Unverified { pdu, object })
    }

    /// Reads an event from our own database, where only verified ones are.
    ///
    /// Nothing is hashed or checked again.
    pub fn from_storage(
        event_id: OwnedEventId,
        json: Box<RawValue>,
        rejected: bool,
    ) -> Result<Self, PduError> {
        let fields = Fields::from_json(&json, &event_id)?;
        Ok(Self {
            event_id,
            fields,
            rejected,
            json,
            unsigned: None,
        })
    }

    /// The event of this object, which must not have `unsigned`.
    pub(super) fn from_object(object: &Object, event_id: OwnedEventId) -> Result<Self, PduError> {
        let json = object.to_json()?;
        if json.get().len() > MAX_BYTES {
            return Err(PduError::TooLarge);
        }
        let fields = Fields::from_object(object, &event_id)?;
        Ok(Self {
            event_id,
            fields,
            rejected: false,
            json,
            unsigned: None,
        })
    }

    pub(super) fn into_rejected(self) -> Self {
        Self {
            rejected: true,
            ..self
        }
    }

    /// The id: the reference hash of the event, but what its server chose in room versions 1 and 2.
    #[must_use]
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The room. For an `m.room.create` event that names none, it follows from the event's id
    /// ([spec](https://spec.matrix.org/v1.19/rooms/v12/#event-format)).
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        &self.fields.room_id
    }

    /// Who sent it.
    #[must_use]
    pub fn sender(&self) -> &UserId {
        &self.fields.sender
    }

    /// When it was sent, as the sending server says.
    #[must_use]
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.fields.origin_server_ts
    }

    /// The type.
    #[must_use]
    pub fn event_type(&self) -> &TimelineEventType {
        &self.fields.event_type
    }

    /// The state key, which state events have.
    #[must_use]
    pub fn state_key(&self) -> Option<&str> {
        self.fields.state_key.as_deref()
    }

    /// Whether it is a state event.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.fields.state_key.is_some()
    }

    /// The user whose membership an `m.room.member` event is about.
    #[must_use]
    pub fn membership_target(&self) -> Option<&UserId> {
        (self.fields.event_type == TimelineEventType::RoomMember)
            .then(|| {
                self.state_key()
                    .and_then(|key| <&UserId>::try_from(key).ok())
            })
            .flatten()
    }

    /// The content.
    #[must_use]
    pub fn content(&self) -> &RawValue {
        &self.fields.content
    }

    /// The content as a type of the caller's.
    pub fn content_as<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.fields.content.get())
    }

    /// The events before it in the graph.
    #[must_use]
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.fields.prev_events
    }

    /// The events that allow it, as its server says.
    #[must_use]
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.fields.auth_events
    }

    /// One more than the depth of the deepest event before it, as its server says.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.fields.depth.into()
    }

    /// What an `m.room.redaction` event redacts: `redacts` beside the content, or in it since room
    /// version 11 ([spec](https://spec.matrix.org/v1.19/rooms/v11/#moving-the-redacts-property)).
    ///
    /// An event may have both, hence the rules.
    #[must_use]
    pub fn redacts(&self, rules: &RoomVersionRules) -> Option<OwnedEventId> {
        #[derive(Deserialize)]
        struct Content {
            redacts: OwnedEventId,
        }

        if self.fields.event_type != TimelineEventType::RoomRedaction {
            return None;
        }
        if rules.redaction.content_field_redacts {
            return self
                .content_as::<Content>()
                .ok()
                .map(|content| content.redacts);
        }
        self.fields.redacts.clone()
    }

    /// Whether it was rejected
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#rejection)).
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// The canonical JSON that is sent to other servers, without `unsigned`.
    #[must_use]
    pub fn json(&self) -> &RawValue {
        &self.json
    }

    /// The `unsigned` that came with the event. Nobody signed it, it is not stored in
    /// [`Pdu::json`] and must not be believed.
    #[must_use]
    pub fn unsigned(&self) -> Option<&RawValue> {
        self.unsigned.as_deref()
    }
}

/// Shows what identifies the event, never what it says.
impl std::fmt::Debug for Pdu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pdu")
            .field("event_id", &self.event_id)
            .field("rejected", &self.rejected)
            .finish_non_exhaustive()
    }
}

impl Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    /// Only what the event says: a create event that names its own room since version 12 is to be
    /// rejected, so the rules must see the difference.
    fn room_id(&self) -> Option<&RoomId> {
        self.fields.names_room.then_some(&*self.fields.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.fields.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.fields.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.fields.event_type
    }

    fn content(&self) -> &RawValue {
        self.fields.levels.as_ref().unwrap_or(&self.fields.content)
    }

    fn state_key(&self) -> Option<&str> {
        self.fields.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.fields.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.fields.auth_events.iter())
    }

    /// The rules ask for this in room versions 1 and 2 only, where it is beside the content.
    fn redacts(&self) -> Option<&OwnedEventId> {
        self.fields.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// An event of the right format. Nobody has looked at its signatures yet, so it cannot be stored:
/// [`super::signing::verify`] it.
pub struct Unverified {
    pub(super) pdu: Pdu,
    /// The event without `unsigned`, with `signatures`.
    pub(super) object: Object,
}

impl Unverified {
    /// See [`Pdu::event_id`].
    #[must_use]
    pub fn event_id(&self) -> &EventId {
        self.pdu.event_id()
    }

    /// See [`Pdu::room_id`].
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        self.pdu.room_id()
    }

    /// See [`Pdu::sender`].
    #[must_use]
    pub fn sender(&self) -> &UserId {
        self.pdu.sender()
    }

    /// See [`Pdu::origin_server_ts`].
    #[must_use]
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.pdu.origin_server_ts()
    }

    /// See [`Pdu::event_type`].
    #[must_use]
    pub fn event_type(&self) -> &TimelineEventType {
        self.pdu.event_type()
    }

    /// See [`Pdu::state_key`].
    #[must_use]
    pub fn state_key(&self) -> Option<&str> {
        self.pdu.state_key()
    }

    /// See [`Pdu::content_as`].
    pub fn content_as<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        self.pdu.content_as()
    }

    /// See [`Pdu::prev_events`].
    #[must_use]
    pub fn prev_events(&self) -> &[OwnedEventId] {
        self.pdu.prev_events()
    }

    /// See [`Pdu::auth_events`].
    #[must_use]
    pub fn auth_events(&self) -> &[OwnedEventId] {
        self.pdu.auth_events()
    }
}

impl std::fmt::Debug for Unverified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unverified").field(&self.pdu).finish()
    }
}

/// Why something is not an event. It is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// Not an object of
    /// [canonical JSON](https://spec.matrix.org/v1.19/appendices/#canonical-json): for example, it
    /// has a float or an integer beyond 2^53 - 1, which it may have up to room version 5.
    #[error("the event is not canonical JSON")]
    NotCanonical,
    /// Larger than [`MAX_BYTES`].
    #[error("the event is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// A required field is missing, of another type, or too long.
    #[error("the event breaks the format of its room version")]
    Format,
    /// This field is missing or malformed.
    #[error("the event's field `{0}` is missing or malformed")]
    Field(&'static str),
}

/// The id of an event with its content hash
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event)),
/// or the one that it names
/// ([spec](https://spec.matrix.org/v1.19/rooms/v1/#event-ids)).
pub(super) fn event_id(
    object: &Object,
    rules: &RoomVersionRules,
) -> Result<OwnedEventId, PduError> {
    let id = match rules.event_id_format {
        EventIdFormatVersion::V1 => {
            let id = object
                .map()
                .get("event_id")
                .and_then(CanonicalJsonValue::as_str);
            let id = id.and_then(|id| EventId::parse(id).ok());
            // Lists of ids are separated by white space, here and elsewhere.
            let odd = |c: char| c.is_whitespace() || c.is_control();
            return id
                .filter(|id| id.server_name().is_some() && !id.as_str().contains(odd))
                .ok_or(PduError::Field("event_id"));
        }
        EventIdFormatVersion::V2 => {
            Base64::<Standard, _>::new(object.reference_hash(&rules.redaction)?).encode()
        }
        _ => Base64::<UrlSafe, _>::new(object.reference_hash(&rules.redaction)?).encode(),
    };
    EventId::new_v2_or_v3(&id).map_err(|_| PduError::Format)
}

/// Whether other events are named as the room version wants it: by id, or up to version 2 by id and
/// hashes ([spec](https://spec.matrix.org/v1.19/rooms/v1/#event-format)).
fn check_references(list: Option<&CanonicalJsonValue>, rules: &RoomVersionRules) -> bool {
    let with_hashes = rules.events_reference_format == EventsReferenceFormatVersion::V1;
    let is_right = |item: &CanonicalJsonValue| match item {
        CanonicalJsonValue::String(_) => !with_hashes,
        CanonicalJsonValue::Array(pair) => {
            with_hashes
                && matches!(
                    pair.as_slice(),
                    [CanonicalJsonValue::String(_), CanonicalJsonValue::Object(_)]
                )
        }
        _ => false,
    };
    let list = list.and_then(CanonicalJsonValue::as_array);
    list.is_some_and(|list| list.iter().all(is_right))
}

#[cfg(test)]
mod tests;
