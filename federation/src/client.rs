//! The client that speaks to other servers. The only I/O of this crate.
//!
//! It finds a server ([`crate::discovery`]), asks the guard ([`crate::egress`]), connects with TLS
//! for the right name, signs the request ([`crate::x_matrix`]) and reads a bounded answer.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName,
    api::{
        EndpointError, IncomingResponse, OutgoingBody, OutgoingRequest, path_builder::PathBuilder,
    },
};
use serde::de::IgnoredAny;

pub use self::{
    answer::Answer,
    error::{ClientError, MatrixError},
    keys::FetchedKeys,
    tls::{TlsError, tls_config},
};
use self::{
    connections::Connections,
    routes::{Nowhere, Routes},
};
use crate::{
    egress::Egress, resolver::Resolver, room::signing::SigningKey, x_matrix::SignedRequest,
};

mod answer;
mod connections;
mod error;
mod keys;
mod routes;
#[cfg(test)]
mod tests;
mod tls;

/// What time it is.
pub type Now = Arc<dyn Fn() -> MilliSecondsSinceUnixEpoch + Send + Sync>;

/// What a [`FederationClient`] needs to know.
#[derive(Clone)]
pub struct Config {
    /// Our name.
    pub server_name: OwnedServerName,
    /// Our key.
    pub key: Arc<SigningKey>,
    /// Addresses of servers, in place of discovery, and of single ports, in place of looking up:
    /// `example.org:443` is where the `.well-known` file of `example.org` is. The guard must allow
    /// them too.
    pub names: BTreeMap<OwnedServerName, SocketAddr>,
    /// How to look up names.
    pub resolver: Arc<dyn Resolver>,
    /// Where to connect.
    pub egress: Arc<Egress>,
    /// Whom to trust, from [`tls_config`].
    pub tls: rustls::ClientConfig,
    /// The time.
    pub now: Now,
    /// The bounds of a request.
    pub limits: Limits,
}

/// The bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For connecting.
    pub connect: Duration,
    /// From connecting to the last byte of the answer.
    pub request: Duration,
    /// The largest answer that is read into memory, in bytes.
    pub answer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            request: Duration::from_mins(1),
            answer: 64 * 1024 * 1024,
        }
    }
}

/// Speaks to other servers. Cheap to clone.
#[derive(Clone)]
pub struct FederationClient(Arc<Inner>);

struct Inner {
    config: Config,
    routes: Mutex<Routes>,
}

