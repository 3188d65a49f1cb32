//! [Filtering](https://spec.matrix.org/v1.19/client-server-api/#filtering).

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use ruma::api::{
    client::filter::{create_filter, get_filter},
    error::ErrorKind,
};

use super::own;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::filter::{FilterError, Filters},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<create_filter::v3::Request, _, _>(create_filter)
        .add::<get_filter::v3::Request, _, _>(get_filter)
}

impl From<FilterError> for MatrixError {
    fn from(error: FilterError) -> Self {
        match error {
            FilterError::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::TooLarge,
                "The filter is too large",
            ),
            FilterError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/user/{userId}/filter`
async fn create_filter(
    State(filters): State<Filters>,
    Authenticated { requester, body }: Authenticated<create_filter::v3::Request>,
) -> Result<Matrix<create_filter::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let id = filters.create(body.user_id, &body.filter).await?;
    Ok(Matrix(create_filter::v3::Response::new(id)))
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}`
async fn get_filter(
    State(filters): State<Filters>,
    Authenticated { requester, body }: Authenticated<get_filter::v3::Request>,
) -> Result<Matrix<get_filter::v3::Response>, MatrixError> {
    own(&requester, &body.user_id)?;
    let found = filters.by_id(&body.user_id, &body.filter_id).await?;
    let filter = found.ok_or_else(|| MatrixError::not_found("There is no such filter"))?;
    Ok(Matrix(get_filter::v3::Response::new(Arc::unwrap_or_clone(
        filter,
    ))))
}
