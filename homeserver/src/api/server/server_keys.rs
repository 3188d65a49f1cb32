//! [Retrieving server keys](https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys).

use std::collections::BTreeMap;

use axum::extract::State;
use futures_util::{StreamExt, stream};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerSigningKeyId, UInt,
    api::federation::discovery::{
        ServerSigningKeys, get_remote_server_keys,
        get_remote_server_keys_batch::{self, v2::QueryCriteria},
        get_server_keys,
    },
    serde::Raw,
};
use serde_json::value::to_raw_value;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Anonymous, Matrix},
    },
    service::server_keys::{Question, ServerKeys},
};

/// The most servers that one question may be about.
const MOST_SERVERS: usize = 100;
/// The most keys of one server that a question may be about.
const MOST_KEYS: usize = 50;
/// How many servers are asked at the same time for one who asks us.
const AT_ONCE: usize = 8;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_server_keys::v2::Request, _, _>(get_server_keys)
        .add::<get_remote_server_keys::v2::Request, _, _>(get_remote_server_keys)
        .add::<get_remote_server_keys_batch::v2::Request, _, _>(get_remote_server_keys_batch)
}

/// `GET /_matrix/key/v2/server`
async fn get_server_keys(
    State(keys): State<ServerKeys>,
    _: Anonymous<get_server_keys::v2::Request>,
) -> Result<Matrix<get_server_keys::v2::Response>, MatrixError> {
    let own = keys.own().map_err(|error| MatrixError::internal(&error))?;
    Ok(Matrix(get_server_keys::v2::Response::new(raw(&own)?)))
}

/// `GET /_matrix/key/v2/query/{serverName}`
async fn get_remote_server_keys(
    State(keys): State<ServerKeys>,
    Anonymous(request): Anonymous<get_remote_server_keys::v2::Request>,
) -> Result<Matrix<get_remote_server_keys::v2::Response>, MatrixError> {
    let question = Question {
        server: request.server_name,
        ids: Vec::new(),
        valid_at: request.minimum_valid_until_ts,
    };
    let found = look_up(&keys, std::iter::once(question)).await?;
    Ok(Matrix(get_remote_server_keys::v2::Response::new(found)))
}

/// `POST /_matrix/key/v2/query`
async fn get_remote_server_keys_batch(
    State(keys): State<ServerKeys>,
    Anonymous(request): Anonymous<get_remote_server_keys_batch::v2::Request>,
) -> Result<Matrix<get_remote_server_keys_batch::v2::Response>, MatrixError> {
    if request.server_keys.len() > MOST_SERVERS {
        return Err(MatrixError::invalid_param(
            "Too many servers are asked about",
        ));
    }
    let question = |(server, criteria): (_, BTreeMap<OwnedServerSigningKeyId, QueryCriteria>)| {
        let times = criteria.values();
        let latest = times.filter_map(|criteria| criteria.minimum_valid_until_ts);
        Question {
            server,
            valid_at: latest
                .max()
                .unwrap_or(MilliSecondsSinceUnixEpoch(UInt::MIN)),
            ids: criteria.into_keys().take(MOST_KEYS).collect(),
        }
    };
    let questions = request.server_keys.into_iter().map(question);
    let found = look_up(&keys, questions).await?;
    Ok(Matrix(get_remote_server_keys_batch::v2::Response::new(
        found,
    )))
}

async fn look_up(
    keys: &ServerKeys,
    questions: impl Iterator<Item = Question>,
) -> Result<Vec<Raw<ServerSigningKeys>>, MatrixError> {
    let lookups = questions.map(|question| async move { keys.as_notary(&question).await });
    let found: Vec<_> = stream::iter(lookups)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut lists = Vec::with_capacity(found.len());
    for told in found {
        for list in told? {
            lists.push(raw(&list)?);
        }
    }
    Ok(lists)
}

fn raw(list: &CanonicalJsonObject) -> Result<Raw<ServerSigningKeys>, MatrixError> {
    let json = to_raw_value(list).map_err(|error| MatrixError::internal(&error))?;
    Ok(Raw::from_json(json))
}
