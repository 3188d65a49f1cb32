//! [Published room directory](https://spec.matrix.org/v1.19/server-server-api/#published-room-directory).

use axum::extract::State;
use ruma::api::federation::directory::{get_public_rooms, get_public_rooms_filtered};

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::directory::{Directory, ListAsk},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_public_rooms::v1::Request, _, _>(get_public_rooms)
        .add::<get_public_rooms_filtered::v1::Request, _, _>(get_public_rooms_filtered)
}

/// `GET /_matrix/federation/v1/publicRooms`
async fn get_public_rooms(
    State(directory): State<Directory>,
    Signed { body, .. }: Signed<get_public_rooms::v1::Request>,
) -> Result<Matrix<get_public_rooms::v1::Response>, MatrixError> {
    let ask = ListAsk {
        limit: body.limit,
        since: body.since,
        network: body.room_network,
        ..ListAsk::default()
    };
    let list = directory.list(None, ask).await?;
    let mut response = get_public_rooms::v1::Response::new();
    response.chunk = list.chunk;
    response.next_batch = list.next;
    response.prev_batch = list.previous;
    response.total_room_count_estimate = list.total;
    Ok(Matrix(response))
}

/// `POST /_matrix/federation/v1/publicRooms`
async fn get_public_rooms_filtered(
    State(directory): State<Directory>,
    Signed { body, .. }: Signed<get_public_rooms_filtered::v1::Request>,
) -> Result<Matrix<get_public_rooms_filtered::v1::Response>, MatrixError> {
    let ask = ListAsk {
        limit: body.limit,
        since: body.since,
        filter: body.filter,
        network: body.room_network,
    };
    let list = directory.list(None, ask).await?;
    let mut response = get_public_rooms_filtered::v1::Response::new();
    response.chunk = list.chunk;
    response.next_batch = list.next;
    response.prev_batch = list.previous;
    response.total_room_count_estimate = list.total;
    Ok(Matrix(response))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::get_public_rooms::v1::Request;
    use crate::api::extract::parse;

    /// So Synapse asks.
    #[test]
    fn the_network_is_read_from_the_query() {
        let request = http::Request::get("/x?limit=3&include_all_networks=false");
        let parsed: Request = parse(&request.body(Vec::new()).unwrap(), &[]).unwrap();
        assert_eq!(parsed.limit, Some(3_u32.into()));
    }
}
