//! The store for programs that are started more than once.

mod options;

use std::{
    fmt,
    fs::{File, TryLockError},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{
    ConnectOptions as _, Connection as _, QueryBuilder, Row as _, Sqlite, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

pub use self::options::SqliteOptions;
use self::options::{Opening, Sharing};
use super::{
    Changes, Key, SealKey, Store, StoreError, Table, Value, Visit, passphrase,
    remembered::{self, Known, Remembered, Rows},
    seal::Seal,
    turns::Turns,
};
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

/// How many rows one statement writes at most.
const ROWS_AT_ONCE: usize = 100;

/// How often a lock that somebody else has is tried, and how long is waited in between: two seconds in all.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The id of the row by which a wrong seal key is noticed at once.
const SEAL_CHECK: &str = "seal";

/// Keeps everything in one SQLite file.
///
/// Commits are synced to disk before they return: a ratchet that goes back in time after a power
/// cut would encrypt two messages with one key. For the same reason one process has it open at a time,
/// or all [take turns](SqliteOptions::shared).
pub struct SqliteStore {
    database: Mutex<Database>,
    seal: Option<Seal>,
    environment: Arc<dyn Environment>,
    /// Other processes may have the store open.
    turns: Option<Arc<Turns>>,
    /// Held as long as the store is open; ends with the process, however that ends.
    _lock: File,
}

struct Database {
    /// One and no pool, which would ask whether it is still there before and after each use: that costs as
    /// much as what it is used for.
    connection: SqliteConnection,
    remembered: Remembered,
}

impl SqliteStore {
    /// Opens or creates the file, without sealing its rows.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        SqliteOptions::new(path.as_ref()).open().await
    }

    /// Opens or creates the file; every row is sealed with `key`.
    ///
    /// A store that was made with another key, or without one, is refused.
    pub async fn open_sealed(path: impl AsRef<Path>, key: &SealKey) -> Result<Self, StoreError> {
        SqliteOptions::new(path.as_ref()).sealed(key).open().await
    }

    /// Opens or creates the file; every row is sealed with a random key, which is kept in the file
    /// under the passphrase (Argon2id, 64 MiB, three passes: it takes a moment).
    pub async fn open_with_passphrase(
        path: impl AsRef<Path>,
        passphrase: &Secret,
    ) -> Result<Self, StoreError> {
        let options = SqliteOptions::new(path.as_ref());
        options.passphrase(passphrase).open().await
    }

    async fn open_with(options: SqliteOptions) -> Result<Self, StoreError> {
        let SqliteOptions {
            path,
            opening,
            sharing,
        } = options;
        let environment = Arc::new(SystemEnvironment);
        let lock = lock(&path, sharing).await?;
        let turns = if sharing == Sharing::Turns {
            Some(Turns::open(&path, &*environment)?)
        } else {
            None
        };
        let held = match &turns {
            Some(turns) => Some(turns.hold().await?),
            None => None,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let mut connection = options.connect().await?;
        sqlx::query(CREATE).execute(&mut connection).await?;
        // A commit that nobody waited for may still be under way in this process, though its store is
        // dropped. Whoever read around it would use the ratchets that it moves a second time.
        sqlx::raw_sql("BEGIN IMMEDIATE; COMMIT")
            .execute(&mut connection)
            .await?;
        let seal = match opening {
            Opening::Plain => None,
            Opening::Key(key) => Some(Seal::new(&key)),
            Opening::Passphrase(passphrase) => {
                let key =
                    passphrase::store_key(&mut connection, &passphrase, &*environment).await?;
                Some(Seal::new(&key))
            }
        };
        if let Some(turns) = &turns {
            turns.fence(&mut connection).await?;
        }
        drop(held);
        let store = Self {
            database: Mutex::new(Database {
                connection,
                remembered: Remembered::default(),
            }),
            seal,
            environment,
            turns,
            _lock: lock,
        };
        let visit = store.enter().await?;
        store.check_seal().await?;
        drop(visit);
        Ok(store)
    }

    async fn check_seal(&self) -> Result<(), StoreError> {
        let key = Key::new(Table::Meta, "", SEAL_CHECK);
        let rows: i64 = sqlx::query("SELECT COUNT(*) FROM items WHERE kind <> $1")
            .bind(passphrase::KIND)
            .fetch_one(&mut self.database.lock().await.connection)
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

    /// The rows of a partition, at most so many, by their real ids.
    async fn read(
        &self,
        database: &mut Database,
        (table, partition): (Table, &str),
        limit: usize,
    ) -> Result<Rows, StoreError> {
        let partition = self.hidden(table, partition);
        let rows =
            sqlx::query("SELECT id, value FROM items WHERE kind = $1 AND partition = $2 LIMIT $3")
                .bind(table.name())
                .bind(&partition)
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(&mut database.connection)
                .await?;
        rows.into_iter()
            .map(|row| self.opened(table, &partition, row.try_get(0)?, row.try_get(1)?))
            .collect()
    }

    async fn read_one(
        &self,
        database: &mut Database,
        key: &Key,
    ) -> Result<Option<Value>, StoreError> {
        let partition = self.hidden(key.table, &key.partition);
        let id = self.hidden(key.table, &key.id);
        let row =
            sqlx::query("SELECT value FROM items WHERE kind = $1 AND partition = $2 AND id = $3")
                .bind(key.table.name())
                .bind(&partition)
                .bind(&id)
                .fetch_optional(&mut database.connection)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let (_, value) = self.opened(key.table, &partition, id, row.try_get(0)?)?;
        Ok(Some(value))
    }

    /// Whether no other process can have written since what is remembered was read.
    fn is_fresh(&self) -> bool {
        self.turns.as_ref().is_none_or(|turns| turns.is_fresh())
    }

    async fn write(
        &self,
        connection: &mut SqliteConnection,
        changes: &Changes,
    ) -> Result<(), StoreError> {
        let (mut rows, mut gone) = (Vec::new(), Vec::new());
        for (key, value) in changes.iter() {
            let partition = self.hidden(key.table, &key.partition);
            let id = self.hidden(key.table, &key.id);
            let Some(value) = value else {
                gone.push((key.table.name(), partition, id));
                continue;
            };
            let bytes = match &self.seal {
                None => value.to_vec(),
                Some(seal) => seal.seal(&*self.environment, key, value)?,
            };
            rows.push((key.table.name(), partition, id, bytes));
        }
        if gone.is_empty() && rows.len() <= ROWS_AT_ONCE {
            // One statement is a transaction, without the trips to the database for its begin and its end.
            return put(connection, rows).await;
        }
        let mut transaction = connection.begin().await?;
        for (kind, partition, id) in gone {
            sqlx::query("DELETE FROM items WHERE kind = $1 AND partition = $2 AND id = $3")
                .bind(kind)
                .bind(partition)
                .bind(id)
                .execute(&mut *transaction)
                .await?;
        }
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(ROWS_AT_ONCE));
            put(&mut transaction, std::mem::replace(&mut rows, rest)).await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// A row as it is written: its kind, its partition, its id, its value.
type NewRow = (&'static str, String, String, Vec<u8>);

/// Writes rows, at least one.
async fn put(database: &mut SqliteConnection, rows: Vec<NewRow>) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO items (kind, partition, id, value) ");
    query.push_values(rows, |mut row, (kind, partition, id, value)| {
        row.push_bind(kind)
            .push_bind(partition)
            .push_bind(id)
            .push_bind(value);
    });
    query.push(" ON CONFLICT (kind, partition, id) DO UPDATE SET value = excluded.value");
    query.build().execute(database).await?;
    Ok(())
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
            let mut database = self.database.lock().await;
            if !self.is_fresh() {
                return self.read_one(&mut database, key).await;
            }
            match database.remembered.find(key.table, &key.partition) {
                Known::Rows(rows) => return Ok(rows.get(&key.id).cloned()),
                Known::Big => return self.read_one(&mut database, key).await,
                Known::Nothing => {}
            }
            // Whoever wants one row often wants its neighbours next.
            let name = (key.table, key.partition.as_str());
            let rows = match self.read(&mut database, name, remembered::ROWS + 1).await {
                // One that was tampered with takes nothing from the others.
                Err(StoreError::NotAuthentic { .. }) => {
                    return self.read_one(&mut database, key).await;
                }
                rows => rows?,
            };
            let found = rows.get(&key.id).cloned();
            let all = rows.len() <= remembered::ROWS;
            let rows = all.then_some(rows);
            database.remembered.learn(key.table, &key.partition, rows);
            if found.is_none() && !all {
                return self.read_one(&mut database, key).await;
            }
            Ok(found)
        })
    }

    fn list<'a>(
        &'a self,
        table: Table,
        partition: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(String, Value)>, StoreError>> {
        Box::pin(async move {
            let mut database = self.database.lock().await;
            if !self.is_fresh() {
                let rows = self
                    .read(&mut database, (table, partition), usize::MAX)
                    .await?;
                return Ok(rows.into_iter().collect());
            }
            if let Known::Rows(rows) = database.remembered.find(table, partition) {
                let copy = |(id, value): (&String, &Value)| (id.clone(), value.clone());
                return Ok(rows.iter().map(copy).collect());
            }
            let name = (table, partition);
            let rows = self.read(&mut database, name, usize::MAX).await?;
            let small = rows.len() <= remembered::ROWS;
            let learned = small.then(|| rows.clone());
            database.remembered.learn(table, partition, learned);
            Ok(rows.into_iter().collect())
        })
    }

    fn commit(&self, changes: Changes) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if changes.is_empty() {
                return Ok(());
            }
            let _visit = self.enter().await?;
            let mut database = self.database.lock().await;
            let touched = database.remembered.touch(&changes);
            self.write(&mut database.connection, &changes).await?;
            database.remembered.committed(touched, &changes);
            Ok(())
        })
    }

    fn enter(&self) -> BoxFuture<'_, Result<Visit, StoreError>> {
        Box::pin(async move {
            let Some(turns) = &self.turns else {
                return Ok(Visit::alone());
            };
            if let Some(visit) = turns.join() {
                return Ok(visit);
            }
            let _queue = turns.queue().await;
            if let Some(visit) = turns.join() {
                return Ok(visit);
            }
            let held = turns.hold().await?;
            if !turns.is_ours() {
                let mut database = self.database.lock().await;
                database.remembered = Remembered::default();
                turns.claim(&mut database.connection).await?;
            }
            Ok(Turns::begin(held))
        })
    }
}

/// Takes the lock of a store, a file beside it. Whoever has it may be about to end, or be a copy of this
/// process that is about to become another program: that is waited for.
async fn lock(path: &Path, sharing: Sharing) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(name)
        .map_err(StoreError::Lock)?;
    for _ in 0..LOCK_ATTEMPTS {
        let result = if sharing == Sharing::Alone {
            file.try_lock()
        } else {
            file.try_lock_shared()
        };
        match result {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::Error(error)) => return Err(StoreError::Lock(error)),
        }
    }
    Err(StoreError::InUse)
}

#[cfg(test)]
mod shared;
#[cfg(test)]
mod tests;
