//! Finding servers, and remembering where they are.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use reqwest::Url;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UInt};
use tokio::sync::Mutex;

use super::{ClientError, FederationClient, connections::Connections};
use crate::{
    discovery::{
        Answer, Discovery, Lifetime, Question, Route, Step, parse_well_known, well_known_lifetime,
    },
    egress,
};

/// For how long addresses are used before they are looked up again. Shorter than what
/// `.well-known` files say; name servers have caches of their own.
const ROUTE_LIFETIME: Duration = Duration::from_mins(10);

/// For how long a server that was not found is not looked up again.
const ABSENCE_LIFETIME: Duration = Duration::from_mins(1);

/// How many servers are remembered.
const MOST_ROUTES: usize = 5_000;

/// The bounds of a request for a `.well-known` file.
const MOST_REDIRECTS: usize = 5;
const WELL_KNOWN_BYTES: usize = 50 * 1024;
const WELL_KNOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// What was found out about other servers.
#[derive(Default)]
pub(super) struct Routes {
    connections: BTreeMap<OwnedServerName, Kept<Found>>,
    /// Whose turn it is to look a server up, while anybody does.
    turns: BTreeMap<OwnedServerName, Weak<Mutex<()>>>,
    well_known: BTreeMap<String, Kept<Delegation>>,
}

/// What became of looking for a server.
type Found = Result<Arc<Connections>, Nowhere>;

/// No server was found.
#[derive(Clone, Copy)]
pub(super) struct Nowhere;

impl From<Nowhere> for ClientError {
    fn from(_: Nowhere) -> Self {
        Self::NotFound
    }
}

struct Kept<T> {
    value: T,
    until: MilliSecondsSinceUnixEpoch,
}

#[derive(Clone)]
struct Delegation {
    server: Option<OwnedServerName>,
    failures: u32,
}

impl Routes {
    /// What was found out about a server lately, be it that there is none.
    pub(super) fn connections(
        &self,
        server: &ServerName,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Option<Found> {
        let kept = self
            .connections
            .get(server)
            .filter(|kept| now < kept.until)?;
        Some(kept.value.clone())
    }

    /// What is locked by whoever looks a server up.
    pub(super) fn turn(&mut self, server: &ServerName) -> Arc<Mutex<()>> {
        if let Some(turn) = self.turns.get(server).and_then(Weak::upgrade) {
            return turn;
        }
        self.turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        self.turns.insert(server.to_owned(), Arc::downgrade(&turn));
        turn
    }

    pub(super) fn keep(
        &mut self,
        server: &ServerName,
        found: Found,
        now: MilliSecondsSinceUnixEpoch,
    ) {
        let lifetime = match &found {
            Ok(_) => ROUTE_LIFETIME,
            Err(Nowhere) => ABSENCE_LIFETIME,
        };
        let kept = Kept {
            value: found,
            until: after(now, lifetime),
        };
        insert(&mut self.connections, server.to_owned(), kept, now);
    }

    pub(super) fn forget(&mut self, server: &ServerName) {
        self.connections.remove(server);
    }
}

impl FederationClient {
    /// Walks through the discovery of a server.
    pub(super) async fn discover(&self, server: &ServerName) -> Result<Route, ClientError> {
        let mut step = Discovery::start(server);
        loop {
            step = match step {
                Step::Ask(question, discovery) => discovery.step(self.ask(question).await),
                Step::Found(route) => return Ok(route),
                Step::NotFound => return Err(ClientError::NotFound),
            }
        }
    }

    async fn ask(&self, question: Question) -> Answer {
        match question {
            Question::WellKnown(host) => Answer::WellKnown(self.well_known(host).await),
            Question::Services(name) => {
                let services = self.0.config.resolver.services(&name).await;
                Answer::Services(services.unwrap_or_default())
            }
            Question::Addresses(targets) => {
                let mut addresses = Vec::new();
                for (host, port) in targets {
                    addresses.extend(self.addresses(&host, port).await);
                }
                Answer::Addresses(addresses)
            }
        }
    }

    /// Where a port of a host is. The names of the configuration come before those of the resolver.
    async fn addresses(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        let config = &self.0.config;
        let name = ServerName::parse(format!("{host}:{port}"));
        if let Some(address) = name.ok().and_then(|name| config.names.get(&name)) {
            return vec![*address];
        }
        let found = config.resolver.addresses(host).await.unwrap_or_default();
        found
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect()
    }

