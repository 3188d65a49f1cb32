//! [Keys](https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption) of devices and users.

use std::collections::BTreeMap;

use axum::extract::State;
use ruma::{
    OwnedServerName,
    api::{
        client::keys::{
            claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures,
            upload_signing_keys,
        },
        error::ErrorKind,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reauthentication::reauthenticate;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, Plain},
    },
    service::{
        e2e_keys::{
            E2eKeys,
            cross_signing::{Consent, CrossSigningError, NewCrossSigningKeys},
            signatures::SignatureFailure,
            upload::{Upload, UploadError},
        },
        sync::{Sync, SyncToken},
        uia::Uia,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<upload_keys::v3::Request, _, _>(upload_keys)
        .add::<get_keys::v3::Request, _, _>(get_keys)
        .add::<claim_keys::v3::Request, _, _>(claim_keys)
        .add::<get_key_changes::v3::Request, _, _>(get_key_changes)
        .add::<upload_signing_keys::v3::Request, _, _>(upload_signing_keys)
        .add::<upload_signatures::v3::Request, _, _>(upload_signatures)
}

/// 400 `M_INVALID_SIGNATURE`, which ruma has no name for.
fn invalid_signature(message: impl Into<String>) -> MatrixError {
    let kind = ErrorKind::deserialize(json!({ "errcode": "M_INVALID_SIGNATURE" }));
    MatrixError::bad_request(kind.unwrap_or(ErrorKind::InvalidParam), message)
}

impl From<UploadError> for MatrixError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::MalformedDeviceKeys => {
                Self::bad_json("The device keys do not have the form they must have")
            }
            UploadError::NotOwnDevice => {
                Self::invalid_param("The device keys name another user or device")
            }
            UploadError::BadKey { .. } | UploadError::DeviceIdIsKey => {
                Self::invalid_param(error.to_string())
            }
            UploadError::BadSignature { .. } => invalid_signature(error.to_string()),
            UploadError::Immutable => Self::invalid_param("The keys of a device cannot change"),
            // Clients read the two keys in this sentence to tell a lost store from a lost reply.
            UploadError::Exists { key_id, old, new } => Self::invalid_param(format!(
                "One time key {key_id} already exists. Old key: {old}; new key: {new}"
            )),
            UploadError::TooLarge => Self::new(
                http::StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::TooLarge,
                "The keys are too many or too large",
            ),
            UploadError::Storage(error) => error.into(),
        }
    }
}

