//! What other servers ask of us, and what they get.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{FakeServer, Setup, TestServer, User, escape, room};
use sqlx::{AnyConnection, Connection};

/// The texts of the messages of a room in a sync answer.
fn texts(sync: &Value, room_id: &str) -> Vec<String> {
    let events = sync["rooms"]["join"][room_id]["timeline"]["events"].as_array();
    let bodies = events.into_iter().flatten();
    bodies
        .filter_map(|event| event["content"]["body"].as_str().map(str::to_owned))
        .collect()
}

async fn hears(user: &User, room_id: &str, text: &str) {
    let heard = |sync: &Value| texts(sync, room_id).iter().any(|t| t == text).then_some(());
    user.sync_until(&mut None, heard).await;
}

async fn meet(version: &RoomVersionId) {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = alice
        .create_room(&json!({ "preset": "private_chat", "room_version": version }))
        .await;
    alice.invite(&room_id, "@bob:b.test").await.ok();
    let invited = |sync: &Value| sync["rooms"]["invite"].get(&room_id).cloned();
    let invite = bob.sync_until(&mut None, invited).await;
    assert!(
        invite["invite_state"]["events"]
            .as_array()
            .is_some_and(|events| events.iter().any(|event| event["type"] == "m.room.member")),
        "the invite itself is shown"
    );
    bob.join(&room_id).await.ok();
    alice.send(&room_id, "from a").await;
    hears(&bob, &room_id, "from a").await;
    bob.send(&room_id, "from b").await;
    hears(&alice, &room_id, "from b").await;
}

#[tokio::test]
async fn an_invite_a_join_and_messages_both_ways_in_version_12() {
    meet(&RoomVersionId::V12).await;
}

#[tokio::test]
async fn an_invite_a_join_and_messages_both_ways_in_version_6() {
    meet(&RoomVersionId::V6).await;
}

#[tokio::test]
async fn messages_sent_at_the_same_time_reach_both_sides() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join_via(&room_id, "a.test").await.ok();
    for round in 0..5 {
        let (one, two) = (format!("a{round}"), format!("b{round}"));
        let topic = json!({ "topic": two });
        let path = room(&room_id, "state/m.room.topic/");
        let name = json!({ "name": one });
        let name_path = room(&room_id, "state/m.room.name/");
        let (_, _, _, answer) = tokio::join!(
            alice.send(&room_id, &one),
            bob.send(&room_id, &two),
            alice.put(&name_path, &name),
            bob.put(&path, &topic),
        );
        // Bob has no power to set the topic; his own server says so.
        assert_eq!(answer.refused().0, 403);
    }
    for user in [&alice, &bob] {
        has_all(user, &room_id, 5).await;
    }
}

