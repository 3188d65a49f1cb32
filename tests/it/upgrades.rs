//! Rooms that are replaced by rooms of other versions.

use std::time::Duration;

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};
use sqlx::{AnyConnection, Connection};

async fn upgrade(user: &User, room_id: &str, version: &str) -> String {
    let body = json!({ "new_version": version });
    let answer = user.post(&room(room_id, "upgrade"), &body).await.ok();
    answer["replacement_room"].as_str().unwrap().to_owned()
}

async fn state(user: &User, room_id: &str, kind: &str) -> Value {
    user.get(&room(room_id, &format!("state/{kind}/")))
        .await
        .ok()
}

async fn set(user: &User, room_id: &str, kind: &str, content: &Value) {
    let path = room(room_id, &format!("state/{kind}/"));
    user.put(&path, content).await.ok();
}

/// State of which nothing may be lost.
fn furniture() -> Vec<(&'static str, Value)> {
    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    let acl = json!({ "allow": ["*"], "deny": ["evil.example"] });
    let visibility = json!({ "history_visibility": "joined" });
    vec![
        ("m.room.topic", json!({ "topic": "Rivers" })),
        ("m.room.name", json!({ "name": "Boats" })),
        (
            "m.room.guest_access",
            json!({ "guest_access": "forbidden" }),
        ),
        ("m.room.history_visibility", visibility),
        ("m.room.avatar", json!({ "url": "mxc://a/b" })),
        ("m.room.encryption", encryption),
        ("m.room.server_acl", acl),
    ]
}

fn listed(room_id: &str) -> String {
    format!("/_matrix/client/v3/directory/list/room/{room_id}")
}

/// The new room has what the old one had.
async fn moved(alice: &User, old: &str, new: &str, version: &str) {
    let create = state(alice, new, "m.room.create").await;
    assert_eq!(create["room_version"], version);
    assert_eq!(create["predecessor"]["room_id"], old);
    if version != "12" {
        let end = create["predecessor"]["event_id"].as_str().unwrap();
        let path = room(old, &format!("event/{}", escape(end)));
        assert_eq!(alice.get(&path).await.ok()["type"], "m.room.tombstone");
    }
    for (kind, content) in furniture() {
        let found = state(alice, new, kind).await;
        assert_eq!(found, content, "{kind} in {version}");
    }
    let rule = state(alice, new, "m.room.join_rules").await;
    assert_eq!(rule["join_rule"], "public");
    let banned = room(new, "state/m.room.member/@mallory:elsewhere.example");
    assert_eq!(alice.get(&banned).await.ok()["membership"], "ban");
    let alias = escape("#moving:one.test");
    let alias = format!("/_matrix/client/v3/directory/room/{alias}");
    assert_eq!(alice.get(&alias).await.ok()["room_id"], new);
    let canonical = state(alice, new, "m.room.canonical_alias").await;
    assert_eq!(canonical["alias"], "#moving:one.test");
    let is_listed = alice.get(&listed(new)).await.ok();
    assert_eq!(is_listed["visibility"], "public");
}

/// The old room is closed, and its names are the new one's.
async fn closed(alice: &User, old: &str, new: &str) {
    let tombstone = state(alice, old, "m.room.tombstone").await;
    assert_eq!(tombstone["replacement_room"], new);
    let levels = state(alice, old, "m.room.power_levels").await;
    assert_eq!(levels["events_default"], 50);
    assert_eq!(levels["invite"], 50);
    let canonical = state(alice, old, "m.room.canonical_alias").await;
    assert_eq!(canonical, json!({}));
    let is_listed = alice.get(&listed(old)).await.ok();
    assert_eq!(is_listed["visibility"], "private");
}

#[tokio::test]
async fn a_room_moves_to_any_version_with_what_it_has() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "room_version": "1", "preset": "public_chat", "room_alias_name": "moving" });
    let mut old = alice.create_room(&body).await;
    for (kind, content) in furniture() {
        set(&alice, &old, kind, &content).await;
    }
    let ban = json!({ "user_id": "@mallory:elsewhere.example", "reason": "spam" });
    alice.post(&room(&old, "ban"), &ban).await.ok();
    bob.join(&old).await.ok();
    let list = json!({ "visibility": "public" });
    alice.put(&listed(&old), &list).await.ok();

    for version in ["2", "3", "5", "9", "11", "12", "6", "12"] {
        let new = upgrade(&alice, &old, version).await;
        moved(&alice, &old, &new, version).await;
        closed(&alice, &old, &new).await;

        // Alice has the power that she had, Bob none.
        alice.send(&new, "here we are").await;
        let pinned = json!({ "pinned": [] });
        set(&alice, &new, "m.room.pinned_events", &pinned).await;
        bob.join(&new).await.ok();
        let name = room(&new, "state/m.room.name/");
        let refused = bob.put(&name, &json!({ "name": "Bob's" })).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
        old = new;
    }
}

