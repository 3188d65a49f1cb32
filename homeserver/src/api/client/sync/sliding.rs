//! [Simplified sliding sync](https://github.com/matrix-org/matrix-spec-proposals/pull/4186).

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header::CONTENT_TYPE;
use ruma::{
    OwnedRoomId,
    api::{
        client::sync::sync_events::v5::{
            Request,
            response::{Extensions, List, Room},
        },
        error::ErrorKind,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    api::{error::MatrixError, extract::Authenticated},
    service::sync::{
        Sync,
        sliding::{SlidingAnswer, SlidingAsk, SlidingError},
    },
};

/// [MSC4308](https://github.com/matrix-org/matrix-spec-proposals/pull/4308)
const THREADS: &str = "io.element.msc4308.thread_subscriptions";
/// How many subscriptions of threads come if nothing is said.
const LIMIT: usize = 100;

/// The reply, with an extension that ruma has no type for.
#[derive(Serialize)]
struct Reply {
    #[serde(skip_serializing_if = "Option::is_none")]
    txn_id: Option<String>,
    pos: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lists: BTreeMap<String, List>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rooms: BTreeMap<OwnedRoomId, Room>,
    extensions: Extended,
}

#[derive(Serialize)]
struct Extended {
    #[serde(flatten)]
    known: Extensions,
    #[serde(
        rename = "io.element.msc4308.thread_subscriptions",
        skip_serializing_if = "Option::is_none"
    )]
    threads: Option<Value>,
}

impl From<SlidingError> for MatrixError {
    fn from(error: SlidingError) -> Self {
        match error {
            SlidingError::UnknownPos => {
                let sentence = "`pos` is not known; begin anew without it";
                Self::bad_request(ErrorKind::UnknownPos, sentence)
            }
            SlidingError::TooMuch => {
                Self::invalid_param("There are too many lists, or `conn_id` is too long")
            }
            SlidingError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`
pub(super) async fn sliding_sync(
    State(sync): State<Sync>,
    Authenticated { requester, body }: Authenticated<Request>,
) -> Result<Response, MatrixError> {
    let ask = SlidingAsk {
        thread_subscriptions: threads(&body),
        request: body,
    };
    let reply = Reply::from(sync.sliding(requester, &ask).await?);
    let bytes = serde_json::to_vec(&reply).map_err(|error| MatrixError::internal(&error))?;
    Ok(([(CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// How many changes of subscriptions of threads are asked for, if any are.
fn threads(request: &Request) -> Option<usize> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Asked {
        enabled: bool,
        limit: Option<usize>,
    }
    // What ruma has no name for is in there, but cannot be reached otherwise.
    let mut extensions = serde_json::to_value(&request.extensions).ok()?;
    let asked: Asked = serde_json::from_value(extensions.get_mut(THREADS)?.take()).ok()?;
    asked.enabled.then(|| asked.limit.unwrap_or(LIMIT))
}

impl From<SlidingAnswer> for Reply {
    fn from(answer: SlidingAnswer) -> Self {
        let response = answer.response;
        let changes = answer.thread_subscriptions;
        let threads = (!changes.is_empty()).then(|| {
            let mut threads = json!(changes);
            if let Some(rest) = changes.rest {
                threads["prev_batch"] = json!(rest.0.to_string());
            }
            threads
        });
        Self {
            txn_id: response.txn_id,
            pos: response.pos,
            lists: response.lists,
            rooms: response.rooms,
            extensions: Extended {
                known: response.extensions,
                threads,
            },
        }
    }
}
