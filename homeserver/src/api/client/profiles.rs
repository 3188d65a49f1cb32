//! [Profiles](https://spec.matrix.org/v1.19/client-server-api/#profiles).

use axum::extract::State;
use ruma::{
    api::{
        client::profile::{
            delete_profile_field, get_profile, get_profile_field, set_profile_field,
        },
        error::ErrorKind,
    },
    profile::ProfileFieldValue,
};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix},
    },
    service::profiles::{ProfileError, Profiles},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<delete_profile_field::v3::Request, _, _>(delete_profile_field)
        .add::<get_profile::v3::Request, _, _>(get_profile)
        .add::<get_profile_field::v3::Request, _, _>(get_profile_field)
        .add::<set_profile_field::v3::Request, _, _>(set_profile_field)
}

impl From<ProfileError> for MatrixError {
    fn from(error: ProfileError) -> Self {
        match error {
            ProfileError::KeyTooLarge => {
                Self::bad_request(ErrorKind::KeyTooLarge, "The name of the field is too long")
            }
            ProfileError::ProfileTooLarge => {
                Self::bad_request(ErrorKind::ProfileTooLarge, "The profile would be too large")
            }
            ProfileError::BadValue => Self::bad_json("The value cannot be stored"),
            ProfileError::Storage(error) => error.into(),
        }
    }
}

fn missing() -> MatrixError {
    MatrixError::not_found("There is no such profile")
}

/// `GET /_matrix/client/v3/profile/{userId}`
async fn get_profile(
    State(profiles): State<Profiles>,
    Anonymous(body): Anonymous<get_profile::v3::Request>,
) -> Result<Matrix<get_profile::v3::Response>, MatrixError> {
    let found = profiles.of_user(&body.user_id).await?;
    let profile = found.ok_or_else(missing)?;
    Ok(Matrix(get_profile::v3::Response::from(profile)))
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`
async fn get_profile_field(
    State(profiles): State<Profiles>,
    Anonymous(body): Anonymous<get_profile_field::v3::Request>,
) -> Result<Matrix<get_profile_field::v3::Response>, MatrixError> {
    let found = profiles.of_user(&body.user_id).await?;
    let mut profile = found.ok_or_else(missing)?;
    let field = body.field.as_str();
    let value = profile.remove(field).ok_or_else(missing)?;
    let value = ProfileFieldValue::new(field, value).map_err(|_| missing())?;
    Ok(Matrix(get_profile_field::v3::Response::new(value)))
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`
async fn set_profile_field(
    State(profiles): State<Profiles>,
    Authenticated { requester, body }: Authenticated<set_profile_field::v3::Request>,
) -> Result<Matrix<set_profile_field::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    profiles.set(body.user_id, &body.value).await?;
    Ok(Matrix(set_profile_field::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`
async fn delete_profile_field(
    State(profiles): State<Profiles>,
    Authenticated { requester, body }: Authenticated<delete_profile_field::v3::Request>,
) -> Result<Matrix<delete_profile_field::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    profiles.remove(body.user_id, body.field).await?;
    Ok(Matrix(delete_profile_field::v3::Response::new()))
}
