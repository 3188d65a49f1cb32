//! Processes that die at the worst moment.
//!
//! The store is made to fail at each commit in turn, once before and once after it is applied; the
//! device is then started again from what is on disk. Whatever was said must be read, and no
//! ratchet may be used twice.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};

use futures_util::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fake::{Crash, Peer, Server, another, room, users};
use crate::{
    environment::tests::TestEnvironment,
    store::{self, Changes, Key, MemoryStore, SqliteStore, Store, StoreError, Table},
};

/// When the process dies, seen from the commit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Before,
    After,
    /// The store says that it has applied it, and has not; the process lives.
    Never,
}

/// A store that takes the process with it at a certain commit.
struct FaultyStore {
    inner: Arc<dyn Store>,
    fault: Mutex<Option<(u32, Moment)>>,
}

impl FaultyStore {
    fn arm(&self, commit: u32, moment: Moment) {
        *self.fault.lock().unwrap() = Some((commit, moment));
    }

    fn has_struck(&self) -> bool {
        self.fault.lock().unwrap().is_none()
    }

    fn disarm(&self) {
        *self.fault.lock().unwrap() = None;
    }

    /// The moment, if it is this commit's turn.
    fn strike(&self) -> Option<Moment> {
        let mut fault = self.fault.lock().unwrap();
        let (left, moment) = fault.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let moment = *moment;
        *fault = None;
        Some(moment)
    }
}

impl Store for FaultyStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<store::Value>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(
        &'a self,
        table: Table,
        partition: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(String, store::Value)>, StoreError>> {
        self.inner.list(table, partition)
    }

    fn commit(&self, changes: Changes) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let moment = self.strike();
            if matches!(moment, None | Some(Moment::After)) {
                self.inner.commit(changes).await?;
            }
            match moment {
                None | Some(Moment::Never) => Ok(()),
                Some(_) => Err(StoreError::WrongKey),
            }
        })
    }
}

/// Does a step until it succeeds, with a new process after each failure.
macro_rules! survive {
    ($peer:ident, $step:expr) => {{
        let mut tries = 0;
        loop {
            let result: Result<_, Crash> = $step;
            match result {
                Ok(value) => break value,
                Err(_) => $peer.restart().await,
            }
            tries += 1;
            assert!(tries < 5, "the step never succeeds");
        }
    }};
}

async fn say(server: &mut Server, alice: &mut Peer, bob: &Peer, body: &str) -> Value {
    let members = users(&[bob]);
    let content = survive!(
        alice,
        match alice.try_share(server, room(), &members).await {
            Ok(()) => alice.encrypt(room(), body).await.map_err(Into::into),
            Err(error) => Err(error),
        }
    );
    server.event(alice.user(), &content)
}

async fn catch_up(server: &mut Server, peer: &mut Peer) {
    survive!(peer, peer.try_receive(server).await);
    survive!(peer, peer.try_send_outgoing(server).await);
}

/// Two people talk. Returns all events.
async fn conversation(server: &mut Server, alice: &mut Peer, bob: &mut Peer) -> Vec<Value> {
    let mut events = Vec::new();
    for peer in [&mut *alice, &mut *bob] {
        peer.encrypt_room(room(), json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
        catch_up(server, peer).await;
    }
    for round in 0..2 {
        events.push(say(server, alice, bob, &format!("alice {round}")).await);
        catch_up(server, bob).await;
        events.push(say(server, bob, alice, &format!("bob {round}")).await);
        catch_up(server, alice).await;
    }
    alice
        .machine
        .discard_room_key(room())
        .await
        .unwrap_or_default();
    alice.restart().await;
    events.push(say(server, alice, bob, "the end").await);
    catch_up(server, bob).await;
    events
}

async fn all_is_read(events: &[Value], peer: &Peer) {
    for (number, event) in events.iter().enumerate() {
        let read = peer.read(event).await;
        assert!(read.is_ok(), "event {number}: {read:?}");
    }
}

fn no_index_is_used_twice(events: &[Value]) {
    let mut ciphertexts: Vec<_> = events
        .iter()
        .map(|event| event["content"]["ciphertext"].to_string())
        .collect();
    ciphertexts.sort();
    ciphertexts.dedup();
    assert_eq!(ciphertexts.len(), events.len());
}

/// Which of the two dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Alice,
    Bob,
}

