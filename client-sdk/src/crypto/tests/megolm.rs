//! Room events that are not what they seem.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use ruma::{RoomId, room_id};
use serde_json::{Map, Value, json};
use vodozemac::megolm::{GroupSession, SessionConfig};

use super::fake::{Peer, Server, alice_and_bob, another, room, session_id};
use crate::crypto::{DecryptError, RejectedMessage, WithheldCode, outbound::OutboundSession};

fn other_room() -> &'static RoomId {
    room_id!("!other:example.org")
}

/// The content of an `m.room_key` with the present state of the session of a device.
pub(crate) async fn room_key(peer: &Peer) -> Value {
    let batch = peer.machine.batch();
    let session = OutboundSession::load(&batch, room())
        .await
        .unwrap()
        .unwrap();
    key_of(&session.megolm)
}

fn key_of(session: &GroupSession) -> Value {
    json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "room_id": room(),
        "session_id": session.session_id(),
        "session_key": session.session_key().to_base64(),
    })
}

/// Sends a room key over Olm, whosever it is.
async fn send_key(server: &mut Server, from: &mut Peer, to: &Peer, key: &Value) {
    let device = from.knows(to).await;
    let content: Map<String, Value> = key.as_object().unwrap().clone();
    assert!(
        from.machine
            .send_to_device(&device, "m.room_key", content)
            .await
            .unwrap()
    );
    from.send_outgoing(server).await;
}

#[tokio::test]
async fn t_meg_1_a_repeated_message_is_refused() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello", "control");
    let again = server.event(alice.user(), hello["content"].as_object().unwrap());
    assert!(matches!(bob.read(&again).await, Err(DecryptError::Replay)));
    let mut later = hello.clone();
    later["origin_server_ts"] = json!(1_890_000_000_000_u64);
    assert!(matches!(bob.read(&later).await, Err(DecryptError::Replay)));
    bob.restart().await;
    assert!(matches!(bob.read(&again).await, Err(DecryptError::Replay)));
}

#[tokio::test]
async fn t_meg_2_a_message_stays_in_its_room() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let error = bob.decrypt_in(other_room(), &hello).await.unwrap_err();
    assert!(matches!(error, DecryptError::MissingRoomKey { .. }));

    // Alice's own device is made to send the same key for the other room as well.
    let mut key = room_key(&alice).await;
    key["room_id"] = json!(other_room());
    let first_index = crate::crypto::tests::fake::text("x");
    let second = alice
        .machine
        .encrypt_room_event(room(), "m.room.message", first_index)
        .await;
    let second = server.event(alice.user(), &second.unwrap());
    send_key(&mut server, &mut alice, &bob, &key).await;
    bob.sync(&mut server).await;
    let error = bob.decrypt_in(other_room(), &second).await.unwrap_err();
    let DecryptError::MismatchedRoom { encrypted_for } = error else {
        panic!("{error:?}")
    };
    assert_eq!(encrypted_for, room());
    assert_eq!(bob.read(&second).await.unwrap(), "x", "control");
}

#[tokio::test]
async fn t_meg_3_a_message_stays_with_its_sender() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let mut hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    hello["sender"] = json!("@carol:example.org");
    let error = bob.read(&hello).await.unwrap_err();
    let DecryptError::MismatchedSender { owner } = error else {
        panic!("{error:?}")
    };
    assert_eq!(owner, alice.user());
    hello["sender"] = json!(alice.user());
    assert_eq!(bob.read(&hello).await.unwrap(), "hello", "control");
}

#[tokio::test]
async fn t_meg_4_the_same_event_may_be_read_twice() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    for _ in 0..3 {
        assert_eq!(bob.read(&hello).await.unwrap(), "hello");
        bob.restart().await;
    }
}

