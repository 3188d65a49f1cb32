//! [Syncing](https://spec.matrix.org/v1.19/client-server-api/#syncing).

use std::time::Duration;

use axum::extract::State;
use ruma::api::client::{
    filter::FilterDefinition,
    sync::sync_events::v3::{self, Filter},
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::sync::{Ask, Sync},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(sync_events)
}

/// `GET /_matrix/client/v3/sync`
async fn sync_events(
    State(sync): State<Sync>,
    Authenticated { requester, body }: Authenticated<v3::Request>,
) -> Result<Matrix<v3::Response>, MatrixError> {
    let wrong = |_| MatrixError::invalid_param("`since` is not a token of this server");
    let filter = match body.filter {
        None => FilterDefinition::default(),
        Some(Filter::FilterDefinition(filter)) => filter,
        Some(Filter::FilterId(_)) => FilterDefinition::default(),
        Some(_) => return Err(MatrixError::invalid_param("The filter is malformed")),
    };
    let ask = Ask {
        requester,
        since: body
            .since
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(wrong)?,
        filter,
        full_state: body.full_state,
        use_state_after: body.use_state_after,
        wait: body.timeout.unwrap_or(Duration::ZERO),
    };
    Ok(Matrix(sync.sync(&ask).await?))
}
