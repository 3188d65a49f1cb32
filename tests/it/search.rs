//! `POST /search`: what is found, by whom, and what is not found any more.

mod index;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

const SEARCH: &str = "/_matrix/client/v3/search";

/// The `room_events` that somebody finds, with further criteria.
async fn search(user: &User, term: &str, more: Value) -> Value {
    let mut criteria = json!({ "search_term": term });
    criteria
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let body = json!({ "search_categories": { "room_events": criteria } });
    let next = criteria["next"]
        .as_str()
        .map(|next| format!("?next_batch={next}"));
    let path = format!("{SEARCH}{}", next.unwrap_or_default());
    user.post(&path, &body).await.ok()["search_categories"]["room_events"].take()
}

/// The ids of what somebody finds, the newest first.
async fn finds(user: &User, term: &str) -> Vec<String> {
    let found = search(user, term, json!({ "order_by": "recent" })).await;
    let ids = ids(&found);
    assert_eq!(found["count"], ids.len());
    ids
}

fn ids(found: &Value) -> Vec<String> {
    let results = found["results"].as_array().unwrap();
    let id = |result: &Value| result["result"]["event_id"].as_str().unwrap().to_owned();
    results.iter().map(id).collect()
}

#[tokio::test]
async fn events_are_found_by_body_name_and_topic_at_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let body = json!({ "name": "Gardeners", "topic": "Growing tomatoes" });
    let room_id = alice.create_room(&body).await;
    let first = alice.send(&room_id, "Tomatoes need sun, don't they?").await;
    let second = alice
        .send(&room_id, "日本語のトマト for gardeners 🍅")
        .await;

    assert_eq!(finds(&alice, "SUN they").await, [first.as_str()]);
    assert_eq!(finds(&alice, "\"don't they\"").await, [first.as_str()]);
    assert_eq!(finds(&alice, "本語").await, [second.as_str()]);
    assert_eq!(finds(&alice, "🍅").await, [second.as_str()]);
    for nothing in [
        "tomato",
        "\"they don't\"",
        "sun moon",
        "",
        "!?",
        "語本",
        "%",
        "\u{0}",
    ] {
        assert!(finds(&alice, nothing).await.is_empty(), "{nothing}");
    }
    let of_type = async |term: &str, keys: Value| {
        let found = search(&alice, term, json!({ "keys": keys })).await;
        let kinds = found["results"].as_array().unwrap().iter();
        kinds
            .map(|r| r["result"]["type"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(finds(&alice, "tomatoes").await.len(), 2);
    assert_eq!(
        of_type("tomatoes", json!(["content.topic"])).await,
        ["m.room.topic"]
    );
    assert_eq!(
        of_type("gardeners", json!(["content.name"])).await,
        ["m.room.name"]
    );
    assert_eq!(
        of_type("gardeners", json!(["content.body"])).await,
        ["m.room.message"]
    );
    assert_eq!(of_type("gardeners", json!([])).await, [""; 0]);

    let found = search(&alice, "Sun \"Need sun\"", json!({})).await;
    assert_eq!(found["highlights"], json!(["sun", "need sun"]));
    let result = &found["results"][0];
    assert!(result["rank"].as_f64().unwrap() > 0.0 && result.get("context").is_none());
    assert_eq!(result["result"]["room_id"], room_id.as_str());
    assert_eq!(
        result["result"]["content"]["body"],
        "Tomatoes need sun, don't they?"
    );
    let nothing = json!({ "search_categories": {} });
    assert_eq!(alice.post(SEARCH, &nothing).await.ok(), nothing);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let refused = async |criteria: Value, query: &str| {
        let body = json!({ "search_categories": { "room_events": criteria } });
        let answer = alice.post(&format!("{SEARCH}{query}"), &body).await;
        let (status, errcode) = answer.refused();
        (status, errcode.to_owned())
    };
    let invalid = (400, "M_INVALID_PARAM".to_owned());
    let bad = (400, "M_BAD_JSON".to_owned());
    let term = json!({ "search_term": "x" });
    assert_eq!(refused(term.clone(), "?next_batch=nonsense").await, invalid);
    assert_eq!(refused(term, "?next_batch=WzEsMiwzXQ").await, invalid);
    assert_eq!(
        refused(json!({ "search_term": "x", "order_by": "taste" }), "").await,
        invalid
    );
    assert_eq!(
        refused(json!({ "search_term": "x", "keys": ["content.url"] }), "").await,
        invalid
    );
    let groups = json!({ "search_term": "x", "groupings": { "group_by": [{ "key": "day" }] } });
    assert_eq!(refused(groups, "").await, invalid);
    assert_eq!(refused(json!({}), "").await, bad);
    assert_eq!(refused(json!({ "search_term": 7 }), "").await, bad);
    assert_eq!(
        refused(json!({ "search_term": "x", "filter": { "limit": -1 } }), "").await,
        bad
    );
    let answer = alice.post(SEARCH, &json!({})).await;
    assert_eq!(answer.refused(), (400, "M_BAD_JSON"));
    let answer = alice.with_token("").post(SEARCH, &json!({})).await;
    assert_eq!(answer.refused(), (401, "M_MISSING_TOKEN"));
}

#[tokio::test]
async fn nobody_finds_what_they_may_not_see() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let carol = server.register("carol").await;
    let state = json!([{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }]);
    let room_id = alice
        .create_room(&json!({ "preset": "public_chat", "initial_state": state }))
        .await;
    let mut sent = vec![alice.send(&room_id, "secret one").await];
    bob.join(&room_id).await.ok();
    sent.push(alice.send(&room_id, "secret two").await);
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    sent.push(alice.send(&room_id, "secret three").await);
    sent.reverse();
    alice.invite(&room_id, &carol.user_id).await.ok();

    assert_eq!(finds(&alice, "secret").await, sent);
    assert_eq!(finds(&bob, "secret").await, sent[1..2]);
    assert!(finds(&carol, "secret").await.is_empty());
    let wanted = json!({ "filter": { "rooms": [room_id] }, "include_state": true });
    let found = search(&carol, "secret", wanted).await;
    assert!(found["results"] == json!([]) && found["count"] == 0 && found.get("state").is_none());
    bob.post(&room(&room_id, "forget"), &json!({})).await.ok();
    assert!(finds(&bob, "secret").await.is_empty());

    let ignored = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escape(&carol.user_id)
    );
    carol.join(&room_id).await.ok();
    let fourth = alice.send(&room_id, "secret four").await;
    assert_eq!(finds(&carol, "secret").await, [fourth]);
    carol
        .put(
            &ignored,
            &json!({ "ignored_users": { &alice.user_id: {} } }),
        )
        .await
        .ok();
    assert!(finds(&carol, "secret").await.is_empty());
}

