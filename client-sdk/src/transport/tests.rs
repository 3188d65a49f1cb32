//! Servers that answer from a script.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use ruma::{
    api::client::{account::whoami, message::send_message_event, room::create_room},
    room_id,
    serde::Raw,
};
use serde_json::value::to_raw_value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use self::Act::{Answer, HangUp};
use super::*;

/// What the server does with one request.
enum Act {
    Answer(u16, &'static str, &'static str),
    /// Takes the request and closes the connection.
    HangUp,
}

/// A transport to a server that acts as told, and the requests that the server got.
async fn scripted(acts: Vec<Act>) -> (Transport, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homeserver = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let record = requests.clone();
    let serve = async move {
        for act in acts {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                request.extend_from_slice(buffer.get(..read).unwrap());
            }
            record
                .lock()
                .unwrap()
                .push(String::from_utf8(request).unwrap());
            if let Answer(status, header, body) = act {
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\n{header}\
                     content-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    };
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        // The socket was made by the runtime of the test; this one only has to be there to poll.
        runtime.unwrap().block_on(serve);
    });
    let config = TransportConfig {
        homeserver,
        ..TransportConfig::default()
    };
    let transport = Transport::new(&config).unwrap();
    transport.set_token(Some("the token"));
    (transport, requests)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>())?
            .ok()
    });
    body.len() >= length.unwrap_or(0)
}

fn message() -> send_message_event::v3::Request {
    let content = serde_json::json!({ "body": "hello" });
    send_message_event::v3::Request::new_raw(
        room_id!("!room:example.org").to_owned(),
        "txn1".into(),
        "m.room.message".into(),
        Raw::from_json(to_raw_value(&content).unwrap()),
    )
}

const EVENT: &str = r#"{"event_id":"$event"}"#;
const LIMITED: &str = r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":300}"#;

#[tokio::test]
async fn an_event_is_sent_until_it_arrives_under_one_transaction_id() {
    let script = vec![
        HangUp,
        Answer(502, "", "<html>"),
        Answer(429, "", LIMITED),
        Answer(200, "", EVENT),
    ];
    let (transport, requests) = scripted(script).await;
    assert_eq!(transport.send(message()).await.unwrap().event_id, "$event");
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 4);
    for request in requests.iter() {
        let path = "PUT /_matrix/client/v3/rooms/!room:example.org/send/m.room.message/txn1 ";
        assert!(request.starts_with(path), "{request}");
        assert!(request.ends_with(r#"{"body":"hello"}"#), "{request}");
        assert!(
            request
                .to_lowercase()
                .contains("authorization: bearer the token"),
            "{request}"
        );
    }
}

#[tokio::test]
async fn what_may_have_happened_is_not_done_twice() {
    let (transport, requests) = scripted(vec![HangUp, Answer(200, "", "{}")]).await;
    let error = transport
        .send(create_room::v3::Request::new())
        .await
        .unwrap_err();
    assert!(matches!(error, RequestError::Network(_)), "{error:?}");
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_refused_for_haste_is_done_later() {
    let script = vec![
        Answer(429, "retry-after: 1\r\n", LIMITED),
        Answer(200, "", r#"{"room_id":"!new:example.org"}"#),
    ];
    let (transport, requests) = scripted(script).await;
    let started = tokio::time::Instant::now();
    let response = transport
        .send(create_room::v3::Request::new())
        .await
        .unwrap();
    assert_eq!(response.room_id, "!new:example.org");
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "the header counts"
    );
    assert_eq!(requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_pause_that_is_too_long_is_an_error() {
    let (transport, requests) = scripted(vec![Answer(429, "retry-after: 3600\r\n", LIMITED)]).await;
    let error = transport.send(message()).await.unwrap_err();
    assert_eq!(error.errcode().as_deref(), Some("M_LIMIT_EXCEEDED"));
    assert!(!error.is_permanent());
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn refusals_are_reported_at_once() {
    let body = r#"{"errcode":"M_FORBIDDEN","error":"no"}"#;
    let (transport, requests) = scripted(vec![Answer(403, "", body)]).await;
    let error = transport.send(message()).await.unwrap_err();
    assert_eq!(error.errcode().as_deref(), Some("M_FORBIDDEN"));
    assert!(error.is_permanent());
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn answers_that_are_none_are_errors() {
    for body in ["", "{}", "[]", r#"{"event_id":1}"#, "<html>"] {
        let (transport, _) = scripted(vec![Answer(200, "", body)]).await;
        let error = transport.send(message()).await.unwrap_err();
        assert!(
            matches!(error, RequestError::Malformed),
            "{body}: {error:?}"
        );
    }
}

#[tokio::test]
async fn nobody_sends_a_token_that_is_gone() {
    let (transport, requests) = scripted(vec![]).await;
    transport.set_token(None);
    let error = transport
        .send(whoami::v3::Request::new())
        .await
        .unwrap_err();
    assert!(matches!(error, RequestError::Build(_)), "{error:?}");
    assert!(requests.lock().unwrap().is_empty());
}

#[test]
fn plain_http_is_for_loopback_only() {
    for url in [
        "http://localhost:8008",
        "http://127.0.0.1:8008/",
        "http://[::1]",
        "https://a.b",
    ] {
        assert!(checked_base(url, false).is_ok(), "{url}");
    }
    let error = checked_base("http://example.org", false).unwrap_err();
    assert!(matches!(error, TransportError::Insecure));
    assert!(checked_base("http://example.org", true).is_ok());
    for url in ["example.org", "ftp://example.org", "localhost:8008", ""] {
        let error = checked_base(url, true).unwrap_err();
        assert!(matches!(error, TransportError::InvalidUrl), "{url}");
    }
}

fn answer(status: u16, retry_after: Option<&str>, body: &[u8]) -> super::Answer {
    let mut response = http::Response::builder().status(status);
    if let Some(value) = retry_after {
        response = response.header(http::header::RETRY_AFTER, value);
    }
    response.body(body.to_vec()).unwrap()
}

#[test]
fn rate_limits_are_waited_out_as_the_server_asks() {
    let wait = |status, header, body: &[u8]| {
        let answer = answer(status, header, body);
        wait_before_repeat(&answer, Repeat::OnlyIfRefused, FIRST_PAUSE)
    };
    assert_eq!(wait(429, Some("3"), b"{}"), Some(Duration::from_secs(3)));
    let body = br#"{"errcode":"M_LIMIT_EXCEEDED","error":"","retry_after_ms":1500}"#;
    assert_eq!(wait(429, None, body), Some(Duration::from_millis(1500)));
    assert_eq!(wait(429, None, b"?"), Some(FIRST_PAUSE));
    assert_eq!(wait(400, Some("3"), b"{}"), None);
}

#[test]
fn a_post_that_may_have_happened_is_not_repeated() {
    let wait = |repeat| wait_before_repeat(&answer(502, None, b""), repeat, FIRST_PAUSE);
    assert_eq!(wait(Repeat::Always), Some(FIRST_PAUSE));
    assert_eq!(wait(Repeat::OnlyIfRefused), None);
}
