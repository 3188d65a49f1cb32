//! What can go wrong, by operation. No variant quotes a key or a message.

use ruma::{OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use super::keys::SignatureError;
use crate::{environment::RandomnessError, store::StoreError};

/// Why a machine could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store holds the keys of another user or device.
    #[error("the store belongs to another device")]
    OtherDevice,
    /// The own device keys could not be built.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an operation of the machine failed that has no reason of its own to fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The store has no account: it was emptied under the machine.
    #[error("the store has lost the account of this device")]
    NoAccount,
    /// An object of our own could not be signed.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A session with a device cannot encrypt.
    #[error("an Olm session cannot encrypt")]
    Olm,
    /// Something of ours cannot be written as JSON.
    #[error("a request cannot be encoded")]
    Encode,
    /// No randomness for a transaction id.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an answer was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// No request with this id is under way.
    #[error("no such request is under way")]
    UnknownRequest,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for MarkError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why a room key was not shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The room is not encrypted.
    #[error("the room is not encrypted")]
    NotEncrypted,
    /// The room asks for an algorithm that is not supported; it is not sent to at all.
    #[error("the room asks for an unsupported algorithm")]
    UnsupportedAlgorithm,
    /// The server shows another identity for the own user than the one that is known.
    #[error("the server shows another identity for this user")]
    OwnIdentityChanged,
    /// The identities of these members changed. See
    /// [`Machine::accept_identity`](super::Machine::accept_identity).
    #[error("the identities of members changed")]
    IdentitiesChanged {
        /// The members.
        users: Vec<OwnedUserId>,
    },
    /// The server shows others different keys for this device than it has.
    #[error("the server serves other keys for this device than its own")]
    OwnDeviceMismatch,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for ShareError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why a key was not signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// This device does not have the private key that it takes.
    #[error("this device does not have the private key to sign with")]
    NoPrivateKey,
    /// The device is another user's, who alone can vouch for it.
    #[error("the device belongs to another user")]
    NotOwn,
    /// What should be signed is not known, or is not what the server shows now.
    #[error("the key to be signed is not known, or has changed")]
    Unknown,
    /// The object cannot be signed.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for SigningError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why a verification did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerificationError {
    /// There is no such verification.
    #[error("there is no such verification")]
    Unknown,
    /// It is not the time for this step.
    #[error("the verification is at another step")]
    WrongPhase,
    /// No device of the other side is known.
    #[error("no device of the other side is known")]
    NoDevice,
    /// One side cannot do this, or has no identity to be verified.
    #[error("one of the sides cannot do this")]
    NoMethod,
    /// What was scanned is not a code of this verification.
    #[error("this is not a code of this verification")]
    NotAQrCode,
    /// The code has other keys than the server shows: somebody is in between.
    #[error("the code has other keys than the server shows")]
    WrongKeys,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for VerificationError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why a bundle of keys was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It is not a bundle of keys.
    #[error("the bundle of keys is malformed")]
    Malformed,
    /// The identity of the user who offers it does not vouch for the device that does.
    #[error("the bundle of keys is from a device that is not signed")]
    UntrustedSender,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a backup was not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The private key is not that of the backup, or there is none.
    #[error("the private key is not that of the backup")]
    WrongKey,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why a file with keys was not written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It is not such a file, or it was cut off.
    #[error("this is not a file with room keys")]
    Malformed,
    /// The passphrase is wrong, or the file was changed.
    #[error("the passphrase is wrong, or the file was changed")]
    WrongPassphrase,
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for KeyFileError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why an event was not encrypted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptError {
    /// There is no session for the room whose key has been delivered, or it has to be replaced:
    /// share a key first.
    #[error("the room key has not been shared")]
    NotShared,
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl From<StoreError> for EncryptError {
    fn from(error: StoreError) -> Self {
        Self::Machine(error.into())
    }
}

/// Why a room event could not be decrypted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecryptError {
    /// It is not an `m.room.encrypted` event that a server may send.
    #[error("the event is malformed")]
    Malformed,
    /// Its algorithm is not Megolm.
    #[error("the event's algorithm is not supported")]
    UnsupportedAlgorithm,
    /// The key has not arrived; the sender may have said why.
    #[error("the room key has not arrived")]
    MissingRoomKey {
        /// The reason that somebody gave, not authenticated.
        withheld: Option<WithheldCode>,
    },
    /// The key that we have only opens later messages.
    #[error("the room key opens later messages only (from {first_known_index}, not {index})")]
    RoomKeyTooNew {
        /// The first index that the key opens.
        first_known_index: u32,
        /// The index of the event.
        index: u32,
    },
    /// The ciphertext does not authenticate.
    #[error("the event does not authenticate")]
    Invalid,
    /// The sender of the event is not the owner of the session.
    #[error("the event was sent with a session of another user")]
    MismatchedSender {
        /// The owner of the session.
        owner: OwnedUserId,
    },
    /// Too little is known about the sender's device; see
    /// [`TrustRequirement`](super::TrustRequirement).
    #[error("the sender's device is not trusted")]
    UntrustedSender {
        /// The owner of the session.
        sender: Box<super::SenderData>,
    },
    /// The event was encrypted for another room.
    #[error("the event was encrypted for another room")]
    MismatchedRoom {
        /// The room that it was encrypted for.
        encrypted_for: OwnedRoomId,
    },
    /// It is state inside and not outside, the other way round, or other state.
    #[error("the event is not the state that it says it is")]
    MismatchedState,
    /// Another event used the same message index.
    #[error("the event repeats another")]
    Replay,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an encrypted to-device message was refused.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#validation-of-incoming-decrypted-events>
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RejectedMessage {
    /// It has not the shape of its type.
    #[error("the message is malformed")]
    Malformed,
    /// It is not encrypted with Olm.
    #[error("the message is not encrypted with Olm")]
    NotOlm,
    /// It has no ciphertext for this device.
    #[error("the message is not for this device")]
    NotForUs,
    /// It is of a type that is accepted over Olm only.
    #[error("a message of this type has to be encrypted")]
    NotEncrypted,
    /// It was decrypted before.
    #[error("the message was received before")]
    Replay,
    /// It belongs to a session that does not exist.
    #[error("there is no session for the message")]
    NoSession,
    /// It does not decrypt with the session it belongs to.
    #[error("the message does not decrypt")]
    DecryptionFailed,
    /// The keys inside the pre-key message are not those of the sender it names.
    #[error("the pre-key message was made by another device")]
    MismatchedIdentityKey,
    /// `sender` in the payload is not the sender of the event (check 1).
    #[error("the message names another sender")]
    MismatchedSender,
    /// `keys.ed25519` is not the key of the sending device (check 2).
    #[error("the message names another signing key of its sender")]
    MismatchedSenderKeys,
    /// `recipient` is another user (check 3).
    #[error("the message is for another user")]
    MismatchedRecipient,
    /// `recipient_keys.ed25519` is another device (check 4).
    #[error("the message is for another device")]
    MismatchedRecipientKeys,
    /// `sender_device_keys` contradict the message (check 5).
    #[error("the message carries device keys that are not its sender's")]
    MismatchedDeviceKeys,
    /// `sender_device_keys` are not signed by their own key (check 5.4).
    #[error("the message carries device keys that are not signed")]
    UnsignedDeviceKeys,
    /// The room key inside is not usable.
    #[error("the room key is invalid")]
    InvalidRoomKey,
    /// A forwarded key or secret that nobody asked for.
    #[error("the message was not asked for")]
    Unsolicited,
}

/// Why somebody does not give us a key.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mroom_keywithheld>
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WithheldCode {
    /// This device is blocked.
    #[serde(rename = "m.blacklisted")]
    Blacklisted,
    /// This device is not verified.
    #[serde(rename = "m.unverified")]
    Unverified,
    /// We were not in the room.
    #[serde(rename = "m.unauthorised")]
    Unauthorised,
    /// The device asked has no such key.
    #[serde(rename = "m.unavailable")]
    Unavailable,
    /// No Olm session could be made with us.
    #[serde(rename = "m.no_olm")]
    NoOlm,
    /// The sender did not mark the key as shareable.
    #[serde(rename = "m.history_not_shared")]
    HistoryNotShared,
    /// A reason that this version does not know.
    #[serde(other)]
    Other,
}
