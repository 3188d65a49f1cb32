//! [Room tagging](https://spec.matrix.org/v1.19/client-server-api/#room-tagging).

use axum::extract::State;
use ruma::api::client::tag::{create_tag, delete_tag, get_tags};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::account_data::AccountData,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<create_tag::v3::Request, _, _>(create_tag)
        .add::<delete_tag::v3::Request, _, _>(delete_tag)
        .add::<get_tags::v3::Request, _, _>(get_tags)
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`
async fn get_tags(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<get_tags::v3::Request>,
) -> Result<Matrix<get_tags::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let tags = account_data.tags(&body.user_id, &body.room_id).await?;
    Ok(Matrix(get_tags::v3::Response::new(tags)))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
async fn create_tag(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<create_tag::v3::Request>,
) -> Result<Matrix<create_tag::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let (tag, info) = (body.tag, body.tag_info);
    account_data
        .change_tags(body.user_id, body.room_id, move |tags| {
            tags.insert(tag.into(), info);
        })
        .await?;
    Ok(Matrix(create_tag::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
async fn delete_tag(
    State(account_data): State<AccountData>,
    Authenticated { requester, body }: Authenticated<delete_tag::v3::Request>,
) -> Result<Matrix<delete_tag::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let tag = body.tag;
    account_data
        .change_tags(body.user_id, body.room_id, move |tags| {
            tags.remove(&tag.into());
        })
        .await?;
    Ok(Matrix(delete_tag::v3::Response::new()))
}
