//! Profiles across servers and restarts, and who sees them.

use serde_json::{Value, json};
use sotto_homeserver::config::ProfileLookup;
use sotto_tests::{Setup, TestServer, User, escape, room};

fn path(user_id: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/profile/{}{rest}", escape(user_id))
}

async fn set_name(user: &User, name: &str) {
    let body = json!({ "displayname": name });
    user.put(&path(&user.user_id, "/displayname"), &body)
        .await
        .ok();
}

/// Waits until a room calls somebody by a name.
async fn await_name(reader: &User, room_id: &str, user_id: &str, name: &str) {
    let path = room(room_id, &format!("state/m.room.member/{}", escape(user_id)));
    for _ in 0..100 {
        if reader.get(&path).await.ok()["displayname"] == name {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{user_id} is not called {name} in {room_id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_reaches_every_room_also_after_a_restart() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mut rooms = Vec::new();
    for _ in 0..20 {
        rooms.push(alice.create_room(&json!({})).await);
    }
    set_name(&alice, "One").await;
    set_name(&alice, "Two").await;
    server.restart().await;
    for room_id in &rooms {
        await_name(&alice, room_id, &alice.user_id, "Two").await;
    }
    // What is set while nothing else happens arrives as well, and a name can be taken back.
    set_name(&alice, "Three").await;
    await_name(&alice, &rooms[0], &alice.user_id, "Three").await;
    alice
        .delete(&path(&alice.user_id, "/displayname"))
        .await
        .ok();
    for _ in 0..100 {
        let path = room(
            &rooms[19],
            &format!("state/m.room.member/{}", escape(&alice.user_id)),
        );
        if alice.get(&path).await.ok()["displayname"].is_null() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the name stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_have_proper_names_and_names_are_short() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let long = "x".repeat(2_000);
    for (field, value) in [
        ("displayname", long.as_str()),
        ("avatar_url", &long),
        ("Shouting", "x"),
        ("m.\u{e9}t\u{e9}", "x"),
    ] {
        let path = path(&alice.user_id, &format!("/{}", escape(field)));
        let refused = alice.put(&path, &json!({ field: value })).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_of_other_servers_are_asked_for_and_kept_for_a_while() {
    let (a, mut b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    set_name(&bob, "Bob").await;
    let mood = json!({ "org.example.mood": ["curious"] });
    bob.put(&path(&bob.user_id, "/org.example.mood"), &mood)
        .await
        .ok();
    let whole = alice.get(&path(&bob.user_id, "")).await.ok();
    let expected = json!({ "displayname": "Bob", "org.example.mood": ["curious"] });
    assert_eq!(whole, expected);
    let unknown = alice.get(&path("@nobody:b.test", "")).await;
    assert_eq!(unknown.refused(), (404, "M_NOT_FOUND"));
    let field = alice.get(&path(&bob.user_id, "/org.example.none")).await;
    assert_eq!(field.refused(), (404, "M_NOT_FOUND"));
    b.stop().await;
    let kept = alice.get(&path(&bob.user_id, "/displayname")).await.ok();
    assert_eq!(kept, json!({ "displayname": "Bob" }));
    a.clock().advance(61_000);
    let gone = alice.get(&path(&bob.user_id, "/displayname")).await;
    assert_eq!(gone.refused(), (502, "M_UNKNOWN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_can_be_kept_to_those_who_share_a_room() {
    let setup = Setup::with(|config| config.profiles.lookup = ProfileLookup::SharedRooms);
    let mut servers = setup.federation(2).await;
    let (b, a) = (servers.pop().unwrap(), servers.pop().unwrap());
    let alice = a.register("alice").await;
    let (bob, carol) = (a.register("bob").await, b.register("carol").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let (whole, field) = (
        path(&alice.user_id, ""),
        path(&alice.user_id, "/displayname"),
    );
    let nobody = User::anonymous(a.url());
    for refused in [
        nobody.get(&whole).await,
        nobody.get(&field).await,
        bob.get(&whole).await,
        bob.get(&path("@nobody:a.test", "")).await,
        carol.get(&whole).await,
    ] {
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    }
    alice.get(&whole).await.ok();
    bob.join(&room_id).await.ok();
    carol.join_via(&room_id, "a.test").await.ok();
    let expected: Value = json!({ "displayname": "alice" });
    assert_eq!(bob.get(&whole).await.ok(), expected);
    assert_eq!(carol.get(&field).await.ok(), expected);
}
