//! Where the server does not connect to, whoever asks it to.

mod files;
mod names;
mod policy;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::RawQuery,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    routing::get,
};
use http::Method;
use serde_json::json;
use sotto_federation::room::signing::SigningKey;
use sotto_tests::{Setup, TestServer, User, escape, room};

/// Ways to write this machine, and networks that are not public. What the operator allows, 127.0.0.1, is not
/// among them.
const HOSTS: [&str; 42] = [
    "127.0.0.2",
    "127.2",
    "127.0.2",
    "127.255.255.254",
    "2130706434",
    "0x7f000002",
    "0x7f.0.0.2",
    "0177.0.0.2",
    "017700000002",
    "0.0.0.0",
    "0",
    "127.127.127.127",
    "0x7f.2",
    "[::ffff:169.254.169.254]",
    "%31%32%37.0.0.2",
    "127。0。0。2",
    "①②⑦.⓪.⓪.②",
    "nobody@127.0.0.2",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:2]",
    "[::ffff:0.0.0.0]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "10.0.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
];

/// A port of all addresses of this machine, and how often somebody connected to it.
struct Trap {
    port: u16,
    reached: Arc<AtomicUsize>,
}

impl Trap {
    fn set() -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        // Most machines take what comes for the old protocol at the new one's address too, but not all have it.
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"));
        let listener = listener.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = reached.clone();
        std::thread::spawn(move || {
            while listener.accept().is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { port, reached }
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::Relaxed)
    }

    /// Waits until so many connected.
    async fn wait_for(&self, count: usize) {
        for _ in 0..400 {
            if self.reached() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nobody connects");
    }
}

/// What makes the server ask somebody else.
#[derive(Clone, Copy, Debug)]
enum Sink {
    Profile,
    Alias,
    PublicRooms,
    Media,
    Thumbnail,
    DeviceKeys,
    OneTimeKeys,
    Invite,
    Join,
    Knock,
    ToDevice,
    Notary,
    NotaryOfMany,
    Signature,
    Push,
    Preview,
    PreviewMoved,
    PreviewImage,
    IdentityServer,
    Binding,
    InviteKey,
}

const SINKS: [Sink; 21] = [
    Sink::Profile,
    Sink::Alias,
    Sink::PublicRooms,
    Sink::Media,
    Sink::Thumbnail,
    Sink::DeviceKeys,
    Sink::OneTimeKeys,
    Sink::Invite,
    Sink::Join,
    Sink::Knock,
    Sink::ToDevice,
    Sink::Notary,
    Sink::NotaryOfMany,
    Sink::Signature,
    Sink::Push,
    Sink::Preview,
    Sink::PreviewMoved,
    Sink::PreviewImage,
    Sink::IdentityServer,
    Sink::Binding,
    Sink::InviteKey,
];

struct Scene {
    server: TestServer,
    alice: User,
    bob: User,
    room_id: String,
    site: SocketAddr,
}

/// A site that leads elsewhere: `/moved` at once, `/image` by its picture.
async fn site() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let to = |RawQuery(query): RawQuery| {
        let url = format!("http://site.test/?{}", query.unwrap_or_default());
        let url = reqwest::Url::parse(&url).unwrap();
        url.query_pairs().next().unwrap().1.into_owned()
    };
    let moved = get(async move |query: RawQuery| (StatusCode::FOUND, [(LOCATION, to(query))]));
    let image = get(async move |query: RawQuery| {
        let page = format!(
            "<title>x</title><meta property=og:image content=\"{}\">",
            to(query)
        );
        ([(CONTENT_TYPE, "text/html")], page)
    });
    let router = Router::new().route("/moved", moved).route("/image", image);
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

impl Scene {
    async fn new() -> Self {
        let server = Setup::with(|config| {
            config.previews.enabled = true;
            config.federation.allow_networks = vec!["127.0.0.1/32".to_owned()];
        });
        let server = server.start().await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
        bob.join(&room_id).await.ok();
        Self {
            server,
            alice,
            bob,
            room_id,
            site: site().await,
        }
    }

