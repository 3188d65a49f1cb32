//! A client for everything that is not federation: push gateways, previews, application services,
//! identity providers.

use std::{net::IpAddr, sync::Arc, time::Duration};

use reqwest::{
    Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use super::{Denied, Egress};
use crate::resolver::Resolver;

/// An HTTP client that connects only where [`Egress`] lets it, and follows no redirects: whoever
/// wants to follow one calls [`GuardedClient::request`] again.
#[derive(Clone)]
pub struct GuardedClient {
    http: reqwest::Client,
    egress: Arc<Egress>,
}

impl GuardedClient {
    /// A client that looks names up with `resolver` and gives up after `timeout`.
    pub fn new(
        egress: Arc<Egress>,
        resolver: Arc<dyn Resolver>,
        tls: rustls::ClientConfig,
        timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let resolver = GuardedResolver {
            resolver,
            egress: Arc::clone(&egress),
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(resolver))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(timeout)
            .build()?;
        Ok(Self { http, egress })
    }

    /// Begins a request to an `http:` or `https:` URL.
    pub fn request(
        &self,
        method: Method,
        url: &str,
    ) -> Result<reqwest::RequestBuilder, RequestError> {
        let url = Url::parse(url).map_err(|_| RequestError::Url)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(RequestError::Url);
        }
        // Addresses are connected to without being looked up.
        if let Some(address) = literal_address(&url) {
            self.egress.check(address)?;
        }
        Ok(self.http.request(method, url))
    }
}

/// Why there is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a URL of HTTP.
    #[error("not an http: or https: URL")]
    Url,
    /// The URL has an address that may not be reached.
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// The host of a URL, if it is an address. URLs know more ways than one to write it.
pub(crate) fn literal_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.parse().ok()
}

impl std::fmt::Debug for GuardedClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedClient").finish_non_exhaustive()
    }
}

struct GuardedResolver {
    resolver: Arc<dyn Resolver>,
    egress: Arc<Egress>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = Arc::clone(&self.resolver);
        let egress = Arc::clone(&self.egress);
        Box::pin(async move {
            let addresses = resolver.addresses(name.as_str()).await?;
            // The port of the URL takes the place of the 0.
            let addresses = addresses
                .into_iter()
                .map(|address| (address, 0).into())
                .collect();
            let passed: Addrs = Box::new(egress.filter(addresses)?.into_iter());
            Ok(passed)
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{
        client::tls_config,
        resolver::{Lookup, Service},
    };

    struct Private;

    impl Resolver for Private {
        fn addresses<'a>(&'a self, _host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
            Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) })
        }

        fn services<'a>(&'a self, _name: &'a str) -> Lookup<'a, Vec<Service>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    fn client() -> GuardedClient {
        let tls = tls_config(&[]).unwrap();
        let timeout = Duration::from_secs(5);
        GuardedClient::new(Arc::default(), Arc::new(Private), tls, timeout).unwrap()
    }

    #[tokio::test]
    async fn addresses_in_urls_are_checked_however_they_are_written() {
        let client = client();
        for url in [
            "http://127.0.0.1/",
            "https://127.1:8008/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://%31%32%37.1/",
            "http://user@169.254.169.254/latest",
        ] {
            let error = client.request(Method::GET, url).err();
            assert_eq!(error, Some(RequestError::Denied(Denied)), "{url}");
        }
        for url in ["ftp://example.org/", "file:///etc/passwd", "x", ""] {
            assert_eq!(
                client.request(Method::GET, url).err(),
                Some(RequestError::Url),
                "{url}"
            );
        }
    }

    #[tokio::test]
    async fn names_of_addresses_that_may_not_be_reached_are_not_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!(
            "http://innocent.example:{}/",
            listener.local_addr().unwrap().port()
        );
        let request = client().request(Method::GET, &url).unwrap();
        assert!(request.send().await.unwrap_err().is_connect());
        assert!(listener.accept().is_err());
    }
}
