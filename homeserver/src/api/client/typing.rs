//! [Typing notifications](https://spec.matrix.org/v1.19/client-server-api/#typing-notifications).

use std::time::Duration;

use axum::extract::State;
use ruma::{RoomId, UserId, api::client::typing::create_typing_event::v3};
use serde_json::Value;

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Matrix, Untyped},
    },
    service::typing::{Typing, TypingError},
};

/// How long somebody types if nothing is said.
const LASTS: Duration = Duration::from_secs(30);

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(create_typing_event)
}

impl From<TypingError> for MatrixError {
    fn from(error: TypingError) -> Self {
        match error {
            TypingError::NotJoined => Self::forbidden("You are not in this room"),
            TypingError::Storage(error) => error.into(),
        }
    }
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`. Only `typing` is required.
async fn create_typing_event(
    State(typing): State<Typing>,
    request: Untyped,
) -> Result<Matrix<v3::Response>, MatrixError> {
    let malformed = || MatrixError::invalid_param("An identifier in the path is malformed");
    let [room_id, user_id] = request.path.as_slice() else {
        return Err(malformed());
    };
    let room_id = RoomId::parse(room_id).map_err(|_| malformed())?;
    let user_id = UserId::parse(user_id).map_err(|_| malformed())?;
    own(&request.requester, &user_id)?;
    let wrong = |what| move || MatrixError::bad_json(format!("`{what}` is missing or malformed"));
    let types = request.body.get("typing").and_then(Value::as_bool);
    let lasts = match request.body.get("timeout") {
        None => Some(LASTS),
        Some(timeout) => timeout.as_u64().map(Duration::from_millis),
    };
    let lasts = lasts.ok_or_else(wrong("timeout"))?;
    let lasts = types.ok_or_else(wrong("typing"))?.then_some(lasts);
    typing.set(&user_id, &room_id, lasts).await?;
    Ok(Matrix(v3::Response::new()))
}