#[tokio::test]
async fn levels_are_those_of_the_old_room_in_the_end() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "room_version": "5", "preset": "public_chat" });
    let old = alice.create_room(&body).await;
    bob.join(&old).await.ok();
    let mut levels = state(&alice, &old, "m.room.power_levels").await;
    levels["users"][&bob.user_id] = json!("50");
    levels["users"]["@carol:elsewhere.example"] = json!(40);
    levels["events"]["m.room.tombstone"] = json!(50);
    levels["users_default"] = json!(7);
    set(&alice, &old, "m.room.power_levels", &levels).await;

    // A moderator upgrades the room and is a moderator again.
    let new = upgrade(&bob, &old, "6").await;
    assert_eq!(state(&bob, &new, "m.room.power_levels").await, levels);
    assert_eq!(state(&bob, &old, "m.room.power_levels").await, levels);

    // Where levels are integers, they become such; who is a creator has no level.
    let new = upgrade(&alice, &old, "12").await;
    let now = state(&alice, &new, "m.room.power_levels").await;
    let users = json!({ bob.user_id.as_str(): 50, "@carol:elsewhere.example": 40 });
    assert_eq!(now["users"], users);
    assert_eq!(now["users_default"], 7);

    // And back: creators get the power that they had.
    let back = upgrade(&alice, &new, "10").await;
    let levels = state(&alice, &back, "m.room.power_levels").await;
    assert_eq!(levels["users"][&alice.user_id], 100);
    set(&alice, &back, "m.room.power_levels", &levels).await;
}

#[tokio::test]
async fn the_old_room_is_closed_above_what_everybody_has() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let old = alice.create_room(&json!({ "room_version": "10" })).await;
    let mut levels = state(&alice, &old, "m.room.power_levels").await;
    levels["users_default"] = json!(80);
    set(&alice, &old, "m.room.power_levels", &levels).await;
    upgrade(&alice, &old, "11").await;
    let levels = state(&alice, &old, "m.room.power_levels").await;
    assert_eq!(
        (&levels["events_default"], &levels["invite"]),
        (&json!(81), &json!(81))
    );
}

#[tokio::test]
async fn creators_of_the_new_room_are_those_that_are_named() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = alice
        .create_room(&json!({ "room_version": "11", "preset": "public_chat" }))
        .await;
    let body = json!({ "new_version": "12", "additional_creators": [bob.user_id, alice.user_id] });
    let answer = alice.post(&room(&old, "upgrade"), &body).await.ok();
    let new = answer["replacement_room"].as_str().unwrap();
    let create = state(&alice, new, "m.room.create").await;
    assert_eq!(create["additional_creators"], json!([bob.user_id]));
    bob.join(new).await.ok();
    set(&bob, new, "m.room.name", &json!({ "name": "Bob's too" })).await;
    // They are not copied.
    let next = upgrade(&alice, new, "12").await;
    let create = state(&alice, &next, "m.room.create").await;
    assert_eq!(create.get("additional_creators"), None);
}

#[tokio::test]
async fn a_space_keeps_its_children_and_a_closed_room_stays_closed() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let creation = json!({ "type": "m.space", "m.federate": false });
    let old = alice
        .create_room(&json!({ "creation_content": creation, "room_version": "10" }))
        .await;
    let child = |key: &str| room(&old, &format!("state/m.space.child/{key}"));
    alice
        .put(
            &child("!one:one.test"),
            &json!({ "via": ["one.test"], "order": "a" }),
        )
        .await
        .ok();
    alice.put(&child("!gone:one.test"), &json!({})).await.ok();
    let rule = json!({ "join_rule": "knock_restricted", "allow": [] });
    set(&alice, &old, "m.room.join_rules", &rule).await;

    let new = upgrade(&alice, &old, "11").await;
    let create = state(&alice, &new, "m.room.create").await;
    assert_eq!(
        (&create["type"], &create["m.federate"]),
        (&json!("m.space"), &json!(false))
    );
    let kept = alice
        .get(&room(&new, "state/m.space.child/!one:one.test"))
        .await
        .ok();
    assert_eq!(kept, json!({ "via": ["one.test"], "order": "a" }));
    let gone = alice
        .get(&room(&new, "state/m.space.child/!gone:one.test"))
        .await;
    assert_eq!(gone.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(state(&alice, &new, "m.room.join_rules").await, rule);

    // A version that does not know the rule lets nobody in by mistake.
    let older = upgrade(&alice, &new, "6").await;
    let rule = state(&alice, &older, "m.room.join_rules").await;
    assert_eq!(rule, json!({ "join_rule": "invite" }));
}

