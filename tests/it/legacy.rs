//! Requests of forms that the specification has deprecated.

use http::Method;
use serde_json::{Value, json};
use sotto_tests::{Setup, TestServer};

async fn room(server: &TestServer) -> (sotto_tests::User, String) {
    let alice = server.register("alice").await;
    let made = alice
        .post("/_matrix/client/v3/createRoom", &json!({}))
        .await
        .ok();
    let room = made["room_id"].as_str().unwrap().to_owned();
    (alice, room)
}

#[tokio::test]
async fn a_token_may_be_in_the_query_string() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let nobody = alice.with_token("");
    let whoami = |token: &str| format!("/_matrix/client/v3/account/whoami?access_token={token}");
    let answer = nobody.get(&whoami(&alice.token)).await.ok();
    assert_eq!(answer["user_id"], alice.user_id.as_str());
    let answer = nobody.get(&whoami("wrong")).await;
    assert_eq!(answer.refused(), (401, "M_UNKNOWN_TOKEN"));
    let answer = nobody.get(&whoami("")).await;
    assert_eq!(answer.refused(), (401, "M_MISSING_TOKEN"));
}

#[tokio::test]
async fn old_paths_lead_to_the_new_ones() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    alice.get("/_matrix/client/r0/account/whoami").await.ok();
    alice.get("/_matrix/media/r0/config").await.ok();
    alice.get("/_matrix/media/v1/config").await.ok();
    let keys = "/_matrix/client/unstable/keys/signatures/upload";
    alice.post(keys, &json!({})).await.ok();
    let unknown = alice.get("/_matrix/client/r0/unheard_of").await;
    assert_eq!(unknown.refused(), (404, "M_UNRECOGNIZED"));
}

#[tokio::test]
async fn server_keys_may_be_asked_for_by_id() {
    let server = TestServer::start().await;
    let nobody = sotto_tests::User::anonymous(server.url());
    let keys = nobody.get("/_matrix/key/v2/server").await.ok();
    let key = keys["verify_keys"].as_object().unwrap().keys().next();
    let key = key.unwrap().replace(':', "%3A");
    let one = nobody.get(&format!("/_matrix/key/v2/server/{key}")).await;
    assert_eq!(one.ok()["verify_keys"], keys["verify_keys"]);
    let path = format!("/_matrix/key/v2/query/{}/{key}", server.name());
    let notary = nobody.get(&path).await.ok();
    assert_eq!(notary["server_keys"][0]["verify_keys"], keys["verify_keys"]);
}

#[tokio::test]
async fn events_may_come_without_a_transaction_id() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let send = format!("/_matrix/client/r0/rooms/{room}/send/m.room.message");
    let body = json!({ "msgtype": "m.text", "body": "old" });
    let first = alice.post(&send, &body).await.ok();
    let second = alice.post(&send, &body).await.ok();
    assert_ne!(first["event_id"], second["event_id"]);
    let event = first["event_id"].as_str().unwrap();
    let redact = format!("/_matrix/client/v3/rooms/{room}/redact/{event}");
    alice.post(&redact, &json!({})).await.ok();
    let event = format!("/_matrix/client/v3/rooms/{room}/event/{event}");
    assert_eq!(alice.get(&event).await.ok()["content"], json!({}));
}

#[tokio::test]
async fn an_operator_can_do_without_them() {
    let server = Setup::with(|config| config.deprecated_requests = false);
    let server = server.start().await;
    let (alice, room) = room(&server).await;
    let nobody = alice.with_token("");
    let path = format!(
        "/_matrix/client/v3/account/whoami?access_token={}",
        alice.token
    );
    assert_eq!(nobody.get(&path).await.refused(), (401, "M_MISSING_TOKEN"));
    for (method, path) in [
        (Method::GET, "/_matrix/client/r0/account/whoami".to_owned()),
        (
            Method::POST,
            "/_matrix/client/unstable/keys/signatures/upload".to_owned(),
        ),
        (
            Method::POST,
            format!("/_matrix/client/v3/rooms/{room}/send/m.room.message"),
        ),
    ] {
        let answer = alice.request(method, &path, Some(b"{}".to_vec())).await;
        assert_eq!(answer.refused(), (404, "M_UNRECOGNIZED"), "{path}");
    }
}

