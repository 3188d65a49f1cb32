//! Device keys, one-time keys and fallback keys.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use ruma::api::client::keys::upload_keys;
use serde_json::{Value, json};

use super::fake::{Peer, Server, alice_and_bob, another, room};
use crate::{
    crypto::{Alarm, Failure, Machine, OpenError, OutgoingRequest, Request, keys},
    environment::tests::TestEnvironment,
};

async fn upload(peer: &Peer) -> (OutgoingRequest, upload_keys::v3::Request) {
    let requests = peer.machine.outgoing_requests().await.unwrap();
    let upload = requests
        .into_iter()
        .find_map(|request| match &request.request {
            Request::KeysUpload(upload) => Some((request.clone(), upload.clone())),
            _ => None,
        });
    upload.unwrap()
}

fn all_keys(request: &upload_keys::v3::Request) -> Value {
    json!({
        "device": request.device_keys.as_ref().map(|keys| keys.json().get()),
        "one_time": request.one_time_keys,
        "fallback": request.fallback_keys,
    })
}

#[tokio::test]
async fn t_dev_1_what_was_saved_and_not_uploaded_is_uploaded_unchanged() {
    let environment = Arc::new(TestEnvironment::default());
    let mut alice = Peer::new("@alice:example.org", "ALICE", &environment).await;
    let (_, first) = upload(&alice).await;
    alice.restart().await;
    let (_, second) = upload(&alice).await;
    assert_eq!(all_keys(&first), all_keys(&second));
    assert_eq!(first.one_time_keys.len(), 50);
    assert_eq!(first.fallback_keys.len(), 1);
}

#[tokio::test]
async fn every_uploaded_key_is_signed_as_others_expect() {
    let environment = Arc::new(TestEnvironment::default());
    let alice = Peer::new("@alice:example.org", "ALICE", &environment).await;
    let (_, request) = upload(&alice).await;
    let own = alice.machine.ed25519_key();
    let verify = |json: &str| {
        let object: Value = serde_json::from_str(json).unwrap();
        keys::verify(&object, alice.user(), "ALICE", &own).unwrap();
        object
    };
    verify(request.device_keys.as_ref().unwrap().json().get());
    for (id, key) in &request.one_time_keys {
        assert!(id.as_str().starts_with("signed_curve25519:"), "{id}");
        assert_eq!(verify(key.json().get()).get("fallback"), None);
    }
    for key in request.fallback_keys.values() {
        assert_eq!(verify(key.json().get())["fallback"], true);
    }
}

#[tokio::test]
async fn t_otk_1_a_lost_answer_to_an_upload_does_no_harm() {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = Peer::new("@alice:example.org", "ALICE", &environment).await;
    let (request, _) = upload(&alice).await;
    // The server takes it; the process dies before the answer.
    server.handle(&alice.name(), &request.request);
    alice.restart().await;
    // The fake server fails if a key comes back with other content.
    alice.sync(&mut server).await;
    assert_eq!(
        server
            .device(alice.user(), alice.device())
            .one_time_keys
            .len(),
        50
    );
}

#[tokio::test]
async fn claimed_keys_are_replaced() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    assert_eq!(
        server.device(bob.user(), bob.device()).one_time_keys.len(),
        49
    );
    bob.sync(&mut server).await;
    assert_eq!(
        server.device(bob.user(), bob.device()).one_time_keys.len(),
        50
    );
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
}

/// Takes all one-time keys away, so that the next claim gets the fallback key.
fn exhaust(server: &mut Server, peer: &Peer) {
    server
        .device(peer.user(), peer.device())
        .one_time_keys
        .clear();
}