impl From<CrossSigningError> for MatrixError {
    fn from(error: CrossSigningError) -> Self {
        match error {
            CrossSigningError::Malformed { .. }
            | CrossSigningError::BadKey { .. }
            | CrossSigningError::Reused => Self::invalid_param(error.to_string()),
            CrossSigningError::NamesDevice => Self::forbidden(error.to_string()),
            CrossSigningError::NoMasterKey => {
                Self::bad_request(ErrorKind::MissingParam, "There is no master key")
            }
            CrossSigningError::NotSigned { .. } => invalid_signature(error.to_string()),
            CrossSigningError::Outdated => Self::new(
                http::StatusCode::CONFLICT,
                ErrorKind::Unknown,
                "The keys were replaced in the meantime",
            ),
            CrossSigningError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/keys/upload`
async fn upload_keys(
    State(keys): State<E2eKeys>,
    Authenticated { requester, body }: Authenticated<upload_keys::v3::Request>,
) -> Result<Matrix<upload_keys::v3::Response>, MatrixError> {
    if requester.device().is_none() {
        return Err(MatrixError::bad_request(
            ErrorKind::MissingParam,
            "Keys belong to a device: name it by `device_id`",
        ));
    }
    let upload = Upload {
        device_keys: body.device_keys,
        one_time_keys: body.one_time_keys,
        fallback_keys: body.fallback_keys,
    };
    let counts = keys.upload(&requester, upload).await?;
    Ok(Matrix(upload_keys::v3::Response::new(counts.one_time_keys)))
}

/// `POST /_matrix/client/v3/keys/query`. All parts are in the answer, also where there is nothing in them:
/// clients ask whether there are no failures, not whether they are told of them.
async fn get_keys(
    State(keys): State<E2eKeys>,
    Authenticated { requester, body }: Authenticated<get_keys::v3::Request>,
) -> Result<Plain, MatrixError> {
    let (found, failures) = keys.query(&requester.user_id, body.device_keys).await?;
    Ok(Plain(json!({
        "device_keys": found.device_keys,
        "failures": unreachable(failures),
        "master_keys": found.master_keys,
        "self_signing_keys": found.self_signing_keys,
        "user_signing_keys": found.user_signing_keys,
    })))
}

/// `POST /_matrix/client/v3/keys/claim`
async fn claim_keys(
    State(keys): State<E2eKeys>,
    Authenticated { body, .. }: Authenticated<claim_keys::v3::Request>,
) -> Result<Matrix<claim_keys::v3::Response>, MatrixError> {
    let (claimed, failures) = keys.claim(body.one_time_keys).await?;
    let mut response = claim_keys::v3::Response::new(claimed);
    response.failures = unreachable(failures);
    Ok(Matrix(response))
}

/// Servers that could not be asked.
fn unreachable(servers: Vec<OwnedServerName>) -> BTreeMap<String, Value> {
    let failure = json!({ "errcode": "M_UNREACHABLE", "error": "The server did not answer" });
    let servers = servers.into_iter();
    servers
        .map(|name| (name.to_string(), failure.clone()))
        .collect()
}

/// `GET /_matrix/client/v3/keys/changes`
async fn get_key_changes(
    State(sync): State<Sync>,
    Authenticated { requester, body }: Authenticated<get_key_changes::v3::Request>,
) -> Result<Matrix<get_key_changes::v3::Response>, MatrixError> {
    let wrong = |_| MatrixError::invalid_param("`from` or `to` is not a token of this server");
    let from: SyncToken = body.from.parse().map_err(wrong)?;
    let _: SyncToken = body.to.parse().map_err(wrong)?;
    // What changed after `to` as well is told too early at worst, and again with the next sync.
    let lists = sync
        .device_list_changes(&requester.user_id, from.position)
        .await?;
    Ok(Matrix(get_key_changes::v3::Response::new(
        lists.changed,
        lists.left,
    )))
}

/// `POST /_matrix/client/v3/keys/device_signing/upload`
async fn upload_signing_keys(
    State(keys): State<E2eKeys>,
    State(uia): State<Uia>,
    Authenticated { requester, body }: Authenticated<upload_signing_keys::v3::Request>,
) -> Result<Matrix<upload_signing_keys::v3::Response>, MatrixError> {
    let new = NewCrossSigningKeys {
        master: body.master_key,
        self_signing: body.self_signing_key,
        user_signing: body.user_signing_key,
    };
    let checked = keys.check_cross_signing(&requester.user_id, new).await?;
    if checked.consent == Consent::Needed {
        let purpose = "replace cross-signing keys";
        reauthenticate(&uia, &requester, purpose, body.auth.as_ref()).await?;
    }
    keys.set_cross_signing(checked).await?;
    Ok(Matrix(upload_signing_keys::v3::Response::new()))
}

/// `POST /_matrix/client/v3/keys/signatures/upload`
async fn upload_signatures(
    State(keys): State<E2eKeys>,
    Authenticated { requester, body }: Authenticated<upload_signatures::v3::Request>,
) -> Result<Matrix<upload_signatures::v3::Response>, MatrixError> {
    let failures = keys
        .add_signatures(&requester.user_id, body.signed_keys)
        .await?;
    let mut response = upload_signatures::v3::Response::new();
    for (user_id, keys) in failures {
        let keys = keys
            .into_iter()
            .filter_map(|(key_id, why)| Some((key_id, failure(why)?)));
        response.failures.insert(user_id, keys.collect());
    }
    Ok(Matrix(response))
}

/// A failure with its error code, of which ruma has a name for one only.
fn failure(failure: SignatureFailure) -> Option<upload_signatures::v3::Failure> {
    let errcode = match failure {
        SignatureFailure::NotFound => "M_NOT_FOUND",
        SignatureFailure::Differs | SignatureFailure::InvalidSignature => "M_INVALID_SIGNATURE",
    };
    let json = json!({ "errcode": errcode, "error": failure.to_string() });
    upload_signatures::v3::Failure::deserialize(json).ok()
}
