//! Finding servers: delegation, and what is remembered.

use std::sync::{Arc, atomic::AtomicU32};

use super::*;
use crate::client::tests::peer::Answers;

#[tokio::test]
async fn where_a_server_is_is_remembered_for_ten_minutes_and_forgotten_after_a_failure() {
    let peer = Peer::json("peer.test", VERSION).await;
    let mut config = config(&[&peer]);
    let resolver = Arc::new(Local {
        unknown: ["gone.test".to_owned()].into(),
        ..Local::default()
    });
    let now = Arc::new(AtomicU32::new(0));
    config.resolver = Arc::<Local>::clone(&resolver);
    let clock = Arc::clone(&now);
    config.now = Arc::new(move || MilliSecondsSinceUnixEpoch(clock.load(Ordering::Relaxed).into()));
    let client = FederationClient::new(config);
    let name = format!("peer.test:{}", peer.address.port());
    let lookups = || resolver.lookups.load(Ordering::Relaxed);

    version_of(&client, &name).await.unwrap();
    version_of(&client, &name).await.unwrap();
    assert_eq!(lookups(), 1);
    now.store(10 * 60 * 1000, Ordering::Relaxed);
    version_of(&client, &name).await.unwrap();
    assert_eq!(lookups(), 2);

    for expected in [3, 4] {
        version_of(&client, "other.test:1").await.unwrap_err();
        assert_eq!(lookups(), expected);
    }

    // What is not there is not looked for by everybody who asks, until a minute has passed.
    for (time, expected) in [(0, 5), (59_999, 5), (60_000, 6)] {
        now.store(10 * 60 * 1000 + time, Ordering::Relaxed);
        let error = version_of(&client, "gone.test:1").await.unwrap_err();
        assert!(matches!(error, ClientError::NotFound), "{error:?}");
        assert_eq!(lookups(), expected);
    }
}

#[tokio::test]
async fn a_name_is_looked_up_once_by_all_who_ask_for_it_at_the_same_time() {
    let mut config = config(&[]);
    let resolver = Arc::new(Local {
        unknown: ["gone.test".to_owned()].into(),
        ..Local::default()
    });
    config.resolver = Arc::<Local>::clone(&resolver);
    let client = FederationClient::new(config);
    let lookups = || resolver.lookups.swap(0, Ordering::Relaxed);
    // The control: names that differ in nothing but the port are looked up one by one.
    let ask = async |names: &[String]| {
        let asked = names.iter().map(|name| version_of(&client, name));
        for answer in futures_util::future::join_all(asked).await {
            assert!(matches!(answer, Err(ClientError::NotFound)));
        }
    };
    let names: Vec<_> = (1..=20).map(|port| format!("gone.test:{port}")).collect();
    ask(&names).await;
    assert_eq!(lookups(), 20);
    ask(&vec!["gone.test:99".to_owned(); 20]).await;
    assert_eq!(lookups(), 1);
    // Whoever looks and loses patience leaves it to the next.
    let name = "gone.test:100";
    let first = tokio::time::timeout(Duration::ZERO, version_of(&client, name));
    let (_, second) = tokio::join!(first, version_of(&client, name));
    assert!(matches!(second, Err(ClientError::NotFound)));
}

/// A client that finds the files and servers of these peers. Each stands for the port of its name.
fn client_of(peers: &[(&str, &Peer)]) -> FederationClient {
    let all: Vec<&Peer> = peers.iter().map(|(_, peer)| *peer).collect();
    let mut config = config(&all);
    for (name, peer) in peers {
        config
            .names
            .insert((*name).try_into().unwrap(), peer.address);
    }
    FederationClient::new(config)
}

#[tokio::test]
async fn a_server_delegates_by_its_well_known_file() {
    let delegation = r#"{"m.server":"peer.test:8449"}"#;
    let mut web = Peer::json("example.test", delegation).await;
    let mut peer = Peer::json("peer.test", VERSION).await;
    let client = client_of(&[("example.test:443", &web), ("peer.test:8449", &peer)]);

    for _ in 0..2 {
        version_of(&client, "example.test").await.unwrap();
        let request = peer.requests.recv().await.unwrap();
        assert_eq!(header(&request, "host"), Some("peer.test:8449"));
        let authorization = XMatrix::parse(header(&request, "authorization").unwrap()).unwrap();
        let uri = "/_matrix/federation/v1/version";
        let destination = server_name!("example.test");
        authorization
            .verify("GET", uri, b"", destination, &key().public_key())
            .unwrap();
        client.forget(destination);
    }
    let request = web.requests.recv().await.unwrap();
    assert!(request.starts_with("GET /.well-known/matrix/server HTTP/1.1\r\n"));
    assert_eq!(header(&request, "host"), Some("example.test"));
    assert_eq!(header(&request, "authorization"), None);
    // The second time the file was remembered.
    assert!(web.requests.try_recv().is_err());
}

