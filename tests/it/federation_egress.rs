//! Where the server does not connect to, whoever asks it to.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::Method;
use serde_json::json;
use sotto_homeserver::config::Config;
use sotto_tests::{Setup, TestServer, User, escape};

/// Ports on this machine that nobody should reach, and how often somebody did.
struct Trap {
    port: u16,
    reached: Arc<AtomicUsize>,
}

impl Trap {
    fn set() -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = four.local_addr().unwrap().port();
        // Not every machine has the other protocol.
        let six = TcpListener::bind(("::1", port)).ok();
        for listener in std::iter::once(four).chain(six) {
            let reached = reached.clone();
            std::thread::spawn(move || {
                while listener.accept().is_ok() {
                    reached.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { port, reached }
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::Relaxed)
    }
}

/// Makes the server want to speak to another of this name, in every way that there is.
async fn provoke(server: &TestServer, alice: &User, name: &str) {
    let nobody = User::anonymous(server.url());
    nobody
        .get(&format!("/_matrix/key/v2/query/{}", escape(name)))
        .await;
    let body = json!({ "server_keys": { name: {} } });
    nobody.post("/_matrix/key/v2/query", &body).await;
    let user = format!("@somebody:{name}");
    let client = |rest: String| format!("/_matrix/client/v3/{rest}");
    for path in [
        client(format!("profile/{}", escape(&user))),
        client(format!(
            "directory/room/{}",
            escape(&format!("#room:{name}"))
        )),
        client(format!("publicRooms?server={}", escape(name))),
        format!("/_matrix/client/v1/media/download/{}/abc", escape(name)),
        format!(
            "/_matrix/client/v1/media/thumbnail/{}/abc?width=8&height=8",
            escape(name)
        ),
    ] {
        alice.get(&path).await;
    }
    let room_id = alice.create_room(&json!({})).await;
    let elsewhere = format!("!room:{name}");
    let claim = json!({ "one_time_keys": { &user: { "D": "signed_curve25519" } } });
    for (path, body) in [
        (
            client("keys/query".to_owned()),
            json!({ "device_keys": { &user: [] } }),
        ),
        (client("keys/claim".to_owned()), claim),
        (
            sotto_tests::room(&room_id, "invite"),
            json!({ "user_id": user }),
        ),
        (
            client(format!("join/{}?via={}", escape(&elsewhere), escape(name))),
            json!({}),
        ),
        (
            client(format!("knock/{}?via={}", escape(&elsewhere), escape(name))),
            json!({}),
        ),
    ] {
        alice.post(&path, &body).await;
    }
    let messages = json!({ "messages": { &user: { "*": { "a": 1 } } } });
    let path = client(format!("sendToDevice/m.test/{}", escape(name)));
    alice.put(&path, &messages).await;
    sign(server, name).await;
}

/// Whoever signs a request makes the server fetch the key with which it was signed.
async fn sign(server: &TestServer, name: &str) {
    let header = format!(
        "X-Matrix origin=\"{name}\",key=\"ed25519:1\",sig=\"{}\"",
        "A".repeat(86)
    );
    let url = format!("{}/_matrix/federation/v1/event/$x", server.url());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http
        .request(Method::GET, url)
        .header("authorization", header);
    assert_eq!(request.send().await.unwrap().status(), 401);
}

async fn reached(change: fn(&mut Config), names: &[&str]) -> Vec<usize> {
    let server = Setup::with(change).start().await;
    let alice = server.register("alice").await;
    let mut counts = Vec::new();
    for name in names {
        let trap = Trap::set();
        provoke(&server, &alice, &format!("{name}:{}", trap.port)).await;
        counts.push(trap.reached());
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_reaches_what_is_inside() {
    let names = [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "localhost",
    ];
    let counts = reached(|_| {}, &names).await;
    assert!(counts.iter().all(|count| *count == 0), "{counts:?}");
    // The same, where the operator wants it.
    let inside = |config: &mut Config| {
        config.federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
    };
    let counts = reached(inside, &names[..1]).await;
    assert!(counts[0] >= 3, "{counts:?}");
}
