//! [Syncing](https://spec.matrix.org/v1.19/client-server-api/#syncing).

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use ruma::api::client::sync::sync_events::v3::{self, Filter};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        filter::Filters,
        sync::{Ask, Sync},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(sync_events)
}

/// `GET /_matrix/client/v3/sync`
async fn sync_events(
    State(sync): State<Sync>,
    State(filters): State<Filters>,
    Authenticated { requester, body }: Authenticated<v3::Request>,
) -> Result<Matrix<v3::Response>, MatrixError> {
    let wrong = |_| MatrixError::invalid_param("`since` is not a token of this server");
    let filter = match body.filter {
        None => Arc::default(),
        Some(Filter::FilterDefinition(filter)) => Arc::new(filter),
        Some(Filter::FilterId(id)) => {
            let unknown = || MatrixError::invalid_param("There is no such filter");
            let found = filters.by_id(&requester.user_id, &id).await?;
            found.ok_or_else(unknown)?
        }
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
