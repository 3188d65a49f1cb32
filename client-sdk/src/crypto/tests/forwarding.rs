//! Room keys on request, and who may have and give them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use vodozemac::{base64_decode, base64_encode, megolm::SessionOrdering};

use super::fake::{Peer, Server, another, room, session_id, signed};
use crate::{
    crypto::{RejectedMessage, SenderTrust, megolm::InboundSession},
    environment::tests::TestEnvironment,
    store::Batch,
};

const BOB: &str = "@bob:example.org";

/// Alice, Bob, Bob's phone that nobody has verified, and an event that it cannot read.
async fn with_phone() -> (Server, Peer, Peer, Peer, Value) {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = signed(&mut server, "@alice:example.org", "ALICE", &environment).await;
    let mut bob = signed(&mut server, BOB, "BOB", &environment).await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let phone = another(&mut server, BOB, "PHONE", &environment).await;
    bob.sync(&mut server).await;
    (server, alice, bob, phone, hello)
}

/// Bob's phone gets his private keys, so it is verified from now on.
async fn verify(server: &mut Server, bob: &mut Peer, phone: &mut Peer) {
    let secrets = bob.machine.secrets().await.unwrap();
    assert_eq!(phone.machine.take_private_keys(&secrets).await.unwrap(), 3);
    for _ in 0..3 {
        phone.sync(server).await;
        bob.sync(server).await;
    }
}

async fn ask(phone: &Peer, event: &Value) -> bool {
    let asked = phone.machine.request_room_key(room(), session_id(event));
    asked.await.unwrap()
}

async fn exchange(server: &mut Server, bob: &mut Peer, phone: &mut Peer) {
    phone.send_outgoing(server).await;
    for _ in 0..2 {
        bob.sync(server).await;
        phone.sync(server).await;
    }
}

#[tokio::test]
async fn t_fwd_0_a_verified_device_gets_the_keys_of_the_other() {
    let (mut server, _, mut bob, mut phone, hello) = with_phone().await;
    assert!(!ask(&phone, &hello).await, "not verified");
    verify(&mut server, &mut bob, &mut phone).await;
    assert!(ask(&phone, &hello).await);
    assert!(!ask(&phone, &hello).await, "once in an hour");
    exchange(&mut server, &mut bob, &mut phone).await;
    let event = phone.decrypt_in(room(), &hello).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::Imported);
    phone.environment.advance(Duration::from_secs(3601));
    assert!(ask(&phone, &hello).await);
}

#[tokio::test]
async fn t_fwd_1_who_is_not_verified_gets_no_key() {
    let (mut server, _, mut bob, mut phone, hello) = with_phone().await;
    let request = |id: &str, device: &str| {
        json!({
            "action": "request",
            "request_id": id,
            "requesting_device_id": device,
            "body": { "room_id": room(), "session_id": session_id(&hello) },
        })
    };
    let kind = "m.room_key_request";
    server.deliver(&bob, bob.user(), kind, &request("1", "PHONE"));
    // Nor does another user, whatever device they name.
    let carol = <&ruma::UserId>::try_from("@carol:example.org").unwrap();
    server.deliver(&bob, carol, kind, &request("2", "PHONE"));
    for _ in 0..2 {
        bob.sync(&mut server).await;
    }
    let inbox = |server: &mut Server| server.device(phone.user(), phone.device()).inbox.len();
    assert_eq!(inbox(&mut server), 0);
    verify(&mut server, &mut bob, &mut phone).await;
    server.deliver(&bob, bob.user(), kind, &request("3", "PHONE"));
    bob.sync(&mut server).await;
    bob.sync(&mut server).await;
    let inbox = server.device(phone.user(), phone.device()).inbox.len();
    assert_eq!(inbox, 1, "control");
}

/// Bob's copy of a session, as he would pass it on.
pub(super) async fn exported(bob: &Peer, hello: &Value) -> Map<String, Value> {
    let batch = Batch::new(&*bob.store);
    let session = InboundSession::best(&batch, room(), session_id(hello)).await;
    let mut session = session.unwrap().unwrap();
    let key = crate::crypto::ExportedRoomKey::of(room(), &mut session);
    serde_json::to_value(key)
        .unwrap()
        .as_object()
        .unwrap()
        .clone()
}

