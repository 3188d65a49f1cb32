//! Proving again who one is, before something that cannot be undone
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api)).

use ruma::api::{
    client::uiaa::{AuthData, AuthType, UserIdentifier},
    error::ErrorKind,
};

use crate::{
    api::error::MatrixError,
    service::{
        accounts::{Accounts, LoginError, Requester},
        uia::{Purpose, Stage, Uia},
    },
};

/// Asks the user for the password; `Ok` when it was given. `purpose` says what for: a session that was
/// opened for one thing is good for nothing else.
pub(super) async fn reauthenticate(
    accounts: &Accounts,
    uia: &Uia,
    requester: &Requester,
    purpose: &str,
    auth: Option<&AuthData>,
) -> Result<(), MatrixError> {
    let wrong = Stage::Failed(ErrorKind::Forbidden, "The name or the password is wrong");
    let stage = match auth {
        None | Some(AuthData::FallbackAcknowledgement(_)) => Stage::Ask,
        Some(AuthData::Password(password)) => {
            let name = match &password.identifier {
                UserIdentifier::Matrix(identifier) => accounts.user_id(&identifier.user),
                _ => None,
            };
            if name.as_ref() == Some(&requester.user_id) {
                let secret = password.password.clone();
                match accounts.check_password(&requester.user_id, secret).await {
                    Ok(()) => Stage::Done(AuthType::Password),
                    Err(LoginError::Storage(error)) => return Err(error.into()),
                    Err(LoginError::WrongCredentials | LoginError::Deactivated) => wrong,
                }
            } else {
                wrong
            }
        }
        Some(_) => Stage::Failed(
            ErrorKind::Unrecognized,
            "This stage is not part of any flow",
        ),
    };
    let purpose = Purpose(format!("{purpose} {}", requester.user_id));
    let session = auth.and_then(AuthData::session);
    uia.step(&[vec![AuthType::Password]], &purpose, session, stage)
        .map_err(MatrixError::Uia)
}
