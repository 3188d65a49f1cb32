//! The configuration: one TOML file, every key optional but `server_name`, unknown keys refused.

mod email;
mod load;
mod media;
mod rate_limits;
mod registration;
mod secret;
mod sign_on;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use email::{Email, SmtpEncryption};
pub use load::{ConfigError, Overrides};
pub use media::{Bucket, Media, MediaStore, Previews};
pub use rate_limits::{Rate, RateLimits};
pub use registration::{Captcha, Terms};
use ruma::{OwnedServerName, RoomVersionId};
pub use secret::Secret;
use serde::Deserialize;
pub use sign_on::{Cas, Jwt};
use sotto_federation::room::version;

/// Everything that an operator decides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name after the colon in user ids. Can never be changed once there are users. Default
    /// `localhost`, which does not federate.
    #[serde(default = "default_server_name")]
    pub server_name: OwnedServerName,
    /// Where all data lives. Default `./sotto-data`.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// `postgres://…`; by default a SQLite database in `data_dir`.
    #[serde(default)]
    pub database: Option<String>,
    /// Where clients connect over plain HTTP; also serves the federation paths, so that one reverse
    /// proxy is enough. Default `127.0.0.1:8008`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The address that clients use, if it is not `https://` and the server name; given out by
    /// `.well-known`.
    #[serde(default)]
    pub public_base_url: Option<String>,
    /// How to reach whoever runs this server, a Matrix id or `mailto:`.
    #[serde(default)]
    pub contact: Option<String>,
    /// A page that helps the users of this server; given out by `.well-known`.
    #[serde(default)]
    pub support_page: Option<String>,
    /// Who may make an account.
    #[serde(default)]
    pub registration: Registration,
    /// Whoever knows this secret may make accounts, also of administrators, whatever `registration` says:
    /// scripts and bridges do so at `/_synapse/admin/v1/register`. Without it nobody can.
    #[serde(default)]
    pub registration_shared_secret: Option<Secret>,
    /// The version of rooms that are made without asking for one. Default is the newest.
    #[serde(default = "default_room_version")]
    pub default_room_version: RoomVersionId,
    /// Whether requests of forms that the specification has deprecated are answered: access tokens in the
    /// address, paths of `r0`, events without transaction id. Clients and bridges of today still send
    /// them. Default true.
    #[serde(default = "default_deprecated_requests")]
    pub deprecated_requests: bool,
    /// Whether people may look around without an account. Default no.
    #[serde(default)]
    pub guests: bool,
    /// A captcha that whoever registers must solve.
    #[serde(default)]
    pub captcha: Option<Captcha>,
    /// Terms that whoever registers must agree to.
    #[serde(default)]
    pub terms: Option<Terms>,
    /// The registration files of application services (bridges, bots), YAML as they write it themselves.
    #[serde(default)]
    pub appservices: Vec<PathBuf>,
    /// How to send e-mail. Without it, addresses are not checked and forgotten passwords stay forgotten.
    #[serde(default)]
    pub email: Option<Email>,
    /// A CAS server where users log in.
    #[serde(default)]
    pub cas: Option<Cas>,
    /// Tokens with which users log in.
    #[serde(default)]
    pub jwt: Option<Jwt>,
    /// How often people may ask for things that cost others something.
    #[serde(default)]
    pub rate_limits: RateLimits,
    /// How the server speaks with other servers.
    #[serde(default)]
    pub federation: Federation,
    /// What the server accepts to store.
    #[serde(default)]
    pub media: Media,
    /// Previews of links.
    #[serde(default)]
    pub previews: Previews,
    /// Who sees who is there.
    #[serde(default)]
    pub presence: Presence,
    /// Who sees what users tell of themselves.
    #[serde(default)]
    pub profiles: Profiles,
    /// The TURN servers through which users call each other.
    #[serde(default)]
    pub turn: Turn,
}