async fn send(server: &mut Server, from: &mut Peer, to: &mut Peer, content: Map<String, Value>) {
    let device = from.knows(to).await;
    let kind = "m.forwarded_room_key";
    let sent = from.machine.send_to_device(&device, kind, content);
    assert!(sent.await.unwrap());
    from.send_outgoing(server).await;
}

#[tokio::test]
async fn t_fwd_1_a_key_that_nobody_asked_for_is_refused() {
    let (mut server, mut alice, mut bob, mut phone, hello) = with_phone().await;
    verify(&mut server, &mut bob, &mut phone).await;
    // The phone and the others have to have sessions with each other.
    for sender in [&mut alice, &mut bob] {
        sender.sync(&mut server).await;
        sender.machine.discard_room_key(room()).await.unwrap();
        sender.say(&mut server, &[&phone], "hello again").await;
    }
    phone.sync(&mut server).await;
    let key = exported(&bob, &hello).await;
    send(&mut server, &mut bob, &mut phone, key.clone()).await;
    let outcome = phone.sync(&mut server).await;
    assert_eq!(outcome.rejected[0].reason, RejectedMessage::Unsolicited);
    assert!(phone.read(&hello).await.is_err());
    // It is asked for now, but not of Alice.
    assert!(ask(&phone, &hello).await);
    send(&mut server, &mut alice, &mut phone, key.clone()).await;
    let outcome = phone.sync(&mut server).await;
    assert_eq!(outcome.rejected[0].reason, RejectedMessage::Unsolicited);
    assert!(phone.read(&hello).await.is_err());
    send(&mut server, &mut bob, &mut phone, key).await;
    let outcome = phone.sync(&mut server).await;
    assert!(outcome.rejected.is_empty(), "control");
    assert_eq!(phone.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn t_fwd_2_a_key_with_another_ratchet_replaces_none() {
    let (mut server, mut alice, mut bob, mut phone, _) = with_phone().await;
    verify(&mut server, &mut bob, &mut phone).await;
    alice.sync(&mut server).await;
    bob.sync(&mut server).await;
    alice.machine.discard_room_key(room()).await.unwrap();
    alice.say(&mut server, &[&bob], "first").await;
    for peer in [&mut bob, &mut phone] {
        peer.sync(&mut server).await;
    }
    let second = alice.say(&mut server, &[&bob], "second").await;
    // The name of a session is its signing key; the ratchet beside it may be anything.
    let mut forged = exported(&bob, &second).await;
    let mut key = base64_decode(forged["session_key"].as_str().unwrap()).unwrap();
    key[20] ^= 1;
    forged.insert("session_key".to_owned(), base64_encode(&key).into());
    // An honest copy knows less, so that the forged one could seem to be better.
    let batch = Batch::new(&*phone.store);
    let honest = InboundSession::best(&batch, room(), session_id(&second)).await;
    let mut honest = honest.unwrap().unwrap();
    let forged_key = serde_json::from_value(Value::Object(forged.clone())).unwrap();
    let forged_key: crate::crypto::ExportedRoomKey = forged_key;
    let (_, mut other) = forged_key.into_session().unwrap();
    let ordering = honest.megolm.compare(&mut other.megolm);
    assert_eq!(ordering, SessionOrdering::Unconnected, "control");
    bob.machine.discard_room_key(room()).await.unwrap();
    bob.say(&mut server, &[&phone], "for a session").await;
    phone.sync(&mut server).await;
    assert!(ask(&phone, &second).await);
    send(&mut server, &mut bob, &mut phone, forged).await;
    let outcome = phone.sync(&mut server).await;
    assert!(outcome.rejected.is_empty(), "it was asked for");
    let event = phone.decrypt_in(room(), &second).await.unwrap();
    assert_ne!(event.sender.trust, SenderTrust::Imported, "untouched");
}
