//! From HTTP to ruma's types and back.

use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::{
    body::Body,
    extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request},
    response::{IntoResponse, Response},
};
use http::header::AUTHORIZATION;
use http_body_util::{BodyExt, Limited};
use ruma::api::{
    IncomingRequest, IncomingRequestExt, OutgoingResponse, OutgoingResponseExt,
    auth_scheme::AccessToken, error::ErrorKind,
};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{error::MatrixError, legacy, masquerade::Mask, rate_limits, standing};
use crate::service::accounts::{Accounts, Requester, sessions::Bearer};

/// The largest body of a request that is not an upload, in bytes: a federation transaction of fifty
/// events of the largest size fits.
const MAX_BODY: usize = 10 * 1024 * 1024;

/// How deep the JSON of a request may be nested. Much of it is kept as it came and given to others, whose
/// parsers have limits of their own (often 128).
const MAX_NESTING: usize = 100;

/// A request that needs no authentication.
pub(crate) struct Anonymous<T>(pub(crate) T);

/// A request by a user.
pub(crate) struct Authenticated<T> {
    pub(crate) requester: Requester,
    pub(crate) body: T,
}

/// A request by a user, or by somebody who does not say who they are.
pub(crate) struct MaybeAuthenticated<T> {
    pub(crate) requester: Option<Requester>,
    pub(crate) body: T,
}

/// A request by a user, and all that is in its body.
pub(crate) struct WithJson<T> {
    pub(crate) requester: Requester,
    pub(crate) body: T,
    pub(crate) json: serde_json::Map<String, serde_json::Value>,
}

/// A response of ruma.
pub(crate) struct Matrix<T>(pub(crate) T);

impl<T: OutgoingResponse> IntoResponse for Matrix<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<Vec<u8>>() {
            Ok(response) => response.map(Body::from),
            Err(error) => MatrixError::internal(&error).into_response(),
        }
    }
}

/// A request by a user that ruma has no type for.
pub(crate) struct Raw {
    pub(crate) requester: Requester,
    pub(crate) request: http::Request<Vec<u8>>,
}

impl<S> FromRequest<S> for Raw
where
    Accounts: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let requester = requester(&request, state).await?;
        let (request, _) = read(request, state).await?;
        Ok(Self { requester, request })
    }
}

/// A response for which ruma has no type, or one that says less.
pub(crate) struct Plain(pub(crate) serde_json::Value);

impl IntoResponse for Plain {
    fn into_response(self) -> Response {
        let json = http::HeaderValue::from_static("application/json");
        ([(http::header::CONTENT_TYPE, json)], self.0.to_string()).into_response()
    }
}

impl<S, T> FromRequest<S> for Anonymous<T>
where
    T: IncomingRequest,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (request, path) = read(request, state).await?;
        Ok(Self(parse(&request, &path)?))
    }
}

impl<S, T> FromRequest<S> for Authenticated<T>
where
    T: IncomingRequest<Authentication = AccessToken>,
    Accounts: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let requester = requester(&request, state).await?;
        let (request, path) = read(request, state).await?;
        Ok(Self {
            requester,
            body: parse(&request, &path)?,
        })
    }
}

impl<S, T> FromRequest<S> for WithJson<T>
where
    T: IncomingRequest<Authentication = AccessToken>,
    Accounts: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let requester = requester(&request, state).await?;
        let (request, path) = read(request, state).await?;
        Ok(Self {
            requester,
            body: parse(&request, &path)?,
            json: object(request.body())?,
        })
    }
}

impl<S, T> FromRequest<S> for MaybeAuthenticated<T>
where
    T: IncomingRequest,
    Accounts: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let requester = if request.headers().contains_key(AUTHORIZATION) {
            Some(requester(&request, state).await?)
        } else {
            None
        };
        let (request, path) = read(request, state).await?;
        Ok(Self {
            requester,
            body: parse(&request, &path)?,
        })
    }
}

/// A request by a user for which ruma has no type, or one that is stricter than clients are.
pub(crate) struct Untyped {
    pub(crate) requester: Requester,
    pub(crate) method: http::Method,
    /// The parameters of the path, in order.
    pub(crate) path: Vec<String>,
    query: Vec<(String, String)>,
    /// The body; empty if there was none.
    pub(crate) body: serde_json::Map<String, serde_json::Value>,
}

impl Untyped {
    /// A parameter of the query.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All parameters of the query.
    pub(crate) fn all_of_query(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.query.iter();
        pairs.map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<S> FromRequest<S> for Untyped
where
    Accounts: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let requester = requester(&request, state).await?;
        let (request, path) = read(request, state).await?;
        let query = request.uri().query().unwrap_or_default();
        let query = form_urlencoded::parse(query.as_bytes()).into_owned();
        Ok(Self {
            requester,
            method: request.method().clone(),
            path,
            query: query.collect(),
            body: object(request.body())?,
        })
    }
}

/// The body of a request that nobody has to be known for.
pub(super) async fn json_body<T: DeserializeOwned>(request: Request) -> Result<T, MatrixError> {
    let (request, _) = read(request, &()).await?;
    parse_json(request.body())
}

