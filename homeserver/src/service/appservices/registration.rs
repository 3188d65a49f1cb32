//! Registration files
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/#registration)).

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use regex::Regex;
use reqwest::Url;
use ruma::{OwnedUserId, RoomAliasId, RoomId, ServerName, UserId};
use serde::Deserialize;
use tokio::sync::Notify;

use crate::{config::Secret, service::accounts::AccessToken, storage::accounts::TokenHash};

/// The name of an application service, which never changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ServiceId(pub(super) Arc<str>);

impl ServiceId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A program beside the server.
pub(crate) struct Appservice {
    pub(crate) id: ServiceId,
    /// Where it listens, without a slash at the end. One that has none is told nothing.
    pub(crate) url: Option<String>,
    pub(crate) as_token: TokenHash,
    pub(super) hs_token: Secret,
    /// Whom it speaks for when it names nobody.
    pub(crate) sender: OwnedUserId,
    users: Vec<Namespace>,
    aliases: Vec<Namespace>,
    rooms: Vec<Namespace>,
    pub(super) protocols: Vec<String>,
    rate_limited: bool,
    /// Whether it is told of typing, receipts, presence and messages between devices, and in which form.
    pub(crate) ephemeral: Option<EphemeralForm>,
    /// Whether it is told of device lists and one-time keys (MSC3202).
    pub(crate) encryption: bool,
    /// It asked for something.
    seen: Notify,
}

impl fmt::Debug for Appservice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appservice")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Under which names ephemeral events and messages between devices are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EphemeralForm {
    /// As in the specification, and MSC4203.
    Stable,
    /// As in MSC2409 before it was accepted.
    Unstable,
}

#[derive(Debug)]
struct Namespace {
    exclusive: bool,
    regex: Regex,
}

/// Why the registrations cannot be used. Says nothing of what stands in a file: it may be a token.
#[derive(Debug, thiserror::Error)]
pub enum AppserviceError {
    /// The file cannot be read.
    #[error("cannot read the registration {path} of an application service: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML, or something in it is no string, list or truth value where it must be one.
    #[error(
        "{path} is not the registration of an application service: see line {line}, column {column}"
    )]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        line: u64,
        /// Where in the line.
        column: u64,
    },
    /// Something is missing, or empty.
    #[error("{path} has no `{key}`; every registration of an application service needs one")]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What.
        key: &'static str,
    },
    /// The sender is no local user.
    #[error("`sender_localpart` in {path} cannot be the name of a user")]
    Sender {
        /// Which file.
        path: PathBuf,
    },
    /// The address is none.
    #[error(
        "`url` in {path} is not an address such as http://127.0.0.1:9000; write null if the service is not to be told anything"
    )]
    Url {
        /// Which file.
        path: PathBuf,
    },
    /// A namespace is no regular expression.
    #[error("`namespaces.{kind}` in {path}: {source}")]
    Namespace {
        /// Which file.
        path: PathBuf,
        /// Which list.
        kind: &'static str,
        /// Why.
        source: regex::Error,
    },
    /// Two services have the same id or token.
    #[error("{path} has the same `{key}` as another application service; each needs its own")]
    Twice {
        /// Which file.
        path: PathBuf,
        /// What.
        key: &'static str,
    },
}

/// What stands in a file. Bridges write more keys than these.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    id: Option<String>,
    url: Option<String>,
    as_token: Option<String>,
    hs_token: Option<String>,
    sender_localpart: Option<String>,
    namespaces: Option<Namespaces>,
    protocols: Option<Vec<String>>,
    rate_limited: Option<bool>,
    receive_ephemeral: Option<bool>,
    #[serde(rename = "de.sorunome.msc2409.push_ephemeral")]
    msc2409: Option<bool>,
    push_ephemeral: Option<bool>,
    #[serde(rename = "org.matrix.msc3202")]
    msc3202: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespaces {
    users: Option<Vec<Pattern>>,
    aliases: Option<Vec<Pattern>>,
    rooms: Option<Vec<Pattern>>,
}

