//! Another server, as far as it can be seen.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// A web server with a certificate for one name. It gives the same answer to every request, and
/// tells what was asked.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) ca_pem: String,
    pub(super) requests: mpsc::UnboundedReceiver<String>,
    /// End with the peer.
    _tasks: JoinSet<()>,
}

impl Peer {
    pub(super) async fn start(name: &str, answer: impl Into<String>) -> Self {
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
        let answer = answer.into();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
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
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self {
            address,
            ca_pem: certified.cert.pem(),
            requests,
            _tasks: tasks,
        }
    }

    /// A server that answers with JSON.
    pub(super) async fn json(name: &str, body: &str) -> Self {
        Self::start(name, with_body("200 OK", "", body)).await
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