#[tokio::test]
async fn all_that_is_known_comes_at_once() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    let body = json!({ "msgtype": "m.text", "body": "hello" });
    alice.put(&send, &body).await.ok();
    let all = alice
        .get("/_matrix/client/v3/initialSync?limit=1")
        .await
        .ok();
    let known = &all["rooms"][0];
    assert_eq!(known["room_id"], room.as_str());
    assert_eq!(known["membership"], "join");
    assert_eq!(known["visibility"], "private");
    let chunk = known["messages"]["chunk"].as_array().unwrap();
    assert_eq!(chunk.len(), 1);
    assert_eq!(chunk[0]["content"]["body"], "hello");
    assert_eq!(chunk[0]["user_id"], alice.user_id.as_str());
    let state = known["state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    // The push rules are no data that she has set.
    assert_eq!(all["account_data"], json!([]));
    let wrong = alice.get("/_matrix/client/v3/initialSync?limit=much").await;
    assert_eq!(wrong.refused(), (400, "M_INVALID_PARAM"));
    let one = format!("/_matrix/client/v3/rooms/{room}/initialSync?limit=0");
    let one = alice.get(&one).await.ok();
    assert_eq!(one["messages"]["chunk"], json!([]));
    assert_eq!(one["membership"], "join");
    assert_eq!(
        one["presence"][0]["content"]["user_id"],
        alice.user_id.as_str()
    );
    let eve = server.register("eve").await;
    let path = format!("/_matrix/client/v3/rooms/{room}/initialSync");
    assert_eq!(eve.get(&path).await.refused(), (403, "M_FORBIDDEN"));
}

fn message(news: &Value) -> Option<&Value> {
    let mut chunk = news["chunk"].as_array().unwrap().iter();
    chunk.find(|event| event["type"] == "m.room.message")
}

#[tokio::test]
async fn events_come_as_one_stream() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let events = "/_matrix/client/v3/events";
    let now = alice.get(&format!("{events}?timeout=0")).await.ok();
    assert_eq!(message(&now), None);
    let mut from = now["end"].as_str().unwrap().to_owned();
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    let body = json!({ "msgtype": "m.text", "body": "hello" });
    let reader = async {
        // That alice is there may be news as well.
        loop {
            let wait = format!("{events}?from={from}&timeout=20000");
            let news = alice.get(&wait).await.ok();
            if let Some(found) = message(&news) {
                return found.clone();
            }
            news["end"].as_str().unwrap().clone_into(&mut from);
        }
    };
    let (found, answer) = tokio::join!(reader, alice.put(&send, &body));
    answer.ok();
    assert_eq!(found["content"]["body"], "hello");
    assert_eq!(found["room_id"], room.as_str());
    for wrong in ["from=what", "timeout=long", "limit=-2", "room_id=here"] {
        let answer = alice.get(&format!("{events}?{wrong}")).await;
        assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"), "{wrong}");
    }
}

#[tokio::test]
async fn nothing_is_lost_between_a_sync_and_a_stream_of_events() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let phone = server.log_in("alice").await;
    alice.get("/_matrix/client/v3/sync").await.ok();
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    let body = json!({ "msgtype": "m.text", "body": "in between" });
    alice.put(&send, &body).await.ok();
    let events = "/_matrix/client/v3/events?timeout=0";
    let news = alice.get(events).await.ok();
    assert_eq!(message(&news).unwrap()["content"]["body"], "in between");
    let from = news["end"].as_str().unwrap();
    let more = alice.get(&format!("{events}&from={from}")).await.ok();
    assert_eq!(message(&more), None);
    // For a device that has not synced it begins now.
    assert_eq!(message(&phone.get(events).await.ok()), None);
}

/// A stream of events says nothing of messages between devices, so it must not confirm them.
#[tokio::test]
async fn a_stream_of_events_confirms_no_message_to_a_device() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let begin = alice.get("/_matrix/client/v3/sync").await.ok();
    let since = begin["next_batch"].as_str().unwrap();
    let send = "/_matrix/client/v3/sendToDevice/m.test/1";
    let body = json!({ "messages": { &alice.user_id: { "*": { "secret": 1 } } } });
    bob.put(send, &body).await.ok();
    let mut from = since.to_owned();
    for _ in 0..3 {
        let path = format!("/_matrix/client/v3/events?from={from}&timeout=0");
        let news = alice.get(&path).await.ok();
        assert_eq!(news["chunk"], json!([]));
        news["end"].as_str().unwrap().clone_into(&mut from);
    }
    for since in [from.as_str(), since] {
        let path = format!("/_matrix/client/v3/sync?since={since}");
        let sync = alice.get(&path).await.ok();
        assert_eq!(sync["to_device"]["events"][0]["content"]["secret"], 1);
    }
}

