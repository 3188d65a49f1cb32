//! [`OpenID`](https://spec.matrix.org/v1.19/client-server-api/#openid): telling other services who
//! somebody is.

use axum::extract::State;
use ruma::{api::client::account::request_openid_token, authentication::TokenType};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::accounts::{Accounts, sessions::OPENID_TOKEN},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<request_openid_token::v3::Request, _, _>(request_openid_token)
}

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`
async fn request_openid_token(
    State(accounts): State<Accounts>,
    Authenticated { requester, body }: Authenticated<request_openid_token::v3::Request>,
) -> Result<Matrix<request_openid_token::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let token = accounts.openid_token(requester.user_id).await?;
    Ok(Matrix(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        accounts.server_name().to_owned(),
        OPENID_TOKEN,
    )))
}