#[tokio::test]
async fn t_meg_5_a_session_cannot_be_claimed_by_sending_its_key_first() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    carol.share(&mut server, room(), &[&bob]).await;
    bob.sync(&mut server).await;
    let hello = alice.say(&mut server, &[&bob, &carol], "hello").await;
    carol.sync(&mut server).await;
    // Carol, who has the key as a member, is faster than the server delivers Alice's.
    let mut held_back = std::mem::take(&mut server.device(bob.user(), bob.device()).inbox);
    held_back.retain(|(_, event)| event["sender"] == json!(alice.user()));
    send_key(&mut server, &mut carol, &bob, &room_key(&alice).await).await;
    assert!(bob.sync(&mut server).await.rejected.is_empty());
    let error = bob.read(&hello).await.unwrap_err();
    assert!(
        matches!(error, DecryptError::MismatchedSender { .. }),
        "{error:?}"
    );
    for (_, event) in held_back {
        server.deliver(&bob, alice.user(), "m.room.encrypted", &event["content"]);
    }
    assert!(bob.sync(&mut server).await.rejected.is_empty());
    let event = bob.decrypt_in(room(), &hello).await.unwrap();
    assert_eq!(event.sender.user_id, alice.user());
    assert_eq!(
        event.sender.curve25519,
        alice.machine.curve25519_key().to_base64()
    );
    // And what was read as Alice's cannot be shown again as Carol's.
    let stolen = server.event(carol.user(), hello["content"].as_object().unwrap());
    assert!(matches!(
        bob.read(&stolen).await,
        Err(DecryptError::RoomKeyTooNew { .. } | DecryptError::Replay)
    ));
}

#[tokio::test]
async fn a_later_state_of_a_session_does_not_replace_an_earlier_one() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let first = alice.say(&mut server, &[&bob], "first").await;
    let second = alice.say(&mut server, &[&bob], "second").await;
    let now = room_key(&alice).await;
    send_key(&mut server, &mut alice, &bob, &now).await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&first).await.unwrap(), "first");
    assert_eq!(bob.read(&second).await.unwrap(), "second");
}

#[tokio::test]
async fn an_earlier_state_of_a_session_replaces_a_later_one() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let early = room_key(&alice).await;
    let held_back = std::mem::take(&mut server.device(bob.user(), bob.device()).inbox);
    let first = alice.encrypt(room(), "first").await.unwrap();
    let first = server.event(alice.user(), &first);
    let now = room_key(&alice).await;
    send_key(&mut server, &mut alice, &bob, &now).await;
    bob.sync(&mut server).await;
    let error = bob.read(&first).await.unwrap_err();
    assert!(matches!(
        error,
        DecryptError::RoomKeyTooNew {
            first_known_index: 1,
            index: 0
        }
    ));
    drop(held_back);
    send_key(&mut server, &mut alice, &bob, &early).await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&first).await.unwrap(), "first");
}

#[tokio::test]
async fn malformed_room_keys_are_refused() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    bob.sync(&mut server).await;
    let key = key_of(&GroupSession::new(SessionConfig::version_1()));
    let mut flipped = vodozemac::base64_decode(key["session_key"].as_str().unwrap()).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    let lies = [
        (
            "algorithm",
            json!("m.megolm.v2"),
            RejectedMessage::InvalidRoomKey,
        ),
        (
            "session_id",
            json!("another"),
            RejectedMessage::InvalidRoomKey,
        ),
        (
            "session_key",
            json!("AAAA"),
            RejectedMessage::InvalidRoomKey,
        ),
        // The key is signed by the session, and the signature is checked.
        (
            "session_key",
            json!(vodozemac::base64_encode(flipped)),
            RejectedMessage::InvalidRoomKey,
        ),
        ("room_id", json!("not a room"), RejectedMessage::Malformed),
        ("room_id", json!(1), RejectedMessage::Malformed),
    ];
    for (field, lie, expected) in lies {
        let mut bad = key.clone();
        bad[field] = lie;
        send_key(&mut server, &mut alice, &bob, &bad).await;
        let outcome = bob.sync(&mut server).await;
        assert_eq!(outcome.rejected[0].reason, expected, "{field}");
    }
    send_key(&mut server, &mut alice, &bob, &key).await;
    assert!(bob.sync(&mut server).await.rejected.is_empty(), "control");
}

