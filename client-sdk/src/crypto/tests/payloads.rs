//! Payloads that are encrypted correctly and lie: one field is changed at a time.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use serde_json::{Map, Value, json};
use vodozemac::olm::Account;

use super::fake::{Peer, Server, alice_and_bob, another, room, signed};
use crate::{
    crypto::{InboxItem, RejectedMessage, SenderTrust, keys},
    environment::tests::TestEnvironment,
};

/// Encrypts a message as `from` would, after `lie` has changed it.
async fn encrypted(from: &Peer, to: &Peer, lie: impl FnOnce(&mut Value)) -> Value {
    let device = from.knows(to).await;
    let payload = from
        .machine
        .payload_for(&device, "org.example.note", &Map::new());
    let mut payload = serde_json::from_slice(&payload.unwrap()).unwrap();
    lie(&mut payload);
    let mut batch = from.machine.batch();
    let content = from
        .machine
        .encrypt_payload(&mut batch, &device, payload.to_string().as_bytes())
        .await
        .unwrap();
    batch.commit().await.unwrap();
    content.unwrap()
}

/// What Bob makes of a message: the reason of his refusal, if he refuses.
async fn received(server: &mut Server, bob: &mut Peer) -> Option<RejectedMessage> {
    let before = bob.machine.inbox().await.unwrap().len();
    let outcome = bob.receive(server).await;
    let messages = &bob.machine.inbox().await.unwrap()[before..];
    match outcome.rejected.as_slice() {
        [] => {
            assert!(
                matches!(messages, [(_, InboxItem::Message(_))]),
                "{messages:?}"
            );
            None
        }
        [rejected] => {
            assert!(messages.is_empty(), "{messages:?}");
            Some(rejected.reason)
        }
        more => panic!("{more:?}"),
    }
}

/// Alice and Bob with a session, and Bob knows Alice's device.
async fn with_session() -> (Server, Peer, Peer) {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    bob.sync(&mut server).await;
    (server, alice, bob)
}

/// Sends a lie after a truth, so that nothing but the lie can be the reason.
async fn refused(lie: impl FnOnce(&mut Value)) -> Option<RejectedMessage> {
    let (mut server, alice, mut bob) = with_session().await;
    let truth = encrypted(&alice, &bob, |_| {}).await;
    server.deliver(&bob, alice.user(), "m.room.encrypted", &truth);
    assert_eq!(received(&mut server, &mut bob).await, None, "control");
    let lie = encrypted(&alice, &bob, lie).await;
    server.deliver(&bob, alice.user(), "m.room.encrypted", &lie);
    received(&mut server, &mut bob).await
}

#[tokio::test]
async fn t_olm_4_the_sender_inside_is_the_sender_outside() {
    let reason = refused(|payload| payload["sender"] = json!("@carol:example.org")).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedSender));
}

#[tokio::test]
async fn t_olm_4_the_sender_outside_is_the_sender_inside() {
    let (mut server, alice, mut bob) = with_session().await;
    let content = encrypted(&alice, &bob, |_| {}).await;
    let carol = ruma::user_id!("@carol:example.org");
    server.deliver(&bob, carol, "m.room.encrypted", &content);
    let reason = received(&mut server, &mut bob).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedSender));
}

#[tokio::test]
async fn t_olm_5_the_recipient_is_this_user() {
    let reason = refused(|payload| payload["recipient"] = json!("@carol:example.org")).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedRecipient));
}

#[tokio::test]
async fn t_olm_6_the_recipient_is_this_device() {
    let key = Account::new().ed25519_key().to_base64();
    let reason = refused(|payload| payload["recipient_keys"]["ed25519"] = json!(key)).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedRecipientKeys));
}

#[tokio::test]
async fn t_olm_7_the_signing_key_is_that_of_the_known_device() {
    let key = Account::new().ed25519_key().to_base64();
    let reason = refused(|payload| {
        payload["keys"]["ed25519"] = json!(key);
        payload
            .as_object_mut()
            .unwrap()
            .remove("sender_device_keys");
    })
    .await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedSenderKeys));
}

#[tokio::test]
async fn the_device_keys_may_be_absent() {
    let reason = refused(|payload| {
        payload
            .as_object_mut()
            .unwrap()
            .remove("sender_device_keys");
    })
    .await;
    assert_eq!(reason, None);
}

#[tokio::test]
async fn t_olm_8_the_device_keys_are_signed() {
    let reason = refused(|payload| payload["sender_device_keys"]["signatures"] = json!({})).await;
    assert_eq!(reason, Some(RejectedMessage::UnsignedDeviceKeys));
    let reason = refused(|payload| payload["sender_device_keys"]["algorithms"] = json!([])).await;
    assert_eq!(reason, Some(RejectedMessage::UnsignedDeviceKeys));
}