/// Waits until the history of a room has the messages of both sides, of all rounds.
async fn has_all(user: &User, room_id: &str, rounds: usize) {
    for _ in 0..100 {
        let page = user
            .get(&room(room_id, "messages?dir=b&limit=100"))
            .await
            .ok();
        let texts: Vec<_> = page["chunk"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|event| event["content"]["body"].as_str())
            .collect();
        let has = |text: String| texts.contains(&text.as_str());
        if (0..rounds).all(|round| has(format!("a{round}")) && has(format!("b{round}"))) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{} does not get what was said", user.user_id);
}

#[tokio::test]
async fn requests_that_nobody_signed_are_refused() {
    let server = TestServer::start().await;
    let nobody = User::anonymous(server.url());
    for path in [
        "/_matrix/federation/v1/event/$x",
        "/_matrix/federation/v1/state/!r:one.test?event_id=$x",
        "/_matrix/federation/v1/make_join/!r:one.test/@u:b.test",
        "/_matrix/federation/v1/query/profile?user_id=@u:one.test",
    ] {
        assert_eq!(nobody.get(path).await.refused(), (401, "M_UNAUTHORIZED"));
    }
    let keys = nobody.get("/_matrix/key/v2/server").await.ok();
    assert_eq!(keys["server_name"], "one.test");
    let version = nobody.get("/_matrix/federation/v1/version").await.ok();
    assert_eq!(version["server"]["name"], "Sotto");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notary_tells_the_keys_of_others() {
    let (a, _b) = TestServer::pair().await;
    let nobody = User::anonymous(a.url());
    let got = nobody.get("/_matrix/key/v2/query/b.test").await.ok();
    let path = "/_matrix/key/v2/query";
    let body = json!({ "server_keys": { "b.test": {}, "a.test": {} } });
    let posted = nobody.post(path, &body).await.ok();
    assert_eq!(posted["server_keys"].as_array().unwrap().len(), 2);
    for answer in [got, posted] {
        let lists = answer["server_keys"].as_array().unwrap();
        let keys = lists.iter().find(|keys| keys["server_name"] == "b.test");
        let signatures = keys.unwrap()["signatures"].as_object().unwrap();
        assert!(signatures.contains_key("a.test") && signatures.contains_key("b.test"));
    }
    let many: serde_json::Map<_, _> = (0..200)
        .map(|n| (format!("s{n}.test"), json!({})))
        .collect();
    let answer = nobody.post(path, &json!({ "server_keys": many })).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
}

/// As many messages as may wait for a device, of a server or, without a name, of our own users, put into the database as if they had come.
async fn fill_inbox(server: &TestServer, user: &User, origin: &str) {
    sqlx::any::install_default_drivers();
    let connection = AnyConnection::connect(&server.database_url()).await;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
         INSERT INTO to_device (user_id, device_id, position, json, origin)
         SELECT $1, $2, -i, '{}', $3 FROM n";
    let filled = sqlx::query(fill).bind(&user.user_id).bind(&user.device_id);
    let filled = filled.bind(origin);
    filled.execute(&mut connection.unwrap()).await.unwrap();
}

/// A message to all devices of a user, which says a number.
fn message(from: &str, to: &User, number: u64) -> Value {
    let content = json!({
        "sender": from, "type": "m.test", "message_id": number.to_string(),
        "messages": { &to.user_id: { &to.device_id: { "number": number } } },
    });
    json!({ "edu_type": "m.direct_to_device", "content": content })
}

/// The numbers that a user's device was told.
async fn numbers(user: &User) -> Vec<u64> {
    let sync = user.sync(None, 0).await;
    let events = sync["to_device"]["events"].as_array();
    let events = events.into_iter().flatten();
    events
        .filter_map(|event| event["content"]["number"].as_u64())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_inbox_costs_nobody_the_messages_of_other_servers() {
    let (a, mut b) = TestServer::pair().await;
    b.stop().await;
    let fake = FakeServer::replace(&b, RoomVersionId::V11).await;
    let (alice, carol) = (a.register("alice").await, a.register("carol").await);
    fill_inbox(&a, &alice, "").await;
    // Those of our own users wait.
    let path = "/_matrix/client/v3/sendToDevice/m.test/one";
    let body = json!({ "messages": { &alice.user_id: { "*": { "number": 1 } } } });
    let answer = carol.put(path, &body).await;
    assert_eq!(answer.refused(), (429, "M_LIMIT_EXCEEDED"));
    let edus = [2, 3].map(|number| message("@mallory:b.test", &alice, number));
    fake.peer().send(&a, &[], &edus).await.ok();
    assert_eq!(numbers(&alice).await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_cannot_fill_the_disk_with_messages_that_nobody_reads() {
    let mut servers = Setup::default().federation(3).await;
    let mut fakes = Vec::new();
    for server in &mut servers[1..] {
        server.stop().await;
        fakes.push(FakeServer::replace(server, RoomVersionId::V11).await);
    }
    let alice = servers[0].register("alice").await;
    let second = servers[0].log_in("alice").await;
    fill_inbox(&servers[0], &alice, "b.test").await;
    for (fake, number) in fakes.iter().zip(1..) {
        let sender = format!("@mallory:{}", fake.peer().name());
        let edus = [
            message(&sender, &alice, number),
            message(&sender, &second, 10 + number),
        ];
        fake.peer().send(&servers[0], &[], &edus).await.ok();
    }
    // The control: what has room gets there, of the same server to another device, and of another server.
    assert_eq!(numbers(&second).await, [11, 12]);
    assert_eq!(numbers(&alice).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_are_asked_for_without_empty_lists() {
    let (a, mut b) = TestServer::pair().await;
    b.stop().await;
    let fake = FakeServer::replace(&b, RoomVersionId::V11).await;
    let alice = a.register("alice").await;
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    let path = format!(
        "/_matrix/federation/v1/get_missing_events/{}",
        escape(&room_id)
    );
    let empty = json!({});
    let ask = || fake.peer().ask(&a, Method::POST, &path, Some(&empty));
    assert_eq!(ask().await.refused(), (403, "M_FORBIDDEN"));
    fake.peer().join(&a, &room_id, "@mallory:b.test").await;
    assert_eq!(ask().await.ok()["events"], json!([]));
    let malformed = json!({ "latest_events": 7 });
    let answer = fake
        .peer()
        .ask(&a, Method::POST, &path, Some(&malformed))
        .await;
    assert_eq!(answer.refused(), (400, "M_BAD_JSON"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_declined_though_its_server_is_gone() {
    let (a, mut b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = bob.create_room(&json!({ "preset": "private_chat" })).await;
    bob.invite(&room_id, &alice.user_id).await.ok();
    let mut since = None;
    let invited = |sync: &Value| sync["rooms"]["invite"].get(&room_id).cloned();
    alice.sync_until(&mut since, invited).await;
    b.stop().await;
    alice
        .post(&room(&room_id, "leave"), &json!({ "reason": "no" }))
        .await
        .ok();
    let left = |sync: &Value| sync["rooms"]["leave"].get(&room_id).cloned();
    let left = alice.sync_until(&mut since, left).await;
    let event = &left["timeline"]["events"][0];
    assert_eq!(event["type"], "m.room.member");
    assert_eq!(
        event["content"],
        json!({ "membership": "leave", "reason": "no" })
    );
    assert_eq!(event["sender"], json!(alice.user_id));
    assert_eq!(event["state_key"], json!(alice.user_id));
    assert!(event["event_id"].is_string() && event["origin_server_ts"].is_u64());
}
