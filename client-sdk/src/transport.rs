//! HTTP to one homeserver: authentication, patience, and limits.

#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt, sync::RwLock, time::Duration};

use http::header::CONTENT_LENGTH;
use ruma::api::{
    IncomingResponseExt as _, MatrixVersion, OutgoingRequest, OutgoingRequestExt as _,
    SupportedVersions,
    auth_scheme::{AuthScheme, SendAccessToken},
    error::{
        Error as MatrixError, ErrorBody, FromHttpResponseError, IntoHttpError, StandardErrorBody,
    },
    path_builder::PathBuilder,
};
use zeroize::Zeroizing;

/// No response is larger than this; reading stops there.
const MAX_RESPONSE_BYTES: usize = 256 * 1024 * 1024;
/// How often a request is sent before its failure is reported.
const ATTEMPTS: u32 = 5;
/// The pause after the first failure; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A server that asks for a longer pause than this gets its way by an error.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Longer than any long poll: a connection that is silent for this long is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The requests that ruma can build for us and that a client may send.
pub trait ClientRequest:
    OutgoingRequest<
        Authentication: for<'a> AuthScheme<Input<'a> = SendAccessToken<'a>>,
        PathBuilder: for<'a> PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
    > + Send
{
}

impl<R> ClientRequest for R where
    R: OutgoingRequest<
            Authentication: for<'a> AuthScheme<Input<'a> = SendAccessToken<'a>>,
            PathBuilder: for<'a> PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
        > + Send
{
}

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError<E = MatrixError> {
    /// It could not be built.
    #[error("the request could not be built")]
    Build(#[source] IntoHttpError),
    /// The server was not reached, or did not answer.
    #[error("the server could not be reached")]
    Network(#[source] reqwest::Error),
    /// The server answered with more than we want to read.
    #[error("the answer is too large")]
    TooLarge,
    /// The server's answer is not what the endpoint answers.
    #[error("the answer is malformed")]
    Malformed,
    /// The server refused.
    #[error("the server refused")]
    Refused(#[source] E),
}

impl RequestError {
    /// The error code that the server gave.
    #[must_use]
    pub fn errcode(&self) -> Option<String> {
        match self {
            Self::Refused(MatrixError {
                body: ErrorBody::Standard(StandardErrorBody { kind, .. }),
                ..
            }) => Some(kind.errcode().to_string()),
            _ => None,
        }
    }

    /// Whether the same request will fail in the same way.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(error) => {
                error.status_code.is_client_error() && error.status_code.as_u16() != 429
            }
            Self::Build(_) => true,
            _ => false,
        }
    }

    /// The text with which the server explains itself.
    pub(crate) fn server_message(&self) -> Option<&str> {
        match self {
            Self::Refused(MatrixError {
                body: ErrorBody::Standard(StandardErrorBody { message, .. }),
                ..
            }) => Some(message),
            _ => None,
        }
    }
}

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The URL is not one of a server.
    #[error("the homeserver's URL is not an http or https URL")]
    InvalidUrl,
    /// Passwords and tokens would travel in the clear.
    #[error("plain http is for this machine only; use https")]
    Insecure,
    /// The extra certificate is none, or TLS cannot be set up.
    #[error("TLS could not be set up")]
    Tls(#[source] reqwest::Error),
}

/// How to reach a homeserver.
#[derive(Debug, Clone, Default)]
pub(crate) struct TransportConfig {
    pub(crate) homeserver: String,
    pub(crate) extra_ca_pem: Option<Vec<u8>>,
    pub(crate) allow_insecure: bool,
}

/// Sends requests to one homeserver.
pub(crate) struct Transport {
    http: reqwest::Client,
    base: String,
    token: RwLock<Option<Zeroizing<String>>>,
    versions: SupportedVersions,
}

/// Whether a request may be repeated when it is not known whether the server got it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// The method is idempotent; for PUT, by the transaction id in its path.
    Always,
    /// Only if the server said that it did nothing.
    OnlyIfRefused,
}

