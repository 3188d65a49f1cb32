//! Making events of our own.
//!
//! A signature of ours says that a user of ours wanted this event. So nothing that another server
//! supplied is ever signed: not the answers to `make_join`, `make_leave` and `make_knock`, of which
//! only the place in the graph is taken, and not an invite, unless it is exactly what an invite of
//! our user must be ([`countersign`]).

use ruma::{
    CanonicalJsonObject, Int, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, ServerName,
    UserId,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    serde::{
        Base64,
        base64::{Standard, UrlSafe},
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    countersign::{CountersignError, Expected, countersign},
    references::{Hashes, references},
    remote::{MembershipTemplate, RemoteMembership, from_make_response},
};
use super::{
    object::Object,
    pdu::{MAX_BYTES, Pdu, PduError, event_id},
    signing::{KeyError, SigningKey, Verified},
};

mod countersign;
mod references;
mod remote;

/// The most `prev_events` and `auth_events` that an event may have
/// ([spec](https://spec.matrix.org/v1.19/rooms/v4/#event-format)).
const MAX_PREV_EVENTS: usize = 20;
const MAX_AUTH_EVENTS: usize = 10;

/// The most bytes of a type or a state key
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#size-limits)).
const MAX_KEY_BYTES: usize = 255;

/// What an event is to say.
pub struct Template {
    /// The type.
    pub event_type: TimelineEventType,
    /// The content, an object.
    pub content: Box<RawValue>,
    /// The state key, for a state event.
    pub state_key: Option<String>,
    /// What a redaction redacts. It is put where the room version wants it.
    pub redacts: Option<OwnedEventId>,
    /// When it was sent, if not now.
    pub origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
}

/// Where in the graph of a room an event is to stand.
#[derive(Clone, Debug)]
pub struct Basis {
    /// The room. `None` only for the create event of a room whose id is that event's hash
    /// ([spec](https://spec.matrix.org/v1.19/rooms/v12/#room-ids-as-hashes-of-the-create-event)).
    pub room_id: Option<OwnedRoomId>,
    /// The forward extremities, at most 20.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that [`super::auth::auth_types`] select from the state.
    pub auth_events: Vec<OwnedEventId>,
    /// The hashes of all these events, for room versions that want them.
    pub hashes: Hashes,
    /// One more than the greatest depth of the `prev_events`.
    pub depth: u64,
}

/// Builds, hashes and signs an event
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#adding-hashes-and-signatures-to-outgoing-events)).
///
/// `key` is the key of `server_name`, to which `sender` must belong; or, where somebody of another server
/// invited an address, the user of `server_name` to whom it was found to belong
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#third-party-invites)).
pub fn build(
    template: Template,
    basis: &Basis,
    sender: &UserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    rules: &RoomVersionRules,
    server_name: &ServerName,
    key: &SigningKey,
) -> Result<Verified, BuildError> {
    if sender.server_name() != server_name && !is_third_party_invite(&template, server_name) {
        return Err(BuildError::ForeignSender);
    }
    let mut object = outline(template, basis, rules)?;
    object.insert("sender", sender.as_str().into());
    object.insert("origin_server_ts", origin_server_ts.0.into());
    if rules.event_format.require_event_id {
        let hash = Base64::<UrlSafe, _>::new(object.content_hash()?).encode();
        // As good as random: 144 bits of a hash of the whole event.
        let id = format!("${}:{server_name}", hash.get(..24).unwrap_or(&hash));
        object.insert("event_id", id.into());
    }

    let hash = Base64::<Standard, _>::new(object.content_hash()?).encode();
    let hashes = CanonicalJsonObject::from([("sha256".to_owned(), hash.into())]);
    object.insert("hashes", hashes.into());
    key.sign_event(&mut object, server_name, &rules.redaction)?;
    let event_id = event_id(&object, rules)?;
    Ok(Verified::own(Pdu::from_object(&object, event_id)?))
}

/// Whether an event turns the invite of an address into that of a user of this server. Everybody in the room
/// checks that the identity server, which whoever invited the address had chosen, says so.
fn is_third_party_invite(template: &Template, server_name: &ServerName) -> bool {
    #[derive(Deserialize)]
    struct Content<'a> {
        membership: &'a str,
        #[serde(borrow)]
        third_party_invite: &'a RawValue,
    }
    let content = serde_json::from_str::<Content<'_>>(template.content.get());
    let is_invite = content.is_ok_and(|content| {
        content.membership == "invite" && content.third_party_invite.get().starts_with('{')
    });
    let target = template.state_key.as_deref().map(<&UserId>::try_from);
    let is_ours = |target: &UserId| target.server_name() == server_name;
    template.event_type == TimelineEventType::RoomMember
        && is_invite
        && target.is_some_and(|target| target.is_ok_and(is_ours))
}

