//! Events that relate to others: `/relations`, threads, and what is bundled.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape};

/// Sends an event that relates to another one; its id.
async fn relate(user: &User, room_id: &str, rel_type: &str, parent: &str, body: &str) -> String {
    let mut content = json!({
        "msgtype": "m.text", "body": body, "m.relates_to": { "rel_type": rel_type, "event_id": parent },
    });
    if rel_type == "m.replace" {
        content["m.new_content"] = json!({ "msgtype": "m.text", "body": body });
    }
    let sent = user
        .send_event(room_id, "m.room.message", &content)
        .await
        .ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

fn ids(chunk: &Value) -> Vec<&str> {
    let events = chunk.as_array().unwrap();
    events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap())
        .collect()
}

fn path(room_id: &str, rest: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/{rest}", escape(room_id))
}

#[tokio::test]
async fn relations_are_listed_in_pages_and_through_each_other() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let parent = alice.send(&room_id, "a plan").await;
    let first = relate(&alice, &room_id, "m.reference", &parent, "see there").await;
    let second = relate(&alice, &room_id, "m.thread", &parent, "in a thread").await;
    let grandchild = relate(&alice, &room_id, "m.reference", &second, "see the thread").await;

    let relations = path(&room_id, &format!("relations/{}", escape(&parent)));
    let all = alice.get(&relations).await.ok();
    assert_eq!(ids(&all["chunk"]), [&second, &first]);
    assert!(all.get("next_batch").is_none() && all.get("recursion_depth").is_none());
    let forwards = alice.get(&format!("{relations}?dir=f&limit=1")).await.ok();
    assert_eq!(ids(&forwards["chunk"]), [&first]);
    let from = forwards["next_batch"].as_str().unwrap();
    let rest = alice
        .get(&format!("{relations}?dir=f&from={from}"))
        .await
        .ok();
    assert_eq!(ids(&rest["chunk"]), [&second]);
    let typed = alice.get(&format!("{relations}/m.reference")).await.ok();
    assert_eq!(ids(&typed["chunk"]), [&first]);
    let none = alice
        .get(&format!("{relations}/m.reference/m.sticker"))
        .await
        .ok();
    assert_eq!(none["chunk"], json!([]));
    let deep = alice.get(&format!("{relations}?recurse=true")).await.ok();
    assert_eq!(ids(&deep["chunk"]), [&grandchild, &second, &first]);
    assert_eq!(deep["recursion_depth"], 3);

    // Once redacted, it relates to nothing.
    let redact = format!(
        "/_matrix/client/v3/rooms/{}/redact/{}/1",
        escape(&room_id),
        escape(&first)
    );
    alice.put(&redact, &json!({})).await.ok();
    let left = alice.get(&relations).await.ok();
    assert_eq!(ids(&left["chunk"]), [&second]);
}

#[tokio::test]
async fn what_relates_to_an_event_comes_with_it() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let parent = alice.send(&room_id, "dinner at seven").await;
    let edit = relate(&alice, &room_id, "m.replace", &parent, "dinner at eight").await;
    relate(&bob, &room_id, "m.replace", &parent, "no dinner").await;
    relate(&alice, &room_id, "m.thread", &parent, "what shall we eat?").await;
    let latest = relate(&bob, &room_id, "m.thread", &parent, "soup").await;
    let reference = relate(&bob, &room_id, "m.reference", &parent, "here").await;

    let event = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        escape(&room_id),
        escape(&parent)
    );
    for (user, participated) in [(&alice, true), (&bob, true)] {
        let shown = user.get(&event).await.ok();
        let bundle = &shown["unsigned"]["m.relations"];
        assert_eq!(bundle["m.replace"]["event_id"], edit.as_str(), "{shown}");
        assert_eq!(
            bundle["m.replace"]["content"]["m.new_content"]["body"],
            "dinner at eight"
        );
        let thread = &bundle["m.thread"];
        assert_eq!(thread["latest_event"]["event_id"], latest.as_str());
        assert_eq!(thread["count"], 2);
        assert_eq!(thread["current_user_participated"], participated);
        assert_eq!(
            bundle["m.reference"]["chunk"],
            json!([{ "event_id": reference }])
        );
    }
    let messages = format!(
        "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=50",
        escape(&room_id)
    );
    let page = alice.get(&messages).await.ok();
    let chunk = page["chunk"].as_array().unwrap();
    let shown = chunk
        .iter()
        .find(|event| event["event_id"] == parent.as_str());
    let bundle = &shown.unwrap()["unsigned"]["m.relations"];
    assert_eq!(bundle["m.thread"]["count"], 2);
    let context = event.replace("/event/", "/context/");
    let around = alice.get(&context).await.ok();
    let bundle = &around["event"]["unsigned"]["m.relations"];
    assert_eq!(bundle["m.thread"]["count"], 2);
}

