//! A line from clients to a server on which answers are lost and requests arrive twice.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Response, StatusCode, header},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

/// No request of a test is larger.
const MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;

/// A proxy in front of one server. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    http: reqwest::Client,
    random: Mutex<StdRng>,
    faults: AtomicBool,
    lost: AtomicUsize,
    repeated: AtomicUsize,
    claimed: Mutex<BTreeMap<String, usize>>,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Through,
    /// It does not arrive.
    Dropped,
    /// It arrives, and the answer is lost.
    AnswerLost,
    /// It arrives twice, as when somebody on the way sends it again.
    Repeated,
}

impl Proxy {
    /// Starts one in front of the server at this URL, without faults at first.
    pub async fn start(upstream: &str, seed: u64) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().build().expect("an HTTP client");
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            http,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            faults: AtomicBool::new(false),
            lost: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
            claimed: Mutex::default(),
        });
        let router = Router::new().fallback(pass).with_state(shared.clone());
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

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets requests fail, or not any more.
    pub fn fail(&self, fail: bool) {
        self.shared.faults.store(fail, Ordering::Relaxed);
    }

    /// How many answers were lost, and how many requests were repeated.
    #[must_use]
    pub fn faults(&self) -> (usize, usize) {
        let count = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        (count(&self.shared.lost), count(&self.shared.repeated))
    }

    /// How often the server has handed out each one-time key. Fallback keys are not counted.
    #[must_use]
    pub fn claimed(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.claimed).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn fate(&self) -> Fate {
        if !self.faults.load(Ordering::Relaxed) {
            return Fate::Through;
        }
        match lock(&self.random).random_range(0..100) {
            0 | 1 => Fate::Dropped,
            2..=6 => Fate::AnswerLost,
            7..=11 => Fate::Repeated,
            _ => Fate::Through,
        }
    }

    async fn ask(
        &self,
        head: &http::request::Parts,
        body: &Bytes,
    ) -> reqwest::Result<Response<Bytes>> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = self
            .http
            .request(head.method.clone(), format!("{}{path}", self.upstream))
            .body(body.clone());
        for name in [header::AUTHORIZATION, header::CONTENT_TYPE] {
            if let Some(value) = head.headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = answer.status();
        for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
            if let Some(value) = answer.headers().get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        *response.body_mut() = answer.bytes().await?;
        if path.ends_with("/keys/claim") {
            self.note_claims(response.body());
        }
        Ok(response)
    }

    fn note_claims(&self, body: &Bytes) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut claimed = lock(&self.claimed);
        for (user, devices) in fields(&body["one_time_keys"]) {
            for (device, keys) in fields(devices) {
                for (id, key) in fields(keys) {
                    if key["fallback"] != true {
                        *claimed.entry(format!("{user} {device} {id}")).or_default() += 1;
                    }
                }
            }
        }
    }
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_REQUEST_BYTES).await else {
        return broken();
    };
    let fate = shared.fate();
    if fate == Fate::Dropped {
        return broken();
    }
    let mut answer = shared.ask(&head, &body).await;
    if fate == Fate::Repeated {
        shared.repeated.fetch_add(1, Ordering::Relaxed);
        answer = shared.ask(&head, &body).await;
    }
    match answer {
        Ok(_) if fate == Fate::AnswerLost => {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            broken()
        }
        Ok(answer) => answer.map(Body::from),
        Err(_) => broken(),
    }
}

/// An answer whose connection ends before it is complete.
fn broken() -> Response<Body> {
    let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let stream = futures_util::stream::once(async { Err::<Bytes, _>(lost) });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = StatusCode::OK;
    response
}
