//! `/sync` in every detail: gaps, lazy loading, `state_after`, rooms that were left, ignored users, filters.

use std::time::Duration;

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

fn next(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

/// Syncs with a filter and further parameters.
async fn sync(user: &User, filter: &Value, since: Option<&str>, more: &str) -> Value {
    let since = since.map(|s| format!("&since={s}")).unwrap_or_default();
    let filter = escape(&filter.to_string());
    let path = format!("/_matrix/client/v3/sync?filter={filter}{since}{more}");
    user.get(&path).await.ok()
}

fn events(section: &Value) -> impl Iterator<Item = &Value> {
    section["events"].as_array().into_iter().flatten()
}

fn bodies(section: &Value) -> Vec<&str> {
    events(section)
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

/// The users whose membership is told.
fn members(section: &Value) -> Vec<&str> {
    let members = events(section).filter(|event| event["type"] == "m.room.member");
    let mut users: Vec<_> = members
        .filter_map(|event| event["state_key"].as_str())
        .collect();
    users.sort_unstable();
    users
}

async fn register<const N: usize>(server: &TestServer, names: [&str; N]) -> [User; N] {
    let mut users = Vec::new();
    for name in names {
        users.push(server.register(name).await);
    }
    users.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_filled_by_what_comes_before_it() {
    let server = TestServer::start().await;
    let [alice] = register(&server, ["alice"]).await;
    let room_id = alice.create_room(&json!({})).await;
    alice.send(&room_id, "known").await;
    let since = next(&alice.sync(None, 0).await);
    for n in 0..12 {
        alice.send(&room_id, &format!("{n}")).await;
    }
    let topic = room(&room_id, "state/m.room.topic/");
    alice.put(&topic, &json!({ "topic": "last" })).await.ok();
    let filter = json!({ "room": { "timeline": { "limit": 4 } } });
    let gappy = sync(&alice, &filter, Some(&since), "").await;
    let timeline = &gappy["rooms"]["join"][&room_id]["timeline"];
    assert_eq!(timeline["limited"], true);
    assert_eq!(bodies(timeline), ["9", "10", "11"]);
    let from = timeline["prev_batch"].as_str().unwrap();
    let path = format!("messages?dir=b&limit=10&from={from}&to={since}");
    let page = alice.get(&room(&room_id, &path)).await.ok();
    let before: Vec<_> = page["chunk"].as_array().unwrap().iter().collect();
    assert_eq!(before[0]["content"]["body"], "8");
    assert_eq!(before[8]["content"]["body"], "0");
    // A client that was away for longer than memory goes back is told the same.
    let mut server = server;
    server.restart().await;
    let again = sync(&alice, &filter, Some(&since), "").await;
    assert_eq!(again["rooms"], gappy["rooms"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_loaded_lazily() {
    let server = TestServer::start().await;
    let [alice, bob, carol, dave] = register(&server, ["alice", "bob", "carol", "dave"]).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    for user in [&bob, &carol, &dave] {
        user.join(&room_id).await.ok();
    }
    for n in 0..3 {
        bob.send(&room_id, &format!("{n}")).await;
    }
    let lazy = |redundant: bool| {
        json!({ "room": { "timeline": { "limit": 2 }, "state": {
            "lazy_load_members": true, "include_redundant_members": redundant } } })
    };
    let joined = |sync: &Value| sync["rooms"]["join"][&room_id].clone();
    let first = sync(&alice, &lazy(false), None, "").await;
    assert_eq!(
        members(&joined(&first)["state"]),
        [&alice.user_id, &bob.user_id]
    );
    let since = next(&first);
    // Who speaks is told once.
    carol.send(&room_id, "a").await;
    let second = sync(&alice, &lazy(false), Some(&since), "").await;
    assert_eq!(members(&joined(&second)["state"]), [&carol.user_id]);
    carol.send(&room_id, "b").await;
    bob.send(&room_id, "c").await;
    let third = sync(&alice, &lazy(false), Some(&next(&second)), "").await;
    assert!(members(&joined(&third)["state"]).is_empty());
    let redundant = sync(&alice, &lazy(true), Some(&next(&second)), "").await;
    assert_eq!(
        members(&joined(&redundant)["state"]),
        [&bob.user_id, &carol.user_id]
    );
    // A client that goes back to an older token has forgotten what it learned since.
    let back = sync(&alice, &lazy(false), Some(&since), "").await;
    assert_eq!(members(&joined(&back)["state"]), [&carol.user_id]);
    // In a gap every change of membership is told, whether its member speaks or not.
    dave.post(&room(&room_id, "leave"), &json!({})).await.ok();
    for n in 0..3 {
        bob.send(&room_id, &format!("after {n}")).await;
    }
    let gap = sync(&alice, &lazy(false), Some(&next(&third)), "").await;
    assert_eq!(joined(&gap)["timeline"]["limited"], true);
    assert_eq!(members(&joined(&gap)["state"]), [&dave.user_id]);
    // A device that begins anew is told anew.
    let anew = sync(&alice, &lazy(false), None, "").await;
    assert_eq!(
        members(&joined(&anew)["state"]),
        [&alice.user_id, &bob.user_id]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_after_has_the_name_that_is_asked_for() {
    let server = TestServer::start().await;
    let [alice] = register(&server, ["alice"]).await;
    let room_id = alice.create_room(&json!({ "name": "Attic" })).await;
    let since = next(&alice.sync(None, 0).await);
    let topic = room(&room_id, "state/m.room.topic/");
    alice.put(&topic, &json!({ "topic": "Rivers" })).await.ok();
    let filter = json!({ "room": { "timeline": { "limit": 1 } } });
    let (stable, unstable) = ("state_after", "org.matrix.msc4222.state_after");
    let ask = |name: &str| format!("&{}=true", name.replace("state_after", "use_state_after"));
    for (asked, named) in [
        (vec![stable], vec![stable]),
        (vec![unstable], vec![unstable]),
        (vec![stable, unstable], vec![stable, unstable]),
    ] {
        let more: String = asked.into_iter().map(ask).collect();
        for (since, topics) in [(Some(since.as_str()), 1), (None, 1)] {
            let answer = sync(&alice, &filter, since, &more).await;
            let joined = &answer["rooms"]["join"][&room_id];
            assert!(joined["state"].is_null());
            for name in [stable, unstable] {
                let told = events(&joined[name]).filter(|e| e["type"] == "m.room.topic");
                let expected = if named.contains(&name) { topics } else { 0 };
                assert_eq!(told.count(), expected, "{more} {name}");
            }
        }
    }
    // Before the timeline there is no topic.
    let before = sync(&alice, &filter, Some(&since), "").await;
    let state = &before["rooms"]["join"][&room_id]["state"];
    assert_eq!(*state, json!({ "events": [] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_sees_nothing_that_comes_after() {
    let server = TestServer::start().await;
    let [alice, bob] = register(&server, ["alice", "bob"]).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let joined = next(&bob.sync(None, 0).await);
    alice.send(&room_id, "heard").await;
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    let topic = room(&room_id, "state/m.room.topic/");
    alice.put(&topic, &json!({ "topic": "secret" })).await.ok();
    alice.send(&room_id, "unheard").await;
    let left = bob.sync(Some(&joined), 0).await;
    let archive = json!({ "room": { "include_leave": true } });
    let old = sync(&bob, &archive, None, "").await;
    for sync in [&left, &old] {
        let room = &sync["rooms"]["leave"][&room_id];
        assert_eq!(bodies(&room["timeline"]), ["heard"]);
        let last = events(&room["timeline"]).last().unwrap();
        assert_eq!(last["content"]["membership"], "leave");
        assert!(!room.to_string().contains("secret"));
    }
    assert!(bob.sync(None, 0).await["rooms"].is_null());
    // One who is banned after leaving learns that, and nothing else.
    let ban = json!({ "user_id": bob.user_id });
    alice.post(&room(&room_id, "ban"), &ban).await.ok();
    let banned = bob.sync(Some(&next(&left)), 0).await;
    let told = &banned["rooms"]["leave"][&room_id];
    let timeline: Vec<_> = events(&told["timeline"]).collect();
    assert_eq!(timeline.len(), 1);
    assert_eq!(timeline[0]["content"]["membership"], "ban");
    assert!(!told.to_string().contains("secret"));
    assert_eq!(events(&told["state"]).count(), 0);
    // What one device forgets, another still hears the end of; the archive has it no more.
    let forget = room(&room_id, "forget");
    bob.post(&forget, &json!({})).await.ok();
    let other = bob.sync(Some(&joined), 0).await;
    assert!(other["rooms"]["leave"][&room_id].is_object());
    let old = sync(&bob, &archive, None, "").await;
    assert!(old["rooms"]["leave"][&room_id].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_is_refused_ends() {
    let server = TestServer::start().await;
    let [alice, bob] = register(&server, ["alice", "bob"]).await;
    let invite = json!({ "invite": [bob.user_id], "name": "secret" });
    let room_id = alice.create_room(&invite).await;
    let invited = bob.sync(None, 0).await;
    assert!(invited["rooms"]["invite"][&room_id].is_object());
    alice.send(&room_id, "unheard").await;
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    let refused = bob.sync(Some(&next(&invited)), 0).await;
    let told = &refused["rooms"]["leave"][&room_id];
    let timeline: Vec<_> = events(&told["timeline"]).collect();
    assert_eq!(timeline.len(), 1);
    assert_eq!(timeline[0]["state_key"], bob.user_id);
    assert_eq!(events(&told["state"]).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_knows_the_state_that_history_hides() {
    let server = TestServer::start().await;
    let [alice, bob] = register(&server, ["alice", "bob"]).await;
    let hidden = json!({ "preset": "public_chat", "initial_state": [{
        "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }] });
    let room_id = alice.create_room(&hidden).await;
    let topic = room(&room_id, "state/m.room.topic/");
    alice.put(&topic, &json!({ "topic": "Rivers" })).await.ok();
    alice.send(&room_id, "hidden").await;
    let since = next(&bob.sync(None, 0).await);
    bob.join(&room_id).await.ok();
    for since in [None, Some(since.as_str())] {
        let sync = bob.sync(since, 0).await;
        let room = &sync["rooms"]["join"][&room_id];
        assert!(bodies(&room["timeline"]).is_empty());
        // It is in the timeline, as it is the state of now, or in the state.
        let told = events(&room["timeline"]).chain(events(&room["state"]));
        let topics = told.filter(|e| e["content"]["topic"] == "Rivers");
        assert_eq!(topics.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_users_are_not_heard() {
    let server = TestServer::start().await;
    let [alice, bob, mallory] = register(&server, ["alice", "bob", "mallory"]).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    mallory.join(&room_id).await.ok();
    bob.join(&room_id).await.ok();
    mallory.send(&room_id, "before").await;
    let since = next(&alice.sync(None, 0).await);
    let list = |users: Value| json!({ "ignored_users": users });
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escape(&alice.user_id)
    );
    let mut ignored = serde_json::Map::new();
    ignored.insert(mallory.user_id.clone(), json!({}));
    alice.put(&path, &list(Value::Object(ignored))).await.ok();
    mallory.send(&room_id, "unheard").await;
    let topic = room(&room_id, "state/org.example.hat/");
    alice.put(&topic, &json!({})).await.ok();
    bob.send(&room_id, "heard").await;
    let invite = json!({ "invite": [alice.user_id] });
    let trap = mallory.create_room(&invite).await;
    let incremental = alice.sync(Some(&since), 0).await;
    let first = alice.sync(None, 0).await;
    for sync in [&incremental, &first] {
        assert!(sync["rooms"]["invite"][&trap].is_null());
        let heard = bodies(&sync["rooms"]["join"][&room_id]["timeline"]);
        assert_eq!(heard, ["heard"]);
    }
    let page = alice.get(&room(&room_id, "messages?dir=b&limit=50")).await;
    assert!(!page.ok().to_string().contains("unheard"));
    // Nothing is lost for good.
    alice.put(&path, &list(json!({}))).await.ok();
    let page = alice.get(&room(&room_id, "messages?dir=b&limit=50")).await;
    assert!(page.ok().to_string().contains("unheard"));
    let first = alice.sync(None, 0).await;
    assert!(first["rooms"]["invite"][&trap].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn full_state_repeats_no_event() {
    let server = TestServer::start().await;
    let [alice] = register(&server, ["alice"]).await;
    let (busy, quiet) = (
        alice.create_room(&json!({ "name": "Busy" })).await,
        alice.create_room(&json!({ "name": "Quiet" })).await,
    );
    alice.send(&busy, "old").await;
    let since = next(&alice.sync(None, 0).await);
    alice.send(&busy, "new").await;
    let full = sync(&alice, &json!({}), Some(&since), "&full_state=true").await;
    assert_eq!(bodies(&full["rooms"]["join"][&busy]["timeline"]), ["new"]);
    for room_id in [&busy, &quiet] {
        let state = &full["rooms"]["join"][room_id]["state"];
        assert!(events(state).any(|event| event["type"] == "m.room.create"));
        assert!(events(state).any(|event| event["type"] == "m.room.name"));
    }
}

/// Whoever joins without having left may not know the room any more, and wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn who_joins_again_is_told_the_whole_room_again() {
    let server = TestServer::start().await;
    let [alice, bob] = register(&server, ["alice", "bob"]).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    alice.send(&room_id, "old").await;
    let (alices, bobs) = (alice.sync(None, 0).await, bob.sync(None, 0).await);
    let (alices, bobs) = (next(&alices), next(&bobs));
    let waits = async { bob.sync(Some(&bobs), 20_000).await };
    let joins = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        bob.join(&room_id).await.ok()
    };
    let (told, _) = tokio::join!(waits, joins);
    let room = &told["rooms"]["join"][&room_id];
    assert!(events(&room["state"]).any(|event| event["type"] == "m.room.create"));
    assert_eq!(members(&room["state"]), [&*alice.user_id, &*bob.user_id]);
    assert_eq!(bodies(&room["timeline"]), Vec::<&str>::new());
    // That is all of it, and nobody else hears of it.
    assert_eq!(bob.sync(Some(&next(&told)), 0).await["rooms"], Value::Null);
    assert_eq!(alice.sync(Some(&alices), 0).await["rooms"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn heroes_stand_for_a_name() {
    let server = TestServer::start().await;
    let [alice, bob, carol] = register(&server, ["alice", "bob", "carol"]).await;
    let body = json!({ "invite": [bob.user_id, carol.user_id] });
    let room_id = alice.create_room(&body).await;
    bob.join(&room_id).await.ok();
    let first = alice.sync(None, 0).await;
    let summary = &first["rooms"]["join"][&room_id]["summary"];
    // In the order in which they became what they are.
    assert_eq!(summary["m.heroes"], json!([carol.user_id, bob.user_id]));
    assert_eq!(summary["m.joined_member_count"], 2);
    assert_eq!(summary["m.invited_member_count"], 1);
    for user in [&bob, &carol] {
        user.post(&room(&room_id, "leave"), &json!({})).await.ok();
    }
    let second = alice.sync(Some(&next(&first)), 0).await;
    let summary = &second["rooms"]["join"][&room_id]["summary"];
    assert_eq!(summary["m.heroes"], json!([bob.user_id, carol.user_id]));
    assert_eq!(summary["m.joined_member_count"], 1);
    let name = room(&room_id, "state/m.room.name/");
    alice.put(&name, &json!({ "name": "Attic" })).await.ok();
    let named = alice.sync(None, 0).await;
    let summary = &named["rooms"]["join"][&room_id]["summary"];
    assert!(summary["m.heroes"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_the_form_that_the_filter_asks_for() {
    let server = TestServer::start().await;
    let [alice] = register(&server, ["alice"]).await;
    let room_id = alice.create_room(&json!({})).await;
    alice.send(&room_id, "hello").await;
    let fields = json!({ "event_fields": ["type", "content.body"] });
    let timeline =
        sync(&alice, &fields, None, "").await["rooms"]["join"][&room_id]["timeline"].clone();
    let last = events(&timeline).last().unwrap();
    assert_eq!(
        *last,
        json!({ "type": "m.room.message", "content": { "body": "hello" } })
    );
    let federation = json!({ "event_format": "federation" });
    let timeline =
        sync(&alice, &federation, None, "").await["rooms"]["join"][&room_id]["timeline"].clone();
    let last = events(&timeline).last().unwrap();
    assert!(last["hashes"].is_object() && last["prev_events"].is_array());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_comes_back_is_told_of_the_gap() {
    let server = TestServer::start().await;
    let [alice, bob] = register(&server, ["alice", "bob"]).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let since = next(&bob.sync(None, 0).await);
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    alice.send(&room_id, "between").await;
    bob.join(&room_id).await.ok();
    let back = bob.sync(Some(&since), 0).await;
    let timeline = &back["rooms"]["join"][&room_id]["timeline"];
    assert_eq!(timeline["limited"], true);
    assert_eq!(bodies(timeline), ["between"]);
}

#[tokio::test]
async fn who_comes_back_sees_who_came_however_much_was_said_since() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let only_joined = json!({ "history_visibility": "joined" });
    let path = room(&room_id, "state/m.room.history_visibility/");
    alice.put(&path, &only_joined).await.ok();
    let since = bob.sync(None, 0).await["next_batch"].clone();
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    carol.join(&room_id).await.ok();
    for number in 0..30 {
        alice.send(&room_id, &format!("secret {number}")).await;
    }
    bob.join(&room_id).await.ok();
    let sync = bob.sync(since.as_str(), 0).await;
    assert!(!sync.to_string().contains("secret"), "{sync}");
    let timeline = &sync["rooms"]["join"][&room_id]["timeline"];
    let mut events = timeline["events"].as_array().unwrap().iter();
    assert!(
        events.any(|event| event["state_key"] == json!(carol.user_id)),
        "{timeline}"
    );
    assert_eq!(timeline["limited"], true);
}

#[tokio::test]
async fn a_first_sync_tells_that_nobody_types_any_more_and_whose_keys_just_changed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    for typing in [true, false] {
        let path = room(&room_id, &format!("typing/{}", escape(&alice.user_id)));
        alice
            .put(&path, &json!({ "typing": typing, "timeout": 30_000 }))
            .await
            .ok();
    }
    let keys = json!({
        "user_id": alice.user_id, "device_id": alice.device_id,
        "algorithms": [], "keys": {}, "signatures": {},
    });
    let path = "/_matrix/client/v3/keys/upload";
    alice.post(path, &json!({ "device_keys": keys })).await.ok();
    let sync = bob.sync(None, 0).await;
    let ephemeral = &sync["rooms"]["join"][&room_id]["ephemeral"]["events"];
    assert_eq!(
        ephemeral[0],
        json!({ "type": "m.typing", "content": { "user_ids": [] } })
    );
    let changed = sync["device_lists"]["changed"].as_array().unwrap();
    assert!(changed.contains(&json!(alice.user_id)), "{sync}");
}
