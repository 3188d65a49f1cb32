//! The list of notifications.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

async fn list(user: &User, query: &str) -> (Vec<String>, Value) {
    let path = format!("/_matrix/client/v3/notifications{query}");
    let answer = user.get(&path).await.ok();
    let texts = answer["notifications"].as_array().unwrap().iter();
    let texts = texts.map(|n| {
        n["event"]["content"]["body"]
            .as_str()
            .unwrap_or("")
            .to_owned()
    });
    (texts.collect(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_are_listed_in_pages() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
        bob.join(&room_id).await.ok();
        rooms.push(room_id);
    }
    assert!(list(&alice, "").await.0.is_empty());
    let mut expected = Vec::new();
    for n in 0..12 {
        let text = if n % 4 == 0 {
            format!("alice {n}")
        } else {
            format!("text {n}")
        };
        bob.send(&rooms[n % 3], &text).await;
        bob.send_event(&rooms[n % 3], "org.example.noise", &json!({}))
            .await
            .ok();
        expected.insert(0, text);
    }
    let (texts, answer) = list(&alice, "").await;
    assert_eq!(texts, expected);
    assert!(answer.get("next_token").is_none());
    let first = &answer["notifications"][0];
    assert_eq!(first["read"], false);
    assert_eq!(first["room_id"], rooms[2]);
    assert_eq!(first["event"]["sender"], bob.user_id);
    assert!(first["profile_tag"].is_null() && first["ts"].is_u64());
    assert_eq!(first["actions"][0], "notify");
    // In pages, and only what is marked out.
    let mut paged = Vec::new();
    let mut query = "?limit=5".to_owned();
    loop {
        let (texts, answer) = list(&alice, &query).await;
        paged.extend(texts);
        let Some(next) = answer["next_token"].as_str() else {
            break;
        };
        query = format!("?limit=5&from={next}");
    }
    assert_eq!(paged, expected);
    let (texts, _) = list(&alice, "?only=highlight").await;
    assert_eq!(texts, ["alice 8", "alice 4", "alice 0"]);
    let last = answer["notifications"][0]["event"]["event_id"]
        .as_str()
        .unwrap();
    let path = room(&rooms[2], &format!("receipt/m.read/{}", escape(last)));
    alice.post(&path, &json!({})).await.ok();
    let (_, answer) = list(&alice, "").await;
    for notification in answer["notifications"].as_array().unwrap() {
        assert_eq!(notification["read"], notification["room_id"] == rooms[2]);
    }
    // Nobody else sees them.
    assert!(list(&bob, "").await.0.is_empty());
    let wrong = alice.get("/_matrix/client/v3/notifications?from=x").await;
    assert_eq!(wrong.refused(), (400, "M_INVALID_PARAM"));
}
