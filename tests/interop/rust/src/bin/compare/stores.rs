//! Where the machines keep what they have.

use std::{path::Path, sync::Arc};

use matrix_sdk_sqlite::SqliteCryptoStore;
use sotto_client::store::{MemoryStore, SealKey, SqliteStore, Store};
use sotto_interop::{Ours, Server, Theirs};
use tempfile::TempDir;

const KEY: [u8; 32] = [7; 32];

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    InMemory,
    /// In SQLite files with a write-ahead log that is synced at each commit (ours says so, SQLite does so
    /// where it is not told otherwise), each row sealed with a key.
    OnDisk,
}

/// The stores of one measurement.
pub(crate) struct Stores(Option<TempDir>);

impl Stores {
    pub(crate) fn new(kept: Kept) -> Self {
        let on_disk = kept == Kept::OnDisk;
        Self(on_disk.then(|| TempDir::new().unwrap()))
    }

    /// A device of ours.
    pub(crate) async fn ours(&self, server: &mut Server, user: &str) -> Ours {
        let store: Arc<dyn Store> = match &self.0 {
            None => Arc::new(MemoryStore::new()),
            Some(directory) => {
                let directory = directory.path().join("ours");
                std::fs::create_dir(&directory).unwrap();
                let key = SealKey::from_bytes(KEY);
                let store = SqliteStore::open_sealed(directory.join("store"), &key);
                Arc::new(store.await.unwrap())
            }
        };
        let mut ours = Ours::over(store, server, user, "OURS").await;
        ours.bootstrap(server).await;
        ours
    }

    /// A device of theirs.
    pub(crate) async fn theirs(&self, server: &mut Server, user: &str) -> Theirs {
        let mut theirs = match &self.0 {
            None => Theirs::new(server, user, "THEIRS").await,
            Some(directory) => {
                let path = directory.path().join("theirs");
                let store = SqliteCryptoStore::open_with_key(path, Some(&KEY)).await;
                Theirs::over(store.unwrap(), server, user, "THEIRS").await
            }
        };
        theirs.bootstrap(server).await;
        theirs
    }

    /// The sizes of both, in kilobytes.
    pub(crate) fn sizes(&self) -> Option<(u64, u64)> {
        let directory = self.0.as_ref()?.path();
        Some((
            size(&directory.join("ours")),
            size(&directory.join("theirs")),
        ))
    }
}

fn size(directory: &Path) -> u64 {
    let mut size = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        size += entry.unwrap().metadata().unwrap().len();
    }
    size / 1024
}