impl Transport {
    pub(crate) fn new(config: &TransportConfig) -> Result<Self, TransportError> {
        let base = checked_base(&config.homeserver, config.allow_insecure)?;
        // reqwest is built without a crypto provider and takes the one of the process. If the
        // program has chosen one, that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if let Some(pem) = &config.extra_ca_pem {
            let certificates =
                reqwest::Certificate::from_pem_bundle(pem).map_err(TransportError::Tls)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let http = builder.build().map_err(TransportError::Tls)?;
        // The oldest version in which every endpoint that is used here has its present path.
        let versions = SupportedVersions {
            versions: [MatrixVersion::V1_11].into(),
            features: std::collections::BTreeSet::new(),
        };
        Ok(Self {
            http,
            base,
            token: RwLock::default(),
            versions,
        })
    }

    pub(crate) fn homeserver(&self) -> &str {
        &self.base
    }

    pub(crate) fn set_token(&self, token: Option<&str>) {
        let token = token.map(|token| Zeroizing::new(token.to_owned()));
        *self
            .token
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = token;
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token().is_some()
    }

    fn token(&self) -> Option<Zeroizing<String>> {
        self.token
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Sends a request, and sends the same request again where that is safe and may help.
    pub(crate) async fn send<R: ClientRequest>(
        &self,
        request: R,
    ) -> Result<R::IncomingResponse, RequestError<R::EndpointError>> {
        let (parts, body) = self.built(request)?.into_parts();
        let body = bytes::Bytes::from(body);
        let answer = self.send_patiently(&parts, || body.clone().into(), &Whole);
        parsed::<R>(answer.await?.unwrap_or_else(|refused| refused))
    }

    /// As [`Self::send`], with a body of this length that is made anew for each attempt.
    pub(crate) async fn upload<R: ClientRequest>(
        &self,
        request: R,
        length: u64,
        body: impl Fn() -> reqwest::Body,
    ) -> Result<R::IncomingResponse, RequestError<R::EndpointError>> {
        let (mut parts, _) = self.built(request)?.into_parts();
        parts.headers.insert(CONTENT_LENGTH, length.into());
        let answer = self.send_patiently(&parts, body, &Whole).await?;
        parsed::<R>(answer.unwrap_or_else(|refused| refused))
    }

    /// As [`Self::send`], but gives the body of the answer to somebody else.
    pub(crate) async fn download<R: ClientRequest, T: Receive>(
        &self,
        request: R,
        receiver: &T,
    ) -> Result<T::Got, RequestError<R::EndpointError>> {
        let (parts, _) = self.built(request)?.into_parts();
        let answer = self.send_patiently(&parts, reqwest::Body::default, receiver);
        match answer.await? {
            Ok(got) => Ok(got),
            Err(refused) => Err(parsed::<R>(refused)
                .err()
                .unwrap_or(RequestError::Malformed)),
        }
    }

    fn built<R: ClientRequest>(
        &self,
        request: R,
    ) -> Result<http::Request<Vec<u8>>, RequestError<R::EndpointError>> {
        let token = self.token();
        let token = token.as_deref().map_or(SendAccessToken::None, |token| {
            SendAccessToken::IfRequired(token)
        });
        request
            .try_into_http_request(&self.base, token, Cow::Borrowed(&self.versions))
            .map_err(RequestError::Build)
    }

    /// What the receiver made of the answer, or how the server refused.
    async fn send_patiently<E, T: Receive>(
        &self,
        parts: &http::request::Parts,
        body: impl Fn() -> reqwest::Body,
        receiver: &T,
    ) -> Result<Result<T::Got, Answer>, RequestError<E>> {
        let repeat = match parts.method {
            http::Method::POST => Repeat::OnlyIfRefused,
            _ => Repeat::Always,
        };
        let mut pause = FIRST_PAUSE;
        for attempt in 1_u32.. {
            let request = http::Request::from_parts(parts.clone(), body());
            let result = self.send_once(request, receiver).await;
            let wait = match &result {
                Ok(Ok(_)) | Err(Interrupted::TooLarge) => None,
                Ok(Err(answer)) => wait_before_repeat(answer, repeat, pause),
                Err(Interrupted::Network(error)) => {
                    (repeat == Repeat::Always || error.is_connect()).then_some(pause)
                }
            };
            match wait {
                Some(wait) if attempt < ATTEMPTS && wait <= LONGEST_PAUSE => {
                    tokio::time::sleep(wait).await;
                    pause = pause.saturating_mul(2);
                }
                _ => return Ok(result?),
            }
        }
        Err(RequestError::Malformed)
    }

    async fn send_once<T: Receive>(
        &self,
        request: http::Request<reqwest::Body>,
        receiver: &T,
    ) -> Result<Result<T::Got, Answer>, Interrupted> {
        let request = reqwest::Request::try_from(request)?;
        let response = self.http.execute(request).await?;
        if response.status().is_success() {
            receiver.receive(response).await.map(Ok)
        } else {
            Whole.receive(response).await.map(Err)
        }
    }
}

/// An answer with its whole body.
pub(crate) type Answer = http::Response<Vec<u8>>;

/// Why an answer did not come to its end.
#[derive(Debug)]
pub(crate) enum Interrupted {
    Network(reqwest::Error),
    TooLarge,
}

impl From<reqwest::Error> for Interrupted {
    fn from(error: reqwest::Error) -> Self {
        Self::Network(error.without_url())
    }
}

impl<E> From<Interrupted> for RequestError<E> {
    fn from(error: Interrupted) -> Self {
        match error {
            Interrupted::Network(error) => Self::Network(error),
            Interrupted::TooLarge => Self::TooLarge,
        }
    }
}

/// Where the body of an answer goes, if the server does not refuse.
pub(crate) trait Receive: Sync {
    /// What is made of it.
    type Got: Send;

