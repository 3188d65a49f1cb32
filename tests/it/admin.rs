//! `sotto admin`, as the socket of a running server answers it.

use http::Method;
use serde_json::{Value, json};
use sotto_homeserver::admin::{self, Ask, AskError};
use sotto_tests::{Setup, TestServer, User, escape};

/// Asks; the command as it is written on the socket.
pub(crate) async fn ask(server: &TestServer, command: Value) -> Result<Value, String> {
    let ask: Ask = serde_json::from_value(json!({ "command": command })).unwrap();
    let answer = admin::ask(server.data_dir(), &ask).await;
    answer.map_err(|error| match error {
        AskError::Refused(reason) => reason,
        AskError::NotRunning { .. } | AskError::Http(_) => panic!("{error}"),
    })
}

async fn log_in(server: &TestServer, name: &str, password: &str) -> (u16, Value) {
    let nobody = User::anonymous(server.url());
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": password,
    });
    let answer = nobody.post("/_matrix/client/v3/login", &body).await;
    (answer.status.as_u16(), answer.body)
}

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

#[tokio::test(flavor = "multi_thread")]
async fn accounts() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let made = ask(
        &server,
        json!({ "users": { "create": { "user": "carol", "admin": true } } }),
    );
    let made = made.await.unwrap();
    assert_eq!(made["user_id"], "@carol:one.test");
    let (status, session) = log_in(&server, "carol", made["password"].as_str().unwrap()).await;
    assert_eq!(status, 200);
    let carol = User::new(server.url(), &session);
    let whois = format!("/_matrix/client/v3/admin/whois/{}", escape(&alice.user_id));
    carol.get(&whois).await.ok();
    let revoke =
        json!({ "users": { "make_admin": { "user": "@carol:one.test", "revoke": true } } });
    ask(&server, revoke).await.unwrap();
    assert_eq!(carol.get(&whois).await.refused().0, 403);

    let list = json!({ "users": { "list": { "name": "ALI", "limit": 9 } } });
    let list = ask(&server, list).await.unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["user_id"], alice.user_id);
    assert_eq!(list[0]["kind"], "user");
    let none = json!({ "users": { "list": { "name": "%", "limit": 9 } } });
    assert_eq!(ask(&server, none).await.unwrap(), json!([]));
    let show = json!({ "users": { "show": { "user": "alice" } } });
    let shown = ask(&server, show).await.unwrap();
    assert_eq!(shown["devices"][0]["device_id"], alice.device_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let reset =
        json!({ "users": { "reset_password": { "user": "alice", "keep_devices": false } } });
    let reset = ask(&server, reset).await.unwrap();
    assert_eq!(alice.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(
        log_in(&server, "alice", "the password of alice").await.0,
        403
    );
    let (status, session) = log_in(&server, "alice", reset["password"].as_str().unwrap()).await;
    assert_eq!(status, 200);
    let alice = User::new(server.url(), &session);

    let lock = |undo| json!({ "users": { "lock": { "user": "alice", "undo": undo } } });
    ask(&server, lock(false)).await.unwrap();
    assert_eq!(alice.get(WHOAMI).await.refused(), (401, "M_USER_LOCKED"));
    ask(&server, lock(true)).await.unwrap();
    alice.get(WHOAMI).await.ok();

    let out = json!({ "users": { "log_out": { "user": "alice", "device": alice.device_id } } });
    assert_eq!(ask(&server, out.clone()).await.unwrap()["devices"], 1);
    assert_eq!(alice.get(WHOAMI).await.refused(), (401, "M_UNKNOWN_TOKEN"));
    assert!(ask(&server, out).await.is_err());

    let end = json!({ "users": { "deactivate": { "user": "alice", "erase": false } } });
    ask(&server, end.clone()).await.unwrap();
    assert_eq!(
        log_in(&server, "alice", reset["password"].as_str().unwrap())
            .await
            .0,
        403
    );
    assert_eq!(
        ask(&server, end).await.unwrap_err(),
        "the account was ended"
    );
    for stranger in ["nobody", "@alice:other.test", "not a name:"] {
        let show = json!({ "users": { "show": { "user": stranger } } });
        assert_eq!(
            ask(&server, show).await.unwrap_err(),
            "there is no such user here"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({
        "preset": "public_chat",
        "visibility": "public",
        "name": "Kitchen",
        "room_alias_name": "kitchen",
    });
    let room = alice.create_room(&body).await;
    bob.join(&room).await.ok();
    let list = ask(&server, json!({ "rooms": { "list": { "limit": 10 } } }))
        .await
        .unwrap();
    assert_eq!(list[0]["name"], "Kitchen");
    assert_eq!(list[0]["local_members"], 2);
    let show = ask(&server, json!({ "rooms": { "show": { "room": room } } }))
        .await
        .unwrap();
    assert_eq!(show["users"], json!([alice.user_id, bob.user_id]));
    assert_eq!(show["blocked"], false);

    let delete = json!({ "rooms": { "delete": { "room": room, "block": true } } });
    let deleted = ask(&server, delete).await.unwrap();
    assert_eq!(deleted["could_not_leave"], json!([]));
    let joined = bob.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(joined["joined_rooms"], json!([]));
    let alias = "/_matrix/client/v3/directory/room/%23kitchen%3Aone.test";
    assert_eq!(bob.get(alias).await.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(bob.join(&room).await.refused(), (403, "M_FORBIDDEN"));
    let list = ask(&server, json!({ "rooms": { "list": { "limit": 10 } } }))
        .await
        .unwrap();
    assert_eq!(list, json!([]));

    let kept = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let block = |undo| json!({ "rooms": { "block": { "room": kept, "undo": undo } } });
    ask(&server, block(false)).await.unwrap();
    assert_eq!(bob.join(&kept).await.refused(), (403, "M_FORBIDDEN"));
    ask(&server, block(true)).await.unwrap();
    bob.join(&kept).await.ok();
    let unknown = json!({ "rooms": { "show": { "room": "!none:one.test" } } });
    assert_eq!(
        ask(&server, unknown).await.unwrap_err(),
        "there is no such room here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = crate::media::upload(&alice, &server, "text/plain", b"text").await;
    let list = json!({ "media": { "list": { "user": "alice", "limit": 10 } } });
    let list = ask(&server, list).await.unwrap();
    assert_eq!(list[0]["uri"], format!("mxc://{uri}"));
    assert_eq!(list[0]["size"], 4);
    let download = format!("/_matrix/client/v1/media/download/{uri}");
    let quarantine = |undo| json!({ "media": { "quarantine": { "uri": format!("mxc://{uri}"), "undo": undo } } });
    ask(&server, quarantine(false)).await.unwrap();
    assert_eq!(alice.get(&download).await.refused(), (404, "M_NOT_FOUND"));
    ask(&server, quarantine(true)).await.unwrap();
    let answer = crate::media::raw(&alice, &server, &download).await;
    assert_eq!(answer.status(), 200);
    let delete = json!({ "media": { "delete": { "uri": format!("mxc://{uri}") } } });
    ask(&server, delete.clone()).await.unwrap();
    assert_eq!(alice.get(&download).await.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(
        ask(&server, delete).await.unwrap_err(),
        "there is no such file"
    );
    let purge = ask(
        &server,
        json!({ "media": { "purge_remote": { "days": 0 } } }),
    );
    assert_eq!(purge.await.unwrap(), json!({ "files": 0, "bytes": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_others() {
    let (one, other) = TestServer::pair().await;
    let (alice, bob) = (one.register("alice").await, other.register("bob").await);
    let uri = crate::media::upload(&alice, &one, "text/plain", b"text").await;
    let download = format!("/_matrix/client/v1/media/download/{uri}");
    let fetch = async || {
        crate::media::raw(&bob, &other, &download)
            .await
            .status()
            .as_u16()
    };
    assert_eq!(fetch().await, 200);
    let purge = json!({ "media": { "purge_remote": { "days": 0 } } });
    let purged = ask(&other, purge.clone()).await.unwrap();
    assert_eq!(purged, json!({ "files": 1, "bytes": 4 }));
    // What nobody may see is not fetched again either.
    let quarantine =
        json!({ "media": { "quarantine": { "uri": format!("mxc://{uri}"), "undo": false } } });
    ask(&other, quarantine).await.unwrap();
    assert_eq!(fetch().await, 404);
    ask(&other, purge).await.unwrap();
    assert_eq!(fetch().await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_tokens() {
    let server = Setup::with(|config| {
        config.registration = sotto_homeserver::config::Registration::Token;
    })
    .start()
    .await;
    let create = json!({ "tokens": { "create": { "uses": 1, "days": 2 } } });
    let first = ask(&server, create.clone()).await.unwrap()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let second = ask(&server, create).await.unwrap()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let nobody = User::anonymous(server.url());
    let register = async |name: &str, token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        let body = json!({ "username": name, "password": "long enough", "auth": auth });
        let answer = nobody.post("/_matrix/client/v3/register", &body).await;
        answer.status.as_u16()
    };
    assert_eq!(register("alice", &first).await, 200);
    assert_eq!(register("bob", &first).await, 401);
    let list = ask(&server, json!({ "tokens": "list" })).await.unwrap();
    let unused = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|token| token["expires_at"].is_i64());
    let unused: Vec<_> = unused.filter(|token| token["uses_left"] == 1).collect();
    assert_eq!(unused.len(), 1);
    server.clock().advance(3 * 24 * 60 * 60 * 1000);
    assert_eq!(register("bob", &second).await, 401);
    server.clock().advance(-3 * 24 * 60 * 60 * 1000);
    let revoke = json!({ "tokens": { "revoke": { "token": unused[0]["hash"] } } });
    ask(&server, revoke.clone()).await.unwrap();
    assert_eq!(register("bob", &second).await, 401);
    assert!(ask(&server, revoke).await.is_err());
}

/// Only whoever can read the data of the server can ask, and no request over the network gets there.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_ask() {
    use std::os::unix::fs::PermissionsExt;
    let mut server = TestServer::start().await;
    let folder = server.data_dir().join("admin");
    let mode = std::fs::metadata(folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let nobody = User::anonymous(server.url());
    let body = json!({ "command": { "tokens": "list" } }).to_string();
    let answer = nobody
        .request(Method::POST, "/", Some(body.into_bytes()))
        .await;
    assert_eq!(answer.refused(), (404, "M_UNRECOGNIZED"));
    // A socket that a crash left behind is no obstacle.
    server.restart().await;
    ask(&server, json!({ "tokens": "list" })).await.unwrap();
    server.stop().await;
    let command = serde_json::from_value(json!({ "tokens": "list" })).unwrap();
    let asked = Ask {
        command,
        password: None,
    };
    let answer = admin::ask(server.data_dir(), &asked).await;
    assert!(matches!(answer, Err(AskError::NotRunning { .. })));
}