#[tokio::test]
async fn who_is_not_in_a_room_may_watch_it_if_anybody_may() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let eve = server.register("eve").await;
    let watch = format!("/_matrix/client/v3/events?room_id={room}&timeout=0");
    assert_eq!(eve.get(&watch).await.refused(), (403, "M_FORBIDDEN"));
    let open = format!("/_matrix/client/v3/rooms/{room}/state/m.room.history_visibility");
    let body = json!({ "history_visibility": "world_readable" });
    alice.put(&open, &body).await.ok();
    let path = format!("/_matrix/client/v3/rooms/{room}/initialSync");
    let known = eve.get(&path).await.ok();
    assert_eq!(known.get("membership"), None);
    let from = known["messages"]["end"].as_str().unwrap();
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    alice.put(&send, &json!({ "body": "hello" })).await.ok();
    let news = eve.get(&format!("{watch}&from={from}")).await.ok();
    let found = message(&news).unwrap().clone();
    assert_eq!(found["content"]["body"], "hello", "{news}");
    // And who comes and goes there, reads and types.
    let from = news["end"].as_str().unwrap().to_owned();
    let bob = server.register("bob").await;
    for user in [&bob, &alice] {
        let status = format!("/_matrix/client/v3/presence/{}/status", user.user_id);
        let body = json!({ "presence": "unavailable", "status_msg": "out" });
        user.put(&status, &body).await.ok();
    }
    let path = format!("/_matrix/client/v3/events?room_id={room}&timeout=20000&from={from}");
    let news = eve.get(&path).await.ok();
    let chunk = news["chunk"].as_array().unwrap();
    assert_eq!(chunk.len(), 1, "{news}");
    assert_eq!(chunk[0]["type"], "m.presence");
    assert_eq!(chunk[0]["content"]["user_id"], alice.user_id.as_str());
    assert_eq!(chunk[0]["content"]["presence"], "unavailable");
    let last = found["event_id"].as_str().unwrap();
    let last = sotto_tests::escape(last);
    let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{last}");
    alice.post(&path, &json!({})).await.ok();
    let path = format!("/_matrix/client/v3/rooms/{room}/typing/{}", alice.user_id);
    alice
        .put(&path, &json!({ "typing": true, "timeout": 20_000 }))
        .await
        .ok();
    let from = news["end"].as_str().unwrap();
    let news = eve.get(&format!("{watch}&from={from}")).await.ok();
    let chunk = news["chunk"].as_array().unwrap().iter();
    let mut kinds: Vec<_> = chunk.map(|event| event["type"].as_str().unwrap()).collect();
    kinds.retain(|kind| *kind != "m.presence");
    kinds.sort_unstable();
    assert_eq!(kinds, ["m.receipt", "m.typing"], "{news}");
}

#[tokio::test]
async fn an_event_may_be_asked_for_without_its_room() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let (bob, nobody) = (server.register("bob").await, alice.with_token(""));
    let sent = alice.send(&room, "hello").await;
    let path = format!("/_matrix/client/v3/events/{}", sotto_tests::escape(&sent));
    let event = alice.get(&path).await.ok();
    assert_eq!(event["event_id"], sent.as_str());
    assert_eq!(
        (&event["room_id"], &event["user_id"]),
        (&json!(room), &json!(alice.user_id))
    );
    assert_eq!(event["content"]["body"], "hello");
    assert_eq!(bob.get(&path).await.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(nobody.get(&path).await.refused(), (401, "M_MISSING_TOKEN"));
    for unknown in ["$nothing", "nothing", "%00"] {
        let answer = alice
            .get(&format!("/_matrix/client/v3/events/{unknown}"))
            .await;
        assert!([400, 404].contains(&answer.refused().0), "{unknown}");
    }
}
