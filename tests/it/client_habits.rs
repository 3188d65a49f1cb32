//! What clients have always read from most servers, and look for.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User};

async fn alice(server: &TestServer) -> (User, String) {
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    (alice, room_id)
}

fn room(room_id: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{room_id}/{rest}")
}

#[tokio::test]
async fn the_parts_of_a_room_are_there_also_when_they_are_empty() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    let sync = alice.sync(None, 0).await;
    let joined = &sync["rooms"]["join"][&room_id];
    for part in ["state", "account_data", "ephemeral"] {
        assert!(joined[part]["events"].is_array(), "{part}: {joined}");
    }
    assert_eq!(joined["timeline"]["limited"], false);
    assert!(joined["unread_notifications"].is_object());
    // {"room":{"timeline":{"limit":0}}}
    let none = "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A0%7D%7D%7D";
    let path = format!("/_matrix/client/v3/sync?filter={none}");
    let sync = alice.get(&path).await.ok();
    let joined = &sync["rooms"]["join"][&room_id];
    assert_eq!(joined["timeline"]["events"], json!([]));
    let state = joined["state"]["events"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
}

#[tokio::test]
async fn every_page_with_events_says_where_it_ends() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    for dir in ["b", "f"] {
        let path = room(&room_id, &format!("messages?limit=100&dir={dir}"));
        let page = alice.get(&path).await.ok();
        assert!(!page["chunk"].as_array().unwrap().is_empty());
        let end = page["end"].as_str().unwrap();
        let last = alice.get(&format!("{path}&from={end}")).await.ok();
        assert_eq!(last["chunk"], json!([]));
        assert_eq!(last["end"], Value::Null);
    }
}

#[tokio::test]
async fn a_redacted_event_names_its_redaction() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    let event_id = alice.send(&room_id, "hello").await;
    let redact = room(&room_id, &format!("redact/{event_id}/1"));
    let redaction = alice.put(&redact, &json!({})).await.ok();
    let path = room(&room_id, &format!("event/{event_id}"));
    let unsigned = alice.get(&path).await.ok()["unsigned"].clone();
    assert_eq!(unsigned["redacted_by"], redaction["event_id"]);
    assert_eq!(
        unsigned["redacted_because"]["event_id"],
        redaction["event_id"]
    );
    let elsewhere = alice.create_room(&json!({})).await;
    let redact = room(&elsewhere, &format!("redact/{event_id}/1"));
    let refused = alice.put(&redact, &json!({})).await;
    assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"));
}

#[tokio::test]
async fn who_may_not_look_into_a_room_is_told_so() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    let event_id = alice.send(&room_id, "hello").await;
    let context = room(&room_id, &format!("context/{event_id}"));
    let eve = server.register("eve").await;
    assert_eq!(eve.get(&context).await.refused(), (403, "M_FORBIDDEN"));
    let nothing = room(&room_id, "context/$nothing");
    assert_eq!(alice.get(&nothing).await.refused(), (404, "M_NOT_FOUND"));
}

#[tokio::test]
async fn the_state_around_an_event_is_that_after_the_last_one_shown() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    let topic = room(&room_id, "state/m.room.topic/");
    let set = async |text: &str| drop(alice.put(&topic, &json!({ "topic": text })).await.ok());
    set("then").await;
    let event_id = alice.send(&room_id, "hello").await;
    set("later").await;
    alice.send(&room_id, "bye").await;
    set("now").await;
    for (limit, expected) in [(0, "then"), (1, "later"), (2, "later"), (20, "now")] {
        let path = room(&room_id, &format!("context/{event_id}?limit={limit}"));
        let context = alice.get(&path).await.ok();
        let around = ["events_before", "events_after"]
            .map(|name| context[name].as_array().map_or(0, Vec::len));
        assert!(around.iter().sum::<usize>() <= limit, "{around:?}");
        let state = context["state"].as_array().unwrap();
        let found = state.iter().find(|event| event["type"] == "m.room.topic");
        assert_eq!(found.unwrap()["content"]["topic"], expected, "{limit}");
    }
}

#[tokio::test]
async fn what_may_be_left_out_is_left_out() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    let typing = room(&room_id, &format!("typing/{}", alice.user_id));
    alice.put(&typing, &json!({ "typing": true })).await.ok();
    let sync = alice.sync(None, 0).await;
    let ephemeral = &sync["rooms"]["join"][&room_id]["ephemeral"]["events"];
    assert_eq!(
        ephemeral[0]["content"]["user_ids"][0],
        alice.user_id.as_str()
    );
    for wrong in [json!({}), json!({ "typing": true, "timeout": "long" })] {
        let refused = alice.put(&typing, &wrong).await;
        assert_eq!(refused.refused(), (400, "M_BAD_JSON"));
    }
    let eve = server.register("eve").await;
    let refused = eve.put(&typing, &json!({ "typing": true })).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn defaults_are_said() {
    let server = TestServer::start().await;
    let (alice, room_id) = alice(&server).await;
    let can = alice.get("/_matrix/client/v3/capabilities").await.ok();
    let can = &can["capabilities"];
    assert_eq!(can["m.change_password"], json!({ "enabled": true }));
    assert!(can["m.room_versions"]["default"].is_string());
    let members = alice.get(&room(&room_id, "joined_members")).await.ok();
    let own = members["joined"][&alice.user_id].as_object().unwrap();
    assert_eq!(own["avatar_url"], Value::Null);
    assert!(own.contains_key("avatar_url") && own.contains_key("display_name"));
}