#[tokio::test]
async fn redirects_of_the_file_are_followed_but_not_for_ever() {
    let to = |location: &str| with_body("302 Found", &format!("Location: {location}\r\n"), "");
    let first = Peer::start("first.test", to("https://second.test/x?y")).await;
    let mut second = Peer::json("second.test", r#"{"m.server":"peer.test:1"}"#).await;
    let peer = Peer::json("peer.test", VERSION).await;
    let client = client_of(&[
        ("first.test:443", &first),
        ("second.test:443", &second),
        ("peer.test:1", &peer),
    ]);
    version_of(&client, "first.test").await.unwrap();
    assert!(
        second
            .requests
            .recv()
            .await
            .unwrap()
            .starts_with("GET /x?y HTTP/1.1")
    );

    for location in [
        "/.well-known/matrix/server",
        "http://second.test/",
        "https://127.1/",
        "x:",
    ] {
        let peer = Peer::start("loop.test", to(location)).await;
        let client = client_of(&[("loop.test:443", &peer)]);
        assert_eq!(client.well_known("loop.test".to_owned()).await, None);
        let mut requests = peer.requests;
        let mut count = 0;
        while requests.try_recv().is_ok() {
            count += 1;
        }
        assert!((1..=6).contains(&count), "{location}: {count}");
    }
}

#[tokio::test]
async fn a_file_that_is_wrong_or_too_large_is_as_good_as_none() {
    let large = format!(
        "{{\"m.server\":\"a.test\",\"x\":\"{}\"}}",
        "x".repeat(50 * 1024)
    );
    for answer in [
        with_body("200 OK", "", &large),
        with_body("200 OK", "", "{}"),
        with_body("404 Not Found", "", r#"{"m.server":"a.test"}"#),
    ] {
        let mut peer = Peer::start("wrong.test", answer).await;
        let client = client_of(&[("wrong.test:443", &peer)]);
        assert_eq!(client.well_known("wrong.test".to_owned()).await, None);
        assert_eq!(client.well_known("wrong.test".to_owned()).await, None);
        // Asked once: errors are remembered too.
        assert!(peer.requests.try_recv().is_ok());
        assert!(peer.requests.try_recv().is_err());
    }
}

/// How much of an endless file may be taken, with what waits in buffers; and more than that.
const LITTLE: usize = 1024 * 1024;
const MUCH: usize = 8 * LITTLE;

#[tokio::test]
async fn a_file_without_an_end_is_not_read_to_the_end() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nConnection: close\r\n\r\n",
    ] {
        let peer = Peer::start_with("endless.test", Answers::Endless(head.to_owned())).await;
        let client = client_of(&[("endless.test:443", &peer)]);
        assert_eq!(client.well_known("endless.test".to_owned()).await, None);
        let taken = peer.taken();
        assert!(taken < LITTLE, "{taken} bytes");
    }
    // The control: whoever reads on gets more, and more.
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let peer = Peer::start_with("endless.test", Answers::Endless(head.to_owned())).await;
    let client = client_of(&[("endless.test", &peer)]);
    let request = http::Request::get("https://x/").body(Vec::new()).unwrap();
    let name = server_name!("endless.test");
    let answer = client.send_streamed(name, request, Duration::from_mins(1));
    let error = answer.await.unwrap().read(MUCH).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge), "{error:?}");
    assert!(peer.taken() > MUCH / 2);
}

#[tokio::test]
async fn fifty_redirects_are_too_many() {
    for (redirects, found) in [(5, true), (50, false)] {
        let answers = Answers::Each(Box::new(move |number| {
            if number < redirects {
                let location = format!("Location: /{number}\r\n");
                return with_body("302 Found", &location, "");
            }
            with_body("200 OK", "", r#"{"m.server":"peer.test:1"}"#)
        }));
        let mut peer = Peer::start_with("chain.test", answers).await;
        let client = client_of(&[("chain.test:443", &peer)]);
        let server = client.well_known("chain.test".to_owned()).await;
        assert_eq!(server.is_some(), found);
        let mut asked = 0;
        while peer.requests.try_recv().is_ok() {
            asked += 1;
        }
        assert_eq!(asked, 6);
    }
}
