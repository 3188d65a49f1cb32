//! What guests, suspended and locked accounts may ask for.

use http::{Method, StatusCode};
use ruma::api::error::ErrorKind;

use super::error::MatrixError;
use crate::service::accounts::sessions::Known;

/// What guests may ask for, by method and path after the version
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#guest-access)); beyond the specification
/// what any client needs to run at all.
const GUESTS: &[(&str, &str)] = &[
    ("GET", "account/whoami"),
    ("GET", "capabilities"),
    ("GET", "devices"),
    ("GET", "devices/*"),
    ("PUT", "devices/*"),
    ("GET", "directory/room/*"),
    ("GET", "events"),
    ("GET", "events/*"),
    ("GET", "initialSync"),
    ("GET", "joined_rooms"),
    ("POST", "join/*"),
    ("POST", "keys/claim"),
    ("POST", "keys/query"),
    ("POST", "keys/upload"),
    ("POST", "logout"),
    ("POST", "logout/all"),
    ("GET", "media/config"),
    ("GET", "media/download/*/*"),
    ("GET", "media/download/*/*/*"),
    ("GET", "media/thumbnail/*/*"),
    ("GET", "profile/*"),
    ("GET", "profile/*/*"),
    ("PUT", "profile/*/displayname"),
    ("DELETE", "profile/*/displayname"),
    ("GET", "publicRooms"),
    ("POST", "publicRooms"),
    ("GET", "pushrules/"),
    ("GET", "rooms/*/context/*"),
    ("GET", "rooms/*/event/*"),
    ("GET", "rooms/*/initialSync"),
    ("POST", "rooms/*/join"),
    ("GET", "rooms/*/joined_members"),
    ("POST", "rooms/*/leave"),
    ("GET", "rooms/*/members"),
    ("GET", "rooms/*/messages"),
    ("POST", "rooms/*/read_markers"),
    ("POST", "rooms/*/receipt/*/*"),
    ("PUT", "rooms/*/send/*/*"),
    ("GET", "rooms/*/state"),
    ("GET", "rooms/*/state/*"),
    ("GET", "rooms/*/state/*/*"),
    ("PUT", "rooms/*/state/*"),
    ("PUT", "rooms/*/state/*/*"),
    ("PUT", "rooms/*/typing/*"),
    ("PUT", "sendToDevice/*/*"),
    ("GET", "sync"),
    ("POST", "user/*/filter"),
    ("GET", "user/*/filter/*"),
    ("GET", "user/*/account_data/*"),
    ("PUT", "user/*/account_data/*"),
];

/// What suspended accounts may not ask for
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#account-suspension)).
const NOT_WHILE_SUSPENDED: &[(&str, &str)] = &[
    ("POST", "createRoom"),
    ("PUT", "directory/list/room/*"),
    ("PUT", "directory/room/*"),
    ("POST", "join/*"),
    ("POST", "knock/*"),
    ("POST", "media/upload"),
    ("POST", "upload"),
    ("POST", "create"),
    ("PUT", "upload/*/*"),
    ("PUT", "presence/*/status"),
    ("PUT", "profile/*/*"),
    ("DELETE", "profile/*/*"),
    ("POST", "rooms/*/ban"),
    ("POST", "rooms/*/invite"),
    ("POST", "rooms/*/join"),
    ("POST", "rooms/*/kick"),
    ("PUT", "rooms/*/send/*/*"),
    ("PUT", "rooms/*/state/*"),
    ("PUT", "rooms/*/state/*/*"),
    ("PUT", "rooms/*/typing/*"),
    ("POST", "rooms/*/unban"),
    ("POST", "rooms/*/upgrade"),
];

/// Refuses what the account may not ask for.
pub(super) fn check(known: &Known, method: &Method, path: &str) -> Result<(), MatrixError> {
    let path = after_version(path);
    let leaving = path == "logout" || path == "logout/all";
    if known.standing.locked && !leaving {
        return Err(locked());
    }
    if known.standing.suspended && listed(NOT_WHILE_SUSPENDED, method, path) {
        return Err(MatrixError::new(
            StatusCode::FORBIDDEN,
            ErrorKind::UserSuspended,
            "You cannot do this while your account is suspended",
        ));
    }
    if known.is_guest() && !listed(GUESTS, method, path) {
        return Err(no_guests());
    }
    Ok(())
}

/// 403 `M_GUEST_ACCESS_FORBIDDEN`
pub(super) fn no_guests() -> MatrixError {
    MatrixError::new(
        StatusCode::FORBIDDEN,
        ErrorKind::GuestAccessForbidden,
        "Guests may not do this",
    )
}

/// 401 `M_USER_LOCKED`, with which the client keeps its session
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#account-locking)).
pub(super) fn locked() -> MatrixError {
    MatrixError::new(
        StatusCode::UNAUTHORIZED,
        ErrorKind::UserLocked,
        "This account has been locked",
    )
}

/// The part of a path after `/_matrix/client/v3/`.
pub(super) fn after_version(path: &str) -> &str {
    path.splitn(5, '/').nth(4).unwrap_or("")
}

pub(super) fn listed(list: &[(&str, &str)], method: &Method, path: &str) -> bool {
    list.iter()
        .any(|(m, pattern)| method == *m && matches(pattern, path))
}

/// Whether a path fits a pattern, in which `*` is any one segment.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(p), Some(s)) if p == s => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert_eq!(
            after_version("/_matrix/client/v3/rooms/!a/leave"),
            "rooms/!a/leave"
        );
        assert!(matches("rooms/*/leave", "rooms/!a/leave"));
        assert!(!matches("rooms/*", "rooms/!a/leave"));
        assert!(!matches("rooms/*/leave", "rooms/!a"));
        assert!(listed(GUESTS, &Method::PUT, "profile/@a:b/displayname"));
        assert!(!listed(GUESTS, &Method::PUT, "profile/@a:b/avatar_url"));
    }
}
