//! [Room aliases](https://spec.matrix.org/v1.19/client-server-api/#room-aliases).

use axum::extract::State;
use http::StatusCode;
use ruma::api::{
    client::{
        alias::{create_alias, delete_alias, get_alias},
        room::aliases,
    },
    error::ErrorKind,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix},
    },
    service::aliases::{AliasError, Aliases},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<aliases::v3::Request, _, _>(list_aliases)
        .add::<create_alias::v3::Request, _, _>(create_alias)
        .add::<delete_alias::v3::Request, _, _>(delete_alias)
        .add::<get_alias::v3::Request, _, _>(get_alias)
}

impl From<AliasError> for MatrixError {
    fn from(error: AliasError) -> Self {
        match error {
            AliasError::Invalid => {
                Self::invalid_param("The alias is malformed, or not one of this server")
            }
            AliasError::Taken => Self::new(
                StatusCode::CONFLICT,
                ErrorKind::Unknown,
                "The alias is taken",
            ),
            AliasError::Unknown => Self::not_found("There is no such alias"),
            AliasError::Exclusive => {
                Self::exclusive("The alias is kept for an application service, or not for yours")
            }
            AliasError::Forbidden => Self::forbidden("You are not allowed to do this"),
            AliasError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`
async fn get_alias(
    State(aliases): State<Aliases>,
    Anonymous(body): Anonymous<get_alias::v3::Request>,
) -> Result<Matrix<get_alias::v3::Response>, MatrixError> {
    let found = aliases.resolve(&body.room_alias).await?;
    let (room_id, servers) =
        found.ok_or_else(|| MatrixError::not_found("There is no such alias"))?;
    Ok(Matrix(get_alias::v3::Response::new(room_id, servers)))
}

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`
async fn create_alias(
    State(aliases): State<Aliases>,
    Authenticated { requester, body }: Authenticated<create_alias::v3::Request>,
) -> Result<Matrix<create_alias::v3::Response>, MatrixError> {
    aliases
        .create(&requester, body.room_alias, body.room_id)
        .await?;
    Ok(Matrix(create_alias::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`
async fn delete_alias(
    State(aliases): State<Aliases>,
    Authenticated { requester, body }: Authenticated<delete_alias::v3::Request>,
) -> Result<Matrix<delete_alias::v3::Response>, MatrixError> {
    aliases.delete(&requester, body.room_alias).await?;
    Ok(Matrix(delete_alias::v3::Response::new()))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`
async fn list_aliases(
    State(aliases): State<Aliases>,
    Authenticated { requester, body }: Authenticated<aliases::v3::Request>,
) -> Result<Matrix<aliases::v3::Response>, MatrixError> {
    let found = aliases.of_room(&requester.user_id, &body.room_id).await?;
    Ok(Matrix(aliases::v3::Response::new(found)))
}