#[tokio::test]
async fn a_used_fallback_key_is_replaced_and_works_for_another_hour() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let mut dave = another(&mut server, "@dave:example.org", "DAVE", &environment).await;
    let key = |server: &mut Server, peer: &Peer| {
        server
            .device(peer.user(), peer.device())
            .fallback
            .clone()
            .unwrap()
            .0
    };
    environment.advance(Duration::from_mins(10));
    let first = key(&mut server, &bob);
    exhaust(&mut server, &bob);
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    let carols = carol.say(&mut server, &[&bob], "carol here").await;
    let daves = dave.say(&mut server, &[&bob], "dave here").await;
    let held_back = std::mem::take(&mut server.device(bob.user(), bob.device()).inbox);

    bob.sync(&mut server).await;
    assert_ne!(first, key(&mut server, &bob), "replaced");
    assert!(!server.device(bob.user(), bob.device()).fallback_used);

    // Messages to the old key arrive half an hour later …
    environment.advance(Duration::from_mins(30));
    for (_, message) in &held_back[..2] {
        let sender = message["sender"].as_str().unwrap().try_into().unwrap();
        server.deliver(&bob, sender, "m.room.encrypted", &message["content"]);
    }
    assert!(bob.sync(&mut server).await.rejected.is_empty());
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    assert_eq!(bob.read(&carols).await.unwrap(), "carol here");

    // … and after the hour its private half is gone.
    environment.advance(Duration::from_mins(31));
    bob.sync(&mut server).await;
    server.deliver(
        &bob,
        dave.user(),
        "m.room.encrypted",
        &held_back[2].1["content"],
    );
    assert_eq!(bob.sync(&mut server).await.rejected.len(), 1);
    assert!(bob.read(&daves).await.is_err());
}

#[tokio::test]
async fn an_unused_fallback_key_is_replaced_after_a_week() {
    let (mut server, mut alice, _) = alice_and_bob().await;
    let key = |server: &mut Server, peer: &Peer| {
        server
            .device(peer.user(), peer.device())
            .fallback
            .clone()
            .unwrap()
            .0
    };
    let first = key(&mut server, &alice);
    alice.environment.advance(Duration::from_hours(6 * 24));
    alice.sync(&mut server).await;
    assert_eq!(first, key(&mut server, &alice));
    alice.environment.advance(Duration::from_hours(25));
    alice.sync(&mut server).await;
    assert_ne!(first, key(&mut server, &alice));
}

#[tokio::test]
async fn a_stale_sync_does_not_replace_a_fresh_fallback_key() {
    let (mut server, mut alice, _) = alice_and_bob().await;
    let first = server.device(alice.user(), alice.device()).fallback.clone();
    // The answer was computed before the upload.
    server.device(alice.user(), alice.device()).fallback_used = true;
    alice.sync(&mut server).await;
    assert_eq!(first, server.device(alice.user(), alice.device()).fallback);
}

#[tokio::test]
async fn t_otk_2_a_copied_store_is_noticed() {
    let (mut server, mut alice, _) = alice_and_bob().await;
    exhaust(&mut server, &alice);
    alice.receive(&mut server).await;
    let (request, first) = upload(&alice).await;
    let failure = Failure::OneTimeKeyExists;
    let alarms = alice
        .machine
        .mark_request_as_failed(&request.id, failure)
        .await
        .unwrap();
    assert_eq!(alarms, [Alarm::StoreForked]);
    // The keys that nobody can upload are not offered forever.
    alice.receive(&mut server).await;
    let (_, second) = upload(&alice).await;
    assert!(
        first
            .one_time_keys
            .keys()
            .all(|id| !second.one_time_keys.contains_key(id))
    );
}

#[tokio::test]
async fn a_failed_upload_is_repeated_unchanged() {
    let environment = Arc::new(TestEnvironment::default());
    let alice = Peer::new("@alice:example.org", "ALICE", &environment).await;
    let (request, first) = upload(&alice).await;
    assert!(
        alice
            .machine
            .outgoing_requests()
            .await
            .unwrap()
            .iter()
            .all(|request| { !matches!(request.request, Request::KeysUpload(_)) })
    );
    alice
        .machine
        .mark_request_as_failed(&request.id, Failure::Temporary)
        .await
        .unwrap();
    let (_, second) = upload(&alice).await;
    assert_eq!(all_keys(&first), all_keys(&second));
}

#[tokio::test]
async fn a_store_belongs_to_one_device() {
    let environment = Arc::new(TestEnvironment::default());
    let alice = Peer::new("@alice:example.org", "ALICE", &environment).await;
    for (user, device) in [
        ("@bob:example.org", "ALICE"),
        ("@alice:example.org", "OTHER"),
    ] {
        let user = ruma::UserId::parse(user).unwrap();
        let opened = Machine::open(
            alice.store.clone(),
            environment.clone(),
            &user,
            device.into(),
        )
        .await;
        assert!(matches!(opened, Err(OpenError::OtherDevice)));
    }
}

#[tokio::test]
async fn nothing_private_is_in_what_debug_prints() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let printed = format!("{:?}", alice.machine);
    assert!(
        !printed.contains(&alice.machine.curve25519_key().to_base64()),
        "{printed}"
    );
    assert!(printed.len() < 100, "{printed}");
}
