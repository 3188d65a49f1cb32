//! Which threads a user follows: the endpoints of MSC4306 and MSC4308, and the extension of sliding sync.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape};

const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const CHANGES: &str = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions";
const EXTENSION: &str = "io.element.msc4308.thread_subscriptions";

fn path(room_id: &str, root: &str) -> String {
    let (room_id, root) = (escape(room_id), escape(root));
    format!(
        "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{root}/subscription"
    )
}

async fn reply(user: &User, room_id: &str, root: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "yes", "m.relates_to": relation });
    let sent = user.send_event(room_id, "m.room.message", &content).await;
    sent.ok()["event_id"].as_str().unwrap().to_owned()
}

/// What sliding sync tells of subscriptions, and the next token.
async fn slide(user: &User, pos: Option<&str>, limit: u32) -> (Value, String) {
    let pos = pos.map(|pos| format!("?timeout=0&pos={}", escape(pos)));
    let asked = json!({ "enabled": true, "limit": limit });
    let body = json!({ "conn_id": "c", "extensions": { EXTENSION: asked } });
    let path = format!("{SLIDING}{}", pos.unwrap_or_default());
    let answer = user.post(&path, &body).await.ok();
    let pos = answer["pos"].as_str().unwrap().to_owned();
    (answer["extensions"][EXTENSION].clone(), pos)
}

#[tokio::test]
async fn a_thread_is_followed_by_wish_or_by_itself() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let root = alice.send(&room_id, "shall we?").await;
    let thread = path(&room_id, &root);
    let none = (404, "M_NOT_FOUND");
    assert_eq!(alice.get(&thread).await.refused(), none);
    alice.delete(&thread).await.ok();

    let cause = reply(&alice, &room_id, &root).await;
    let automatic = json!({ "automatic": cause });
    alice.put(&thread, &automatic).await.ok();
    assert_eq!(alice.get(&thread).await.ok(), json!({ "automatic": true }));
    alice.put(&thread, &json!({})).await.ok();
    assert_eq!(alice.get(&thread).await.ok(), json!({ "automatic": false }));
    // What a client does by itself does not undo what the user wanted.
    alice.put(&thread, &automatic).await.ok();
    assert_eq!(alice.get(&thread).await.ok(), json!({ "automatic": false }));
    alice.delete(&thread).await.ok();
    assert_eq!(alice.get(&thread).await.refused(), none);
    let conflict = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION";
    assert_eq!(
        alice.put(&thread, &automatic).await.refused(),
        (409, conflict)
    );
    let later = json!({ "automatic": reply(&alice, &room_id, &root).await });
    alice.put(&thread, &later).await.ok();
    assert_eq!(alice.get(&thread).await.ok(), json!({ "automatic": true }));
}

#[tokio::test]
async fn what_is_no_thread_is_not_followed() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mallory = server.register("mallory").await;
    let room_id = alice.create_room(&json!({})).await;
    let root = alice.send(&room_id, "shall we?").await;
    let other = alice.send(&room_id, "something else").await;
    let thread = path(&room_id, &root);
    let none = (404, "M_NOT_FOUND");
    for user in [&alice, &mallory] {
        let unknown = path(&room_id, "$unknown");
        assert_eq!(user.put(&unknown, &json!({})).await.refused(), none);
        assert_eq!(user.delete(&unknown).await.refused(), none);
    }
    assert_eq!(mallory.put(&thread, &json!({})).await.refused(), none);
    assert_eq!(mallory.get(&thread).await.refused(), none);
    let outside = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD";
    for cause in [&other, &root] {
        let body = json!({ "automatic": cause });
        assert_eq!(alice.put(&thread, &body).await.refused(), (400, outside));
    }
    let wrong = (400, "M_INVALID_PARAM");
    let body = json!({ "automatic": 7 });
    assert_eq!(alice.put(&thread, &body).await.refused(), wrong);
    for query in ["dir=f", "from=here", "to=there", "limit=many"] {
        let path = format!("{CHANGES}?{query}");
        assert_eq!(alice.get(&path).await.refused(), wrong);
    }
}

#[tokio::test]
async fn clients_learn_which_threads_are_followed() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let mut roots = Vec::new();
    for index in 0..4 {
        let root = alice.send(&room_id, &format!("{index}")).await;
        alice.put(&path(&room_id, &root), &json!({})).await.ok();
        roots.push(root);
    }
    // The newest first; older ones are fetched.
    let (told, first) = slide(&alice, None, 1).await;
    assert_eq!(told["subscribed"][&room_id][&roots[3]]["automatic"], false);
    assert_eq!(told["subscribed"][&room_id].as_object().unwrap().len(), 1);
    let mut from = told["prev_batch"].as_str().map(ToOwned::to_owned);
    let mut rest = Vec::new();
    while let Some(token) = from {
        let page = alice
            .get(&format!("{CHANGES}?dir=b&limit=2&from={token}"))
            .await;
        let page = page.ok();
        let threads = page["subscribed"][&room_id].as_object().unwrap();
        rest.extend(threads.keys().cloned());
        from = page["end"].as_str().map(ToOwned::to_owned);
    }
    rest.sort_unstable();
    let mut expected = roots[..3].to_vec();
    expected.sort_unstable();
    assert_eq!(rest, expected);

    let (told, idle) = slide(&alice, Some(&first), 10).await;
    assert_eq!(told, Value::Null);
    alice.delete(&path(&room_id, &roots[0])).await.ok();
    let (told, second) = slide(&alice, Some(&idle), 10).await;
    let stamp = &told["unsubscribed"][&room_id][&roots[0]]["bump_stamp"];
    assert!(stamp.as_i64().unwrap() > 0 && told.get("subscribed").is_none());
    // Again, as if the reply had been lost.
    assert_eq!(slide(&alice, Some(&idle), 10).await.0, told);
    assert_eq!(slide(&alice, Some(&second), 10).await.0, Value::Null);
    let since = format!("{CHANGES}?to={}", escape(&idle));
    let changes = alice.get(&since).await.ok();
    assert_eq!(changes["unsubscribed"], told["unsubscribed"]);
    assert!(changes.get("subscribed").is_none() && changes.get("end").is_none());

    let (told, _) = slide(&bob, None, 10).await;
    assert_eq!(told, Value::Null);
    assert_eq!(bob.get(CHANGES).await.ok(), json!({}));
}

#[tokio::test]
async fn a_request_that_waits_learns_of_a_subscription() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let root = alice.send(&room_id, "shall we?").await;
    let (_, pos) = slide(&alice, None, 10).await;
    let body = json!({ "conn_id": "c", "extensions": { EXTENSION: { "enabled": true } } });
    let path_of_wait = format!("{SLIDING}?timeout=20000&pos={}", escape(&pos));
    let thread = path(&room_id, &root);
    let subscribe = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        alice.put(&thread, &json!({})).await.ok()
    };
    let (answer, _) = tokio::join!(alice.post(&path_of_wait, &body), subscribe);
    let told = &answer.ok()["extensions"][EXTENSION]["subscribed"];
    assert_eq!(told[&room_id][&root]["automatic"], false);
}
