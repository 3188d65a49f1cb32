//! Aliases, and the list of public rooms.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

fn alias_path(alias: &str) -> String {
    format!("/_matrix/client/v3/directory/room/{}", escape(alias))
}

fn listing_path(room_id: &str) -> String {
    format!("/_matrix/client/v3/directory/list/room/{}", escape(room_id))
}

async fn set_canonical(user: &User, room_id: &str, content: Value) -> sotto_tests::Answer {
    let path = room(room_id, "state/m.room.canonical_alias/");
    user.put(&path, &content).await
}

fn ids(list: &Value) -> Vec<&str> {
    let chunk = list["chunk"].as_array().unwrap().iter();
    chunk
        .map(|room| room["room_id"].as_str().unwrap())
        .collect()
}

/// A server with somebody who has a public room that somebody else is in, and a third person.
async fn three(server: &TestServer) -> (User, User, User, String) {
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let carol = server.register("carol").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    (alice, bob, carol, room_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn members_make_aliases() {
    let server = TestServer::start().await;
    let (alice, bob, carol, room_id) = three(&server).await;
    let (alias, body) = ("#☕:one.test", json!({ "room_id": room_id }));
    let path = alias_path(alias);
    assert_eq!(alice.get(&path).await.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(
        carol.put(&path, &body).await.refused(),
        (403, "M_FORBIDDEN")
    );
    bob.put(&path, &body).await.ok();
    // It is not moved, also not by those who could make it.
    assert_eq!(alice.put(&path, &body).await.refused(), (409, "M_UNKNOWN"));
    let found = User::anonymous(server.url()).get(&path).await.ok();
    assert_eq!(
        found,
        json!({ "room_id": room_id, "servers": ["one.test"] })
    );
    for wrong in ["#x:other.test", "#a b:one.test", "#:one.test"] {
        let refused = bob.put(&alias_path(wrong), &body).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"), "{wrong}");
    }
    assert_eq!(carol.join(alias).await.ok()["room_id"], room_id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_are_listed_for_members_and_where_all_may_read() {
    let server = TestServer::start().await;
    let (alice, bob, carol, room_id) = three(&server).await;
    let list = room(&room_id, "aliases");
    assert_eq!(bob.get(&list).await.ok(), json!({ "aliases": [] }));
    let body = json!({ "room_id": room_id });
    alice.put(&alias_path("#b:one.test"), &body).await.ok();
    alice.put(&alias_path("#a:one.test"), &body).await.ok();
    let both = json!({ "aliases": ["#a:one.test", "#b:one.test"] });
    assert_eq!(bob.get(&list).await.ok(), both);
    assert_eq!(carol.get(&list).await.refused(), (403, "M_FORBIDDEN"));
    let open = json!({ "history_visibility": "world_readable" });
    let path = room(&room_id, "state/m.room.history_visibility/");
    alice.put(&path, &open).await.ok();
    assert_eq!(carol.get(&list).await.ok(), both);
    let nowhere = room("!nowhere:one.test", "aliases");
    assert_eq!(carol.get(&nowhere).await.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_are_removed_by_their_makers_and_by_those_with_power() {
    let server = TestServer::start().await;
    let (alice, bob, carol, room_id) = three(&server).await;
    let body = json!({ "room_id": room_id });
    let (of_bob, of_alice) = (alias_path("#bob:one.test"), alias_path("#alice:one.test"));
    bob.put(&of_bob, &body).await.ok();
    alice.put(&of_alice, &body).await.ok();
    for user in [&carol, &bob] {
        assert_eq!(user.delete(&of_alice).await.refused().0, 403);
    }
    bob.delete(&of_bob).await.ok();
    assert_eq!(bob.delete(&of_bob).await.refused(), (404, "M_NOT_FOUND"));
    // Power over the name of the room is power over its aliases, and the room forgets what it loses.
    bob.put(&of_bob, &body).await.ok();
    let named =
        json!({ "alias": "#bob:one.test", "alt_aliases": ["#alice:one.test", "#bob:one.test"] });
    set_canonical(&alice, &room_id, named).await.ok();
    alice.delete(&of_bob).await.ok();
    let path = room(&room_id, "state/m.room.canonical_alias/");
    let left = json!({ "alt_aliases": ["#alice:one.test"] });
    assert_eq!(alice.get(&path).await.ok(), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_names_only_aliases_that_lead_to_it() {
    let server = TestServer::start().await;
    let (alice, bob, _, room_id) = three(&server).await;
    let other = json!({ "room_alias_name": "other" });
    alice.create_room(&other).await;
    let body = json!({ "room_id": room_id });
    alice.put(&alias_path("#own:one.test"), &body).await.ok();
    let good = json!({ "alias": "#own:one.test", "alt_aliases": ["#own:one.test"] });
    set_canonical(&alice, &room_id, good.clone()).await.ok();
    for (content, errcode) in [
        (json!({ "alias": "#none:one.test" }), "M_BAD_ALIAS"),
        (json!({ "alias": "#none:nowhere.test" }), "M_BAD_ALIAS"),
        (json!({ "alt_aliases": ["#other:one.test"] }), "M_BAD_ALIAS"),
        (json!({ "alias": "%own:one.test" }), "M_INVALID_PARAM"),
        (json!({ "alt_aliases": ["own"] }), "M_INVALID_PARAM"),
        (json!({ "alt_aliases": [1] }), "M_INVALID_PARAM"),
        (json!({ "alias": {} }), "M_INVALID_PARAM"),
    ] {
        let refused = set_canonical(&alice, &room_id, content.clone()).await;
        assert_eq!(refused.refused(), (400, errcode), "{content}");
    }
    let refused = set_canonical(&bob, &room_id, json!({})).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    // What it names already may stay, even if it leads nowhere by now.
    alice.delete(&alias_path("#own:one.test")).await.ok();
    set_canonical(&alice, &room_id, json!({})).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_is_made_with_an_alias() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let body = json!({ "room_alias_name": "tea", "visibility": "public" });
    let room_id = alice.create_room(&body).await;
    let found = alice.get(&alias_path("#tea:one.test")).await.ok();
    assert_eq!(found["room_id"], room_id.as_str());
    let again = alice.post("/_matrix/client/v3/createRoom", &body).await;
    assert_eq!(again.refused(), (400, "M_ROOM_IN_USE"));
    assert_eq!(
        alice.get(&listing_path(&room_id)).await.ok(),
        json!({ "visibility": "public" })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_listed_by_those_with_power() {
    let server = TestServer::start().await;
    let (alice, bob, carol, room_id) = three(&server).await;
    let path = listing_path(&room_id);
    let (public, private) = (
        json!({ "visibility": "public" }),
        json!({ "visibility": "private" }),
    );
    let nobody = User::anonymous(server.url());
    assert_eq!(nobody.get(&path).await.ok(), private);
    for user in [&bob, &carol] {
        let refused = user.put(&path, &public).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    }
    alice.put(&path, &public).await.ok();
    assert_eq!(nobody.get(&path).await.ok(), public);
    let list = nobody.get("/_matrix/client/v3/publicRooms").await.ok();
    assert_eq!(ids(&list), [room_id.as_str()]);
    assert_eq!(list["chunk"][0]["num_joined_members"], 2);
    assert_eq!(list["total_room_count_estimate"], 1);
    // A room that nobody can enter any more is not shown.
    let join_rules = room(&room_id, "state/m.room.join_rules/");
    let closed = json!({ "join_rule": "invite" });
    alice.put(&join_rules, &closed).await.ok();
    let list = nobody.get("/_matrix/client/v3/publicRooms").await.ok();
    assert!(ids(&list).is_empty());
    alice.put(&path, &private).await.ok();
    assert_eq!(nobody.get(&path).await.ok(), private);
    let odd = alice.put(&path, &json!({ "visibility": "odd" })).await;
    assert_eq!(odd.refused(), (400, "M_INVALID_PARAM"));
    let nowhere = listing_path("!nowhere:one.test");
    assert_eq!(nobody.get(&nowhere).await.refused(), (404, "M_NOT_FOUND"));
    let refused = alice.put(&nowhere, &public).await;
    assert_eq!(refused.refused(), (404, "M_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_searched_and_read_in_pages() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let list_path = "/_matrix/client/v3/publicRooms";
    for n in 0..5 {
        let body = json!({ "visibility": "public", "name": format!("Room {n}") });
        alice.create_room(&body).await;
    }
    let wombles = json!({ "visibility": "public", "name": "Other", "topic": "About Wombles",
        "creation_content": { "type": "m.space" } });
    let wombles = alice.create_room(&wombles).await;
    let search = |filter: Value| alice_search(&alice, filter);
    let found = search(json!({ "generic_search_term": "wombLES" })).await;
    assert_eq!(ids(&found), [wombles.as_str()]);
    assert_eq!(found["chunk"][0]["room_type"], "m.space");
    assert_eq!(found["total_room_count_estimate"], 6);
    let found = search(json!({ "room_types": ["m.space"] })).await;
    assert_eq!(ids(&found), [wombles.as_str()]);
    let found = search(json!({ "room_types": [null], "generic_search_term": "room" })).await;
    assert_eq!(ids(&found).len(), 5);
    // Forwards and back.
    let (mut seen, mut since) = (Vec::new(), Value::Null);
    let mut pages = 0;
    loop {
        let mut body = json!({ "limit": 4 });
        if !since.is_null() {
            body["since"] = since;
        }
        let page = alice.post(list_path, &body).await.ok();
        seen.extend(ids(&page).into_iter().map(ToOwned::to_owned));
        pages += 1;
        since = page["next_batch"].clone();
        if since.is_null() {
            let back = json!({ "limit": 4, "since": page["prev_batch"] });
            let back = alice.post(list_path, &back).await.ok();
            assert_eq!(ids(&back), seen[..4]);
            break;
        }
    }
    assert_eq!((pages, seen.len()), (2, 6));
    let wrong = alice.get(&format!("{list_path}?since=nonsense")).await;
    assert_eq!(wrong.refused(), (400, "M_INVALID_PARAM"));
    let nobody = User::anonymous(server.url());
    let refused = nobody.post(list_path, &json!({})).await;
    assert_eq!(refused.refused(), (401, "M_MISSING_TOKEN"));
}

async fn alice_search(alice: &User, filter: Value) -> Value {
    let body = json!({ "filter": filter });
    let answer = alice.post("/_matrix/client/v3/publicRooms", &body).await;
    answer.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_ask_for_aliases_and_lists() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let body = json!({ "preset": "public_chat", "visibility": "public", "room_alias_name": "☕",
        "name": "Coffee" });
    let room_id = alice.create_room(&body).await;
    let found = bob.get(&alias_path("#☕:a.test")).await.ok();
    assert_eq!(found, json!({ "room_id": room_id, "servers": ["a.test"] }));
    let list = bob
        .get("/_matrix/client/v3/publicRooms?server=a.test&limit=5")
        .await
        .ok();
    assert_eq!(ids(&list), [room_id.as_str()]);
    let search = |term: &str| json!({ "filter": { "generic_search_term": term } });
    let path = "/_matrix/client/v3/publicRooms?server=a.test";
    let found = bob.post(path, &search("coffee")).await.ok();
    assert_eq!(found["chunk"][0]["name"], "Coffee");
    assert!(ids(&bob.post(path, &search("tea")).await.ok()).is_empty());
    // The own name is the own list, and one that cannot be reached is an error.
    let own = bob
        .get("/_matrix/client/v3/publicRooms?server=b.test")
        .await;
    assert!(ids(&own.ok()).is_empty());
    let gone = bob
        .get("/_matrix/client/v3/publicRooms?server=c.test")
        .await;
    assert_eq!(gone.refused(), (502, "M_UNKNOWN"));
    bob.join("#☕:a.test").await.ok();
    let found = alice.get(&alias_path("#☕:a.test")).await.ok();
    assert_eq!(found["servers"], json!(["a.test", "b.test"]));
    // A room may be called by the alias of another server.
    let other = json!({ "preset": "public_chat", "room_alias_name": "tea" });
    bob.create_room(&other).await;
    let named = json!({ "alias": "#☕:a.test", "alt_aliases": ["#tea:b.test"] });
    let refused = set_canonical(&alice, &room_id, named).await;
    assert_eq!(refused.refused(), (400, "M_BAD_ALIAS"));
}
