//! Requests of forms that the specification has deprecated, made into those of today before they are routed.
//! Clients and bridges of today still send them. This is the only place that knows them: without
//! [`with_deprecated_requests`] they are not answered.
//!
//! - Access tokens in the query string
//!   ([spec](https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens)).
//! - The paths of `r0`, from before specifications had versions, and of `media/v1`.
//! - Unstable paths of what became stable long ago.
//! - Users in `auth` without an `identifier`.
//! - Events and redactions without a transaction id, as `POST`.
//! - Server keys by the id of a key: the answer always holds all of them.

use axum::{Router, extract::Request};
use http::{
    HeaderValue, Method, Uri,
    header::AUTHORIZATION,
    uri::{Parts, PathAndQuery},
};
use serde_json::{Value, json};
use tower::util::MapRequest;

use crate::service::accounts::random_id;

/// What came in another place before.
const MOVED: [(&str, &str); 9] = [
    ("/_matrix/client/r0/", "/_matrix/client/v3/"),
    (
        "/_matrix/client/unstable/account/",
        "/_matrix/client/v3/account/",
    ),
    ("/_matrix/client/unstable/keys/", "/_matrix/client/v3/keys/"),
    ("/_matrix/media/r0/", "/_matrix/media/v3/"),
    ("/_matrix/media/v1/config", "/_matrix/media/v3/config"),
    ("/_matrix/media/v1/download", "/_matrix/media/v3/download"),
    (
        "/_matrix/media/v1/preview_url",
        "/_matrix/media/v3/preview_url",
    ),
    ("/_matrix/media/v1/thumbnail", "/_matrix/media/v3/thumbnail"),
    ("/_matrix/media/v1/upload", "/_matrix/media/v3/upload"),
];

/// What asks people to prove who they are.
const WITH_AUTH: [&str; 5] = [
    "/_matrix/client/v3/account/",
    "/_matrix/client/v3/delete_devices",
    "/_matrix/client/v3/devices/",
    "/_matrix/client/v3/keys/device_signing/",
    "/_matrix/client/v3/register",
];

/// The server, and deprecated requests too.
pub(crate) fn with_deprecated_requests(router: Router) -> Router {
    Router::new().fallback_service(MapRequest::new(router, modernize))
}

/// Whether a path of an endpoint is one of those that are answered here.
pub(super) fn is_deprecated(path: &str) -> bool {
    MOVED.iter().any(|(before, _)| path.starts_with(before))
}

fn modernize(mut request: Request) -> Request {
    let path = request.uri().path();
    if path.starts_with("/_matrix/client/") || path.starts_with("/_matrix/media/") {
        take_token(&mut request);
        follow_move(&mut request);
        add_transaction_id(&mut request);
    } else if path.starts_with("/_matrix/key/v2/") {
        drop_key_id(&mut request);
    }
    request
}

/// Names the user in `auth` in the form of today, where an older client says only `user`
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#password-based)).
pub(super) fn modernize_body(path: &str, body: Vec<u8>) -> Vec<u8> {
    if !WITH_AUTH.iter().any(|start| path.starts_with(start)) {
        return body;
    }
    let Ok(mut json) = serde_json::from_slice::<Value>(&body) else {
        return body;
    };
    let user = json["auth"]["user"].clone();
    if user.is_string() && json["auth"]["identifier"].is_null() {
        json["auth"]["identifier"] = json!({ "type": "m.id.user", "user": user });
        return json.to_string().into_bytes();
    }
    body
}

/// Takes an access token out of the query string into its header; a header that is there wins.
fn take_token(request: &mut Request) {
    let Some(query) = request.uri().query() else {
        return;
    };
    let is_token = |part: &&str| part.starts_with("access_token=");
    let Some(token) = query.split('&').find(is_token) else {
        return;
    };
    let token = form_urlencoded::parse(token.as_bytes()).next();
    let token = token.map(|(_, token)| HeaderValue::from_str(&format!("Bearer {token}")));
    let rest: Vec<&str> = query.split('&').filter(|part| !is_token(part)).collect();
    let path = request.uri().path();
    let uri = if rest.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", rest.join("&"))
    };
    set_path(request, &uri);
    if let Some(Ok(mut header)) = token
        && !request.headers().contains_key(AUTHORIZATION)
    {
        header.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, header);
    }
}

