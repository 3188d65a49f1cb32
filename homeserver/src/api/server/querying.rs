//! [Querying for information](https://spec.matrix.org/v1.19/server-server-api/#querying-for-information).

use axum::extract::State;
use ruma::api::federation::query::{
    get_custom_information, get_profile_information, get_room_information,
};

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::{aliases::Aliases, profiles::Profiles},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_custom_information::v1::Request, _, _>(get_custom_information)
        .add::<get_profile_information::v1::Request, _, _>(get_profile_information)
        .add::<get_room_information::v1::Request, _, _>(get_room_information)
}

/// `GET /_matrix/federation/v1/query/profile`
async fn get_profile_information(
    State(profiles): State<Profiles>,
    Signed { origin, body }: Signed<get_profile_information::v1::Request>,
) -> Result<Matrix<get_profile_information::v1::Response>, MatrixError> {
    let profile = profiles.lookup_for(&origin, &body.user_id).await?;
    let Some(field) = body.field else {
        return Ok(Matrix(profile.into()));
    };
    let value = profile.get(field.as_str()).cloned();
    let asked = value.map(|value| (field.to_string(), value));
    Ok(Matrix(asked.into_iter().collect()))
}

/// `GET /_matrix/federation/v1/query/directory`
async fn get_room_information(
    State(aliases): State<Aliases>,
    Signed { body, .. }: Signed<get_room_information::v1::Request>,
) -> Result<Matrix<get_room_information::v1::Response>, MatrixError> {
    let found = aliases.resolve_local(&body.room_alias).await?;
    let (room_id, servers) =
        found.ok_or_else(|| MatrixError::not_found("There is no such alias"))?;
    Ok(Matrix(get_room_information::v1::Response::new(
        room_id, servers,
    )))
}

/// `GET /_matrix/federation/v1/query/{queryType}`: of all types only those above are known.
async fn get_custom_information(
    _: Signed<get_custom_information::v1::Request>,
) -> Result<Matrix<get_custom_information::v1::Response>, MatrixError> {
    Err(MatrixError::not_found("There is no such type of query"))
}
