//! The same for what application services are told: each thing once, in order, in transactions that never change.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use sotto_tests::{Bridge, Database, room};

use super::{Acknowledged, Victim, register, sender};

/// How often the server is killed.
const KILLS: usize = 40;
/// How many send at once.
const SENDERS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_everything_once_and_in_order() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::TempDir::new().unwrap();
    let database = Database::fresh().await;
    let bridge = Bridge::start("irc", "").await;
    let services = [bridge.registration()];
    let mut victim = Victim::with_services(directory.path(), &database, &services).await;
    let alice = register(&victim, "alice").await;
    let bot = bridge.client_at(victim.url.clone());
    let invite = json!({ "invite": ["@ircbot:crash.test"] });
    let room_id = alice.create_room(&invite).await;
    bot.join(&room_id).await.ok();
    let (next, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let acknowledged = Acknowledged::default();
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (rooms, next, stop) = (vec![room_id.clone()], next.clone(), stop.clone());
            sender(alice.clone(), rooms, next, stop, acknowledged.clone())
        })
        .collect();
    for n in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..250))).await;
        victim.kill().await;
        bridge.set_away(n % 3 == 0);
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    bridge.set_away(false);
    alice.send(&room_id, "the end").await;
    bridge.wait_for_text("the end").await;
    let (mut said, mut from) = (Vec::new(), String::new());
    loop {
        let path = format!("messages?dir=f&limit=500{from}");
        let page = alice.get(&room(&room_id, &path)).await.ok();
        let events = page["chunk"].as_array().unwrap().iter();
        let texts = events.filter_map(|event| event["content"]["body"].as_str());
        said.extend(texts.map(ToOwned::to_owned));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    assert!(acknowledged.lock().unwrap().len() > KILLS);
    assert_eq!(bridge.texts(), said, "seed {seed}");
    let again = bridge.repeated();
    println!(
        "{} messages, {KILLS} kills, {again} transactions again",
        said.len()
    );
}
