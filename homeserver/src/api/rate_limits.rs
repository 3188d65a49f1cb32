//! Refusing those who ask too often
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#rate-limiting)).

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode};
use ruma::{
    UserId,
    api::error::{ErrorKind, LimitExceededErrorData, RetryAfter},
};

use super::{
    Edge,
    error::MatrixError,
    masquerade::calling_service,
    standing::{after_version, listed},
};
use crate::{
    listen::Peer,
    service::rate_limits::{Action, Asker, RateLimits, TooOften},
};

/// What is counted by address, because nobody is logged in.
const BY_ADDRESS: &[(Action, &[(&str, &str)])] = &[
    (Action::Login, &[("POST", "login"), ("POST", "refresh")]),
    (Action::Registration, &[("POST", "register")]),
    (
        Action::Verification,
        &[
            ("POST", "account/3pid/*/requestToken"),
            ("POST", "account/password/*/requestToken"),
            ("POST", "register/*/requestToken"),
        ],
    ),
];

/// What is counted by user.
const BY_USER: &[(Action, &[(&str, &str)])] = &[
    (
        Action::Message,
        &[
            ("PUT", "rooms/*/send/*/*"),
            ("PUT", "rooms/*/state/*"),
            ("PUT", "rooms/*/state/*/*"),
            ("PUT", "rooms/*/redact/*/*"),
            ("POST", "rooms/*/send/*"),
            ("POST", "rooms/*/redact/*"),
        ],
    ),
    (
        Action::Join,
        &[
            ("POST", "join/*"),
            ("POST", "knock/*"),
            ("POST", "rooms/*/join"),
        ],
    ),
    (
        Action::Invite,
        &[
            ("POST", "createRoom"),
            ("POST", "rooms/*/invite"),
            ("POST", "rooms/*/upgrade"),
        ],
    ),
    (
        Action::Report,
        &[
            ("POST", "rooms/*/report"),
            ("POST", "rooms/*/report/*"),
            ("POST", "users/*/report"),
        ],
    ),
];

impl From<TooOften> for MatrixError {
    fn from(error: TooOften) -> Self {
        let mut data = LimitExceededErrorData::new();
        data.retry_after = Some(RetryAfter::Delay(error.retry_after));
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::LimitExceeded(data),
            "Too many requests; wait a little",
        )
    }
}

/// Counts what is asked for without an account.
pub(super) async fn by_address(State(edge): State<Edge>, request: Request, next: Next) -> Response {
    let limits = &edge.rate_limits;
    if let Some(action) = action(BY_ADDRESS, request.method(), request.uri().path())
        && let Some(address) = address(&request)
        && calling_service(&edge.appservices, request.headers()).is_none()
        && let Err(error) = limits.take(action, Asker::at(address))
    {
        return MatrixError::from(error).into_response();
    }
    next.run(request).await
}

/// Counts what a user asks for.
pub(super) fn by_user(
    limits: &RateLimits,
    user_id: &UserId,
    method: &Method,
    path: &str,
) -> Result<(), TooOften> {
    match action(BY_USER, method, path) {
        Some(action) => limits.take(action, Asker::User(user_id.to_owned())),
        None => Ok(()),
    }
}

fn action(lists: &[(Action, &[(&str, &str)])], method: &Method, path: &str) -> Option<Action> {
    if method == Method::GET {
        return None;
    }
    let path = after_version(path);
    let mut lists = lists.iter();
    let found = lists.find(|(_, list)| listed(list, method, path))?;
    Some(found.0)
}

/// Where a request comes from.
fn address(request: &Request) -> Option<IpAddr> {
    let Peer(peer) = request.extensions().get::<Peer>()?;
    Some(behind_proxy(*peer, request.headers()))
}

/// A reverse proxy on the same machine is believed when it says for whom it asks; the last address is the
/// one that it added itself.
fn behind_proxy(peer: SocketAddr, headers: &HeaderMap) -> IpAddr {
    let peer = peer.ip().to_canonical();
    if !peer.is_loopback() {
        return peer;
    }
    let forwarded = headers.get_all("x-forwarded-for").iter().next_back();
    let last = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    last.and_then(|last| last.trim().parse().ok())
        .unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn only_a_proxy_on_this_machine_is_believed() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "203.0.113.9, 192.0.2.7".parse().unwrap());
        let from = |peer: &str| behind_proxy(peer.parse().unwrap(), &headers).to_string();
        assert_eq!(from("127.0.0.1:1"), "192.0.2.7");
        assert_eq!(from("[::1]:1"), "192.0.2.7");
        assert_eq!(from("198.51.100.1:1"), "198.51.100.1");
    }

    #[test]
    fn requests_are_told_apart() {
        let login = action(BY_ADDRESS, &Method::POST, "/_matrix/client/r0/login");
        assert_eq!(login, Some(Action::Login));
        let get = action(BY_ADDRESS, &Method::GET, "/_matrix/client/v3/login");
        assert_eq!(get, None);
        let path = "/_matrix/client/v3/rooms/!a/send/m.room.message/1";
        assert_eq!(action(BY_USER, &Method::PUT, path), Some(Action::Message));
    }
}
