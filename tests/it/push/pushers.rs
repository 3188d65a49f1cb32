//! Pushers, and what their gateways are told.

use std::time::Duration;

use serde_json::{Value, json};
use sotto_tests::{Gateway, Setup, TestServer, User, escape, room};

const SET: &str = "/_matrix/client/v3/pushers/set";
const PUSHERS: &str = "/_matrix/client/v3/pushers";

/// A server that reaches gateways on this machine.
pub(super) async fn start() -> TestServer {
    let setup = Setup::with(|config| {
        config.federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
    });
    setup.start().await
}

fn pusher(pushkey: &str, url: &str) -> Value {
    json!({
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "An app",
        "device_display_name": "A device",
        "profile_tag": "tag",
        "lang": "en",
        "data": { "url": url, "custom": { "x": 1 } },
    })
}

pub(super) async fn set(user: &User, pushkey: &str, gateway: &Gateway) {
    user.post(SET, &pusher(pushkey, &gateway.url())).await.ok();
}

async fn keys(user: &User) -> Vec<String> {
    let answer = user.get(PUSHERS).await.ok();
    let pushers = answer["pushers"].as_array().unwrap().iter();
    pushers
        .map(|pusher| pusher["pushkey"].as_str().unwrap().to_owned())
        .collect()
}

async fn pair(server: &TestServer) -> (User, User, String) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice
        .create_room(&json!({ "preset": "public_chat", "name": "The room" }))
        .await;
    bob.join(&room_id).await.ok();
    (alice, bob, room_id)
}

