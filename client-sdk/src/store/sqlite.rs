//! The store for programs that are started more than once.

use std::{
    fmt,
    fs::{File, TryLockError},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{
    Row as _, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use zeroize::Zeroizing;

use super::{Changes, Key, SealKey, Store, StoreError, Table, Value, passphrase, seal::Seal};
use crate::{
    crypto::Secret,
    environment::{Environment, SystemEnvironment},
};

const CREATE: &str = "CREATE TABLE IF NOT EXISTS items (
    kind TEXT NOT NULL,
    partition TEXT NOT NULL,
    id TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (kind, partition, id)
) WITHOUT ROWID";

/// How often a lock that somebody else has is tried, and how long is waited in between: two seconds in all.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The id of the row by which a wrong seal key is noticed at once.
const SEAL_CHECK: &str = "seal";

/// Keeps everything in one SQLite file.
///
/// Commits are synced to disk before they return: a ratchet that goes back in time after a power
/// cut would encrypt two messages with one key.
pub struct SqliteStore {
    pool: SqlitePool,
    seal: Option<Seal>,
    environment: Arc<dyn Environment>,
    /// Held as long as the store is open; ends with the process, however that ends.
    _lock: File,
}

/// How a store is opened.
enum Opening<'a> {
    Plain,
    Key(&'a SealKey),
    Passphrase(&'a Secret),
}

impl SqliteStore {
    /// Opens or creates the file, without sealing its rows.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path.as_ref(), Opening::Plain).await
    }

    /// Opens or creates the file; every row is sealed with `key`.
    ///
    /// A store that was made with another key, or without one, is refused.
    pub async fn open_sealed(path: impl AsRef<Path>, key: &SealKey) -> Result<Self, StoreError> {
        Self::open_with(path.as_ref(), Opening::Key(key)).await
    }

    /// Opens or creates the file; every row is sealed with a random key, which is kept in the file
    /// under the passphrase (Argon2id, 64 MiB, three passes: it takes a moment).
    pub async fn open_with_passphrase(
        path: impl AsRef<Path>,
        passphrase: &Secret,
    ) -> Result<Self, StoreError> {
        Self::open_with(path.as_ref(), Opening::Passphrase(passphrase)).await
    }

    async fn open_with(path: &Path, opening: Opening<'_>) -> Result<Self, StoreError> {
        let lock = lock(path).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        sqlx::query(CREATE).execute(&pool).await?;
        // A commit that nobody waited for may still be under way in this process, though its store is
        // dropped. Whoever read around it would use the ratchets that it moves a second time.
        sqlx::raw_sql("BEGIN IMMEDIATE; COMMIT")
            .execute(&pool)
            .await?;
        let environment = Arc::new(SystemEnvironment);
        let seal = match opening {
            Opening::Plain => None,
            Opening::Key(key) => Some(Seal::new(key)),
            Opening::Passphrase(passphrase) => {
                let key = passphrase::store_key(&pool, passphrase, &*environment).await?;
                Some(Seal::new(&key))
            }
        };
        let store = Self {
            pool,
            seal,
            environment,
            _lock: lock,
        };
        store.check_seal().await?;
        Ok(store)
    }

    async fn check_seal(&self) -> Result<(), StoreError> {
        let key = Key::new(Table::Meta, "", SEAL_CHECK);
        let rows: i64 = sqlx::query("SELECT COUNT(*) FROM items WHERE kind <> $1")
            .bind(passphrase::KIND)
            .fetch_one(&self.pool)
            .await?
            .try_get(0)?;
        match self.get(&key).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) if rows == 0 => {
                let mut changes = Changes::default();
                changes.put(key, Zeroizing::new(b"\"sotto\"".to_vec()));
                self.commit(changes).await
            }
            Ok(None) | Err(StoreError::NotAuthentic { .. }) => Err(StoreError::WrongKey),
            Err(error) => Err(error),
        }
    }

    fn hidden(&self, table: Table, part: &str) -> String {
        self.seal
            .as_ref()
            .map_or_else(|| part.to_owned(), |seal| seal.name(table, part))
    }

    fn opened(
        &self,
        table: Table,
        partition: &str,
        id: String,
        value: Vec<u8>,
    ) -> Result<(String, Value), StoreError> {
        match &self.seal {
            None => Ok((id, Zeroizing::new(value))),
            Some(seal) => seal.open(table, partition, &id, &value),
        }
    }

    async fn write(&self, changes: Changes) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        for (key, value) in changes.iter() {
            let partition = self.hidden(key.table, &key.partition);
            let id = self.hidden(key.table, &key.id);
            let Some(value) = value else {
                sqlx::query("DELETE FROM items WHERE kind = $1 AND partition = $2 AND id = $3")
                    .bind(key.table.name())
                    .bind(partition)
                    .bind(id)
                    .execute(&mut *transaction)
                    .await?;
                continue;
            };
            let bytes = match &self.seal {
                None => value.to_vec(),
                Some(seal) => seal.seal(&*self.environment, key, value)?,
            };
            sqlx::query(
                "INSERT INTO items (kind, partition, id, value) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (kind, partition, id) DO UPDATE SET value = excluded.value",
            )
            .bind(key.table.name())
            .bind(partition)
            .bind(id)
            .bind(bytes)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = self.seal.is_some();
        formatter
            .debug_struct("SqliteStore")
            .field("sealed", &sealed)
            .finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Value>, StoreError>> {
        Box::pin(async move {
            let partition = self.hidden(key.table, &key.partition);
            let id = self.hidden(key.table, &key.id);
            let row = sqlx::query(
                "SELECT value FROM items WHERE kind = $1 AND partition = $2 AND id = $3",
            )
            .bind(key.table.name())
            .bind(&partition)
            .bind(&id)
            .fetch_optional(&self.pool)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let (_, value) = self.opened(key.table, &partition, id, row.try_get(0)?)?;
            Ok(Some(value))
        })
    }

    fn list<'a>(
        &'a self,
        table: Table,
        partition: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(String, Value)>, StoreError>> {
        Box::pin(async move {
            let partition = self.hidden(table, partition);
            let rows = sqlx::query(
                "SELECT id, value FROM items WHERE kind = $1 AND partition = $2 ORDER BY id",
            )
            .bind(table.name())
            .bind(&partition)
            .fetch_all(&self.pool)
            .await?;
            let mut found = rows
                .into_iter()
                .map(|row| self.opened(table, &partition, row.try_get(0)?, row.try_get(1)?))
                .collect::<Result<Vec<_>, _>>()?;
            // Hidden names sort differently from the real ones.
            found.sort_by(|(one, _), (other, _)| one.cmp(other));
            Ok(found)
        })
    }

    fn commit(&self, changes: Changes) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(changes))
    }
}

