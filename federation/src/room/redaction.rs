//! Removing what an event says, keeping what the room needs of it.

use ruma::room_version_rules::RoomVersionRules;

use super::{object::Object, pdu::Pdu};

/// The redacted form of an event
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#redactions)). It has the same id and
/// signatures, and redacting it once more changes nothing.
pub fn redact(pdu: &Pdu, rules: &RoomVersionRules) -> Result<Pdu, RedactError> {
    let strict = rules.authorization.strict_canonical_json;
    let mut object = Object::parse(pdu.json(), strict).map_err(|_| RedactError)?;
    object.redact(&rules.redaction).map_err(|_| RedactError)?;
    let redacted = Pdu::from_object(&object, pdu.event_id().to_owned()).map_err(|_| RedactError)?;
    Ok(if pdu.is_rejected() {
        redacted.into_rejected()
    } else {
        redacted
    })
}

/// The stored event is damaged: everything that was checked when it arrived can be redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event cannot be redacted")]
pub struct RedactError;

#[cfg(test)]
mod tests;
