//! Reading the configuration: a file, then the flags that override it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ruma::{OwnedServerName, RoomVersionId};
use sotto_federation::room::version;

use super::{Config, Registration};

/// Flags of the command line that win over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// The name after the colon in user ids, such as example.org. It can never be changed later.
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<OwnedServerName>,
    /// Where clients connect (plain HTTP; put a reverse proxy with TLS in front)
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where other servers connect (TLS; needs `certificate` and `private_key` in the configuration)
    #[arg(long, value_name = "ADDR:PORT")]
    pub federation_listen: Option<SocketAddr>,
    /// Where all data lives
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The database, `postgres://…`; SQLite in the data directory if not given
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Who may make an account
    #[arg(long, value_name = "WHO")]
    pub registration: Option<Registration>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("{path} is not understood: {message}{}", .suggestion.as_ref().map(|s| format!("did you mean `{s}`?")).unwrap_or_default())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What, and in which line.
        message: String,
        /// The key that was probably meant.
        suggestion: Option<String>,
    },
    /// Rooms of the version that is asked for cannot be made.
    #[error("`default_room_version` is {version}; this server knows {}", known())]
    RoomVersion {
        /// Which.
        version: RoomVersionId,
    },
    /// Two settings need each other.
    #[error("`{setting}` also needs `{needs}`")]
    Needs {
        /// The one that is there.
        setting: &'static str,
        /// The one that is not.
        needs: &'static str,
    },
}

impl Config {
    /// Reads `file` (or takes the defaults), applies `overrides`, and checks the result.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let mut config = match file {
            None => parse(Path::new("the command line"), "")?,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                parse(path, &text)?
            }
        };
        let Overrides {
            server_name,
            listen,
            federation_listen,
            data_dir,
            database,
            registration,
        } = overrides;
        config.server_name = server_name.unwrap_or(config.server_name);
        config.listen = listen.unwrap_or(config.listen);
        config.data_dir = data_dir.unwrap_or(config.data_dir);
        config.registration = registration.unwrap_or(config.registration);
        config.database = database.or(config.database);
        config.federation.listen = federation_listen.or(config.federation.listen);
        let version = &config.default_room_version;
        if version::rules(version).is_none() {
            let version = version.clone();
            return Err(ConfigError::RoomVersion { version });
        }
        let federation = &config.federation;
        for (there, setting, other, needs) in [
            (
                federation.listen.is_some(),
                "federation.listen",
                federation.certificate.is_some(),
                "federation.certificate",
            ),
            (
                federation.certificate.is_some(),
                "federation.certificate",
                federation.private_key.is_some(),
                "federation.private_key",
            ),
        ] {
            if there && !other {
                return Err(ConfigError::Needs { setting, needs });
            }
        }
        Ok(config)
    }
}

/// The room versions that can be chosen.
fn known() -> String {
    let known: Vec<String> = version::supported().map(String::from).collect();
    known.join(", ")
}

fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let message = error.to_string();
        let suggestion = suggestion(error.message());
        ConfigError::Parse {
            path: path.to_owned(),
            message,
            suggestion,
        }
    })
}

/// The known key that is closest to the unknown one of serde's "unknown field `x`, expected one of `a`,
/// `b`".
fn suggestion(message: &str) -> Option<String> {
    let mut names = message
        .strip_prefix("unknown field ")?
        .split('`')
        .skip(1)
        .step_by(2);
    let unknown = names.next()?;
    let (distance, name) = names.map(|name| (distance(unknown, name), name)).min()?;
    (distance <= 1 + unknown.len() / 3).then(|| name.to_owned())
}

/// How many letters must be inserted, removed or replaced to make one word of another.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn three_lines_are_enough() {
        let text = "server_name = \"example.org\"\ndata_dir = \"/srv/sotto\"\ncontact = \"@me:example.org\"";
        let config = parse(Path::new("sotto.toml"), text).unwrap();
        assert_eq!(config.server_name, "example.org");
        assert_eq!(
            config.database_url(),
            "sqlite:///srv/sotto/sotto.db?mode=rwc"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_suggestion() {
        for (text, meant) in [
            ("sever_name = \"example.org\"", Some("server_name")),
            ("[federation]\ncafile = \"x\"", Some("ca_file")),
            ("zebra = 1", None),
        ] {
            let error = parse(Path::new("sotto.toml"), text).unwrap_err();
            let ConfigError::Parse {
                suggestion,
                message,
                ..
            } = &error
            else {
                unreachable!()
            };
            assert_eq!(suggestion.as_deref(), meant);
            assert!(message.contains("line"), "{message}");
        }
    }
}