async fn read(user: &User, room_id: &str, event_id: &str) {
    let path = room(room_id, &format!("receipt/m.read/{}", escape(event_id)));
    user.post(&path, &json!({})).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn pushers_are_set_and_listed_and_removed() {
    let server = start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let url = "https://gateway.example.org/_matrix/push/v1/notify";
    let first = pusher("one", url);
    alice.post(SET, &first).await.ok();
    let mut told = alice.get(PUSHERS).await.ok()["pushers"][0].clone();
    assert_eq!(told["org.matrix.msc3881.enabled"], true);
    assert_eq!(told["org.matrix.msc3881.device_id"], alice.device_id);
    let members = told.as_object_mut().unwrap();
    members.retain(|key, _| !key.starts_with("org.matrix"));
    assert_eq!(told, first);
    alice.post(SET, &pusher("two", url)).await.ok();
    assert_eq!(keys(&alice).await, ["one", "two"]);
    assert!(keys(&bob).await.is_empty());
    // With `append` two users may have the same; without, the device is in other hands.
    let mut shared = pusher("one", url);
    shared["append"] = json!(true);
    bob.post(SET, &shared).await.ok();
    assert_eq!(keys(&alice).await, ["one", "two"]);
    bob.post(SET, &pusher("one", url)).await.ok();
    assert_eq!(keys(&alice).await, ["two"]);
    let nothing = json!({ "kind": null, "app_id": "org.example.app", "pushkey": "two" });
    bob.post(SET, &nothing).await.ok();
    assert_eq!(keys(&alice).await, ["two"]);
    alice.post(SET, &nothing).await.ok();
    assert!(keys(&alice).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story, or a table")]
async fn pushers_that_cannot_be_are_refused() {
    let server = start().await;
    let alice = server.register("alice").await;
    let good = pusher("key", "https://gateway.example.org/_matrix/push/v1/notify");
    for key in [
        "kind",
        "app_id",
        "pushkey",
        "app_display_name",
        "device_display_name",
        "lang",
        "data",
    ] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(key);
        assert_eq!(
            alice.post(SET, &body).await.refused(),
            (400, "M_MISSING_PARAM"),
            "{key}"
        );
        body[key] = json!(7);
        assert_eq!(
            alice.post(SET, &body).await.refused(),
            (400, "M_INVALID_PARAM"),
            "{key}"
        );
    }
    for (key, value) in [
        ("kind", json!("email")),
        ("pushkey", json!("k".repeat(513))),
        ("app_id", json!("a".repeat(65))),
        ("append", json!("yes")),
        ("data", json!({})),
        ("data", json!({ "url": "not a URL" })),
        (
            "data",
            json!({ "url": "http://gateway.example.org/_matrix/push/v1/notify" }),
        ),
        (
            "data",
            json!({ "url": "https://gateway.example.org/other" }),
        ),
        (
            "data",
            json!({ "url": "https://a:b@gateway.example.org/_matrix/push/v1/notify" }),
        ),
    ] {
        let mut body = good.clone();
        body[key] = value;
        assert_eq!(
            alice.post(SET, &body).await.refused(),
            (400, "M_INVALID_PARAM"),
            "{body}"
        );
    }
    let nobody = alice.with_token("");
    assert_eq!(
        nobody.post(SET, &good).await.refused(),
        (401, "M_MISSING_TOKEN")
    );
    assert_eq!(
        nobody.get(PUSHERS).await.refused(),
        (401, "M_MISSING_TOKEN")
    );
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story, or a table")]
async fn a_gateway_is_told_exactly_what_the_rules_demand() {
    let server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let gateway = Gateway::start().await;
    bob.send(&room_id, "before the pusher").await;
    set(&alice, "key", &gateway).await;
    let first = bob.send(&room_id, "one").await;
    // What she has read before it could be told is not told.
    gateway.wait_for_text("one").await;
    alice.send(&room_id, "her own").await;
    let notice = json!({ "msgtype": "m.notice", "body": "a notice" });
    bob.send_event(&room_id, "m.room.message", &notice)
        .await
        .ok();
    bob.send_event(&room_id, "org.example.other", &json!({ "body": "other" }))
        .await
        .ok();
    bob.send(&room_id, "two, alice").await;
    let told = gateway.wait_for_text("two, alice").await;
    assert_eq!(gateway.texts(), ["one", "two, alice"]);
    assert_eq!(told["room_id"], room_id);
    assert_eq!(told["sender"], bob.user_id);
    assert_eq!(told["sender_display_name"], "bob");
    assert_eq!(told["room_name"], "The room");
    assert_eq!(told["type"], "m.room.message");
    assert_eq!(told["id"], told["event_id"]);
    assert_eq!(told["prio"], "high");
    // She spoke after the first one, and so has read it.
    assert_eq!(told["counts"], json!({ "unread": 1 }));
    let device = &told["devices"][0];
    assert_eq!(device["app_id"], "org.example.app");
    assert_eq!(device["pushkey"], "key");
    assert_eq!(device["data"], json!({ "custom": { "x": 1 } }));
    assert_eq!(
        device["tweaks"],
        json!({ "sound": "default", "highlight": true })
    );
    assert!(
        device["pushkey_ts"]
            .as_i64()
            .is_some_and(|at| at > 1_600_000_000 && at < 10_000_000_000)
    );
    assert_eq!(gateway.events()[0]["event_id"], first);
    // What was read is told as a number.
    read(&alice, &room_id, told["event_id"].as_str().unwrap()).await;
    let badge = gateway.wait(|told| told["counts"]["unread"] == 0).await;
    assert!(badge.get("event_id").is_none());
    assert_eq!(badge["devices"][0]["pushkey"], "key");
    // A muted room, but for mentions.
    let rule = format!(
        "/_matrix/client/v3/pushrules/global/room/{}",
        escape(&room_id)
    );
    alice
        .put(&rule, &json!({ "actions": ["dont_notify"] }))
        .await
        .ok();
    bob.send(&room_id, "muted").await;
    bob.send(&room_id, "alice: not muted").await;
    gateway.wait_for_text("alice: not muted").await;
    alice.delete(&rule).await.ok();
    bob.send(&room_id, "last").await;
    gateway.wait_for_text("last").await;
    assert_eq!(
        gateway.texts(),
        ["one", "two, alice", "alice: not muted", "last"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_alone_are_told_only_when_they_go_down() {
    let server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let gateway = Gateway::start().await;
    set(&alice, "key", &gateway).await;
    // What is said next is said while it is counted what is left to read.
    for n in 0..40 {
        let event_id = bob.send(&room_id, &format!("{n}")).await;
        let (text, again) = (format!("{n} again"), room_id.clone());
        gateway.wait(|told| told["event_id"] == event_id).await;
        tokio::join!(read(&alice, &room_id, &event_id), bob.send(&again, &text));
    }
    gateway.wait_for_text("39 again").await;
    let (received, mut before) = (gateway.received(), 0);
    for told in &received {
        let unread = told["counts"]["unread"].as_i64().unwrap();
        let of_event = told.get("event_id").is_some();
        assert!(of_event || unread < before, "{received:#?}");
        before = unread;
    }
    assert_eq!(gateway.events().len(), 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_are_pushed() {
    let server = start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let gateway = Gateway::start().await;
    set(&alice, "key", &gateway).await;
    let room_id = bob.create_room(&json!({ "name": "A name" })).await;
    bob.invite(&room_id, &alice.user_id).await.ok();
    let told = gateway.wait(|told| told["type"] == "m.room.member").await;
    assert_eq!(told["membership"], "invite");
    assert_eq!(told["user_is_target"], true);
    assert_eq!(told["room_id"], room_id);
    assert_eq!(told["room_name"], "A name");
    assert_eq!(told["sender"], bob.user_id);
    assert_eq!(told["counts"]["unread"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_of_other_servers_are_pushed() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let gateway = Gateway::start().await;
    set(&alice, "key", &gateway).await;
    let room_id = bob.create_room(&json!({ "name": "Far away" })).await;
    bob.invite(&room_id, &alice.user_id).await.ok();
    let told = gateway.wait(|told| told["type"] == "m.room.member").await;
    assert_eq!(told["room_id"], room_id);
    assert_eq!(told["room_name"], "Far away");
    assert_eq!(told["sender"], bob.user_id);
    assert_eq!(told["sender_display_name"], "bob");
    // And what is said there once she is in.
    alice.join_via(&room_id, "b.test").await.ok();
    bob.send(&room_id, "hello from afar").await;
    gateway.wait_for_text("hello from afar").await;
    assert_eq!(gateway.events().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_can_ask_for_ids_only() {
    let server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let gateway = Gateway::start().await;
    let mut body = pusher("key", &gateway.url());
    body["data"]["format"] = json!("event_id_only");
    alice.post(SET, &body).await.ok();
    let event_id = bob.send(&room_id, "secret").await;
    let told = gateway.wait(|told| told["event_id"] == event_id).await;
    let keys: Vec<_> = told.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["counts", "devices", "event_id", "prio", "room_id"]);
    assert!(!told.to_string().contains("secret"));
    // Switched off, nothing is told, and nothing later either.
    body["org.matrix.msc3881.enabled"] = json!(false);
    alice.post(SET, &body).await.ok();
    bob.send(&room_id, "while it is off").await;
    body["org.matrix.msc3881.enabled"] = json!(true);
    alice.post(SET, &body).await.ok();
    let last = bob.send(&room_id, "on again").await;
    gateway.wait(|told| told["event_id"] == last).await;
    assert_eq!(gateway.events().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_away_misses_nothing() {
    let mut server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let (gateway, other) = (Gateway::start().await, Gateway::start().await);
    set(&alice, "key", &gateway).await;
    set(&alice, "other", &other).await;
    gateway.set_away(true);
    let mut expected: Vec<_> = (0..25).map(|n| format!("message {n}")).collect();
    for text in &expected[..20] {
        bob.send(&room_id, text).await;
    }
    // One gateway does not hold up another.
    other.wait_for_text("message 19").await;
    while gateway.refused() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.restart().await;
    let redacted = bob.send(&room_id, "never mind").await;
    let path = room(&room_id, &format!("redact/{}/1", escape(&redacted)));
    bob.put(&path, &json!({})).await.ok();
    for text in &expected[20..] {
        bob.send(&room_id, text).await;
    }
    gateway.set_away(false);
    gateway.wait_for_text("message 24").await;
    assert_eq!(gateway.texts(), expected);
    other.wait_for_text("message 24").await;
    let mut texts = other.texts();
    // Whether this one was told before it was taken back is a matter of luck.
    texts.retain(|text| text != "never mind" && !text.is_empty());
    assert_eq!(texts, expected);
    // What is read meanwhile is not told.
    gateway.set_away(true);
    let event_id = bob.send(&room_id, "read elsewhere").await;
    other.wait_for_text("read elsewhere").await;
    read(&alice, &room_id, &event_id).await;
    gateway.set_away(false);
    bob.send(&room_id, "after that").await;
    gateway.wait_for_text("after that").await;
    expected.push("after that".to_owned());
    assert_eq!(gateway.texts(), expected);
}

#[tokio::test]
async fn what_is_under_way_when_the_server_stops_is_told_once() {
    let mut server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let gateway = Gateway::start().await;
    set(&alice, "key", &gateway).await;
    gateway.set_pause(Duration::from_secs(1));
    for text in ["one", "two", "three"] {
        bob.send(&room_id, text).await;
    }
    gateway.wait_for_text("one").await;
    server.restart().await;
    gateway.wait_for_text("three").await;
    assert_eq!(gateway.texts(), ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_pushers_are_removed() {
    let server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let gateway = Gateway::start().await;
    set(&alice, "one", &gateway).await;
    set(&alice, "two", &gateway).await;
    bob.send(&room_id, "first").await;
    let of = |key: &'static str, text: &'static str| {
        move |told: &Value| told["devices"][0]["pushkey"] == key && told["content"]["body"] == text
    };
    gateway.wait(of("one", "first")).await;
    gateway.wait(of("two", "first")).await;
    gateway.reject("one");
    bob.send(&room_id, "second").await;
    gateway.wait(of("two", "second")).await;
    for _ in 0..100 {
        if keys(&alice).await == ["two"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the pusher is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pusher_goes_with_its_device() {
    let server = start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let phone = server.log_in("alice").await;
    let gateway = Gateway::start().await;
    set(&phone, "phone", &gateway).await;
    set(&alice, "desk", &gateway).await;
    phone
        .post("/_matrix/client/v3/logout", &json!({}))
        .await
        .ok();
    assert_eq!(keys(&alice).await, ["desk"]);
    bob.send(&room_id, "hello").await;
    gateway.wait_for_text("hello").await;
    bob.send(&room_id, "hello again").await;
    gateway.wait_for_text("hello again").await;
    assert_eq!(gateway.texts(), ["hello", "hello again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_where_the_server_must_not_reach() {
    // Not allowed to reach this machine.
    let server = TestServer::start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let gateway = Gateway::start().await;
    set(&alice, "key", &gateway).await;
    bob.send(&room_id, "hello").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(gateway.received().is_empty() && gateway.refused() == 0);
}
