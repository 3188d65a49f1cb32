//! [Login and logout](https://spec.matrix.org/v1.19/client-server-api/#login).

use axum::extract::State;
use ruma::{
    OwnedUserId,
    api::{
        client::{
            session::{
                get_login_token,
                get_login_types::{
                    self,
                    v3::{
                        ApplicationServiceLoginType, IdentityProvider, LoginType,
                        PasswordLoginType, SsoLoginType, TokenLoginType,
                    },
                },
                login::{self, v3::LoginInfo},
                logout, logout_all, refresh_token,
            },
            uiaa::{MatrixUserIdentifier, UserIdentifier},
        },
        error::ErrorKind,
    },
    thirdparty::Medium,
};

use super::reauthentication::reauthenticate;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix},
        masquerade::MaybeService,
        standing::locked,
    },
    service::{
        accounts::{
            Accounts, LoginError, NewDevice, Requester,
            sessions::{LOGIN_TOKEN, RefreshError},
        },
        devices::Devices,
        sign_on::{CAS, SignOn},
        threepids::Threepids,
        uia::Uia,
    },
};

/// The type of logging in with a token that somebody trusted makes.
const JWT: &str = "org.matrix.login.jwt";

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_login_types::v3::Request, _, _>(get_login_types)
        .add::<login::v3::Request, _, _>(login)
        .add::<get_login_token::v1::Request, _, _>(get_login_token)
        .add::<refresh_token::v3::Request, _, _>(refresh_token)
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
            LoginError::Locked => locked(),
            LoginError::TooOften(error) => error.into(),
            LoginError::Storage(error) => error.into(),
        }
    }
}

