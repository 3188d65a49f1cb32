//! [Syncing](https://spec.matrix.org/v1.19/client-server-api/#syncing).

mod reply;
mod sliding;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use http::header::CONTENT_TYPE;
use ruma::api::client::sync::sync_events::{
    v3::{self, Filter},
    v5,
};

use self::reply::{Names, Reply};
use crate::{
    api::{Routes, error::MatrixError, extract::Authenticated},
    service::{
        filter::Filters,
        sync::{Ask, Sync},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<v3::Request, _, _>(sync_events)
        .add::<v5::Request, _, _>(sliding::sliding_sync)
}

/// `GET /_matrix/client/v3/sync`
async fn sync_events(
    State(sync): State<Sync>,
    State(filters): State<Filters>,
    RawQuery(query): RawQuery,
    Authenticated { requester, body }: Authenticated<v3::Request>,
) -> Result<Response, MatrixError> {
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
    let names = Names {
        stable: body.use_state_after,
        unstable: reply::is_asked_for(query.as_deref()),
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
        set_presence: body.set_presence,
        use_state_after: names.stable || names.unstable,
        wait: body.timeout.unwrap_or(Duration::ZERO),
        for_device: true,
    };
    let response = sync.sync(&ask).await?;
    let bytes = serde_json::to_vec(&Reply::new(response, names));
    let bytes = bytes.map_err(|error| MatrixError::internal(&error))?;
    Ok(([(CONTENT_TYPE, "application/json")], bytes).into_response())
}
