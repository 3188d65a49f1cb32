//! The one guard of all outgoing requests.
//!
//! Whoever can make the server send a request (a federation partner, a user with a pusher, a link
//! in a message) must not reach what only the server can reach. The guard looks at addresses, after
//! names were looked up, and those that it lets pass are the ones that are connected to: looking
//! up a name twice could give two answers. Redirects are never followed by the HTTP library.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use self::{
    guarded::{GuardedClient, RequestError},
    network::{Network, NetworkError},
};

pub(crate) use self::guarded::literal_address;

mod guarded;
mod network;

/// Decides which addresses may be connected to.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    allowed: Vec<Network>,
}

impl Egress {
    /// Lets public addresses pass, and those in the networks that the operator allows.
    #[must_use]
    pub fn new(allowed: Vec<Network>) -> Self {
        Self { allowed }
    }

    /// Whether an address may be connected to.
    pub fn check(&self, address: IpAddr) -> Result<(), Denied> {
        let allowed = self.allowed.iter().any(|network| network.contains(address));
        if allowed || is_public(address) {
            Ok(())
        } else {
            Err(Denied)
        }
    }

    /// Those of the addresses that may be connected to; an error if there were only others.
    pub fn filter(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Denied> {
        let some = !addresses.is_empty();
        let passed: Vec<_> = addresses
            .into_iter()
            .filter(|address| self.check(address.ip()).is_ok())
            .collect();
        if some && passed.is_empty() {
            Err(Denied)
        } else {
            Ok(passed)
        }
    }
}

/// The address is not public and was not allowed by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address is in a network that outgoing requests may not reach")]
pub struct Denied;

/// Whether an address is that of a host on the public internet, as far as the registries of
/// special-purpose addresses tell
/// ([IPv4](https://www.iana.org/assignments/iana-ipv4-special-registry),
/// [IPv6](https://www.iana.org/assignments/iana-ipv6-special-registry)).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        // This network; private; loopback; multicast, reserved, broadcast.
        [0 | 10 | 127 | 224..=255, ..]
        // Shared between carrier and customers.
        | [100, 64..=127, ..]
        // Link-local: among them the metadata services of clouds.
        | [169, 254, ..]
        | [172, 16..=31, ..]
        // Protocol assignments, documentation, and relays to IPv6.
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [192, 168, ..]
        // Benchmarks and documentation.
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
    )
}

/// Of IPv6 only the global unicast addresses are public, without those that lead elsewhere.
/// Addresses that carry one of IPv4 are judged by it or denied.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Mapped.
        [0, 0, 0, 0, 0, 0xffff, ..] => address.to_ipv4_mapped().is_some_and(is_public_v4),
        // Translated by the well-known prefix, and 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            is_public_v4(embedded(high, low))
        }
        // Teredo, ORCHID and other protocol assignments; documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        // Segment routing has 5f00::/16, outside of this.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))
}

#[cfg(test)]
mod tests;
