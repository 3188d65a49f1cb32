//! Who finds whom.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

async fn search(user: &User, term: &str) -> Value {
    let body = json!({ "search_term": term });
    let path = "/_matrix/client/v3/user_directory/search";
    user.post(path, &body).await.ok()
}

fn ids(answer: &Value) -> Vec<&str> {
    let results = answer["results"].as_array().unwrap().iter();
    results
        .map(|user| user["user_id"].as_str().unwrap())
        .collect()
}

/// Searches until the directory has come so far.
async fn finds(user: &User, term: &str, expected: &[&str]) -> Value {
    let mut last = Value::Null;
    for _ in 0..100 {
        last = search(user, term).await;
        if ids(&last) == expected {
            return last;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{} finds {last} for {term}", user.user_id);
}

async fn set_name(user: &User, name: &str) {
    let path = format!(
        "/_matrix/client/v3/profile/{}/displayname",
        escape(&user.user_id)
    );
    user.put(&path, &json!({ "displayname": name })).await.ok();
}

async fn set_state(user: &User, room_id: &str, event_type: &str, content: Value) {
    let path = room(room_id, &format!("state/{event_type}/"));
    user.put(&path, &content).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_found_in_shared_rooms_and_in_open_ones() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    let (bob, carol) = (server.register("bob").await, server.register("carol").await);
    set_name(&alice, "Wonderland Queen").await;
    let private = json!({ "preset": "private_chat", "invite": [bob.user_id] });
    let private = alice.create_room(&private).await;
    finds(&bob, "wonder", &[]).await;
    bob.join(&private).await.ok();
    let found = finds(&bob, "queen WONDER", &[&alice.user_id]).await;
    assert_eq!(found["limited"], false);
    assert_eq!(found["results"][0]["display_name"], "Wonderland Queen");
    finds(&carol, "wonder", &[]).await;
    finds(&alice, "wonder", &[]).await;
    // An open room shows its members to everybody, themselves as well, for as long as it is open.
    for (event_type, open, closed) in [
        (
            "m.room.join_rules",
            json!({ "join_rule": "public" }),
            json!({ "join_rule": "invite" }),
        ),
        (
            "m.room.history_visibility",
            json!({ "history_visibility": "world_readable" }),
            json!({ "history_visibility": "shared" }),
        ),
    ] {
        set_state(&alice, &private, event_type, open).await;
        finds(&carol, "wonder", &[&alice.user_id]).await;
        finds(&alice, "wonder", &[&alice.user_id]).await;
        set_state(&alice, &private, event_type, closed).await;
        finds(&carol, "wonder", &[]).await;
    }
    // Another name is found, the old one is not; also after a restart.
    set_name(&alice, "Ada").await;
    finds(&bob, "ada", &[&alice.user_id]).await;
    finds(&bob, "wonder", &[]).await;
    server.restart().await;
    finds(&bob, "@ALICE:one.test", &[&alice.user_id]).await;
    bob.post(&room(&private, "leave"), &json!({})).await.ok();
    finds(&bob, "ada", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_come_first_and_the_rest_is_cut_off() {
    let server = TestServer::start().await;
    let anna = server.register("anna").await;
    let room_id = anna.create_room(&json!({ "preset": "public_chat" })).await;
    let mut ids = Vec::new();
    for (name, display_name) in [("x1", "Foo Anna"), ("x2", "Anna Bar"), ("x3", "Anna")] {
        let user = server.register(name).await;
        set_name(&user, display_name).await;
        user.join(&room_id).await.ok();
        ids.push(user.user_id);
    }
    let seeker = server.register("seeker").await;
    let expected = [anna.user_id.as_str(), &ids[2], &ids[1], &ids[0]];
    finds(&seeker, "anna", &expected).await;
    let path = "/_matrix/client/v3/user_directory/search";
    let body = json!({ "search_term": "anna", "limit": 2 });
    let answer = seeker.post(path, &body).await.ok();
    assert_eq!(self::ids(&answer), expected[..2]);
    assert_eq!(answer["limited"], true);
    assert_eq!(search(&seeker, " ").await["results"], json!([]));
    let nobody = User::anonymous(server.url());
    let refused = nobody.post(path, &body).await;
    assert_eq!(refused.refused(), (401, "M_MISSING_TOKEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_other_servers_are_found_while_they_share_a_room() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = a.register("carol").await;
    set_name(&alice, "Wonderland").await;
    let body = json!({ "preset": "public_chat" });
    let room_id = alice.create_room(&body).await;
    carol.join(&room_id).await.ok();
    bob.join_via(&room_id, "a.test").await.ok();
    // Those who were in the room before the server came are known as well.
    finds(&bob, "wonder", &[&alice.user_id]).await;
    finds(&bob, "carol", &[&carol.user_id]).await;
    finds(&alice, "bob", &[&bob.user_id]).await;
    bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
    finds(&bob, "carol", &[]).await;
    finds(&alice, "bob", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_rooms_are_told() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = |user_id: &str| {
        format!(
            "/_matrix/client/v1/mutual_rooms?user_id={}",
            escape(user_id)
        )
    };
    let none = json!({ "count": 0, "joined": [] });
    assert_eq!(alice.get(&path("@nobody:far.test")).await.ok(), none);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    alice.create_room(&json!({})).await;
    bob.join(&room_id).await.ok();
    let one = json!({ "count": 1, "joined": [room_id] });
    assert_eq!(alice.get(&path(&bob.user_id)).await.ok(), one);
    assert_eq!(bob.get(&path(&alice.user_id)).await.ok(), one);
    for wrong in [
        path(&alice.user_id),
        path("bob"),
        format!("{}&from=x", path(&bob.user_id)),
        "/_matrix/client/v1/mutual_rooms".to_owned(),
    ] {
        let refused = alice.get(&wrong).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"), "{wrong}");
    }
}