    /// Takes the body; from its beginning again, if the connection broke before.
    fn receive(
        &self,
        response: reqwest::Response,
    ) -> impl Future<Output = Result<Self::Got, Interrupted>> + Send;
}

/// The body goes into memory.
struct Whole;

impl Receive for Whole {
    type Got = Answer;

    async fn receive(&self, mut response: reqwest::Response) -> Result<Answer, Interrupted> {
        let mut answer = http::Response::new(Vec::new());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        while let Some(chunk) = response.chunk().await? {
            if answer.body().len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(Interrupted::TooLarge);
            }
            answer.body_mut().extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

fn parsed<R: ClientRequest>(
    answer: Answer,
) -> Result<R::IncomingResponse, RequestError<R::EndpointError>> {
    let (parts, body) = answer.into_parts();
    let answer = http::Response::from_parts(parts, body.as_slice());
    R::IncomingResponse::try_from_http_response(answer).map_err(|error| match error {
        FromHttpResponseError::Server(error) => RequestError::Refused(error),
        _ => RequestError::Malformed,
    })
}

impl fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Transport")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// How long to wait before the request is sent again; `None` if it should not be.
fn wait_before_repeat(answer: &Answer, repeat: Repeat, pause: Duration) -> Option<Duration> {
    match answer.status().as_u16() {
        // <https://spec.matrix.org/v1.19/client-server-api/#rate-limiting>
        429 => Some(asked_pause(answer).unwrap_or(pause).max(pause)),
        500 | 502..=504 if repeat == Repeat::Always => Some(pause),
        _ => None,
    }
}

/// The pause that a rate limit asks for, in the header or, formerly, in the body.
fn asked_pause(answer: &Answer) -> Option<Duration> {
    #[derive(serde::Deserialize)]
    struct Body {
        retry_after_ms: u64,
    }
    let header = answer.headers().get(http::header::RETRY_AFTER);
    let seconds = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map(Duration::from_secs).or_else(|| {
        let body: Body = serde_json::from_slice(answer.body()).ok()?;
        Some(Duration::from_millis(body.retry_after_ms))
    })
}

fn checked_base(url: &str, allow_insecure: bool) -> Result<String, TransportError> {
    let parsed = reqwest::Url::parse(url).map_err(|_| TransportError::InvalidUrl)?;
    let host = parsed.host_str().ok_or(TransportError::InvalidUrl)?;
    match parsed.scheme() {
        "https" => {}
        "http" if allow_insecure || is_loopback(host) => {}
        "http" => return Err(TransportError::Insecure),
        _ => return Err(TransportError::InvalidUrl),
    }
    Ok(parsed.as_str().trim_end_matches('/').to_owned())
}

fn is_loopback(host: &str) -> bool {
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