fn follow_move(request: &mut Request) {
    let uri = path_and_query(request);
    let moved = MOVED
        .iter()
        .find_map(|(before, now)| Some(format!("{now}{}", uri.strip_prefix(before)?)));
    if let Some(moved) = moved {
        set_path(request, &moved);
    }
}

/// Gives an event that is sent without a transaction id one that no other has.
fn add_transaction_id(request: &mut Request) {
    if request.method() != Method::POST {
        return;
    }
    let path = request.uri().path();
    let Some(parts) = path.strip_prefix("/_matrix/client/v3/rooms/") else {
        return;
    };
    let parts: Vec<&str> = parts.split('/').collect();
    if let [_, "send" | "redact", what] = parts.as_slice()
        && !what.is_empty()
    {
        let query = request.uri().query();
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let uri = format!("{path}/{}{query}", random_id());
        set_path(request, &uri);
        *request.method_mut() = Method::PUT;
    }
}

fn drop_key_id(request: &mut Request) {
    let path = request.uri().path().to_owned();
    let rest = path.trim_start_matches("/_matrix/key/v2/");
    let parts: Vec<&str> = rest.split('/').collect();
    let path = match parts.as_slice() {
        ["server", key] if !key.is_empty() => "/_matrix/key/v2/server".to_owned(),
        ["query", server, key] if !key.is_empty() => format!("/_matrix/key/v2/query/{server}"),
        _ => return,
    };
    let query = request.uri().query();
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    set_path(request, &format!("{path}{query}"));
}

fn path_and_query(request: &Request) -> String {
    let parts = request.uri().path_and_query();
    parts.map_or_else(String::new, |parts| parts.as_str().to_owned())
}

/// Changes path and query. They are made of parts of the former ones, so they are well-formed; were they not,
/// the request stays as it is.
fn set_path(request: &mut Request, path: &str) {
    let mut parts: Parts = request.uri().clone().into_parts();
    if let Ok(path) = path.parse::<PathAndQuery>() {
        parts.path_and_query = Some(path);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use axum::body::Body;

    use super::*;

    fn modern(method: Method, uri: &str) -> (String, String, Option<String>) {
        let request = http::Request::builder().method(method).uri(uri);
        let request = modernize(request.body(Body::empty()).unwrap());
        let header = request.headers().get(AUTHORIZATION);
        let header = header.map(|header| header.to_str().unwrap().to_owned());
        (
            request.method().to_string(),
            path_and_query(&request),
            header,
        )
    }

    #[test]
    fn tokens_go_into_their_header() {
        for (before, now, token) in [
            ("sync?access_token=a%2Bb", "sync", "Bearer a+b"),
            (
                "sync?since=s1&access_token=t&timeout=0",
                "sync?since=s1&timeout=0",
                "Bearer t",
            ),
        ] {
            let before = format!("/_matrix/client/v3/{before}");
            let (_, uri, header) = modern(Method::GET, &before);
            assert_eq!(uri, format!("/_matrix/client/v3/{now}"));
            assert_eq!(header.as_deref(), Some(token));
        }
        let federation = "/_matrix/federation/v1/version?access_token=t";
        assert_eq!(modern(Method::GET, federation).2, None);
    }

    #[test]
    fn events_get_a_transaction_id() {
        let (method, uri, _) = modern(
            Method::POST,
            "/_matrix/client/r0/rooms/!r%2F:a/send/m.room.message?access_token=t",
        );
        let start = "/_matrix/client/v3/rooms/!r%2F:a/send/m.room.message/";
        assert_eq!(method, "PUT");
        assert!(uri.len() > start.len() && uri.starts_with(start), "{uri}");
        let invite = "/_matrix/client/v3/rooms/!r:a/invite";
        assert_eq!(modern(Method::POST, invite).0, "POST");
    }
}
