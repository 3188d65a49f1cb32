//! The plaintext of an Olm message, and the five checks it has to pass.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#validation-of-incoming-decrypted-events>

use ruma::{DeviceId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vodozemac::{Curve25519PublicKey, Ed25519PublicKey};

use super::{
    error::RejectedMessage,
    keys::{self, DeviceKeys, SignatureError},
};

#[derive(Deserialize)]
pub(crate) struct SigningKeys {
    pub(crate) ed25519: String,
}

/// What an Olm message says, before anything of it is believed.
#[derive(Deserialize)]
pub(crate) struct OlmPayload {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) content: Map<String, Value>,
    pub(crate) sender: OwnedUserId,
    pub(crate) recipient: OwnedUserId,
    pub(crate) recipient_keys: SigningKeys,
    pub(crate) keys: SigningKeys,
    pub(crate) sender_device_keys: Option<Value>,
}

/// What a message that is sent says, as [`OlmPayload`] reads it.
#[derive(Serialize)]
pub(crate) struct NewPayload<'a> {
    #[serde(rename = "type")]
    pub(crate) kind: &'a str,
    pub(crate) content: &'a Map<String, Value>,
    pub(crate) sender: &'a UserId,
    /// Not in the specification any more, but older clients insist on it.
    pub(crate) sender_device: &'a DeviceId,
    pub(crate) recipient: &'a UserId,
    pub(crate) recipient_keys: NewKeys<'a>,
    pub(crate) keys: NewKeys<'a>,
    pub(crate) sender_device_keys: &'a Value,
}

#[derive(Serialize)]
pub(crate) struct NewKeys<'a> {
    pub(crate) ed25519: &'a str,
}

/// Who receives a message.
pub(crate) struct Recipient<'a> {
    pub(crate) user_id: &'a UserId,
    pub(crate) ed25519: Ed25519PublicKey,
}

/// A payload that passed the checks which need nothing but itself and the event around it.
///
/// Only [`OlmPayload::check`] makes one.
pub(crate) struct CheckedPayload {
    payload: OlmPayload,
    ed25519: Ed25519PublicKey,
    device_keys: Option<DeviceKeys>,
}

impl OlmPayload {
    pub(crate) fn parse(plaintext: &[u8]) -> Result<Self, RejectedMessage> {
        let text = std::str::from_utf8(plaintext).map_err(|_| RejectedMessage::Malformed)?;
        serde_json::from_str(text).map_err(|_| RejectedMessage::Malformed)
    }

    /// The checks, numbered as in the specification. Check 2 goes on in
    /// [`CheckedPayload::is_of_device`], where a device of the sender is known.
    pub(crate) fn check(
        self,
        event_sender: &UserId,
        sender_key: Curve25519PublicKey,
        recipient: &Recipient<'_>,
    ) -> Result<CheckedPayload, RejectedMessage> {
        // 1. The sender in the payload is the sender of the event.
        if self.sender != event_sender {
            return Err(RejectedMessage::MismatchedSender);
        }
        // 2. The signing key is a key at all; whose it is, is checked where the device is known.
        let ed25519 = keys::ed25519(&self.keys.ed25519).ok_or(RejectedMessage::Malformed)?;
        // 3. It is for this user …
        if self.recipient != recipient.user_id {
            return Err(RejectedMessage::MismatchedRecipient);
        }
        // 4. … and for this device.
        if keys::ed25519(&self.recipient_keys.ed25519) != Some(recipient.ed25519) {
            return Err(RejectedMessage::MismatchedRecipientKeys);
        }
        // 5. The device keys, if there are any, are those of the sending device.
        let device_keys = self
            .sender_device_keys
            .as_ref()
            .map(|object| check_device_keys(object, event_sender, sender_key, ed25519))
            .transpose()?;
        Ok(CheckedPayload {
            payload: self,
            ed25519,
            device_keys,
        })
    }
}

impl CheckedPayload {
    pub(crate) fn kind(&self) -> &str {
        &self.payload.kind
    }

    pub(crate) fn content(&self) -> &Map<String, Value> {
        &self.payload.content
    }

    pub(crate) fn into_content(self) -> Map<String, Value> {
        self.payload.content
    }

    pub(crate) fn sender(&self) -> &UserId {
        &self.payload.sender
    }

    pub(crate) fn ed25519(&self) -> Ed25519PublicKey {
        self.ed25519
    }

    /// The device that the message says it is from, signed by that device.
    pub(crate) fn claimed_device(&self) -> Option<&DeviceId> {
        self.device_keys.as_ref().map(|keys| &*keys.device_id)
    }

    /// The keys of that device as they came, with all signatures.
    pub(crate) fn device_keys(&self) -> Option<&Value> {
        self.payload.sender_device_keys.as_ref()
    }

    /// Check 2 for a device whose keys are known.
    pub(crate) fn is_of_device(&self, ed25519: &str) -> bool {
        self.ed25519.to_base64() == ed25519
    }
}

fn check_device_keys(
    object: &Value,
    sender: &UserId,
    sender_key: Curve25519PublicKey,
    ed25519: Ed25519PublicKey,
) -> Result<DeviceKeys, RejectedMessage> {
    // 5.4. They are signed by the device.
    let keys = DeviceKeys::parse(object).map_err(|error| match error {
        SignatureError::Missing | SignatureError::Wrong => RejectedMessage::UnsignedDeviceKeys,
        _ => RejectedMessage::Malformed,
    })?;
    // 5.1. to 5.3. They name the same user and the same two keys.
    if keys.user_id != sender || keys.curve25519 != sender_key || keys.ed25519 != ed25519 {
        return Err(RejectedMessage::MismatchedDeviceKeys);
    }
    Ok(keys)
}
