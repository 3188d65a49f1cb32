//! Proving again who one is, before something that cannot be undone
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api)).

use ruma::api::client::uiaa::AuthData;
use serde_json::Value;

use crate::{
    api::error::MatrixError,
    service::{
        accounts::Requester,
        uia::{Demand, Uia, UiaError},
    },
};

impl From<UiaError> for MatrixError {
    fn from(error: UiaError) -> Self {
        match error {
            UiaError::Incomplete(challenge) => Self::Uia(challenge),
            UiaError::OtherPurpose => Self::forbidden("The session was opened for something else"),
            UiaError::OtherUser => Self::forbidden("This is somebody else"),
            UiaError::TooOften(error) => error.into(),
            UiaError::Storage(error) => error.into(),
        }
    }
}

/// Asks the user for the password, or to log in again; `Ok` when that was done. `purpose` says what for: a session that was
/// opened for one thing is good for nothing else.
pub(super) async fn reauthenticate(
    uia: &Uia,
    requester: &Requester,
    purpose: &str,
    auth: Option<&AuthData>,
) -> Result<(), MatrixError> {
    // A service has no password, and full control of its users
    // ([spec](https://spec.matrix.org/v1.19/application-service-api/#device-management)).
    if requester.service.is_some() {
        return Ok(());
    }
    let demand = Demand {
        purpose: format!("{purpose} {}", requester.user_id),
        flows: uia.ways(),
        auth,
        user_id: Some(&requester.user_id),
        remember: Value::Null,
    };
    uia.authenticate(demand).await?;
    Ok(())
}
