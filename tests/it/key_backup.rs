//! Backups of room keys: versions, which copy of a key is kept, and who may see what.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape};
use sqlx::{AnyConnection, Connection, Row};

const VERSION: &str = "/_matrix/client/v3/room_keys/version";
const KEYS: &str = "/_matrix/client/v3/room_keys/keys";
const ROOM: &str = "!room:test";

fn description(public_key: &str) -> Value {
    json!({
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": { "public_key": public_key, "signatures": {}, "org.example.more": [1] },
    })
}

fn key(index: u64, forwarded: u64, verified: bool) -> Value {
    json!({
        "first_message_index": index,
        "forwarded_count": forwarded,
        "is_verified": verified,
        "session_data": { "ciphertext": format!("{index} {forwarded}"), "ephemeral": "AA", "mac": "BB" },
    })
}

fn of_session(session_id: &str, version: &str) -> String {
    let (room_id, session_id) = (escape(ROOM), escape(session_id));
    format!("{KEYS}/{room_id}/{session_id}?version={version}")
}

async fn create(user: &User) -> String {
    let answer = user.post(VERSION, &description("AAAA")).await.ok();
    answer["version"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    assert_eq!(alice.get(VERSION).await.refused(), (404, "M_NOT_FOUND"));
    for (body, errcode) in [
        (json!({ "algorithm": "a" }), "M_BAD_JSON"),
        (json!({ "auth_data": {} }), "M_BAD_JSON"),
    ] {
        let answer = alice.post(VERSION, &body).await;
        assert_eq!(answer.refused(), (400, errcode));
    }
    let first = create(&alice).await;
    let mut expected = description("AAAA");
    expected["version"] = first.clone().into();
    expected["count"] = 0.into();
    expected["etag"] = "0".into();
    assert_eq!(alice.get(VERSION).await.ok(), expected);
    let second = create(&alice).await;
    assert_ne!(first, second);
    server.restart().await;
    assert_eq!(alice.get(VERSION).await.ok()["version"], second);
    let path = format!("{VERSION}/{first}");
    assert_eq!(alice.get(&path).await.ok(), expected);
    // Bob has none of this.
    assert_eq!(bob.get(&path).await.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(bob.delete(&path).await.refused(), (404, "M_NOT_FOUND"));

    // Only the authentication data can change.
    let path = format!("{VERSION}/{second}");
    let mut changed = description("BBBB");
    alice.put(&path, &changed).await.ok();
    assert_eq!(
        alice.get(VERSION).await.ok()["auth_data"],
        changed["auth_data"]
    );
    changed["version"] = first.clone().into();
    let answer = alice.put(&path, &changed).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
    let other = json!({ "algorithm": "other", "auth_data": {} });
    let answer = alice.put(&path, &other).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));

    // Deleted versions are gone, their numbers are not used again, and the one before is current.
    for _ in 0..2 {
        alice.delete(&path).await.ok();
    }
    assert_eq!(alice.get(&path).await.refused(), (404, "M_NOT_FOUND"));
    let answer = alice.put(&path, &description("CCCC")).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));
    assert_eq!(alice.get(VERSION).await.ok()["version"], first);
    let third = create(&alice).await;
    assert!(third != second && third != first);
    for none in ["99", "x"] {
        let path = format!("{VERSION}/{none}");
        assert_eq!(alice.delete(&path).await.refused(), (404, "M_NOT_FOUND"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_better_copy_of_a_key_is_kept() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let version = create(&alice).await;
    let path = of_session("s/1", &version);
    assert_eq!(alice.get(&path).await.refused(), (404, "M_NOT_FOUND"));
    let mut etag = String::from("0");
    // Verified wins, then the lower index, then the lower count.
    for (index, forwarded, verified, better) in [
        (5, 3, false, true),
        (5, 3, false, false),
        (5, 2, false, true),
        (6, 0, false, false),
        (4, 9, false, true),
        (7, 9, true, true),
        (0, 0, false, false),
        (7, 8, true, true),
        (2, 9, true, true),
    ] {
        let before = alice.get(&path).await.body;
        let sent = key(index, forwarded, verified);
        let answer = alice.put(&path, &sent).await.ok();
        assert_eq!(answer["count"], 1);
        let kept = alice.get(&path).await.ok();
        assert_eq!(kept, if better { sent } else { before });
        assert_eq!(answer["etag"] != etag, better, "{index} {forwarded}");
        etag = answer["etag"].as_str().unwrap().to_owned();
    }
    for wrong in [
        json!({}),
        json!({ "first_message_index": -1, "forwarded_count": 0, "is_verified": true, "session_data": {} }),
        json!({ "first_message_index": 0, "forwarded_count": 0, "is_verified": true }),
    ] {
        let answer = alice.put(&path, &wrong).await;
        assert_eq!(answer.refused(), (400, "M_BAD_JSON"));
    }
    // What is in it is for the clients to understand.
    let opaque = json!({ "first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": "opaque" });
    let other = of_session("s/2", &version);
    alice.put(&other, &opaque).await.ok();
    assert_eq!(alice.get(&other).await.ok(), opaque);
    let mut large = key(0, 0, true);
    large["session_data"]["ciphertext"] = "A".repeat(70_000).into();
    let answer = alice.put(&path, &large).await;
    assert_eq!(answer.refused(), (413, "M_TOO_LARGE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_by_room_and_session() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = create(&alice).await;
    alice
        .put(&of_session("a", &old), &key(0, 0, true))
        .await
        .ok();
    let version = create(&alice).await;
    // Nothing goes into an old version any more, but it can be read.
    let answer = alice.put(&of_session("b", &old), &key(0, 0, true)).await;
    assert_eq!(answer.refused(), (403, "M_WRONG_ROOM_KEYS_VERSION"));
    assert_eq!(answer.body["current_version"], version);
    alice.get(&of_session("a", &old)).await.ok();
    let answer = alice.put(&of_session("b", "99"), &key(0, 0, true)).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));

    let all = format!("{KEYS}?version={version}");
    let room = format!("{KEYS}/{}?version={version}", escape(ROOM));
    assert_eq!(alice.get(&all).await.ok(), json!({ "rooms": {} }));
    assert_eq!(alice.get(&room).await.ok(), json!({ "sessions": {} }));
    let rooms = json!({ "rooms": {
        ROOM: { "sessions": { "a": key(1, 0, true), "b": key(2, 0, false) } },
        "!other:test": { "sessions": { "a": key(3, 0, true) } },
    } });
    let answer = alice.put(&all, &rooms).await.ok();
    assert_eq!(answer, json!({ "count": 3, "etag": "1" }));
    assert_eq!(alice.get(&all).await.ok(), rooms);
    let sessions = json!({ "sessions": { "c": key(4, 0, true) } });
    let answer = alice.put(&room, &sessions).await.ok();
    assert_eq!(answer, json!({ "count": 4, "etag": "2" }));
    let found = alice.get(&room).await.ok();
    assert_eq!(found["sessions"].as_object().unwrap().len(), 3);
    assert_eq!(bob.get(&all).await.refused(), (404, "M_NOT_FOUND"));

    let session = of_session("a", &version);
    for (path, left, etag) in [
        (&session, 3, "3"),
        (&session, 3, "3"),
        (&room, 1, "4"),
        (&all, 0, "5"),
    ] {
        let answer = alice.delete(path).await.ok();
        assert_eq!(answer, json!({ "count": left, "etag": etag }));
    }
    assert_eq!(alice.get(VERSION).await.ok()["count"], 0);
    alice.get(&of_session("a", &old)).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_go_with_the_account() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    create(&alice).await;
    sqlx::any::install_default_drivers();
    let connection = AnyConnection::connect(&server.database_url()).await;
    let mut connection = connection.unwrap();
    let mut versions = async || {
        let count = sqlx::query("SELECT COUNT(*) FROM key_backup_versions");
        let row = count.fetch_one(&mut connection).await.unwrap();
        row.get::<i64, _>(0)
    };
    assert_eq!(versions().await, 1);
    let identifier = json!({ "type": "m.id.user", "user": alice.user_id });
    let auth = json!({
        "type": "m.login.password", "identifier": identifier, "password": "the password of alice",
    });
    let deactivate = "/_matrix/client/v3/account/deactivate";
    alice.post(deactivate, &json!({ "auth": auth })).await.ok();
    assert_eq!(versions().await, 0);
}
