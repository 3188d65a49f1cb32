//! More than anybody should have to take.

use std::time::Duration;

use http::Method;
use ruma::RoomVersionId;
use serde_json::json;
use sotto_tests::{FakeServer, Lie, TestServer, escape};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{MALLORY, Scene};

/// What a server may be made to read of an answer without an end.
const MOST: usize = 80 * 1024 * 1024;
/// The same for keys, of which nobody has many, with what waits in buffers.
const MOST_KEYS: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_end_are_not_read_to_the_end() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    fake.lie(Lie::Endless);
    // Keys, which any stranger makes us fetch.
    let path = "/_matrix/federation/v1/version/strange";
    let path = format!(
        "/_matrix/federation/v1/query/profile?user_id={}",
        escape(path)
    );
    let answer = fake.peer().get(&ours, &path).await;
    assert_eq!(answer.status.as_u16(), 401);
    let keys = fake.endless();
    assert!((1..MOST_KEYS).contains(&keys), "{keys} bytes of keys");
    // What users make us fetch.
    let profile = format!("/_matrix/client/v3/profile/{}", escape(MALLORY));
    let asked = alice.get(&profile);
    let answer = tokio::time::timeout(Duration::from_mins(1), asked).await;
    assert!(answer.unwrap().status.as_u16() >= 400);
    let joining = alice.join_via(fake.room_id().as_str(), "b.test");
    let answer = tokio::time::timeout(Duration::from_mins(1), joining).await;
    assert!(answer.unwrap().status.as_u16() >= 400);
    let all = fake.endless();
    println!("{keys} bytes of keys, {all} of all");
    assert!(all > keys && all < 2 * MOST, "{all} bytes");
    // Afterwards it is a server like others.
    fake.lie(Lie::None);
    ours.clock().advance(10 * 60 * 1_000);
    alice.join_via(fake.room_id().as_str(), "b.test").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_are_refused_and_compressed_ones_are_not_unpacked() {
    let mut scene = Scene::new().await;
    let peer = scene.fake.peer().clone();
    let path = "/_matrix/federation/v1/send/large";
    let padding = " ".repeat(64 * 1024 * 1024);
    let body = format!("{{\"origin\":\"b.test\",\"pdus\":[],\"x\":\"{padding}\"}}");
    let answer = peer
        .try_ask(
            peer.name(),
            &scene.ours,
            Method::PUT,
            path,
            Some(body.into_bytes()),
        )
        .await;
    // Refused, or the connection ended while it was sent.
    assert!(answer.is_none_or(|answer| matches!(answer.status.as_u16(), 400 | 413)));
    let path = "/_matrix/federation/v1/send/small";
    let body = json!({ "origin": "b.test", "origin_server_ts": 1, "pdus": [] });
    peer.ask(&scene.ours, Method::PUT, path, Some(&body))
        .await
        .ok();
    let said = scene.make(&sotto_tests::Draft::text(MALLORY, "still there"));
    assert_eq!(scene.deliver(&said).await, None);
}

/// Sends the head of a request with so many headers; the status of the answer, if the server gave one.
async fn with_headers(server: &TestServer, count: usize) -> Option<String> {
    let address = server.url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let start = format!("GET /_matrix/client/versions HTTP/1.1\r\nhost: {address}\r\n");
    stream.write_all(start.as_bytes()).await.ok()?;
    let (mut back, mut there) = stream.into_split();
    let send = async {
        for number in 0..count {
            let header = format!("x-{number}: {}\r\n", "x".repeat(64));
            if there.write_all(header.as_bytes()).await.is_err() {
                return;
            }
        }
        there.write_all(b"\r\n").await.ok();
    };
    let mut first = [0; 12];
    let read = async { back.read_exact(&mut first).await.ok() };
    let (read, ()) = tokio::join!(read, send);
    read?;
    Some(String::from_utf8_lossy(&first[9..]).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_are_not_read_to_the_end() {
    let server = TestServer::start().await;
    let within = Duration::from_secs(30);
    let few = tokio::time::timeout(within, with_headers(&server, 20)).await;
    assert_eq!(few.unwrap().as_deref(), Some("200"));
    // Refused, or the connection ended while they were sent.
    let many = tokio::time::timeout(within, with_headers(&server, 1_000_000)).await;
    assert_ne!(many.unwrap().as_deref(), Some("200"));
    let alice = server.register("alice").await;
    alice.create_room(&json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_never_finish_a_request_keep_nobody_waiting() {
    let server = TestServer::start().await;
    let address = server.url().replace("http://", "");
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST /_matrix/client/v3/register HTTP/1.1\r\nhost: {address}\r\n\
             content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let work = async {
        let alice = server.register("alice").await;
        let room_id = alice.create_room(&json!({})).await;
        alice.send(&room_id, "Nobody waits").await;
    };
    let done = tokio::time::timeout(Duration::from_secs(20), work).await;
    assert!(done.is_ok());
    // The control: one of them that does finish is answered.
    let mut stream = slow.remove(0);
    stream.write_all(&[b' '; 999]).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first[9..], b"400");
}
