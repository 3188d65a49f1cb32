//! [Client config](https://spec.matrix.org/v1.19/client-server-api/#client-config): account data.

use axum::extract::State;
use http::StatusCode;
use ruma::{
    api::{
        client::config::{
            get_global_account_data, get_room_account_data, set_global_account_data,
            set_room_account_data,
        },
        error::ErrorKind,
    },
    serde::Raw,
};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::account_data::{AccountData, SetError},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_global_account_data::v3::Request, _, _>(get_global_account_data)
        .add::<get_room_account_data::v3::Request, _, _>(get_room_account_data)
        .add::<set_global_account_data::v3::Request, _, _>(set_global_account_data)
        .add::<set_room_account_data::v3::Request, _, _>(set_room_account_data)
}

impl From<SetError> for MatrixError {
    fn from(error: SetError) -> Self {
        match error {
            SetError::Controlled => Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorKind::BadJson,
                "This type of account data is set by the server",
            ),
            SetError::NotAnObject => Self::bad_json("The content must be an object"),
            SetError::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::TooLarge,
                "The account data is too large",
            ),
            SetError::Storage(error) => error.into(),
        }
    }
}

fn missing() -> MatrixError {
    MatrixError::not_found("There is no such account data")
}

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}`
async fn get_global_account_data(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<get_global_account_data::v3::Request>,
) -> Result<Matrix<get_global_account_data::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let event_type = body.event_type.to_string();
    let content = account_data
        .content(&body.user_id, None, &event_type)
        .await?;
    let json = Raw::from_json_string(content.ok_or_else(missing)?).map_err(|_| missing())?;
    Ok(Matrix(get_global_account_data::v3::Response::new(json)))
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
async fn get_room_account_data(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<get_room_account_data::v3::Request>,
) -> Result<Matrix<get_room_account_data::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let event_type = body.event_type.to_string();
    let content = account_data
        .content(&body.user_id, Some(&body.room_id), &event_type)
        .await?;
    let json = Raw::from_json_string(content.ok_or_else(missing)?).map_err(|_| missing())?;
    Ok(Matrix(get_room_account_data::v3::Response::new(json)))
}

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`
async fn set_global_account_data(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<set_global_account_data::v3::Request>,
) -> Result<Matrix<set_global_account_data::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let (event_type, content) = (body.event_type.to_string(), body.data.json());
    account_data
        .set(body.user_id, None, event_type, content)
        .await?;
    Ok(Matrix(set_global_account_data::v3::Response::new()))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
async fn set_room_account_data(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<set_room_account_data::v3::Request>,
) -> Result<Matrix<set_room_account_data::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let (event_type, content) = (body.event_type.to_string(), body.data.json());
    account_data
        .set(body.user_id, Some(body.room_id), event_type, content)
        .await?;
    Ok(Matrix(set_room_account_data::v3::Response::new()))
}
