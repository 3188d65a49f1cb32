//! [Request authentication](https://spec.matrix.org/v1.19/server-server-api/#request-authentication).

use axum::extract::{FromRef, FromRequest, Request};
use http::StatusCode;
use ruma::{
    CanonicalJsonValue, OwnedServerName,
    api::{IncomingRequest, error::ErrorKind, federation::authentication::ServerSignatures},
};
use serde::de::DeserializeOwned;
use sotto_federation::x_matrix::{XMatrix, XMatrixError};

use crate::{
    api::{
        error::MatrixError,
        extract::{parse, parse_json, read},
    },
    service::{server_keys::ServerKeys, transactions::Transactions},
};

/// A request that another server signed.
pub(super) struct Signed<T> {
    /// Who sent it.
    pub(super) origin: OwnedServerName,
    pub(super) body: T,
}

impl<S, T> FromRequest<S> for Signed<T>
where
    T: IncomingRequest<Authentication = ServerSignatures>,
    ServerKeys: FromRef<S>,
    Transactions: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (origin, request, path) = authenticated(request, state).await?;
        let body = parse(&request, &path).map_err(|error| or_not_canonical(error, &request))?;
        Ok(Self { origin, body })
    }
}

/// A request that another server signed, for which ruma has a type that is stricter than servers are.
pub(super) struct SignedJson {
    /// Who sent it.
    pub(super) origin: OwnedServerName,
    /// The parameters of the path, in order.
    pub(super) path: Vec<String>,
    request: http::Request<Vec<u8>>,
}

impl SignedJson {
    /// Reads the body.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, MatrixError> {
        parse_json(self.request.body()).map_err(|error| or_not_canonical(error, &self.request))
    }
}

impl<S> FromRequest<S> for SignedJson
where
    ServerKeys: FromRef<S>,
    Transactions: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (origin, request, path) = authenticated(request, state).await?;
        Ok(Self {
            origin,
            path,
            request,
        })
    }
}

/// Who signed a request, what it says, and the parameters of its path.
async fn authenticated<S>(
    request: Request,
    state: &S,
) -> Result<(OwnedServerName, http::Request<Vec<u8>>, Vec<String>), MatrixError>
where
    ServerKeys: FromRef<S>,
    Transactions: FromRef<S>,
    S: Send + Sync,
{
    let (request, path) = read(request, state).await?;
    let keys = ServerKeys::from_ref(state);
    let us = Transactions::from_ref(state);
    let origin = authenticate(&request, &keys, us.server_name()).await?;
    Ok((origin, request, path))
}

/// What servers cannot sign is no JSON to them, whatever else is wrong.
fn or_not_canonical(error: MatrixError, request: &http::Request<Vec<u8>>) -> MatrixError {
    if is_canonical(request.body()) {
        error
    } else {
        MatrixError::bad_json("The body of the request is not canonical JSON")
    }
}

fn is_canonical(body: &[u8]) -> bool {
    body.is_empty() || serde_json::from_slice::<CanonicalJsonValue>(body).is_ok()
}

/// Who signed a request. One of the headers has to be right, if there are several.
async fn authenticate(
    request: &http::Request<Vec<u8>>,
    keys: &ServerKeys,
    us: &ruma::ServerName,
) -> Result<OwnedServerName, MatrixError> {
    let uri = request
        .uri()
        .path_and_query()
        .map_or("/", |path_and_query| path_and_query.as_str());
    let headers = request.headers().get_all(http::header::AUTHORIZATION);
    let parsed = headers
        .iter()
        .filter_map(|header| Some(XMatrix::parse(header.to_str().ok()?)));
    let parsed: Vec<_> = parsed.take(4).collect();
    let malformed =
        |parsed: &Result<_, XMatrixError>| matches!(parsed, Err(XMatrixError::Malformed));
    if !parsed.is_empty() && parsed.iter().all(malformed) {
        return Err(MatrixError::bad_request(
            ErrorKind::Unauthorized,
            "The `Authorization` header is malformed",
        ));
    }
    for credentials in parsed.into_iter().flatten() {
        let origin = credentials.origin();
        if origin == us {
            continue;
        }
        let Some(key) = keys.for_request(origin, credentials.key_id()).await? else {
            continue;
        };
        let method = request.method().as_str();
        match credentials.verify(method, uri, request.body(), us, &key) {
            Ok(()) => {
                keys.heard_from(origin);
                return Ok(origin.to_owned());
            }
            Err(error) => tracing::debug!(%origin, %error, "a request was not authenticated"),
        }
    }
    Err(MatrixError::new(
        StatusCode::UNAUTHORIZED,
        ErrorKind::Unauthorized,
        "The request is not signed by the server that it claims to come from",
    ))
}
