//! [`OpenID`](https://spec.matrix.org/v1.19/server-server-api/#openid): who the holder of a token is.

use axum::extract::State;
use ruma::api::federation::openid::get_openid_userinfo;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix},
    },
    service::accounts::Accounts,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<get_openid_userinfo::v1::Request, _, _>(get_openid_userinfo)
}

/// `GET /_matrix/federation/v1/openid/userinfo`
async fn get_openid_userinfo(
    State(accounts): State<Accounts>,
    Anonymous(body): Anonymous<get_openid_userinfo::v1::Request>,
) -> Result<Matrix<get_openid_userinfo::v1::Response>, MatrixError> {
    let user_id = accounts.openid_user(body.access_token).await?;
    let user_id = user_id.ok_or_else(MatrixError::unknown_token)?;
    Ok(Matrix(get_openid_userinfo::v1::Response::new(user_id)))
}