impl From<RefreshError> for MatrixError {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::UnknownToken => Self::unknown_token(),
            RefreshError::Locked => locked(),
            RefreshError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/login`
async fn get_login_types(
    State(sign_on): State<SignOn>,
    _: Anonymous<get_login_types::v3::Request>,
) -> Result<Matrix<get_login_types::v3::Response>, MatrixError> {
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    let mut flows = vec![
        LoginType::Password(PasswordLoginType::default()),
        LoginType::Token(token),
        LoginType::ApplicationService(ApplicationServiceLoginType::new()),
    ];
    let other = |name| {
        let flow = LoginType::new(name, serde_json::Map::new());
        flow.map_err(|error| MatrixError::internal(&error))
    };
    if let Some(name) = sign_on.cas_name() {
        let mut sso = SsoLoginType::new();
        let provider = IdentityProvider::new(CAS.to_owned(), name.to_owned());
        sso.identity_providers = vec![provider];
        flows.push(LoginType::Sso(sso));
        // Clients of long ago know this one only.
        flows.push(other("m.login.cas")?);
    }
    if sign_on.has_jwt() {
        flows.push(other(JWT)?);
    }
    Ok(Matrix(get_login_types::v3::Response::new(flows)))
}

/// `POST /_matrix/client/v3/login`
async fn login(
    State(accounts): State<Accounts>,
    State(threepids): State<Threepids>,
    State(sign_on): State<SignOn>,
    caller: MaybeService,
    Anonymous(body): Anonymous<login::v3::Request>,
) -> Result<Matrix<login::v3::Response>, MatrixError> {
    let user_id = match body.login_info {
        LoginInfo::Password(login) => password(&accounts, &threepids, login).await?,
        LoginInfo::Token(login) => {
            let user_id = accounts.take_login_token(login.token).await?;
            let user_id = user_id.ok_or_else(wrong_token)?;
            accounts.may_log_in(&user_id).await?;
            user_id
        }
        LoginInfo::ApplicationService(login) => of_service(&accounts, &caller, login).await?,
        info if info.login_type() == JWT && sign_on.has_jwt() => {
            let data = info.data();
            let token = data.get("token").and_then(serde_json::Value::as_str);
            let missing = || MatrixError::bad_request(ErrorKind::MissingParam, "A token is needed");
            sign_on.by_jwt(token.ok_or_else(missing)?).await?
        }
        _ => {
            return Err(MatrixError::bad_request(
                ErrorKind::Unknown,
                "This server knows no such way to log in",
            ));
        }
    };
    if let Some(device_id) = &body.device_id
        && accounts.names_key(&user_id, device_id).await?
    {
        return Err(MatrixError::forbidden(
            "No device can have the name of a key",
        ));
    }
    let device = NewDevice {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        refreshes: body.refresh_token,
    };
    let session = accounts.open_session(user_id, device).await?;
    let Requester {
        user_id, device_id, ..
    } = session.requester;
    let mut response = login::v3::Response::new(user_id, session.token.0, device_id);
    response.refresh_token = session.refresh.map(|token| token.0);
    response.expires_in = session.expires_in;
    Ok(Matrix(response))
}

fn wrong_token() -> MatrixError {
    MatrixError::forbidden("The login token is not valid")
}

/// A user of an application service, which needs no password
/// ([spec](https://spec.matrix.org/v1.19/application-service-api/#server-admin-style-permissions)).
async fn of_service(
    accounts: &Accounts,
    caller: &MaybeService,
    login: login::v3::ApplicationService,
) -> Result<OwnedUserId, MatrixError> {
    #[expect(
        deprecated,
        reason = "bridges of long ago send the name beside the type"
    )]
    let name = match (login.identifier, login.user) {
        (Some(UserIdentifier::Matrix(identifier)), _) => identifier.user,
        (None, Some(user)) => user,
        _ => {
            let sentence = "A user name is needed";
            return Err(MatrixError::bad_request(ErrorKind::MissingParam, sentence));
        }
    };
    let service = caller.service()?;
    let user_id = accounts.user_id(&name);
    let user_id = user_id.filter(|user_id| service.covers_user(user_id));
    let user_id =
        user_id.ok_or_else(|| MatrixError::exclusive("The user is not one of this service"))?;
    accounts.may_log_in(&user_id).await?;
    Ok(user_id)
}

/// Who a name and a password belong to.
async fn password(
    accounts: &Accounts,
    threepids: &Threepids,
    login: login::v3::Password,
) -> Result<OwnedUserId, MatrixError> {
    #[expect(
        deprecated,
        reason = "clients of long ago send the name beside the password"
    )]
    let named = match (login.identifier, login.user, login.medium, login.address) {
        (Some(identifier), ..) => Some(identifier),
        (None, Some(user), ..) => Some(UserIdentifier::Matrix(MatrixUserIdentifier::new(user))),
        (None, None, Some(medium), Some(address)) => Some(UserIdentifier::third_party_id(
            Medium::from(medium),
            address,
        )),
        (None, None, ..) => None,
    };
    let named = named.ok_or_else(|| {
        MatrixError::bad_request(ErrorKind::MissingParam, "A user name is needed")
    })?;
    let user_id = match (&named, named.as_third_party_id()) {
        (UserIdentifier::Matrix(identifier), _) => accounts.user_id(&identifier.user),
        (_, Some((medium, address))) => threepids.owner(medium.as_str(), address).await?,
        _ => {
            return Err(MatrixError::bad_request(
                ErrorKind::Unknown,
                "This server knows no such identifier",
            ));
        }
    };
    let user_id = user_id.ok_or(LoginError::WrongCredentials)?;
    accounts.check_password(&user_id, login.password).await?;
    Ok(user_id)
}

/// `POST /_matrix/client/v3/refresh`
async fn refresh_token(
    State(accounts): State<Accounts>,
    Anonymous(body): Anonymous<refresh_token::v3::Request>,
) -> Result<Matrix<refresh_token::v3::Response>, MatrixError> {
    let session = accounts.refresh(body.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(session.token.0);
    response.refresh_token = session.refresh.map(|token| token.0);
    response.expires_in_ms = session.expires_in;
    Ok(Matrix(response))
}

/// `POST /_matrix/client/v1/login/get_token`
async fn get_login_token(
    State(accounts): State<Accounts>,
    State(uia): State<Uia>,
    Authenticated { requester, body }: Authenticated<get_login_token::v1::Request>,
) -> Result<Matrix<get_login_token::v1::Response>, MatrixError> {
    reauthenticate(&uia, &requester, "login token", body.auth.as_ref()).await?;
    let token = accounts.login_token(requester.user_id).await?;
    Ok(Matrix(get_login_token::v1::Response::new(
        LOGIN_TOKEN,
        token,
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
