//! Device keys, one-time keys and fallback keys.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use ruma::api::client::keys::upload_keys;
use serde_json::{Value, json};

use super::{
    fake::{Peer, Server, alice_and_bob, another, room},
    olm::forget_sessions,
};
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
    let other = Peer::new("@alice:example.org", "ALICE", &environment).await;
    let (_, other) = upload(&other).await;
    assert_ne!(all_keys(&first), all_keys(&other), "control: made anew");
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
    // Control: keys that were made anew are noticed.
    let other = Peer::new("@alice:example.org", "ALICE", &environment).await;
    let (other, _) = upload(&other).await;
    let name = alice.name();
    let taken = AssertUnwindSafe(|| drop(server.handle(&name, &other.request)));
    assert!(std::panic::catch_unwind(taken).is_err());
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

/// Alice begins a session with Bob, with the key that the server hands out.
async fn begin(server: &mut Server, alice: &mut Peer, bob: &Peer) {
    forget_sessions(alice, bob).await;
    alice.machine.discard_room_key(room()).await.unwrap();
    alice.share(server, room(), &[bob]).await;
}

#[tokio::test]
async fn t_olm_15_a_server_that_keeps_one_time_keys_back_is_noticed() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    for _ in 0..4 {
        begin(&mut server, &mut alice, &bob).await;
    }
    let kept = std::mem::take(&mut server.device(bob.user(), bob.device()).one_time_keys);
    for _ in 0..2 {
        begin(&mut server, &mut alice, &bob).await;
    }
    server.device(bob.user(), bob.device()).one_time_keys = kept;
    begin(&mut server, &mut alice, &bob).await;
    assert_eq!(alice.alarms, [], "control: a device may be out of keys");
    exhaust(&mut server, &bob);
    for _ in 0..3 {
        assert_eq!(alice.alarms, []);
        begin(&mut server, &mut alice, &bob).await;
    }
    let alarm = Alarm::OnlyFallbackKeys {
        user_id: bob.user().to_owned(),
        device_id: bob.device().to_owned(),
    };
    assert_eq!(alice.alarms, [alarm]);
}

#[tokio::test]
async fn t_otk_4_a_fallback_key_is_kept_while_messages_wait() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let mut dave = another(&mut server, "@dave:example.org", "DAVE", &environment).await;
    environment.advance(Duration::from_mins(10));
    exhaust(&mut server, &bob);
    let mut said = Vec::new();
    for sender in [&mut alice, &mut carol, &mut dave] {
        said.push(sender.say(&mut server, &[&bob], "to the old key").await);
    }
    let waiting = std::mem::take(&mut server.device(bob.user(), bob.device()).inbox);
    bob.sync(&mut server).await;
    // Bob is away for a day. A sync brings only so many messages at once.
    environment.advance(Duration::from_hours(24));
    for ((_, message), event) in waiting.iter().zip(&said).take(2) {
        let sender = message["sender"].as_str().unwrap().try_into().unwrap();
        server.deliver(&bob, sender, "m.room.encrypted", &message["content"]);
        assert!(bob.sync(&mut server).await.rejected.is_empty());
        assert_eq!(bob.read(event).await.unwrap(), "to the old key");
    }
    // Nothing waits any more: the key goes, and with it the secrecy of whoever still uses it.
    bob.sync(&mut server).await;
    let late = &waiting[2].1["content"];
    server.deliver(&bob, dave.user(), "m.room.encrypted", late);
    assert_eq!(bob.sync(&mut server).await.rejected.len(), 1, "control");
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