#[tokio::test]
async fn threads_are_listed_by_their_latest_event() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let old = alice.send(&room_id, "one").await;
    let new = alice.send(&room_id, "two").await;
    relate(&alice, &room_id, "m.thread", &new, "on two").await;
    relate(&bob, &room_id, "m.thread", &old, "on one, later").await;

    let threads = path(&room_id, "threads");
    let all = alice.get(&threads).await.ok();
    assert_eq!(ids(&all["chunk"]), [&old, &new]);
    let bundle = &all["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(bundle["count"], 1);
    let page = alice.get(&format!("{threads}?limit=1")).await.ok();
    assert_eq!(ids(&page["chunk"]), [&old]);
    let from = page["next_batch"].as_str().unwrap();
    let rest = alice
        .get(&format!("{threads}?limit=1&from={from}"))
        .await
        .ok();
    assert_eq!(ids(&rest["chunk"]), [&new]);
    let own = bob
        .get(&format!("{threads}?include=participated"))
        .await
        .ok();
    assert_eq!(ids(&own["chunk"]), [&old]);
}

#[tokio::test]
async fn relations_are_refused_to_strangers() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mallory = server.register("mallory").await;
    let room_id = alice.create_room(&json!({})).await;
    let parent = alice.send(&room_id, "a secret").await;
    relate(&alice, &room_id, "m.thread", &parent, "more of it").await;
    let relations = path(&room_id, &format!("relations/{}", escape(&parent)));
    assert_eq!(
        mallory.get(&relations).await.refused(),
        (404, "M_NOT_FOUND")
    );
    let threads = path(&room_id, "threads");
    assert_eq!(mallory.get(&threads).await.refused(), (403, "M_FORBIDDEN"));
    let unknown = path(&room_id, "relations/$nothing");
    assert_eq!(alice.get(&unknown).await.refused(), (404, "M_NOT_FOUND"));
    let malformed = format!("{relations}?from=here");
    assert_eq!(
        alice.get(&malformed).await.refused(),
        (400, "M_INVALID_PARAM")
    );
    // The event is of another room.
    let other = alice.create_room(&json!({})).await;
    let elsewhere = path(&other, &format!("relations/{}", escape(&parent)));
    assert_eq!(alice.get(&elsewhere).await.refused(), (404, "M_NOT_FOUND"));
}

/// The event of that id in the timeline of a room, in both ways of syncing.
async fn synced(user: &User, room_id: &str, event_id: &str) -> [Value; 2] {
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 50, "required_state": [] });
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let slide = user
        .post(sliding, &json!({ "lists": { "all": list } }))
        .await;
    let filter = escape(&json!({ "room": { "timeline": { "limit": 50 } } }).to_string());
    let sync = user
        .get(&format!("/_matrix/client/v3/sync?filter={filter}"))
        .await;
    let timelines = [
        sync.ok()["rooms"]["join"][room_id]["timeline"]["events"].clone(),
        slide.ok()["rooms"][room_id]["timeline"].clone(),
    ];
    timelines.map(|events| {
        let mut events = events.as_array().unwrap().iter();
        let found = events.find(|event| event["event_id"] == event_id);
        found.unwrap().clone()
    })
}

