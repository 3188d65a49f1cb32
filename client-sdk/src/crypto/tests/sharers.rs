//! Two machines of one device, each with the store open, as in two processes.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use ruma::{
    OwnedUserId, api::client::sync::sync_events::DeviceLists, events::AnyToDeviceEvent, serde::Raw,
};
use serde_json::Value;
use tempfile::TempDir;
use vodozemac::{megolm::MegolmMessage, olm::OlmMessage};

use super::fake::{Peer, Server, another, raw, room, users};
use crate::{
    crypto::{EncryptError, RejectedMessage, Request, SyncChanges},
    environment::tests::TestEnvironment,
    store::{Changes, SqliteOptions},
};

pub(super) const ALICE: &str = "@alice:example.org";

/// How a store is opened by each of the two.
pub(super) type Open = fn(SqliteOptions) -> SqliteOptions;

/// What was encrypted with a key that something else was encrypted with before.
pub(super) fn twice(server: &Server, events: &[Value]) -> Vec<String> {
    let mut used = Vec::new();
    for event in events {
        let content = &event["content"];
        let ciphertext = content["ciphertext"].as_str().unwrap();
        let index = MegolmMessage::from_base64(ciphertext)
            .unwrap()
            .message_index();
        let key = format!("megolm {} {index}", content["session_id"]);
        used.push((key, ciphertext.to_owned()));
    }
    let olm = server
        .sent
        .iter()
        .filter_map(|it| it["ciphertext"].as_object());
    for ciphertext in olm.flat_map(serde_json::Map::values) {
        let body = ciphertext["body"].as_str().unwrap();
        let kind = usize::try_from(ciphertext["type"].as_u64().unwrap()).unwrap();
        let bytes = vodozemac::base64_decode(body).unwrap();
        let message = OlmMessage::from_parts(kind, &bytes).unwrap();
        let message = match &message {
            OlmMessage::Normal(message) => message,
            OlmMessage::PreKey(message) => message.message(),
        };
        let key = message.ratchet_key().to_base64();
        let key = format!("olm {key} {}", message.chain_index());
        used.push((key, body.to_owned()));
    }
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let again = |(key, text): (String, String)| {
        let before = seen.insert(key.clone(), text.clone())?;
        (before != text).then_some(key)
    };
    used.into_iter().filter_map(again).collect()
}

pub(super) async fn alice(path: &Path, open: Open, environment: &Arc<TestEnvironment>) -> Peer {
    let store = open(SqliteOptions::new(path)).open().await.unwrap();
    Peer::over(Arc::new(store), ALICE, "ALICE", environment).await
}

struct World {
    directory: TempDir,
    server: Server,
    /// One device of Alice, twice.
    alice: [Peer; 2],
    bob: Peer,
    members: std::collections::BTreeSet<OwnedUserId>,
}

impl World {
    async fn new(open: Open) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store");
        let environment = Arc::new(TestEnvironment::default());
        let mut server = Server::default();
        let mut bob = another(&mut server, "@bob:example.org", "BOB", &environment).await;
        let mut first = alice(&path, open, &environment).await;
        let settings = serde_json::json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        first.encrypt_room(room(), settings);
        first.sync(&mut server).await;
        let second = alice(&path, open, &environment).await;
        bob.sync(&mut server).await;
        let members = users(&[&first, &bob]);
        Self {
            directory,
            server,
            alice: [first, second],
            bob,
            members,
        }
    }

    /// One of the two says something.
    async fn say(&mut self, who: usize, body: &str) -> Value {
        let peer = &mut self.alice[who];
        loop {
            let shared = peer.try_share(&mut self.server, room(), &self.members);
            shared.await.unwrap();
            match peer.encrypt(room(), body).await {
                Ok(content) => return self.server.event(peer.user(), &content),
                Err(EncryptError::NotShared) => {}
                Err(error) => unreachable!("{error}"),
            }
        }
    }

    /// Bob says something with a new key.
    async fn answer(&mut self, body: &str) -> Value {
        self.bob.sync(&mut self.server).await;
        self.bob.machine.discard_room_key(room()).await.unwrap();
        let shared = self.bob.try_share(&mut self.server, room(), &self.members);
        shared.await.unwrap();
        let content = self.bob.encrypt(room(), body).await.unwrap();
        self.server.event(self.bob.user(), &content)
    }
}

