//! Many write at once, some of them in vain, while others read: the log has no gap that fills later, and
//! what a position stands for can be read as soon as the position can.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt, future::join_all};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ruma::{OwnedUserId, UserId, owned_server_name};
use sqlx::Row;
use tokio::sync::Barrier;
use tokio_util::task::TaskTracker;

use super::Tx;
use crate::storage::{
    Families, Storage, StorageError, inspect,
    log::{Change, Entry, StreamPosition},
};

/// How many each writer writes.
const JOBS: usize = 40;

/// How many read meanwhile.
const READERS: usize = 3;

/// Positions, and what was written there.
type Written = BTreeMap<StreamPosition, OwnedUserId>;

/// How a job ends.
#[derive(Clone, Copy)]
enum End {
    Stays,
    Fails,
    Panics,
}

/// Logs some changes, each with a row of the same name and position; then ends as told.
async fn job(tx: &mut Tx, names: Vec<OwnedUserId>, end: End) -> Result<Written, StorageError> {
    let mut written = Written::new();
    for user_id in names {
        let change = Change::DeviceList {
            user_id: user_id.clone(),
        };
        let position = tx.log(change);
        sqlx::query("INSERT INTO followers (name, position) VALUES ($1, $2)")
            .bind(user_id.as_str())
            .bind(position.0)
            .execute(tx.connection())
            .await?;
        written.insert(position, user_id);
    }
    match end {
        End::Stays => Ok(written),
        End::Fails => Err(StorageError::Stopped),
        End::Panics => panic!("a job of the test ends in a panic, as it should"),
    }
}

/// Writes one job after another; what was acknowledged.
async fn writer(storage: Storage, number: usize, looks: Arc<AtomicUsize>) -> Written {
    let mut random = StdRng::seed_from_u64(number as u64);
    let mut acknowledged = Written::new();
    for index in 0..5 * JOBS {
        // On a busy machine all could be written before anybody reads.
        if index >= JOBS && looks.load(Ordering::Acquire) > READERS {
            break;
        }
        let names = (0..random.random_range(1..=3))
            .map(|change| UserId::parse(format!("@w{number}-{index}-{change}:a.test")).unwrap())
            .collect();
        let end = match random.random_range(0..10) {
            0 | 1 => End::Fails,
            2 => End::Panics,
            _ => End::Stays,
        };
        let write = storage.write(move |tx| job(tx, names, end).boxed());
        let outcome: Result<Written, StorageError> = write.await;
        match (outcome, end) {
            (Ok(written), End::Stays) => {
                let last = *written.keys().next_back().unwrap();
                assert!(storage.log().position() >= last, "published, then answered");
                acknowledged.extend(written);
            }
            (Err(StorageError::Stopped), End::Fails | End::Panics) => {}
            (outcome, _) => panic!("a job ended otherwise than it said: {outcome:?}"),
        }
    }
    acknowledged
}

fn written(entry: &Entry) -> (StreamPosition, OwnedUserId) {
    let Change::DeviceList { user_id } = &entry.change else {
        panic!("the test logs nothing else");
    };
    (entry.position, user_id.clone())
}

/// What the log has up to `until`, in its order.
fn logged(storage: &Storage, since: StreamPosition, until: StreamPosition) -> Written {
    let entries = storage.log().since(since).unwrap();
    assert!(entries.is_sorted_by(|a, b| a.position < b.position));
    let entries = entries.iter().map(|entry| written(entry));
    entries.filter(|(at, _)| *at <= until).collect()
}

/// What the table has up to `until`.
async fn stored(storage: &Storage, until: StreamPosition) -> Written {
    let mut reader = storage.read().await.unwrap();
    let rows = sqlx::query("SELECT position, name FROM followers WHERE position <= $1")
        .bind(until.0)
        .fetch_all(reader.connection())
        .await
        .unwrap();
    let row = |row: &sqlx::any::AnyRow| {
        let name: String = row.get(1);
        (StreamPosition(row.get(0)), UserId::parse(name).unwrap())
    };
    rows.iter().map(row).collect()
}

/// Looks again and again, and counts how often there was something new.
async fn reader(
    storage: Storage,
    start: StreamPosition,
    ready: Arc<Barrier>,
    looks: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
) {
    // To connect to a database can take longer than all the writing.
    assert_eq!(stored(&storage, start).await, Written::new());
    ready.wait().await;
    let (mut seen, mut until) = (Written::new(), start);
    loop {
        let last = done.load(Ordering::Acquire);
        let position = storage.log().position();
        assert!(position >= until, "the log never gets shorter");
        let now = logged(&storage, start, position);
        assert!(
            now.range(..=until).eq(seen.iter()),
            "what was published does not change"
        );
        // In pieces, as a sync reads it, it is the same.
        let mut pieces = seen;
        pieces.extend(logged(&storage, until, position));
        assert_eq!(pieces, now);
        assert_eq!(stored(&storage, position).await, now);
        looks.fetch_add(usize::from(position > until), Ordering::AcqRel);
        (seen, until) = (now, position);
        if last {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn write_and_read(writers: usize) {
    let directory = tempfile::tempdir().unwrap();
    let postgres = std::env::var("SOTTO_TEST_DATABASE_URL").ok();
    let names = [format!("sotto_test_{:016x}", rand::random::<u64>())];
    let url = match &postgres {
        Some(base) => inspect::create_databases(base, &names)
            .await
            .unwrap()
            .remove(0),
        None => format!("sqlite://{}/t.db?mode=rwc", directory.path().display()),
    };
    let name = owned_server_name!("a.test");
    let tasks = TaskTracker::new();
    let storage = Storage::open(&url, directory.path(), &name, &tasks)
        .await
        .unwrap();
    let start = storage.log().position();
    let (ready, done) = (Arc::new(Barrier::new(READERS + 1)), Arc::default());
    let looks = Arc::new(AtomicUsize::new(0));
    let clients = TaskTracker::new();
    let read = |_| {
        let (ready, looks) = (ready.clone(), looks.clone());
        reader(storage.clone(), start, ready, looks, Arc::clone(&done))
    };
    let readers: Vec<_> = (0..READERS).map(|n| clients.spawn(read(n))).collect();
    ready.wait().await;
    let writing =
        (0..writers).map(|number| clients.spawn(writer(storage.clone(), number, looks.clone())));
    let acknowledged: Vec<_> = join_all(writing).await;
    done.store(true, Ordering::Release);
    for reader in readers {
        reader.await.unwrap();
    }
    let looks = looks.load(Ordering::Acquire);
    assert!(looks > READERS, "readers saw the log grow");
    let acknowledged: Written = acknowledged.into_iter().flat_map(Result::unwrap).collect();
    assert!(acknowledged.len() > writers * JOBS / 2);
    let end = storage.log().position();
    assert_eq!(logged(&storage, start, end), acknowledged);
    assert_eq!(
        stored(&storage, StreamPosition(i64::MAX)).await,
        acknowledged
    );

    // A new start goes on after everything that was ever given out.
    drop(storage);
    tasks.close();
    tasks.wait().await;
    let storage = Storage::open(&url, directory.path(), &name, &TaskTracker::new())
        .await
        .unwrap();
    assert!(storage.log().position() >= end);
    drop(storage);
    if let Some(base) = postgres {
        inspect::drop_databases(&base, &names).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_gap_in_the_log_fills_later() {
    write_and_read(24).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_that_fails_alone_in_its_transaction_leaves_nothing() {
    write_and_read(1).await;
}
