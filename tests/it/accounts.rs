//! Accounts: registration, proving again who one is, sessions and their tokens, the end of an account.

use serde_json::{Value, json};
use sotto_homeserver::config::Registration;
use sotto_tests::{Answer, Setup, TestServer, User, escape, room};

const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const REFRESH: &str = "/_matrix/client/v3/refresh";

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// What proves who somebody is.
fn password(user: &User, password: &str, session: Option<&str>) -> Value {
    let mut auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user.user_id },
        "password": password,
    });
    if let Some(session) = session {
        auth["session"] = session.into();
    }
    auth
}

fn login(name: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": password,
    })
}

async fn log_in(server: &TestServer, body: &Value) -> Answer {
    User::anonymous(server.url()).post(LOGIN, body).await
}

/// Asks, and gives the session that the server opens.
async fn challenged(user: &User, path: &str, body: &Value) -> String {
    let answer = user.post(path, body).await;
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert!(answer.body["flows"].is_array());
    assert!(answer.body["params"].is_object());
    text(&answer.body["session"])
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_remembers_what_was_asked_first() {
    let mut server = TestServer::start().await;
    let nobody = User::anonymous(server.url());
    let first = json!({
        "username": "alice",
        "password": "übersecret",
        "device_id": "xyzzy",
        "initial_device_display_name": "Phone",
    });
    let session = challenged(&nobody, REGISTER, &first).await;
    // Sessions outlive the process.
    server.restart().await;
    let second = json!({ "auth": { "type": "m.login.dummy", "session": session } });
    let answer = nobody.post(REGISTER, &second).await.ok();
    assert_eq!(answer["user_id"], "@alice:one.test");
    assert_eq!(answer["device_id"], "xyzzy");
    let alice = User::new(server.url(), &answer);
    let device = alice.get("/_matrix/client/v3/devices/xyzzy").await.ok();
    assert_eq!(device["display_name"], "Phone");
    // The answer got lost: the same again.
    let again = nobody.post(REGISTER, &second).await.ok();
    assert_eq!(again["user_id"], "@alice:one.test");
    assert!(again["access_token"].is_string());
    log_in(&server, &login("alice", "übersecret")).await.ok();
    // Without a session the name is taken.
    let third =
        json!({ "username": "alice", "password": "x", "auth": { "type": "m.login.dummy" } });
    let answer = nobody.post(REGISTER, &third).await;
    assert_eq!(answer.refused(), (400, "M_USER_IN_USE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_is_checked() {
    let server = TestServer::start().await;
    let nobody = User::anonymous(server.url());
    let dummy = json!({ "type": "m.login.dummy" });
    for (body, refusal) in [
        (
            json!({ "username": "a b", "password": "x", "auth": dummy }),
            (400, "M_INVALID_USERNAME"),
        ),
        (
            json!({ "username": "bob", "auth": dummy }),
            (400, "M_MISSING_PARAM"),
        ),
        (
            json!({ "username": "bob", "password": "", "auth": dummy }),
            (400, "M_WEAK_PASSWORD"),
        ),
        (
            json!({ "username": "bob", "password": "x".repeat(600), "auth": dummy }),
            (400, "M_INVALID_PARAM"),
        ),
        (
            json!({ "username": "bob", "password": "x", "auth": { "type": "m.login.magic" } }),
            (401, "M_UNRECOGNIZED"),
        ),
    ] {
        let answer = nobody.post(REGISTER, &body).await;
        assert_eq!(answer.refused(), refusal, "{body}");
    }
    let available = |name: &str| {
        let nobody = nobody.clone();
        let path = format!("{REGISTER}/available?username={name}");
        async move { nobody.get(&path).await }
    };
    assert_eq!(available("bob").await.ok(), json!({ "available": true }));
    let body = json!({ "username": "bob", "password": "x", "inhibit_login": true, "auth": dummy });
    let answer = nobody.post(REGISTER, &body).await.ok();
    assert_eq!(answer, json!({ "user_id": "@bob:one.test" }));
    assert_eq!(available("bob").await.refused(), (400, "M_USER_IN_USE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_with_a_token_takes_one() {
    let server = Setup::with(|config| config.registration = Registration::Token);
    let server = server.start().await;
    let nobody = User::anonymous(server.url());
    let token = server.first_registration_token().unwrap();
    let body = |name: &str, token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        json!({ "username": name, "password": "x", "auth": auth })
    };
    let answer = nobody.post(REGISTER, &body("alice", "wrong")).await;
    assert_eq!(answer.refused(), (401, "M_FORBIDDEN"));
    nobody.post(REGISTER, &body("alice", &token)).await.ok();
    let answer = nobody.post(REGISTER, &body("bob", &token)).await;
    assert_eq!(answer.refused(), (401, "M_FORBIDDEN"));
    let closed = Setup::with(|config| config.registration = Registration::Closed);
    let closed = closed.start().await;
    let answer = User::anonymous(closed.url())
        .post(REGISTER, &body("bob", &token))
        .await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_counts_for_one_thing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let (one, two) = (server.log_in("alice").await, server.log_in("alice").await);
    let device = |user: &User| format!("/_matrix/client/v3/devices/{}", user.device_id);
    let delete = async |user: &User, path: String, auth: Value| {
        let body = json!({ "auth": auth }).to_string().into_bytes();
        user.request(http::Method::DELETE, &path, Some(body)).await
    };
    let answer = delete(&alice, device(&one), Value::Null).await;
    let session = text(&answer.body["session"]);
    let wrong = password(&alice, "wrong", Some(&session));
    let answer = delete(&alice, device(&one), wrong).await;
    assert_eq!(answer.refused(), (401, "M_FORBIDDEN"));
    assert!(answer.body["completed"].is_array());
    let right = password(&alice, "the password of alice", Some(&session));
    let answer = delete(&alice, device(&two), right.clone()).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    // Nor does it for somebody else, or with the password of somebody else.
    let bob = server.register("bob").await;
    let answer = delete(&bob, device(&one), right.clone()).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    let other = password(&alice, "the password of alice", None);
    let answer = delete(&bob, device(&bob), other).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    delete(&alice, device(&one), right.clone()).await.ok();
    assert_eq!(one.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
    two.get(WHOAMI).await.ok();
    let body = json!({ "devices": [two.device_id], "auth": right });
    let path = "/_matrix/client/v3/delete_devices";
    alice.post(path, &body).await.ok();
    assert_eq!(two.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_authenticates_for_somebody_else() {
    let server = TestServer::start().await;
    let (alice, eve) = (server.register("alice").await, server.register("eve").await);
    let other = server.log_in("alice").await;
    let delete = json!({ "devices": [other.device_id] });
    let path = "/_matrix/client/v3/delete_devices";
    let with = |auth: Value| {
        let mut body = delete.clone();
        body["auth"] = auth;
        body
    };
    let wrong = with(password(&eve, "the password of eve", None));
    assert_eq!(
        alice.post(path, &wrong).await.refused(),
        (403, "M_FORBIDDEN")
    );
    other.get(WHOAMI).await.ok();
    // As clients named users before there were other ways to.
    let mut auth = password(&alice, "the password of alice", None);
    auth["user"] = alice.user_id.clone().into();
    auth.as_object_mut().unwrap().remove("identifier");
    alice.post(path, &with(auth)).await.ok();
    assert_eq!(other.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_authentication_grows_old() {
    let server = TestServer::start().await;
    let nobody = User::anonymous(server.url());
    let body = json!({ "username": "alice", "password": "x" });
    let session = challenged(&nobody, REGISTER, &body).await;
    server.clock().advance(16 * 60 * 1000);
    let late = json!({ "auth": { "session": session } });
    let other = challenged(&nobody, REGISTER, &late).await;
    assert_ne!(session, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_other_sessions() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let other = server.log_in("alice").await;
    let path = "/_matrix/client/v3/account/password";
    let change = |old: &str, new: &str, logout: bool| {
        let auth = password(&alice, old, None);
        json!({ "auth": auth, "new_password": new, "logout_devices": logout })
    };
    let old = "the password of alice";
    let answer = alice.post(path, &change("wrong", "second", true)).await;
    assert_eq!(answer.refused(), (401, "M_FORBIDDEN"));
    let answer = alice
        .with_token("")
        .post(path, &change(old, "second", true))
        .await;
    assert_eq!(answer.status, 401);
    alice.post(path, &change(old, "second", false)).await.ok();
    other.get(WHOAMI).await.ok();
    alice
        .post(path, &change("second", "third", true))
        .await
        .ok();
    alice.get(WHOAMI).await.ok();
    assert_eq!(other.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
    for refused in [old, "second"] {
        let answer = log_in(&server, &login("alice", refused)).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    }
    log_in(&server, &login("alice", "third")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_account_is_gone_for_ever() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let invited = bob.create_room(&json!({ "invite": [alice.user_id] })).await;
    let path = "/_matrix/client/v3/account/deactivate";
    let body = |word: &str| json!({ "auth": password(&alice, word, None) });
    let answer = alice.post(path, &body("wrong")).await;
    assert_eq!(answer.refused(), (401, "M_FORBIDDEN"));
    let answer = alice.post(path, &body("the password of alice")).await.ok();
    assert!(answer["id_server_unbind_result"].is_string());
    assert_eq!(alice.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
    let answer = log_in(&server, &login("alice", "the password of alice")).await;
    assert_eq!(answer.status, 403);
    let again =
        json!({ "username": "alice", "password": "x", "auth": { "type": "m.login.dummy" } });
    let answer = bob.with_token("").post(REGISTER, &again).await;
    assert_eq!(answer.refused(), (400, "M_USER_IN_USE"));
    // It leaves its rooms, and declines what it was invited to.
    for room_id in [room_id, invited] {
        let member = room(
            &room_id,
            &format!("state/m.room.member/{}", escape(&alice.user_id)),
        );
        for _ in 0..200 {
            if bob.get(&member).await.ok()["membership"] == "leave" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(bob.get(&member).await.ok()["membership"], "leave");
    }
    let keys = json!({ "device_keys": { alice.user_id.clone(): [] } });
    let found = bob.post("/_matrix/client/v3/keys/query", &keys).await.ok();
    assert!(
        found["device_keys"][&alice.user_id]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refreshed_tokens_take_the_place_of_the_old_when_they_are_used() {
    let server = TestServer::start().await;
    server.register("alice").await;
    let mut body = login("alice", "the password of alice");
    body["refresh_token"] = true.into();
    let answer = log_in(&server, &body).await.ok();
    assert_eq!(answer["expires_in_ms"], 300_000);
    let alice = User::new(server.url(), &answer);
    let nobody = User::anonymous(server.url());
    let refresh = async |token: &Value| {
        nobody
            .post(REFRESH, &json!({ "refresh_token": token }))
            .await
    };
    let lost = refresh(&answer["refresh_token"]).await.ok();
    let second = refresh(&answer["refresh_token"]).await.ok();
    assert_ne!(lost["access_token"], second["access_token"]);
    alice.get(WHOAMI).await.ok();
    let renewed = alice.with_token(&text(&second["access_token"]));
    let me = renewed.get(WHOAMI).await.ok();
    assert_eq!(me["device_id"], alice.device_id);
    // The old access token asks for another one, and not for a password.
    let answer_old = alice.get(WHOAMI).await;
    assert_eq!(answer_old.refused(), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(answer_old.body["soft_logout"], true);
    let refused = refresh(&answer["refresh_token"]).await;
    assert_eq!(refused.refused(), (401, "M_UNKNOWN_TOKEN"));
    server.clock().advance(301_000);
    let expired = renewed.get(WHOAMI).await;
    assert_eq!(expired.refused(), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(expired.body["soft_logout"], true);
    let third = refresh(&second["refresh_token"]).await.ok();
    let renewed = alice.with_token(&text(&third["access_token"]));
    renewed
        .post("/_matrix/client/v3/logout", &json!({}))
        .await
        .ok();
    let refused = refresh(&third["refresh_token"]).await;
    assert_eq!(refused.refused(), (401, "M_UNKNOWN_TOKEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_token_opens_one_session() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v1/login/get_token";
    challenged(&alice, path, &json!({})).await;
    let body = json!({ "auth": password(&alice, "the password of alice", None) });
    let answer = alice.post(path, &body).await.ok();
    let with = |token: &Value| json!({ "type": "m.login.token", "token": token });
    let session = log_in(&server, &with(&answer["login_token"])).await.ok();
    assert_eq!(session["user_id"], alice.user_id);
    assert_ne!(session["device_id"], alice.device_id);
    let answer_two = alice.post(path, &body).await.ok();
    server.clock().advance(121_000);
    for token in [
        &answer["login_token"],
        &answer_two["login_token"],
        &json!("x"),
    ] {
        let refused = log_in(&server, &with(token)).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_may_look_and_become_users() {
    let server = Setup::with(|config| config.guests = true).start().await;
    let nobody = User::anonymous(server.url());
    let answer = nobody
        .post(&format!("{REGISTER}?kind=guest"), &json!({}))
        .await
        .ok();
    let guest = User::new(server.url(), &answer);
    assert_eq!(guest.get(WHOAMI).await.ok()["is_guest"], true);
    guest.sync(None, 0).await;
    let refused = guest
        .post("/_matrix/client/v3/createRoom", &json!({}))
        .await;
    assert_eq!(refused.refused(), (403, "M_GUEST_ACCESS_FORBIDDEN"));
    let name = guest.user_id[1..].split(':').next().unwrap().to_owned();
    let body = |name: &str, token: &str| {
        json!({
            "username": name,
            "password": "x",
            "guest_access_token": token,
            "auth": { "type": "m.login.dummy" },
        })
    };
    for (name, token) in [("other", guest.token.as_str()), (&name, "wrong")] {
        let refused = nobody.post(REGISTER, &body(name, token)).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    }
    let answer = nobody.post(REGISTER, &body(&name, &guest.token)).await.ok();
    assert_eq!(answer["user_id"], guest.user_id);
    let user = User::new(server.url(), &answer);
    user.create_room(&json!({})).await;
    assert!(user.get(WHOAMI).await.ok()["is_guest"].is_null());
    let none = TestServer::start().await;
    let nobody = User::anonymous(none.url());
    let refused = nobody
        .post(&format!("{REGISTER}?kind=guest"), &json!({}))
        .await;
    assert_eq!(refused.refused(), (403, "M_GUEST_ACCESS_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn openid_tokens_tell_others_who_somebody_is() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = format!(
        "/_matrix/client/v3/user/{}/openid/request_token",
        escape(&alice.user_id)
    );
    let answer = alice.post(&path, &json!({})).await.ok();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["matrix_server_name"], "one.test");
    let refused = bob.post(&path, &json!({})).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    let nobody = User::anonymous(server.url());
    let who = |token: &str| {
        let path = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
        let nobody = nobody.clone();
        async move { nobody.get(&path).await }
    };
    let token = text(&answer["access_token"]);
    assert_eq!(who(&token).await.ok(), json!({ "sub": alice.user_id }));
    // It is good for nothing else, and nothing else is good for it.
    let refused = alice.with_token(&token).get(WHOAMI).await;
    assert_eq!(refused.refused(), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(who(&alice.token).await.refused(), (401, "M_UNKNOWN_TOKEN"));
    server.clock().advance(3_601_000);
    assert_eq!(who(&token).await.refused(), (401, "M_UNKNOWN_TOKEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_there_keeps_the_messages_of_the_erased() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let event_id = alice.send(&room_id, "hello").await;
    let carol = server.register("carol").await;
    carol.join(&room_id).await.ok();
    let body = json!({ "auth": password(&alice, "the password of alice", None), "erase": true });
    alice
        .post("/_matrix/client/v3/account/deactivate", &body)
        .await
        .ok();
    for _ in 0..2 {
        for (user, content) in [
            (&bob, json!({ "msgtype": "m.text", "body": "hello" })),
            (&carol, json!({})),
        ] {
            let path = room(&room_id, &format!("event/{}", escape(&event_id)));
            assert_eq!(user.get(&path).await.ok()["content"], content);
            let messages = user
                .get(&room(&room_id, "messages?dir=b&limit=50"))
                .await
                .ok();
            let sync = user.sync(None, 0).await;
            let timeline = &sync["rooms"]["join"][&room_id]["timeline"]["events"];
            for events in [&messages["chunk"], timeline] {
                let mut events = events.as_array().unwrap().iter();
                let event = events.find(|event| event["event_id"] == event_id).unwrap();
                assert_eq!(event["content"], content);
            }
        }
        server.restart().await;
    }
}
