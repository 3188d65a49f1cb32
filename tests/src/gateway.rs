//! A push gateway that writes down what it is told.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// How long a test waits for a notification.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running gateway. It ends when this is dropped.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Behavior>,
    received: watch::Sender<Vec<Value>>,
}

#[derive(Debug, Default)]
struct Behavior {
    away: bool,
    pause: Duration,
    refused: usize,
    rejected: BTreeSet<String>,
}

impl Gateway {
    /// Starts one.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            received: watch::Sender::new(Vec::new()),
        });
        let router = Router::new()
            .route("/_matrix/push/v1/notify", post(notify))
            .with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its number");
        #[expect(clippy::disallowed_methods, reason = "ended by the drop of the value")]
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        Self {
            address,
            shared,
            task,
        }
    }

    /// What a pusher is given.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/_matrix/push/v1/notify", self.address)
    }

    /// From now on the gateway answers that it cannot do anything, or does what it should.
    pub fn set_away(&self, away: bool) {
        self.behavior().away = away;
    }

    /// From now on the gateway writes down what it is told, and answers after this.
    pub fn set_pause(&self, pause: Duration) {
        self.behavior().pause = pause;
    }

    /// How many requests it refused.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.behavior().refused
    }

    /// From now on a push key is rejected.
    pub fn reject(&self, pushkey: &str) {
        self.behavior().rejected.insert(pushkey.to_owned());
    }

    /// What it was told, in order: the content of `notification`.
    #[must_use]
    pub fn received(&self) -> Vec<Value> {
        self.shared.received.borrow().clone()
    }

    /// What it was told of events, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let mut received = self.received();
        received.retain(|notification| notification.get("event_id").is_some());
        received
    }

    /// The texts that it was told, in order.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let events = self.events().into_iter();
        events
            .map(|event| event["content"]["body"].as_str().unwrap_or("").to_owned())
            .collect()
    }

    /// Waits until it was told something that is wanted.
    pub async fn wait(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut received = self.shared.received.subscribe();
        let found = received.wait_for(|received| received.iter().any(&mut wanted));
        let found = tokio::time::timeout(PATIENCE, found).await;
        let Ok(Ok(found)) = found else {
            panic!("the gateway waited in vain; it has {:#?}", self.received());
        };
        found
            .iter()
            .find(|value| wanted(value))
            .cloned()
            .expect("it was there")
    }

    /// Waits for a text.
    pub async fn wait_for_text(&self, text: &str) -> Value {
        self.wait(|notification| notification["content"]["body"] == text)
            .await
    }

    fn behavior(&self) -> MutexGuard<'_, Behavior> {
        lock(&self.shared.state)
    }
}

impl Shared {
    /// What is answered to a notification, and after which time.
    fn hear(&self, notification: &Value) -> ((StatusCode, String), Duration) {
        let mut behavior = lock(&self.state);
        if behavior.away {
            behavior.refused += 1;
            let answer = (StatusCode::BAD_GATEWAY, "not now".to_owned());
            return (answer, Duration::ZERO);
        }
        let devices = notification["devices"].as_array().expect("devices").iter();
        let keys = devices.map(|device| device["pushkey"].as_str().expect("a key").to_owned());
        let rejected: Vec<_> = keys.filter(|key| behavior.rejected.contains(key)).collect();
        if rejected.is_empty() {
            self.received
                .send_modify(|received| received.push(notification.clone()));
        }
        let answer = json!({ "rejected": rejected }).to_string();
        ((StatusCode::OK, answer), behavior.pause)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn notify(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let content_type = headers.get("content-type");
    assert!(content_type.is_some_and(|value| value == "application/json"));
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let (answer, pause) = shared.hear(&body["notification"]);
    tokio::time::sleep(pause).await;
    answer
}
