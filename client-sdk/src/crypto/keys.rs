//! Public keys and signed JSON.

use ruma::{
    CanonicalJsonValue, DeviceId, OwnedDeviceId, OwnedUserId, UserId,
    canonical_json::to_canonical_value,
};
use serde_json::{Map, Value, json};
use vodozemac::{
    Curve25519PublicKey, Ed25519PublicKey, Ed25519Signature, base64_decode, olm::Account,
};

/// The Olm algorithm.
pub(crate) const OLM: &str = "m.olm.v1.curve25519-aes-sha2";
/// The Megolm algorithm.
pub(crate) const MEGOLM: &str = "m.megolm.v1.aes-sha2";

/// Reads an Ed25519 key from base64 text.
pub(crate) fn ed25519(text: &str) -> Option<Ed25519PublicKey> {
    let bytes: [u8; 32] = base64_decode(text).ok()?.try_into().ok()?;
    Ed25519PublicKey::from_slice(&bytes).ok()
}

/// Reads a Curve25519 key from base64 text.
pub(crate) fn curve25519(text: &str) -> Option<Curve25519PublicKey> {
    let bytes: [u8; 32] = base64_decode(text).ok()?.try_into().ok()?;
    Some(Curve25519PublicKey::from_bytes(bytes))
}

fn signature(text: &str) -> Option<Ed25519Signature> {
    let bytes: [u8; 64] = base64_decode(text).ok()?.try_into().ok()?;
    Ed25519Signature::from_slice(&bytes).ok()
}

/// Why a signed object was refused.
///
/// <https://spec.matrix.org/v1.19/appendices/#checking-for-a-signature>
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// It has not the shape it should have.
    #[error("the signed object is malformed")]
    Malformed,
    /// It names another user or device than the place where it was found.
    #[error("the signed object belongs to another user or device")]
    WrongOwner,
    /// A key in it is not a key.
    #[error("a key in the signed object is invalid")]
    InvalidKey,
    /// It is not signed by the key that has to sign it.
    #[error("the signature is missing")]
    Missing,
    /// The signature does not verify.
    #[error("the signature is wrong")]
    Wrong,
}

/// What is signed: canonical JSON without `signatures` and `unsigned`.
///
/// <https://spec.matrix.org/v1.19/appendices/#signing-details>
pub(crate) fn signed_text(object: &Value) -> Result<String, SignatureError> {
    match to_canonical_value(without_signatures(object)?) {
        Ok(value @ CanonicalJsonValue::Object(_)) => Ok(value.to_string()),
        _ => Err(SignatureError::Malformed),
    }
}

/// The part of an object that is signed.
pub(crate) fn without_signatures(object: &Value) -> Result<Value, SignatureError> {
    let mut fields = object.as_object().ok_or(SignatureError::Malformed)?.clone();
    fields.remove("signatures");
    fields.remove("unsigned");
    Ok(Value::Object(fields))
}

/// Checks that `key`, named `ed25519:{key_name}`, signed `object` for `user_id`.
pub(crate) fn verify(
    object: &Value,
    user_id: &UserId,
    key_name: &str,
    key: &Ed25519PublicKey,
) -> Result<(), SignatureError> {
    let found = object
        .get("signatures")
        .and_then(|signatures| signatures.get(user_id.as_str()))
        .and_then(|signatures| signatures.get(format!("ed25519:{key_name}")))
        .and_then(Value::as_str)
        .ok_or(SignatureError::Missing)?;
    let found = signature(found).ok_or(SignatureError::Wrong)?;
    key.verify(signed_text(object)?.as_bytes(), &found)
        .map_err(|_| SignatureError::Wrong)
}

