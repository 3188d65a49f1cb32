//! Taking turns with other processes that have the same store open.
//!
//! Whoever reads and then writes has to be alone meanwhile: two processes that move one ratchet encrypt two
//! messages with one key. So an operation begins with a lock on a file beside the store, which the system
//! takes back from whoever dies. The file says whose turn was the last; if it was another's, what is in
//! memory is not what is on the disk, and is forgotten.
//!
//! A commit that nobody waits for any more may be under way when a turn ends. It must not come between what
//! the next process reads and what it writes. So the database knows whose turn it is as well, and refuses
//! what anybody else writes.

use std::{
    fs::{File, TryLockError},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::SqliteConnection;

use super::{StoreError, Visit};
use crate::environment::Environment;

/// How often it is tried to get a turn, and how long is waited in between: ten seconds in all.
const ATTEMPTS: u32 = 10_000;
const PAUSE: Duration = Duration::from_millis(1);
/// The length of a name.
const NAME: usize = 32;

const CREATE: &str = "CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    owner TEXT NOT NULL
)";

/// The turns of one store of one process.
pub(super) struct Turns {
    file: Mutex<File>,
    /// No other has it.
    name: String,
    inside: Mutex<Inside>,
    /// Whoever waits for a turn waits here.
    door: tokio::sync::Mutex<()>,
}

/// The turn, as far as this process has it.
#[derive(Default)]
struct Inside {
    /// Operations that share it.
    visits: usize,
    /// Counts the turns before which another process had one.
    generation: u64,
    /// The database knows that the last turn was ours.
    known: bool,
}

/// The lock of the file, until an operation has it or this is dropped.
pub(super) struct Held(Arc<Turns>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it is half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// The turns of the store at `path`, under a new name.
    pub(super) fn open(
        path: &Path,
        environment: &dyn Environment,
    ) -> Result<Arc<Self>, StoreError> {
        let mut place = path.as_os_str().to_owned();
        place.push(".turn");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(place)
            .map_err(StoreError::Lock)?;
        let mut name = [0; NAME / 2];
        environment.fill(&mut name)?;
        Ok(Arc::new(Self {
            file: Mutex::new(file),
            name: format!("{:032x}", u128::from_be_bytes(name)),
            inside: Mutex::default(),
            door: tokio::sync::Mutex::default(),
        }))
    }

    /// Has the database refuse what this process writes while it is the turn of another.
    pub(super) async fn fence(&self, database: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query(CREATE).execute(&mut *database).await?;
        for change in ["INSERT", "DELETE"] {
            // The name is of our own making: hexadecimal digits.
            let trigger = format!(
                "CREATE TEMP TRIGGER fence_{change} BEFORE {change} ON items
                 WHEN (SELECT owner FROM turns) IS NOT '{}'
                 BEGIN SELECT RAISE(ABORT, 'it is the turn of another process'); END",
                self.name
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(trigger))
                .execute(&mut *database)
                .await?;
        }
        Ok(())
    }

    /// Waits at the door; one at a time goes on.
    pub(super) async fn queue(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.door.lock().await
    }

    /// Comes in, if another operation of this process is inside.
    pub(super) fn join(self: &Arc<Self>) -> Option<Visit> {
        let mut inside = locked(&self.inside);
        // Before the turn is known to the database, it is not there for others.
        if inside.visits == 0 || !inside.known {
            return None;
        }
        inside.visits += 1;
        Some(Visit::new(inside.generation, Held(self.clone())))
    }

    /// Takes the lock. Only for who has queued, and only while nobody is inside. If the last turn was
    /// another's, nobody joins before [`Self::claim`].
    pub(super) async fn hold(self: &Arc<Self>) -> Result<Held, StoreError> {
        for _ in 0..ATTEMPTS {
            let result = locked(&self.file).try_lock();
            match result {
                Ok(()) => {
                    let known = self.is_ours();
                    let mut inside = locked(&self.inside);
                    inside.known = known;
                    inside.visits = 1;
                    return Ok(Held(self.clone()));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(PAUSE).await,
                Err(TryLockError::Error(error)) => return Err(StoreError::Lock(error)),
            }
        }
        Err(StoreError::InUse)
    }

    /// The operation for which the lock was taken.
    pub(super) fn begin(held: Held) -> Visit {
        let generation = locked(&held.0.inside).generation;
        Visit::new(generation, held)
    }

    /// Whether no other process had a turn since our last one.
    pub(super) fn is_ours(&self) -> bool {
        locked(&self.inside).known && self.last().is_ok_and(|name| name == self.name.as_bytes())
    }

    /// Whether what is remembered is what is on the disk.
    pub(super) fn is_fresh(&self) -> bool {
        let inside = locked(&self.inside);
        if inside.visits > 0 {
            return inside.known;
        }
        drop(inside);
        self.is_ours()
    }

    fn last(&self) -> std::io::Result<[u8; NAME]> {
        let mut name = [0; NAME];
        let mut file = locked(&self.file);
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut name)?;
        Ok(name)
    }

    /// Says that it is our turn now, first to the other processes: whoever dies in between has said
    /// nothing wrong.
    pub(super) async fn claim(&self, database: &mut SqliteConnection) -> Result<(), StoreError> {
        {
            let mut inside = locked(&self.inside);
            inside.known = false;
            inside.generation += 1;
        }
        self.sign().map_err(StoreError::Lock)?;
        sqlx::query(
            "INSERT INTO turns (id, owner) VALUES (0, $1)
             ON CONFLICT (id) DO UPDATE SET owner = excluded.owner",
        )
        .bind(&self.name)
        .execute(database)
        .await?;
        locked(&self.inside).known = true;
        Ok(())
    }

    fn sign(&self) -> std::io::Result<()> {
        let mut file = locked(&self.file);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(self.name.as_bytes())
    }

    fn leave(&self) {
        let mut inside = locked(&self.inside);
        inside.visits = inside.visits.saturating_sub(1);
        if inside.visits == 0
            && let Err(error) = locked(&self.file).unlock()
        {
            tracing::error!(%error, "the turn of this process does not end");
        }
    }
}
