#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use ruma::{
    api::federation::discovery::get_server_version::v1 as get_server_version, server_name, uint,
};

use self::peer::{Peer, header, with_body};
use super::*;
use crate::{
    resolver::{Lookup, Service},
    server_keys::own_response,
    x_matrix::XMatrix,
};

mod finding;
mod peer;

/// Names of tests. The addresses of all hosts are those of this machine.
#[derive(Default)]
struct Local {
    services: BTreeMap<String, u16>,
    /// Hosts that have no addresses after all.
    unknown: BTreeSet<String>,
    lookups: AtomicU32,
}

impl Resolver for Local {
    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let known = !self.unknown.contains(host);
        let found = known.then(|| "127.0.0.1".parse().unwrap());
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(found.into_iter().collect())
        })
    }

    fn services<'a>(&'a self, name: &'a str) -> Lookup<'a, Vec<Service>> {
        let service = |port: &u16| Service {
            priority: 0,
            weight: 0,
            port: *port,
            target: "target.test.".to_owned(),
        };
        let found = self.services.get(name).map(service).into_iter().collect();
        Box::pin(async { Ok(found) })
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed("1", "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap()
}

fn config(peers: &[&Peer]) -> Config {
    let pem: String = peers.iter().map(|peer| peer.ca_pem.as_str()).collect();
    Config {
        server_name: server_name!("us.test").to_owned(),
        key: Arc::new(key()),
        names: BTreeMap::new(),
        resolver: Arc::new(Local::default()),
        egress: Arc::new(Egress::new(vec!["127.0.0.0/8".parse().unwrap()])),
        tls: tls_config(pem.as_bytes()).unwrap(),
        now: Arc::new(|| MilliSecondsSinceUnixEpoch(uint!(1_000_000))),
        limits: Limits::default(),
    }
}

const VERSION: &str = r#"{"server":{"name":"Peer","version":"1"}}"#;

async fn version_of(
    client: &FederationClient,
    server: &str,
) -> Result<get_server_version::Response, ClientError> {
    client
        .send(
            server.try_into().unwrap(),
            get_server_version::Request::new(),
        )
        .await
}

#[tokio::test]
async fn a_request_is_signed_and_goes_to_the_named_address() {
    let mut peer = Peer::json("peer.test", VERSION).await;
    let mut config = config(&[&peer]);
    config
        .names
        .insert("peer.test".try_into().unwrap(), peer.address);
    let client = FederationClient::new(config);

    let answer = version_of(&client, "peer.test").await.unwrap();
    assert_eq!(answer.server.unwrap().name.as_deref(), Some("Peer"));

    let request = peer.requests.recv().await.unwrap();
    let uri = "/_matrix/federation/v1/version";
    assert!(request.starts_with(&format!("GET {uri} HTTP/1.1\r\n")));
    assert_eq!(header(&request, "host"), Some("peer.test"));
    let authorization = XMatrix::parse(header(&request, "authorization").unwrap()).unwrap();
    assert_eq!(authorization.origin(), "us.test");
    let destination = server_name!("peer.test");
    authorization
        .verify("GET", uri, b"", destination, &key().public_key())
        .unwrap();
}

#[tokio::test]
async fn the_body_and_the_query_are_signed_as_they_are_sent() {
    let mut peer = Peer::json("peer.test", "{}").await;
    let mut config = config(&[&peer]);
    config
        .names
        .insert("peer.test:9".try_into().unwrap(), peer.address);
    let client = FederationClient::new(config);
    let destination = server_name!("peer.test:9");

    let body = br#"{"b":1.5,"a":"\u00e4"}"#.to_vec();
    let request = http::Request::put("https://x/_matrix/a%20%2F'?q=%27'|&r=%C3%A4").body(body);
    let answer = client
        .send_streamed(destination, request.unwrap(), Duration::from_secs(9))
        .await
        .unwrap();
    assert_eq!(answer.read(10).await.unwrap().body(), b"{}");

    let request = peer.requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(header(head, "host"), Some("peer.test:9"));
    let uri = head.split(' ').nth(1).unwrap();
    let authorization = XMatrix::parse(header(head, "authorization").unwrap()).unwrap();
    let key = key().public_key();
    authorization
        .verify("PUT", uri, body.as_bytes(), destination, &key)
        .unwrap();
}

#[tokio::test]
async fn a_service_is_found_and_must_prove_the_name_of_the_server() {
    let mut peer = Peer::json("peer.test", VERSION).await;
    let mut config = config(&[&peer]);
    let services = BTreeMap::from([
        ("_matrix-fed._tcp.peer.test".to_owned(), peer.address.port()),
        (
            "_matrix-fed._tcp.impostor.test".to_owned(),
            peer.address.port(),
        ),
    ]);
    config.resolver = Arc::new(Local {
        services,
        ..Local::default()
    });
    let client = FederationClient::new(config);

    version_of(&client, "peer.test").await.unwrap();
    let request = peer.requests.recv().await.unwrap();
    assert_eq!(header(&request, "host"), Some("peer.test"));

    let error = version_of(&client, "impostor.test").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect(_)), "{error:?}");
    assert!(error.is_server_down());
    assert!(peer.requests.try_recv().is_err());
}