/// Takes a response to a sync that brings these messages.
async fn take(peer: &Peer, next_batch: &str, messages: &[Value]) -> Vec<RejectedMessage> {
    let to_device: Vec<Raw<AnyToDeviceEvent>> = messages.iter().map(raw).collect();
    let changes = SyncChanges {
        next_batch,
        to_device: &to_device,
        device_lists: &DeviceLists::new(),
        one_time_keys: 50,
        unused_fallback_keys: None,
        rooms: &[],
        consumed: &[],
        also: Changes::default(),
    };
    let outcome = peer.machine.receive_sync_changes(changes).await.unwrap();
    let reasons = outcome.rejected.into_iter().map(|rejected| rejected.reason);
    reasons.collect()
}

#[tokio::test]
async fn t_mp_1_two_machines_use_no_ratchet_twice() {
    for (open, alone) in [
        (SqliteOptions::shared as Open, true),
        (SqliteOptions::careless, false),
    ] {
        let mut world = World::new(open).await;
        let mut said = Vec::new();
        for number in 0..8 {
            said.push(world.say(number % 2, &format!("message {number}")).await);
        }
        let twice = twice(&world.server, &said);
        assert_eq!(twice.is_empty(), alone, "control: {twice:?}");
    }
}

#[tokio::test]
async fn t_mp_1_what_one_machine_has_decrypted_the_other_knows() {
    for (open, alone) in [
        (SqliteOptions::shared as Open, true),
        (SqliteOptions::careless, false),
    ] {
        let mut world = World::new(open).await;
        // Each has looked at what there is of Bob.
        let hello = world.answer("hello").await;
        for peer in &world.alice {
            assert!(peer.read(&hello).await.is_err(), "before the key");
        }
        let (user, device) = world.alice[0].name();
        let inbox = &world.server.device(&user, &device).inbox;
        let messages: Vec<Value> = inbox.iter().map(|(_, event)| event.clone()).collect();
        let at = inbox.last().unwrap().0.to_string();
        assert_eq!(take(&world.alice[0], &at, &messages).await, []);
        let read = world.alice[1].read(&hello).await;
        assert_eq!(read.is_ok(), alone, "control: {read:?}");
        if alone {
            // Both had asked before either took the answer.
            let again = take(&world.alice[1], &at, &messages).await;
            assert_eq!(again, vec![RejectedMessage::Replay; messages.len()]);
            assert_eq!(world.alice[0].read(&hello).await.unwrap(), "hello");
        }
    }
}

#[tokio::test]
async fn t_mp_1_an_old_list_does_not_replace_the_newer_one_of_the_other() {
    for (open, alone) in [
        (SqliteOptions::shared as Open, true),
        (SqliteOptions::careless, false),
    ] {
        let mut world = World::new(open).await;
        let environment = world.bob.environment.clone();
        let phone = another(&mut world.server, "@bob:example.org", "PHONE", &environment).await;
        for who in [0, 1] {
            world.say(who, "hello").await;
            world.alice[who].sync(&mut world.server).await;
        }
        // One asks, and has to wait for the answer.
        world.server.note_change(phone.user());
        world.alice[0].receive(&mut world.server).await;
        let asked = world.alice[0].machine.outgoing_requests().await.unwrap();
        let mut asked = asked.into_iter();
        let asked = asked.find(|asked| matches!(asked.request, Request::KeysQuery(_)));
        let asked = asked.unwrap();
        let name = world.alice[0].name();
        let old = world.server.handle(&name, &asked.request);
        // Meanwhile Bob throws a device away, of which the other hears.
        world.server.delete_device(phone.user(), phone.device());
        world.alice[1].receive(&mut world.server).await;
        world.alice[1].send_outgoing(&mut world.server).await;
        let known = async |peer: &Peer| peer.machine.devices(phone.user()).await.unwrap().len();
        assert_eq!(known(&world.alice[1]).await, 1, "control");
        let machine = &world.alice[0].machine;
        machine.mark_request_as_sent(&asked.id, &old).await.unwrap();
        let path = world.directory.path().join("store");
        let third = alice(&path, open, &environment).await;
        assert_eq!(known(&third).await == 1, alone, "control");
    }
}

