//! An application service that writes down what it is told.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{TestServer, User};

/// How long a test waits for something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running service. It ends when this is dropped.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    directory: TempDir,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    hs_token: String,
    behavior: Mutex<Behavior>,
    told: watch::Sender<Told>,
}

#[derive(Debug, Default)]
struct Behavior {
    away: bool,
    /// Answers to questions, by path and query.
    answers: BTreeMap<String, Value>,
    /// Where it registers users that it is asked for.
    home: Option<User>,
}

/// What it was told.
#[derive(Clone, Debug, Default)]
struct Told {
    /// The transactions that it took, each once.
    transactions: BTreeMap<u64, Value>,
    /// What came again: it must be the same.
    repeated: usize,
    refused: Vec<(u64, Value)>,
    asked: Vec<String>,
}

impl Bridge {
    /// Starts a service that has the users `@{name}_…`, the aliases `#{name}_…` and the sender `@{name}bot`,
    /// and writes its registration, with `more` lines of YAML.
    pub async fn start(name: &str, more: &str) -> Self {
        let namespaces = format!(
            "namespaces:\n  users: [{{exclusive: true, regex: '@{name}_.*'}}]\n  \
             aliases: [{{exclusive: true, regex: '#{name}_.*'}}]\n"
        );
        Self::with_namespaces(name, &namespaces, more).await
    }

    /// As [`Bridge::start`], with namespaces of its own.
    pub async fn with_namespaces(name: &str, namespaces: &str, more: &str) -> Self {
        let shared = Arc::new(Shared {
            hs_token: format!("hs_{name}"),
            behavior: Mutex::default(),
            told: watch::Sender::new(Told::default()),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its number");
        #[expect(clippy::disallowed_methods, reason = "ended by the drop of the value")]
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        let bridge = Self {
            name: name.to_owned(),
            directory: TempDir::new().expect("a temporary directory"),
            shared,
            task,
        };
        let yaml = format!(
            "id: {name}\nurl: http://{address}/bridge\nas_token: {token}\nhs_token: hs_{name}\n\
             sender_localpart: {name}bot\n{namespaces}{more}\n",
            token = bridge.token(),
        );
        std::fs::write(bridge.registration(), yaml).expect("the directory can be written");
        bridge
    }

    /// The registration file.
    #[must_use]
    pub fn registration(&self) -> PathBuf {
        self.directory.path().join("registration.yaml")
    }

    /// With what it speaks to the server.
    #[must_use]
    pub fn token(&self) -> String {
        format!("as_{}", self.name)
    }

    /// The service as a user of a server.
    #[must_use]
    pub fn client(&self, server: &TestServer) -> User {
        self.client_at(server.url())
    }

    /// As [`Bridge::client`], of a server in another process.
    #[must_use]
    pub fn client_at(&self, url: String) -> User {
        User::anonymous(url).with_token(&self.token())
    }

    /// Makes a user of the service.
    pub async fn register(&self, server: &TestServer, localpart: &str) -> User {
        let body = json!({ "type": "m.login.application_service", "username": localpart });
        let client = self.client(server);
        let answer = client.post("/_matrix/client/v3/register", &body).await.ok();
        User::new(server.url(), &answer)
    }

    /// Ends it. What connects from then on is refused.
    pub async fn stop(mut self) {
        self.task.abort();
        (&mut self.task).await.ok();
    }

    /// From now on it refuses transactions, or takes them.
    pub fn set_away(&self, away: bool) {
        self.behavior().away = away;
    }

    /// From now on it answers a question.
    pub fn know(&self, path: &str, answer: Value) {
        self.behavior().answers.insert(path.to_owned(), answer);
    }

    /// From now on it makes the users that it is asked for.
    pub fn make_users_on(&self, server: &TestServer) {
        self.behavior().home = Some(self.client(server));
    }

    /// What it was asked.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.shared.told.borrow().asked.clone()
    }

    /// The transactions that it took, in order.
    #[must_use]
    pub fn transactions(&self) -> Vec<(u64, Value)> {
        let told = self.shared.told.borrow();
        told.transactions.clone().into_iter().collect()
    }

    /// The transactions that it refused, in order.
    #[must_use]
    pub fn refused(&self) -> Vec<(u64, Value)> {
        self.shared.told.borrow().refused.clone()
    }

    /// How many transactions came again after it had taken them.
    #[must_use]
    pub fn repeated(&self) -> usize {
        self.shared.told.borrow().repeated
    }

    /// What it was told under a name, of all transactions, in order.
    #[must_use]
    pub fn told(&self, name: &str) -> Vec<Value> {
        let transactions = self.transactions().into_iter();
        let lists = transactions.filter_map(|(_, body)| body[name].as_array().cloned());
        lists.flatten().collect()
    }

    /// The texts of messages that it was told, in order.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let events = self.told("events").into_iter();
        events
            .filter_map(|event| event["content"]["body"].as_str().map(ToOwned::to_owned))
            .collect()
    }

