//! Telling the keys of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server)).

use ruma::{CanonicalJsonObject, MilliSecondsSinceUnixEpoch, ServerName};
use sotto_federation::server_keys;

use super::ServerKeys;
use crate::storage::StorageError;

impl ServerKeys {
    /// The keys of a server, signed by us as well; `None` if they are not to be had.
    pub(crate) async fn as_notary(
        &self,
        server: &ServerName,
        valid_at: MilliSecondsSinceUnixEpoch,
    ) -> Result<Option<CanonicalJsonObject>, StorageError> {
        let us = self.0.federation.server_name();
        if server == us {
            return Ok(self.own().ok());
        }
        // The keys of the future are nobody's to know.
        let valid_at = valid_at.min(self.0.clock.now());
        let published = self.published(server, valid_at).await?;
        Ok(published
            .and_then(|(json, keys)| server_keys::countersign(&json, &keys, us, &self.0.key).ok()))
    }
}
