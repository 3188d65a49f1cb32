//! [Presence](https://spec.matrix.org/v1.19/client-server-api/#presence).

use std::time::Duration;

use axum::extract::State;
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    clock::Clock,
    service::presence::{Presence, PresenceError},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_presence::v3::Request, _, _>(get_presence)
        .add::<set_presence::v3::Request, _, _>(set_presence)
}

impl From<PresenceError> for MatrixError {
    fn from(error: PresenceError) -> Self {
        match error {
            PresenceError::UnknownState => {
                Self::invalid_param("`presence` must be `online`, `unavailable` or `offline`")
            }
            PresenceError::MessageTooLong => Self::invalid_param("`status_msg` is too long"),
            PresenceError::Forbidden => {
                Self::forbidden("You are not allowed to see whether this user is there")
            }
            PresenceError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/presence/{userId}/status`
async fn get_presence(
    State(presence): State<Presence>,
    State(clock): State<Clock>,
    Authenticated { requester, body }: Authenticated<get_presence::v3::Request>,
) -> Result<Matrix<get_presence::v3::Response>, MatrixError> {
    let status = presence.of_user(&requester.user_id, &body.user_id)?;
    let now: u64 = clock.now().0.into();
    let mut response = get_presence::v3::Response::new(status.presence);
    response.last_active_ago = status
        .last_active
        .map(|last| Duration::from_millis(now.saturating_sub(last)));
    if response.presence == PresenceState::Online {
        response.currently_active = Some(status.currently_active);
    }
    response.status_msg = status.message;
    Ok(Matrix(response))
}

/// `PUT /_matrix/client/v3/presence/{userId}/status`
async fn set_presence(
    State(presence): State<Presence>,
    Authenticated { requester, body }: Authenticated<set_presence::v3::Request>,
) -> Result<Matrix<set_presence::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    presence
        .set(&requester, body.presence, body.status_msg)
        .await?;
    Ok(Matrix(set_presence::v3::Response::new()))
}