    /// Makes the server ask the host.
    async fn provoke(&self, sink: Sink, host: &str) {
        let (alice, client) = (&self.alice, "/_matrix/client/v3");
        let (name, user) = (escape(host), format!("@somebody:{host}"));
        let media =
            |what: &str| format!("/_matrix/client/v1/media/{what}/{name}/abc?width=8&height=8");
        let enter = |how: &str| {
            let room_id = escape(&format!("!room:{host}"));
            format!("{client}/{how}/{room_id}?via={name}")
        };
        match sink {
            Sink::Profile => drop(
                alice
                    .get(&format!("{client}/profile/{}", escape(&user)))
                    .await,
            ),
            Sink::Alias => {
                let alias = escape(&format!("#room:{host}"));
                alice.get(&format!("{client}/directory/room/{alias}")).await;
            }
            Sink::PublicRooms => {
                alice
                    .get(&format!("{client}/publicRooms?server={name}"))
                    .await;
            }
            Sink::Media => drop(alice.get(&media("download")).await),
            Sink::Thumbnail => drop(alice.get(&media("thumbnail")).await),
            Sink::DeviceKeys => {
                let body = json!({ "device_keys": { user: [] } });
                alice.post(&format!("{client}/keys/query"), &body).await;
            }
            Sink::OneTimeKeys => {
                let body = json!({ "one_time_keys": { user: { "D": "signed_curve25519" } } });
                alice.post(&format!("{client}/keys/claim"), &body).await;
            }
            Sink::Invite => drop(alice.invite(&self.room_id, &user).await),
            Sink::Join => drop(alice.post(&enter("join"), &json!({})).await),
            Sink::Knock => drop(alice.post(&enter("knock"), &json!({})).await),
            Sink::ToDevice => {
                let body = json!({ "messages": { user: { "*": { "a": 1 } } } });
                let path = format!("{client}/sendToDevice/m.test/{name}");
                alice.put(&path, &body).await;
            }
            Sink::Notary | Sink::NotaryOfMany | Sink::Signature => self.keys(sink, host).await,
            Sink::Push => self.push(host).await,
            Sink::Preview | Sink::PreviewMoved | Sink::PreviewImage => {
                self.preview(sink, host).await;
            }
            Sink::IdentityServer | Sink::Binding => self.identity(sink, host).await,
            Sink::InviteKey => self.invite_key(host).await,
        }
    }

    async fn identity(&self, sink: Sink, host: &str) {
        let mut body = json!({ "id_server": host, "id_access_token": "x" });
        let (path, more) = match sink {
            Sink::Binding => (
                "/_matrix/client/v3/account/3pid/bind".to_owned(),
                ["sid", "client_secret"],
            ),
            _ => (room(&self.room_id, "invite"), ["medium", "address"]),
        };
        for name in more {
            body[name] = json!("email");
        }
        self.alice.post(&path, &body).await;
    }

    /// Whoever brings a signature for an invite makes the server ask whether its key still counts.
    async fn invite_key(&self, host: &str) {
        let key = SigningKey::generate().unwrap();
        let content = json!({
            "display_name": "b...", "public_key": key.public_key_base64(),
            "key_validity_url": format!("https://{host}/_matrix/identity/v2/pubkey/isvalid"),
        });
        let path = format!("state/m.room.third_party_invite/{}", escape(host));
        self.alice
            .put(&room(&self.room_id, &path), &content)
            .await
            .ok();
        let (bob, sender) = (&self.bob.user_id, &self.alice.user_id);
        let signed = json!({ "mxid": bob, "token": host });
        let mut signed: ruma::CanonicalJsonObject = serde_json::from_value(signed).unwrap();
        key.sign_json(&mut signed, ruma::server_name!("id.test"))
            .unwrap();
        let invite = json!({ "room_id": self.room_id, "sender": sender, "signed": signed });
        let body = json!({ "mxid": bob, "invites": [invite] });
        let nobody = User::anonymous(self.server.url());
        nobody
            .put("/_matrix/federation/v1/3pid/onbind", &body)
            .await;
    }

