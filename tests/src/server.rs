//! Servers.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ruma::{OwnedServerName, ServerName};
use serde_json::json;
use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Registration},
};
use tempfile::TempDir;

use crate::{Database, Links, User};

/// A server, with its data and its clock.
#[derive(Debug)]
pub struct TestServer {
    config: Config,
    clock: Clock,
    running: Option<Homeserver>,
    database: Database,
    directory: Arc<TempDir>,
}

/// Changes a configuration.
type Change = Arc<dyn Fn(&mut Config) + Send + Sync>;

/// What servers are made with.
#[derive(Clone, Default)]
pub struct Setup {
    change: Option<Change>,
}

impl Setup {
    /// Changes the configuration before the start.
    #[must_use]
    pub fn with(change: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        Self {
            change: Some(Arc::new(change)),
        }
    }

    /// Starts one server that does not federate.
    pub async fn start(self) -> TestServer {
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        let name = ruma::owned_server_name!("one.test");
        let mut config = Config::new(name);
        config.data_dir = directory.path().join("data");
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        self.run(config, directory).await
    }

    /// As [`Setup::federation`], on lines that a test can disturb.
    pub async fn federation_on_links(self, count: usize, seed: u64) -> (Vec<TestServer>, Links) {
        let addresses: Vec<_> = (0..count).map(|_| free_port()).collect();
        let links = Links::between(&addresses, seed).await;
        let servers = self.federate(&addresses, Some(&links)).await;
        (servers, links)
    }

    /// Starts servers that federate with each other, over TLS, under the names `a.test`, `b.test`, …
    pub async fn federation(self, count: usize) -> Vec<TestServer> {
        let addresses: Vec<_> = (0..count).map(|_| free_port()).collect();
        self.federate(&addresses, None).await
    }

    async fn federate(self, addresses: &[SocketAddr], links: Option<&Links>) -> Vec<TestServer> {
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        let servers: Vec<(OwnedServerName, SocketAddr)> = (b'a'..)
            .zip(addresses)
            .map(|(letter, address)| {
                let name = format!("{}.test", char::from(letter));
                (ServerName::parse(name).expect("a name"), *address)
            })
            .collect();
        // Others, such as identity servers, are asked at their address.
        let names: Vec<_> = servers
            .iter()
            .map(|(name, _)| [name.as_str(), "127.0.0.1"])
            .collect();
        certificates(directory.path(), names.iter().map(<[_; 2]>::as_slice));
        let mut started = Vec::new();
        for (index, (name, address)) in servers.iter().enumerate() {
            let mut config = Config::new(name.clone());
            config.data_dir = directory.path().join(name.as_str());
            config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let federation = &mut config.federation;
            federation.listen = Some(*address);
            federation.certificate = Some(directory.path().join(format!("{name}.crt")));
            federation.private_key = Some(directory.path().join(format!("{name}.key")));
            federation.ca_file = Some(directory.path().join("ca.crt"));
            federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
            let others = servers.iter().enumerate().map(|(to, (name, address))| {
                let address = links.map_or(*address, |links| links.address(index, to));
                (name.clone(), address)
            });
            federation.names = others.collect();
            started.push(self.clone().run(config, directory.clone()).await);
        }
        started
    }

    async fn run(self, mut config: Config, directory: Arc<TempDir>) -> TestServer {
        config.registration = Registration::Open;
        config.rate_limits.enabled = false;
        let database = Database::fresh().await;
        config.database = database.url();
        if let Some(change) = self.change {
            change(&mut config);
        }
        let clock = Clock::movable();
        // Boxed: a server on its way up is large.
        let running = Box::pin(Homeserver::start(config.clone(), clock.clone())).await;
        let running = Some(running.expect("the server starts"));
        TestServer {
            config,
            clock,
            running,
            database,
            directory,
        }
    }
}

impl TestServer {
    /// A server that does not federate.
    pub async fn start() -> Self {
        Setup::default().start().await
    }

    /// Two servers that federate.
    pub async fn pair() -> (Self, Self) {
        let mut servers = Setup::default().federation(2).await;
        let (b, a) = (servers.pop(), servers.pop());
        a.zip(b).expect("two servers")
    }

    /// The name of the server.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// The clock that the server goes by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        let running = self.running.as_ref().expect("the server runs");
        format!("http://{}", running.address())
    }

    /// The token that lets the first account be made.
    #[must_use]
    pub fn first_registration_token(&self) -> Option<String> {
        let running = self.running.as_ref().expect("the server runs");
        running.first_registration_token().map(ToOwned::to_owned)
    }

    /// Where other servers connect, whether or not the server runs.
    #[must_use]
    pub fn federation_address(&self) -> SocketAddr {
        let listen = self.config.federation.listen;
        listen.expect("the server federates")
    }

    /// Where the data of the server is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// The directory that all servers of the test share.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The URL under which a test can look into the database.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.database.inspect_url(&self.config.data_dir)
    }

    /// What the server is configured with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Stops the server; its data stay.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            // The same port as before, so that users of the test find it again.
            self.config.listen = running.address();
            running.stop().await;
        }
    }

    /// Starts the server again on its data and its port.
    pub async fn resume(&mut self) {
        let running = Box::pin(Homeserver::start(self.config.clone(), self.clock.clone())).await;
        self.running = Some(running.expect("the server starts again"));
    }

    /// Stops and starts.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.resume().await;
    }

    /// Lets anybody register, after a restart.
    pub async fn open_registration(&mut self) {
        self.reconfigure(|config| config.registration = Registration::Open)
            .await;
    }

    /// Changes the configuration, with a restart.
    pub async fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) {
        self.stop().await;
        change(&mut self.config);
        self.resume().await;
    }

    /// Makes an account, logged in.
    pub async fn register(&self, name: &str) -> User {
        let nobody = User::anonymous(self.url());
        let body = json!({
            "username": name,
            "password": format!("the password of {name}"),
            "auth": { "type": "m.login.dummy" },
        });
        let answer = nobody.post("/_matrix/client/v3/register", &body).await.ok();
        User::new(self.url(), &answer)
    }

    /// Logs in a further device of an account that [`TestServer::register`] made.
    pub async fn log_in(&self, name: &str) -> User {
        let nobody = User::anonymous(self.url());
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": format!("the password of {name}"),
        });
        let answer = nobody.post("/_matrix/client/v3/login", &body).await.ok();
        User::new(self.url(), &answer)
    }
}

/// A port on which nobody listens; of those that are given to nobody who asks for any, or one of the many
/// connections of a test would take it before the server does. Nor is it given to another test, which might listen
/// first, or while the server is restarted.
fn free_port() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    let ports = std::iter::repeat_with(|| 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000);
    let mut addresses = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let is_free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    addresses.find(is_free).expect("a free port")
}

/// Writes a certificate authority, and certificates for one or more names each, called after the first.
pub(crate) fn certificates<'a>(directory: &Path, servers: impl Iterator<Item = &'a [&'a str]>) {
    let write = |file: String, text: String| {
        std::fs::write(directory.join(file), text).expect("the directory can be written");
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let ca = CertifiedIssuer::self_signed(params, key).expect("a certificate authority");
    write("ca.crt".to_owned(), ca.pem());
    for names in servers {
        let key = KeyPair::generate().expect("a key");
        let name = names[0];
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &ca).expect("a certificate");
        write(format!("{name}.crt"), certificate.pem());
        write(format!("{name}.key"), key.serialize_pem());
    }
}
