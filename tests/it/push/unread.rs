//! How much is unread, as `/sync` tells it.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

/// Notifications and highlights.
type Counts = (u64, u64);

async fn pair(server: &TestServer) -> (User, User, String) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    (alice, bob, room_id)
}

fn counts(value: &Value) -> Counts {
    (
        value["notification_count"].as_u64().unwrap(),
        value["highlight_count"].as_u64().unwrap(),
    )
}

/// The counts of a room that a sync has.
fn told(sync: &Value, room_id: &str) -> Option<Counts> {
    let joined = sync["rooms"]["join"].get(room_id)?;
    Some(counts(&joined["unread_notifications"]))
}

async fn unread(user: &User, room_id: &str) -> Counts {
    told(&user.sync(None, 0).await, room_id).unwrap()
}

/// The counts of the main timeline, and of the threads.
async fn by_thread(user: &User, room_id: &str) -> (Counts, Vec<(String, Counts)>) {
    let filter = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
    let filter = escape(&filter.to_string());
    let path = format!("/_matrix/client/v3/sync?filter={filter}");
    let sync = user.get(&path).await.ok();
    let joined = &sync["rooms"]["join"][room_id];
    let threads = joined["unread_thread_notifications"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let threads = threads
        .iter()
        .map(|(root, value)| (root.clone(), counts(value)));
    (counts(&joined["unread_notifications"]), threads.collect())
}

async fn read(user: &User, room_id: &str, kind: &str, event_id: &str, body: Value) {
    let path = room(room_id, &format!("receipt/{kind}/{}", escape(event_id)));
    user.post(&path, &body).await.ok();
}

async fn send(user: &User, room_id: &str, content: Value) -> String {
    let answer = user
        .send_event(room_id, "m.room.message", &content)
        .await
        .ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

fn in_thread(root: &str, body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body, "m.relates_to": { "rel_type": "m.thread", "event_id": root } })
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_count_until_they_are_read() {
    let mut server = TestServer::start().await;
    let (alice, bob, room_id) = pair(&server).await;
    assert_eq!(unread(&alice, &room_id).await, (0, 0));
    let mut since = None;
    alice.sync_until(&mut since, |_| Some(())).await;
    let first = bob.send(&room_id, "one").await;
    // The same sync has the event and the count.
    let sync = alice.sync(since.as_deref(), 0).await;
    assert_eq!(told(&sync, &room_id), Some((1, 0)));
    let second = bob.send(&room_id, "two, alice").await;
    bob.send(&room_id, "three").await;
    assert_eq!(unread(&alice, &room_id).await, (3, 1));
    // Nobody is notified of what they said themselves.
    assert_eq!(unread(&bob, &room_id).await, (0, 0));
    alice.sync_until(&mut since, |_| Some(())).await;
    read(&alice, &room_id, "m.read", &first, json!({})).await;
    let sync = alice.sync(since.as_deref(), 0).await;
    assert_eq!(told(&sync, &room_id), Some((2, 1)));
    // What others read does not matter, and neither does the fully read marker.
    read(&bob, &room_id, "m.read", &second, json!({})).await;
    let marker = json!({ "m.fully_read": second });
    alice
        .post(&room(&room_id, "read_markers"), &marker)
        .await
        .ok();
    assert_eq!(unread(&alice, &room_id).await, (2, 1));
    read(&alice, &room_id, "m.read.private", &second, json!({})).await;
    assert_eq!(unread(&alice, &room_id).await, (1, 0));
    server.restart().await;
    assert_eq!(unread(&alice, &room_id).await, (1, 0));
    // Whoever speaks has read.
    alice.send(&room_id, "four").await;
    assert_eq!(unread(&alice, &room_id).await, (0, 0));
    server.restart().await;
    assert_eq!(unread(&alice, &room_id).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_alone_is_news() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let event_id = bob.send(&room_id, "one").await;
    // This client wants no receipts, but counts.
    let filter = escape(&json!({ "room": { "ephemeral": { "types": [] } } }).to_string());
    let path = format!("/_matrix/client/v3/sync?filter={filter}");
    let first = alice.get(&path).await.ok();
    assert_eq!(told(&first, &room_id), Some((1, 0)));
    read(&alice, &room_id, "m.read.private", &event_id, json!({})).await;
    let since = first["next_batch"].as_str().unwrap();
    let next = alice.get(&format!("{path}&since={since}")).await.ok();
    assert_eq!(told(&next, &room_id), Some((0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_are_counted_for_themselves() {
    let mut server = TestServer::start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let root = bob.send(&room_id, "root").await;
    let other = bob.send(&room_id, "other root").await;
    send(&bob, &room_id, in_thread(&root, "in the thread")).await;
    let last = send(&bob, &room_id, in_thread(&root, "alice, in the thread")).await;
    let elsewhere = send(&bob, &room_id, in_thread(&other, "elsewhere")).await;
    // A relation to an event of the thread belongs to the thread.
    let content = json!({ "body": "x", "msgtype": "m.text", "m.relates_to": { "rel_type": "org.example", "event_id": last } });
    send(&bob, &room_id, content).await;
    let expected = (
        (2, 0),
        vec![(root.clone(), (3, 1)), (other.clone(), (1, 0))],
    );
    let sorted = |mut found: (Counts, Vec<(String, Counts)>)| {
        found.1.sort();
        found
    };
    let mut expected_sorted = expected.clone();
    expected_sorted.1.sort();
    assert_eq!(sorted(by_thread(&alice, &room_id).await), expected_sorted);
    assert_eq!(unread(&alice, &room_id).await, (6, 1));
    server.restart().await;
    assert_eq!(sorted(by_thread(&alice, &room_id).await), expected_sorted);
    read(
        &alice,
        &room_id,
        "m.read",
        &last,
        json!({ "thread_id": root }),
    )
    .await;
    let left = sorted(by_thread(&alice, &room_id).await);
    let mut expected = (
        (2, 0),
        vec![(root.clone(), (1, 0)), (other.clone(), (1, 0))],
    );
    expected.1.sort();
    assert_eq!(left, expected);
    read(
        &alice,
        &room_id,
        "m.read",
        &elsewhere,
        json!({ "thread_id": "main" }),
    )
    .await;
    let left = sorted(by_thread(&alice, &room_id).await);
    expected.0 = (0, 0);
    assert_eq!(left, expected);
    // Speaking in a thread is reading it.
    send(&alice, &room_id, in_thread(&root, "mine")).await;
    assert_eq!(
        by_thread(&alice, &room_id).await.1,
        [(other.clone(), (1, 0))]
    );
    // Without thread: everything.
    read(&alice, &room_id, "m.read", &elsewhere, json!({})).await;
    assert_eq!(by_thread(&alice, &room_id).await, ((0, 0), vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_muted_or_ignored_does_not_count() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let carol = server.register("carol").await;
    carol.join(&room_id).await.ok();
    let gone = bob.send(&room_id, "alice!").await;
    bob.send(&room_id, "stays").await;
    carol.send(&room_id, "from carol").await;
    assert_eq!(unread(&alice, &room_id).await, (3, 1));
    let path = room(&room_id, &format!("redact/{}/1", escape(&gone)));
    bob.put(&path, &json!({})).await.ok();
    assert_eq!(unread(&alice, &room_id).await, (2, 0));
    let ignored = json!({ "ignored_users": { carol.user_id.as_str(): {} } });
    let data = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escape(&alice.user_id)
    );
    alice.put(&data, &ignored).await.ok();
    assert_eq!(unread(&alice, &room_id).await, (1, 0));
    alice.put(&data, &json!({ "ignored_users": {} })).await.ok();
    assert_eq!(unread(&alice, &room_id).await, (2, 0));
    let rule = format!(
        "/_matrix/client/v3/pushrules/global/room/{}",
        escape(&room_id)
    );
    alice.put(&rule, &json!({ "actions": [] })).await.ok();
    assert_eq!(unread(&alice, &room_id).await, (0, 0));
    alice.delete(&rule).await.ok();
    // Who comes back has nothing to read from before.
    alice.post(&room(&room_id, "leave"), &json!({})).await.ok();
    bob.send(&room_id, "while she is out").await;
    alice.join(&room_id).await.ok();
    assert_eq!(unread(&alice, &room_id).await, (0, 0));
    bob.send(&room_id, "she is back").await;
    assert_eq!(unread(&alice, &room_id).await, (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_notified_by_those_who_may() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = pair(&server).await;
    let content = json!({ "msgtype": "m.text", "body": "hey", "m.mentions": { "room": true } });
    let refused = send(&bob, &room_id, content.clone()).await;
    assert_eq!(unread(&alice, &room_id).await, (1, 0));
    send(&alice, &room_id, content.clone()).await;
    assert_eq!(unread(&bob, &room_id).await, (1, 1));
    // Bob may from now on; what he said before counts as it did then.
    let levels = room(&room_id, "state/m.room.power_levels");
    let mut power = alice.get(&levels).await.ok();
    power["notifications"] = json!({ "room": 0 });
    alice.put(&levels, &power).await.ok();
    read(&alice, &room_id, "m.read", &refused, json!({})).await;
    send(&bob, &room_id, content).await;
    assert_eq!(unread(&alice, &room_id).await, (1, 1));
}
