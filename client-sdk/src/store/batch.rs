//! Typed reads and writes on top of a store, collected into one commit.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{Changes, Key, Store, StoreError, Table, Value};

/// Reads through its own writes; nothing reaches the store before [`Batch::commit`].
///
/// A batch that is dropped leaves no trace, so any `?` on the way aborts a whole operation.
pub(crate) struct Batch<'s> {
    store: &'s dyn Store,
    changes: Changes,
}

impl<'s> Batch<'s> {
    pub(crate) fn new(store: &'s dyn Store) -> Self {
        Self {
            store,
            changes: Changes::default(),
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        table: Table,
        partition: &str,
        id: &str,
    ) -> Result<Option<T>, StoreError> {
        let bytes = self.bytes(table, partition, id).await?;
        bytes.map(|bytes| decode(table, &bytes)).transpose()
    }

    /// A value as it is stored.
    pub(crate) async fn bytes(
        &self,
        table: Table,
        partition: &str,
        id: &str,
    ) -> Result<Option<Value>, StoreError> {
        let key = Key::new(table, partition, id);
        match self.changes.get(&key) {
            Some(value) => Ok(value.cloned()),
            None => self.store.get(&key).await,
        }
    }

    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        table: Table,
        partition: &str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let rows = self.list_bytes(table, partition).await?;
        rows.into_iter()
            .map(|(id, bytes)| Ok((id, decode(table, &bytes)?)))
            .collect()
    }

    /// The values of a partition as they are stored.
    pub(crate) async fn list_bytes(
        &self,
        table: Table,
        partition: &str,
    ) -> Result<Vec<(String, Value)>, StoreError> {
        let stored = self.store.list(table, partition).await?;
        let mut changes = self.changes.of_partition(table, partition).peekable();
        if changes.peek().is_none() {
            return Ok(stored);
        }
        let mut rows: BTreeMap<String, Value> = stored.into_iter().collect();
        for (id, value) in changes {
            match value {
                Some(bytes) => rows.insert(id.to_owned(), bytes.clone()),
                None => rows.remove(id),
            };
        }
        Ok(rows.into_iter().collect())
    }

    pub(crate) fn put<T: Serialize>(
        &mut self,
        table: Table,
        partition: &str,
        id: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let value = encode(table, value)?;
        self.changes.put(Key::new(table, partition, id), value);
        Ok(())
    }

    pub(crate) fn delete(&mut self, table: Table, partition: &str, id: &str) {
        self.changes.delete(Key::new(table, partition, id));
    }

    pub(crate) fn extend(&mut self, changes: Changes) {
        self.changes.extend(changes);
    }

    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.store.commit(self.changes).await
    }
}

/// Whether the values of a table are packed (`MessagePack`, with the names of fields) and not JSON.
///
/// They are mostly keys, written at each message, which in JSON are lists of numbers: more than twice as
/// long, and several times as much work.
fn is_packed(table: Table) -> bool {
    matches!(
        table,
        Table::Account | Table::OlmSessions | Table::InboundSessions | Table::OutboundSessions
    )
}

fn encode<T: Serialize>(table: Table, value: &T) -> Result<Value, StoreError> {
    let bytes = if is_packed(table) {
        rmp_serde::to_vec_named(value).ok()
    } else {
        serde_json::to_vec(value).ok()
    };
    bytes
        .map(Zeroizing::new)
        .ok_or(StoreError::Encode { table })
}

/// Reads a value.
pub(crate) fn decode<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, StoreError> {
    let value = if is_packed(table) {
        rmp_serde::from_slice(bytes).ok()
    } else {
        serde_json::from_slice(bytes).ok()
    };
    value.ok_or(StoreError::Corrupt { table })
}
