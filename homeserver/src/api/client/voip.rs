//! [Voice over IP](https://spec.matrix.org/v1.19/client-server-api/#voice-over-ip).

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use ruma::api::client::voip::get_turn_server_info::v3;
use serde_json::json;

use crate::{
    api::{
        Routes,
        extract::{Authenticated, Matrix, Plain},
    },
    service::calls::Calls,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(get_turn_server_info)
}

/// `GET /_matrix/client/v3/voip/turnServer`
async fn get_turn_server_info(
    State(calls): State<Calls>,
    Authenticated { requester, .. }: Authenticated<v3::Request>,
) -> Response {
    match calls.turn(&requester.user_id) {
        Some(turn) => Matrix(v3::Response::new(
            turn.username,
            turn.password,
            turn.uris,
            turn.ttl,
        ))
        .into_response(),
        // So clients are told everywhere that there is none.
        None => Plain(json!({})).into_response(),
    }
}