/// A body that may be left out.
fn object(body: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, MatrixError> {
    if body.is_empty() {
        Ok(serde_json::Map::new())
    } else {
        parse_json(body)
    }
}

pub(super) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, MatrixError> {
    json(body)?;
    serde_json::from_slice(body).map_err(|_| {
        MatrixError::bad_json("The body of the request does not have the form it must have")
    })
}

/// Who an access token speaks for, if they may ask for this. Holds on to nothing of the request, whose body
/// cannot be shared between threads.
pub(super) fn requester<S>(
    request: &Request,
    state: &S,
) -> impl Future<Output = Result<Requester, MatrixError>> + use<S>
where
    Accounts: FromRef<S>,
{
    let accounts = Accounts::from_ref(state);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let token = bearer(request).map(Zeroizing::new);
    let mask = Mask::of(request.uri());
    async move {
        let token = token?;
        if let Some(service) = accounts.appservices().by_token(&token) {
            return mask.requester(&accounts, &service, &method, &path).await;
        }
        match accounts.authenticate(&token).await? {
            Bearer::Known(known) => {
                standing::check(&known, &method, &path)?;
                let limits = accounts.rate_limits();
                rate_limits::by_user(limits, &known.requester.user_id, &method, &path)?;
                Ok(known.requester)
            }
            Bearer::Expired => Err(MatrixError::expired_token()),
            Bearer::Unknown => Err(MatrixError::unknown_token()),
        }
    }
}

/// The access token of a request
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens)).
pub(super) fn bearer<B>(request: &http::Request<B>) -> Result<String, MatrixError> {
    let header = request.headers().get(AUTHORIZATION);
    let token = header.and_then(|header| header.to_str().ok()?.strip_prefix("Bearer "));
    token
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
        .ok_or_else(MatrixError::missing_token)
}

/// Reads the body, up to [`MAX_BODY`], and the parts of the path.
pub(super) async fn read<S: Send + Sync>(
    request: Request,
    state: &S,
) -> Result<(http::Request<Vec<u8>>, Vec<String>), MatrixError> {
    let (mut parts, body) = request.into_parts();
    let path = RawPathParams::from_request_parts(&mut parts, state)
        .await
        .map_err(|_| MatrixError::invalid_param("The path is not UTF-8"))?;
    let path: Vec<String> = path.iter().map(|(_, value)| value.to_owned()).collect();
    if path.iter().any(|part| part.contains('\0')) {
        return Err(MatrixError::invalid_param(
            "The path contains a null character",
        ));
    }
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                MatrixError::new(
                    http::StatusCode::PAYLOAD_TOO_LARGE,
                    ErrorKind::TooLarge,
                    "The request is too large",
                )
            } else {
                MatrixError::bad_json("The request ended too early")
            }
        })?;
    let body = legacy::modernize_body(parts.uri.path(), body.to_bytes().to_vec());
    Ok((http::Request::from_parts(parts, body), path))
}

pub(super) fn parse<T: IncomingRequest>(
    request: &http::Request<Vec<u8>>,
    path: &[String],
) -> Result<T, MatrixError> {
    // ruma reads only what it needs; what is kept as it came must be readable by everybody who gets it. An array
    // can stand for an object where its order is that of the fields.
    if !request.body().is_empty() {
        json(request.body())?;
    }
    let parsed = parse_body(request, request.body(), path);
    // Clients leave a body out of which every part is optional; not all of ruma's types expect it.
    if parsed.is_err() && request.body().is_empty() && request.method() == http::Method::POST {
        return parse_body(request, b"{}", path).or(parsed);
    }
    parsed
}

/// The parameters of a query, decoded.
pub(super) fn query(uri: &http::Uri) -> Vec<(String, String)> {
    let url = format!("http://localhost/?{}", uri.query().unwrap_or_default());
    let url = reqwest::Url::parse(&url).ok();
    let pairs = url.iter().flat_map(reqwest::Url::query_pairs);
    pairs
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}

/// A body that ruma has no type for: an object.
pub(super) fn json(body: &[u8]) -> Result<serde_json::Value, MatrixError> {
    if nesting(body) > MAX_NESTING {
        return Err(MatrixError::bad_json(
            "The body of the request is nested too deeply",
        ));
    }
    let not_json = |_| {
        let sentence = "The body of the request is not JSON";
        MatrixError::bad_request(ErrorKind::NotJson, sentence)
    };
    let value: serde_json::Value = serde_json::from_slice(body).map_err(not_json)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(MatrixError::bad_json("The body must be an object"))
    }
}

fn parse_body<T: IncomingRequest>(
    request: &http::Request<Vec<u8>>,
    body: &[u8],
    path: &[String],
) -> Result<T, MatrixError> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let mut borrowed = http::Request::new(body);
    borrowed.method_mut().clone_from(request.method());
    borrowed.uri_mut().clone_from(request.uri());
    borrowed.headers_mut().clone_from(request.headers());
    // ruma's types are generated; the one for login panics where `type` is missing.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        T::try_from_http_request(borrowed, &path)
    }));
    let wrong = |_| MatrixError::bad_json("The body of the request is malformed");
    Ok(parsed.map_err(wrong)??)
}

/// How deep arrays and objects are nested in a JSON text.
fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use ruma::api::client::membership::join_room_by_id_or_alias;

    use super::*;

    fn post<T: IncomingRequest>(path: &str, body: &str) -> Result<T, MatrixError> {
        let request = http::Request::post("/").body(body.into()).unwrap();
        parse(&request, &[path.to_owned()])
    }

    /// matrix-nio joins rooms like this.
    #[test]
    fn a_body_of_optional_parts_may_be_left_out() {
        let join = post::<join_room_by_id_or_alias::v3::Request>;
        assert_eq!(join("!room:example.org", "").unwrap().reason, None);
        assert!(join("!room:example.org", "[").is_err());
    }

    #[test]
    fn nesting_counts_brackets_outside_of_strings() {
        assert_eq!(nesting(br#"{"a":[1,{"b":"]}[[[\"{"}],"c":[]}"#), 3);
        assert_eq!(nesting(b"not json"), 0);
        assert_eq!(nesting(&[b'['; 5_000]), 5_000);
    }
}
