//! The tests that every store has to pass.

#![expect(clippy::unwrap_used, reason = "tests")]

use zeroize::Zeroizing;

use super::{Changes, Key, Store, Table};

fn value(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(format!("\"{text}\"").into_bytes())
}

pub(crate) async fn keeps_the_contract(store: &dyn Store) {
    reads_what_was_written(store).await;
    lists_one_partition_in_order(store).await;
    applies_deletions_and_replacements(store).await;
}

async fn reads_what_was_written(store: &dyn Store) {
    let key = Key::new(Table::Rooms, "", "one");
    assert!(store.get(&key).await.unwrap().is_none());
    let mut changes = Changes::default();
    changes.put(key.clone(), value("first"));
    store.commit(changes).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap(), value("first"));
    let elsewhere = Key::new(Table::Members, "", "one");
    assert!(store.get(&elsewhere).await.unwrap().is_none());
}

async fn lists_one_partition_in_order(store: &dyn Store) {
    let mut changes = Changes::default();
    for (partition, id) in [("a", "2"), ("a", "1"), ("ab", "3"), ("", "0"), ("a", "10")] {
        changes.put(Key::new(Table::Members, partition, id), value(id));
    }
    store.commit(changes).await.unwrap();
    let ids: Vec<_> = store
        .list(Table::Members, "a")
        .await
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids, ["1", "10", "2"]);
    assert!(store.list(Table::Members, "none").await.unwrap().is_empty());
}

async fn applies_deletions_and_replacements(store: &dyn Store) {
    let (kept, gone) = (
        Key::new(Table::Outbox, "", "kept"),
        Key::new(Table::Outbox, "", "gone"),
    );
    let mut changes = Changes::default();
    changes.put(kept.clone(), value("old"));
    changes.put(gone.clone(), value("old"));
    store.commit(changes).await.unwrap();
    let mut changes = Changes::default();
    changes.put(kept.clone(), value("new"));
    changes.delete(gone.clone());
    changes.delete(Key::new(Table::Outbox, "", "never was"));
    store.commit(changes).await.unwrap();
    assert_eq!(store.get(&kept).await.unwrap().unwrap(), value("new"));
    assert!(store.get(&gone).await.unwrap().is_none());
}
