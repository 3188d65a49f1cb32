//! `/_synapse/admin/v1/register`: making accounts with the shared secret of the configuration, for the
//! tools and scripts that know this path.

use axum::{
    extract::{Request, State},
    routing::get,
};
use ruma::api::error::ErrorKind;
use serde::Deserialize;
use serde_json::json;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{self, Plain},
    },
    service::shared_secret::{Application, SharedSecret, SharedSecretError},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.raw("/_synapse/admin/v1/register", get(nonce).post(register))
}

impl From<SharedSecretError> for MatrixError {
    fn from(error: SharedSecretError) -> Self {
        match error {
            SharedSecretError::Disabled => {
                Self::bad_request(ErrorKind::Unknown, "There is no shared secret")
            }
            SharedSecretError::UnknownNonce => {
                Self::bad_request(ErrorKind::Unknown, "The nonce is not known")
            }
            SharedSecretError::WrongMac => Self::forbidden("The code is wrong"),
            SharedSecretError::Password(error) => error.into(),
            SharedSecretError::Register(error) => error.into(),
        }
    }
}

/// `GET /_synapse/admin/v1/register`
async fn nonce(State(secret): State<SharedSecret>) -> Result<Plain, MatrixError> {
    Ok(Plain(json!({ "nonce": secret.nonce()? })))
}

/// `POST /_synapse/admin/v1/register`
async fn register(
    State(secret): State<SharedSecret>,
    request: Request,
) -> Result<Plain, MatrixError> {
    #[derive(Deserialize)]
    struct Body {
        nonce: String,
        username: String,
        password: String,
        #[serde(default)]
        admin: bool,
        user_type: Option<String>,
        mac: String,
    }
    let (request, _) = extract::read(request, &()).await?;
    let body = extract::json(request.body())?;
    let wrong = |_| MatrixError::bad_json("The body of the request does not have the right form");
    let body: Body = serde_json::from_value(body).map_err(wrong)?;
    let application = Application {
        nonce: body.nonce,
        username: body.username,
        password: body.password,
        administrator: body.admin,
        user_type: body.user_type,
        mac: body.mac,
    };
    let session = secret.register(application).await?;
    let requester = session.requester;
    Ok(Plain(json!({
        "user_id": requester.user_id,
        "home_server": requester.user_id.server_name(),
        "device_id": requester.device_id,
        "access_token": session.token.0,
    })))
}