/// Returns whether the fault struck before the conversation was over.
async fn with_crash(victim: Victim, commit: u32, moment: Moment) -> bool {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let faulty = Arc::new(FaultyStore {
        inner: Arc::new(MemoryStore::new()),
        fault: Mutex::new(None),
    });
    let (user, device) = match victim {
        Victim::Alice => ("@alice:example.org", "ALICE"),
        Victim::Bob => ("@bob:example.org", "BOB"),
    };
    let mut dying = Peer::over(faulty.clone(), user, device, &environment).await;
    faulty.arm(commit, moment);
    let events = match victim {
        Victim::Alice => {
            let mut bob = Peer::new("@bob:example.org", "BOB", &environment).await;
            let events = conversation(&mut server, &mut dying, &mut bob).await;
            all_is_read(&events, &bob).await;
            events
        }
        Victim::Bob => {
            let mut alice = Peer::new("@alice:example.org", "ALICE", &environment).await;
            let events = conversation(&mut server, &mut alice, &mut dying).await;
            all_is_read(&events, &alice).await;
            events
        }
    };
    let struck = faulty.has_struck();
    faulty.disarm();
    all_is_read(&events, &dying).await;
    no_index_is_used_twice(&events);
    struck
}

#[tokio::test]
async fn t_td_1_a_death_at_any_commit_loses_nothing() {
    for victim in [Victim::Alice, Victim::Bob] {
        for moment in [Moment::Before, Moment::After] {
            let mut points = 0;
            while with_crash(victim, points, moment).await {
                points += 1;
            }
            assert!(
                points >= 12,
                "only {points} points for {victim:?} {moment:?}"
            );
        }
    }
}

/// Control: a commit that gets lost is a message that is lost, or an index that is used twice.
#[tokio::test]
async fn a_store_that_forgets_is_noticed() {
    let mut noticed = 0;
    for commit in 0..12 {
        let conversation = AssertUnwindSafe(with_crash(Victim::Alice, commit, Moment::Never));
        noticed += u32::from(conversation.catch_unwind().await.is_err());
    }
    assert!(noticed > 1, "{noticed}");
}

#[tokio::test]
async fn a_conversation_survives_restarts_from_disk_between_any_two_steps() {
    let directory = TempDir::new().unwrap();
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let path = |name: &str| directory.path().join(name);
    let open = async |user: &str, name: &str| {
        let store = Arc::new(SqliteStore::open(path(name)).await.unwrap());
        Peer::over(store, user, name, &environment).await
    };
    let mut events = Vec::new();
    for round in 0..3 {
        let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        let mut alice = open("@alice:example.org", "ALICE").await;
        alice.encrypt_room(room(), encryption.clone());
        alice.receive(&mut server).await;
        drop(alice);
        let mut alice = open("@alice:example.org", "ALICE").await;
        alice.send_outgoing(&mut server).await;
        drop(alice);
        let mut bob = open("@bob:example.org", "BOB").await;
        bob.encrypt_room(room(), encryption);
        bob.receive(&mut server).await;
        drop(bob);
        let mut bob = open("@bob:example.org", "BOB").await;
        bob.send_outgoing(&mut server).await;

        let mut alice = open("@alice:example.org", "ALICE").await;
        alice.share(&mut server, room(), &[&bob]).await;
        drop((alice, bob));
        let alice = open("@alice:example.org", "ALICE").await;
        let content = alice
            .encrypt(room(), &format!("round {round}"))
            .await
            .unwrap();
        events.push(server.event(alice.user(), &content));
        let mut bob = open("@bob:example.org", "BOB").await;
        bob.receive(&mut server).await;
        drop(bob);
        let bob = open("@bob:example.org", "BOB").await;
        all_is_read(&events, &bob).await;
    }
    no_index_is_used_twice(&events);
}

#[tokio::test]
async fn a_repeated_sync_response_changes_nothing() {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = another(&mut server, "@alice:example.org", "ALICE", &environment).await;
    let mut bob = another(&mut server, "@bob:example.org", "BOB", &environment).await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    let messages = server.device(bob.user(), bob.device()).inbox.clone();
    bob.sync(&mut server).await;
    let inbox = bob.machine.inbox().await.unwrap().len();
    // The server has not noticed that the messages were received.
    for (_, event) in &messages {
        server.deliver(&bob, alice.user(), "m.room.encrypted", &event["content"]);
    }
    bob.sync(&mut server).await;
    assert_eq!(bob.machine.inbox().await.unwrap().len(), inbox);
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    let consumed: Vec<String> = bob
        .machine
        .inbox()
        .await
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert!(!consumed.is_empty());
}
