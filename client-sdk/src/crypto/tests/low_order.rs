//! Keys with which every secret is the same, so that anybody knows it.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::json;
use vodozemac::olm::{PreKeyMessage, SessionConfig, SessionCreationError};

use super::{
    fake::{alice_and_bob, room},
    olm::{accepts, account_of, fresh_key, one_time_key},
    payloads::signed_keys,
};

/// 0, 1, two of order 8, p − 1, p and p + 1.
const POINTS: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc",
    "7P///////////////////////////////////////38",
    "7f///////////////////////////////////////38",
    "7v///////////////////////////////////////38",
];

#[tokio::test]
async fn t_olm_1_no_one_time_key_of_low_order_makes_a_session() {
    for point in POINTS {
        assert!(!accepts(async |bob| one_time_key(bob, point, &account_of(bob).await)).await);
    }
    let good = fresh_key();
    assert!(
        accepts(async |bob| one_time_key(bob, &good, &account_of(bob).await)).await,
        "control"
    );
}

#[tokio::test]
async fn t_olm_1_no_device_with_a_key_of_low_order_gets_a_session() {
    for (key, usable) in POINTS
        .map(|point| (point.to_owned(), false))
        .into_iter()
        .chain([(fresh_key(), true)])
    {
        let (mut server, mut alice, bob) = alice_and_bob().await;
        let account = account_of(&bob).await;
        let keys = signed_keys(&account, &bob.machine.device_keys(), |keys| {
            keys["keys"]["curve25519:BOB"] = json!(key);
        });
        server.device(bob.user(), bob.device()).keys = Some(keys);
        alice.share(&mut server, room(), &[&bob]).await;
        alice.send_outgoing(&mut server).await;
        let inbox = &server.device(bob.user(), bob.device()).inbox;
        let kinds: Vec<_> = inbox
            .iter()
            .map(|(_, event)| event["type"].as_str().unwrap())
            .collect();
        let expected = if usable {
            "m.room.encrypted"
        } else {
            "m.room_key.withheld"
        };
        assert_eq!(kinds, [expected], "{key}");
    }
}

#[tokio::test]
async fn t_olm_1_no_session_begins_with_a_key_of_low_order() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let content = &server.device(bob.user(), bob.device()).inbox[0].1["content"];
    let our_key = bob.machine.curve25519_key().to_base64();
    let body = content["ciphertext"][&our_key]["body"].as_str().unwrap();
    let bytes = vodozemac::base64_decode(body).unwrap();
    let message = PreKeyMessage::from_bytes(&bytes).unwrap();
    let config = SessionConfig::version_1();
    for key in [message.base_key(), message.identity_key()] {
        let key = key.to_bytes();
        let at = bytes.windows(32).position(|window| window == key).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + 32].fill(0);
        let bad = PreKeyMessage::from_bytes(&bytes).unwrap();
        let mut account = account_of(&bob).await;
        let made = account.create_inbound_session(config, bad.identity_key(), &bad);
        let refused = matches!(made, Err(SessionCreationError::NonContributoryKey));
        assert!(refused, "the key, and not what it encrypts");
    }
    let mut account = account_of(&bob).await;
    let made = account.create_inbound_session(config, message.identity_key(), &message);
    assert!(made.is_ok(), "control");
}
