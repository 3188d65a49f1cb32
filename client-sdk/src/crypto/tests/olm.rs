//! Olm sessions: how they begin, break, and are replaced.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use serde_json::{Map, Value, json};
use vodozemac::olm::Account;

use super::fake::{Peer, Server, alice_and_bob, another, room, text};
use crate::{
    crypto::{InboxItem, RejectedMessage, SyncOutcome, keys},
    store::{Changes, Key, Table},
};

fn reasons(outcome: &SyncOutcome) -> Vec<RejectedMessage> {
    outcome
        .rejected
        .iter()
        .map(|rejected| rejected.reason)
        .collect()
}

/// A one-time key of `peer`, with any bytes for a key, signed by `signer`.
pub(super) fn one_time_key(peer: &Peer, key: &str, signer: &Account) -> (String, Value) {
    let fields = json!({ "key": key }).as_object().unwrap().clone();
    let key = keys::sign(fields, signer, peer.user(), peer.device()).unwrap();
    ("signed_curve25519:AAAAAQ".to_owned(), key)
}

pub(super) async fn account_of(peer: &Peer) -> Account {
    let batch = peer.machine.batch();
    *crate::crypto::account::StoredAccount::load(&batch)
        .await
        .unwrap()
        .olm
}

/// Says whether Alice makes a session with Bob from the key that the server hands out.
pub(super) async fn accepts(key: impl AsyncFnOnce(&Peer) -> (String, Value)) -> bool {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let key = key(&bob).await;
    server.device(bob.user(), bob.device()).one_time_keys = vec![key];
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    alice.send_outgoing(&mut server).await;
    bob.sync(&mut server).await;
    let inbox = &server.device(bob.user(), bob.device()).inbox;
    let kinds: Vec<_> = inbox
        .iter()
        .map(|(_, event)| event["type"].clone())
        .collect();
    if kinds == ["m.room_key.withheld"] {
        assert!(bob.read(&hello).await.is_err());
        return false;
    }
    assert_eq!(kinds, ["m.room.encrypted"]);
    true
}

pub(super) fn fresh_key() -> String {
    vodozemac::Curve25519PublicKey::from(&vodozemac::Curve25519SecretKey::new()).to_base64()
}

#[tokio::test]
async fn t_olm_1_a_low_order_one_time_key_makes_no_session() {
    let zero = vodozemac::base64_encode([0_u8; 32]);
    assert!(!accepts(async |bob| one_time_key(bob, &zero, &account_of(bob).await)).await);
    let key = fresh_key();
    assert!(
        accepts(async |bob| one_time_key(bob, &key, &account_of(bob).await)).await,
        "control"
    );
}

#[tokio::test]
async fn t_olm_2_a_one_time_key_signed_by_another_device_makes_no_session() {
    let key = fresh_key();
    assert!(!accepts(async |bob| one_time_key(bob, &key, &Account::new())).await);
    let unsigned = json!({ "key": key });
    assert!(!accepts(async |_| ("signed_curve25519:AAAAAQ".to_owned(), unsigned)).await);
    assert!(!accepts(async |_| ("curve25519:AAAAAQ".to_owned(), json!(key))).await);
    for key in ["", &"A".repeat(44), "?"] {
        assert!(!accepts(async |bob| one_time_key(bob, key, &account_of(bob).await)).await);
    }
    let good = accepts(async |bob| one_time_key(bob, &key, &account_of(bob).await));
    assert!(good.await, "control");
}

async fn session_count(peer: &Peer, other: &Peer) -> usize {
    let key = other.machine.curve25519_key().to_base64();
    peer.store
        .list(Table::OlmSessions, &key)
        .await
        .unwrap()
        .len()
}

#[tokio::test]
async fn t_olm_3_a_repeated_pre_key_message_is_a_replay_and_makes_no_session() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let message = server.device(bob.user(), bob.device()).inbox[0].1["content"].clone();
    assert!(reasons(&bob.sync(&mut server).await).is_empty(), "control");
    assert_eq!(session_count(&bob, &alice).await, 1);
    server.deliver(&bob, alice.user(), "m.room.encrypted", &message);
    assert_eq!(
        reasons(&bob.sync(&mut server).await),
        [RejectedMessage::Replay]
    );
    assert_eq!(session_count(&bob, &alice).await, 1);
}

