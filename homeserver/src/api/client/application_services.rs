//! [What only application services may ask
//! for](https://spec.matrix.org/v1.19/application-service-api/#client-server-api-extensions).

use axum::{extract::State, routing::put};
use http::{Method, StatusCode};
use ruma::{
    RoomId,
    api::{
        client::appservice::request_ping::v1 as request_ping,
        error::{BadStatusErrorData, ErrorKind},
    },
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix, Plain, Untyped},
        masquerade::OnlyService,
    },
    service::{
        appservices::{
            Appservices,
            request::{Answer, Ping, SilentError},
        },
        directory::Directory,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<request_ping::Request, _, _>(request_ping).raw(
        "/_matrix/client/v3/directory/list/appservice/{network_id}/{room_id}",
        put(set_room_visibility).delete(set_room_visibility),
    )
}

impl From<SilentError> for MatrixError {
    fn from(error: SilentError) -> Self {
        let (status, kind) = match error {
            SilentError::NoAddress => (StatusCode::BAD_REQUEST, ErrorKind::UrlNotSet),
            SilentError::Timeout => (StatusCode::GATEWAY_TIMEOUT, ErrorKind::ConnectionTimeout),
            SilentError::Request(_) | SilentError::Unreachable | SilentError::Answer => {
                (StatusCode::BAD_GATEWAY, ErrorKind::ConnectionFailed)
            }
        };
        Self::new(status, kind, format!("The application service: {error}"))
    }
}

/// `POST /_matrix/client/v1/appservice/{appserviceId}/ping`
async fn request_ping(
    State(services): State<Appservices>,
    OnlyService(service): OnlyService,
    Anonymous(body): Anonymous<request_ping::Request>,
) -> Result<Matrix<request_ping::Response>, MatrixError> {
    if service.id.as_str() != body.appservice_id {
        return Err(MatrixError::forbidden(
            "This is another application service",
        ));
    }
    let transaction_id = body.transaction_id.as_ref().map(|id| id.as_str());
    match services.ping(&service, transaction_id).await? {
        Ping::Good(duration) => Ok(Matrix(request_ping::Response::new(duration))),
        Ping::Bad(Answer { status, body }) => {
            let mut data = BadStatusErrorData::new();
            data.status = StatusCode::from_u16(status).ok();
            data.body = Some(String::from_utf8_lossy(&body).into_owned());
            Err(MatrixError::new(
                StatusCode::BAD_GATEWAY,
                ErrorKind::BadStatus(data),
                format!("The application service answered {status}"),
            ))
        }
    }
}

/// `PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}`, and `DELETE`, which bridges send
/// as well.
async fn set_room_visibility(
    State(directory): State<Directory>,
    OnlyService(service): OnlyService,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let [network, room_id] = request.path.as_slice() else {
        return Err(MatrixError::unrecognized());
    };
    let room_id = RoomId::parse(room_id)
        .map_err(|_| MatrixError::invalid_param("This is not the id of a room"))?;
    let listed = if request.method == Method::DELETE {
        false
    } else {
        match request.body.get("visibility").and_then(|it| it.as_str()) {
            Some("public") => true,
            Some("private") => false,
            _ => return Err(MatrixError::bad_json("`visibility` is public or private")),
        }
    };
    directory
        .set_listed_by(&service, network, room_id, listed)
        .await?;
    Ok(Plain(serde_json::json!({})))
}