#[tokio::test]
async fn what_users_keep_for_a_room_follows_them() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let old = alice
        .create_room(&json!({ "room_version": "10", "preset": "public_chat" }))
        .await;
    bob.join_via(&old, "a.test").await.ok();
    for user in [&alice, &bob] {
        let of_user = format!("/_matrix/client/v3/user/{}", user.user_id);
        let tag = format!("{of_user}/rooms/{old}/tags/m.favourite");
        user.put(&tag, &json!({ "order": 0.5 })).await.ok();
        let direct = json!({ "@carol:elsewhere.example": [old] });
        user.put(&format!("{of_user}/account_data/m.direct"), &direct)
            .await
            .ok();
        let rule = format!("/_matrix/client/v3/pushrules/global/room/{}", escape(&old));
        user.put(&rule, &json!({ "actions": ["notify"] }))
            .await
            .ok();
    }
    let new = upgrade(&alice, &old, "12").await;
    let replaced = |sync: &Value| {
        let events = sync["rooms"]["join"][&old]["timeline"]["events"].as_array()?;
        events
            .iter()
            .any(|event| event["type"] == "m.room.tombstone")
            .then_some(())
    };
    bob.sync_until(&mut None, replaced).await;
    bob.join_via(&new, "a.test").await.ok();
    for user in [&alice, &bob] {
        let of_user = format!("/_matrix/client/v3/user/{}", user.user_id);
        let tags = user
            .get(&format!("{of_user}/rooms/{}/tags", escape(&new)))
            .await
            .ok();
        assert_eq!(tags["tags"]["m.favourite"]["order"], 0.5);
        let direct = user
            .get(&format!("{of_user}/account_data/m.direct"))
            .await
            .ok();
        assert_eq!(direct["@carol:elsewhere.example"], json!([old, new]));
        let rule = format!("/_matrix/client/v3/pushrules/global/room/{}", escape(&new));
        assert_eq!(user.get(&rule).await.ok()["actions"], json!(["notify"]));
    }
}

/// Whoever has gone over before the old room was closed, or before that was known, gets it when it is.
#[tokio::test]
async fn what_is_closed_late_is_followed_late() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let power = json!({ "users": { &bob.user_id: 100 } });
    let body = json!({ "preset": "public_chat", "room_alias_name": "here",
        "power_level_content_override": power });
    let old = alice.create_room(&body).await;
    bob.join_via(&old, "a.test").await.ok();
    let of_bob = format!("/_matrix/client/v3/user/{}", bob.user_id);
    let tags = |room_id: &str| format!("{of_bob}/rooms/{}/tags", escape(room_id));
    let listed = |room_id: &str| {
        let room_id = escape(room_id);
        format!("/_matrix/client/v3/directory/list/room/{room_id}")
    };
    let tag = format!("{}/m.favourite", tags(&old));
    bob.put(&tag, &json!({ "order": 0.5 })).await.ok();
    let public = json!({ "visibility": "public" });
    bob.put(&listed(&old), &public).await.ok();
    let creation = json!({ "predecessor": { "room_id": old, "event_id": "$end" } });
    let body = json!({ "preset": "public_chat", "creation_content": creation });
    let new = alice.create_room(&body).await;
    bob.join_via(&new, "a.test").await.ok();
    assert_eq!(bob.get(&tags(&new)).await.ok()["tags"], json!({}));
    let end = json!({ "body": "over there", "replacement_room": new });
    set(&alice, &old, "m.room.tombstone", &end).await;
    let alias = format!(
        "/_matrix/client/v3/directory/room/{}",
        escape("#here:a.test")
    );
    let moved = async || {
        let tags = bob.get(&tags(&new)).await.ok();
        let listed = [
            bob.get(&listed(&old)).await.ok(),
            bob.get(&listed(&new)).await.ok(),
        ];
        tags["tags"]["m.favourite"]["order"] == 0.5
            && listed.map(|answer| answer["visibility"] == "public") == [false, true]
            && alice.get(&alias).await.ok()["room_id"] == new.as_str()
    };
    for _ in 0..200 {
        if moved().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not follow");
}

