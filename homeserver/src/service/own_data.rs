//! Global account data that the server itself goes by, read through memory.

use std::{fmt, sync::Arc};

use quick_cache::sync::Cache;
use ruma::{OwnedUserId, UserId};

use crate::storage::{
    Families, Storage, StorageError,
    log::{Change, StreamPosition},
};

/// How many users are remembered.
const CACHED: usize = 10_000;

/// One type of account data of all users, as the server understands it.
pub(crate) struct OwnData<T> {
    storage: Storage,
    event_type: &'static str,
    parse: fn(&str) -> Option<T>,
    cache: Arc<Cache<OwnedUserId, (StreamPosition, Arc<T>)>>,
}

impl<T> Clone for OwnData<T> {
    fn clone(&self) -> Self {
        Self {
            storage: self.storage.clone(),
            event_type: self.event_type,
            parse: self.parse,
            cache: self.cache.clone(),
        }
    }
}

impl<T> fmt::Debug for OwnData<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnData")
            .field("event_type", &self.event_type)
            .finish_non_exhaustive()
    }
}

impl<T: Default> OwnData<T> {
    /// Clients may write anything: what `parse` does not understand counts as not there.
    pub(crate) fn new(
        storage: Storage,
        event_type: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Self {
        Self {
            storage,
            event_type,
            parse,
            cache: Arc::new(Cache::new(CACHED)),
        }
    }

    /// What a user has set. What memory knows is used if the log says that nothing changed since.
    pub(crate) async fn of(&self, user_id: &UserId) -> Result<Arc<T>, StorageError> {
        let log = self.storage.log();
        let now = log.position();
        if let Some((at, known)) = self.cache.get(user_id) {
            if at == now {
                return Ok(known);
            }
            let changed = |change: &Change| matches!(change, Change::AccountData { user_id: whose } if whose == user_id);
            let entries = log.since(at);
            if entries.is_some_and(|e| !e.iter().any(|entry| changed(&entry.change))) {
                self.cache.insert(user_id.to_owned(), (now, known.clone()));
                return Ok(known);
            }
        }
        let mut reader = self.storage.read().await?;
        let mut table = reader.account_data();
        let content = table.content(user_id, None, self.event_type).await?;
        let parsed = content.and_then(|json| (self.parse)(&json));
        let known = Arc::new(parsed.unwrap_or_default());
        self.cache.insert(user_id.to_owned(), (now, known.clone()));
        Ok(known)
    }
}
