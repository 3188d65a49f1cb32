//! From a server name to an address
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#resolving-server-names)).
//!
//! A state machine without I/O: [`Discovery::start`] and [`Discovery::step`] say what must be asked
//! next, and whoever does I/O gives the answer.

use std::net::{IpAddr, SocketAddr};

use ruma::{OwnedServerName, ServerName};

pub use self::well_known::{Lifetime, parse_well_known, well_known_lifetime};
use crate::resolver::Service;

mod well_known;

/// The port of a server that names none.
const DEFAULT_PORT: u16 = 8448;

/// The services under which servers are found, in order. The second is deprecated.
const SERVICES: [&str; 2] = ["_matrix-fed._tcp", "_matrix._tcp"];

/// How to connect to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it listens, the best first.
    pub addresses: Vec<SocketAddr>,
    /// The name, or address without brackets, that its certificate must be valid for.
    pub tls_name: String,
    /// The `Host` header of the requests.
    pub host: String,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Ask this and hand the answer to [`Discovery::step`].
    Ask(Question, Discovery),
    /// The server is found.
    Found(Route),
    /// There is no such server.
    NotFound,
}

/// What has to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// `https://<host>/.well-known/matrix/server`, on port 443.
    WellKnown(String),
    /// The SRV records of this name.
    Services(String),
    /// The A and AAAA records of these hosts, in this order, to be combined with the ports.
    Addresses(Vec<(String, u16)>),
}

/// What was answered. "Nothing" and "there was an error" are the same here.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Question::WellKnown`]: `m.server`, if the answer was valid.
    WellKnown(Option<OwnedServerName>),
    /// To [`Question::Services`].
    Services(Vec<Service>),
    /// To [`Question::Addresses`].
    Addresses(Vec<SocketAddr>),
}

/// A server that is being looked for.
#[derive(Debug)]
pub struct Discovery(State);

#[derive(Debug)]
enum State {
    /// Step 3: whether the host delegates to another.
    WellKnown(OwnedServerName),
    /// Steps 3.3, 3.4, 4 and 5: the name, and the services that are still to be asked for.
    Services(OwnedServerName, &'static [&'static str]),
    /// The last question: the addresses of what was found.
    Addresses { tls_name: String, host: String },
}

impl Discovery {
    /// Begins to look for a server.
    #[must_use]
    pub fn start(server_name: &ServerName) -> Step {
        // Steps 1 and 2.
        direct(server_name).unwrap_or_else(|| {
            let question = Question::WellKnown(server_name.host().to_owned());
            Step::Ask(question, Self(State::WellKnown(server_name.to_owned())))
        })
    }

    /// Goes on with the answer to the last question. An answer to another question counts as none.
    #[must_use]
    pub fn step(self, answer: Answer) -> Step {
        match (self.0, answer) {
            (State::WellKnown(_), Answer::WellKnown(Some(delegated))) => {
                // Steps 3.1 and 3.2; then 3.3 as for the name itself.
                direct(&delegated).unwrap_or_else(|| ask_services(delegated, &SERVICES))
            }
            (State::WellKnown(server_name), _) => ask_services(server_name, &SERVICES),
            (State::Services(name, _), Answer::Services(services)) if !services.is_empty() => {
                found_services(&name, services)
            }
            (State::Services(name, remaining), _) => ask_services(name, remaining),
            (State::Addresses { tls_name, host }, Answer::Addresses(addresses))
                if !addresses.is_empty() =>
            {
                Step::Found(Route {
                    addresses,
                    tls_name,
                    host,
                })
            }
            (State::Addresses { .. }, _) => Step::NotFound,
        }
    }
}

/// A name that says by itself where the server is: an address, or a host with a port.
fn direct(name: &ServerName) -> Option<Step> {
    let host = name.host();
    if name.is_ip_literal() {
        let tls_name = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let Ok(address) = tls_name.parse::<IpAddr>() else {
            return Some(Step::NotFound);
        };
        let addresses = vec![SocketAddr::new(
            address,
            name.port().unwrap_or(DEFAULT_PORT),
        )];
        return Some(Step::Found(Route {
            addresses,
            tls_name,
            host: name.to_string(),
        }));
    }
    let port = name.port()?;
    let targets = vec![(host.to_owned(), port)];
    Some(ask_addresses(targets, host.to_owned(), name.to_string()))
}

fn ask_services(name: OwnedServerName, services: &'static [&'static str]) -> Step {
    let host = name.host().to_owned();
    match services.split_first() {
        Some((service, remaining)) => {
            let question = Question::Services(format!("{service}.{host}"));
            Step::Ask(question, Discovery(State::Services(name, remaining)))
        }
        // Steps 3.5 and 6.
        None => ask_addresses(vec![(host.clone(), DEFAULT_PORT)], host.clone(), host),
    }
}

/// The targets by priority, then by weight
/// ([RFC 2782](https://www.rfc-editor.org/rfc/rfc2782)). The target `.` says that there is no
/// such service at all.
fn found_services(name: &ServerName, mut services: Vec<Service>) -> Step {
    services.retain(|service| !service.target.trim_end_matches('.').is_empty());
    if services.is_empty() {
        return Step::NotFound;
    }
    services.sort_by_key(|service| (service.priority, std::cmp::Reverse(service.weight)));
    let target = |service: Service| {
        (
            service.target.trim_end_matches('.').to_owned(),
            service.port,
        )
    };
    let targets = services.into_iter().map(target).collect();
    ask_addresses(targets, name.host().to_owned(), name.host().to_owned())
}

fn ask_addresses(targets: Vec<(String, u16)>, tls_name: String, host: String) -> Step {
    let state = State::Addresses { tls_name, host };
    Step::Ask(Question::Addresses(targets), Discovery(state))
}

#[cfg(test)]
mod tests;
