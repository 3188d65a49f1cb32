//! What the machine wants to be sent.

use ruma::{
    OwnedDeviceId, OwnedTransactionId, OwnedUserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys, upload_signatures, upload_signing_keys},
        to_device::send_event_to_device,
    },
};

/// A request, to be reported back by its id.
#[derive(Debug, Clone)]
pub struct OutgoingRequest {
    /// Names the request in [`Machine::mark_request_as_sent`](super::Machine::mark_request_as_sent).
    pub id: OwnedTransactionId,
    /// The request.
    pub request: Request,
}

/// The endpoints that the machine uses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Request {
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload>
    KeysUpload(upload_keys::v3::Request),
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery>
    KeysQuery(get_keys::v3::Request),
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysclaim>
    KeysClaim(claim_keys::v3::Request),
    /// May need authentication.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>
    SigningKeysUpload(upload_signing_keys::v3::Request),
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload>
    SignaturesUpload(upload_signatures::v3::Request),
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3sendtodeviceeventtypetxnid>
    ToDevice(send_event_to_device::v3::Request),
}

/// The answers to them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Response {
    /// Keys were uploaded.
    KeysUpload(upload_keys::v3::Response),
    /// Device keys were found.
    KeysQuery(get_keys::v3::Response),
    /// One-time keys were claimed.
    KeysClaim(claim_keys::v3::Response),
    /// Cross-signing keys were accepted.
    SigningKeysUpload(upload_signing_keys::v3::Response),
    /// Signatures were taken, or not.
    SignaturesUpload(upload_signatures::v3::Response),
    /// Messages were accepted.
    ToDevice(send_event_to_device::v3::Response),
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It may work later; the same request will be offered again.
    Temporary,
    /// The server refuses it and would refuse it again.
    Permanent,
    /// The server has a different one-time key under one of the uploaded ids: somebody else uses
    /// a copy of this store.
    OneTimeKeyExists,
}

/// Something that the user of this device should be told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alarm {
    /// The server serves different keys for a device than before. They were refused.
    DeviceKeysChanged {
        /// The user.
        user_id: OwnedUserId,
        /// The device.
        device_id: OwnedDeviceId,
    },
    /// The server serves other keys for this device than its own. Nothing is shared any more.
    OwnDeviceMismatch,
    /// A user whom nobody verified has another identity, or none any more. Nothing is sent to the
    /// user until somebody says that this is all right.
    IdentityChanged {
        /// The user.
        user_id: OwnedUserId,
    },
    /// A user who was verified has another identity. Nothing is sent to the user.
    VerifiedIdentityChanged {
        /// The user.
        user_id: OwnedUserId,
    },
    /// The server shows another identity for the own user. Nothing is shared any more.
    OwnIdentityChanged,
    /// Another program uses a copy of this store; both will fail to decrypt.
    StoreForked,
    /// The server hands out nothing but the fallback key of a device, time after time: what begins a
    /// session with it stays readable for who steals that key later.
    OnlyFallbackKeys {
        /// The user.
        user_id: OwnedUserId,
        /// The device.
        device_id: OwnedDeviceId,
    },
}
