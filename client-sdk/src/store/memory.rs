//! A store that forgets everything when it is dropped.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{BoxFuture, ready};

use super::{Changes, Key, Store, StoreError, Table, Value};

/// Keeps everything in memory.
///
/// For tests and for programs that log in afresh each time: a device that forgets its keys cannot
/// be revived, so it should also log out.
#[derive(Default)]
pub struct MemoryStore(Mutex<BTreeMap<Key, Value>>);

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    // A panic while the lock is held cannot leave half of a commit behind, so a poisoned lock is
    // as good as any.
    fn rows(&self) -> MutexGuard<'_, BTreeMap<Key, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MemoryStore")
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Value>, StoreError>> {
        Box::pin(ready(Ok(self.rows().get(key).cloned())))
    }

    fn list<'a>(
        &'a self,
        table: Table,
        partition: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(String, Value)>, StoreError>> {
        let first = Key::new(table, partition, "");
        let rows = self.rows();
        let found = rows
            .range(first..)
            .take_while(|(key, _)| key.table == table && key.partition == partition)
            .map(|(key, value)| (key.id.clone(), value.clone()))
            .collect();
        Box::pin(ready(Ok(found)))
    }

    fn commit(&self, changes: Changes) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut rows = self.rows();
        for (key, value) in changes.into_entries() {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Box::pin(ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite;

    #[tokio::test]
    async fn keeps_the_contract() {
        suite::keeps_the_contract(&MemoryStore::new()).await;
    }
}
