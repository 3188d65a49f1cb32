//! [Typing notifications](https://spec.matrix.org/v1.19/client-server-api/#typing-notifications).

use axum::extract::State;
use ruma::api::client::typing::create_typing_event::v3::{self, Typing as Notice};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::typing::{Typing, TypingError},
};

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

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`
async fn create_typing_event(
    State(typing): State<Typing>,
    Authenticated { requester, body }: Authenticated<v3::Request>,
) -> Result<Matrix<v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let lasts = match body.state {
        Notice::Yes(info) => Some(info.timeout),
        Notice::No => None,
    };
    typing.set(&body.user_id, &body.room_id, lasts).await?;
    Ok(Matrix(v3::Response::new()))
}
