//! Simplified sliding sync: windows over the list of rooms, subscriptions, extensions, and what a
//! connection remembers.

use serde_json::{Value, json};
use sotto_tests::{Answer, TestServer, User, escape, room};

/// A client with one connection.
struct Client {
    user: User,
    pos: Option<String>,
    lists: Value,
    subscriptions: Value,
    extensions: Value,
}

impl Client {
    fn new(user: &User) -> Self {
        Self {
            user: user.clone(),
            pos: None,
            lists: json!({}),
            subscriptions: json!({}),
            extensions: json!({}),
        }
    }

    /// A client that looks at the first rooms of one list.
    fn list(user: &User, last: usize, limit: usize, required: &Value) -> Self {
        let all = json!({ "ranges": [[0, last]], "timeline_limit": limit,
            "required_state": required });
        Self {
            lists: json!({ "all": all }),
            ..Self::new(user)
        }
    }

    async fn ask(&self, timeout: u64) -> Answer {
        let pos = self.pos.as_ref().map(|pos| format!("&pos={}", escape(pos)));
        let path = format!(
            "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout={timeout}{}",
            pos.unwrap_or_default()
        );
        let body = json!({ "conn_id": "test", "lists": self.lists,
            "room_subscriptions": self.subscriptions, "extensions": self.extensions });
        self.user.post(&path, &body).await
    }

    /// Asks and goes on from the answer.
    async fn next(&mut self, timeout: u64) -> Value {
        let answer = self.ask(timeout).await.ok();
        self.pos = answer["pos"].as_str().map(ToOwned::to_owned);
        answer
    }
}