/// Two people say 25 things in two rooms; the rooms, and the ids, the newest first.
async fn conversation(alice: &User, bob: &User) -> ([String; 2], Vec<String>) {
    let body = json!({ "preset": "public_chat" });
    let rooms = [
        alice.create_room(&body).await,
        alice.create_room(&body).await,
    ];
    for room_id in &rooms {
        bob.join(room_id).await.ok();
    }
    let mut sent = Vec::new();
    for number in 0..25 {
        let user = if number % 5 == 0 { bob } else { alice };
        sent.push(
            user.send(&rooms[number % 2], &format!("message {number}"))
                .await,
        );
    }
    sent.reverse();
    (rooms, sent)
}

#[tokio::test]
async fn results_come_in_pages() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (rooms, sent) = conversation(&alice, &bob).await;
    for order in ["recent", "rank"] {
        let mut read = Vec::new();
        let mut criteria = json!({ "order_by": order, "filter": { "limit": 10 } });
        loop {
            let page = search(&alice, "message", criteria.clone()).await;
            assert_eq!(page["count"], 25, "{order}");
            read.extend(ids(&page));
            match page["next_batch"].as_str() {
                Some(next) => criteria["next"] = json!(next),
                None => break,
            }
        }
        assert_eq!(read, sent, "{order}");
    }
    for (filter, count) in [
        (json!({ "senders": [bob.user_id] }), 5),
        (
            json!({ "not_senders": [bob.user_id], "not_rooms": [rooms[0]] }),
            10,
        ),
        (json!({ "types": ["m.room.topic"] }), 0),
        (json!({ "rooms": [] }), 0),
    ] {
        let found = search(
            &alice,
            "message",
            json!({ "order_by": "recent", "filter": filter }),
        );
        assert_eq!(found.await["count"], count, "{filter}");
    }
}

#[tokio::test]
async fn results_come_in_groups() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (rooms, sent) = conversation(&alice, &bob).await;
    let mut criteria = json!({
        "order_by": "recent", "filter": { "limit": 5 },
        "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
    });
    let page = search(&alice, "message", criteria.clone()).await;
    let groups = &page["groups"];
    let first = &groups["room_id"][&rooms[0]];
    assert_eq!(first["order"], 0);
    assert_eq!(first["results"], json!([sent[0], sent[2], sent[4]]));
    assert_eq!(groups["room_id"][&rooms[1]]["order"], 1);
    assert_eq!(
        groups["sender"][&alice.user_id]["results"],
        json!(sent[..4])
    );
    assert_eq!(groups["sender"][&bob.user_id]["results"], json!(sent[4..5]));
    criteria["filter"]["limit"] = json!(50);
    for (by, value, count) in [("room_id", &rooms[1], 10), ("sender", &bob.user_id, 4)] {
        criteria["next"] = groups[by][value]["next_batch"].clone();
        let rest = search(&alice, "message", criteria.clone()).await;
        let results = rest["results"].as_array().unwrap();
        assert_eq!(results.len(), count);
        assert!(
            results
                .iter()
                .all(|found| found["result"][by] == json!(value))
        );
        assert!(ids(&rest).iter().all(|id| sent[5..].contains(id)));
    }
}

