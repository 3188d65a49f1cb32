//! [`OpenID`](https://spec.matrix.org/v1.19/server-server-api/#openid): who the holder of a token is.

use axum::extract::{Request, State};
use ruma::api::federation::openid::get_openid_userinfo;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Matrix, query},
    },
    service::accounts::Accounts,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<get_openid_userinfo::v1::Request, _, _>(get_openid_userinfo)
}

/// `GET /_matrix/federation/v1/openid/userinfo`
async fn get_openid_userinfo(
    State(accounts): State<Accounts>,
    request: Request,
) -> Result<Matrix<get_openid_userinfo::v1::Response>, MatrixError> {
    // Who brings no token is refused as one who brings a wrong one.
    let mut given = query(request.uri()).into_iter();
    let token = given.find(|(name, _)| name == "access_token");
    let (_, token) = token.ok_or_else(MatrixError::missing_token)?;
    let user_id = accounts.openid_user(token).await?;
    let user_id = user_id.ok_or_else(MatrixError::unknown_token)?;
    Ok(Matrix(get_openid_userinfo::v1::Response::new(user_id)))
}