/// Device keys that are signed, with parts of the real ones.
pub(super) fn signed_keys(
    account: &Account,
    real: &Value,
    change: impl FnOnce(&mut Value),
) -> Value {
    let mut fields = real.clone();
    change(&mut fields);
    fields.as_object_mut().unwrap().remove("signatures");
    let user = fields["user_id"].as_str().unwrap().to_owned();
    let device = fields["device_id"].as_str().unwrap().to_owned();
    let user = ruma::UserId::parse(user).unwrap();
    let fields = fields.as_object().unwrap().clone();
    keys::sign(fields, account, &user, device.as_str().into()).unwrap()
}

#[tokio::test]
async fn t_olm_8_the_device_keys_are_of_the_sending_user() {
    // Carol signs device keys with Alice's name in them and with her own keys.
    let (mut server, alice, mut bob) = with_session().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    carol.share(&mut server, room(), &[&bob]).await;
    bob.sync(&mut server).await;
    let account = carol_account(&carol).await;
    let stolen = signed_keys(&account, &carol.machine.device_keys(), |keys| {
        keys["user_id"] = json!(alice.user());
    });
    let lie = encrypted(&carol, &bob, |payload| {
        payload["sender_device_keys"] = stolen;
    })
    .await;
    server.deliver(&bob, carol.user(), "m.room.encrypted", &lie);
    let reason = received(&mut server, &mut bob).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedDeviceKeys));
}

async fn carol_account(carol: &Peer) -> Account {
    let batch = carol.machine.batch();
    let account = crate::crypto::account::StoredAccount::load(&batch)
        .await
        .unwrap();
    *account.olm
}

#[tokio::test]
async fn t_olm_8_the_device_keys_have_the_keys_that_sent_the_message() {
    let account = Account::new();
    let other = keys::own_device_keys(
        &account,
        ruma::user_id!("@alice:example.org"),
        ruma::device_id!("ALICE"),
    );
    let reason = refused(|payload| payload["sender_device_keys"] = other.unwrap()).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedDeviceKeys));
}

#[tokio::test]
async fn t_olm_8_the_device_keys_have_the_pinned_name() {
    let (mut server, alice, mut bob) = with_session().await;
    let account = carol_account(&alice).await;
    let renamed = signed_keys(&account, &alice.machine.device_keys(), |keys| {
        let (ed25519, curve25519) = (
            keys["keys"]["ed25519:ALICE"].clone(),
            keys["keys"]["curve25519:ALICE"].clone(),
        );
        keys["device_id"] = json!("OTHER");
        keys["keys"] = json!({ "ed25519:OTHER": ed25519, "curve25519:OTHER": curve25519 });
    });
    let lie = encrypted(&alice, &bob, |payload| {
        payload["sender_device_keys"] = renamed;
    })
    .await;
    server.deliver(&bob, alice.user(), "m.room.encrypted", &lie);
    let reason = received(&mut server, &mut bob).await;
    assert_eq!(reason, Some(RejectedMessage::MismatchedDeviceKeys));
}