#[tokio::test]
async fn t_olm_11_a_replay_does_not_make_a_new_session() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let message = server.device(bob.user(), bob.device()).inbox[0].1["content"].clone();
    bob.sync(&mut server).await;
    let claims = server.claims;
    server.deliver(&bob, alice.user(), "m.room.encrypted", &message);
    bob.sync(&mut server).await;
    assert_eq!(claims, server.claims);
}

#[tokio::test]
async fn t_otk_3_a_malformed_pre_key_message_burns_no_one_time_key() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    let inbox = std::mem::take(&mut server.device(bob.user(), bob.device()).inbox);
    let good = &inbox[0].1["content"];
    let our_key = bob.machine.curve25519_key().to_base64();
    let body = good["ciphertext"][&our_key]["body"].as_str().unwrap();
    let bytes = vodozemac::base64_decode(body).unwrap();
    let mut bad = good.clone();
    let mut tampered = bytes.clone();
    // The end of the message is the ciphertext and its authentication.
    *tampered.last_mut().unwrap() ^= 1;
    bad["ciphertext"][&our_key]["body"] = json!(vodozemac::base64_encode(&tampered));
    server.deliver(&bob, alice.user(), "m.room.encrypted", &bad);
    assert_eq!(
        reasons(&bob.receive(&mut server).await),
        [RejectedMessage::DecryptionFailed]
    );
    assert_eq!(session_count(&bob, &alice).await, 0);
    server.deliver(&bob, alice.user(), "m.room.encrypted", good);
    assert!(reasons(&bob.receive(&mut server).await).is_empty());
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_pre_key_message_of_another_device_is_refused() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    alice.share(&mut server, room(), &[&bob]).await;
    let inbox = &mut server.device(bob.user(), bob.device()).inbox;
    let mut message = inbox.remove(0).1["content"].clone();
    message["sender_key"] = json!(carol.machine.curve25519_key().to_base64());
    server.deliver(&bob, carol.user(), "m.room.encrypted", &message);
    assert_eq!(
        reasons(&bob.sync(&mut server).await),
        [RejectedMessage::MismatchedIdentityKey]
    );
}

type Tamper = fn(&mut Value, &str);

#[tokio::test]
async fn what_is_not_olm_is_refused() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let good = server.device(bob.user(), bob.device()).inbox.remove(0).1["content"].clone();
    let our_key = bob.machine.curve25519_key().to_base64();
    let tampered: [(Tamper, RejectedMessage); 7] = [
        (
            |content, _| content["algorithm"] = json!("m.megolm.v1.aes-sha2"),
            RejectedMessage::NotOlm,
        ),
        (
            |content, _| content["sender_key"] = json!("A".repeat(44)),
            RejectedMessage::Malformed,
        ),
        (
            |content, _| content["ciphertext"] = json!({}),
            RejectedMessage::NotForUs,
        ),
        (
            |content, _| content["ciphertext"] = json!("text"),
            RejectedMessage::Malformed,
        ),
        (
            |content, key| content["ciphertext"][key]["type"] = json!(2),
            RejectedMessage::Malformed,
        ),
        (
            |content, key| content["ciphertext"][key]["body"] = json!("?"),
            RejectedMessage::Malformed,
        ),
        // A normal message needs a session.
        (
            |content, key| content["ciphertext"][key]["type"] = json!(1),
            RejectedMessage::NoSession,
        ),
    ];
    for (tamper, expected) in tampered {
        let mut content = good.clone();
        tamper(&mut content, &our_key);
        server.deliver(&bob, alice.user(), "m.room.encrypted", &content);
        let found = reasons(&bob.receive(&mut server).await);
        // A pre-key message that is called normal may also not parse as one.
        let parsed = found == [expected];
        let unparsed =
            expected == RejectedMessage::NoSession && found == [RejectedMessage::Malformed];
        assert!(parsed || unparsed, "{found:?} instead of {expected:?}");
        assert_eq!(session_count(&bob, &alice).await, 0);
    }
    server.deliver(&bob, alice.user(), "m.room.encrypted", &good);
    assert!(
        reasons(&bob.receive(&mut server).await).is_empty(),
        "control"
    );
}

#[tokio::test]
async fn t_olm_14_a_megolm_message_is_no_message_to_a_device() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    bob.sync(&mut server).await;
    let content = alice.encrypt(room(), "hello").await.unwrap();
    server.deliver(
        &bob,
        alice.user(),
        "m.room.encrypted",
        &Value::Object(content),
    );
    assert_eq!(
        reasons(&bob.sync(&mut server).await),
        [RejectedMessage::NotOlm]
    );
}