/// Who may make an account.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Anybody.
    Open,
    /// Whoever has a registration token.
    #[default]
    Token,
    /// Nobody.
    Closed,
}

/// How the server speaks with other servers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Federation {
    /// Where other servers connect, with TLS. By default they come through a reverse proxy to `listen`.
    pub listen: Option<SocketAddr>,
    /// The certificate chain for `listen`, a PEM file.
    pub certificate: Option<PathBuf>,
    /// The private key for `certificate`, a PEM file.
    pub private_key: Option<PathBuf>,
    /// Certificate authorities to trust beside those of the system, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// Where other servers find this one, a name with an optional port, if not under its own name; given out
    /// by `.well-known`.
    pub delegated_to: Option<OwnedServerName>,
    /// Networks that outgoing requests may reach although they are not public, such as `127.0.0.0/8`.
    pub allow_networks: Vec<String>,
    /// Addresses of servers by name, in place of discovery.
    pub names: BTreeMap<OwnedServerName, SocketAddr>,
}

/// Who sees who is there.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Presence {
    /// Whether users see who of those they share rooms with is there. Default `true`.
    pub enabled: bool,
    /// Whether other servers are told, and listened to. Default `true`.
    pub federation: bool,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            enabled: true,
            federation: true,
        }
    }
}

/// The TURN servers through which users call each other.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Turn {
    /// Their addresses, such as `turn:turn.example.org?transport=udp`. None by default.
    pub uris: Vec<String>,
    /// The secret that they share with this server, for passwords that end with their time.
    pub shared_secret: Option<String>,
    /// The name that all users share, where there is no shared secret.
    pub username: Option<String>,
    /// The password for `username`.
    pub password: Option<String>,
    /// For how long a password is good, in seconds. Default a day.
    pub ttl_seconds: u64,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            uris: Vec::new(),
            shared_secret: None,
            username: None,
            password: None,
            ttl_seconds: 24 * 60 * 60,
        }
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("uris", &self.uris)
            .finish_non_exhaustive()
    }
}

/// Who sees what users tell of themselves.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profiles {
    /// Who may look up a profile. Default `anybody`.
    pub lookup: ProfileLookup,
}

/// Who may look up a profile.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ProfileLookup {
    /// Everybody who knows the id of the user.
    #[default]
    Anybody,
    /// Users of this server, and other servers.
    Users,
    /// Those who share a room with the user.
    SharedRooms,
}

impl Config {
    /// The configuration with every default, for a server of this name.
    #[must_use]
    pub fn new(server_name: OwnedServerName) -> Self {
        Self {
            server_name,
            data_dir: default_data_dir(),
            database: None,
            listen: default_listen(),
            public_base_url: None,
            contact: None,
            support_page: None,
            registration: Registration::default(),
            registration_shared_secret: None,
            default_room_version: default_room_version(),
            deprecated_requests: default_deprecated_requests(),
            guests: false,
            captcha: None,
            terms: None,
            appservices: Vec::new(),
            email: None,
            cas: None,
            jwt: None,
            rate_limits: RateLimits::default(),
            federation: Federation::default(),
            media: Media::default(),
            previews: Previews::default(),
            presence: Presence::default(),
            profiles: Profiles::default(),
            turn: Turn::default(),
        }
    }

    /// The URL of the database.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.database
            .clone()
            .unwrap_or_else(|| sqlite_url(&self.data_dir.join("sotto.db")))
    }
}

fn sqlite_url(path: &Path) -> String {
    // Characters that mean something in a URL must not change which file it is.
    let path = path
        .to_string_lossy()
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    format!("sqlite://{path}?mode=rwc")
}

fn default_server_name() -> OwnedServerName {
    ruma::owned_server_name!("localhost")
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("sotto-data")
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8008))
}

fn default_room_version() -> RoomVersionId {
    version::DEFAULT
}

fn default_deprecated_requests() -> bool {
    true
}
