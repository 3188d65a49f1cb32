//! When a session has to be replaced, and that a room stays encrypted.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use super::fake::{Peer, Server, alice_and_bob, another, room, session_id, users};
use crate::crypto::{EncryptError, LocalTrust, RoomChange, ShareError};

/// Says something before and after `change`; returns whether both used one session.
async fn keeps_session(change: impl AsyncFnOnce(&mut Server, &mut Peer, &mut Peer)) -> bool {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let before = alice.say(&mut server, &[&bob], "before").await;
    change(&mut server, &mut alice, &mut bob).await;
    let after = alice.say(&mut server, &[&bob], "after").await;
    session_id(&before) == session_id(&after)
}

#[tokio::test]
async fn nothing_happens_without_reason() {
    assert!(keeps_session(async |_, _, _| {}).await);
    assert!(
        keeps_session(async |server, alice, _| {
            alice.sync(server).await;
        })
        .await
    );
    assert!(keeps_session(async |_, alice, _| alice.restart().await).await);
    assert!(
        keeps_session(async |server, alice, bob| {
            server.note_change(bob.user());
            alice.sync(server).await;
        })
        .await
    );
}

#[tokio::test]
async fn t_rot_1_after_a_hundred_messages() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let mut sessions = BTreeSet::new();
    for number in 0..201 {
        let event = alice.say(&mut server, &[&bob], "again").await;
        sessions.insert(session_id(&event).to_owned());
        assert_eq!(sessions.len(), number / 100 + 1, "message {number}");
    }
}

#[tokio::test]
async fn t_rot_2_after_a_week() {
    let wait = async |hours| {
        keeps_session(async |_, alice, _| alice.environment.advance(Duration::from_hours(hours)))
            .await
    };
    assert!(wait(7 * 24 - 1).await);
    assert!(!wait(7 * 24).await);
}

/// Whether a session lives so many hours, in a conversation of two or not, with these settings.
async fn lives(hours: u64, direct: bool, settings: Value, ours: Option<Duration>) -> bool {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let mut content = settings;
    content["algorithm"] = json!("m.megolm.v1.aes-sha2");
    alice.encrypt_room(room(), content.clone());
    alice.sync(&mut server).await;
    alice.machine.set_direct(room(), direct).await.unwrap();
    let before = alice.say(&mut server, &[&bob], "before").await;
    alice.restart().await;
    if let Some(period) = ours {
        alice.machine.set_direct_rotation(period);
    }
    // The same settings once more change nothing.
    alice.encrypt_room(room(), content);
    alice.sync(&mut server).await;
    alice.environment.advance(Duration::from_hours(hours));
    let after = alice.say(&mut server, &[&bob], "after").await;
    session_id(&before) == session_id(&after)
}

#[tokio::test]
async fn t_rot_9_after_a_day_in_a_conversation_of_two() {
    assert!(lives(23, true, json!({}), None).await, "control");
    assert!(!lives(24, true, json!({}), None).await);
    assert!(lives(24, false, json!({}), None).await, "control");
    assert!(lives(7 * 24 - 1, false, json!({}), None).await, "control");
}

#[tokio::test]
async fn t_rot_9_a_room_may_make_the_day_shorter_and_not_longer() {
    let of_hours = |hours: u64| json!({ "rotation_period_ms": hours * 60 * 60 * 1000 });
    assert!(lives(4, true, of_hours(5), None).await, "control");
    assert!(!lives(5, true, of_hours(5), None).await);
    assert!(!lives(24, true, of_hours(7 * 24), None).await);
    assert!(lives(24, false, of_hours(7 * 24), None).await, "control");
    // Not below an hour, whoever says so.
    assert!(lives(0, true, of_hours(0), Some(Duration::ZERO)).await);
    assert!(!lives(1, true, of_hours(0), Some(Duration::ZERO)).await);
}

#[tokio::test]
async fn the_day_of_a_conversation_of_two_can_be_set() {
    let two_days = Some(Duration::from_hours(48));
    assert!(lives(47, true, json!({}), two_days).await);
    assert!(!lives(48, true, json!({}), two_days).await);
    // A week is the most.
    let ever = Some(Duration::MAX);
    assert!(lives(7 * 24 - 1, true, json!({}), ever).await);
    assert!(!lives(7 * 24, true, json!({}), ever).await);
    // What is no conversation of two has nothing to do with it.
    let short = Some(Duration::from_hours(2));
    assert!(lives(24, false, json!({}), short).await, "control");
}

#[tokio::test]
async fn t_rot_3_when_a_member_leaves() {
    let kept = keeps_session(async |server, alice, _| {
        alice.room_change(RoomChange::Departed(room().to_owned()));
        alice.sync(server).await;
    });
    assert!(!kept.await);
    let kept = keeps_session(async |server, alice, _| {
        alice.room_change(RoomChange::Departed(
            ruma::room_id!("!other:example.org").to_owned(),
        ));
        alice.sync(server).await;
    });
    assert!(kept.await, "control");
}

#[tokio::test]
async fn t_rot_4_when_a_device_is_removed() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let phone = another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    let before = alice.say(&mut server, &[&bob], "before").await;
    server.delete_device(phone.user(), phone.device());
    alice.sync(&mut server).await;
    let after = alice.say(&mut server, &[&bob], "after").await;
    assert_ne!(session_id(&before), session_id(&after));
}