#[tokio::test]
async fn syncs_bundle_what_relates_to_events() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let parent = alice.send(&room_id, "dinner at seven").await;
    for event in synced(&alice, &room_id, &parent).await {
        assert_eq!(event["unsigned"]["m.relations"], Value::Null);
    }
    let edit = relate(&alice, &room_id, "m.replace", &parent, "dinner at eight").await;
    relate(&alice, &room_id, "m.thread", &parent, "what shall we eat?").await;
    let latest = relate(&bob, &room_id, "m.thread", &parent, "soup").await;
    let reference = relate(&bob, &room_id, "m.reference", &parent, "here").await;
    // One of another room has no part in it.
    let elsewhere = bob.create_room(&json!({})).await;
    relate(&bob, &elsewhere, "m.thread", &parent, "behind your back").await;
    for restarted in [false, true] {
        if restarted {
            server.restart().await;
        }
        for event in synced(&bob, &room_id, &parent).await {
            let bundle = &event["unsigned"]["m.relations"];
            let thread = &bundle["m.thread"];
            assert_eq!(bundle["m.replace"]["event_id"], edit.as_str(), "{event}");
            assert_eq!(thread["latest_event"]["event_id"], latest.as_str());
            assert_eq!(thread["count"], 2);
            let chunk = &bundle["m.reference"]["chunk"];
            assert_eq!(*chunk, json!([{ "event_id": reference }]));
        }
    }
    // What is redacted is gone.
    let redact = format!(
        "/_matrix/client/v3/rooms/{}/redact/{}/1",
        escape(&room_id),
        escape(&edit)
    );
    alice.put(&redact, &json!({})).await.ok();
    for event in synced(&bob, &room_id, &parent).await {
        assert_eq!(event["unsigned"]["m.relations"].get("m.replace"), None);
    }
}

#[tokio::test]
async fn bundles_in_syncs_leave_out_whom_one_ignores() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let parent = alice.send(&room_id, "dinner at seven").await;
    let since = alice.sync(None, 0).await["next_batch"].clone();
    let said = relate(&alice, &room_id, "m.thread", &parent, "what shall we eat?").await;
    let edit = relate(
        &alice,
        &room_id,
        "m.replace",
        &said,
        "what is there to eat?",
    )
    .await;
    relate(&bob, &room_id, "m.thread", &parent, "soup").await;
    relate(&bob, &room_id, "m.reference", &parent, "here").await;
    let news = alice.sync(since.as_str(), 0).await;
    let events = &news["rooms"]["join"][&room_id]["timeline"]["events"];
    let mut events = events.as_array().unwrap().iter();
    let news = events.find(|event| event["event_id"] == said.as_str());
    let bundle = &news.unwrap()["unsigned"]["m.relations"];
    assert_eq!(bundle["m.replace"]["event_id"], edit.as_str());

    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escape(&alice.user_id)
    );
    let ignored = json!({ "ignored_users": { &bob.user_id: {} } });
    alice.put(&path, &ignored).await.ok();
    for event in synced(&alice, &room_id, &parent).await {
        let bundle = &event["unsigned"]["m.relations"];
        let thread = &bundle["m.thread"];
        assert_eq!(thread["latest_event"]["event_id"], said.as_str(), "{event}");
        assert_eq!(thread["count"], 1);
        // What is told of a thread has its own edits.
        let within = &thread["latest_event"]["unsigned"]["m.relations"]["m.replace"];
        assert_eq!(within["event_id"], edit.as_str());
        assert_eq!(bundle.get("m.reference"), None);
    }
}

#[tokio::test]
async fn who_has_left_is_told_nothing_of_what_came_later() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let parent = alice.send(&room_id, "dinner at seven").await;
    let heard = relate(&alice, &room_id, "m.thread", &parent, "soup").await;
    bob.post(&sotto_tests::room(&room_id, "leave"), &json!({}))
        .await
        .ok();
    relate(&alice, &room_id, "m.thread", &parent, "without bob").await;
    relate(&alice, &room_id, "m.replace", &parent, "dinner at nine").await;
    let filter = json!({ "room": { "include_leave": true } }).to_string();
    let path = format!("/_matrix/client/v3/sync?filter={}", escape(&filter));
    let left = bob.get(&path).await.ok()["rooms"]["leave"][&room_id].clone();
    let events = left["timeline"]["events"].as_array().unwrap().iter();
    let mut events = events.filter(|event| event["event_id"] == parent.as_str());
    let bundle = &events.next().unwrap()["unsigned"]["m.relations"];
    assert_eq!(
        bundle["m.thread"]["latest_event"]["event_id"],
        heard.as_str()
    );
    assert_eq!(bundle.get("m.replace"), None);
}