/// Takes the lock of a store, a file beside it. Whoever has it may be about to end, or be a copy of this
/// process that is about to become another program: that is waited for.
async fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(name)
        .map_err(StoreError::Lock)?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::Error(error)) => return Err(StoreError::Lock(error)),
        }
    }
    Err(StoreError::InUse)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use tempfile::TempDir;

    use super::*;
    use crate::store::suite;

    const KEY: [u8; 32] = [7; 32];

    #[tokio::test]
    async fn keeps_the_contract() {
        let directory = TempDir::new().unwrap();
        let store = SqliteStore::open(directory.path().join("store"))
            .await
            .unwrap();
        suite::keeps_the_contract(&store).await;
    }

    #[tokio::test]
    async fn keeps_the_contract_when_sealed() {
        let directory = TempDir::new().unwrap();
        let key = SealKey::from_bytes(KEY);
        let store = SqliteStore::open_sealed(directory.path().join("store"), &key)
            .await
            .unwrap();
        suite::keeps_the_contract(&store).await;
    }

    fn secret_row() -> (Key, Changes) {
        let key = Key::new(Table::Devices, "@alice:example.org", "ALICEPHONE");
        let mut changes = Changes::default();
        changes.put(key.clone(), Zeroizing::new(br#""the plaintext""#.to_vec()));
        (key, changes)
    }

    async fn file_bytes(path: &Path, key: Option<&SealKey>) -> Vec<u8> {
        let store = SqliteStore::open_with(path, key.map_or(Opening::Plain, Opening::Key))
            .await
            .unwrap();
        let (row, changes) = secret_row();
        store.commit(changes).await.unwrap();
        assert!(store.get(&row).await.unwrap().is_some());
        store.pool.close().await;
        std::fs::read(path).unwrap()
    }

    fn contains(bytes: &[u8], needle: &str) -> bool {
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    }

    #[tokio::test]
    async fn t_sto_1_a_sealed_file_shows_neither_values_nor_names() {
        let directory = TempDir::new().unwrap();
        let open = file_bytes(&directory.path().join("open"), None).await;
        let key = SealKey::from_bytes(KEY);
        let sealed = file_bytes(&directory.path().join("sealed"), Some(&key)).await;
        for needle in ["the plaintext", "@alice:example.org", "ALICEPHONE"] {
            assert!(contains(&open, needle), "control: {needle}");
            assert!(!contains(&sealed, needle), "{needle}");
        }
    }

    #[tokio::test]
    async fn t_sto_2_a_swapped_row_is_refused() {
        let directory = TempDir::new().unwrap();
        let key = SealKey::from_bytes(KEY);
        let store = SqliteStore::open_sealed(directory.path().join("store"), &key)
            .await
            .unwrap();
        let (row, mut changes) = secret_row();
        let other = Key::new(Table::Devices, "@alice:example.org", "OTHER");
        changes.put(other.clone(), Zeroizing::new(b"\"another\"".to_vec()));
        store.commit(changes).await.unwrap();
        assert!(store.get(&row).await.unwrap().is_some(), "control");

        sqlx::query(
            "UPDATE items SET value = (SELECT value FROM items WHERE id = $1) WHERE id = $2",
        )
        .bind(store.hidden(Table::Devices, "OTHER"))
        .bind(store.hidden(Table::Devices, "ALICEPHONE"))
        .execute(&store.pool)
        .await
        .unwrap();
        assert!(matches!(
            store.get(&row).await,
            Err(StoreError::NotAuthentic { .. })
        ));
        assert!(store.get(&other).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn t_sto_3_a_store_is_opened_once_at_a_time() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let store = SqliteStore::open(&path).await.unwrap();
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::InUse));
        // One that is let go of meanwhile is waited for.
        let again = SqliteStore::open(&path);
        let let_go = async {
            tokio::time::sleep(3 * LOCK_PAUSE).await;
            drop(store);
        };
        let (again, ()) = tokio::join!(again, let_go);
        again.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t_sto_4_a_commit_that_nobody_waits_for_is_over_when_the_store_opens_again() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let counter = Key::new(Table::Meta, "", "counter");
        let (mut done, mut dropped) = (0, 0);
        for round in 1..=200_u32 {
            let store = SqliteStore::open(&path).await.unwrap();
            let mut changes = Changes::default();
            for row in 0..20 {
                let value = Zeroizing::new(vec![0; 4000]);
                changes.put(Key::new(Table::Devices, "", row.to_string()), value);
            }
            let value = Zeroizing::new(round.to_string().into_bytes());
            changes.put(counter.clone(), value);
            let patience = Duration::from_micros(u64::from(round % 50) * 100);
            let commit = tokio::time::timeout(patience, store.commit(changes));
            match commit.await {
                Ok(result) => {
                    result.unwrap();
                    done += 1;
                }
                Err(_) => dropped += 1,
            }
            drop(store);
            let store = SqliteStore::open(&path).await.unwrap();
            let first = store.get(&counter).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
            let later = store.get(&counter).await.unwrap();
            assert_eq!(first, later, "round {round}");
        }
        assert!(done > 0 && dropped > 0, "{done} {dropped}");
    }

    #[tokio::test]
    async fn a_wrong_key_is_noticed_when_opening() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let key = SealKey::from_bytes(KEY);
        drop(SqliteStore::open_sealed(&path, &key).await.unwrap());
        drop(SqliteStore::open_sealed(&path, &key).await.unwrap());
        let wrong = SealKey::from_bytes([8; 32]);
        let error = SqliteStore::open_sealed(&path, &wrong).await.unwrap_err();
        assert!(matches!(error, StoreError::WrongKey));
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::WrongKey));
    }

    #[tokio::test]
    async fn values_survive_reopening() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let (row, changes) = secret_row();
        SqliteStore::open(&path)
            .await
            .unwrap()
            .commit(changes)
            .await
            .unwrap();
        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(
            **store.get(&row).await.unwrap().unwrap(),
            *br#""the plaintext""#
        );
    }
}
