//! [Room aliases](https://spec.matrix.org/v1.19/client-server-api/#room-aliases).

use axum::extract::State;
use ruma::api::client::alias::get_alias;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix},
    },
    service::rooms::Rooms,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<get_alias::v3::Request, _, _>(get_alias)
}

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`
async fn get_alias(
    State(rooms): State<Rooms>,
    Anonymous(body): Anonymous<get_alias::v3::Request>,
) -> Result<Matrix<get_alias::v3::Response>, MatrixError> {
    let found = rooms.resolve(&body.room_alias).await?;
    let (room_id, servers) =
        found.ok_or_else(|| MatrixError::not_found("There is no such alias"))?;
    Ok(Matrix(get_alias::v3::Response::new(room_id, servers)))
}
