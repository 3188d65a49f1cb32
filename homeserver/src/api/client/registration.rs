//! [Account registration](https://spec.matrix.org/v1.19/client-server-api/#account-registration).

use axum::extract::State;
use http::StatusCode;
use ruma::api::{
    client::account::{
        check_registration_token_validity, get_username_availability,
        register::{self, LoginType, RegistrationKind},
        whoami,
    },
    error::ErrorKind,
};
use serde_json::json;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix, Plain},
        masquerade::MaybeService,
    },
    service::{
        accounts::{Accounts, NewDevice, RegisterError, passwords::PasswordError},
        registration::{Registered, Registration, RegistrationError, Wish},
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
            RegisterError::Exclusive => Self::exclusive(
                "This user name is kept for an application service, or not for yours",
            ),
            RegisterError::BadToken => Self::forbidden("The registration token is not valid"),
            RegisterError::AddressTaken => {
                Self::bad_request(ErrorKind::ThreepidInUse, "Somebody has this address")
            }
            RegisterError::Storage(error) => error.into(),
        }
    }
}

impl From<PasswordError> for MatrixError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Empty => {
                Self::bad_request(ErrorKind::WeakPassword, "The password is empty")
            }
            PasswordError::TooLong => Self::invalid_param("The password is too long"),
            PasswordError::Hash => Self::internal(&error),
        }
    }
}

impl From<RegistrationError> for MatrixError {
    fn from(error: RegistrationError) -> Self {
        match error {
            RegistrationError::Closed => Self::forbidden("Registration is closed on this server"),
            RegistrationError::NoGuests => Self::new(
                StatusCode::FORBIDDEN,
                ErrorKind::GuestAccessForbidden,
                "This server has no guests",
            ),
            RegistrationError::OtherGuest => {
                Self::forbidden("This is not the token of the guest with that name")
            }
            RegistrationError::NoPassword => {
                Self::bad_request(ErrorKind::MissingParam, "A password is needed")
            }
            RegistrationError::Password(error) => error.into(),
            RegistrationError::Register(error) => error.into(),
            RegistrationError::Uia(error) => error.into(),
            RegistrationError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/register`
async fn register(
    State(registration): State<Registration>,
    State(accounts): State<Accounts>,
    caller: MaybeService,
    Anonymous(body): Anonymous<register::v3::Request>,
) -> Result<Plain, MatrixError> {
    let of_service = body.login_type == Some(LoginType::ApplicationService);
    let device = NewDevice {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        refreshes: body.refresh_token,
    };
    let registered = if of_service {
        let name = body.username.as_deref().ok_or_else(|| {
            MatrixError::bad_request(ErrorKind::MissingParam, "A user name is needed")
        })?;
        let device = (!body.inhibit_login).then_some(device);
        let service = caller.service()?;
        let (user_id, session) = accounts.register_for(&service, name, device).await?;
        Registered { user_id, session }
    } else if body.kind == RegistrationKind::Guest {
        registration.guest(device).await?
    } else {
        let wish = Wish {
            username: body.username,
            password: body.password,
            device,
            inhibit_login: body.inhibit_login,
            guest_access_token: body.guest_access_token,
            auth: body.auth,
        };
        registration.register(wish).await?
    };
    let Registered { user_id, session } = registered;
    // ruma's type says `null` where nobody was logged in.
    let mut response = json!({ "user_id": user_id });
    if let Some(session) = session {
        response["access_token"] = session.token.0.into();
        response["device_id"] = session.requester.device_id.as_str().into();
        if let Some(token) = session.refresh {
            response["refresh_token"] = token.0.into();
        }
        if let Some(lifetime) = session.expires_in {
            response["expires_in_ms"] = json!(lifetime.as_millis());
        }
    }
    Ok(Plain(response))
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
    State(accounts): State<Accounts>,
    request: Authenticated<whoami::v3::Request>,
) -> Result<Matrix<whoami::v3::Response>, MatrixError> {
    let requester = request.requester;
    let is_guest = accounts.is_guest(&requester.user_id).await?;
    let device_id = requester.device().map(ToOwned::to_owned);
    let mut response = whoami::v3::Response::new(requester.user_id, is_guest);
    response.device_id = device_id;
    Ok(Matrix(response))
}
