//! [Room upgrades](https://spec.matrix.org/v1.19/client-server-api/#room-upgrades).

use axum::extract::State;
use ruma::{
    RoomVersionId,
    api::{
        IncomingRequest, Metadata,
        client::room::upgrade_room,
        error::{DeserializationError, ErrorKind},
    },
};
use serde::Deserialize;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::rooms::{Rooms, Upgrade, UpgradeError},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<upgrade_room::v3::Request, _, _>(upgrade_room)
}

impl From<UpgradeError> for MatrixError {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::UnknownRoom => Self::not_found("There is no such room"),
            UpgradeError::UnsupportedVersion(_) => unsupported(),
            UpgradeError::Forbidden => Self::forbidden("You may not upgrade this room"),
            UpgradeError::NotMade(error) => error.into(),
            UpgradeError::Send(error) => error.into(),
            UpgradeError::Storage(error) => error.into(),
        }
    }
}

/// A request to upgrade a room; `None` if what it names as the version can be no version at all, which is
/// to be refused as an unknown version is.
struct Asked(Option<upgrade_room::v3::Request>);

impl Metadata for Asked {
    const METHOD: http::Method = upgrade_room::v3::Request::METHOD;
    const RATE_LIMITED: bool = upgrade_room::v3::Request::RATE_LIMITED;
    type Authentication = <upgrade_room::v3::Request as Metadata>::Authentication;
    type PathBuilder = <upgrade_room::v3::Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = upgrade_room::v3::Request::PATH_BUILDER;
}

impl IncomingRequest for Asked {
    type EndpointError = ruma::api::error::Error;
    type OutgoingResponse = upgrade_room::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Body {
            new_version: String,
        }
        let body = serde_json::from_slice::<Body>(request.body());
        match upgrade_room::v3::Request::try_from_http_request_inner(request, path) {
            Ok(request) => Ok(Self(Some(request))),
            Err(_) if body.is_ok_and(|b| RoomVersionId::try_from(b.new_version).is_err()) => {
                Ok(Self(None))
            }
            Err(error) => Err(error),
        }
    }
}

/// `POST /_matrix/client/v3/rooms/{roomId}/upgrade`
async fn upgrade_room(
    State(rooms): State<Rooms>,
    Authenticated { requester, body }: Authenticated<Asked>,
) -> Result<Matrix<upgrade_room::v3::Response>, MatrixError> {
    let body = body.0.ok_or_else(unsupported)?;
    let upgrade = Upgrade {
        user_id: &requester.user_id,
        room_id: &body.room_id,
        version: &body.new_version,
        additional_creators: body.additional_creators,
    };
    let replacement = rooms.upgrade(upgrade).await?;
    Ok(Matrix(upgrade_room::v3::Response::new(replacement)))
}

fn unsupported() -> MatrixError {
    MatrixError::bad_request(
        ErrorKind::UnsupportedRoomVersion,
        "This server does not support the room version",
    )
}
