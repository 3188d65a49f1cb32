//! The key of a room for a thousand devices, and the keys of many rooms for one device.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use sotto_client::{
    crypto::RoomChange,
    store::{Changes, MemoryStore, SqliteStore, Store},
};
use sotto_interop::{Ours, ROOM, Server, Theirs};

use crate::{best, cpu, crowd::crowd, micros, row};

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";
const USERS: usize = 100;
const DEVICES: usize = 10;
const ROOMS: usize = 500;
const TURNS: usize = 3;

pub(crate) async fn compare() {
    let mut first = [Vec::new(), Vec::new()];
    let mut second = [Vec::new(), Vec::new()];
    let mut bytes = [0; 2];
    for _ in 0..TURNS {
        let (new, again, sent) = ours().await;
        first[0].push(new);
        second[0].push(again);
        bytes[0] = sent;
        let (new, again, sent) = theirs().await;
        first[1].push(new);
        second[1].push(again);
        bytes[1] = sent;
    }
    let all = USERS * DEVICES;
    let [ours, theirs] = first.map(|times| micros(best(times), all));
    row(
        "share a key with 1,000 new devices, for each",
        &ours,
        &theirs,
        "–",
    );
    let [ours, theirs] = second.map(|times| micros(best(times), all));
    row(
        "share a key with the same 1,000 devices, for each",
        &ours,
        &theirs,
        "–",
    );
    let [ours, theirs] = bytes.map(|bytes| format!("{} B", bytes / all));
    row("messages for that, for each device", &ours, &theirs, "–");
    first_sync().await;
}

async fn ours() -> (Duration, Duration, usize) {
    let mut server = Server::default();
    let users = crowd(&mut server, USERS, DEVICES);
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut ours = Ours::with_identity(&mut server, ALICE, "OURS").await;
    let start = cpu();
    ours.share(&mut server, &members).await;
    let new = cpu() - start;
    let discarded = ours.machine.discard_room_key(ROOM.try_into().unwrap());
    discarded.await.unwrap();
    server.sent_bytes = 0;
    let start = cpu();
    ours.share(&mut server, &members).await;
    (new, cpu() - start, server.sent_bytes)
}

async fn theirs() -> (Duration, Duration, usize) {
    let mut server = Server::default();
    let users = crowd(&mut server, USERS, DEVICES);
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut theirs = Theirs::with_identity(&mut server, ALICE, "THEIRS").await;
    let start = cpu();
    theirs.share(&mut server, &members).await;
    let new = cpu() - start;
    let discarded = theirs.machine.discard_room_key(ROOM.try_into().unwrap());
    discarded.await.unwrap();
    server.sent_bytes = 0;
    let start = cpu();
    theirs.share(&mut server, &members).await;
    (new, cpu() - start, server.sent_bytes)
}

/// The first sync after a while: a key for each of many rooms.
async fn first_sync() {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        let store = Arc::new(MemoryStore::new());
        let (mut server, mut ours) = with_keys_for_ours(store).await;
        let start = cpu();
        ours.sync(&mut server).await;
        times[0].push(cpu() - start);
        let (mut server, mut theirs) = with_keys_for_theirs().await;
        let start = cpu();
        theirs.sync(&mut server).await;
        times[1].push(cpu() - start);
    }
    let [ours, theirs] = times.map(|times| format!("{:.1} ms", best(times).as_secs_f64() * 1e3));
    row("first sync with the keys of 500 rooms", &ours, &theirs, "–");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Arc::new(SqliteStore::open(&path).await.unwrap());
    let (mut server, mut ours) = with_keys_for_ours(store).await;
    ours.sync(&mut server).await;
    drop(ours);
    let mut size = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        size += entry.unwrap().metadata().unwrap().len();
    }
    row(
        "size of the store after that",
        &format!("{} kB", size / 1024),
        "–",
        "–",
    );
}

/// Somebody has written into many rooms.
async fn write(server: &mut Server, sender: &mut Ours, reader: &str) {
    for number in 0..ROOMS {
        let room = format!("!room{number}:example.org");
        let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        let algorithm = algorithm.as_object().unwrap().clone();
        let change = RoomChange::Encryption(room.as_str().try_into().unwrap(), algorithm);
        sender
            .machine
            .receive_room_changes(&[change], Changes::default())
            .await
            .unwrap();
        sender.share_in(server, &room, &[reader]).await;
    }
}

async fn with_keys_for_ours(store: Arc<dyn Store>) -> (Server, Ours) {
    let mut server = Server::default();
    let mut sender = Ours::with_identity(&mut server, ALICE, "SENDER").await;
    let mut ours = Ours::over(store, &mut server, BOB, "OURS").await;
    ours.bootstrap(&mut server).await;
    sender.sync(&mut server).await;
    ours.share(&mut server, &[ALICE]).await;
    sender.sync(&mut server).await;
    write(&mut server, &mut sender, BOB).await;
    (server, ours)
}

async fn with_keys_for_theirs() -> (Server, Theirs) {
    let mut server = Server::default();
    let mut sender = Ours::with_identity(&mut server, ALICE, "SENDER").await;
    let mut theirs = Theirs::with_identity(&mut server, BOB, "THEIRS").await;
    theirs.share(&mut server, &[ALICE]).await;
    sender.sync(&mut server).await;
    write(&mut server, &mut sender, BOB).await;
    (server, theirs)
}
