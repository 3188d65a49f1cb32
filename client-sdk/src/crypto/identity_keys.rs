//! Cross-signing keys as objects: reading, checking and making them.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>

use ruma::UserId;
use serde_json::{Value, json};
use vodozemac::{Ed25519PublicKey, Ed25519SecretKey, base64_decode};
use zeroize::Zeroizing;

use super::keys::{self, SignatureError};

/// What a cross-signing key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    /// It is the identity.
    Master,
    /// It signs the user's devices.
    SelfSigning,
    /// It signs the master keys of other users.
    UserSigning,
}

impl Usage {
    pub(crate) const ALL: [Self; 3] = [Self::Master, Self::SelfSigning, Self::UserSigning];

    fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }

    /// The name of the private half, as a secret.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>
    pub(crate) fn secret_name(self) -> &'static str {
        match self {
            Self::Master => "m.cross_signing.master",
            Self::SelfSigning => "m.cross_signing.self_signing",
            Self::UserSigning => "m.cross_signing.user_signing",
        }
    }
}

/// A public cross-signing key that has the right shape and owner. Who signed it is another question.
#[derive(Debug, Clone)]
pub(crate) struct IdentityKey {
    pub(crate) key: Ed25519PublicKey,
    /// The key as text, and its own name.
    pub(crate) text: String,
    pub(crate) object: Value,
}

impl IdentityKey {
    pub(crate) fn parse(
        object: &Value,
        user_id: &UserId,
        usage: Usage,
    ) -> Result<Self, SignatureError> {
        let owner = object.get("user_id").and_then(Value::as_str);
        if owner != Some(user_id.as_str()) {
            return Err(SignatureError::WrongOwner);
        }
        let usages = object.get("usage").and_then(Value::as_array);
        let keys = object.get("keys").and_then(Value::as_object);
        let (Some(usages), Some(keys)) = (usages, keys) else {
            return Err(SignatureError::Malformed);
        };
        if !usages.iter().any(|named| named == usage.name()) || keys.len() != 1 {
            return Err(SignatureError::Malformed);
        }
        let (name, text) = keys.iter().next().ok_or(SignatureError::Malformed)?;
        let text = text.as_str().ok_or(SignatureError::Malformed)?;
        let key = keys::ed25519(text).ok_or(SignatureError::InvalidKey)?;
        // One key must have one spelling, or two spellings could be taken for two keys.
        if key.to_base64() != text || *name != format!("ed25519:{text}") {
            return Err(SignatureError::InvalidKey);
        }
        Ok(Self {
            key,
            text: text.to_owned(),
            object: object.clone(),
        })
    }

    /// As [`Self::parse`], and the master key has to have signed it.
    pub(crate) fn parse_signed(
        object: &Value,
        user_id: &UserId,
        usage: Usage,
        master: &Self,
    ) -> Result<Self, SignatureError> {
        let parsed = Self::parse(object, user_id, usage)?;
        keys::verify(object, user_id, &master.text, &master.key)?;
        Ok(parsed)
    }

    /// Makes the object of a key of ours.
    pub(crate) fn make(user_id: &UserId, usage: Usage, key: &Ed25519SecretKey) -> Self {
        let key = key.public_key();
        let text = key.to_base64();
        let object = json!({
            "user_id": user_id,
            "usage": [usage.name()],
            "keys": { format!("ed25519:{text}"): text },
        });
        Self { key, text, object }
    }
}

/// The object with a signature of `key` and no other.
pub(crate) fn signed_by(
    object: &Value,
    user_id: &UserId,
    key: &Ed25519SecretKey,
) -> Result<Value, SignatureError> {
    let mut object = keys::without_signatures(object)?;
    let signature = key.sign(keys::signed_text(&object)?.as_bytes());
    let key_id = format!("ed25519:{}", key.public_key().to_base64());
    object["signatures"] = json!({ user_id.as_str(): { key_id: signature.to_base64() } });
    Ok(object)
}

/// Reads a private key; `None` if the text is not one.
pub(crate) fn private_key(text: &str) -> Option<Ed25519SecretKey> {
    let bytes = Zeroizing::new(base64_decode(text).ok()?);
    let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(bytes.as_slice().try_into().ok()?);
    Some(Ed25519SecretKey::from_slice(&bytes))
}
