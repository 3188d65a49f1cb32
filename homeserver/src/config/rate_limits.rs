//! How often people may ask for things that cost others something.

use serde::Deserialize;

/// How often people may ask for things: by user, or by address where nobody is logged in.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Whether there are limits at all. Default yes.
    pub enabled: bool,
    /// Logging in and refreshing, for each address.
    pub login: Rate,
    /// Wrong and right passwords, for each account.
    pub password: Rate,
    /// Registering, for each address.
    pub registration: Rate,
    /// Messages by e-mail or telephone, for each address.
    pub verification: Rate,
    /// Sending events, for each user.
    pub messages: Rate,
    /// Joining and knocking, for each user.
    pub joins: Rate,
    /// Inviting, and making rooms, for each user.
    pub invites: Rate,
    /// Reporting, for each user.
    pub reports: Rate,
}

/// A bucket that holds `burst` requests and fills at `per_second`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many requests there may be in the long run.
    pub per_second: f64,
    /// How many there may be at once.
    pub burst: u32,
}

const fn rate(per_second: f64, burst: u32) -> Rate {
    Rate { per_second, burst }
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            enabled: true,
            login: rate(0.5, 30),
            password: rate(0.1, 10),
            registration: rate(0.1, 20),
            verification: rate(0.02, 10),
            messages: rate(10.0, 100),
            joins: rate(0.5, 30),
            invites: rate(0.5, 50),
            reports: rate(0.1, 20),
        }
    }
}
