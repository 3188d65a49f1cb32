//! Devices that behave.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use serde_json::json;

use super::fake::{alice_and_bob, another, room, session_id};
use crate::crypto::{DecryptError, InboxItem, SenderTrust};

#[tokio::test]
async fn two_devices_talk() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    let answer = bob.say(&mut server, &[&alice], "and you").await;
    alice.sync(&mut server).await;
    assert_eq!(alice.read(&answer).await.unwrap(), "and you");
    assert_eq!(
        alice.read(&hello).await.unwrap(),
        "hello",
        "own messages are readable"
    );
}

#[tokio::test]
async fn all_devices_of_all_members_read_also_the_senders_others() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut tablet = another(&mut server, "@alice:example.org", "TABLET", &environment).await;
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    alice.sync(&mut server).await;
    let hello = alice.say(&mut server, &[&bob, &carol], "hello").await;
    for peer in [&mut tablet, &mut bob, &mut carol] {
        peer.sync(&mut server).await;
        assert_eq!(peer.read(&hello).await.unwrap(), "hello");
    }
    let claims = server.claims;
    let more = alice.say(&mut server, &[&bob, &carol], "more").await;
    assert_eq!(
        session_id(&hello),
        session_id(&more),
        "one session for both"
    );
    assert_eq!(claims, server.claims, "nobody is claimed twice");
}

#[tokio::test]
async fn a_late_member_reads_from_then_on() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let before = alice.say(&mut server, &[&bob], "before").await;
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let after = alice.say(&mut server, &[&bob, &carol], "after").await;
    assert_eq!(session_id(&before), session_id(&after));
    carol.sync(&mut server).await;
    assert_eq!(carol.read(&after).await.unwrap(), "after");
    let error = carol.read(&before).await.unwrap_err();
    assert!(matches!(
        error,
        DecryptError::RoomKeyTooNew {
            first_known_index: 1,
            index: 0
        }
    ));
}

#[tokio::test]
async fn a_relation_stays_outside_and_is_found_inside() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let mut content = super::fake::text("a reply");
    let relation = json!({ "m.in_reply_to": { "event_id": "$event" } });
    content.insert("m.relates_to".to_owned(), relation.clone());
    let content = alice
        .machine
        .encrypt_room_event(room(), "m.room.message", content)
        .await
        .unwrap();
    assert_eq!(content["m.relates_to"], relation);
    let event = server.event(alice.user(), &content);
    bob.sync(&mut server).await;
    let decrypted = bob.decrypt_in(room(), &event).await.unwrap();
    assert_eq!(decrypted.content["m.relates_to"], relation);
    assert_eq!(decrypted.content["body"], "a reply");
}

#[tokio::test]
async fn the_sender_is_known_by_its_device_list() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    // Only the message has arrived; the list is asked for afterwards.
    bob.receive(&mut server).await;
    let sender = bob.decrypt_in(room(), &hello).await.unwrap().sender;
    assert_eq!(sender.trust, SenderTrust::UnknownDevice);
    assert_eq!(
        sender.device_id.as_deref(),
        Some(alice.device()),
        "as it says itself"
    );
    bob.send_outgoing(&mut server).await;
    let sender = bob.decrypt_in(room(), &hello).await.unwrap().sender;
    assert_eq!(sender.trust, SenderTrust::UnsignedDevice);
    let own = alice.decrypt_in(room(), &hello).await.unwrap().sender;
    assert_eq!(own.trust, SenderTrust::OwnDevice);
}

#[tokio::test]
async fn content_for_one_device_reaches_its_inbox() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let device = alice.knows(&bob).await;
    let content = json!({ "a": 1 }).as_object().unwrap().clone();
    assert!(
        alice
            .machine
            .send_to_device(&device, "org.example", content.clone())
            .await
            .unwrap()
    );
    alice.send_outgoing(&mut server).await;
    server.deliver(&bob, alice.user(), "org.example.clear", &json!({ "b": 2 }));
    bob.sync(&mut server).await;
    bob.restart().await;
    let inbox = bob.machine.inbox().await.unwrap();
    let [
        (_, InboxItem::RoomKey(key)),
        (_, InboxItem::Message(one)),
        (_, InboxItem::Message(two)),
    ] = inbox.as_slice()
    else {
        panic!("{inbox:?}")
    };
    assert_eq!(key.room_id, room());
    assert_eq!((one.kind.as_str(), &one.content), ("org.example", &content));
    assert_eq!(one.encrypted_by.as_ref().unwrap().user_id, alice.user());
    assert_eq!(two.kind, "org.example.clear");
    assert!(two.encrypted_by.is_none());
}