impl FederationClient {
    /// A client that has not spoken to anybody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Inner {
            config,
            routes: Mutex::default(),
        }))
    }

    /// Our name.
    #[must_use]
    pub fn server_name(&self) -> &ServerName {
        &self.0.config.server_name
    }

    /// Signs and sends a request, and reads the answer.
    ///
    /// Answers above 399 are [`ClientError::Matrix`].
    pub async fn send<R>(
        &self,
        destination: &ServerName,
        request: R,
    ) -> Result<R::IncomingResponse, ClientError>
    where
        R: OutgoingRequest<EndpointError = MatrixError>,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        self.send_within(destination, request, self.0.config.limits)
            .await
    }

    /// [`FederationClient::send`] with bounds of its own: to join a room may take minutes and
    /// hundreds of megabytes.
    pub async fn send_within<R>(
        &self,
        destination: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<R::IncomingResponse, ClientError>
    where
        R: OutgoingRequest<EndpointError = MatrixError>,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        let request = to_http(request)?;
        let answer = self
            .send_raw(destination, request, Signature::Ours, limits.request)
            .await?;
        typed(answer.read(limits.answer).await?)
    }

    /// [`FederationClient::send_within`] for an answer that is read as it comes: a large one should
    /// not be in memory as a whole. Who reads it minds the bound.
    pub async fn open<R>(
        &self,
        destination: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<Answer, ClientError>
    where
        R: OutgoingRequest<EndpointError = MatrixError>,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        let request = to_http(request)?;
        let answer = self
            .send_raw(destination, request, Signature::Ours, limits.request)
            .await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let refused: Result<R::IncomingResponse, _> = typed(answer.read(limits.answer).await?);
        Err(refused.err().unwrap_or(ClientError::MalformedAnswer))
    }

    /// Signs and sends a request, and gives the answer as it comes: for media.
    ///
    /// Only the path and query of the request's URI count. Nothing is said about the status.
    pub async fn send_streamed(
        &self,
        destination: &ServerName,
        request: http::Request<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        self.send_raw(destination, request, Signature::Ours, timeout)
            .await
    }

    /// Sends a request to the first of the destination's addresses that takes the connection.
    async fn send_raw(
        &self,
        destination: &ServerName,
        request: http::Request<Vec<u8>>,
        signature: Signature,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        if destination == self.server_name() {
            return Err(ClientError::Ourselves);
        }
        let connections = self.connections(destination).await?;
        let (parts, body) = request.into_parts();
        let mut last = ClientError::NotFound;
        for attempt in connections.attempts() {
            let url = attempt.url(parts.uri.path(), parts.uri.query());
            let mut request = reqwest::Request::new(parts.method.clone(), url);
            *request.headers_mut() = parts.headers.clone();
            *request.timeout_mut() = Some(timeout);
            request
                .headers_mut()
                .insert(http::header::HOST, connections.host().clone());
            if let Signature::Ours = signature {
                let header = self.authorization(destination, &request, &body)?;
                request
                    .headers_mut()
                    .insert(http::header::AUTHORIZATION, header);
            }
            if !body.is_empty() {
                *request.body_mut() = Some(body.clone().into());
            }
            match attempt.http().execute(request).await {
                Ok(answer) => return Ok(Answer::new(answer)),
                Err(error) if error.is_connect() => last = error.into(),
                Err(error) => return Err(error.into()),
            }
        }
        self.forget(destination);
        Err(last)
    }

    fn authorization(
        &self,
        destination: &ServerName,
        request: &reqwest::Request,
        body: &[u8],
    ) -> Result<http::HeaderValue, ClientError> {
        // From the URL that is sent, which may be written otherwise than the one that was built.
        let url = request.url();
        let uri = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let signed = SignedRequest {
            method: request.method().as_str(),
            uri: &uri,
            origin: self.server_name(),
            destination,
            body,
        };
        let header = signed
            .sign(&self.0.config.key)
            .map_err(|_| ClientError::Unsendable)?;
        let mut header =
            http::HeaderValue::try_from(header.to_string()).map_err(|_| ClientError::Unsendable)?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// How to connect to a server, from the cache or by discovery. A name is looked up once at a time: who
    /// comes meanwhile waits for that answer.
    async fn connections(&self, destination: &ServerName) -> Result<Arc<Connections>, ClientError> {
        let known = || {
            let now = (self.0.config.now)();
            self.with_routes(|routes| routes.connections(destination, now))
        };
        if let Some(known) = known() {
            return Ok(known?);
        }
        let turn = self.with_routes(|routes| routes.turn(destination));
        let _turn = turn.lock().await;
        if let Some(known) = known() {
            return Ok(known?);
        }
        let found = match self.look_up(destination).await {
            Ok(connections) => Ok(Arc::new(connections)),
            Err(ClientError::NotFound) => Err(Nowhere),
            Err(error) => return Err(error),
        };
        let now = (self.0.config.now)();
        self.with_routes(|routes| routes.keep(destination, found.clone(), now));
        Ok(found?)
    }

    async fn look_up(&self, destination: &ServerName) -> Result<Connections, ClientError> {
        let config = &self.0.config;
        let route = match config.names.get(destination) {
            Some(address) => crate::discovery::Route {
                addresses: vec![*address],
                tls_name: destination.host().trim_matches(['[', ']']).to_owned(),
                host: destination.to_string(),
            },
            None => self.discover(destination).await?,
        };
        Connections::new(route, config)
    }

    fn forget(&self, destination: &ServerName) {
        self.with_routes(|routes| routes.forget(destination));
    }

    fn with_routes<T>(&self, f: impl FnOnce(&mut Routes) -> T) -> T {
        // Whoever panicked while holding the lock left a cache behind, and a cache is always valid.
        f(&mut self
            .0
            .routes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl std::fmt::Debug for FederationClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FederationClient")
            .field("server_name", &self.0.config.server_name)
            .finish_non_exhaustive()
    }
}

/// Whether a request says who sends it.
#[derive(Clone, Copy)]
enum Signature {
    Ours,
    None,
}

/// The request with its path and query; where it goes to is decided elsewhere.
fn to_http<R>(request: R) -> Result<http::Request<Vec<u8>>, ClientError>
where
    R: OutgoingRequest,
    R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
{
    let request = request
        .try_into_http_request_inner("https://destination.invalid", ())
        .map_err(|_| ClientError::Unsendable)?;
    let (mut parts, body) = request.into_parts();
    if let Some(content_type) = body.content_type() {
        parts
            .headers
            .entry(http::header::CONTENT_TYPE)
            .or_insert(content_type);
    }
    let body = body.try_into_buf().map_err(|_| ClientError::Unsendable)?;
    Ok(http::Request::from_parts(parts, body))
}

fn typed<T: IncomingResponse<EndpointError = MatrixError>>(
    answer: http::Response<Vec<u8>>,
) -> Result<T, ClientError> {
    let (parts, body) = answer.into_parts();
    let status = parts.status;
    let answer = http::Response::from_parts(parts, body.as_slice());
    if status.is_success() {
        let is_json = serde_json::from_slice::<IgnoredAny>(&body).is_ok();
        return T::try_from_http_response_inner(answer).map_err(|_| {
            if is_json {
                ClientError::OtherForm
            } else {
                ClientError::MalformedAnswer
            }
        });
    }
    if status.as_u16() < 400 {
        return Err(ClientError::Redirected);
    }
    Err(ClientError::Matrix(Box::new(
        MatrixError::from_http_response(answer),
    )))
}
