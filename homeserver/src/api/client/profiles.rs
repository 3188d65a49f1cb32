//! [Profiles](https://spec.matrix.org/v1.19/client-server-api/#profiles).

use axum::extract::State;
use ruma::{
    UserId,
    api::{
        client::profile::{
            delete_profile_field, get_profile, get_profile_field, set_profile_field,
        },
        error::ErrorKind,
    },
    profile::{ProfileFieldName, ProfileFieldValue},
};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, MaybeAuthenticated, Untyped},
    },
    service::profiles::{LookupError, ProfileError, Profiles},
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
            ProfileError::BadKey => Self::invalid_param("The name of the field is malformed"),
            ProfileError::ProfileTooLarge => {
                Self::bad_request(ErrorKind::ProfileTooLarge, "The profile would be too large")
            }
            ProfileError::TooLong => Self::invalid_param("The value is too long"),
            ProfileError::BadValue => Self::bad_json("The value cannot be stored"),
            ProfileError::Storage(error) => error.into(),
        }
    }
}

impl From<LookupError> for MatrixError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Unknown => missing(),
            LookupError::Forbidden => Self::forbidden("Profiles are not shown to everybody"),
            LookupError::Remote(error) => error.into(),
            LookupError::Storage(error) => error.into(),
        }
    }
}

fn missing() -> MatrixError {
    MatrixError::not_found("There is no such profile")
}

/// `GET /_matrix/client/v3/profile/{userId}`
async fn get_profile(
    State(profiles): State<Profiles>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<get_profile::v3::Request>,
) -> Result<Matrix<get_profile::v3::Response>, MatrixError> {
    let asker = requester.as_ref().map(|requester| &*requester.user_id);
    let profile = profiles.lookup(asker, &body.user_id).await?;
    Ok(Matrix(get_profile::v3::Response::from(profile)))
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`
async fn get_profile_field(
    State(profiles): State<Profiles>,
    MaybeAuthenticated { requester, body }: MaybeAuthenticated<get_profile_field::v3::Request>,
) -> Result<Matrix<get_profile_field::v3::Response>, MatrixError> {
    let asker = requester.as_ref().map(|requester| &*requester.user_id);
    let mut profile = profiles.lookup(asker, &body.user_id).await?;
    let field = body.field.as_str();
    let Some(value) = profile.remove(field) else {
        // Clients have always got an empty answer from most servers where a user has no name or picture.
        return match body.field {
            ProfileFieldName::DisplayName | ProfileFieldName::AvatarUrl => {
                Ok(Matrix(get_profile_field::v3::Response::default()))
            }
            _ => Err(missing()),
        };
    };
    let value = ProfileFieldValue::new(field, value).map_err(|_| missing())?;
    Ok(Matrix(get_profile_field::v3::Response::new(value)))
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`. ruma's type does not tell a field that is missing from
/// one of the wrong kind.
async fn set_profile_field(
    State(profiles): State<Profiles>,
    mut request: Untyped,
) -> Result<Matrix<set_profile_field::v3::Response>, MatrixError> {
    let [user_id, field] = request.path.as_slice() else {
        return Err(MatrixError::broken());
    };
    let user_id = UserId::parse(user_id)
        .map_err(|_| MatrixError::invalid_param("The user id is malformed"))?;
    own(&request.requester, &user_id)?;
    let value = request.body.remove(field);
    let value = value.ok_or_else(|| MatrixError::missing_param(format!("`{field}` is missing")))?;
    let value = ProfileFieldValue::new(field, value).map_err(|_| ProfileError::BadValue)?;
    profiles.set(user_id, &value).await?;
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