#[derive(Deserialize)]
struct Pattern {
    regex: String,
    #[serde(default)]
    exclusive: bool,
}

/// Reads the files.
pub(super) fn read(
    paths: &[PathBuf],
    server_name: &ServerName,
) -> Result<Vec<Arc<Appservice>>, AppserviceError> {
    let (mut ids, mut tokens) = (HashSet::new(), HashSet::new());
    let mut services = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path).map_err(|source| AppserviceError::Read {
            path: path.clone(),
            source,
        })?;
        let service = parse(path, &text, server_name)?;
        let twice = |key| AppserviceError::Twice {
            path: path.clone(),
            key,
        };
        if !ids.insert(service.id.clone()) {
            return Err(twice("id"));
        }
        if !tokens.insert(service.as_token) {
            return Err(twice("as_token"));
        }
        services.push(Arc::new(service));
    }
    Ok(services)
}

fn parse(path: &Path, text: &str, server_name: &ServerName) -> Result<Appservice, AppserviceError> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let location = error.location();
        AppserviceError::Parse {
            path: path.to_owned(),
            line: location.map_or(1, |at| at.line()),
            column: location.map_or(1, |at| at.column()),
        }
    })?;
    let needed = |value: Option<String>, key| {
        let value = value.filter(|value| !value.is_empty());
        value.ok_or_else(|| AppserviceError::Missing {
            path: path.to_owned(),
            key,
        })
    };
    let localpart = needed(file.sender_localpart, "sender_localpart")?;
    let sender = UserId::parse(format!("@{localpart}:{server_name}"));
    let names = file.namespaces.unwrap_or_default();
    let namespaces = |kind, patterns: Option<Vec<Pattern>>| {
        let patterns = patterns.unwrap_or_default().into_iter();
        let compiled = patterns.map(|pattern| namespace(&pattern));
        compiled.collect::<Result<Vec<_>, _>>().map_err(|source| {
            let path = path.to_owned();
            AppserviceError::Namespace { path, kind, source }
        })
    };
    let is = |flag: Option<bool>| flag.unwrap_or_default();
    Ok(Appservice {
        id: ServiceId(needed(file.id, "id")?.into()),
        url: address(path, file.url)?,
        as_token: AccessToken(needed(file.as_token, "as_token")?).hash(),
        hs_token: Secret::new(needed(file.hs_token, "hs_token")?),
        sender: sender.map_err(|_| AppserviceError::Sender {
            path: path.to_owned(),
        })?,
        users: namespaces("users", names.users)?,
        aliases: namespaces("aliases", names.aliases)?,
        rooms: namespaces("rooms", names.rooms)?,
        protocols: file.protocols.unwrap_or_default(),
        rate_limited: file.rate_limited.unwrap_or(true),
        ephemeral: if is(file.receive_ephemeral) {
            Some(EphemeralForm::Stable)
        } else {
            (is(file.msc2409) || is(file.push_ephemeral)).then_some(EphemeralForm::Unstable)
        },
        encryption: is(file.msc3202),
        seen: Notify::new(),
    })
}

fn address(path: &Path, url: Option<String>) -> Result<Option<String>, AppserviceError> {
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let url = url.trim_end_matches('/').to_owned();
    match Url::parse(&url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => Ok(Some(url)),
        _ => Err(AppserviceError::Url {
            path: path.to_owned(),
        }),
    }
}

/// What a namespace has begins with a match: so everybody else understands it, and so files are written.
fn namespace(pattern: &Pattern) -> Result<Namespace, regex::Error> {
    Ok(Namespace {
        exclusive: pattern.exclusive,
        regex: Regex::new(&format!("^(?:{})", pattern.regex))?,
    })
}

impl Appservice {
    /// Whether a user is one of the service's: local, and its sender or in its namespace.
    pub(crate) fn covers_user(&self, user_id: &UserId) -> bool {
        user_id == self.sender || self.is_local(user_id) && covers(&self.users, user_id.as_str())
    }

