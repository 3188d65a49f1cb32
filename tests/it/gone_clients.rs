//! Clients that do not wait for the answer.

use std::time::Duration;

use serde_json::json;
use sotto_tests::{TestServer, User, escape, room};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Sends a request, and is gone after a moment.
async fn ask_and_leave(server: &TestServer, user: &User, path: &str, body: &str, moment: u64) {
    let address = server.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let method = if path.ends_with("createRoom") {
        "POST"
    } else {
        "PUT"
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        user.token,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_micros(moment)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_and_leaves_holds_nobody_up() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let body = json!({ "msgtype": "m.text", "body": "bye" }).to_string();
    for number in 0..100 {
        let path = room(&room_id, &format!("send/m.room.message/gone{number}"));
        ask_and_leave(&server, &alice, &path, &body, number * 50).await;
        let path = room(&room_id, "joined_members");
        let members = tokio::time::timeout(Duration::from_secs(20), alice.get(&path)).await;
        // The room is not stuck.
        members.unwrap().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_is_half_made() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v3/createRoom";
    for number in 0..40 {
        let body = json!({ "room_alias_name": format!("room{number}") }).to_string();
        ask_and_leave(&server, &alice, path, &body, 1_000 + number * 400).await;
    }
    let body = json!({ "room_alias_name": "last" });
    alice.create_room(&body).await;
    let rooms = alice.get("/_matrix/client/v3/joined_rooms").await.ok();
    for room_id in rooms["joined_rooms"].as_array().unwrap() {
        let room_id = room_id.as_str().unwrap();
        let alias = alice
            .get(&room(room_id, "state/m.room.canonical_alias"))
            .await
            .ok();
        let alias = escape(alias["alias"].as_str().unwrap());
        let path = format!("/_matrix/client/v3/directory/room/{alias}");
        // It may still be under way.
        for _ in 0..100 {
            if alice.get(&path).await.status.is_success() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(alice.get(&path).await.ok()["room_id"], room_id);
    }
}