#[tokio::test]
async fn t_rot_5_when_a_device_is_blocked() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut phone = another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    let before = alice.say(&mut server, &[&bob], "before").await;
    let blocked = LocalTrust::Blocked;
    let known = alice
        .machine
        .set_local_trust(phone.user(), phone.device(), blocked)
        .await
        .unwrap();
    assert!(known);
    let after = alice.say(&mut server, &[&bob], "after").await;
    assert_ne!(session_id(&before), session_id(&after));
    for peer in [&mut bob, &mut phone] {
        peer.sync(&mut server).await;
    }
    assert_eq!(bob.read(&after).await.unwrap(), "after");
    assert_eq!(phone.read(&before).await.unwrap(), "before");
    assert!(phone.read(&after).await.is_err());
}

#[tokio::test]
async fn t_rot_6_hostile_settings_are_bounded() {
    let with = async |settings: Value| {
        let (mut server, mut alice, bob) = alice_and_bob().await;
        let mut content = settings;
        content["algorithm"] = json!("m.megolm.v1.aes-sha2");
        alice.encrypt_room(room(), content);
        alice.sync(&mut server).await;
        (server, alice, bob)
    };
    // A period of zero would make each message cost a session for everybody …
    let (mut server, mut alice, bob) =
        with(json!({ "rotation_period_ms": 0, "rotation_period_msgs": 0 })).await;
    let first = alice.say(&mut server, &[&bob], "first").await;
    let second = alice.say(&mut server, &[&bob], "second").await;
    assert_ne!(
        session_id(&first),
        session_id(&second),
        "one message is the least"
    );
    let (mut server, mut alice, bob) = with(json!({ "rotation_period_ms": 0 })).await;
    let first = alice.say(&mut server, &[&bob], "first").await;
    alice.environment.advance(Duration::from_mins(59));
    let second = alice.say(&mut server, &[&bob], "second").await;
    assert_eq!(
        session_id(&first),
        session_id(&second),
        "an hour is the least"
    );
    // … and an endless one would switch rotation off.
    let endless = json!({ "rotation_period_ms": u64::MAX, "rotation_period_msgs": u64::MAX });
    let (mut server, mut alice, bob) = with(endless).await;
    let first = alice.say(&mut server, &[&bob], "first").await;
    alice.environment.advance(Duration::from_hours(7 * 24));
    let second = alice.say(&mut server, &[&bob], "second").await;
    assert_ne!(
        session_id(&first),
        session_id(&second),
        "a week is the most"
    );
}

#[tokio::test]
async fn t_rot_7_when_the_settings_change() {
    let kept = keeps_session(async |server, alice, _| {
        let content = json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 50 });
        alice.encrypt_room(room(), content);
        alice.sync(server).await;
    });
    assert!(!kept.await);
    let kept = keeps_session(async |server, alice, _| {
        alice.encrypt_room(room(), json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
        alice.sync(server).await;
    });
    assert!(kept.await, "control");
}

#[tokio::test]
async fn t_rot_8_when_somebody_has_the_key_who_is_no_member() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let before = alice.say(&mut server, &[&bob, &carol], "before").await;
    // No sync has told us of a departure, but the list of members is shorter.
    let after = alice.say(&mut server, &[&bob], "after").await;
    assert_ne!(session_id(&before), session_id(&after));
    carol.sync(&mut server).await;
    assert_eq!(carol.read(&before).await.unwrap(), "before");
    assert!(carol.read(&after).await.is_err());
}

#[tokio::test]
async fn a_departure_between_sharing_and_encrypting_stops_the_message() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    alice.room_change(RoomChange::Departed(room().to_owned()));
    alice.receive(&mut server).await;
    assert!(matches!(
        alice.encrypt(room(), "x").await,
        Err(EncryptError::NotShared)
    ));
    alice.share(&mut server, room(), &[&bob]).await;
    assert!(alice.encrypt(room(), "x").await.is_ok(), "control");
}

#[tokio::test]
async fn t_latch_a_room_that_was_encrypted_stays_encrypted() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    for content in [
        json!({}),
        json!({ "algorithm": "none" }),
        json!({ "algorithm": null }),
    ] {
        alice.encrypt_room(room(), content);
        alice.sync(&mut server).await;
        alice.restart().await;
        assert!(alice.machine.is_encrypted(room()).await.unwrap());
        let hello = alice.say(&mut server, &[&bob], "hello").await;
        assert_eq!(hello["content"]["algorithm"], "m.megolm.v1.aes-sha2");
        bob.sync(&mut server).await;
        assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn t_latch_a_room_with_an_unknown_algorithm_is_not_sent_to() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let room = ruma::room_id!("!future:example.org");
    let members = users(&[&bob]);
    let error = alice
        .machine
        .share_room_key(room, &members)
        .await
        .unwrap_err();
    assert!(matches!(error, ShareError::NotEncrypted), "control");
    alice.encrypt_room(room, json!({ "algorithm": "org.example.future" }));
    alice.sync(&mut server).await;
    assert!(alice.machine.is_encrypted(room).await.unwrap());
    let error = alice
        .machine
        .share_room_key(room, &members)
        .await
        .unwrap_err();
    assert!(matches!(error, ShareError::UnsupportedAlgorithm));
    assert!(matches!(
        alice.encrypt(room, "x").await,
        Err(EncryptError::NotShared)
    ));
    // When the room moves to what we know, it can be used.
    alice.encrypt_room(room, json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    alice.sync(&mut server).await;
    alice.share(&mut server, room, &[&bob]).await;
    assert!(alice.encrypt(room, "x").await.is_ok());
}