    /// Waits until it was told something under a name.
    pub async fn wait(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = |told: &Told| {
            let lists = told.transactions.values().map(|body| &body[name]);
            let mut things = lists.filter_map(Value::as_array).flatten();
            things.find(|thing| wanted(thing)).cloned()
        };
        self.until(found).await
    }

    /// Waits for a text.
    pub async fn wait_for_text(&self, text: &str) -> Value {
        self.wait("events", |event| event["content"]["body"] == text)
            .await
    }

    /// Waits until it refused so many transactions.
    pub async fn wait_for_refusals(&self, count: usize) {
        self.until(|told| (told.refused.len() >= count).then_some(()))
            .await;
    }

    /// Waits for a transaction.
    pub async fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until(|told| {
            told.transactions
                .values()
                .find(|body| wanted(body))
                .cloned()
        })
        .await
    }

    async fn until<T>(&self, found: impl Fn(&Told) -> Option<T>) -> T {
        let mut told = self.shared.told.subscribe();
        let wait = told.wait_for(|told| found(told).is_some());
        let Ok(Ok(told)) = tokio::time::timeout(PATIENCE, wait).await else {
            panic!(
                "the bridge waited in vain; it has {:#?}",
                self.transactions()
            );
        };
        found(&told).expect("it was there")
    }

    fn behavior(&self) -> MutexGuard<'_, Behavior> {
        lock(&self.shared.behavior)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let token = headers.get("authorization").and_then(|it| it.to_str().ok());
    if token != Some(&format!("Bearer {}", shared.hs_token)) {
        return (
            StatusCode::FORBIDDEN,
            json!({ "errcode": "M_FORBIDDEN" }).to_string(),
        );
    }
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    let path = path
        .strip_prefix("/bridge/_matrix/app/v1/")
        .expect("the path of the service");
    if let Some(txn_id) = path.strip_prefix("transactions/") {
        assert_eq!(method, Method::PUT);
        let txn_id = txn_id.parse().expect("digits");
        let body = serde_json::from_slice(&body).expect("JSON");
        return (take(&shared, txn_id, body), "{}".to_owned());
    }
    shared
        .told
        .send_modify(|told| told.asked.push(path.to_owned()));
    let (known, home) = {
        let behavior = lock(&shared.behavior);
        (behavior.answers.get(path).cloned(), behavior.home.clone())
    };
    if let (Some(user_id), Some(home)) = (path.strip_prefix("users/@"), home) {
        let name = user_id.split(':').next().expect("a name");
        let body = json!({ "type": "m.login.application_service", "username": name });
        home.post("/_matrix/client/v3/register", &body).await.ok();
        return (StatusCode::OK, "{}".to_owned());
    }
    match known {
        Some(answer) => (StatusCode::OK, answer.to_string()),
        None => (StatusCode::NOT_FOUND, "{}".to_owned()),
    }
}

/// Takes a transaction, or not.
fn take(shared: &Shared, txn_id: u64, body: Value) -> StatusCode {
    let away = lock(&shared.behavior).away;
    shared.told.send_modify(|told| {
        if away {
            told.refused.push((txn_id, body));
        } else if let Some(before) = told.transactions.get(&txn_id) {
            assert_eq!(*before, body, "a transaction changed");
            told.repeated += 1;
        } else {
            told.transactions.insert(txn_id, body);
        }
    });
    if away {
        StatusCode::BAD_GATEWAY
    } else {
        StatusCode::OK
    }
}
