//! [Published room directory](https://spec.matrix.org/v1.19/client-server-api/#published-room-directory).

use axum::extract::State;
use ruma::api::client::{
    directory::{
        get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
    },
    room::Visibility,
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Authenticated, Matrix},
    },
    service::directory::{Directory, DirectoryError, ListAsk},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_public_rooms::v3::Request, _, _>(get_public_rooms)
        .add::<get_public_rooms_filtered::v3::Request, _, _>(get_public_rooms_filtered)
        .add::<get_room_visibility::v3::Request, _, _>(get_room_visibility)
        .add::<set_room_visibility::v3::Request, _, _>(set_room_visibility)
}

impl From<DirectoryError> for MatrixError {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::UnknownRoom => Self::not_found("There is no such room"),
            DirectoryError::Forbidden => {
                Self::forbidden("You have no power over what the room is called")
            }
            DirectoryError::BadToken => Self::invalid_param("`since` is not a token of this list"),
            DirectoryError::Remote(error) => error.into(),
            DirectoryError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/publicRooms`
async fn get_public_rooms(
    State(directory): State<Directory>,
    Anonymous(body): Anonymous<get_public_rooms::v3::Request>,
) -> Result<Matrix<get_public_rooms::v3::Response>, MatrixError> {
    let ask = ListAsk {
        limit: body.limit,
        since: body.since,
        ..ListAsk::default()
    };
    let list = directory.list(body.server.as_deref(), ask).await?;
    let mut response = get_public_rooms::v3::Response::new(list.chunk);
    response.next_batch = list.next;
    response.prev_batch = list.previous;
    response.total_room_count_estimate = list.total;
    Ok(Matrix(response))
}

/// `POST /_matrix/client/v3/publicRooms`
async fn get_public_rooms_filtered(
    State(directory): State<Directory>,
    Authenticated { body, .. }: Authenticated<get_public_rooms_filtered::v3::Request>,
) -> Result<Matrix<get_public_rooms_filtered::v3::Response>, MatrixError> {
    let ask = ListAsk {
        limit: body.limit,
        since: body.since,
        filter: body.filter,
        network: body.room_network,
    };
    let list = directory.list(body.server.as_deref(), ask).await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = list.chunk;
    response.next_batch = list.next;
    response.prev_batch = list.previous;
    response.total_room_count_estimate = list.total;
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`
async fn get_room_visibility(
    State(directory): State<Directory>,
    Anonymous(body): Anonymous<get_room_visibility::v3::Request>,
) -> Result<Matrix<get_room_visibility::v3::Response>, MatrixError> {
    let visibility = if directory.is_listed(&body.room_id).await? {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(Matrix(get_room_visibility::v3::Response::new(visibility)))
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`
async fn set_room_visibility(
    State(directory): State<Directory>,
    Authenticated { requester, body }: Authenticated<set_room_visibility::v3::Request>,
) -> Result<Matrix<set_room_visibility::v3::Response>, MatrixError> {
    let listed = match body.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => {
            return Err(MatrixError::invalid_param(
                "`visibility` must be `public` or `private`",
            ));
        }
    };
    directory
        .set_listed(&requester.user_id, body.room_id, listed)
        .await?;
    Ok(Matrix(set_room_visibility::v3::Response::new()))
}
