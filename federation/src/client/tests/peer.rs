//! Another server, as far as it can be seen.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// What a [`Peer`] says.
pub(super) enum Answers {
    /// The same every time.
    Same(String),
    /// Something else each time, by its number.
    Each(Box<dyn Fn(usize) -> String + Send + Sync>),
    /// This, and then bytes without an end.
    Endless(String),
}

/// A web server with a certificate for one name. It tells what was asked.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) ca_pem: String,
    pub(super) requests: mpsc::UnboundedReceiver<String>,
    /// How much of endless answers was taken.
    taken: Arc<AtomicUsize>,
    /// End with the peer.
    _tasks: JoinSet<()>,
}

impl Peer {
    pub(super) async fn start(name: &str, answer: impl Into<String>) -> Self {
        Self::start_with(name, Answers::Same(answer.into())).await
    }

    pub(super) async fn start_with(name: &str, answers: Answers) -> Self {
        let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = certified.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let taken = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&taken);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = Vec::new();
                while !is_complete(&request) {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let _ = sender.send(String::from_utf8(request).unwrap());
                let answer = match &answers {
                    Answers::Same(answer) | Answers::Endless(answer) => answer.clone(),
                    Answers::Each(answer) => answer(number),
                };
                number += 1;
                let _ = stream.write_all(answer.as_bytes()).await;
                if let Answers::Endless(_) = answers {
                    flood(&mut stream, &count).await;
                }
                let _ = stream.shutdown().await;
            }
        });
        Self {
            address,
            ca_pem: certified.cert.pem(),
            requests,
            taken,
            _tasks: tasks,
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// A server that answers with JSON.
    pub(super) async fn json(name: &str, body: &str) -> Self {
        Self::start(name, with_body("200 OK", "", body)).await
    }
}

/// Writes until nobody reads any more; slowly, so that little waits in buffers.
async fn flood(stream: &mut (impl AsyncWrite + Unpin), taken: &AtomicUsize) {
    const PIECE: &[u8] = &[b' '; 64 * 1024];
    while stream.write_all(PIECE).await.is_ok() {
        taken.fetch_add(PIECE.len(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    body.len() >= header(head, "content-length").map_or(0, |length| length.parse().unwrap())
}

pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let is_it = |line: &&str| line.to_ascii_lowercase().starts_with(&format!("{name}:"));
    Some(head.lines().find(is_it)?.split_once(':')?.1.trim())
}

pub(super) fn with_body(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}
