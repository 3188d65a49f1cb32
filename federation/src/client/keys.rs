//! Asking for the keys of servers.

use std::collections::BTreeMap;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId, ServerName,
    api::federation::discovery::{
        get_remote_server_keys_batch::v2 as get_remote_server_keys_batch,
        get_server_keys::v2 as get_server_keys,
    },
};
use serde_json::value::RawValue;

use super::{ClientError, FederationClient, Signature, to_http, typed};
use crate::server_keys::ServerKeys;

/// The largest list of keys of one server, and of many servers.
const LIST_BYTES: usize = 256 * 1024;
const LISTS_BYTES: usize = 8 * 1024 * 1024;

/// The keys of a server and the JSON that says so, to be stored with the time when it was fetched
/// and given out as a notary.
#[derive(Clone, Debug)]
pub struct FetchedKeys {
    /// The keys.
    pub keys: ServerKeys,
    /// The answer, signed by the server.
    pub json: Box<RawValue>,
    /// When it was fetched.
    pub fetched_at: MilliSecondsSinceUnixEpoch,
}

impl FederationClient {
    /// Asks a server for its keys
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server)).
    pub async fn server_keys(&self, server: &ServerName) -> Result<FetchedKeys, ClientError> {
        let request = to_http(get_server_keys::Request::new())?;
        let timeout = self.0.config.limits.request;
        // Without a signature: whoever wanted to verify it would have to ask for our keys first.
        let answer = self
            .send_raw(server, request, Signature::None, timeout)
            .await?;
        let answer: get_server_keys::Response = typed(answer.read(LIST_BYTES).await?)?;
        let json = answer.server_key.into_json();
        let fetched_at = (self.0.config.now)();
        let keys = ServerKeys::parse(&json, server, fetched_at)
            .map_err(|_| ClientError::MalformedAnswer)?;
        Ok(FetchedKeys {
            keys,
            json,
            fetched_at,
        })
    }

    /// Asks a notary for the keys of servers, which must be valid at the given time
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#post_matrixkeyv2query)).
    ///
    /// Lists that were not asked for, or are not signed by their server, are left out. That the
    /// notary gave the rest is proven by its certificate.
    pub async fn server_keys_from_notary(
        &self,
        notary: &ServerName,
        servers: &BTreeMap<OwnedServerName, Vec<OwnedServerSigningKeyId>>,
        valid_at: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Result<Vec<FetchedKeys>, ClientError> {
        let criteria = |id: &OwnedServerSigningKeyId| {
            let mut criteria = get_remote_server_keys_batch::QueryCriteria::new();
            criteria.minimum_valid_until_ts = valid_at;
            (id.clone(), criteria)
        };
        let wanted = servers
            .iter()
            .map(|(server, ids)| (server.clone(), ids.iter().map(criteria).collect()))
            .collect();
        let request = to_http(get_remote_server_keys_batch::Request::new(wanted))?;
        let timeout = self.0.config.limits.request;
        let answer = self
            .send_raw(notary, request, Signature::None, timeout)
            .await?;
        let answer: get_remote_server_keys_batch::Response =
            typed(answer.read(LISTS_BYTES).await?)?;

        let fetched_at = (self.0.config.now)();
        let fetched = answer.server_keys.into_iter().filter_map(|list| {
            let server: OwnedServerName = list.get_field("server_name").ok()??;
            let json = list.into_json();
            let keys = ServerKeys::parse(&json, &server, fetched_at).ok()?;
            servers.contains_key(&server).then_some(FetchedKeys {
                keys,
                json,
                fetched_at,
            })
        });
        Ok(fetched.collect())
    }
}
