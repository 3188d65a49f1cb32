//! Setting up a client.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use super::{Client, Inner};
use crate::{
    crypto::{Secret, SharePolicy, TrustRequirement},
    environment::{Environment, SystemEnvironment},
    store::{MemoryStore, SealKey, SqliteOptions, Store, StoreError},
    transport::{Transport, TransportConfig, TransportError},
};

/// How a client encrypts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) cross_signing: bool,
    pub(super) share_policy: SharePolicy,
    pub(super) trust_requirement: TrustRequirement,
    pub(super) direct_rotation: Option<Duration>,
}

/// Where a client keeps its keys and its place in the sync.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum StoreConfig {
    /// Nowhere: they are lost with the process.
    #[default]
    Memory,
    /// In an SQLite file.
    Sqlite(PathBuf),
    /// In an SQLite file whose rows are sealed.
    SealedSqlite(PathBuf, SealKey),
    /// In an SQLite file whose rows are sealed with a key under a passphrase.
    Passphrase(PathBuf, Secret),
    /// In a store of your own.
    Custom(Arc<dyn Store>),
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Memory => "Memory",
            Self::Sqlite(_) => "Sqlite",
            Self::SealedSqlite(..) => "SealedSqlite",
            Self::Passphrase(..) => "Passphrase",
            Self::Custom(_) => "Custom",
        })
    }
}

impl From<&str> for StoreConfig {
    fn from(path: &str) -> Self {
        Self::Sqlite(path.into())
    }
}

impl From<&Path> for StoreConfig {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.into())
    }
}

impl From<PathBuf> for StoreConfig {
    fn from(path: PathBuf) -> Self {
        Self::Sqlite(path)
    }
}

/// Sets up a [`Client`].
pub struct ClientBuilder {
    transport: TransportConfig,
    store: StoreConfig,
    shared: bool,
    environment: Arc<dyn Environment>,
    settings: Settings,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientBuilder")
            .field("transport", &self.transport)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The homeserver cannot be talked to.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ClientBuilder {
    /// The URL of the homeserver. Plain http is refused unless it is this machine.
    #[must_use]
    pub fn homeserver(mut self, url: impl Into<String>) -> Self {
        self.transport.homeserver = url.into();
        self
    }

    /// Where to keep everything; a path stands for an SQLite file. Memory, if not called.
    #[must_use]
    pub fn store(mut self, store: impl Into<StoreConfig>) -> Self {
        self.store = store.into();
        self
    }

    /// Lets other processes have the SQLite file open at the same time, as an app and the extension that
    /// shows its notifications: see [`SqliteOptions::shared`]. All have to call this.
    ///
    /// Each may send and decrypt. One of them follows the server with [`Client::sync_once`] or
    /// [`Client::sync_stream`]: what such a sync brings is told to one process only.
    #[must_use]
    pub fn shared_store(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Trusts the authorities in this PEM bundle as well as those of the system.
    #[must_use]
    pub fn extra_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.transport.extra_ca_pem = Some(pem.into());
        self
    }

    /// Allows plain http to other machines: passwords and tokens are readable on the way.
    #[must_use]
    pub fn danger_allow_plain_http(mut self) -> Self {
        self.transport.allow_insecure = true;
        self
    }

    /// Decides which devices get keys; the signed ones, if not called.
    #[must_use]
    pub fn share_policy(mut self, policy: SharePolicy) -> Self {
        self.settings.share_policy = policy;
        self
    }

    /// Decides how much has to be known about the sender of an event to show it.
    #[must_use]
    pub fn trust_requirement(mut self, requirement: TrustRequirement) -> Self {
        self.settings.trust_requirement = requirement;
        self
    }

    /// Decides how long a key is used at most in a conversation of two: an hour at least, a week at
    /// most, a day if not called. What such a room says itself counts if it is shorter.
    #[must_use]
    pub fn direct_rotation(mut self, period: Duration) -> Self {
        self.settings.direct_rotation = Some(period);
        self
    }

    /// Makes no identity for a user who has none. Other people's clients will not give keys to
    /// this device.
    #[must_use]
    pub fn without_cross_signing(mut self) -> Self {
        self.settings.cross_signing = false;
        self
    }

    /// Replaces clock and randomness, for tests.
    #[must_use]
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    /// Opens the store. Does not talk to the server.
    pub async fn build(self) -> Result<Client, BuildError> {
        let transport = Transport::new(&self.transport)?;
        let store: Arc<dyn Store> = match self.store {
            StoreConfig::Memory => Arc::new(MemoryStore::new()),
            StoreConfig::Sqlite(path) => open(SqliteOptions::new(path), self.shared).await?,
            StoreConfig::SealedSqlite(path, key) => {
                open(SqliteOptions::new(path).sealed(&key), self.shared).await?
            }
            StoreConfig::Passphrase(path, passphrase) => {
                let options = SqliteOptions::new(path).passphrase(&passphrase);
                open(options, self.shared).await?
            }
            StoreConfig::Custom(store) => store,
        };
        let inner = Inner {
            transport,
            store,
            environment: self.environment,
            sync: tokio::sync::Mutex::default(),
            rooms: tokio::sync::Mutex::default(),
            machine: OnceLock::new(),
            settings: self.settings,
            sending: Mutex::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }
}

async fn open(options: SqliteOptions, shared: bool) -> Result<Arc<dyn Store>, StoreError> {
    let options = if shared { options.shared() } else { options };
    Ok(Arc::new(options.open().await?))
}

impl Client {
    /// Starts to set up a client.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            transport: TransportConfig::default(),
            store: StoreConfig::default(),
            shared: false,
            environment: Arc::new(SystemEnvironment),
            settings: Settings {
                cross_signing: true,
                share_policy: SharePolicy::default(),
                trust_requirement: TrustRequirement::default(),
                direct_rotation: None,
            },
        }
    }
}
