//! Who signed an event, and our own signature.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    AnyKeyName, CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch,
    OwnedServerName, OwnedServerSigningKeyId, OwnedUserId, ServerName, SigningKeyId,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    serde::{Base64, base64::Standard},
    signatures::{PublicKeySet, verify_canonical_json_bytes},
};
use serde::Deserialize;

pub use self::{
    key::{KeyError, SigningKey},
    policy::{PolicyServer, ROOM_POLICY},
};
pub use ruma::signatures::PublicKeyMap;

use super::{
    object::Object,
    pdu::{Pdu, Unverified},
};

mod key;
mod policy;

/// The id under which policy servers sign. Their key is in the room's state, not published by
/// their server, so it proves nothing about who sent an event
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures)).
const POLICY_SERVER_KEY: &str = "ed25519:policy_server";

/// An event that the servers that must sign it have signed, redacted if its content hash is wrong.
///
/// Made only by [`verify`], by [`super::builder`], and from what was verified before.
#[derive(Debug)]
pub struct Verified(Pdu);

impl Verified {
    /// An event that was verified before it was stored, for judging it again: for example an
    /// outlier that has got its place in the graph.
    ///
    /// Nobody owns a [`Pdu`] that was not verified.
    #[must_use]
    pub fn from_stored(pdu: Pdu) -> Self {
        Self(pdu)
    }

    /// For the builder, which signs what it hands over.
    pub(super) fn own(pdu: Pdu) -> Self {
        Self(pdu)
    }

    pub(super) fn into_pdu(self) -> Pdu {
        self.0
    }

    /// The event.
    #[must_use]
    pub fn pdu(&self) -> &Pdu {
        &self.0
    }
}

/// Checks the signatures and the content hash (steps 2 and 3 of
/// [the checks](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu)).
///
/// `keys` are those that were valid at [`RequiredKeys::valid_at`]; signatures by others are
/// skipped. An event without the signatures is an error and to be dropped. An event whose content
/// hash is wrong comes back redacted.
pub fn verify(
    unverified: Unverified,
    keys: &PublicKeyMap,
    rules: &RoomVersionRules,
) -> Result<Verified, SignatureError> {
    let Unverified { pdu, mut object } = unverified;
    let malformed = |_| SignatureError::Malformed;
    let signed = object.signed_json(&rules.redaction).map_err(malformed)?;
    for server in required_servers(&pdu, rules)? {
        let keys = keys.get(server.as_str());
        check_server(server, object.map(), keys, signed.as_bytes())?;
    }

    if is_hash_right(&object) {
        return Ok(Verified(pdu));
    }
    object.redact(&rules.redaction).map_err(malformed)?;
    let redacted = Pdu::from_object(&object, pdu.event_id().to_owned()).map_err(malformed)?;
    Ok(Verified(redacted))
}

/// The keys with which another server added its signature to an event of ours.
pub fn keys_of_countersigner(
    answer: &Unverified,
    server: &ServerName,
) -> Result<RequiredKeys, SignatureError> {
    let key_ids = signatures_of(server, answer.object.map())?.keys();
    let key_ids = key_ids.filter_map(|key_id| key_id.as_str().try_into().ok());
    Ok(RequiredKeys {
        servers: BTreeMap::from([(server.to_owned(), key_ids.collect())]),
        valid_at: Some(answer.origin_server_ts()),
    })
}

/// Checks that another server, asked to sign our event, did so and changed nothing else
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room)).
pub fn verify_countersigned(
    sent: &Pdu,
    answer: Unverified,
    server: &ServerName,
    keys: &PublicKeyMap,
    rules: &RoomVersionRules,
) -> Result<Verified, SignatureError> {
    let Unverified { pdu, object } = answer;
    let malformed = |_| SignatureError::Malformed;
    let strict = rules.authorization.strict_canonical_json;
    let mut expected = Object::parse(sent.json(), strict).map_err(malformed)?;
    let Some(CanonicalJsonValue::Object(signatures)) = expected.map().get("signatures") else {
        return Err(SignatureError::Malformed);
    };
    let mut signatures = signatures.clone();
    let added = signatures_of(server, object.map())?.clone();
    signatures.insert(server.to_string(), added.into());
    expected.insert("signatures", signatures.into());
    if object != expected {
        return Err(SignatureError::Malformed);
    }
    let signed = object.signed_json(&rules.redaction).map_err(malformed)?;
    check_server(
        server.to_owned(),
        object.map(),
        keys.get(server.as_str()),
        signed.as_bytes(),
    )?;
    Ok(Verified(pdu))
}

/// Which keys [`verify`] needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredKeys {
    /// Of each server that must have signed, the keys with which it did. All that are known and
    /// valid are checked, one must be.
    pub servers: BTreeMap<OwnedServerName, BTreeSet<OwnedServerSigningKeyId>>,
    /// When the keys must have been valid, if that matters
    /// ([spec](https://spec.matrix.org/v1.19/rooms/v5/#signing-key-validity-period)).
    pub valid_at: Option<MilliSecondsSinceUnixEpoch>,
}

