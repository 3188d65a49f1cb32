//! [Login and logout](https://spec.matrix.org/v1.19/client-server-api/#login).

use axum::extract::State;
use ruma::api::{
    client::{
        session::{
            get_login_types,
            login::{self, v3::LoginInfo},
            logout, logout_all,
        },
        uiaa::UserIdentifier,
    },
    error::ErrorKind,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix},
    },
    service::{
        accounts::{Accounts, LoginError, NewDevice},
        devices::Devices,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_login_types::v3::Request, _, _>(get_login_types)
        .add::<login::v3::Request, _, _>(login)
        .add::<logout::v3::Request, _, _>(logout)
        .add::<logout_all::v3::Request, _, _>(logout_all)
}

impl From<LoginError> for MatrixError {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::WrongCredentials => Self::forbidden("The name or the password is wrong"),
            LoginError::Deactivated => Self::new(
                http::StatusCode::FORBIDDEN,
                ErrorKind::UserDeactivated,
                "This account has been deactivated",
            ),
            LoginError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/login`
async fn get_login_types(
    _: Anonymous<get_login_types::v3::Request>,
) -> Result<Matrix<get_login_types::v3::Response>, MatrixError> {
    let password =
        get_login_types::v3::LoginType::Password(get_login_types::v3::PasswordLoginType::default());
    Ok(Matrix(get_login_types::v3::Response::new(vec![password])))
}

/// `POST /_matrix/client/v3/login`
async fn login(
    State(accounts): State<Accounts>,
    Anonymous(body): Anonymous<login::v3::Request>,
) -> Result<Matrix<login::v3::Response>, MatrixError> {
    let LoginInfo::Password(login) = body.login_info else {
        return Err(MatrixError::bad_request(
            ErrorKind::Unknown,
            "This server knows no such way to log in",
        ));
    };
    let name = match login.identifier {
        Some(UserIdentifier::Matrix(identifier)) => identifier.user,
        Some(_) => return Err(LoginError::WrongCredentials.into()),
        #[expect(
            deprecated,
            reason = "clients of long ago send the name beside the password"
        )]
        None => login.user.ok_or_else(|| {
            MatrixError::bad_request(ErrorKind::MissingParam, "A user name is needed")
        })?,
    };
    let user_id = accounts
        .user_id(&name)
        .ok_or(LoginError::WrongCredentials)?;
    accounts.check_password(&user_id, login.password).await?;
    let device = NewDevice {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
    };
    let session = accounts.open_session(user_id, device).await?;
    Ok(Matrix(login::v3::Response::new(
        session.requester.user_id,
        session.token.0,
        session.requester.device_id,
    )))
}

/// `POST /_matrix/client/v3/logout`
async fn logout(
    State(devices): State<Devices>,
    request: Authenticated<logout::v3::Request>,
) -> Result<Matrix<logout::v3::Response>, MatrixError> {
    let requester = request.requester;
    devices
        .delete(&requester.user_id, vec![requester.device_id])
        .await?;
    Ok(Matrix(logout::v3::Response::new()))
}

/// `POST /_matrix/client/v3/logout/all`
async fn logout_all(
    State(devices): State<Devices>,
    request: Authenticated<logout_all::v3::Request>,
) -> Result<Matrix<logout_all::v3::Response>, MatrixError> {
    let user_id = request.requester.user_id;
    let all = devices.of_user(&user_id).await?;
    devices
        .delete(
            &user_id,
            all.into_iter().map(|device| device.device_id).collect(),
        )
        .await?;
    Ok(Matrix(logout_all::v3::Response::new()))
}