#[tokio::test]
async fn what_the_guard_denies_is_not_connected_to() {
    let mut peer = Peer::json("peer.test", VERSION).await;
    let mut config = config(&[&peer]);
    config.egress = Arc::default();
    config
        .names
        .insert("peer.test".try_into().unwrap(), peer.address);
    let client = FederationClient::new(config);
    let port = peer.address.port();
    for name in [
        "peer.test".to_owned(),
        format!("peer.test:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        // Not an address to us, but one to URLs.
        format!("127.1:{port}"),
        format!("2130706433:{port}"),
    ] {
        let error = version_of(&client, &name).await.unwrap_err();
        assert!(matches!(error, ClientError::Denied(_)), "{name}: {error:?}");
    }
    assert!(peer.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_host_that_only_urls_take_for_an_address_is_denied() {
    let peer = Peer::json("peer.test", VERSION).await;
    // The guard lets this machine pass, but not by such a name.
    let mut config = config(&[&peer]);
    config.egress = Arc::new(Egress::new(vec!["127.0.0.1".parse().unwrap()]));
    let client = FederationClient::new(config);
    let name = format!("127.9:{}", peer.address.port());
    let error = version_of(&client, &name).await.unwrap_err();
    assert!(matches!(error, ClientError::Denied(_)), "{error:?}");
}

async fn error_of(answer: String, limit: usize) -> ClientError {
    let peer = Peer::start("peer.test", answer).await;
    let mut config = config(&[&peer]);
    config
        .names
        .insert("peer.test".try_into().unwrap(), peer.address);
    config.limits.answer = limit;
    version_of(&FederationClient::new(config), "peer.test")
        .await
        .unwrap_err()
}

#[tokio::test]
async fn errors_of_the_other_server_are_told_without_its_words() {
    let body = r#"{"errcode":"M_FORBIDDEN","error":"secret words"}"#;
    let error = error_of(with_body("403 Forbidden", "", body), 1000).await;
    assert_eq!(
        error.to_string(),
        "the server answered with 403 M_FORBIDDEN"
    );
    assert_eq!(error.matrix().unwrap().status_code, 403);
    assert!(!error.is_server_down());
    let error = error_of(with_body("502 Bad Gateway", "", "<html>"), 1000).await;
    assert!(error.is_server_down());
}

#[tokio::test]
async fn answers_are_bounded_and_redirects_are_not_followed() {
    let error = error_of(with_body("200 OK", "", VERSION), VERSION.len() - 1).await;
    assert!(matches!(error, ClientError::TooLarge), "{error:?}");
    // Without a length, and with a wrong one.
    let endless = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
        "x".repeat(5000)
    );
    let error = error_of(endless, 4999).await;
    assert!(matches!(error, ClientError::TooLarge), "{error:?}");

    let redirect = with_body(
        "307 Temporary Redirect",
        "Location: https://a.test/\r\n",
        "",
    );
    let error = error_of(redirect, 1000).await;
    assert!(matches!(error, ClientError::Redirected), "{error:?}");

    let error = error_of(with_body("200 OK", "", "{"), 1000).await;
    assert!(matches!(error, ClientError::MalformedAnswer), "{error:?}");
}

#[tokio::test]
async fn a_server_does_not_speak_to_itself() {
    let client = FederationClient::new(config(&[]));
    let error = version_of(&client, "us.test").await.unwrap_err();
    assert!(matches!(error, ClientError::Ourselves));
}

#[tokio::test]
async fn keys_are_fetched_without_a_signature_and_verified() {
    let name = server_name!("peer.test");
    let until = MilliSecondsSinceUnixEpoch(uint!(2_000_000));
    let list = serde_json::to_string(&own_response(name, &key(), &[], until).unwrap()).unwrap();
    let mut peer = Peer::json("peer.test", &list).await;
    let batch = format!(
        "{{\"server_keys\":[{list},{{}},{}]}}",
        list.replace("peer", "bear")
    );
    let notary = Peer::json("notary.test", &batch).await;
    let liar = Peer::json("liar.test", &list).await;
    let mut config = config(&[&peer, &notary, &liar]);
    for (name, peer) in [
        ("peer.test", &peer),
        ("notary.test", &notary),
        ("liar.test", &liar),
    ] {
        config.names.insert(name.try_into().unwrap(), peer.address);
    }
    let client = FederationClient::new(config);

    let fetched = client.server_keys(name).await.unwrap();
    assert_eq!(fetched.keys.valid_until(), until);
    assert_eq!(fetched.json.get(), list);
    assert_eq!(
        header(&peer.requests.recv().await.unwrap(), "authorization"),
        None
    );
    assert!(client.server_keys(server_name!("liar.test")).await.is_err());

    let wanted = BTreeMap::from([
        (name.to_owned(), vec![key().id().to_owned()]),
        (
            server_name!("bear.test").to_owned(),
            vec![key().id().to_owned()],
        ),
    ]);
    let notary = server_name!("notary.test");
    let fetched = client
        .server_keys_from_notary(notary, &wanted, Some(until))
        .await
        .unwrap();
    assert_eq!(fetched.len(), 1);
    assert_eq!(fetched[0].keys.server_name(), name);
}
