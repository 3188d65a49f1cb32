//! [User directory](https://spec.matrix.org/v1.19/client-server-api/#user-directory) and
//! [mutual rooms](https://spec.matrix.org/v1.19/client-server-api/#mutual-rooms).

use axum::extract::State;
use ruma::{
    UInt, UserId,
    api::client::{
        membership::get_mutual_rooms,
        user_directory::search_users::{self, v3::User},
    },
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, Untyped},
    },
    service::user_directory::{MutualRooms, MutualRoomsError, UserDirectory},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_mutual_rooms::v1::Request, _, _>(get_mutual_rooms)
        .add::<search_users::v3::Request, _, _>(search_users)
}

impl From<MutualRoomsError> for MatrixError {
    fn from(error: MutualRoomsError) -> Self {
        match error {
            MutualRoomsError::Oneself => Self::invalid_param("`user_id` is your own"),
            MutualRoomsError::BadToken => Self::invalid_param("`from` is not a token of this list"),
        }
    }
}

/// `POST /_matrix/client/v3/user_directory/search`
async fn search_users(
    State(directory): State<UserDirectory>,
    Authenticated { requester, body }: Authenticated<search_users::v3::Request>,
) -> Result<Matrix<search_users::v3::Response>, MatrixError> {
    let limit = usize::try_from(body.limit).unwrap_or(usize::MAX);
    let searcher = &requester.user_id;
    let (found, limited) = directory.search(searcher, &body.search_term, limit).await?;
    let users = found.into_iter().map(|found| {
        let mut user = User::new(found.user_id);
        user.display_name = found.display_name;
        user.avatar_url = found.avatar_url.map(Into::into);
        user
    });
    let response = search_users::v3::Response::new(users.collect(), limited);
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/mutual_rooms`. A user who is not named is answered as one that cannot be.
async fn get_mutual_rooms(
    State(directory): State<UserDirectory>,
    request: Untyped,
) -> Result<Matrix<get_mutual_rooms::v1::Response>, MatrixError> {
    let user_id = request
        .query("user_id")
        .and_then(|id| UserId::parse(id).ok());
    let user_id =
        user_id.ok_or_else(|| MatrixError::invalid_param("`user_id` is missing or malformed"))?;
    let asker = &request.requester.user_id;
    let MutualRooms { rooms, count, next } =
        directory.mutual_rooms(asker, &user_id, request.query("from"))?;
    let count = UInt::try_from(count).unwrap_or(UInt::MAX);
    let mut response = get_mutual_rooms::v1::Response::new(count, rooms);
    response.next_batch = next;
    Ok(Matrix(response))
}