    /// Whether an alias is in its namespace.
    pub(crate) fn covers_alias(&self, alias: &RoomAliasId) -> bool {
        covers(&self.aliases, alias.as_str())
    }

    /// Whether it wants to know of a room by its id.
    pub(crate) fn covers_room(&self, room_id: &RoomId) -> bool {
        covers(&self.rooms, room_id.as_str())
    }

    /// Whether it looks at the names of rooms at all.
    pub(crate) fn has_aliases(&self) -> bool {
        !self.aliases.is_empty()
    }

    /// It asks for something, so it is there.
    pub(crate) fn is_there(&self) {
        self.seen.notify_waiters();
    }

    /// Ends when the service asks for something.
    pub(crate) async fn seen(&self) {
        self.seen.notified().await;
    }

    /// Whether nobody else may have a user id.
    pub(crate) fn reserves_user(&self, user_id: &UserId) -> bool {
        user_id == self.sender || self.is_local(user_id) && reserves(&self.users, user_id.as_str())
    }

    pub(super) fn reserves_alias(&self, alias: &RoomAliasId) -> bool {
        reserves(&self.aliases, alias.as_str())
    }

    /// Whether it is counted how often a user of the service asks for things.
    pub(crate) fn is_limited(&self, user_id: &UserId) -> bool {
        self.rate_limited && user_id != self.sender
    }

    fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.sender.server_name()
    }
}

fn covers(namespaces: &[Namespace], name: &str) -> bool {
    namespaces.iter().any(|space| space.regex.is_match(name))
}

fn reserves(namespaces: &[Namespace], name: &str) -> bool {
    let mut exclusive = namespaces.iter().filter(|space| space.exclusive);
    exclusive.any(|space| space.regex.is_match(name))
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use ruma::{server_name, user_id};

    use super::*;

    const IRC: &str = r##"
id: "IRC Bridge"
url: http://127.0.0.1:1234/
as_token: a
hs_token: 0815
sender_localpart: _irc_bot
rate_limited: false
de.sorunome.msc2409.push_ephemeral: true
io.element.msc4190: true
namespaces:
  users:
    - exclusive: true
      regex: "@_irc_bridge_.*"
  aliases:
    - exclusive: false
      regex: "#_irc_bridge_.*"
      group_id: null
  rooms:
protocols: null
"##;

    fn parsed(text: &str) -> Result<Appservice, AppserviceError> {
        parse(Path::new("irc.yaml"), text, server_name!("example.org"))
    }

    #[test]
    fn the_example_of_the_specification_is_understood() {
        let irc = parsed(IRC).unwrap();
        assert_eq!(irc.url.as_deref(), Some("http://127.0.0.1:1234"));
        assert_eq!(irc.hs_token.expose(), "0815");
        assert_eq!(irc.ephemeral, Some(EphemeralForm::Unstable));
        assert!(irc.covers_user(user_id!("@_irc_bridge_a:example.org")));
        assert!(irc.reserves_user(user_id!("@_irc_bot:example.org")));
        assert!(!irc.covers_user(user_id!("@_irc_bridge_a:other.example")));
        assert!(!irc.covers_user(user_id!("@not_irc_bridge_a:example.org")));
        assert!(!irc.is_limited(user_id!("@_irc_bridge_a:example.org")));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_is_secret() {
        for (from, to, said) in [
            ("as_token: a", "", "no `as_token`"),
            ("as_token: a", "as_token: ''", "no `as_token`"),
            (
                "http://127.0.0.1:1234/",
                "localhost:1234",
                "`url` in irc.yaml",
            ),
            ("@_irc_bridge_.*", "@(?!secret).*", "`namespaces.users`"),
            ("hs_token: 0815", "hs_token: [secret]", "line 5, column"),
            ("_irc_bot", "a:b", "`sender_localpart` in irc.yaml"),
        ] {
            let error = parsed(&IRC.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let error = parsed(&IRC.replace("0815", "[secret]")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
