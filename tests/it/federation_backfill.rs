//! History from before a server was in a room.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, room};

/// All events that a user can read, newest first.
async fn history(user: &User, room_id: &str) -> Vec<Value> {
    let (mut events, mut from) = (Vec::new(), String::new());
    for _ in 0..100 {
        let path = room(room_id, &format!("messages?dir=b&limit=50{from}"));
        let page = user.get(&path).await.ok();
        events.extend(page["chunk"].as_array().cloned().unwrap_or_default());
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return events,
        }
    }
    panic!("the history has no end");
}

/// Checks that somebody reads these messages, in this order, from the beginning of the room on.
async fn reads_all(user: &User, room_id: &str, sent: &[String]) {
    let events = history(user, room_id).await;
    let oldest = events.last().unwrap();
    assert_eq!(oldest["type"], "m.room.create");
    let mut read: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "m.room.message")
        .filter_map(|event| event["event_id"].as_str())
        .collect();
    read.reverse();
    assert_eq!(read, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_from_before_a_join_is_read_to_its_beginning() {
    for version in ["6", "12"] {
        let (a, b) = TestServer::pair().await;
        let (alice, bob) = (a.register("alice").await, b.register("bob").await);
        let body = json!({ "preset": "public_chat", "room_version": version });
        let room_id = alice.create_room(&body).await;
        let mut sent = Vec::new();
        for number in 0..130 {
            sent.push(alice.send(&room_id, &number.to_string()).await);
        }
        bob.join_via(&room_id, "a.test").await.ok();
        reads_all(&bob, &room_id, &sent).await;
        reads_all(&bob, &room_id, &sent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_said_who_left_before_the_join_is_history_too() {
    let mut servers = sotto_tests::Setup::default().federation(3).await;
    let (a, b) = (servers.remove(0), servers.remove(0));
    let c = servers.remove(0);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = c.register("carol").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    carol.join_via(&room_id, "a.test").await.ok();
    let mut sent = vec![carol.send(&room_id, "I was here").await];
    let here = |sync: &Value| {
        let events = sync["rooms"]["join"][&room_id]["timeline"]["events"].as_array()?;
        let said = |event: &Value| event["content"]["body"] == "I was here";
        events.iter().any(said).then_some(())
    };
    alice.sync_until(&mut None, here).await;
    let ban = json!({ "user_id": carol.user_id });
    alice.post(&room(&room_id, "ban"), &ban).await.ok();
    let regretted = alice.send(&room_id, "regretted").await;
    let path = format!("redact/{}/t", sotto_tests::escape(&regretted));
    alice.put(&room(&room_id, &path), &json!({})).await.ok();
    sent.push(regretted.clone());
    sent.push(alice.send(&room_id, "after").await);
    bob.join_via(&room_id, "a.test").await.ok();
    reads_all(&bob, &room_id, &sent).await;
    let path = format!("event/{}", sotto_tests::escape(&regretted));
    let pruned = bob.get(&room(&room_id, &path)).await.ok();
    assert_eq!(pruned["content"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_nobody_has_is_not_asked_for_every_time() {
    let (mut a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let sent = alice.send(&room_id, "early").await;
    bob.join_via(&room_id, "a.test").await.ok();
    a.stop().await;
    assert!(history(&bob, &room_id).await.len() == 1, "the join alone");
    a.resume().await;
    assert!(history(&bob, &room_id).await.len() == 1, "not asked again");
    b.clock().advance(60_000);
    reads_all(&bob, &room_id, &[sent]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_found_by_its_time() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let mut sent = Vec::new();
    for number in 0..5 {
        a.clock().advance(60_000);
        let id = alice.send(&room_id, &number.to_string()).await;
        let path = room(&room_id, &format!("event/{}", sotto_tests::escape(&id)));
        let at = alice.get(&path).await.ok()["origin_server_ts"]
            .as_i64()
            .unwrap();
        sent.push((id, at));
    }
    // Bob comes long after.
    b.clock().advance(15 * 60_000);
    bob.join_via(&room_id, "a.test").await.ok();
    for user in [&alice, &bob] {
        let find = async |time: i64, dir: &str| {
            let id = sotto_tests::escape(&room_id);
            let path =
                format!("/_matrix/client/v1/rooms/{id}/timestamp_to_event?ts={time}&dir={dir}");
            user.get(&path).await
        };
        for (index, (id, at)) in sent.iter().enumerate() {
            for (time, dir) in [
                (*at, "f"),
                (*at, "b"),
                (at + 30_000, "b"),
                (at - 30_000, "f"),
            ] {
                let found = find(time, dir).await.ok();
                assert_eq!(found["event_id"], **id, "{index} {dir} {}", user.user_id);
                assert_eq!(found["origin_server_ts"], *at);
            }
        }
        assert_eq!(find(1, "b").await.refused(), (404, "M_NOT_FOUND"));
        let future = sent[4].1 + 10_000_000;
        assert_eq!(find(future, "f").await.refused(), (404, "M_NOT_FOUND"));
    }
}
