//! Files of other servers, which send those who want them elsewhere.

use ruma::RoomVersionId;
use sotto_tests::{FakeServer, Setup, TestServer, User, escape};

use super::{HOSTS, Trap, site};

/// How one is sent on.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By the answer of the server.
    Part,
    /// By that of the endpoint of before.
    Redirect,
    /// By a site to which the server sends.
    Chain,
}

const WAYS: [Way; 3] = [Way::Part, Way::Redirect, Way::Chain];

struct Scene {
    fake: FakeServer,
    alice: User,
    site: std::net::SocketAddr,
    _servers: [TestServer; 2],
}

impl Scene {
    async fn new() -> Self {
        let setup = Setup::with(|config| {
            config.federation.allow_networks = vec!["127.0.0.1/32".to_owned()];
        });
        let mut servers = setup.federation(2).await;
        let mut other = servers.pop().unwrap();
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        let ours = servers.pop().unwrap();
        let alice = ours.register("alice").await;
        Self {
            fake,
            alice,
            site: site().await,
            _servers: [ours, other],
        }
    }

    /// Alice wants a file, and the server is sent to this URL.
    async fn provoke(&self, way: Way, number: usize, url: &str) {
        let (id, url) = match way {
            Way::Part => (format!("new{number}"), url.to_owned()),
            Way::Redirect => (format!("old{number}"), url.to_owned()),
            Way::Chain => {
                let url = format!("http://{}/moved?to={}", self.site, escape(url));
                (format!("chain{number}"), url)
            }
        };
        self.fake.send_on(&url);
        let path = format!("/_matrix/client/v1/media/download/b.test/{id}");
        let answer = self.alice.get(&path).await;
        assert!(!answer.status.is_success(), "{way:?} {url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_not_fetched_from_inside() {
    let scene = Scene::new().await;
    let trap = Trap::set();
    for (number, host) in HOSTS.into_iter().enumerate() {
        for way in WAYS {
            let url = format!("http://{host}:{}/file", trap.port);
            scene.provoke(way, number, &url).await;
            assert_eq!(trap.reached(), 0, "{way:?} {url}");
        }
    }
    // The control: by each way one is sent where the operator allows.
    for way in WAYS {
        let open = Trap::set();
        let url = format!("http://127.0.0.1:{}/file", open.port);
        scene.provoke(way, HOSTS.len(), &url).await;
        open.wait_for(1).await;
    }
    assert_eq!(trap.reached(), 0);
}
