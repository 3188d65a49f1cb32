//! [Third-party networks](https://spec.matrix.org/v1.19/client-server-api/#third-party-networks).

use axum::extract::State;
use ruma::api::client::thirdparty::{
    get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols,
    get_user_for_protocol, get_user_for_user_id,
};
use serde_json::json;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Plain, Untyped},
    },
    service::appservices::{Appservices, lookup::Kind},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_protocols::v3::Request, _, _>(get_protocols)
        .add::<get_protocol::v3::Request, _, _>(get_protocol)
        .add::<get_location_for_protocol::v3::Request, _, _>(get_location_for_protocol)
        .add::<get_location_for_room_alias::v3::Request, _, _>(get_location_for_room_alias)
        .add::<get_user_for_protocol::v3::Request, _, _>(get_user_for_protocol)
        .add::<get_user_for_user_id::v3::Request, _, _>(get_user_for_user_id)
}

/// `GET /_matrix/client/v3/thirdparty/protocols`
async fn get_protocols(State(services): State<Appservices>, _: Untyped) -> Plain {
    Plain(json!(services.protocols().await))
}

/// `GET /_matrix/client/v3/thirdparty/protocol/{protocol}`
async fn get_protocol(
    State(services): State<Appservices>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let name = request.path.first().map_or("", String::as_str);
    let found = services.protocol(name).await;
    let found = found.ok_or_else(|| MatrixError::not_found("Nobody speaks this protocol"))?;
    Ok(Plain(found))
}

/// `GET /_matrix/client/v3/thirdparty/location/{protocol}`
async fn get_location_for_protocol(
    State(services): State<Appservices>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    find(&services, Kind::Location, &request).await
}

/// `GET /_matrix/client/v3/thirdparty/location`
async fn get_location_for_room_alias(
    State(services): State<Appservices>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    find(&services, Kind::Location, &request).await
}

/// `GET /_matrix/client/v3/thirdparty/user/{protocol}`
async fn get_user_for_protocol(
    State(services): State<Appservices>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    find(&services, Kind::User, &request).await
}

/// `GET /_matrix/client/v3/thirdparty/user`
async fn get_user_for_user_id(
    State(services): State<Appservices>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    find(&services, Kind::User, &request).await
}

/// What services find: by the fields of a protocol, or by a Matrix id.
async fn find(services: &Appservices, kind: Kind, request: &Untyped) -> Result<Plain, MatrixError> {
    let protocol = request.path.first().map(String::as_str);
    if protocol.is_none() && request.query(kind.matrix()).is_none() {
        return Err(MatrixError::missing_param(format!(
            "`{}` is missing",
            kind.matrix()
        )));
    }
    // For whom an application service asks does not concern the others.
    let of_service = |name: &str| request.requester.service.is_some() && name == "user_id";
    let fields = request.all_of_query();
    let fields = fields.filter(|(name, _)| !of_service(name));
    let query: String = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let found = services.find(kind, protocol, &query).await;
    if found.is_empty() {
        return Err(MatrixError::not_found("Nothing was found"));
    }
    Ok(Plain(json!(found)))
}