#[tokio::test]
async fn what_fits_better_comes_first() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let best = alice.send(&room_id, "tea tea tea").await;
    let worst = alice
        .send(
            &room_id,
            &format!("tea {}", "and something else ".repeat(10)),
        )
        .await;
    let middle = alice.send(&room_id, "tea time").await;
    let found = search(&alice, "tea", json!({})).await;
    assert_eq!(ids(&found), [best, middle, worst]);
}

#[tokio::test]
async fn a_result_comes_with_what_is_around_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let member = room(
        &room_id,
        &format!("state/m.room.member/{}", escape(&alice.user_id)),
    );
    let named = async |name: &str| {
        let content = json!({ "membership": "join", "displayname": name });
        alice.put(&member, &content).await.ok();
    };
    named("Alice then").await;
    let mut sent = Vec::new();
    for number in 1..=7 {
        let user = if number == 6 { &bob } else { &alice };
        sent.push(
            user.send(&room_id, &format!("Message number {number}"))
                .await,
        );
    }
    named("Alice now").await;
    let context = json!({ "before_limit": 2, "after_limit": 2, "include_profile": true });
    let wanted = json!({ "event_context": context, "include_state": true });
    let found = search(&bob, "4", wanted).await;
    let around = &found["results"][0]["context"];
    let ids = |events: &Value| -> Vec<String> {
        let events = events.as_array().unwrap().iter();
        events
            .map(|event| event["event_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&around["events_before"]), [sent[2].as_str(), &sent[1]]);
    assert_eq!(ids(&around["events_after"]), [sent[4].as_str(), &sent[5]]);
    let profiles = &around["profile_info"];
    assert_eq!(profiles[&alice.user_id]["displayname"], "Alice then");
    assert!(profiles.get(&bob.user_id).is_some());
    for (dir, token, next) in [("f", "end", &sent[6]), ("b", "start", &sent[0])] {
        let from = around[token].as_str().unwrap();
        let page = room(&room_id, &format!("messages?dir={dir}&limit=1&from={from}"));
        assert_eq!(ids(&bob.get(&page).await.ok()["chunk"]), [next.as_str()]);
    }
    let state = found["state"][&room_id].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
}

#[tokio::test]
async fn of_what_is_around_comes_as_much_as_was_asked_for() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    alice.send(&room_id, "hello").await;
    let around = async |context: Value| {
        let found = search(&alice, "hello", json!({ "event_context": context })).await;
        found["results"][0]["context"].clone()
    };
    let none = around(json!({ "before_limit": 0, "after_limit": 0 })).await;
    assert!(none["events_before"] == json!([]) && none["events_after"] == json!([]));
    assert!(none.get("profile_info").is_none());
    let usual = around(json!({})).await;
    assert_eq!(usual["events_before"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn the_rooms_that_a_room_replaced_are_searched_with_it() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let other = alice.create_room(&json!({})).await;
    alice.send(&other, "message elsewhere").await;
    let old = alice.create_room(&json!({ "room_version": "10" })).await;
    let mut sent = vec![alice.send(&old, "message one").await];
    let upgraded = alice
        .post(&room(&old, "upgrade"), &json!({ "new_version": "12" }))
        .await
        .ok();
    let new = upgraded["replacement_room"].as_str().unwrap();
    sent.push(alice.send(new, "message two").await);
    let of_room = async |room_id: &str| {
        let criteria = json!({ "order_by": "recent", "filter": { "rooms": [room_id] } });
        ids(&search(&alice, "message", criteria).await)
    };
    assert_eq!(of_room(&old).await, sent[..1]);
    sent.reverse();
    assert_eq!(of_room(new).await, sent);
    assert_eq!(finds(&alice, "message").await.len(), 3);
}

#[tokio::test]
async fn every_text_is_a_query() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let marks = [
        "\"", "'", "*", "(", " AND ", "%", "\\", "\u{0}", "NEAR", "-", ":", ";--", "İ", "ß",
        "\u{202e}", "ท", "a",
    ];
    for _ in 0..60 {
        let text: String = (0..random.random_range(0..40))
            .map(|_| {
                let mark = marks.get(random.random_range(0..2 * marks.len()));
                mark.map_or_else(
                    || random.random::<char>().to_string(),
                    |mark| (*mark).to_owned(),
                )
            })
            .collect();
        let sent = alice.send(&room_id, &text).await;
        let found = search(
            &alice,
            &text.replace('"', " "),
            json!({ "order_by": "recent", "filter": { "limit": 100 } }),
        )
        .await;
        let words = text.chars().any(char::is_alphanumeric);
        assert!(!words || ids(&found).contains(&sent), "{text:?}");
    }
    let long = "word ".repeat(20_000);
    search(&alice, &long, json!({})).await;
    let everything =
        json!({ "filter": { "limit": u32::MAX }, "event_context": { "before_limit": u32::MAX } });
    search(&alice, "a", everything).await;
}
