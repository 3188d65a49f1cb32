//! Reports, and what administrators do about them.

use serde_json::json;
use sotto_homeserver::config::Registration;
use sotto_tests::{Setup, TestServer, User, escape, room};

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const REGISTER: &str = "/_matrix/client/v3/register";

/// A server with an administrator: whoever had the token that is told on the console.
async fn administered() -> (TestServer, User) {
    let setup = Setup::with(|config| config.registration = Registration::Token);
    let mut server = setup.start().await;
    let token = server.first_registration_token().unwrap();
    let auth = json!({ "type": "m.login.registration_token", "token": token });
    let body = json!({ "username": "admin", "password": "the password of admin", "auth": auth });
    let answer = User::anonymous(server.url())
        .post(REGISTER, &body)
        .await
        .ok();
    let admin = User::new(server.url(), &answer);
    server.open_registration().await;
    (server, admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_taken_of_what_one_sees() {
    let server = TestServer::start().await;
    let (alice, eve) = (server.register("alice").await, server.register("eve").await);
    let room_id = alice.create_room(&json!({})).await;
    let event = alice.send(&room_id, "hello").await;
    let reason = json!({ "reason": "rude", "score": -100 });
    let report = |rest: &str| room(&room_id, &format!("report{rest}"));
    let event = report(&format!("/{}", escape(&event)));
    alice.post(&event, &reason).await.ok();
    alice.post(&event, &json!({})).await.ok();
    assert_eq!(
        eve.post(&event, &reason).await.refused(),
        (404, "M_NOT_FOUND")
    );
    let unknown = alice.post(&report("/$unknown"), &reason).await;
    assert_eq!(unknown.refused(), (404, "M_NOT_FOUND"));
    eve.post(&report(""), &reason).await.ok();
    let nowhere = room("!nowhere:one.test", "report");
    assert_eq!(
        eve.post(&nowhere, &reason).await.refused(),
        (404, "M_NOT_FOUND")
    );
    let user = |name: &str| format!("/_matrix/client/v3/users/{}/report", escape(name));
    eve.post(&user(&alice.user_id), &reason).await.ok();
    let nobody = eve.post(&user("@nobody:one.test"), &reason).await;
    assert_eq!(nobody.refused(), (404, "M_NOT_FOUND"));
    let long = json!({ "reason": "x".repeat(5_000) });
    let answer = eve.post(&user(&alice.user_id), &long).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_accounts_keep_their_sessions() {
    let (server, admin) = administered().await;
    let alice = server.register("alice").await;
    let lock = |name: &str| format!("/_matrix/client/v1/admin/lock/{}", escape(name));
    alice.get(WHOAMI).await.ok();
    let path = lock(&alice.user_id);
    admin.put(&path, &json!({ "locked": true })).await.ok();
    assert_eq!(admin.get(&path).await.ok(), json!({ "locked": true }));
    let answer = alice.get(WHOAMI).await;
    assert_eq!(answer.refused(), (401, "M_USER_LOCKED"));
    assert_eq!(answer.body["soft_logout"], true);
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "the password of alice",
    });
    let answer = alice
        .with_token("")
        .post("/_matrix/client/v3/login", &body)
        .await;
    assert_eq!(answer.refused(), (401, "M_USER_LOCKED"));
    admin.put(&path, &json!({ "locked": false })).await.ok();
    alice.get(WHOAMI).await.ok();
    admin.put(&path, &json!({ "locked": true })).await.ok();
    alice
        .post("/_matrix/client/v3/logout", &json!({}))
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_accounts_can_only_read_and_leave() {
    let (server, admin) = administered().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let other = admin.create_room(&json!({ "preset": "public_chat" })).await;
    let path = format!(
        "/_matrix/client/v1/admin/suspend/{}",
        escape(&alice.user_id)
    );
    admin.put(&path, &json!({ "suspended": true })).await.ok();
    assert_eq!(admin.get(&path).await.ok(), json!({ "suspended": true }));
    let suspended = (403, "M_USER_SUSPENDED");
    let content = json!({ "msgtype": "m.text", "body": "hello" });
    let answer = alice.send_event(&room_id, "m.room.message", &content).await;
    assert_eq!(answer.refused(), suspended);
    assert_eq!(alice.join(&other).await.refused(), suspended);
    assert_eq!(
        alice.invite(&room_id, &admin.user_id).await.refused(),
        suspended
    );
    let name = format!(
        "/_matrix/client/v3/profile/{}/displayname",
        escape(&alice.user_id)
    );
    let answer = alice.put(&name, &json!({ "displayname": "x" })).await;
    assert_eq!(answer.refused(), suspended);
    alice.sync(None, 0).await;
    server.log_in("alice").await;
    alice.post(&room(&room_id, "leave"), &json!({})).await.ok();
    admin.put(&path, &json!({ "suspended": false })).await.ok();
    alice.join(&other).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_moderate() {
    let (server, admin) = administered().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let forbidden = (403, "M_FORBIDDEN");
    for what in ["lock", "suspend"] {
        let path = |name: &str| format!("/_matrix/client/v1/admin/{what}/{}", escape(name));
        let body = json!({ "locked": true, "suspended": true });
        for name in [&alice.user_id, &bob.user_id, "@nobody:one.test"] {
            assert_eq!(alice.get(&path(name)).await.refused(), forbidden);
            assert_eq!(alice.put(&path(name), &body).await.refused(), forbidden);
        }
        // Not even each other, or themselves.
        assert_eq!(
            admin.put(&path(&admin.user_id), &body).await.refused(),
            forbidden
        );
        let answer = admin.put(&path("@nobody:one.test"), &body).await;
        assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
        let answer = admin.get(&path("@nobody:two.test")).await;
        assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
    }
    let whois = |name: &str| format!("/_matrix/client/v3/admin/whois/{}", escape(name));
    for user in [&alice, &admin] {
        let answer = user.get(&whois(&alice.user_id)).await.ok();
        assert_eq!(answer["user_id"], alice.user_id);
        assert!(answer["devices"][&alice.device_id]["sessions"].is_array());
    }
    assert_eq!(bob.get(&whois(&alice.user_id)).await.refused(), forbidden);
    let capabilities = |user: &User| {
        let user = user.clone();
        async move {
            let answer = user.get("/_matrix/client/v3/capabilities").await.ok();
            answer["capabilities"]["m.account_moderation"].clone()
        }
    };
    assert_eq!(
        capabilities(&admin).await,
        json!({ "lock": true, "suspend": true })
    );
    assert!(capabilities(&alice).await.is_null());
}
