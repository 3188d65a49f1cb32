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
    // The control: whoever reads on gets more than anybody should take.
    let reading = fake.peer().get(&other, "/_matrix/key/v2/server");
    let reading = tokio::time::timeout(Duration::from_secs(5), reading).await;
    assert!(reading.is_err());
    assert!(fake.endless() - all > MOST_KEYS, "{}", fake.endless());
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

/// [`PLAIN`], compressed.
const COMPRESSED: [u8; 83] = [
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0x56, 0x2a, 0x2d, 0x4e, 0x2d,
    0xca, 0x4b, 0xcc, 0x4d, 0x55, 0xb2, 0x52, 0xaa, 0xca, 0x2c, 0x50, 0xd2, 0x51, 0x2a, 0x48, 0x2c,
    0x2e, 0x2e, 0xcf, 0x2f, 0x4a, 0x01, 0x0a, 0x24, 0x2a, 0xc0, 0x39, 0x3a, 0x4a, 0x89, 0xa5, 0x25,
    0x19, 0x4a, 0x56, 0xd5, 0x4a, 0x25, 0x95, 0x05, 0x20, 0xc5, 0xb9, 0x7a, 0x39, 0xf9, 0xe9, 0x99,
    0x79, 0x7a, 0x29, 0xa5, 0xb9, 0xb9, 0x95, 0x4a, 0xb5, 0xb5, 0x00, 0x7b, 0xcd, 0x74, 0x06, 0x4a,
    0x00, 0x00, 0x00,
];
const PLAIN: &str = r#"{"username":"zip","password":"a password","auth":{"type":"m.login.dummy"}}"#;

/// What is small on the way and large afterwards is not made large.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_is_not_unpacked() {
    let server = TestServer::start().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let register = async |encoding: Option<&str>, body: &[u8]| {
        let url = format!("{}/_matrix/client/v3/register", server.url());
        let request = http.post(url).header("content-type", "application/json");
        let request = match encoding {
            Some(encoding) => request.header("content-encoding", encoding),
            None => request,
        };
        request
            .body(body.to_vec())
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    for encoding in [None, Some("gzip"), Some("x-gzip"), Some("gzip, gzip")] {
        let status = register(encoding, &COMPRESSED).await;
        assert!((400..500).contains(&status), "{encoding:?} {status}");
    }
    // The control: unpacked it is a request that is carried out.
    assert_eq!(register(None, PLAIN.as_bytes()).await, 200);
}
