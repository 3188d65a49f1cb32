//! Policy servers, which a room asks what they think of an event before it shows it
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#policy-servers)).

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName, SigningKeyAlgorithm,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    serde::{Base64, base64::Standard},
    signatures::verify_canonical_json_bytes,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{POLICY_SERVER_KEY, SignatureError, Verified};
use crate::room::{object::Object, pdu::Pdu};

/// The type of the state event by which a room has a policy server.
pub const ROOM_POLICY: &str = "m.room.policy";

/// A policy server as the state of a room names it. It counts only while one of its users is in the room.
#[derive(Clone, Debug)]
pub struct PolicyServer {
    server: OwnedServerName,
    key: Base64<Standard>,
}

impl PolicyServer {
    /// Reads the content of an `m.room.policy` event; `None` if it is not valid, by which the room has no
    /// policy server.
    #[must_use]
    pub fn parse(content: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: OwnedServerName,
            public_keys: Keys,
        }
        #[derive(Deserialize)]
        struct Keys {
            ed25519: String,
        }
        let content: Content = serde_json::from_str(content.get()).ok()?;
        Some(Self {
            server: content.via,
            key: Base64::parse(content.public_keys.ed25519).ok()?,
        })
    }

    /// Its name.
    #[must_use]
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// Whether an event needs its signature: all but the one that names it do.
    #[must_use]
    pub fn judges(pdu: &Pdu) -> bool {
        let names_it = *pdu.event_type() == TimelineEventType::from(ROOM_POLICY);
        !(names_it && pdu.state_key() == Some(""))
    }

    /// Whether it recommends an event
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures)).
    #[must_use]
    pub fn has_signed(&self, pdu: &Pdu, rules: &RoomVersionRules) -> bool {
        parse(pdu, rules).is_some_and(|object| self.signature_is_right(&object, rules))
    }

    /// An event with its signature beside those that the event has.
    pub fn add_signature(
        &self,
        pdu: &Pdu,
        signature: &str,
        rules: &RoomVersionRules,
    ) -> Result<Verified, SignatureError> {
        let mut object = parse(pdu, rules).ok_or(SignatureError::Malformed)?;
        let mut all = object_of(object.map().get("signatures"));
        let mut own = object_of(all.get(self.server.as_str()));
        own.insert(POLICY_SERVER_KEY.to_owned(), signature.into());
        all.insert(self.server.to_string(), own.into());
        object.insert("signatures", all.into());
        if !self.signature_is_right(&object, rules) {
            return Err(SignatureError::Wrong(self.server.clone()));
        }
        let signed = Pdu::from_object(&object, pdu.event_id().to_owned());
        Ok(Verified(signed.map_err(|_| SignatureError::Malformed)?))
    }

    fn signature_is_right(&self, object: &Object, rules: &RoomVersionRules) -> bool {
        let all = object_of(object.map().get("signatures"));
        let own = object_of(all.get(self.server.as_str()));
        let signature = own
            .get(POLICY_SERVER_KEY)
            .and_then(CanonicalJsonValue::as_str)
            .and_then(|signature| Base64::<Standard>::parse(signature).ok());
        let Some((signature, signed)) = signature.zip(object.signed_json(&rules.redaction).ok())
        else {
            return false;
        };
        let (key, signature) = (self.key.as_bytes(), signature.as_bytes());
        let algorithm = SigningKeyAlgorithm::Ed25519;
        verify_canonical_json_bytes(&algorithm, key, signature, signed.as_bytes()).is_ok()
    }
}

fn parse(pdu: &Pdu, rules: &RoomVersionRules) -> Option<Object> {
    Object::parse(pdu.json(), rules.authorization.strict_canonical_json).ok()
}

fn object_of(value: Option<&CanonicalJsonValue>) -> CanonicalJsonObject {
    let object = value.and_then(CanonicalJsonValue::as_object);
    object.cloned().unwrap_or_default()
}
