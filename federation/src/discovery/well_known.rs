//! What a server says about where it is, and for how long to believe it.

use std::time::Duration;

use ruma::OwnedServerName;
use serde::Deserialize;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// The bounds of [`well_known_lifetime`]
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#resolving-server-names)).
const DEFAULT: Duration = Duration::from_hours(24);
const LONGEST: Duration = Duration::from_hours(48);
const SHORTEST: Duration = Duration::from_mins(5);

/// Reads the body of `/.well-known/matrix/server`
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#getwell-knownmatrixserver)).
#[must_use]
pub fn parse_well_known(body: &[u8]) -> Option<OwnedServerName> {
    #[derive(Deserialize)]
    struct WellKnown {
        #[serde(rename = "m.server")]
        server: OwnedServerName,
    }

    serde_json::from_slice::<WellKnown>(body)
        .ok()
        .map(|body| body.server)
}

/// How a request for a `.well-known` file ended, as far as caching goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime<'a> {
    /// With an answer that has this `Cache-Control` header.
    Answered(Option<&'a str>),
    /// With an error, the first or a repeated one.
    Failed {
        /// How many times before.
        failures: u32,
    },
}

/// For how long to keep the result of a request for a `.well-known` file.
///
/// Answers: as their header says, by default a day, at least five minutes and at most two days.
/// Errors: two minutes, doubled with each repeated failure, at most an hour.
#[must_use]
pub fn well_known_lifetime(outcome: Lifetime<'_>) -> Duration {
    match outcome {
        Lifetime::Answered(cache_control) => cache_control
            .and_then(max_age)
            .unwrap_or(DEFAULT)
            .clamp(SHORTEST, LONGEST),
        Lifetime::Failed { failures } => {
            let doubled = 2_u32.saturating_pow(failures.saturating_add(1));
            MINUTE.saturating_mul(doubled).min(HOUR)
        }
    }
}

/// `max-age`, or nothing at all with `no-store` or `no-cache`.
fn max_age(cache_control: &str) -> Option<Duration> {
    let directives = || cache_control.split(',').map(str::trim);
    let is = |directive: &str, name: &str| directive.eq_ignore_ascii_case(name);
    if directives().any(|directive| is(directive, "no-store") || is(directive, "no-cache")) {
        return Some(Duration::ZERO);
    }
    directives().find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        let seconds = value.trim().trim_matches('"').parse().ok()?;
        is(name.trim(), "max-age").then(|| Duration::from_secs(seconds))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(header: &str) -> u64 {
        well_known_lifetime(Lifetime::Answered(Some(header))).as_secs() / 60
    }

    #[test]
    fn answers_live_as_they_say_within_bounds() {
        assert_eq!(well_known_lifetime(Lifetime::Answered(None)), DEFAULT);
        assert_eq!(answered("public, Max-Age=3600"), 60);
        assert_eq!(answered("max-age=\"7200\""), 120);
        assert_eq!(answered("max-age=10"), 5);
        assert_eq!(answered("max-age=99999999999999999999"), 24 * 60);
        assert_eq!(answered("max-age=999999999"), 48 * 60);
        assert_eq!(answered("max-age=3600, no-store"), 5);
        assert_eq!(answered("s-maxage=60"), 24 * 60);
    }

    #[test]
    fn errors_live_longer_and_longer_up_to_an_hour() {
        let minutes = [0, 1, 2, 3, 4, 5, u32::MAX]
            .map(|failures| well_known_lifetime(Lifetime::Failed { failures }).as_secs() / 60);
        assert_eq!(minutes, [2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn only_a_server_name_is_a_delegation() {
        let parsed = parse_well_known(br#"{"m.server":"matrix.example:443","x":1}"#);
        assert_eq!(
            parsed.as_deref().map(AsRef::as_ref),
            Some("matrix.example:443")
        );
        for body in [
            "",
            "{}",
            "[]",
            r#"{"m.server":1}"#,
            r#"{"m.server":""}"#,
            r#"{"m.server":"https://matrix.example"}"#,
            r#"{"m.server":"a/b"}"#,
            r#"{"m.server":"a@b"}"#,
        ] {
            assert_eq!(parse_well_known(body.as_bytes()), None, "{body}");
        }
    }
}
