//! Spaces, and what is told of rooms to those who are not in them.

use serde_json::{Value, json};
use sotto_homeserver::config::Config;
use sotto_tests::{Setup, TestServer, User, escape, room};

async fn add_child(user: &User, space: &str, child: &str, content: Value) {
    let path = room(space, &format!("state/m.space.child/{}", escape(child)));
    user.put(&path, &content).await.ok();
}

async fn make_space(user: &User, body: Value) -> String {
    let mut space = json!({ "creation_content": { "type": "m.space" } });
    for (name, value) in body.as_object().unwrap() {
        space[name] = value.clone();
    }
    user.create_room(&space).await
}

fn hierarchy_path(space: &str, query: &str) -> String {
    format!(
        "/_matrix/client/v1/rooms/{}/hierarchy{query}",
        escape(space)
    )
}

fn summary_path(room: &str, query: &str) -> String {
    format!("/_matrix/client/v1/room_summary/{}{query}", escape(room))
}

fn ids(page: &Value) -> Vec<&str> {
    let rooms = page["rooms"].as_array().unwrap().iter();
    rooms
        .map(|room| room["room_id"].as_str().unwrap())
        .collect()
}

fn public() -> Value {
    json!({ "preset": "public_chat" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_is_walked_through_in_order() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let space = make_space(&alice, public()).await;
    let inner = make_space(&alice, public()).await;
    let mut rooms = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let body = json!({ "preset": "public_chat", "name": name });
        rooms.push(alice.create_room(&body).await);
    }
    let child = |order: Value| json!({ "via": ["one.test"], "order": order });
    add_child(&alice, &space, &rooms[0], child("2".into())).await;
    add_child(&alice, &space, &inner, child("1".into())).await;
    let suggested = json!({ "via": ["one.test"], "suggested": true });
    add_child(&alice, &space, &rooms[1], suggested).await;
    add_child(&alice, &space, "!gone:one.test", child("0".into())).await;
    add_child(&alice, &inner, &rooms[2], child(Value::Null)).await;
    // A circle is walked through once, and what was taken out is none.
    add_child(&alice, &inner, &space, child(Value::Null)).await;
    add_child(&alice, &inner, &rooms[3], json!({})).await;
    let all = [&space, &inner, &rooms[2], &rooms[0], &rooms[1]];
    let page = bob.get(&hierarchy_path(&space, "")).await.ok();
    assert_eq!(ids(&page), all);
    assert_eq!(page["rooms"][0]["room_type"], "m.space");
    let state = page["rooms"][0]["children_state"].as_array().unwrap();
    assert_eq!(state.len(), 4);
    assert_eq!(state[1]["state_key"], inner.as_str());
    assert!(state[1]["origin_server_ts"].is_u64());
    assert_eq!(page["rooms"][3]["name"], "a");
    assert_eq!(page["rooms"][3]["children_state"], json!([]));
    // Pages together are the whole.
    let (mut seen, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let page = bob.get(&hierarchy_path(&space, &query)).await.ok();
        seen.extend(ids(&page).into_iter().map(ToOwned::to_owned));
        match page["next_batch"].as_str() {
            Some(next) => query = format!("?limit=2&from={next}"),
            None => break,
        }
    }
    assert_eq!(seen.iter().collect::<Vec<_>>(), all);
    let page = bob.get(&hierarchy_path(&space, "?max_depth=1")).await.ok();
    assert_eq!(ids(&page), [&space, &inner, &rooms[0], &rooms[1]]);
    let page = bob.get(&hierarchy_path(&space, "?max_depth=0")).await.ok();
    assert_eq!(ids(&page), [&space]);
    let page = bob
        .get(&hierarchy_path(&space, "?suggested_only=true"))
        .await
        .ok();
    assert_eq!(ids(&page), [&space, &rooms[1]]);
    let state = page["rooms"][0]["children_state"].as_array().unwrap();
    assert_eq!(state.len(), 1);
    for wrong in ["?from=nonsense", "?limit=0", "?from=a50_1&max_depth=1"] {
        let refused = bob.get(&hierarchy_path(&space, wrong)).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_rooms_that_one_could_enter_are_told() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let (bob, carol) = (server.register("bob").await, server.register("carol").await);
    let space = make_space(&alice, public()).await;
    bob.join(&space).await.ok();
    let rule = |content: Value| json!({ "initial_state": [{ "type": "m.room.join_rules", "content": content }] });
    let allow = json!([{ "type": "m.room_membership", "room_id": space }]);
    let restricted = rule(json!({ "join_rule": "restricted", "allow": allow }));
    let restricted = alice.create_room(&restricted).await;
    let knock = alice
        .create_room(&rule(json!({ "join_rule": "knock" })))
        .await;
    let secret = alice.create_room(&json!({})).await;
    let invited = alice
        .create_room(&json!({ "invite": [carol.user_id] }))
        .await;
    let open = json!({ "initial_state": [{ "type": "m.room.history_visibility",
        "content": { "history_visibility": "world_readable" } }] });
    let open = alice.create_room(&open).await;
    let rooms = [&restricted, &knock, &secret, &invited, &open];
    for (order, room) in rooms.iter().enumerate() {
        let content = json!({ "via": ["one.test"], "order": order.to_string() });
        add_child(&alice, &space, room, content).await;
    }
    let path = hierarchy_path(&space, "");
    let all = alice.get(&path).await.ok();
    assert_eq!(ids(&all).len(), 6);
    assert_eq!(all["rooms"][1]["join_rule"], "restricted");
    assert_eq!(all["rooms"][1]["allowed_room_ids"], json!([space]));
    let of_bob = bob.get(&path).await.ok();
    assert_eq!(ids(&of_bob), [&space, &restricted, &knock, &open]);
    let of_carol = carol.get(&path).await.ok();
    assert_eq!(ids(&of_carol), [&space, &knock, &invited, &open]);
    for hidden in [secret.as_str(), "!nowhere:one.test"] {
        let refused = bob.get(&hierarchy_path(hidden, "")).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
        let refused = bob.get(&summary_path(hidden, "")).await;
        assert_eq!(refused.refused(), (404, "M_NOT_FOUND"));
    }
    // The same for single rooms, also for those who do not say who they are.
    let nobody = User::anonymous(server.url());
    let summary = nobody.get(&summary_path(&knock, "")).await.ok();
    assert_eq!(summary["join_rule"], "knock");
    assert!(summary["membership"].is_null());
    let refused = nobody.get(&summary_path(&restricted, "")).await;
    assert_eq!(refused.refused(), (404, "M_NOT_FOUND"));
    let summary = carol.get(&summary_path(&invited, "")).await.ok();
    assert_eq!(summary["membership"], "invite");
    assert_eq!(summary["num_joined_members"], 1);
    let wrong = nobody.with_token("nonsense");
    let refused = wrong.get(&summary_path(&knock, "")).await;
    assert_eq!(refused.refused(), (401, "M_UNKNOWN_TOKEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_of_other_servers_are_asked_for() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = b.register("carol").await;
    let inner = make_space(&alice, json!({ "preset": "public_chat", "name": "Inner" })).await;
    let named = json!({ "preset": "public_chat", "name": "Far", "room_alias_name": "far" });
    let far = alice.create_room(&named).await;
    let secret = alice.create_room(&json!({})).await;
    let via = || json!({ "via": ["a.test"] });
    add_child(&alice, &inner, &far, via()).await;
    add_child(&alice, &inner, &secret, via()).await;
    let space = make_space(&bob, public()).await;
    add_child(&bob, &space, &inner, via()).await;
    let near = json!({ "via": ["b.test"], "order": "z" });
    let allow = json!([{ "type": "m.room_membership", "room_id": space }]);
    let restricted = json!({ "initial_state": [{ "type": "m.room.join_rules",
        "content": { "join_rule": "restricted", "allow": allow } }] });
    let restricted = alice.create_room(&restricted).await;
    add_child(&alice, &inner, &restricted, near).await;
    let page = carol.get(&hierarchy_path(&space, "")).await.ok();
    assert_eq!(ids(&page), [&space, &inner, &far]);
    assert_eq!(page["rooms"][2]["name"], "Far");
    assert_eq!(page["rooms"][2]["canonical_alias"], "#far:a.test");
    // A room is told of by its alias, and through servers that the client names.
    let summary = bob.get(&summary_path("#far:a.test", "")).await.ok();
    assert_eq!(summary["room_id"], far.as_str());
    assert_eq!(summary["membership"], "leave");
    let summary = bob.get(&summary_path(&far, "?via=a.test")).await.ok();
    assert_eq!(summary["name"], "Far");
    let old = format!(
        "/_matrix/client/unstable/im.nheko.summary/rooms/{}/summary?via=a.test",
        escape(&far)
    );
    assert_eq!(bob.get(&old).await.ok()["name"], "Far");
    for hidden in [&secret, &restricted] {
        let refused = bob.get(&summary_path(hidden, "?via=a.test")).await;
        assert_eq!(refused.refused(), (404, "M_NOT_FOUND"));
    }
    let nobody = User::anonymous(b.url());
    let refused = nobody.get(&summary_path(&far, "?via=a.test")).await;
    assert_eq!(refused.refused(), (404, "M_NOT_FOUND"));
}

fn with_contacts(config: &mut Config) {
    config.contact = Some("@me:one.test".to_owned());
    config.support_page = Some("https://one.test/help".to_owned());
    config.federation.delegated_to = Some(ruma::owned_server_name!("matrix.one.test:443"));
    config.turn.uris = vec!["turn:turn.one.test".to_owned()];
    config.turn.shared_secret = Some("secret".to_owned());
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_to_turn_to_and_how_to_call() {
    let plain = TestServer::start().await;
    let (support, turn) = (
        "/.well-known/matrix/support",
        "/_matrix/client/v3/voip/turnServer",
    );
    let alice = plain.register("alice").await;
    assert_eq!(alice.get(support).await.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(alice.get(turn).await.ok(), json!({}));
    let server = Setup::with(with_contacts).start().await;
    let nobody = User::anonymous(server.url());
    let expected = json!({
        "contacts": [{ "role": "m.role.admin", "matrix_id": "@me:one.test" }],
        "support_page": "https://one.test/help",
    });
    assert_eq!(nobody.get(support).await.ok(), expected);
    let delegated = nobody.get("/.well-known/matrix/server").await.ok();
    assert_eq!(delegated, json!({ "m.server": "matrix.one.test:443" }));
    assert_eq!(nobody.get(turn).await.refused(), (401, "M_MISSING_TOKEN"));
    let alice = server.register("alice").await;
    let access = alice.get(turn).await.ok();
    assert_eq!(access["uris"], json!(["turn:turn.one.test"]));
    assert_eq!(access["ttl"], 86_400);
    let username = access["username"].as_str().unwrap();
    assert!(username.ends_with(":@alice:one.test"), "{username}");
    assert!(access["password"].is_string());
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.ok();
    let fields = &capabilities["capabilities"]["m.profile_fields"];
    assert_eq!(fields["enabled"], true);
}
