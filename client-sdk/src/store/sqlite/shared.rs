//! Tests of a store that several processes have open.

#![expect(clippy::unwrap_used, reason = "tests")]

use tempfile::TempDir;

use super::*;
use crate::store::suite;

fn row() -> Key {
    Key::new(Table::OutboundSessions, "", "!room:example.org")
}

fn change(text: &str) -> Changes {
    let mut changes = Changes::default();
    changes.put(row(), Zeroizing::new(text.as_bytes().to_vec()));
    changes
}

async fn both(
    directory: &TempDir,
    open: fn(SqliteOptions) -> SqliteOptions,
) -> (SqliteStore, SqliteStore) {
    let options = || open(SqliteOptions::new(directory.path().join("store")));
    let (one, other) = tokio::join!(options().open(), options().open());
    (one.unwrap(), other.unwrap())
}

async fn value(store: &SqliteStore) -> String {
    let value = store.get(&row()).await.unwrap().unwrap();
    String::from_utf8(value.to_vec()).unwrap()
}

#[tokio::test]
async fn keeps_the_contract_when_shared() {
    let directory = TempDir::new().unwrap();
    let (one, other) = both(&directory, SqliteOptions::shared).await;
    suite::keeps_the_contract(&one).await;
    other.commit(change("1")).await.unwrap();
    assert_eq!(value(&one).await, "1");
}

#[tokio::test]
async fn two_that_open_a_new_store_at_once_have_one_key() {
    let directory = TempDir::new().unwrap();
    let passphrase = Secret::new("correct horse");
    let options = || {
        let path = directory.path().join("store");
        let options = SqliteOptions::new(path).passphrase(&passphrase);
        options.shared().open()
    };
    let (one, other) = tokio::join!(options(), options());
    let (one, other) = (one.unwrap(), other.unwrap());
    one.commit(change("1")).await.unwrap();
    assert_eq!(value(&other).await, "1");
}

#[tokio::test]
async fn t_mp_3_what_another_has_written_is_seen_at_once() {
    for (open, seen) in [
        (SqliteOptions::shared as fn(_) -> _, true),
        (SqliteOptions::careless, false),
    ] {
        let directory = TempDir::new().unwrap();
        let (one, other) = both(&directory, open).await;
        one.commit(change("1")).await.unwrap();
        for store in [&one, &other] {
            assert_eq!(value(store).await, "1");
        }
        other.commit(change("2")).await.unwrap();
        assert_eq!(value(&one).await == "2", seen, "control");
        let listed = one.list(Table::OutboundSessions, "").await.unwrap();
        assert_eq!(*listed[0].1 == *b"2", seen, "control");
        // Nor is it forgotten with the next turn of its own.
        drop(one.enter().await.unwrap());
        assert_eq!(value(&one).await == "2", seen, "control");
    }
}

#[tokio::test]
async fn t_mp_3_one_turn_ends_before_the_next_begins() {
    let directory = TempDir::new().unwrap();
    let (one, other) = both(&directory, SqliteOptions::shared).await;
    let visit = one.enter().await.unwrap();
    // Operations of one process share its turn.
    let second = one.enter().await.unwrap();
    one.commit(change("1")).await.unwrap();
    let waiting = tokio::time::timeout(3 * LOCK_PAUSE, other.enter());
    assert!(waiting.await.is_err());
    drop(visit);
    let waiting = tokio::time::timeout(3 * LOCK_PAUSE, other.commit(change("2")));
    assert!(waiting.await.is_err());
    assert_eq!(value(&other).await, "1", "whoever only reads does not wait");
    drop(second);
    let visit = other.enter().await.unwrap();
    assert_eq!(value(&other).await, "1");
    drop(visit);
}

#[tokio::test]
async fn t_mp_3_the_generation_changes_when_another_had_a_turn() {
    let directory = TempDir::new().unwrap();
    let (one, other) = both(&directory, SqliteOptions::shared).await;
    let generation = async |store: &SqliteStore| store.enter().await.unwrap().generation();
    let first = generation(&one).await;
    assert!(first > 0, "others may come");
    assert_eq!(generation(&one).await, first, "control");
    generation(&other).await;
    assert_ne!(generation(&one).await, first);
    let directory = TempDir::new().unwrap();
    let alone = SqliteStore::open(directory.path().join("store"));
    assert_eq!(generation(&alone.await.unwrap()).await, 0);
}

#[tokio::test]
async fn t_mp_3_nobody_joins_a_turn_that_has_not_begun() {
    let directory = TempDir::new().unwrap();
    let (one, other) = both(&directory, SqliteOptions::shared).await;
    one.commit(change("1")).await.unwrap();
    assert_eq!(value(&one).await, "1");
    let before = one.enter().await.unwrap().generation();
    other.commit(change("2")).await.unwrap();
    // While the first waits for the database, the second finds that there is a turn.
    let (seen, first, second) = tokio::join!(value(&one), one.enter(), one.enter());
    assert_eq!(seen, "2");
    let generations = [first, second].map(|visit| visit.unwrap().generation());
    assert_eq!(generations, [before + 1; 2]);
    assert_eq!(
        one.enter().await.unwrap().generation(),
        before + 1,
        "control"
    );
}

#[tokio::test]
async fn t_mp_3_what_comes_after_the_end_of_a_turn_is_not_written() {
    let directory = TempDir::new().unwrap();
    let (one, other) = both(&directory, SqliteOptions::shared).await;
    one.commit(change("1")).await.unwrap();
    let mut deletion = Changes::default();
    deletion.delete(row());
    // The other has read this, and is about to write.
    let visit = other.enter().await.unwrap();
    assert_eq!(value(&other).await, "1");
    let mut database = one.database.lock().await;
    for late in [change("late"), deletion] {
        let result = one.write(&mut database.connection, &late).await;
        assert!(matches!(result, Err(StoreError::Database(_))));
    }
    drop(database);
    other.commit(change("2")).await.unwrap();
    drop(visit);
    assert_eq!(value(&one).await, "2");
    // Control: in its turn the same is written.
    let visit = one.enter().await.unwrap();
    let mut database = one.database.lock().await;
    let result = one.write(&mut database.connection, &change("3")).await;
    result.unwrap();
    drop((database, visit));
    assert_eq!(value(&other).await, "3");
}

#[tokio::test]
async fn t_mp_3_nobody_is_alone_where_others_are() {
    let directory = TempDir::new().unwrap();
    let (here, there) = (
        directory.path().join("here"),
        directory.path().join("there"),
    );
    let shared = SqliteOptions::new(&here).shared().open().await.unwrap();
    let alone = SqliteStore::open(&there).await.unwrap();
    let (one, other) = tokio::join!(
        SqliteStore::open(&here),
        SqliteOptions::new(&there).shared().open()
    );
    for refused in [one, other] {
        assert!(matches!(refused, Err(StoreError::InUse)));
    }
    drop((shared, alone));
    SqliteStore::open(&here).await.unwrap();
    SqliteOptions::new(&there).shared().open().await.unwrap();
}