#[tokio::test]
async fn keys_and_secrets_in_the_clear_are_refused() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    // A room key that would be valid if it had come over Olm.
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let hello = alice.say(&mut server, &[&carol], "hello").await;
    carol.sync(&mut server).await;
    let key = crate::crypto::tests::megolm::room_key(&alice).await;
    for kind in [
        "m.room_key",
        "m.forwarded_room_key",
        "m.secret.send",
        "m.dummy",
    ] {
        server.deliver(&bob, alice.user(), kind, &key);
        assert_eq!(
            reasons(&bob.sync(&mut server).await),
            [RejectedMessage::NotEncrypted]
        );
    }
    assert!(bob.read(&hello).await.is_err());
    assert!(bob.machine.inbox().await.unwrap().is_empty());
}

#[tokio::test]
async fn t_olm_9_messages_of_a_device_that_is_gone_can_be_read() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let farewell = alice.say(&mut server, &[&bob], "farewell").await;
    server.delete_device(alice.user(), alice.device());
    bob.sync(&mut server).await;
    let event = bob.decrypt_in(room(), &farewell).await.unwrap();
    assert_eq!(event.sender.user_id, alice.user());
    assert_eq!(event.sender.device_id.as_deref(), Some(alice.device()));
    assert_eq!(
        event.sender.ed25519,
        alice.machine.ed25519_key().to_base64()
    );
}

/// Makes Bob forget his sessions with Alice, as a broken client would.
pub(super) async fn forget_sessions(bob: &Peer, alice: &Peer) {
    let key = alice.machine.curve25519_key().to_base64();
    let mut changes = Changes::default();
    for (id, _) in bob.store.list(Table::OlmSessions, &key).await.unwrap() {
        changes.delete(Key::new(Table::OlmSessions, &key, id));
    }
    bob.store.commit(changes).await.unwrap();
}

/// Alice and Bob after messages in both directions, so that their session is established.
async fn established() -> (Server, Peer, Peer) {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.say(&mut server, &[&bob], "one").await;
    bob.sync(&mut server).await;
    bob.say(&mut server, &[&alice], "two").await;
    alice.sync(&mut server).await;
    (server, alice, bob)
}

#[tokio::test]
async fn t_olm_10_a_broken_session_is_replaced_and_the_lost_key_sent_again() {
    let (mut server, mut alice, mut bob) = established().await;
    forget_sessions(&bob, &alice).await;
    alice.machine.discard_room_key(room()).await.unwrap();
    let lost = alice.say(&mut server, &[&bob], "lost").await;
    assert_eq!(
        reasons(&bob.receive(&mut server).await),
        [RejectedMessage::NoSession]
    );
    assert!(bob.read(&lost).await.is_err());

    // Bob makes a new session and says so; Alice sends the key of her session again.
    bob.send_outgoing(&mut server).await;
    assert!(reasons(&alice.sync(&mut server).await).is_empty());
    let found = alice.say(&mut server, &[&bob], "found").await;
    assert!(reasons(&bob.sync(&mut server).await).is_empty());
    assert_eq!(bob.read(&found).await.unwrap(), "found");
    assert_eq!(
        super::fake::session_id(&lost),
        super::fake::session_id(&found)
    );
}

#[tokio::test]
async fn a_session_is_replaced_once_an_hour() {
    let (mut server, alice, mut bob) = established().await;
    let garbage = async |alice: &Peer, bob: &Peer| {
        let device = alice.knows(bob).await;
        let mut batch = alice.machine.batch();
        let content = alice
            .machine
            .encrypt_for(&mut batch, &device, "a.b", &Map::new())
            .await;
        batch.commit().await.unwrap();
        let mut content = content.unwrap().unwrap();
        let key = bob.machine.curve25519_key().to_base64();
        let body = content["ciphertext"][&key]["body"].as_str().unwrap();
        let mut bytes = vodozemac::base64_decode(body).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        content["ciphertext"][&key]["body"] = json!(vodozemac::base64_encode(bytes));
        content
    };
    let before = server.claims;
    for (minutes, expected) in [(0, 1), (1, 1), (30, 1), (30, 2), (1, 2)] {
        bob.environment.advance(Duration::from_mins(minutes));
        let content = garbage(&alice, &bob).await;
        server.deliver(&bob, alice.user(), "m.room.encrypted", &content);
        assert_eq!(
            reasons(&bob.sync(&mut server).await),
            [RejectedMessage::DecryptionFailed]
        );
        assert_eq!(server.claims - before, expected, "after {minutes} minutes");
    }
}

