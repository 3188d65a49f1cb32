//! Connections to one server.

use std::net::SocketAddr;

use reqwest::Url;

use super::{ClientError, Config};
use crate::{discovery::Route, egress};

/// The ways to connect to one server.
///
/// Each server has connections of its own, to addresses that are fixed: what the guard checked is
/// what is connected to, and two servers behind one name do not get each other's requests.
pub(super) struct Connections {
    host: http::HeaderValue,
    attempts: Vec<Attempt>,
}

impl Connections {
    pub(super) fn new(route: Route, config: &Config) -> Result<Self, ClientError> {
        let addresses = config.egress.filter(route.addresses)?;
        let mut attempts: Vec<Attempt> = Vec::new();
        // The library knows one port for each name, so addresses of one port are tried together.
        for group in addresses.chunk_by(|a, b| a.port() == b.port()) {
            attempts.push(Attempt::new(&route.tls_name, group, config)?);
        }
        let host = route.host.try_into().map_err(|_| ClientError::NotFound)?;
        Ok(Self { host, attempts })
    }

    pub(super) fn host(&self) -> &http::HeaderValue {
        &self.host
    }

    pub(super) fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }
}

/// Addresses with the same port.
pub(super) struct Attempt {
    base: Url,
    http: reqwest::Client,
}

impl Attempt {
    fn new(tls_name: &str, addresses: &[SocketAddr], config: &Config) -> Result<Self, ClientError> {
        let port = addresses.first().ok_or(ClientError::NotFound)?.port();
        let base = if tls_name.contains(':') {
            format!("https://[{tls_name}]:{port}/")
        } else {
            format!("https://{tls_name}:{port}/")
        };
        let base = Url::parse(&base).map_err(|_| ClientError::NotFound)?;
        // A host that URLs take for an address is connected to without being looked up.
        if let Some(address) = egress::literal_address(&base)
            && !addresses.iter().any(|checked| checked.ip() == address)
        {
            return Err(ClientError::Denied(egress::Denied));
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config.tls.clone())
            .resolve_to_addrs(base.host_str().unwrap_or_default(), addresses)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // The `Host` header is not always the name and port that are connected to, which
            // HTTP/2 does not allow for.
            .http1_only()
            .https_only(true)
            .connect_timeout(config.limits.connect)
            .build()?;
        Ok(Self { base, http })
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The URL of a path and query on this server.
    pub(super) fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(query);
        url
    }
}
