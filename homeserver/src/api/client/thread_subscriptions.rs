//! Which threads a user follows
//! ([MSC4306](https://github.com/matrix-org/matrix-spec-proposals/pull/4306),
//! [MSC4308](https://github.com/matrix-org/matrix-spec-proposals/pull/4308)).

use axum::{extract::State, routing::get};
use http::StatusCode;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, api::error::ErrorKind};
use serde::Deserialize;
use serde_json::json;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Plain, Untyped},
    },
    service::{
        sync::sliding,
        thread_subscriptions::{SubscribeError, ThreadSubscriptions},
    },
    storage::log::StreamPosition,
};

const SUBSCRIPTION: &str =
    "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{thread_root}/subscription";
const CHANGES: &str = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions";
/// How many changes come if nothing is said.
const LIMIT: usize = 100;

pub(super) fn routes(routes: Routes) -> Routes {
    let subscription = get(subscription).put(subscribe).delete(unsubscribe);
    routes
        .raw(SUBSCRIPTION, subscription)
        .raw(CHANGES, get(changes))
}

impl From<SubscribeError> for MatrixError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::UnknownThread => Self::not_found("There is no such thread"),
            SubscribeError::NotInThread => Self::bad_request(
                kind("IO.ELEMENT.MSC4306.M_NOT_IN_THREAD"),
                "The event is not in the thread",
            ),
            SubscribeError::EndedLater => Self::new(
                StatusCode::CONFLICT,
                kind("IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION"),
                "The user ended the subscription after that event",
            ),
            SubscribeError::Read(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{threadRoot}/subscription`
async fn subscription(
    State(subscriptions): State<ThreadSubscriptions>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let (room_id, root) = thread(&request)?;
    let user_id = &request.requester.user_id;
    let automatic = subscriptions.is_automatic(user_id, &room_id, &root).await?;
    let automatic =
        automatic.ok_or_else(|| MatrixError::not_found("The thread is not subscribed to"))?;
    Ok(Plain(json!({ "automatic": automatic })))
}

/// `PUT /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{threadRoot}/subscription`
async fn subscribe(
    State(subscriptions): State<ThreadSubscriptions>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let (room_id, root) = thread(&request)?;
    let cause = match request.body.get("automatic") {
        None => None,
        Some(cause) => {
            let cause = cause.as_str().and_then(|id| EventId::parse(id).ok());
            let wrong = || MatrixError::invalid_param("`automatic` is not the id of an event");
            Some(cause.ok_or_else(wrong)?)
        }
    };
    let user_id = &request.requester.user_id;
    subscriptions
        .subscribe(user_id, &room_id, &root, cause.as_deref())
        .await?;
    Ok(Plain(json!({})))
}

/// `DELETE /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{threadRoot}/subscription`
async fn unsubscribe(
    State(subscriptions): State<ThreadSubscriptions>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let (room_id, root) = thread(&request)?;
    let user_id = &request.requester.user_id;
    subscriptions.unsubscribe(user_id, &room_id, &root).await?;
    Ok(Plain(json!({})))
}

/// `GET /_matrix/client/unstable/io.element.msc4308/thread_subscriptions`
async fn changes(
    State(subscriptions): State<ThreadSubscriptions>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    if request.query("dir").is_some_and(|dir| dir != "b") {
        return Err(MatrixError::invalid_param("`dir` can only be `b`"));
    }
    let until = position(&request, "from")?.unwrap_or(StreamPosition(i64::MAX));
    let since = position(&request, "to")?.unwrap_or_default();
    let limit = request.query("limit").map(str::parse).transpose();
    let limit = limit.map_err(|_| MatrixError::invalid_param("`limit` is not a number"))?;
    let user_id = &request.requester.user_id;
    let changes = subscriptions
        .changes(user_id, since, until, limit.unwrap_or(LIMIT))
        .await?;
    let mut answer = json!(changes);
    if let Some(rest) = changes.rest {
        answer["end"] = json!(rest.0.to_string());
    }
    Ok(Plain(answer))
}

/// A token: of this endpoint, or of sliding sync.
fn position(request: &Untyped, name: &str) -> Result<Option<StreamPosition>, MatrixError> {
    let parse = |token: &str| {
        let position = token.parse().ok().map(StreamPosition);
        position.or_else(|| sliding::position_of(token))
    };
    let wrong = || MatrixError::invalid_param(format!("`{name}` is not a token"));
    let token = request.query(name);
    token
        .map(|token| parse(token).ok_or_else(wrong))
        .transpose()
}

fn thread(request: &Untyped) -> Result<(OwnedRoomId, OwnedEventId), MatrixError> {
    let mut path = request.path.iter();
    let room_id = path.next().and_then(|id| RoomId::parse(id).ok());
    let root = path.next().and_then(|id| EventId::parse(id).ok());
    let wrong = || MatrixError::invalid_param("The room id or the event id is malformed");
    room_id.zip(root).ok_or_else(wrong)
}

/// An errcode that has no place in the specification yet.
fn kind(errcode: &str) -> ErrorKind {
    ErrorKind::deserialize(json!({ "errcode": errcode })).unwrap_or(ErrorKind::Unknown)
}