    /// Whoever is asked for keys, or signs a request, makes the server fetch the key.
    async fn keys(&self, sink: Sink, host: &str) {
        let nobody = User::anonymous(self.server.url());
        match sink {
            Sink::Notary => {
                let path = format!("/_matrix/key/v2/query/{}", escape(host));
                nobody.get(&path).await;
            }
            Sink::NotaryOfMany => {
                let body = json!({ "server_keys": { host: {} } });
                nobody.post("/_matrix/key/v2/query", &body).await;
            }
            _ => {
                let sig = "A".repeat(86);
                let header = format!("X-Matrix origin=\"{host}\",key=\"ed25519:1\",sig=\"{sig}\"");
                let url = format!("{}/_matrix/federation/v1/event/$x", self.server.url());
                let http = reqwest::Client::builder().no_proxy().build().unwrap();
                let header = header.into_bytes();
                let request = http
                    .request(Method::GET, url)
                    .header("authorization", header);
                assert!(request.send().await.unwrap().status().is_client_error());
            }
        }
    }

    async fn push(&self, host: &str) {
        let pusher = json!({
            "kind": "http", "app_id": "a", "pushkey": host, "lang": "en",
            "app_display_name": "An app", "device_display_name": "A device",
            "data": { "url": format!("https://{host}/_matrix/push/v1/notify") },
        });
        self.alice
            .post("/_matrix/client/v3/pushers/set", &pusher)
            .await;
        self.bob.send(&self.room_id, "Did you hear?").await;
    }

    async fn preview(&self, sink: Sink, host: &str) {
        let url = format!("http://{host}/page");
        let by = |how: &str| format!("http://{}/{how}?to={}", self.site, escape(&url));
        let url = match sink {
            Sink::PreviewMoved => by("moved"),
            Sink::PreviewImage => by("image"),
            _ => url,
        };
        let path = format!("/_matrix/client/v1/media/preview_url?url={}", escape(&url));
        self.alice.get(&path).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_reaches_what_is_inside() {
    let scene = Scene::new().await;
    let trap = Trap::set();
    for host in HOSTS {
        let name = format!("{host}:{}", trap.port);
        for sink in SINKS {
            let asked = tokio::time::timeout(Duration::from_secs(20), scene.provoke(sink, &name));
            // Who waits for a network that does not answer has asked it.
            assert!(asked.await.is_ok(), "{sink:?} {name} takes its time");
            assert_eq!(trap.reached(), 0, "{sink:?} {name}");
        }
    }
    // The control: each of them reaches what the operator allows. What is done a little later for those
    // before is done by then.
    for sink in SINKS {
        let open = Trap::set();
        scene
            .provoke(sink, &format!("127.0.0.1:{}", open.port))
            .await;
        println!("{sink:?}");
        open.wait_for(1).await;
    }
    assert_eq!(trap.reached(), 0);
}

/// Names lead somewhere only once they are looked up.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_what_is_inside_are_not_reached() {
    let (inside, open) = (Trap::set(), Trap::set());
    let (one, other) = (inside.port, open.port);
    let server = Setup::with(move |config| {
        config.federation.allow_networks = vec!["127.0.0.1/32".to_owned()];
        let mut name = |name: &str, address: [u8; 4], port: u16| {
            let name = ruma::ServerName::parse(name).unwrap();
            config.federation.names.insert(name, (address, port).into());
        };
        // As a server, as the host of its `.well-known` file, and where there is none.
        name("inside.test:8000", [127, 0, 0, 2], one);
        name("known.inside.test:443", [127, 0, 0, 2], one);
        name("known.inside.test:8448", [0, 0, 0, 0], one);
        name("open.test:8000", [127, 0, 0, 1], other);
        name("known.open.test:443", [127, 0, 0, 1], other);
    });
    let server = server.start().await;
    let alice = server.register("alice").await;
    let profile = async |name: &str| {
        let user = escape(&format!("@somebody:{name}"));
        alice
            .get(&format!("/_matrix/client/v3/profile/{user}"))
            .await;
    };
    for name in ["inside.test:8000", "known.inside.test"] {
        profile(name).await;
        assert_eq!(inside.reached(), 0, "{name}");
    }
    let closed = TestServer::start().await;
    let user = escape(&format!("@somebody:localhost:{one}"));
    let path = format!("/_matrix/client/v3/profile/{user}");
    closed.register("alice").await.get(&path).await;
    assert_eq!(inside.reached(), 0, "localhost");
    for name in ["open.test:8000", "known.open.test"] {
        let before = open.reached();
        profile(name).await;
        open.wait_for(before + 1).await;
    }
}
