//! What scripts written for Synapse's admin API ask of any server
//! ([Synapse](https://element-hq.github.io/synapse/latest/admin_api/register_api.html)).

use axum::{
    extract::{Request, State},
    routing::get,
};
use http::StatusCode;
use ruma::api::error::ErrorKind;
use serde::Deserialize;
use serde_json::json;

use super::{
    Routes,
    error::MatrixError,
    extract::{Plain, json_body},
};
use crate::service::{
    accounts::Accounts,
    shared_secret::{SecretError, SecretWish, SharedSecret},
};

/// Adds every endpoint.
pub(super) fn routes(routes: Routes) -> Routes {
    routes.raw("/_synapse/admin/v1/register", get(nonce).post(register))
}

impl From<SecretError> for MatrixError {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Disabled => Self::bad_request(
                ErrorKind::Unknown,
                "This server makes no accounts in this way",
            ),
            SecretError::UnknownNonce => {
                Self::bad_request(ErrorKind::Unknown, "The nonce is not known")
            }
            SecretError::NullCharacter(name) => {
                Self::invalid_param(format!("`{name}` contains a null character"))
            }
            SecretError::WrongMac => Self::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Unknown,
                "The authentication code is wrong",
            ),
            SecretError::Password(error) => error.into(),
            SecretError::Register(error) => error.into(),
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
    State(accounts): State<Accounts>,
    request: Request,
) -> Result<Plain, MatrixError> {
    #[derive(Deserialize)]
    struct Body {
        nonce: String,
        username: String,
        displayname: Option<String>,
        password: String,
        #[serde(default)]
        admin: bool,
        user_type: Option<String>,
        mac: String,
    }
    let body: Body = json_body(request).await?;
    let wish = SecretWish {
        nonce: body.nonce,
        username: body.username,
        display_name: body.displayname,
        password: body.password,
        admin: body.admin,
        user_type: body.user_type,
        mac: body.mac,
    };
    let session = secret.register(wish).await?;
    let session = session.ok_or_else(MatrixError::broken)?;
    let user_id = &session.requester.user_id;
    Ok(Plain(json!({
        "user_id": user_id,
        "home_server": accounts.server_name(),
        "access_token": session.token.0,
        "device_id": session.requester.device_id,
    })))
}