#[tokio::test]
async fn a_known_device_cannot_be_taken_over_by_a_new_one() {
    let (mut server, alice, mut bob) = with_session().await;
    // A thief of Alice's password logs in with her device id and other keys; the server tells
    // Bob nothing of it.
    let environment = alice.environment.clone();
    let mut thief = Peer::new("@alice:example.org", "ALICE", &environment).await;
    thief.encrypt_room(room(), json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    thief.receive(&mut server).await;
    server.device(alice.user(), alice.device()).keys = None;
    thief.share(&mut server, room(), &[&bob]).await;
    let outcome = bob.receive(&mut server).await;
    assert_eq!(
        outcome.rejected[0].reason,
        RejectedMessage::MismatchedDeviceKeys
    );
}

#[tokio::test]
async fn malformed_payloads_are_refused() {
    let missing = [
        "sender",
        "recipient",
        "recipient_keys",
        "keys",
        "type",
        "content",
    ];
    for field in missing {
        let reason = refused(|payload| {
            payload.as_object_mut().unwrap().remove(field);
        })
        .await;
        assert_eq!(reason, Some(RejectedMessage::Malformed), "{field}");
    }
    for key in ["", "?", &"A".repeat(44), &format!("{}=", "A".repeat(42))] {
        let reason = refused(|payload| payload["keys"]["ed25519"] = json!(key)).await;
        assert_eq!(reason, Some(RejectedMessage::Malformed), "{key}");
        let reason = refused(|payload| payload["recipient_keys"]["ed25519"] = json!(key)).await;
        assert_eq!(
            reason,
            Some(RejectedMessage::MismatchedRecipientKeys),
            "{key}"
        );
        let reason = refused(|payload| {
            payload["sender_device_keys"]["keys"]["ed25519:ALICE"] = json!(key);
        })
        .await;
        assert_eq!(reason, Some(RejectedMessage::Malformed), "{key}");
    }
}

#[tokio::test]
async fn nested_and_unsolicited_messages_are_refused() {
    let reason = refused(|payload| payload["type"] = json!("m.room.encrypted")).await;
    assert_eq!(reason, Some(RejectedMessage::Malformed));
    for kind in ["m.forwarded_room_key", "m.secret.send"] {
        let reason = refused(|payload| payload["type"] = json!(kind)).await;
        assert_eq!(reason, Some(RejectedMessage::Unsolicited));
    }
}

#[tokio::test]
async fn a_payload_that_is_no_text_is_refused() {
    let (mut server, alice, mut bob) = with_session().await;
    let device = alice.knows(&bob).await;
    let content = Map::from_iter([("note".to_owned(), json!("caf\u{e9}"))]);
    for (end, expected) in [
        (&b"\xc3\xa9"[..], None),
        (b"\xe9", Some(RejectedMessage::Malformed)),
    ] {
        let payload = alice
            .machine
            .payload_for(&device, "org.example.note", &content);
        let payload = payload.unwrap();
        let at = payload
            .windows(2)
            .position(|two| two == b"\xc3\xa9")
            .unwrap();
        let bytes = [&payload[..at], end, &payload[at + 2..]].concat();
        let mut batch = alice.machine.batch();
        let sent = alice
            .machine
            .encrypt_payload(&mut batch, &device, &bytes)
            .await;
        batch.commit().await.unwrap();
        server.deliver(
            &bob,
            alice.user(),
            "m.room.encrypted",
            &sent.unwrap().unwrap(),
        );
        assert_eq!(received(&mut server, &mut bob).await, expected);
    }
}

/// What Bob knows of the device that sent the newest message.
async fn trust_of_newest(bob: &Peer) -> SenderTrust {
    match bob.machine.inbox().await.unwrap().pop().unwrap() {
        (_, InboxItem::Message(event)) => event.encrypted_by.unwrap().trust,
        (_, item) => panic!("{item:?}"),
    }
}

/// A message from a new device of Alice that is gone when Bob looks.
async fn from_gone(
    (server, alice, bob): (&mut Server, &mut Peer, &mut Peer),
    name: &str,
    lie: impl FnOnce(&mut Value),
) -> SenderTrust {
    let environment = alice.environment.clone();
    let mut phone = another(server, "@alice:example.org", name, &environment).await;
    alice.sync(server).await;
    let device = alice.knows(&phone).await;
    let vouched = name != "STRANGE";
    if vouched {
        alice.machine.sign_own_device(&device).await.unwrap();
        alice.sync(server).await;
    }
    phone.sync(server).await;
    assert_eq!(phone.machine.is_cross_signed().await.unwrap(), vouched);
    phone.share(server, room(), &[bob]).await;
    server.device(bob.user(), bob.device()).inbox.clear();
    let message = encrypted(&phone, bob, lie).await;
    server.deliver(bob, phone.user(), "m.room.encrypted", &message);
    server.delete_device(phone.user(), phone.device());
    assert!(bob.sync(server).await.rejected.is_empty());
    let known = bob.machine.devices(phone.user()).await.unwrap();
    assert!(known.iter().all(|device| device.device_id != name));
    trust_of_newest(bob).await
}

#[tokio::test]
async fn t_olm_9_what_the_identity_has_signed_counts_when_the_device_is_gone() {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let alice = signed(&mut server, "@alice:example.org", "ALICE", &environment).await;
    let mut bob = signed(&mut server, "@bob:example.org", "BOB", &environment).await;
    bob.share(&mut server, room(), &[&alice]).await;
    let all = &mut (server, alice, bob);
    let mut try_with = async |name: &str, lie: fn(&mut Value)| {
        let all = (&mut all.0, &mut all.1, &mut all.2);
        from_gone(all, name, lie).await
    };
    let signed = SenderTrust::SignedDevice;
    assert_eq!(try_with("PHONE", |_| {}).await, signed, "control");
    let unknown = SenderTrust::UnknownDevice;
    assert_eq!(try_with("STRANGE", |_| {}).await, unknown);
    let forged = |payload: &mut Value| {
        let signatures = &mut payload["sender_device_keys"]["signatures"];
        let names = signatures["@alice:example.org"].as_object_mut().unwrap();
        let own = names["ed25519:FORGED"].clone();
        names
            .values_mut()
            .for_each(|signature| *signature = own.clone());
    };
    assert_eq!(try_with("FORGED", forged).await, unknown);
}
