//! People on one server.

use serde_json::{Value, json};
use sotto_tests::{TestServer, room};

fn bodies(sync: &Value, room_id: &str) -> Vec<String> {
    let events = sync["rooms"]["join"][room_id]["timeline"]["events"].as_array();
    let texts = events
        .into_iter()
        .flatten()
        .filter_map(|event| event["content"]["body"].as_str());
    texts.map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_talk() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice
        .create_room(&json!({ "invite": [bob.user_id], "name": "Kitchen" }))
        .await;
    let sync = bob.sync(None, 0).await;
    let invite = &sync["rooms"]["invite"][&room_id]["invite_state"]["events"];
    assert!(
        invite
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["content"]["name"] == "Kitchen")
    );
    bob.join(&room_id).await.ok();
    let mut since = Some(
        bob.sync(None, 0).await["next_batch"]
            .as_str()
            .unwrap()
            .to_owned(),
    );
    let (told, sent) = tokio::join!(
        bob.sync_until(&mut since, |sync| Some(bodies(sync, &room_id))
            .filter(|b| !b.is_empty())),
        alice.send(&room_id, "hello"),
    );
    assert_eq!(told, ["hello"]);
    let event = alice
        .get(&room(
            &room_id,
            &format!("event/{}", sotto_tests::escape(&sent)),
        ))
        .await;
    assert_eq!(event.ok()["content"]["body"], "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_transaction_makes_one_event() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let path = room(&room_id, "send/m.room.message/once");
    let content = json!({ "msgtype": "m.text", "body": "once" });
    let many = (0..8).map(|_| alice.put(&path, &content));
    let ids: Vec<_> = futures_util::future::join_all(many).await;
    let first = ids[0].clone().ok()["event_id"].clone();
    for id in ids {
        assert_eq!(id.ok()["event_id"], first);
    }
    let messages = alice
        .get(&room(&room_id, "messages?dir=b&limit=50"))
        .await
        .ok();
    let chunk = messages["chunk"].as_array().unwrap();
    let once: Vec<_> = chunk
        .iter()
        .filter(|e| e["content"]["body"] == "once")
        .collect();
    assert_eq!(once.len(), 1);
    // Only the device that sent it sees the transaction id.
    assert_eq!(once[0]["unsigned"]["transaction_id"], "once");
    let phone = server.log_in("alice").await;
    let messages = phone
        .get(&room(&room_id, "messages?dir=b&limit=50"))
        .await
        .ok();
    assert!(!messages.to_string().contains("transaction_id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_in_one_room() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let sends = (0..100).map(|n| {
        let (alice, room_id) = (alice.clone(), room_id.clone());
        async move { alice.send(&room_id, &format!("message {n}")).await }
    });
    let ids = futures_util::future::join_all(sends).await;
    let messages = alice
        .get(&room(&room_id, "messages?dir=b&limit=200"))
        .await
        .ok();
    let chunk = messages["chunk"].as_array().unwrap();
    for id in &ids {
        assert_eq!(
            chunk
                .iter()
                .filter(|event| event["event_id"] == **id)
                .count(),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_a_restart() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({ "name": "Attic" })).await;
    let sent = alice.send(&room_id, "before").await;
    let before = alice.sync(None, 0).await;
    server.restart().await;
    let after = alice.sync(None, 0).await;
    assert_eq!(before["rooms"], after["rooms"]);
    let since = before["next_batch"].as_str().unwrap();
    assert!(alice.sync(Some(since), 0).await["rooms"].is_null());
    let new = alice.send(&room_id, "after").await;
    assert_ne!(sent, new);
    assert_eq!(
        bodies(&alice.sync(Some(since), 0).await, &room_id),
        ["after"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_is_closed_to_strangers() {
    let server = TestServer::start().await;
    let (alice, eve) = (server.register("alice").await, server.register("eve").await);
    let room_id = alice.create_room(&json!({})).await;
    let sent = alice.send(&room_id, "secret").await;
    assert_eq!(eve.join(&room_id).await.refused(), (403, "M_FORBIDDEN"));
    for path in [
        "messages?dir=b",
        "state",
        "members",
        "joined_members",
        "state/m.room.create/",
    ] {
        assert_eq!(
            eve.get(&room(&room_id, path)).await.refused(),
            (403, "M_FORBIDDEN"),
            "{path}"
        );
    }
    let event = room(&room_id, &format!("event/{}", sotto_tests::escape(&sent)));
    assert_eq!(eve.get(&event).await.refused(), (404, "M_NOT_FOUND"));
    let said = eve
        .send_event(&room_id, "m.room.message", &json!({ "body": "x" }))
        .await;
    assert_eq!(said.refused(), (403, "M_FORBIDDEN"));
    assert!(eve.sync(None, 0).await["rooms"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_removed_sees_nothing_more() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    alice.send(&room_id, "all may hear").await;
    let mut since = None;
    bob.sync_until(&mut since, |_| Some(())).await;
    let kick = json!({ "user_id": bob.user_id, "reason": "late" });
    alice.post(&room(&room_id, "kick"), &kick).await.ok();
    alice.send(&room_id, "bob must not hear").await;
    let left = bob.sync(since.as_deref(), 0).await;
    let events = &left["rooms"]["leave"][&room_id]["timeline"]["events"];
    assert_eq!(
        events.as_array().unwrap().last().unwrap()["content"]["membership"],
        "leave"
    );
    assert!(!left.to_string().contains("must not hear"));
    let messages = bob
        .get(&room(&room_id, "messages?dir=b&limit=100"))
        .await
        .ok();
    assert!(messages.to_string().contains("all may hear"));
    assert!(!messages.to_string().contains("must not hear"));
    alice
        .post(&room(&room_id, "ban"), &json!({ "user_id": bob.user_id }))
        .await
        .ok();
    assert_eq!(bob.join(&room_id).await.refused(), (403, "M_FORBIDDEN"));
    alice
        .post(&room(&room_id, "unban"), &json!({ "user_id": bob.user_id }))
        .await
        .ok();
    bob.join(&room_id).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_removes_the_content_everywhere() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    for version in ["10", "11", "12"] {
        let room_id = alice.create_room(&json!({ "room_version": version })).await;
        let event_id = alice.send(&room_id, "regretted").await;
        let path = room(
            &room_id,
            &format!("redact/{}/r1", sotto_tests::escape(&event_id)),
        );
        let redaction = alice.put(&path, &json!({ "reason": "typo" })).await.ok();
        for _ in 0..2 {
            let messages = alice
                .get(&room(&room_id, "messages?dir=b&limit=20"))
                .await
                .ok();
            assert!(!messages.to_string().contains("regretted"));
            let event = room(
                &room_id,
                &format!("event/{}", sotto_tests::escape(&event_id)),
            );
            let event = alice.get(&event).await.ok();
            assert_eq!(
                event["unsigned"]["redacted_because"]["event_id"],
                redaction["event_id"]
            );
            assert!(!alice.sync(None, 0).await.to_string().contains("regretted"));
            server.restart().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_made_in_the_same_moment_are_different_rooms() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let body = json!({});
    let rooms = (0..16).map(|_| alice.create_room(&body));
    let ids: std::collections::BTreeSet<_> = futures_util::future::join_all(rooms)
        .await
        .into_iter()
        .collect();
    assert_eq!(ids.len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_never_share_their_data() {
    use sotto_homeserver::{Homeserver, StartError, clock::Clock, config::Config};
    let server = TestServer::start().await;
    let mut config = Config::new(server.name().to_owned());
    config.data_dir = server.data_dir().to_owned();
    config.listen = ([127, 0, 0, 1], 0).into();
    let second = Homeserver::start(config, Clock::system()).await;
    assert!(matches!(second, Err(StartError::InUse { .. })));
}