/// The one-time keys of the upload that a machine gives out.
async fn upload(peer: &Peer) -> Option<(Vec<String>, crate::crypto::OutgoingRequest)> {
    let requests = peer.machine.outgoing_requests().await.unwrap();
    requests.into_iter().find_map(|request| {
        let Request::KeysUpload(upload) = &request.request else {
            return None;
        };
        let ids = upload.one_time_keys.keys().map(ToString::to_string);
        Some((ids.collect(), request))
    })
}

#[tokio::test]
async fn t_mp_1_two_machines_offer_no_one_time_key_twice() {
    for (open, alone) in [
        (SqliteOptions::shared as Open, true),
        (SqliteOptions::careless, false),
    ] {
        let mut world = World::new(open).await;
        let (user, device) = world.alice[0].name();
        // Nothing is left, as both see.
        world.server.device(&user, &device).one_time_keys.clear();
        for peer in &mut world.alice {
            peer.receive(&mut world.server).await;
        }
        let (first, request) = upload(&world.alice[0]).await.unwrap();
        let response = world.server.handle(&(user, device), &request.request);
        // Somebody takes a key, and only then the other has its turn.
        let other = upload(&world.alice[1]).await;
        assert_eq!(other.is_none(), alone, "control");
        if let Some((second, _)) = other {
            let same = second.iter().filter(|id| first.contains(id)).count();
            assert!(same > 0, "control");
            continue;
        }
        let machine = &world.alice[0].machine;
        machine
            .mark_request_as_sent(&request.id, &response)
            .await
            .unwrap();
        assert!(upload(&world.alice[1]).await.is_none(), "nothing lacks");
        // If the one that has it dies, the other does it, with the same keys or others.
        let (user, device) = world.alice[0].name();
        world.server.device(&user, &device).one_time_keys.clear();
        world.alice[0].receive(&mut world.server).await;
        let (lost, _) = upload(&world.alice[0]).await.unwrap();
        assert!(upload(&world.alice[1]).await.is_none());
        let environment = world.alice[1].environment.clone();
        environment.advance(std::time::Duration::from_mins(1));
        let (late, _) = upload(&world.alice[1]).await.unwrap();
        assert_eq!(lost, late);
    }
}

#[tokio::test]
async fn t_mp_1_two_machines_do_anything_in_any_order() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(SqliteOptions::shared).await;
        let (mut said, mut heard) = (Vec::new(), Vec::new());
        for step in 0..50 {
            let who = rng.random_range(0..2);
            match rng.random_range(0..10) {
                0..=2 => said.push((who, world.say(who, &format!("{seed} {step}")).await)),
                3 => {
                    let discarded = world.alice[who].machine.discard_room_key(room());
                    discarded.await.unwrap();
                }
                4 | 5 => {
                    let outcome = world.alice[who].receive(&mut world.server).await;
                    assert!(outcome.rejected.is_empty(), "{outcome:?}");
                }
                6 => world.alice[who].send_outgoing(&mut world.server).await,
                7 => world.alice[who].restart().await,
                _ => heard.push(world.answer(&format!("{seed} {step}")).await),
            }
        }
        let events: Vec<Value> = said.iter().map(|(_, event)| event.clone()).collect();
        assert_eq!(twice(&world.server, &events), Vec::<String>::new());
        world.alice[0].sync(&mut world.server).await;
        world.bob.sync(&mut world.server).await;
        for event in events.iter().chain(&heard) {
            let body = world.bob.read(event).await.unwrap();
            for peer in &world.alice {
                assert_eq!(peer.read(event).await.unwrap(), body);
            }
        }
    }
}
