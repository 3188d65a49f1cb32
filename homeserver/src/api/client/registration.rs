//! [Account registration](https://spec.matrix.org/v1.19/client-server-api/#account-registration).

use axum::extract::State;
use ruma::api::{
    client::{
        account::{
            check_registration_token_validity, get_username_availability,
            register::{self, RegistrationKind},
            whoami,
        },
        uiaa::{AuthData, AuthType},
    },
    error::ErrorKind,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix},
    },
    config::Registration,
    service::{
        accounts::{Accounts, NewDevice, RegisterError, random_id},
        uia::{Purpose, Stage, Uia},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<register::v3::Request, _, _>(register)
        .add::<get_username_availability::v3::Request, _, _>(get_username_availability)
        .add::<check_registration_token_validity::v1::Request, _, _>(registration_token_validity)
        .add::<whoami::v3::Request, _, _>(whoami)
}

impl From<RegisterError> for MatrixError {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::InvalidName => {
                Self::bad_request(ErrorKind::InvalidUsername, "This is not a valid user name")
            }
            RegisterError::NameTaken => {
                Self::bad_request(ErrorKind::UserInUse, "This user name is taken")
            }
            RegisterError::BadToken => Self::forbidden("The registration token is not valid"),
            RegisterError::Hash => Self::internal(&error),
            RegisterError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/register`
async fn register(
    State(accounts): State<Accounts>,
    State(uia): State<Uia>,
    Anonymous(body): Anonymous<register::v3::Request>,
) -> Result<Matrix<register::v3::Response>, MatrixError> {
    if body.kind == RegistrationKind::Guest {
        return Err(MatrixError::forbidden("This server has no guests"));
    }
    let flow = match accounts.registration() {
        Registration::Closed => {
            return Err(MatrixError::forbidden(
                "Registration is closed on this server",
            ));
        }
        Registration::Open => vec![AuthType::Dummy],
        Registration::Token => vec![AuthType::RegistrationToken, AuthType::Dummy],
    };
    let name = body
        .username
        .clone()
        .unwrap_or_else(|| random_id().to_lowercase());
    // Said before the client goes through the stages for nothing.
    accounts.is_available(&name).await?;
    let user_id = accounts.new_user_id(&name)?;
    let token = registration_token(body.auth.as_ref());
    let stage = stage(&accounts, body.auth.as_ref()).await?;
    let flows = if flow.len() == 1 {
        vec![flow]
    } else {
        vec![vec![AuthType::RegistrationToken]]
    };
    let purpose = Purpose(format!("register {user_id}"));
    let session = body.auth.as_ref().and_then(AuthData::session);
    uia.step(&flows, &purpose, session, stage)
        .map_err(MatrixError::Uia)?;
    let Some(password) = body.password else {
        return Err(MatrixError::bad_request(
            ErrorKind::MissingParam,
            "A password is needed",
        ));
    };
    let device = (!body.inhibit_login).then_some(NewDevice {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
    });
    let session = accounts
        .register(user_id.clone(), Some(password), token, device)
        .await?;
    let mut response = register::v3::Response::new(user_id);
    if let Some(session) = session {
        response.access_token = Some(session.token.0);
        response.device_id = Some(session.requester.device_id);
    }
    Ok(Matrix(response))
}

fn registration_token(auth: Option<&AuthData>) -> Option<String> {
    match auth {
        Some(AuthData::RegistrationToken(stage)) => Some(stage.token.clone()),
        _ => None,
    }
}

async fn stage(accounts: &Accounts, auth: Option<&AuthData>) -> Result<Stage, MatrixError> {
    Ok(match auth {
        None => Stage::Ask,
        Some(AuthData::Dummy(_)) => Stage::Done(AuthType::Dummy),
        Some(AuthData::RegistrationToken(stage)) => {
            if accounts.registration_token_is_good(&stage.token).await? {
                Stage::Done(AuthType::RegistrationToken)
            } else {
                Stage::Failed(ErrorKind::Forbidden, "The registration token is not valid")
            }
        }
        Some(_) => Stage::Failed(
            ErrorKind::Unrecognized,
            "This stage is not part of any flow",
        ),
    })
}

/// `GET /_matrix/client/v3/register/available`
async fn get_username_availability(
    State(accounts): State<Accounts>,
    Anonymous(body): Anonymous<get_username_availability::v3::Request>,
) -> Result<Matrix<get_username_availability::v3::Response>, MatrixError> {
    accounts.is_available(&body.username).await?;
    Ok(Matrix(get_username_availability::v3::Response::new(true)))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
async fn registration_token_validity(
    State(accounts): State<Accounts>,
    Anonymous(body): Anonymous<check_registration_token_validity::v1::Request>,
) -> Result<Matrix<check_registration_token_validity::v1::Response>, MatrixError> {
    let valid = accounts.registration_token_is_good(&body.token).await?;
    Ok(Matrix(
        check_registration_token_validity::v1::Response::new(valid),
    ))
}

/// `GET /_matrix/client/v3/account/whoami`
async fn whoami(
    request: Authenticated<whoami::v3::Request>,
) -> Result<Matrix<whoami::v3::Response>, MatrixError> {
    let mut response = whoami::v3::Response::new(request.requester.user_id, false);
    response.device_id = Some(request.requester.device_id);
    Ok(Matrix(response))
}
