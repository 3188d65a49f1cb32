//! [Server discovery](https://spec.matrix.org/v1.19/server-server-api/#server-discovery).

use axum::extract::State;
use ruma::api::federation::discovery::{discover_homeserver, get_server_version};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix},
    },
    service::transactions::Transactions,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_server_version::v1::Request, _, _>(get_server_version)
        .add::<discover_homeserver::Request, _, _>(well_known_server)
}

/// `GET /_matrix/federation/v1/version`
async fn get_server_version(
    _: Anonymous<get_server_version::v1::Request>,
) -> Matrix<get_server_version::v1::Response> {
    let mut server = get_server_version::v1::Server::new();
    server.name = Some("Sotto".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = get_server_version::v1::Response::new();
    response.server = Some(server);
    Matrix(response)
}

/// `GET /.well-known/matrix/server`
async fn well_known_server(
    State(transactions): State<Transactions>,
    _: Anonymous<discover_homeserver::Request>,
) -> Result<Matrix<discover_homeserver::Response>, MatrixError> {
    let at = transactions.delegated_to().cloned();
    let at = at.ok_or_else(|| MatrixError::not_found("Other servers come to this name itself"))?;
    Ok(Matrix(discover_homeserver::Response::new(at)))
}