fn bodies(room: &Value) -> Vec<&str> {
    let events = room["timeline"].as_array().into_iter().flatten();
    events
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

/// The types and state keys of the required state.
fn state(room: &Value) -> Vec<(&str, &str)> {
    let events = room["required_state"].as_array().into_iter().flatten();
    let mut keys: Vec<_> = events
        .map(|e| {
            (
                e["type"].as_str().unwrap(),
                e["state_key"].as_str().unwrap(),
            )
        })
        .collect();
    keys.sort_unstable();
    keys
}

async fn named(user: &User, name: &str) -> String {
    let body = json!({ "name": name, "preset": "public_chat" });
    user.create_room(&body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_over_the_rooms() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let versions = alice.get("/_matrix/client/versions").await.ok();
    let flag = &versions["unstable_features"]["org.matrix.simplified_msc3575"];
    assert_eq!(*flag, true);
    let (a, b, c) = (
        named(&alice, "A").await,
        named(&alice, "B").await,
        named(&alice, "C").await,
    );
    alice.send(&a, "one").await;
    let mut client = Client::list(&alice, 1, 1, &json!([["m.room.name", ""]]));
    let first = client.next(0).await;
    assert_eq!(first["lists"]["all"]["count"], 3);
    let rooms = first["rooms"].as_object().unwrap();
    // The one that was written in last, and the newest.
    assert_eq!(rooms.len(), 2);
    let told = &rooms[&a];
    assert_eq!(told["initial"], true);
    assert_eq!(told["name"], "A");
    assert_eq!(told["limited"], true);
    assert_eq!(told["joined_count"], 1);
    assert_eq!(told["num_live"], 0);
    assert_eq!(bodies(told), ["one"]);
    assert_eq!(state(told), [("m.room.name", "")]);
    assert!(rooms[&a]["bump_stamp"].as_u64() > rooms[&c]["bump_stamp"].as_u64());
    let page = format!(
        "messages?dir=b&limit=1&from={}",
        told["prev_batch"].as_str().unwrap()
    );
    let page = alice.get(&room(&a, &page)).await.ok();
    assert_eq!(page["chunk"].as_array().unwrap().len(), 1);
    assert!(page["chunk"][0]["content"]["body"].is_null());
    // Nothing is repeated; what comes is told as it comes, and moves a room into the window.
    assert!(client.next(0).await["rooms"].is_null());
    let (live, _) = tokio::join!(client.next(10_000), alice.send(&a, "two"));
    assert_eq!(bodies(&live["rooms"][&a]), ["two"]);
    assert!(live["rooms"][&a]["initial"].is_null());
    assert_eq!(live["rooms"][&a]["num_live"], 1);
    alice.send(&b, "three").await;
    let moved = client.next(0).await;
    assert_eq!(moved["rooms"][&b]["initial"], true);
    assert_eq!(bodies(&moved["rooms"][&b]), ["three"]);
    // What does not move up a room is told where it is.
    let topic = json!({ "topic": "Rivers" });
    alice
        .put(&room(&c, "state/m.room.topic/"), &topic)
        .await
        .ok();
    assert!(client.next(0).await["rooms"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_loses_and_repeats_nothing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let (a, b) = (named(&alice, "A").await, named(&alice, "B").await);
    let mut client = Client::list(&alice, 0, 5, &json!([["m.room.topic", ""]]));
    client.next(0).await;
    let topic = json!({ "topic": "Rivers" });
    alice
        .put(&room(&b, "state/m.room.topic/"), &topic)
        .await
        .ok();
    alice.send(&a, "one").await;
    // A is in sight now for the first time, and B is not any more.
    let lost = client.ask(0).await.ok();
    assert_eq!(lost["rooms"][&a]["initial"], true);
    let again = client.next(0).await;
    assert_eq!(again["rooms"], lost["rooms"]);
    assert!(client.next(0).await["rooms"].is_null());
    alice.send(&a, "two").await;
    let lost = client.ask(0).await.ok();
    assert_eq!(bodies(&lost["rooms"][&a]), ["two"]);
    let again = client.next(0).await;
    assert_eq!(bodies(&again["rooms"][&a]), ["two"]);
    // B comes into sight again with all that happened there since.
    alice.send(&b, "three").await;
    let back = client.next(0).await;
    assert!(back["rooms"][&b]["initial"].is_null());
    assert_eq!(bodies(&back["rooms"][&b]), ["three"]);
    assert_eq!(state(&back["rooms"][&b]), [("m.room.topic", "")]);
    // A client whose request was overtaken by its own repetition goes on from either reply.
    alice.send(&a, "four").await;
    let (x, y) = (client.ask(0).await.ok(), client.ask(0).await.ok());
    alice.send(&a, "five").await;
    for pos in [x, y] {
        client.pos = pos["pos"].as_str().map(ToOwned::to_owned);
        let next = client.ask(0).await.ok();
        assert_eq!(bodies(&next["rooms"][&a]), ["five"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_position_begins_anew() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    named(&alice, "A").await;
    let mut client = Client::list(&alice, 9, 1, &json!([]));
    client.next(0).await;
    let unknown = (400, "M_UNKNOWN_POS");
    let known = client.pos.clone();
    for pos in ["nonsense", "1/2", "99999999/abc", ""] {
        client.pos = Some(pos.to_owned());
        assert_eq!(client.ask(0).await.refused(), unknown);
    }
    let mut other = Client::list(&bob, 9, 1, &json!([]));
    other.pos.clone_from(&known);
    assert_eq!(other.ask(0).await.refused(), unknown);
    client.pos = known;
    assert!(client.next(0).await["rooms"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_tells_more_of_a_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let a = named(&alice, "A").await;
    bob.join(&a).await.ok();
    for n in 0..9 {
        bob.send(&a, &format!("{n}")).await;
    }
    let mut client = Client::list(&alice, 9, 1, &json!([["m.room.name", ""]]));
    client.next(0).await;
    client.subscriptions = json!({ &a: { "timeline_limit": 4, "required_state": [
        ["m.room.name", ""], ["m.room.create", ""], ["m.room.member", "$ME"],
        ["m.room.member", "$LAZY"]] } });
    let more = client.next(0).await;
    let told = &more["rooms"][&a];
    assert_eq!(bodies(told), ["5", "6", "7", "8"]);
    assert!(told["initial"].is_null());
    assert_eq!(told["num_live"], 0);
    let members = [
        ("m.room.create", ""),
        ("m.room.member", alice.user_id.as_str()),
        ("m.room.member", bob.user_id.as_str()),
        ("m.room.name", ""),
    ];
    assert_eq!(state(told), members);
    // Who is known is not told again; who was not is.
    bob.send(&a, "nine").await;
    assert!(state(&client.next(0).await["rooms"][&a]).is_empty());
    let carol = server.register("carol").await;
    carol.join(&a).await.ok();
    carol.send(&a, "ten").await;
    let told = client.next(0).await;
    let carols = [("m.room.member", carol.user_id.as_str())];
    assert_eq!(state(&told["rooms"][&a]), carols);
    assert_eq!(told["rooms"][&a]["joined_count"], 3);
    // Back in the list, and subscribed again: what changed meanwhile is told.
    let subscriptions = client.subscriptions.take();
    client.subscriptions = json!({});
    let name = json!({ "membership": "join", "displayname": "Robert" });
    let member = format!("state/m.room.member/{}", escape(&bob.user_id));
    bob.put(&room(&a, &member), &name).await.ok();
    bob.send(&a, "eleven").await;
    client.next(0).await;
    client.subscriptions = subscriptions;
    let told = client.next(0).await;
    let robert = told["rooms"][&a]["required_state"]
        .as_array()
        .unwrap()
        .iter();
    let robert: Vec<_> = robert
        .filter(|event| event["content"]["displayname"] == "Robert")
        .collect();
    assert_eq!(robert.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn invited_joined_left() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "invite": [bob.user_id], "name": "Attic" });
    let a = alice.create_room(&body).await;
    let mut client = Client::list(
        &bob,
        9,
        5,
        &json!([["m.room.name", ""], ["m.room.member", "$ME"]]),
    );
    let invited = client.next(0).await;
    assert_eq!(invited["lists"]["all"]["count"], 1);
    let stripped = invited["rooms"][&a]["invite_state"].as_array().unwrap();
    assert!(
        stripped
            .iter()
            .any(|event| event["content"]["name"] == "Attic")
    );
    assert!(invited["rooms"][&a]["timeline"].is_null());
    assert!(client.next(0).await["rooms"].is_null());
    bob.join(&a).await.ok();
    let joined = client.next(0).await;
    assert_eq!(joined["rooms"][&a]["initial"], true);
    assert_eq!(joined["rooms"][&a]["name"], "Attic");
    alice.send(&a, "heard").await;
    let kick = json!({ "user_id": bob.user_id });
    alice.post(&room(&a, "kick"), &kick).await.ok();
    let name = json!({ "name": "secret" });
    alice.put(&room(&a, "state/m.room.name/"), &name).await.ok();
    alice.send(&a, "unheard").await;
    let left = client.next(0).await;
    let told = &left["rooms"][&a];
    assert_eq!(bodies(told), ["heard"]);
    assert_eq!(state(told), [("m.room.member", bob.user_id.as_str())]);
    assert!(!left.to_string().contains("secret"));
    let after = client.next(0).await;
    assert!(after["rooms"].is_null());
    assert_eq!(after["lists"]["all"]["count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let plain = named(&alice, "Plain").await;
    let space = json!({ "creation_content": { "type": "m.space" } });
    let space = alice.create_room(&space).await;
    let secret = json!({ "initial_state": [{ "type": "m.room.encryption",
        "content": { "algorithm": "m.megolm.v1.aes-sha2" } }] });
    let secret = alice.create_room(&secret).await;
    let invite = bob.create_room(&json!({ "invite": [alice.user_id] })).await;
    let direct = format!(
        "/_matrix/client/v3/user/{}/account_data/m.direct",
        escape(&alice.user_id)
    );
    let content = json!({ bob.user_id.as_str(): [secret] });
    alice.put(&direct, &content).await.ok();
    for (filter, expected) in [
        (json!({ "is_dm": true }), vec![&secret]),
        (json!({ "is_encrypted": true }), vec![&secret]),
        (json!({ "is_invite": true }), vec![&invite]),
        (json!({ "room_types": ["m.space"] }), vec![&space]),
        (
            json!({ "not_room_types": ["m.space"] }),
            vec![&plain, &secret, &invite],
        ),
        (
            json!({ "is_invite": false, "room_types": [null] }),
            vec![&plain, &secret],
        ),
    ] {
        let mut client = Client::list(&alice, 9, 1, &json!([]));
        client.lists["all"]["filters"] = filter.clone();
        let answer = client.next(0).await;
        let found = answer["rooms"].as_object().unwrap();
        assert_eq!(found.len(), expected.len(), "{filter}");
        assert!(
            expected.iter().all(|room_id| found.contains_key(*room_id)),
            "{filter}"
        );
        assert_eq!(answer["lists"]["all"]["count"], expected.len());
        if found.contains_key(&secret) {
            assert_eq!(found[&secret]["is_dm"], true);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_tell_the_rest() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let a = named(&alice, "A").await;
    bob.join(&a).await.ok();
    let sent = bob.send(&a, "hello").await;
    let mut client = Client::list(&alice, 9, 5, &json!([]));
    client.extensions = json!({ "to_device": { "enabled": true }, "e2ee": { "enabled": true },
        "account_data": { "enabled": true }, "receipts": { "enabled": true },
        "typing": { "enabled": true } });
    let message = |text: &str| {
        let devices = json!({ alice.device_id.as_str(): { "text": text } });
        json!({ "messages": { alice.user_id.as_str(): devices } })
    };
    let to_device = |txn: &str| format!("/_matrix/client/v3/sendToDevice/org.example.a/{txn}");
    bob.put(&to_device("1"), &message("one")).await.ok();
    let first = client.next(0).await["extensions"].clone();
    let texts = |extensions: &Value| -> Vec<String> {
        let events = extensions["to_device"]["events"].as_array();
        let events = events.into_iter().flatten();
        events
            .map(|e| e["content"]["text"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(texts(&first), ["one"]);
    assert!(first["e2ee"]["device_one_time_keys_count"].is_object());
    assert!(
        first["account_data"]["global"]
            .to_string()
            .contains("m.push_rules")
    );
    // Without the token of the extension the message is not confirmed.
    assert_eq!(texts(&client.next(0).await["extensions"]), ["one"]);
    client.extensions["to_device"]["since"] = first["to_device"]["next_batch"].clone();
    assert!(texts(&client.next(0).await["extensions"]).is_empty());
    let tag = format!(
        "/_matrix/client/v3/user/{}/rooms/{}/tags/m.favourite",
        escape(&alice.user_id),
        escape(&a)
    );
    alice.put(&tag, &json!({ "order": 0.5 })).await.ok();
    let receipt = room(&a, &format!("receipt/m.read/{}", escape(&sent)));
    bob.post(&receipt, &json!({})).await.ok();
    let typing = room(&a, &format!("typing/{}", escape(&bob.user_id)));
    bob.put(&typing, &json!({ "typing": true, "timeout": 30_000 }))
        .await
        .ok();
    bob.put(&to_device("2"), &message("two")).await.ok();
    let told = client.next(0).await["extensions"].clone();
    assert_eq!(texts(&told), ["two"]);
    assert_eq!(told["account_data"]["rooms"][&a][0]["type"], "m.tag");
    assert!(told["receipts"]["rooms"][&a]["content"][&sent].is_object());
    let typists = &told["typing"]["rooms"][&a]["content"]["user_ids"];
    assert_eq!(*typists, json!([bob.user_id]));
    client.extensions["to_device"]["since"] = told["to_device"]["next_batch"].clone();
    let quiet = client.next(0).await["extensions"].clone();
    for name in ["account_data", "receipts", "typing"] {
        assert!(quiet[name].is_null(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_wait_until_a_room_is_in_sight() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let a = named(&alice, "A").await;
    bob.join(&a).await.ok();
    let mut client = Client::list(&alice, 9, 5, &json!([]));
    client.extensions = json!({ "account_data": { "enabled": true },
        "receipts": { "enabled": true } });
    let tag = format!(
        "/_matrix/client/v3/user/{}/rooms/{}/tags/m.favourite",
        escape(&alice.user_id),
        escape(&a)
    );
    alice.put(&tag, &json!({ "order": 0.5 })).await.ok();
    let first = client.next(0).await;
    let data = &first["extensions"]["account_data"]["rooms"][&a];
    assert_eq!(data[0]["type"], "m.tag");
    // What happens out of sight is told when the room comes into sight.
    client.lists["all"]["ranges"] = json!([]);
    alice.delete(&tag).await.ok();
    let again = bob.send(&a, "again").await;
    let receipt = room(&a, &format!("receipt/m.read/{}", escape(&again)));
    bob.post(&receipt, &json!({})).await.ok();
    let hidden = client.next(0).await["extensions"].clone();
    assert!(hidden["receipts"].is_null() && hidden["account_data"].is_null());
    client.lists["all"]["ranges"] = json!([[0, 9]]);
    let told = client.next(0).await["extensions"].clone();
    assert!(told["receipts"]["rooms"][&a]["content"][&again].is_object());
    assert_eq!(
        told["account_data"]["rooms"][&a][0]["content"]["tags"],
        json!({})
    );
}

#[tokio::test]
async fn reading_alone_tells_what_is_unread() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = named(&alice, "one").await;
    bob.join(&room_id).await.ok();
    let event_id = alice.send(&room_id, "hello").await;
    let mut client = Client::list(&bob, 9, 1, &json!([]));
    let told = client.next(0).await["rooms"][&room_id].clone();
    assert_eq!(told["notification_count"], 1);
    let path = room(&room_id, &format!("receipt/m.read/{}", escape(&event_id)));
    bob.post(&path, &json!({})).await.ok();
    let told = client.next(0).await["rooms"][&room_id].clone();
    assert_eq!(told["notification_count"], 0, "{told}");
    assert!(told.get("initial").is_none() && bodies(&told).is_empty());
    assert_eq!(client.next(0).await.get("rooms"), None);
}

#[tokio::test]
async fn a_declined_invite_is_told_in_the_state() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = named(&alice, "one").await;
    alice.invite(&room_id, &bob.user_id).await.ok();
    let mut client = Client::list(&bob, 9, 1, &json!([["m.room.member", "$ME"]]));
    assert!(client.next(0).await["rooms"][&room_id]["invite_state"].is_array());
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    let told = client.next(0).await["rooms"][&room_id].clone();
    assert_eq!(
        told["required_state"][0]["content"]["membership"], "leave",
        "{told}"
    );
}