/// Why there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The content is not an object of
    /// [canonical JSON](https://spec.matrix.org/v1.19/appendices/#canonical-json): for example, it
    /// has a float or an integer beyond 2^53 - 1.
    #[error("the content is not canonical JSON")]
    NotCanonical,
    /// The event would be larger than [`MAX_BYTES`].
    #[error("the event is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// This field is longer than 255 bytes.
    #[error("`{0}` is longer than {MAX_KEY_BYTES} bytes")]
    FieldTooLong(&'static str),
    /// `prev_events` or `auth_events` have too many entries.
    #[error("the event refers to too many events")]
    TooManyReferences,
    /// The room is missing, or named where the room version forbids it.
    #[error("only the create event of a room whose id is a hash has no room id")]
    RoomId,
    /// The sender is not a user of this server.
    #[error("the sender belongs to another server")]
    ForeignSender,
    /// What a remote server answered is not usable.
    #[error("the other server gave a malformed template")]
    MalformedAnswer,
    /// The room version wants the hash of an event that is not at hand.
    #[error("the hash of an event that this one refers to is missing")]
    MissingHash,
    /// There are no events of this room version.
    #[error("events of this room version are not supported")]
    UnsupportedRoomVersion,
}

impl From<PduError> for BuildError {
    fn from(error: PduError) -> Self {
        match error {
            PduError::NotCanonical | PduError::Format | PduError::Field(_) => Self::NotCanonical,
            PduError::TooLarge => Self::TooLarge,
        }
    }
}

impl From<KeyError> for BuildError {
    fn from(_: KeyError) -> Self {
        Self::NotCanonical
    }
}

/// The event without what depends on the sender and the time.
fn outline(
    template: Template,
    basis: &Basis,
    rules: &RoomVersionRules,
) -> Result<Object, BuildError> {
    let event_type = template.event_type.to_string();
    check_length("type", &event_type)?;
    if basis.prev_events.len() > MAX_PREV_EVENTS || basis.auth_events.len() > MAX_AUTH_EVENTS {
        return Err(BuildError::TooManyReferences);
    }
    let strict = rules.authorization.strict_canonical_json;
    let mut content =
        Object::parse(&template.content, strict).map_err(|_| BuildError::NotCanonical)?;

    let mut object = Object::default();
    if let Some(redacts) = template.redacts {
        let holder = if rules.redaction.content_field_redacts {
            &mut content
        } else {
            &mut object
        };
        holder.insert("redacts", redacts.as_str().into());
    }
    if let Some(state_key) = template.state_key {
        check_length("state_key", &state_key)?;
        object.insert("state_key", state_key.into());
    }
    if let Some(room_id) = room_id(&template.event_type, basis, rules)? {
        object.insert("room_id", room_id.as_str().into());
    }
    // Beyond what JSON can say the depth stays where it is: it decides nothing.
    let depth = Int::try_from(basis.depth).unwrap_or(Int::MAX);
    object.insert("depth", depth.into());
    object.insert("type", event_type.into());
    object.insert_object("content", content);
    for (field, events) in [
        ("prev_events", &basis.prev_events),
        ("auth_events", &basis.auth_events),
    ] {
        object.insert(field, references(events, &basis.hashes, rules)?);
    }
    Ok(object)
}

fn room_id<'a>(
    event_type: &TimelineEventType,
    basis: &'a Basis,
    rules: &RoomVersionRules,
) -> Result<Option<&'a OwnedRoomId>, BuildError> {
    let must_name = *event_type != TimelineEventType::RoomCreate
        || rules.event_format.require_room_create_room_id;
    match &basis.room_id {
        Some(room_id) if must_name => Ok(Some(room_id)),
        None if !must_name => Ok(None),
        Some(_) | None => Err(BuildError::RoomId),
    }
}

fn check_length(field: &'static str, value: &str) -> Result<(), BuildError> {
    if value.len() > MAX_KEY_BYTES {
        Err(BuildError::FieldTooLong(field))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
