//! How much is known about who sent something.

use ruma::{OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};

/// What is known about the device that sent a message or a room key.
///
/// Cross-signing will add levels above these; nothing here claims that a human verified anything.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#verification-of-the-sending-user-for-incoming-events>
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum SenderTrust {
    /// The claimed sender's device list does not have such a device (yet).
    UnknownDevice,
    /// The device is in the claimed sender's list with these keys, which it signed itself; no
    /// identity of the user vouches for it.
    UnsignedDevice,
    /// It is this very device.
    OwnDevice,
}

/// Which devices get room keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum SharePolicy {
    /// All devices of all members that signed their own keys, whose keys never changed, and that
    /// are not blocked. The name says what it does not do: verify anybody.
    #[default]
    AllSelfSignedDevices,
}

/// The owner of a session: whoever sent its key over Olm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderData {
    /// The user, as the Olm payload and the event that carried it both say.
    pub user_id: OwnedUserId,
    /// The device, if it is known.
    pub device_id: Option<OwnedDeviceId>,
    /// The device's Curve25519 identity key, unpadded base64.
    pub curve25519: String,
    /// The device's Ed25519 key, unpadded base64.
    pub ed25519: String,
    /// What is known about the device.
    pub trust: SenderTrust,
}