/// Signs `fields` with the account's key.
pub(crate) fn sign(
    fields: Map<String, Value>,
    account: &Account,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Value, SignatureError> {
    let mut object = Value::Object(fields);
    let signature = account.sign(signed_text(&object)?).to_base64();
    let key_id = format!("ed25519:{device_id}");
    object["signatures"] = json!({ user_id.as_str(): { key_id: signature } });
    Ok(object)
}

/// The signed identity of a device, checked against the key that it contains.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#device-keys>
#[derive(Debug, Clone)]
pub(crate) struct DeviceKeys {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    pub(crate) algorithms: Vec<String>,
    pub(crate) ed25519: Ed25519PublicKey,
    pub(crate) curve25519: Curve25519PublicKey,
    pub(crate) display_name: Option<String>,
}

impl DeviceKeys {
    /// Parses and verifies the object; its signature has to be by its own Ed25519 key.
    pub(crate) fn parse(object: &Value) -> Result<Self, SignatureError> {
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let user_id: OwnedUserId = text("user_id")
            .and_then(|id| id.try_into().ok())
            .ok_or(SignatureError::Malformed)?;
        let device_id: OwnedDeviceId = text("device_id").ok_or(SignatureError::Malformed)?.into();
        let key = |algorithm: &str| {
            object
                .get("keys")
                .and_then(|keys| keys.get(format!("{algorithm}:{device_id}")))
                .and_then(Value::as_str)
                .ok_or(SignatureError::Malformed)
        };
        let ed25519 = ed25519(key("ed25519")?).ok_or(SignatureError::InvalidKey)?;
        let curve25519 = curve25519(key("curve25519")?).ok_or(SignatureError::InvalidKey)?;
        verify(object, &user_id, device_id.as_str(), &ed25519)?;
        let algorithms = object
            .get("algorithms")
            .and_then(Value::as_array)
            .ok_or(SignatureError::Malformed)?
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        let display_name = object
            .get("unsigned")
            .and_then(|unsigned| unsigned.get("device_display_name"))
            .and_then(Value::as_str)
            .map(str::to_owned);
        Ok(Self {
            user_id,
            device_id,
            algorithms,
            ed25519,
            curve25519,
            display_name,
        })
    }

    /// As [`Self::parse`], and the object has to be of the user and device given.
    pub(crate) fn parse_for(
        object: &Value,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Self, SignatureError> {
        let keys = Self::parse(object)?;
        if keys.user_id != user_id || keys.device_id != device_id {
            return Err(SignatureError::WrongOwner);
        }
        Ok(keys)
    }
}

/// Our own device keys, signed.
pub(crate) fn own_device_keys(
    account: &Account,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Value, SignatureError> {
    let mut fields = Map::new();
    fields.insert("user_id".to_owned(), json!(user_id));
    fields.insert("device_id".to_owned(), json!(device_id));
    fields.insert("algorithms".to_owned(), json!([OLM, MEGOLM]));
    fields.insert(
        "keys".to_owned(),
        json!({
            format!("ed25519:{device_id}"): account.ed25519_key().to_base64(),
            format!("curve25519:{device_id}"): account.curve25519_key().to_base64(),
        }),
    );
    sign(fields, account, user_id, device_id)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use ruma::{device_id, user_id};

    use super::*;

    fn signed() -> (Account, Value) {
        let account = Account::new();
        let keys = own_device_keys(
            &account,
            user_id!("@alice:example.org"),
            device_id!("PHONE"),
        )
        .unwrap();
        (account, keys)
    }

    #[test]
    fn own_keys_verify_and_parse() {
        let (account, keys) = signed();
        let parsed = DeviceKeys::parse(&keys).unwrap();
        assert_eq!(parsed.ed25519, account.ed25519_key());
        assert_eq!(parsed.curve25519, account.curve25519_key());
        assert_eq!(parsed.algorithms, [OLM, MEGOLM]);
    }

    #[test]
    fn what_is_unsigned_may_change_and_nothing_else() {
        let (_, mut keys) = signed();
        keys["unsigned"] = json!({ "device_display_name": "Phone" });
        assert_eq!(
            DeviceKeys::parse(&keys).unwrap().display_name.as_deref(),
            Some("Phone")
        );
        keys["algorithms"] = json!([OLM]);
        assert_eq!(DeviceKeys::parse(&keys).unwrap_err(), SignatureError::Wrong);
    }

    #[test]
    fn keys_of_wrong_lengths_are_errors() {
        let forty_four_unpadded = "A".repeat(44);
        let too_short = format!("{}=", "A".repeat(42));
        let shorter = format!("{}==", "A".repeat(42));
        for text in [
            forty_four_unpadded.as_str(),
            &too_short,
            &shorter,
            "",
            "?",
            &"A".repeat(1000),
        ] {
            assert!(ed25519(text).is_none(), "{text}");
            assert!(curve25519(text).is_none(), "{text}");
            let (_, mut keys) = signed();
            keys["keys"]["ed25519:PHONE"] = json!(text);
            assert!(DeviceKeys::parse(&keys).is_err(), "{text}");
        }
    }

    #[test]
    fn a_signature_by_another_key_is_refused() {
        let (_, keys) = signed();
        let (_, other) = signed();
        let mut mixed = keys.clone();
        mixed["signatures"] = other["signatures"].clone();
        assert!(DeviceKeys::parse(&keys).is_ok(), "control");
        assert_eq!(
            DeviceKeys::parse(&mixed).unwrap_err(),
            SignatureError::Wrong
        );
        mixed["signatures"] = json!({});
        assert_eq!(
            DeviceKeys::parse(&mixed).unwrap_err(),
            SignatureError::Missing
        );
        let bob = user_id!("@bob:example.org");
        let error = DeviceKeys::parse_for(&keys, bob, device_id!("PHONE")).unwrap_err();
        assert_eq!(error, SignatureError::WrongOwner);
    }
}
