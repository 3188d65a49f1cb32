//! Killed at any moment, the server loses nothing that it acknowledged and doubles nothing that was asked again.

mod appservices;
mod devices;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Registration},
};
use sotto_tests::{Database, User, room};

/// How often the server is killed.
const KILLS: usize = 100;
/// How many send at once.
const SENDERS: usize = 8;
/// Set for the process that is the server: data directory, address and database, as JSON.
const CHILD: &str = "SOTTO_CRASH_TEST_SERVER";

/// Not a test but the server that is killed, in a process of its own: this program started again.
#[test]
fn server_process() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let setting: Value = serde_json::from_str(&text).unwrap();
    let mut config = Config::new(ruma::owned_server_name!("crash.test"));
    config.data_dir = setting["data_dir"].as_str().unwrap().into();
    config.listen = setting["listen"].as_str().unwrap().parse().unwrap();
    config.database = setting["database"].as_str().map(ToOwned::to_owned);
    let services = setting["appservices"].as_array().unwrap().iter();
    config.appservices = services.map(|it| it.as_str().unwrap().into()).collect();
    config.registration = Registration::Open;
    config.rate_limits.enabled = false;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _server = Homeserver::start(config, Clock::system()).await.unwrap();
        std::future::pending::<()>().await;
    });
}

struct Victim {
    child: Child,
    setting: String,
    url: String,
}

impl Victim {
    async fn start(data_dir: &Path, database: &Database) -> Self {
        Self::with_services(data_dir, database, &[]).await
    }

    async fn with_services(data_dir: &Path, database: &Database, services: &[PathBuf]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen: SocketAddr = port.local_addr().unwrap();
        drop(port);
        let setting = json!({ "data_dir": data_dir, "listen": listen, "database": database.url(),
            "appservices": services });
        let (setting, url) = (setting.to_string(), format!("http://{listen}"));
        let child = Self::spawn(&setting);
        let victim = Self {
            child,
            setting,
            url,
        };
        victim.ready().await;
        victim
    }

    fn spawn(setting: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "crash::server_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, setting)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn ready(&self) {
        let nobody = User::anonymous(self.url.clone());
        for _ in 0..600 {
            if nobody
                .try_request(Method::GET, "/health", None)
                .await
                .is_some()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server does not come back");
    }

    /// SIGKILL, and a new start.
    async fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.setting);
        self.ready().await;
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Asks again, with the same words, until there is an answer.
async fn insist(user: &User, method: Method, path: &str, body: &Value) -> Value {
    loop {
        let bytes = Some(body.to_string().into_bytes());
        match user.try_request(method.clone(), path, bytes).await {
            Some(answer) if answer.status.is_success() => return answer.body,
            // A server that is going down may say so; anything else is a fault.
            Some(answer) => assert_eq!(answer.status.as_u16(), 503, "{}", answer.body),
            None => {}
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn register(victim: &Victim, name: &str) -> User {
    let body = json!({
        "username": name, "password": "a password", "auth": { "type": "m.login.dummy" },
    });
    let nobody = User::anonymous(victim.url.clone());
    User::new(
        victim.url.clone(),
        &nobody.post("/_matrix/client/v3/register", &body).await.ok(),
    )
}

/// What was acknowledged: the event id by the number in the text.
type Acknowledged = Arc<Mutex<BTreeMap<usize, String>>>;

fn sender(
    user: User,
    rooms: Vec<String>,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
) -> tokio::task::JoinHandle<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test waits for the task itself"
    )]
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let path = room(
                &rooms[n % rooms.len()],
                &format!("send/m.room.message/n{n}"),
            );
            let content = json!({ "msgtype": "m.text", "body": n.to_string() });
            let answer = insist(&user, Method::PUT, &path, &content).await;
            let event_id = answer["event_id"].as_str().unwrap().to_owned();
            acknowledged.lock().unwrap().insert(n, event_id);
        }
    })
}

/// Every event of a room, by the number in its text.
async fn history(user: &User, room_id: &str) -> BTreeMap<usize, Vec<String>> {
    let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut from = String::new();
    loop {
        let page = user
            .get(&room(room_id, &format!("messages?dir=b&limit=500{from}")))
            .await
            .ok();
        for event in page["chunk"].as_array().unwrap() {
            if let Some(n) = event["content"]["body"]
                .as_str()
                .and_then(|text| text.parse().ok())
            {
                found
                    .entry(n)
                    .or_default()
                    .push(event["event_id"].as_str().unwrap().to_owned());
            }
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return found,
        }
    }
}

async fn shared_rooms(alice: &User, bob: &User) -> Vec<String> {
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
        bob.join(&room_id).await.ok();
        rooms.push(room_id);
    }
    rooms
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_doubled() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::TempDir::new().unwrap();
    let database = Database::fresh().await;
    let mut victim = Victim::start(directory.path(), &database).await;
    let alice = register(&victim, "alice").await;
    let bob = register(&victim, "bob").await;
    let rooms = shared_rooms(&alice, &bob).await;
    let (next, stop) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let acknowledged = Acknowledged::default();
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (next, stop) = (next.clone(), stop.clone());
            sender(
                alice.clone(),
                rooms.clone(),
                next,
                stop,
                acknowledged.clone(),
            )
        })
        .collect();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..250))).await;
        victim.kill().await;
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(
        acknowledged.len() > KILLS,
        "only {} sends in all",
        acknowledged.len()
    );
    for user in [&alice, &bob] {
        let mut found = BTreeMap::new();
        for room_id in &rooms {
            found.extend(history(user, room_id).await);
        }
        for (n, event_id) in &acknowledged {
            let there = found.get(n);
            assert_eq!(
                there,
                Some(&vec![event_id.clone()]),
                "event {n}, seed {seed}"
            );
        }
        assert_eq!(found.len(), acknowledged.len());
    }
    println!("{} sends, {KILLS} kills", acknowledged.len());
}