    /// To whom a host delegates, from the cache or from its `.well-known` file.
    pub(super) async fn well_known(&self, host: String) -> Option<OwnedServerName> {
        let now = (self.0.config.now)();
        let known = self.with_routes(|routes| {
            let kept = routes.well_known.get(&host)?;
            Some((kept.value.clone(), now < kept.until))
        });
        let earlier = match known {
            Some((delegation, true)) => return delegation.server,
            Some((delegation, false)) => delegation.failures,
            None => 0,
        };

        let fetched = self.fetch_well_known(&host).await;
        let (server, failures, lifetime) = if let Ok((server, cache_control)) = &fetched {
            (
                Some(server.clone()),
                0,
                Lifetime::Answered(cache_control.as_deref()),
            )
        } else {
            (
                None,
                earlier.saturating_add(1),
                Lifetime::Failed { failures: earlier },
            )
        };
        let until = after(now, well_known_lifetime(lifetime));
        let kept = Kept {
            value: Delegation {
                server: server.clone(),
                failures,
            },
            until,
        };
        self.with_routes(|routes| insert(&mut routes.well_known, host, kept, now));
        server
    }

    /// The delegation in the file, and the `Cache-Control` header.
    async fn fetch_well_known(
        &self,
        host: &str,
    ) -> Result<(OwnedServerName, Option<String>), ClientError> {
        let url = format!("https://{host}/.well-known/matrix/server");
        let mut url = Url::parse(&url).map_err(|_| ClientError::NotFound)?;
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.get_public(&url).await?;
            if answer.status().is_redirection() {
                let location = answer.headers().get(http::header::LOCATION);
                let location = location.and_then(|location| location.to_str().ok());
                url = location
                    .and_then(|location| url.join(location).ok())
                    .filter(|url| url.scheme() == "https")
                    .ok_or(ClientError::MalformedAnswer)?;
                continue;
            }
            if answer.status() != http::StatusCode::OK {
                return Err(ClientError::MalformedAnswer);
            }
            let answer = answer.read(WELL_KNOWN_BYTES).await?;
            let cache_control = answer.headers().get(http::header::CACHE_CONTROL);
            let cache_control = cache_control.and_then(|value| value.to_str().ok());
            let server = parse_well_known(answer.body()).ok_or(ClientError::MalformedAnswer)?;
            return Ok((server, cache_control.map(str::to_owned)));
        }
        Err(ClientError::Redirected)
    }

    /// Gets a page of the web, without following redirects.
    async fn get_public(&self, url: &Url) -> Result<super::Answer, ClientError> {
        let host = url.host_str().ok_or(ClientError::NotFound)?;
        let port = url.port_or_known_default().unwrap_or(443);
        let addresses = match egress::literal_address(url) {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => self.addresses(host, port).await,
        };
        let route = Route {
            addresses,
            tls_name: host.trim_matches(['[', ']']).to_owned(),
            host: url
                .port()
                .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
        };
        let connections = Connections::new(route, &self.0.config)?;
        let attempt = connections
            .attempts()
            .first()
            .ok_or(ClientError::NotFound)?;
        let request = attempt
            .http()
            .get(attempt.url(url.path(), url.query()))
            .header(http::header::HOST, connections.host())
            .timeout(WELL_KNOWN_TIMEOUT);
        Ok(super::Answer::new(request.send().await?))
    }
}

/// Keeps a value, and makes room for it if there is none: first by dropping what is expired, then
/// whatever expires next.
fn insert<K: Ord + Clone, T>(
    map: &mut BTreeMap<K, Kept<T>>,
    key: K,
    kept: Kept<T>,
    now: MilliSecondsSinceUnixEpoch,
) {
    if map.len() >= MOST_ROUTES {
        map.retain(|_, kept| now < kept.until);
    }
    if map.len() >= MOST_ROUTES {
        let next = map
            .iter()
            .min_by_key(|(_, kept)| kept.until)
            .map(|(key, _)| key.clone());
        if let Some(next) = next {
            map.remove(&next);
        }
    }
    map.insert(key, kept);
}

fn after(time: MilliSecondsSinceUnixEpoch, duration: Duration) -> MilliSecondsSinceUnixEpoch {
    let milliseconds = UInt::try_from(duration.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(time.0.saturating_add(milliseconds))
}
