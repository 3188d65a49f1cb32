//! End-to-end encryption as a machine without network I/O.
//!
//! [`Machine`] takes what a sync brought ([`Machine::receive_sync_changes`]) and says what has to
//! be sent ([`Machine::outgoing_requests`]); the caller sends it and reports the answer
//! ([`Machine::mark_request_as_sent`]). Between these calls nothing lives in memory that is not in
//! the store: a machine that is dropped at any point and opened again goes on where it was.
//!
//! vodozemac gives the primitives. The rules on top, about who may claim what, are here; each one
//! has a test that breaks it:
//! - a device's keys never change once they are known;
//! - a one-time key counts only with the signature of the device's pinned key;
//! - the payload of an Olm message has to name us, its sender and both keys correctly;
//! - room keys arrive over Olm only, and a room key makes its sender the owner of the session;
//! - an event is decrypted only for the owner of its session, in its room, once per index;
//! - a room that was encrypted once stays encrypted;
//! - only devices for which their user's identity vouches get keys, and no identity is replaced
//!   behind the user's back.

mod account;
mod backup;
mod cache;
mod cross_signing;
mod decrypt;
mod devices;
mod emoji;
mod error;
mod exceptions;
mod history;
mod identity;
mod identity_keys;
mod key_export;
mod keys;
mod machine;
mod megolm;
mod olm;
mod outbound;
mod outbox;
mod payload;
mod query;
mod requests;
mod rotation;
mod sas;
mod secret;
mod secret_sharing;
mod secret_storage;
mod share;
mod symmetric;
mod to_device;
mod trust;
mod unwedge;
mod verification;
mod withheld;

#[cfg(test)]
mod tests;

pub(crate) use self::outbound::{ENCRYPT_STATE, packed_state_key};
pub use self::{
    backup::BackupUpload,
    cross_signing::Bootstrap,
    decrypt::DecryptedEvent,
    devices::{Device, LocalTrust},
    emoji::{Emoji, ShortAuthString},
    error::{
        BackupError, BundleError, DecryptError, EncryptError, KeyFileError, MachineError,
        MarkError, OpenError, RejectedMessage, ShareError, SigningError, VerificationError,
        WithheldCode,
    },
    history::{KeyBundle, KeyBundleNotice},
    identity::IdentityState,
    key_export::ExportedRoomKey,
    keys::SignatureError,
    machine::Machine,
    requests::{Alarm, Failure, OutgoingRequest, Request, Response},
    sas::CancelReason,
    secret::Secret,
    secret_storage::{KeyDescription, SecretStorageError, StorageKey},
    share::Share,
    to_device::{
        HistorySharing, InboxItem, RejectedToDevice, RoomChange, RoomKeyInfo, SyncChanges,
        SyncOutcome, ToDeviceEvent,
    },
    trust::{SenderData, SenderTrust, SharePolicy, Shield, TrustRequirement},
    verification::{InRoom, QrSupport, RoomVerificationMessage, Verification, VerificationPhase},
};