#[tokio::test]
async fn malformed_events_are_errors() {
    use DecryptError::{Invalid, Malformed, MissingRoomKey, UnsupportedAlgorithm};

    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let tamper = |pointer: &str, value: Value| {
        let mut event = hello.clone();
        *event.pointer_mut(pointer).unwrap() = value;
        event
    };
    let mut flipped =
        vodozemac::base64_decode(hello["content"]["ciphertext"].as_str().unwrap()).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let flipped = json!(vodozemac::base64_encode(flipped));
    let read = async |event: Value| bob.read(&event).await.unwrap_err();
    assert!(matches!(
        read(tamper("/type", json!("m.room.message"))).await,
        Malformed
    ));
    assert!(matches!(
        read(tamper("/content/ciphertext", json!("AAAA"))).await,
        Malformed
    ));
    assert!(matches!(
        read(tamper("/content/ciphertext", flipped)).await,
        Invalid
    ));
    assert!(matches!(
        read(tamper("/content/algorithm", json!("a"))).await,
        UnsupportedAlgorithm
    ));
    let olm = json!("m.olm.v1.curve25519-aes-sha2");
    assert!(matches!(
        read(tamper("/content/algorithm", olm)).await,
        UnsupportedAlgorithm
    ));
    assert!(matches!(
        read(tamper("/content/session_id", json!("a"))).await,
        MissingRoomKey { .. }
    ));
    assert!(matches!(
        read(tamper("/content", json!({}))).await,
        UnsupportedAlgorithm
    ));
    assert!(matches!(
        read(tamper("/event_id", json!(1))).await,
        Malformed
    ));
    assert_eq!(bob.read(&hello).await.unwrap(), "hello", "control");
}

#[tokio::test]
async fn the_deprecated_fields_of_an_event_prove_nothing() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let mut hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    hello["content"]["sender_key"] = json!("lies");
    hello["content"]["device_id"] = json!("LIES");
    let event = bob.decrypt_in(room(), &hello).await.unwrap();
    assert_eq!(
        event.sender.curve25519,
        alice.machine.curve25519_key().to_base64()
    );
    assert_eq!(event.sender.device_id.as_deref(), Some(alice.device()));
}

#[tokio::test]
async fn t_wh_1_a_reason_explains_and_does_nothing_else() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    let held_back = std::mem::take(&mut server.device(bob.user(), bob.device()).inbox);
    let content = json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "code": "m.unverified",
        "room_id": room(),
        "session_id": session_id(&hello),
        "sender_key": alice.machine.curve25519_key().to_base64(),
    });
    server.deliver(&bob, alice.user(), "m.room_key.withheld", &content);
    bob.sync(&mut server).await;
    let error = bob.read(&hello).await.unwrap_err();
    let DecryptError::MissingRoomKey { withheld } = error else {
        panic!("{error:?}")
    };
    assert_eq!(withheld, Some(WithheldCode::Unverified));
    // It came in the clear: whoever wrote it, the key counts.
    for (_, event) in held_back {
        server.deliver(&bob, alice.user(), "m.room.encrypted", &event["content"]);
    }
    server.deliver(&bob, alice.user(), "m.room_key.withheld", &content);
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn t_pad_1_the_length_of_a_message_tells_little() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let mut lengths = std::collections::BTreeMap::new();
    for size in [0, 1, 20, 100, 150, 350, 700, 1500, 3000, 60_000, 60_001] {
        let text = "x".repeat(size);
        let event = alice.say(&mut server, &[&bob], &text).await;
        bob.sync(&mut server).await;
        let read = bob.decrypt_in(room(), &event).await.unwrap();
        let content = json!({ "msgtype": "m.text", "body": text });
        assert_eq!(Value::Object(read.content), content);
        let length = event["content"]["ciphertext"].as_str().unwrap().len();
        lengths.insert(size, length);
    }
    for (one, other) in [(0, 1), (1, 20), (20, 100)] {
        assert_eq!(lengths[&one], lengths[&other]);
    }
    for (one, other) in [(100, 350), (350, 700), (700, 1500), (1500, 3000)] {
        assert!(lengths[&one] < lengths[&other]);
    }
    assert!(
        lengths[&60_000] <= 81_000,
        "nothing is added to the longest"
    );
}