/// Finds out which keys are needed to verify an event
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events)).
pub fn required_keys(
    unverified: &Unverified,
    rules: &RoomVersionRules,
) -> Result<RequiredKeys, SignatureError> {
    let mut servers = BTreeMap::new();
    for server in required_servers(&unverified.pdu, rules)? {
        let key_ids = signatures_of(&server, unverified.object.map())?
            .keys()
            .filter(|key_id| *key_id != POLICY_SERVER_KEY && key_id.starts_with("ed25519:"))
            .filter_map(|key_id| key_id.as_str().try_into().ok())
            .collect::<BTreeSet<OwnedServerSigningKeyId>>();
        if key_ids.is_empty() {
            return Err(SignatureError::Missing(server));
        }
        servers.insert(server, key_ids);
    }
    let valid_at = rules
        .enforce_key_validity
        .then(|| unverified.origin_server_ts());
    Ok(RequiredKeys { servers, valid_at })
}

/// Why an event's signatures do not prove who sent it. It is to be dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signatures are not of the form that the specification gives them.
    #[error("the signatures are malformed")]
    Malformed,
    /// This server must have signed the event and did not, or not with a key that is valid.
    #[error("a signature of {0} is missing")]
    Missing(OwnedServerName),
    /// A signature of this server is wrong.
    #[error("a signature of {0} is wrong")]
    Wrong(OwnedServerName),
}

/// The servers that must have signed an event.
///
/// An invite that follows from a third-party invite may be sent by another server than the
/// sender's; the rules of authorization check the signature in it. Up to room version 2 the server
/// that an event's id names must have signed it too.
fn required_servers(
    pdu: &Pdu,
    rules: &RoomVersionRules,
) -> Result<BTreeSet<OwnedServerName>, SignatureError> {
    #[derive(Default, Deserialize)]
    struct Member<'a> {
        #[serde(borrow, default)]
        membership: Option<&'a serde_json::value::RawValue>,
        #[serde(borrow, default)]
        third_party_invite: Option<&'a serde_json::value::RawValue>,
        #[serde(borrow, default)]
        join_authorised_via_users_server: Option<&'a serde_json::value::RawValue>,
    }

    let member = if *pdu.event_type() == TimelineEventType::RoomMember {
        serde_json::from_str::<Member<'_>>(pdu.content().get()).unwrap_or_default()
    } else {
        Member::default()
    };
    let is_third_party_invite = member
        .membership
        .is_some_and(|raw| raw.get() == "\"invite\"")
        && member
            .third_party_invite
            .is_some_and(|raw| raw.get().starts_with('{'));

    let mut servers = BTreeSet::new();
    if rules.signatures.check_event_id_server {
        let server = pdu.event_id().server_name();
        servers.insert(server.ok_or(SignatureError::Malformed)?.to_owned());
    }
    if !is_third_party_invite {
        servers.insert(pdu.sender().server_name().to_owned());
    }
    if rules.signatures.check_join_authorised_via_users_server
        && let Some(raw) = member.join_authorised_via_users_server
    {
        let user = serde_json::from_str::<OwnedUserId>(raw.get())
            .map_err(|_| SignatureError::Malformed)?;
        servers.insert(user.server_name().to_owned());
    }
    Ok(servers)
}

/// Checks the signatures of one server: all by known keys are right, and there is one.
fn check_server(
    server: OwnedServerName,
    object: &CanonicalJsonObject,
    keys: Option<&PublicKeySet>,
    signed: &[u8],
) -> Result<(), SignatureError> {
    let Some(keys) = keys else {
        return Err(SignatureError::Missing(server));
    };
    let mut is_signed = false;
    for (key_id, signature) in signatures_of(&server, object)? {
        let Some(public_key) = keys.get(key_id).filter(|_| key_id != POLICY_SERVER_KEY) else {
            continue;
        };
        let Ok(parsed) = <&SigningKeyId<AnyKeyName>>::try_from(key_id.as_str()) else {
            continue;
        };
        let is_right = signature
            .as_str()
            .and_then(|signature| Base64::<Standard>::parse(signature).ok())
            .is_some_and(|signature| {
                let algorithm = parsed.algorithm();
                let (key, signature) = (public_key.as_bytes(), signature.as_bytes());
                verify_canonical_json_bytes(&algorithm, key, signature, signed).is_ok()
            });
        if !is_right {
            return Err(SignatureError::Wrong(server));
        }
        is_signed = true;
    }
    if is_signed {
        Ok(())
    } else {
        Err(SignatureError::Missing(server))
    }
}

fn signatures_of<'a>(
    server: &ServerName,
    object: &'a CanonicalJsonObject,
) -> Result<&'a CanonicalJsonObject, SignatureError> {
    let signatures = object
        .get("signatures")
        .and_then(CanonicalJsonValue::as_object)
        .ok_or(SignatureError::Malformed)?;
    match signatures.get(server.as_str()) {
        Some(CanonicalJsonValue::Object(signatures)) => Ok(signatures),
        Some(_) => Err(SignatureError::Malformed),
        None => Err(SignatureError::Missing(server.to_owned())),
    }
}

fn is_hash_right(object: &Object) -> bool {
    let claimed = object
        .map()
        .get("hashes")
        .and_then(CanonicalJsonValue::as_object)
        .and_then(|hashes| hashes.get("sha256"))
        .and_then(CanonicalJsonValue::as_str)
        .and_then(|hash| Base64::<Standard>::parse(hash).ok());
    let expected = object.content_hash().ok();
    claimed
        .zip(expected)
        .is_some_and(|(claimed, expected)| claimed.as_bytes() == expected)
}

#[cfg(test)]
mod tests;
