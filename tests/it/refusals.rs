//! Refusals of the specification that take more than one request to come by; the others are in the tables of
//! `access.rs`.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Bridge, Draft, FakeServer, Lie, Setup, TestServer, User, escape, room};
use vodozemac::Ed25519SecretKey;

const MALLORY: &str = "@mallory:b.test";

async fn set(user: &User, room_id: &str, kind: &str, content: &Value) {
    user.put(&room(room_id, &format!("state/{kind}/")), content)
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_banned_comes_in_by_no_door() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    let mut seat = fake.peer().join(&ours, &room_id, MALLORY).await;
    let ban = json!({ "user_id": MALLORY });
    alice.post(&room(&room_id, "ban"), &ban).await.ok();
    let knock = json!({ "join_rule": "knock" });
    for (join_rule, kind, membership) in [
        (json!({ "join_rule": "public" }), "join", "join"),
        (knock, "knock", "knock"),
    ] {
        set(&alice, &room_id, "m.room.join_rules", &join_rule).await;
        let (here, who) = (escape(&room_id), escape(MALLORY));
        let path = format!("/_matrix/federation/v1/make_{kind}/{here}/{who}?ver=11");
        let refused = fake.peer().get(&ours, &path).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"), "{kind}");
        let content = json!({ "membership": membership });
        let draft = Draft::state(MALLORY, "m.room.member", MALLORY, content);
        let event = fake.peer().make(&mut seat, &draft);
        let version = if kind == "join" { "v2" } else { "v1" };
        let id = escape(event.id.as_str());
        let path = format!("/_matrix/federation/{version}/send_{kind}/{here}/{id}");
        let peer = fake.peer();
        let refused = peer.ask(&ours, Method::PUT, &path, Some(&event.json)).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_kept_out_invite_nobody() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let (alice, bob) = (ours.register("alice").await, ours.register("bob").await);
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    let mut seat = fake.peer().join(&ours, &room_id, MALLORY).await;
    let acl = json!({ "allow": ["*"], "deny": ["b.test"] });
    set(&alice, &room_id, "m.room.server_acl", &acl).await;
    let invite = json!({ "membership": "invite" });
    let draft = Draft::state(MALLORY, "m.room.member", &bob.user_id, invite);
    let event = fake.peer().make(&mut seat, &draft);
    let (here, id) = (escape(&room_id), escape(event.id.as_str()));
    let whole = json!({ "room_version": "11", "event": event.json, "invite_room_state": [] });
    for (version, body) in [("v1", &event.json), ("v2", &whole)] {
        let path = format!("/_matrix/federation/{version}/invite/{here}/{id}");
        let peer = fake.peer();
        let refused = peer.ask(&ours, Method::PUT, &path, Some(body)).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_not_know_the_version_get_no_invite() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let refused = alice.invite(&room_id, MALLORY).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    fake.lie(Lie::UnknownVersions);
    let refused = alice.invite(&room_id, MALLORY).await;
    assert_eq!(refused.refused(), (400, "M_UNSUPPORTED_ROOM_VERSION"));
}

/// Bob's server is in the room, but not in the one whose members may join.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_tell_who_may_join_say_so() {
    let servers = Setup::default().federation(3).await;
    let [a, b, c] = servers.as_slice() else {
        panic!("three servers")
    };
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let dora = c.register("dora").await;
    let club = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let inner = alice.create_room(&json!({ "invite": [bob.user_id] })).await;
    let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
    let rule = json!({ "join_rule": "restricted", "allow": allow });
    set(&alice, &inner, "m.room.join_rules", &rule).await;
    let invited = |sync: &Value| sync["rooms"]["invite"].get(&inner).cloned();
    bob.sync_until(&mut None, invited).await;
    bob.join(&inner).await.ok();
    let refused = dora.join_via(&inner, "b.test").await;
    assert_eq!(refused.refused(), (400, "M_UNABLE_TO_AUTHORISE_JOIN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_has_the_name_of_a_device() {
    let server = TestServer::start().await;
    server.register("alice").await;
    let key = Ed25519SecretKey::new().public_key().to_base64();
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "the password of alice",
        "device_id": key,
    });
    let nobody = User::anonymous(server.url());
    let session = nobody.post("/_matrix/client/v3/login", &body).await.ok();
    let alice = User::new(server.url(), &session);
    let master = json!({
        "user_id": alice.user_id,
        "usage": ["master"],
        "keys": { format!("ed25519:{key}"): key },
    });
    let path = "/_matrix/client/v3/keys/device_signing/upload";
    let refused = alice.post(path, &json!({ "master_key": master })).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    // Nor the other way around.
    let other = server.register("bob").await;
    let key = Ed25519SecretKey::new().public_key().to_base64();
    let master = json!({
        "user_id": other.user_id,
        "usage": ["master"],
        "keys": { format!("ed25519:{key}"): key },
    });
    other
        .post(path, &json!({ "master_key": master }))
        .await
        .ok();
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "bob" },
        "password": "the password of bob",
        "device_id": key,
    });
    let refused = nobody.post("/_matrix/client/v3/login", &body).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_into_an_old_backup() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v3/room_keys";
    let algorithm = "m.megolm_backup.v1.curve25519-aes-sha2";
    let backup = json!({ "algorithm": algorithm, "auth_data": { "public_key": "AAAA" } });
    let create = async || {
        let made = alice.post(&format!("{path}/version"), &backup).await.ok();
        made["version"].as_str().unwrap().to_owned()
    };
    let (old, new) = (create().await, create().await);
    for (what, body) in [
        ("keys/!r:a", json!({ "sessions": {} })),
        ("keys", json!({ "rooms": {} })),
    ] {
        let put = async |version| {
            let path = format!("{path}/{what}?version={version}");
            alice.put(&path, &body).await
        };
        let refused = put(&old).await;
        assert_eq!(refused.refused(), (403, "M_WRONG_ROOM_KEYS_VERSION"));
        assert_eq!(refused.body["current_version"], new.as_str());
        put(&new).await.ok();
    }
}

/// A service that takes what it is asked and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn services_that_do_not_answer_are_not_waited_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("url: http://{}", listener.local_addr().unwrap());
    let bridge = Bridge::start("irc", "").await;
    let file = std::fs::read_to_string(bridge.registration()).unwrap();
    let url = file.lines().find(|line| line.starts_with("url:")).unwrap();
    std::fs::write(bridge.registration(), file.replace(url, &silent)).unwrap();
    let registration = bridge.registration();
    let setup = Setup::with(move |config| {
        config.appservices = vec![registration.clone()];
        config.federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
    });
    let server = setup.start().await;
    let service = bridge.client(&server);
    let ping = "/_matrix/client/v1/appservice/irc/ping";
    let refused = service.post(ping, &json!({})).await;
    assert_eq!(refused.refused(), (504, "M_CONNECTION_TIMEOUT"));
}