#[tokio::test]
async fn garbage_of_unknown_devices_costs_nothing() {
    let (mut server, alice, mut bob) = alice_and_bob().await;
    let claims = server.claims;
    for _ in 0..20 {
        let sender_key = fresh_key();
        let our_key = bob.machine.curve25519_key().to_base64();
        let content = json!({
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": sender_key,
            "ciphertext": { our_key: { "type": 1, "body": "AwogGJJzMhf/S3GQFXAOrCZ3iKyGU5ZScVtjI0KypTYrW7I" } },
        });
        server.deliver(&bob, alice.user(), "m.room.encrypted", &content);
    }
    assert_eq!(bob.sync(&mut server).await.rejected.len(), 20);
    assert_eq!(claims, server.claims);
    assert!(
        bob.store
            .list(Table::WedgedDevices, "")
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn t_olm_12_of_sixty_messages_in_reverse_order_forty_one_are_read() {
    let (mut server, mut alice, mut bob) = established().await;
    bob.sync(&mut server).await;
    let device = alice.knows(&bob).await;
    for number in 0..60 {
        let content = json!({ "number": number }).as_object().unwrap().clone();
        assert!(
            alice
                .machine
                .send_to_device(&device, "org.example", content)
                .await
                .unwrap()
        );
    }
    alice.send_outgoing(&mut server).await;
    server.reverse_inbox(&bob);
    let lost = bob.sync(&mut server).await.rejected.len();
    let read: Vec<u64> = bob
        .machine
        .inbox()
        .await
        .unwrap()
        .into_iter()
        .filter_map(|(_, item)| match item {
            InboxItem::Message(event) => event.content["number"].as_u64(),
            InboxItem::RoomKey(_) => None,
        })
        .collect();
    // The ratchet keeps forty keys of skipped messages.
    assert_eq!((lost, read.len()), (19, 41));
    assert_eq!(read, (19..60).rev().collect::<Vec<_>>());
    // Bob says that his session is broken, and the room goes on.
    let after = alice.say(&mut server, &[&bob], "after").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&after).await.unwrap(), "after");
}

#[tokio::test]
async fn sessions_that_are_used_least_go_first() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    bob.sync(&mut server).await;
    for _ in 0..8 {
        forget_sessions(&alice, &bob).await;
        alice.environment.advance(Duration::from_mins(1));
        alice.machine.discard_room_key(room()).await.unwrap();
        alice.share(&mut server, room(), &[&bob]).await;
        assert!(reasons(&bob.sync(&mut server).await).is_empty());
    }
    assert_eq!(session_count(&bob, &alice).await, 5);
    // The answer uses the newest session, the only one that Alice has.
    let answer = bob.say(&mut server, &[&alice], "answer").await;
    assert!(reasons(&alice.sync(&mut server).await).is_empty());
    assert_eq!(alice.read(&answer).await.unwrap(), "answer");
}

#[tokio::test]
async fn t_olm_13_a_room_key_inside_a_room_event_is_no_room_key() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    // Alice writes to Carol alone first, so that there is a key which Bob does not have.
    let secret = alice.say(&mut server, &[&carol], "secret").await;
    let key = crate::crypto::tests::megolm::room_key(&alice).await;
    alice.machine.discard_room_key(room()).await.unwrap();
    alice.share(&mut server, room(), &[&bob]).await;
    let Value::Object(key) = key else { panic!() };
    let content = alice
        .machine
        .encrypt_room_event(room(), "m.room_key", key)
        .await
        .unwrap();
    let event = server.event(alice.user(), &content);
    bob.sync(&mut server).await;
    assert_eq!(
        bob.decrypt_in(room(), &event).await.unwrap().kind,
        "m.room_key",
        "control"
    );
    assert!(bob.read(&secret).await.is_err());
}

#[tokio::test]
async fn texts_are_not_special() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    for body in ["", "\u{0}", "🦀", &"long ".repeat(10_000)] {
        alice.share(&mut server, room(), &[&bob]).await;
        let content = alice
            .machine
            .encrypt_room_event(room(), "m.room.message", text(body))
            .await
            .unwrap();
        let event = server.event(alice.user(), &content);
        bob.sync(&mut server).await;
        assert_eq!(bob.read(&event).await.unwrap(), body);
    }
}
