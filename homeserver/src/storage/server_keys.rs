//! `server_keys`: the keys of other servers.

use std::collections::BTreeMap;

use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UInt};
use serde_json::value::RawValue;
use sqlx::{AnyConnection, Row};

use super::{StorageError, dialect};

/// The most lists of one server that are looked at. A server that changes its key more often than that
/// has old events that nobody can verify.
pub(crate) const MOST_LISTS: usize = 16;

/// A list of keys as a server published it.
#[derive(Clone, Debug)]
pub(crate) struct PublishedKeys {
    /// The list, signed by the server.
    pub(crate) json: Box<RawValue>,
    /// When it was fetched.
    pub(crate) fetched_at: MilliSecondsSinceUnixEpoch,
}

/// The table `server_keys`.
#[derive(Debug)]
pub(crate) struct ServerKeys<'t>(pub(super) &'t mut AnyConnection);

impl ServerKeys<'_> {
    /// Keeps a list; one with the same keys takes the place of an older one.
    pub(crate) async fn insert(
        &mut self,
        server_name: &ServerName,
        key_ids: &str,
        keys: &PublishedKeys,
    ) -> Result<(), StorageError> {
        sqlx::query(
            "INSERT INTO server_keys (server_name, key_ids, json, fetched_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (server_name, key_ids)
             DO UPDATE SET json = excluded.json, fetched_at = excluded.fetched_at",
        )
        .bind(server_name.as_str())
        .bind(key_ids)
        .bind(keys.json.get().to_owned())
        .bind(i64::from(keys.fetched_at.0))
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// The lists of some servers, the newest of each first.
    pub(crate) async fn by_servers(
        &mut self,
        servers: &[OwnedServerName],
    ) -> Result<BTreeMap<OwnedServerName, Vec<PublishedKeys>>, StorageError> {
        let mut found: BTreeMap<OwnedServerName, Vec<PublishedKeys>> = BTreeMap::new();
        for piece in dialect::pieces(servers) {
            let sql = format!(
                "SELECT server_name, json, fetched_at FROM server_keys WHERE server_name IN ({}) \
                 ORDER BY fetched_at DESC",
                dialect::numbered(1, piece.len())
            );
            let query = piece.iter().fold(dialect::query(sql), |query, name| {
                query.bind(name.to_string())
            });
            for row in query.fetch_all(&mut *self.0).await? {
                let name: String = row.try_get(0)?;
                let wrong = |column| StorageError::inconsistent("server_keys", column, &name);
                let server = ServerName::parse(&name).map_err(|_| wrong("server_name"))?;
                let json = RawValue::from_string(row.try_get(1)?).map_err(|_| wrong("json"))?;
                let fetched_at = UInt::try_from(row.try_get::<i64, _>(2)?);
                let fetched_at = fetched_at.map_err(|_| wrong("fetched_at"))?;
                let lists = found.entry(server).or_default();
                if lists.len() < MOST_LISTS {
                    let fetched_at = MilliSecondsSinceUnixEpoch(fetched_at);
                    lists.push(PublishedKeys { json, fetched_at });
                }
            }
        }
        Ok(found)
    }
}