/// A room that only claims to replace another one gets nothing of it.
#[tokio::test]
async fn nothing_follows_to_a_room_that_the_old_one_does_not_name() {
    let server = TestServer::start().await;
    let (alice, mallory) = (
        server.register("alice").await,
        server.register("mallory").await,
    );
    let body = json!({ "preset": "public_chat", "room_alias_name": "hers" });
    let old = alice.create_room(&body).await;
    let creation = json!({ "predecessor": { "room_id": old, "event_id": "$end" } });
    let body = json!({ "preset": "public_chat", "creation_content": creation });
    let false_heir = mallory.create_room(&body).await;
    alice.join(&false_heir).await.ok();
    let alias = format!(
        "/_matrix/client/v3/directory/room/{}",
        escape("#hers:one.test")
    );
    assert_eq!(alice.get(&alias).await.ok()["room_id"], old.as_str());
}

#[tokio::test]
async fn upgrades_are_refused_for_good_reasons() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let to = |version: &str| json!({ "new_version": version });
    let path = room(&old, "upgrade");
    let unknown = alice.post(&path, &to("my_bad_version")).await;
    assert_eq!(unknown.refused(), (400, "M_UNSUPPORTED_ROOM_VERSION"));
    assert_eq!(
        bob.post(&path, &to("11")).await.refused(),
        (403, "M_FORBIDDEN")
    );
    bob.join(&old).await.ok();
    assert_eq!(
        bob.post(&path, &to("11")).await.refused(),
        (403, "M_FORBIDDEN")
    );
    let nowhere = room("!fail:unknown.example", "upgrade");
    assert_eq!(
        alice.post(&nowhere, &to("11")).await.refused(),
        (404, "M_NOT_FOUND")
    );
    let itself = json!({ "replacement_room": old });
    let sent = alice.send_event(&old, "m.room.tombstone", &itself).await;
    assert_eq!(sent.refused(), (400, "M_INVALID_PARAM"));
}

/// How far whoever follows closed rooms is, as it is written down; and that it was elsewhere.
async fn place(server: &TestServer, moved_to: Option<i64>) -> i64 {
    sqlx::any::install_default_drivers();
    let url = server.database_url();
    let mut connection = AnyConnection::connect(&url).await.unwrap();
    if let Some(position) = moved_to {
        let set = sqlx::query("UPDATE followers SET position = $1 WHERE name = 'succession'");
        set.bind(position).execute(&mut connection).await.unwrap();
    }
    let place = sqlx::query_scalar("SELECT position FROM followers WHERE name = 'succession'");
    place.fetch_one(&mut connection).await.unwrap()
}

/// What was closed shortly before the server stopped is followed when it runs again, and what was followed is not
/// followed once more.
#[tokio::test]
async fn closed_rooms_are_followed_once_over_a_restart() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&old).await.ok();
    let tags = |room_id: &str| {
        let room_id = escape(room_id);
        format!(
            "/_matrix/client/v3/user/{}/rooms/{room_id}/tags",
            bob.user_id
        )
    };
    let favourite = |room_id: &str| format!("{}/m.favourite", tags(room_id));
    bob.put(&favourite(&old), &json!({ "order": 0.5 }))
        .await
        .ok();
    let creation = json!({ "predecessor": { "room_id": old, "event_id": "$end" } });
    let body = json!({ "preset": "public_chat", "creation_content": creation });
    let new = alice.create_room(&body).await;
    bob.join(&new).await.ok();
    let before = place(&server, None).await;
    let end = json!({ "body": "over there", "replacement_room": new });
    set(&alice, &old, "m.room.tombstone", &end).await;
    let is_tagged = async || {
        let tags = bob.get(&tags(&new)).await.ok();
        tags["tags"]["m.favourite"]["order"] == 0.5
    };
    let wait = async || {
        for _ in 0..200 {
            if is_tagged().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it did not follow");
    };
    wait().await;
    // The place is written down after that; and Bob wants it otherwise in the new room.
    for _ in 0..200 {
        if place(&server, None).await > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bob.delete(&favourite(&new)).await.ok();
    server.stop().await;
    let kept = place(&server, None).await;
    assert!(kept > before, "{kept} after {before}");
    server.resume().await;
    // Whoever comes later is told of what is after the place, and so all before it was looked at.
    follows_another(&server, &alice).await;
    assert!(!is_tagged().await, "it was followed twice");
    // As if the server had stopped before the worker came to it.
    server.stop().await;
    place(&server, Some(before)).await;
    server.resume().await;
    wait().await;
}

/// Another room is closed and followed.
async fn follows_another(server: &TestServer, alice: &User) {
    let before = place(server, None).await;
    let old = alice.create_room(&json!({})).await;
    let end = json!({ "body": "over there", "replacement_room": "!nowhere:one.test" });
    set(alice, &old, "m.room.tombstone", &end).await;
    for _ in 0..200 {
        if place(server, None).await > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody follows any more");
}
