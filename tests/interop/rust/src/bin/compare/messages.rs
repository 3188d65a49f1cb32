//! Messages of a room.

use std::sync::Arc;

use serde_json::{Value, json};
use sotto_client::store::{SealKey, SqliteStore};
use sotto_interop::{Ours, Server, Theirs, event};
use vodozemac::megolm::{GroupSession, InboundGroupSession, MegolmMessage, SessionConfig};

use crate::{best, cpu, micros, row};

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";
const MESSAGES: usize = 1000;
const TURNS: usize = 5;

/// The rotation of sessions is what a room says, so a session encrypts at most this many.
const PER_SESSION: usize = 100;

/// With what is around it, a kilobyte. (Ours makes all payloads as long as many others.)
fn body() -> String {
    "x".repeat(880)
}

pub(crate) async fn compare() {
    let text = body();
    let mut encrypt = [Vec::new(), Vec::new(), Vec::new()];
    let mut decrypt = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        let (mut server, mut ours, mut theirs) = two().await;
        let mut events = [Vec::new(), Vec::new()];
        let mut spent = [std::time::Duration::ZERO; 2];
        for _ in 0..MESSAGES / PER_SESSION {
            discard(&ours, &theirs).await;
            ours.share(&mut server, &[ALICE, BOB]).await;
            theirs.share(&mut server, &[ALICE, BOB]).await;
            let (mut mine, mut other) = (Vec::new(), Vec::new());
            let start = cpu();
            for _ in 0..PER_SESSION {
                mine.push(ours.encrypt(&text).await);
            }
            let middle = cpu();
            for _ in 0..PER_SESSION {
                other.push(theirs.encrypt(&text).await);
            }
            spent[1] += cpu() - middle;
            spent[0] += middle - start;
            events[0].extend(named(&mut server, ALICE, mine));
            events[1].extend(named(&mut server, BOB, other));
        }
        encrypt[0].push(spent[0]);
        encrypt[1].push(spent[1]);
        ours.sync(&mut server).await;
        theirs.sync(&mut server).await;
        let start = cpu();
        for event in &events[1] {
            ours.read(event).await.unwrap();
        }
        let middle = cpu();
        for event in &events[0] {
            theirs.read(event).await.unwrap();
        }
        decrypt[1].push(cpu() - middle);
        decrypt[0].push(middle - start);
        let (one, two) = alone(&text);
        encrypt[2].push(one);
        decrypt[2].push(two);
    }
    report("encrypt a message of 1 kB", encrypt);
    report("decrypt a message of 1 kB", decrypt);
    sealed(&text).await;
}

fn report(what: &str, times: [Vec<std::time::Duration>; 3]) {
    let [ours, theirs, alone] = times.map(|times| micros(best(times), MESSAGES));
    row(what, &ours, &theirs, &alone);
}

async fn two() -> (Server, Ours, Theirs) {
    let mut server = Server::default();
    let ours = Ours::with_identity(&mut server, ALICE, "OURS").await;
    let theirs = Theirs::with_identity(&mut server, BOB, "THEIRS").await;
    (server, ours, theirs)
}

async fn discard(ours: &Ours, theirs: &Theirs) {
    let room = sotto_interop::ROOM;
    let discarded = ours.machine.discard_room_key(room.try_into().unwrap());
    discarded.await.unwrap();
    let discarded = theirs.machine.discard_room_key(room.try_into().unwrap());
    discarded.await.unwrap();
}

fn named(server: &mut Server, sender: &str, contents: Vec<Value>) -> Vec<Value> {
    let event = |content| event(sender, &server.event_id(), "m.room.encrypted", content);
    contents.into_iter().map(event).collect()
}

/// The primitives, with the JSON that goes in and the base64 that comes out.
fn alone(text: &str) -> (std::time::Duration, std::time::Duration) {
    let payload = json!({
        "type": "m.room.message",
        "room_id": sotto_interop::ROOM,
        "content": { "msgtype": "m.text", "body": text },
    });
    let payload = payload.to_string();
    let mut session = GroupSession::new(SessionConfig::version_1());
    let mut inbound = InboundGroupSession::from(&session);
    let start = cpu();
    let mut messages = Vec::new();
    for _ in 0..MESSAGES {
        messages.push(session.encrypt(&payload).to_base64());
    }
    let middle = cpu();
    for message in &messages {
        let message = MegolmMessage::from_base64(message).unwrap();
        inbound.decrypt(&message).unwrap();
    }
    (middle - start, cpu() - middle)
}

/// What it costs to keep everything in a sealed file that survives a power cut.
async fn sealed(text: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let key = SealKey::from_bytes([7; 32]);
    let store = SqliteStore::open_sealed(&path, &key).await.unwrap();
    let mut server = Server::default();
    let mut ours = Ours::over(Arc::new(store), &mut server, ALICE, "OURS").await;
    ours.share(&mut server, &[ALICE]).await;
    let start = std::time::SystemTime::now();
    for _ in 0..PER_SESSION {
        ours.encrypt(text).await;
    }
    let took = start.elapsed().unwrap();
    let took = micros(took, PER_SESSION);
    row(
        "encrypt, stored durably and sealed (elapsed)",
        &took,
        "–",
        "–",
    );
}
