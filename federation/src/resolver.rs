//! Looking up names. The resolver is an argument, so that tests need no DNS.

use std::{future::Future, net::IpAddr, pin::Pin};

use hickory_resolver::{TokioResolver, net::NetError, proto::rr::RData};

/// A future that a [`Resolver`] gives.
pub type Lookup<'a, T> = Pin<Box<dyn Future<Output = Result<T, LookupError>> + Send + 'a>>;

/// Where names are looked up.
pub trait Resolver: Send + Sync {
    /// The addresses of a host, from its A and AAAA records; none if it has no records.
    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>>;

    /// The SRV records of a name; none if it has none.
    fn services<'a>(&'a self, name: &'a str) -> Lookup<'a, Vec<Service>>;
}

/// An SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The lowest is tried first.
    pub priority: u16,
    /// Among those of equal priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host, with or without the last dot.
    pub target: String,
}

/// A name server could not tell.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be looked up")]
pub struct LookupError(#[source] Option<NetError>);

impl LookupError {
    /// For resolvers that are not the system's.
    #[must_use]
    pub fn new() -> Self {
        Self(None)
    }
}

impl Default for LookupError {
    fn default() -> Self {
        Self::new()
    }
}

/// The name servers of the system.
pub struct Dns(TokioResolver);

impl Dns {
    /// Reads the configuration of the system. To be called within a Tokio runtime.
    pub fn from_system() -> Result<Self, LookupError> {
        let builder = TokioResolver::builder_tokio().map_err(|error| LookupError(Some(error)))?;
        builder
            .build()
            .map(Self)
            .map_err(|error| LookupError(Some(error)))
    }
}

impl Resolver for Dns {
    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
        Box::pin(async move {
            // The last dot keeps the search list of the system out of it.
            match self.0.lookup_ip(absolute(host)).await {
                Ok(found) => Ok(found.iter().collect()),
                Err(error) => none_if_not_found(error),
            }
        })
    }

    fn services<'a>(&'a self, name: &'a str) -> Lookup<'a, Vec<Service>> {
        Box::pin(async move {
            match self.0.srv_lookup(absolute(name)).await {
                Ok(found) => Ok(found
                    .answers()
                    .iter()
                    .filter_map(|r| service(&r.data))
                    .collect()),
                Err(error) => none_if_not_found(error),
            }
        })
    }
}

fn absolute(name: &str) -> String {
    // Hosts of the machine's own table have no dot and must stay as they are.
    if name.ends_with('.') || !name.contains('.') {
        name.to_owned()
    } else {
        format!("{name}.")
    }
}

fn none_if_not_found<T>(error: NetError) -> Result<Vec<T>, LookupError> {
    if error.is_no_records_found() {
        Ok(Vec::new())
    } else {
        Err(LookupError(Some(error)))
    }
}

fn service(data: &RData) -> Option<Service> {
    match data {
        RData::SRV(srv) => Some(Service {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_string(),
        }),
        _ => None,
    }
}
