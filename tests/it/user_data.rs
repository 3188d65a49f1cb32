//! What users keep on the server for themselves and show to others: account data, filters, receipts,
//! typing, profiles, tags, push rules.

use serde_json::{Value, json};
use sotto_tests::{Answer, TestServer, User, escape, room};

/// The path of something of a user.
fn own(user: &User, rest: &str) -> String {
    format!("/_matrix/client/v3/user/{}/{rest}", escape(&user.user_id))
}

fn next(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

fn event<'a>(section: &'a Value, event_type: &str) -> Option<&'a Value> {
    let mut events = section["events"].as_array()?.iter();
    events.find(|event| event["type"] == event_type)
}

fn types(section: &Value) -> Vec<&str> {
    let events = section["events"].as_array().into_iter().flatten();
    events.filter_map(|event| event["type"].as_str()).collect()
}

async fn sync_with(user: &User, filter: &str, since: Option<&str>) -> Value {
    let since = since.map(|s| format!("&since={s}")).unwrap_or_default();
    let path = format!("/_matrix/client/v3/sync?filter={}{since}", escape(filter));
    user.get(&path).await.ok()
}

/// Two people in a room.
async fn two(server: &TestServer) -> (User, User, String) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    (alice, bob, room_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn account_data_is_kept_and_synced() {
    let mut server = TestServer::start().await;
    let (alice, _, room_id) = two(&server).await;
    let first = alice.sync(None, 0).await;
    let global = own(&alice, "account_data/org.example.a");
    let local = own(
        &alice,
        &format!("rooms/{}/account_data/org.example.b", escape(&room_id)),
    );
    for path in [&global, &local] {
        assert_eq!(alice.get(path).await.refused(), (404, "M_NOT_FOUND"));
    }
    alice.put(&global, &json!({ "a": 1 })).await.ok();
    alice.put(&local, &json!({ "b": 2 })).await.ok();
    assert_eq!(alice.get(&global).await.ok(), json!({ "a": 1 }));
    assert_eq!(alice.get(&local).await.ok(), json!({ "b": 2 }));
    // Later syncs have what changed; a first sync and one after a restart have it as well.
    let mut syncs = vec![alice.sync(Some(&next(&first)), 0).await];
    server.restart().await;
    syncs.push(alice.sync(Some(&next(&first)), 0).await);
    syncs.push(alice.sync(None, 0).await);
    for sync in &syncs {
        let found = event(&sync["account_data"], "org.example.a").unwrap();
        assert_eq!(found["content"], json!({ "a": 1 }));
        let data = &sync["rooms"]["join"][&room_id]["account_data"];
        assert_eq!(
            event(data, "org.example.b").unwrap()["content"],
            json!({ "b": 2 })
        );
    }
    let idle = alice.sync(Some(&next(&syncs[0])), 0).await;
    assert!(idle["account_data"].is_null() && idle["rooms"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn account_data_is_guarded() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    let rooms = format!("rooms/{}/", escape(&room_id));
    for prefix in ["", rooms.as_str()] {
        let path = |kind: &str| own(&alice, &format!("{prefix}account_data/{kind}"));
        for kind in ["m.fully_read", "m.push_rules"] {
            let answer = alice.put(&path(kind), &json!({})).await;
            assert_eq!(answer.refused(), (405, "M_BAD_JSON"));
        }
        let answer = alice.put(&path("x"), &json!([1])).await;
        assert_eq!(answer.refused(), (400, "M_BAD_JSON"));
        let body = Some(b"{".to_vec());
        let answer = alice.request(http::Method::PUT, &path("x"), body).await;
        assert_eq!(answer.refused(), (400, "M_NOT_JSON"));
        let large = json!({ "large": "x".repeat(70_000) });
        let answer = alice.put(&path("x"), &large).await;
        assert_eq!(answer.refused(), (413, "M_TOO_LARGE"));
        // Nobody else may look or write.
        alice.put(&path("x"), &json!({ "x": 1 })).await.ok();
        assert_eq!(bob.get(&path("x")).await.refused(), (403, "M_FORBIDDEN"));
        let answer = bob.put(&path("x"), &json!({})).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    }
    let sync = bob.sync(None, 0).await;
    assert_eq!(types(&sync["account_data"]), ["m.push_rules"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_account_data_of_a_room() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    let path = |rest: &str| own(&alice, &format!("rooms/{}/tags{rest}", escape(&room_id)));
    alice
        .put(&path("/m.favourite"), &json!({ "order": 0.5 }))
        .await
        .ok();
    alice.put(&path("/u.work"), &json!({})).await.ok();
    let tags = alice.get(&path("")).await.ok();
    assert_eq!(
        tags,
        json!({ "tags": { "m.favourite": { "order": 0.5 }, "u.work": {} } })
    );
    alice.delete(&path("/u.work")).await.ok();
    let sync = alice.sync(None, 0).await;
    let tag = event(&sync["rooms"]["join"][&room_id]["account_data"], "m.tag").unwrap();
    assert_eq!(
        tag["content"],
        json!({ "tags": { "m.favourite": { "order": 0.5 } } })
    );
    for answer in [
        bob.get(&path("")).await,
        bob.put(&path("/u.x"), &json!({})).await,
        bob.delete(&path("/m.favourite")).await,
    ] {
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_kept_and_applied() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    let other_room = alice.create_room(&json!({})).await;
    let since = next(&alice.sync(None, 0).await);
    for text in ["one", "two", "three"] {
        alice.send(&room_id, text).await;
        alice
            .send_event(
                &room_id,
                "org.example.noise",
                &json!({ "url": "mxc://x/y" }),
            )
            .await
            .ok();
    }
    bob.send(&room_id, "from bob").await;
    alice.send(&other_room, "elsewhere").await;
    let filter = json!({ "room": {
        "rooms": [room_id],
        "timeline": { "types": ["m.room.mess*"], "not_senders": [bob.user_id], "limit": 2 },
        "state": { "types": ["m.room.create"] },
    } });
    let made = alice.post(&own(&alice, "filter"), &filter).await.ok();
    let id = made["filter_id"].as_str().unwrap().to_owned();
    let path = own(&alice, &format!("filter/{id}"));
    assert_eq!(alice.get(&path).await.ok(), filter);
    assert_eq!(bob.get(&path).await.refused(), (403, "M_FORBIDDEN"));
    let unknown = own(&alice, "filter/unknown");
    assert_eq!(alice.get(&unknown).await.refused(), (404, "M_NOT_FOUND"));
    let sync = alice.get("/_matrix/client/v3/sync?filter=unknown").await;
    assert_eq!(sync.refused(), (400, "M_INVALID_PARAM"));
    // By id and inline, from the database and from memory.
    for (filter, since) in [
        (id.clone(), None),
        (filter.to_string(), None),
        (id.clone(), Some(since.as_str())),
    ] {
        let sync = sync_with(&alice, &filter, since).await;
        assert!(sync["rooms"]["join"][&other_room].is_null());
        let joined = &sync["rooms"]["join"][&room_id];
        let events = joined["timeline"]["events"].as_array().unwrap();
        let texts: Vec<_> = events.iter().map(|e| &e["content"]["body"]).collect();
        assert_eq!(texts, ["two", "three"]);
        assert_eq!(joined["timeline"]["limited"], true);
        let state = types(&joined["state"]);
        assert!(
            state.iter().all(|kind| *kind == "m.room.create"),
            "{state:?}"
        );
    }
    // What is not wanted is no news.
    let sync = sync_with(&alice, &id, None).await;
    alice
        .send_event(&room_id, "org.example.noise", &json!({}))
        .await
        .ok();
    let idle = sync_with(&alice, &id, Some(&next(&sync))).await;
    assert!(idle["rooms"].is_null(), "{idle}");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_apply_to_pages() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    for n in 0..30 {
        alice
            .send_event(
                &room_id,
                "org.example.noise",
                &json!({ "url": "mxc://x/y" }),
            )
            .await
            .ok();
        if n % 10 == 0 {
            bob.send(&room_id, &format!("text {n}")).await;
        }
    }
    let page = async |filter: Value| {
        let filter = escape(&filter.to_string());
        let path = room(&room_id, &format!("messages?dir=b&limit=3&filter={filter}"));
        alice.get(&path).await.ok()
    };
    let found = page(json!({ "types": ["m.room.message"], "lazy_load_members": true })).await;
    let chunk = found["chunk"].as_array().unwrap();
    let texts: Vec<_> = chunk.iter().map(|e| &e["content"]["body"]).collect();
    assert_eq!(texts, ["text 20", "text 10", "text 0"]);
    let state = found["state"].as_array().unwrap();
    assert_eq!(state.len(), 1);
    assert_eq!(state[0]["state_key"], bob.user_id);
    let found = page(json!({ "contains_url": true })).await;
    let chunk = found["chunk"].as_array().unwrap();
    assert_eq!(chunk.len(), 3);
    assert!(chunk.iter().all(|e| e["type"] == "org.example.noise"));
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_told_to_those_who_may_know() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    let sent = [
        alice.send(&room_id, "one").await,
        alice.send(&room_id, "two").await,
        alice.send(&room_id, "three").await,
    ];
    let since = next(&alice.sync(None, 0).await);
    let receipt = async |kind: &str, event_id: &str, body: Value| -> Answer {
        let path = format!("receipt/{kind}/{}", escape(event_id));
        bob.post(&room(&room_id, &path), &body).await
    };
    receipt("m.read", &sent[1], json!({})).await.ok();
    receipt("m.read.private", &sent[2], json!({ "thread_id": "main" }))
        .await
        .ok();
    // A receipt does not move back.
    receipt("m.read", &sent[0], json!({})).await.ok();
    let markers = json!({ "m.fully_read": sent[2] });
    let path = room(&room_id, "read_markers");
    bob.post(&path, &markers).await.ok();
    for since in [Some(since.as_str()), None] {
        let sync = alice.sync(since, 0).await;
        let seen = event(&sync["rooms"]["join"][&room_id]["ephemeral"], "m.receipt").unwrap();
        let seen = seen["content"].as_object().unwrap();
        assert_eq!(seen.keys().collect::<Vec<_>>(), [&sent[1]]);
        assert!(seen[&sent[1]]["m.read"][&bob.user_id]["ts"].is_u64());
        let sync = bob.sync(since, 0).await;
        let joined = &sync["rooms"]["join"][&room_id];
        let own = event(&joined["ephemeral"], "m.receipt").unwrap();
        let private = &own["content"][&sent[2]]["m.read.private"][&bob.user_id];
        assert_eq!(private["thread_id"], "main");
        let marker = event(&joined["account_data"], "m.fully_read").unwrap();
        assert_eq!(marker["content"]["event_id"], sent[2]);
    }
    for (kind, event_id, body, refusal) in [
        ("m.other", &*sent[2], json!({}), (400, "M_INVALID_PARAM")),
        (
            "m.read",
            &sent[2],
            json!({ "thread_id": "" }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "m.fully_read",
            &sent[2],
            json!({ "thread_id": "main" }),
            (400, "M_INVALID_PARAM"),
        ),
        ("m.read", "$unknown", json!({}), (404, "M_NOT_FOUND")),
    ] {
        let answer = receipt(kind, event_id, body).await;
        assert_eq!(answer.refused(), refusal, "{kind}");
    }
    let eve = server.register("eve").await;
    let path = room(&room_id, &format!("receipt/m.read/{}", escape(&sent[2])));
    let answer = eve.post(&path, &json!({})).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_is_seen_and_ends() {
    let server = TestServer::start().await;
    let carol = server.register("carol").await;
    let before = next(&carol.sync(None, 0).await);
    let (alice, bob, room_id) = two(&server).await;
    let mut since = Some(next(&alice.sync(None, 0).await));
    let path = room(&room_id, &format!("typing/{}", escape(&bob.user_id)));
    let typing = |sync: &Value| {
        let ephemeral = &sync["rooms"]["join"][&room_id]["ephemeral"];
        event(ephemeral, "m.typing").map(|event| event["content"]["user_ids"].clone())
    };
    let begin = json!({ "typing": true, "timeout": 30_000 });
    bob.put(&path, &begin).await.ok();
    let users = alice.sync_until(&mut since, typing).await;
    assert_eq!(users, json!([bob.user_id]));
    let mut first = None;
    assert_eq!(
        alice.sync_until(&mut first, typing).await,
        json!([bob.user_id])
    );
    bob.put(&path, &json!({ "typing": false })).await.ok();
    assert_eq!(alice.sync_until(&mut since, typing).await, json!([]));
    // Also with a token from before the room was there, or none: the client may know more than it says.
    carol.join(&room_id).await.ok();
    assert_eq!(typing(&carol.sync(Some(&before), 0).await), Some(json!([])));
    assert_eq!(typing(&carol.sync(None, 0).await), Some(json!([])));
    // Without an end it ends when its time is up.
    bob.put(&path, &begin).await.ok();
    alice.sync_until(&mut since, typing).await;
    server.clock().advance(31_000);
    assert_eq!(alice.sync_until(&mut since, typing).await, json!([]));
    // Only for oneself, and only where one is.
    let answer = alice.put(&path, &begin).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    let eve = server.register("eve").await;
    let path = room(&room_id, &format!("typing/{}", escape(&eve.user_id)));
    assert_eq!(eve.put(&path, &begin).await.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_public_and_repeated_in_rooms() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    let path = |rest: &str| {
        format!(
            "/_matrix/client/v3/profile/{}{rest}",
            escape(&alice.user_id)
        )
    };
    let nobody = User::anonymous(server.url());
    assert_eq!(
        nobody.get(&path("")).await.ok(),
        json!({ "displayname": "alice" })
    );
    let answer = nobody.get(&path("/avatar_url")).await;
    assert_eq!(answer.ok(), json!({}));
    let mut since = Some(next(&bob.sync(None, 0).await));
    let name = json!({ "displayname": "Alice in Wonderland" });
    alice.put(&path("/displayname"), &name).await.ok();
    assert_eq!(nobody.get(&path("/displayname")).await.ok(), name);
    let member = bob
        .sync_until(&mut since, |sync| {
            let timeline = &sync["rooms"]["join"][&room_id]["timeline"];
            event(timeline, "m.room.member").cloned()
        })
        .await;
    assert_eq!(member["content"]["displayname"], "Alice in Wonderland");
    assert_eq!(member["content"]["membership"], "join");
    // Other fields are free, within bounds.
    let value = json!({ "org.example.mood": { "is": "curious" } });
    alice.put(&path("/org.example.mood"), &value).await.ok();
    assert_eq!(nobody.get(&path("/org.example.mood")).await.ok(), value);
    alice.delete(&path("/org.example.mood")).await.ok();
    let answer = nobody.get(&path("/org.example.mood")).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
    let long = "k".repeat(256);
    for (field, value, refusal) in [
        (long.as_str(), json!("x"), (400, "M_KEY_TOO_LARGE")),
        (
            "org.example.a",
            json!("x".repeat(66_000)),
            (400, "M_PROFILE_TOO_LARGE"),
        ),
        ("displayname", json!({}), (400, "M_BAD_JSON")),
    ] {
        let mut body = json!({});
        body[field] = value;
        let answer = alice.put(&path(&format!("/{field}")), &body).await;
        assert_eq!(answer.refused(), refusal, "{field}");
    }
    let answer = bob.put(&path("/displayname"), &name).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    let answer = bob.delete(&path("/displayname")).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    let answer = nobody
        .get("/_matrix/client/v3/profile/@nobody:one.test")
        .await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn push_rules_begin_with_those_of_the_specification() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = |rest: &str| format!("/_matrix/client/v3/pushrules/{rest}");
    let first = alice.sync(None, 0).await;
    let rules = event(&first["account_data"], "m.push_rules").unwrap();
    assert_eq!(alice.get(&path("")).await.ok(), rules["content"]);
    let master = "global/override/.m.rule.master";
    let enabled = alice.get(&path(&format!("{master}/enabled"))).await.ok();
    assert_eq!(enabled, json!({ "enabled": false }));
    alice
        .put(
            &path(&format!("{master}/enabled")),
            &json!({ "enabled": true }),
        )
        .await
        .ok();
    let rule = json!({ "actions": ["notify"], "pattern": "tea" });
    alice.put(&path("global/content/tea"), &rule).await.ok();
    let actions = json!({ "actions": [] });
    alice
        .put(&path("global/content/tea/actions"), &actions)
        .await
        .ok();
    assert_eq!(
        alice.get(&path("global/content/tea/actions")).await.ok(),
        actions
    );
    let sync = alice.sync(Some(&next(&first)), 0).await;
    let rules = event(&sync["account_data"], "m.push_rules").unwrap();
    assert_eq!(alice.get(&path("")).await.ok(), rules["content"]);
    assert_eq!(rules["content"]["global"]["content"][0]["rule_id"], "tea");
    alice.delete(&path("global/content/tea")).await.ok();
    for (answer, refusal) in [
        (
            alice.get(&path("global/content/tea")).await,
            (404, "M_NOT_FOUND"),
        ),
        (
            alice.delete(&path("global/content/tea")).await,
            (404, "M_NOT_FOUND"),
        ),
        (alice.delete(&path(master)).await, (400, "M_INVALID_PARAM")),
        (
            alice.put(&path("global/content/.mine"), &rule).await,
            (400, "M_INVALID_PARAM"),
        ),
    ] {
        assert_eq!(answer.refused(), refusal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_others_could_not_read_is_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = own(&alice, "account_data/org.example.large");
    let body = Some(b"{\"large\":1e999}".to_vec());
    let refused = alice.request(http::Method::PUT, &path, body).await;
    assert_eq!(refused.refused(), (400, "M_NOT_JSON"));
}

#[tokio::test]
async fn several_threads_can_be_read_up_to_one_event() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let event_id = alice.send(&room_id, "hello").await;
    let path = room(&room_id, &format!("receipt/m.read/{}", escape(&event_id)));
    for body in [
        json!({ "thread_id": "main" }),
        json!({ "thread_id": event_id }),
        json!({}),
    ] {
        alice.post(&path, &body).await.ok();
    }
    let sync = alice.sync(None, 0).await;
    let events = &sync["rooms"]["join"][&room_id]["ephemeral"]["events"];
    let receipts = events.as_array().unwrap().iter();
    let receipts = receipts.filter(|event| event["type"] == "m.receipt");
    let threads: Vec<_> = receipts
        .map(|event| &event["content"][&event_id]["m.read"][&alice.user_id])
        .map(|receipt| receipt["thread_id"].as_str().unwrap_or_default())
        .collect();
    // The one without thread says most: who takes only one event in takes that.
    assert_eq!(threads[0], "");
    assert_eq!(threads.len(), 3);
    assert!(threads.contains(&"main") && threads.contains(&event_id.as_str()));
}
