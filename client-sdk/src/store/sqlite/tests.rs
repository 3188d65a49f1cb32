//! Tests of the store in a file.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::{MemoryStore, suite};

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
    let options = SqliteOptions::new(path);
    let options = match key {
        Some(key) => options.sealed(key),
        None => options,
    };
    let store = options.open().await.unwrap();
    let (row, changes) = secret_row();
    store.commit(changes).await.unwrap();
    assert!(store.get(&row).await.unwrap().is_some());
    store
        .database
        .into_inner()
        .connection
        .close()
        .await
        .unwrap();
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

    // What was read once is remembered.
    store.database.lock().await.remembered = Remembered::default();
    sqlx::query("UPDATE items SET value = (SELECT value FROM items WHERE id = $1) WHERE id = $2")
        .bind(store.hidden(Table::Devices, "OTHER"))
        .bind(store.hidden(Table::Devices, "ALICEPHONE"))
        .execute(&mut store.database.lock().await.connection)
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

/// One step of a random use: what is written into a partition, in one commit.
type Step = (u8, Vec<(u8, Option<u16>)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (any::<u8>(), proptest::option::weighted(0.8, 0..600_u16));
    let writes = proptest::collection::vec(write, 0..60);
    proptest::collection::vec((0..4_u8, writes), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_remembered_is_what_is_stored(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(random_use(steps));
    }
}

async fn random_use(steps: Vec<Step>) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store");
    let key = SealKey::from_bytes(KEY);
    let store = SqliteStore::open_sealed(&path, &key).await.unwrap();
    let model = MemoryStore::new();
    for (partition, writes) in steps {
        let partition = partition.to_string();
        let mut changes = Changes::default();
        for (id, length) in &writes {
            let key = Key::new(Table::Members, &partition, id.to_string());
            match length {
                Some(length) => changes.put(key, Zeroizing::new(vec![*id; usize::from(*length)])),
                None => changes.delete(key),
            }
        }
        model.commit(changes.clone()).await.unwrap();
        store.commit(changes).await.unwrap();
        for (id, _) in &writes {
            let key = Key::new(Table::Members, &partition, id.to_string());
            assert_eq!(
                store.get(&key).await.unwrap(),
                model.get(&key).await.unwrap()
            );
        }
        if writes.len() % 3 == 0 {
            same(&store, &model).await;
        }
    }
    same(&store, &model).await;
    drop(store);
    same(
        &SqliteStore::open_sealed(&path, &key).await.unwrap(),
        &model,
    )
    .await;
}

async fn same(store: &SqliteStore, model: &MemoryStore) {
    for partition in ["0", "1", "2", "3"] {
        let rows = store.list(Table::Members, partition).await.unwrap();
        assert_eq!(rows, model.list(Table::Members, partition).await.unwrap());
    }
}
