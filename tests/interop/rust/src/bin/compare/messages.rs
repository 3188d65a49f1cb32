//! Messages of a room.

use serde_json::{Value, json};
use sotto_interop::{Ours, Server, Theirs, event};
use vodozemac::megolm::{GroupSession, InboundGroupSession, MegolmMessage, SessionConfig};

use crate::{
    Spent, measure, row,
    stores::{Kept, Stores},
};

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";

/// The rotation of sessions is what a room says, so a session encrypts at most this many.
const PER_SESSION: usize = 100;

/// How many sessions, and how often that.
fn sizes(kept: Kept) -> (usize, usize) {
    match kept {
        Kept::InMemory => (10, 5),
        Kept::OnDisk => (3, 3),
    }
}

/// With what is around it, a kilobyte. (Ours makes all payloads as long as many others.)
fn body() -> String {
    "x".repeat(880)
}

/// What was measured: ours, theirs, the primitives alone.
#[derive(Default)]
struct Turns([Vec<Spent>; 3]);

impl Turns {
    fn push(&mut self, turn: [Spent; 3]) {
        for (all, one) in self.0.iter_mut().zip(turn) {
            all.push(one);
        }
    }

    fn report(&self, kept: Kept, what: &str, messages: usize) {
        let [ours, theirs, alone] = &self.0;
        let text = |all: &[Spent], kept| Spent::best(all).each(kept, messages);
        let alone = text(alone, Kept::InMemory);
        row(kept, what, &text(ours, kept), &text(theirs, kept), &alone);
    }
}

pub(crate) async fn compare(kept: Kept) {
    let (sessions, turns) = sizes(kept);
    let messages = sessions * PER_SESSION;
    let (mut encrypt, mut decrypt) = (Turns::default(), Turns::default());
    for _ in 0..turns {
        let (one, two) = turn(kept, sessions).await;
        encrypt.push(one);
        decrypt.push(two);
    }
    encrypt.report(kept, "encrypt a message of 1 kB", messages);
    decrypt.report(kept, "decrypt a message of 1 kB", messages);
}

/// What encryption and decryption took.
async fn turn(kept: Kept, sessions: usize) -> ([Spent; 3], [Spent; 3]) {
    let text = body();
    let stores = Stores::new(kept);
    let mut server = Server::default();
    let mut ours = stores.ours(&mut server, ALICE).await;
    let mut theirs = stores.theirs(&mut server, BOB).await;
    let mut events = [Vec::new(), Vec::new()];
    let (mut encrypt, mut decrypt) = ([Spent::default(); 3], [Spent::default(); 3]);
    for _ in 0..sessions {
        discard(&ours, &theirs).await;
        ours.share(&mut server, &[ALICE, BOB]).await;
        theirs.share(&mut server, &[ALICE, BOB]).await;
        let (mut mine, mut other) = (Vec::new(), Vec::new());
        let ((), spent) = measure(async {
            for _ in 0..PER_SESSION {
                mine.push(ours.encrypt(&text).await);
            }
        })
        .await;
        encrypt[0] += spent;
        let ((), spent) = measure(async {
            for _ in 0..PER_SESSION {
                other.push(theirs.encrypt(&text).await);
            }
        })
        .await;
        encrypt[1] += spent;
        events[0].extend(named(&mut server, ALICE, mine));
        events[1].extend(named(&mut server, BOB, other));
    }
    ours.sync(&mut server).await;
    theirs.sync(&mut server).await;
    let ((), spent) = measure(async {
        for event in &events[1] {
            ours.read(event).await.unwrap();
        }
    })
    .await;
    decrypt[0] = spent;
    let ((), spent) = measure(async {
        for event in &events[0] {
            theirs.read(event).await.unwrap();
        }
    })
    .await;
    decrypt[1] = spent;
    (encrypt[2], decrypt[2]) = alone(&text, sessions).await;
    (encrypt, decrypt)
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

/// The primitives, with the base64 that comes out.
async fn alone(text: &str, sessions: usize) -> (Spent, Spent) {
    let payload = json!({
        "type": "m.room.message",
        "room_id": sotto_interop::ROOM,
        "content": { "msgtype": "m.text", "body": text },
    });
    let payload = payload.to_string();
    let mut spent = (Spent::default(), Spent::default());
    for _ in 0..sessions {
        let mut session = GroupSession::new(SessionConfig::version_1());
        let mut inbound = InboundGroupSession::from(&session);
        let mut messages = Vec::new();
        let ((), encrypt) = measure(async {
            for _ in 0..PER_SESSION {
                messages.push(session.encrypt(&payload).to_base64());
            }
        })
        .await;
        let ((), decrypt) = measure(async {
            for message in &messages {
                let message = MegolmMessage::from_base64(message).unwrap();
                inbound.decrypt(&message).unwrap();
            }
        })
        .await;
        spent.0 += encrypt;
        spent.1 += decrypt;
    }
    spent
}
