//! Putting a server together, and taking it apart.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use sotto_federation::room::signing::SigningKey;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use crate::{
    api::{self, Edge},
    clock::Clock,
    config::Config,
    service::{
        accounts::Accounts, devices::Devices, events::Events, membership::Membership, rooms::Rooms,
        sync::Sync, timeline::Timeline, uia::Uia,
    },
    storage::{Storage, StorageError},
};

/// How long a stop waits for answers that are under way.
const PATIENCE: Duration = Duration::from_secs(4);

/// A running server.
#[derive(Debug)]
pub struct Homeserver {
    address: SocketAddr,
    first_token: Option<String>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory or a file in it cannot be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The signing key is not one.
    #[error(
        "{path} does not hold a signing key; restore it from a backup, or remove it to make a new one"
    )]
    SigningKey {
        /// Where it is.
        path: PathBuf,
    },
    /// The address is in use, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Homeserver {
    /// Starts a server. It runs until [`Homeserver::stop`].
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let data_dir = &config.data_dir;
        std::fs::create_dir_all(data_dir).map_err(|source| StartError::File {
            path: data_dir.clone(),
            source,
        })?;
        let key = Arc::new(signing_key(data_dir)?);
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let storage = Storage::open(&config.database_url(), &config.server_name, &tasks).await?;
        let edge = services(&config, &storage, &clock, &key, &stopping);
        let first_token = edge.accounts.first_registration_token().await?;
        let failed = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tasks.spawn(serve(listener, api::router(edge), stopping.clone()));
        Ok(Self {
            address,
            first_token,
            stopping,
            tasks,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token with which the first account can be registered, while there is none.
    #[must_use]
    pub fn first_registration_token(&self) -> Option<&str> {
        self.first_token.as_deref()
    }

    /// Answers every request that waits, finishes what is being written, and ends.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(PATIENCE + Duration::from_secs(1), self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some tasks did not end in time");
        }
    }
}

/// Builds each service once, in order, from those before it.
fn services(
    config: &Config,
    storage: &Storage,
    clock: &Clock,
    key: &Arc<SigningKey>,
    stopping: &CancellationToken,
) -> Edge {
    let server_name = config.server_name.clone();
    let base_url = config
        .public_base_url
        .clone()
        .unwrap_or_else(|| format!("https://{server_name}"));
    let accounts = Accounts::new(
        storage.clone(),
        clock.clone(),
        server_name.clone(),
        config.registration,
        base_url,
    );
    let devices = Devices::new(storage.clone(), accounts.clone());
    let events = Events::new(storage.clone());
    let timeline = Timeline::new(
        storage.clone(),
        events.clone(),
        clock.clone(),
        server_name,
        key.clone(),
    );
    let rooms = Rooms::new(storage.clone(), timeline.clone());
    let membership = Membership::new(storage.clone(), timeline.clone());
    let sync = Sync::new(storage.clone(), events, timeline.clone(), stopping.clone());
    Edge {
        accounts,
        devices,
        membership,
        rooms,
        sync,
        timeline,
        uia: Uia::new(clock.clone()),
    }
}

/// The key with which the server signs; made at the first start.
fn signing_key(data_dir: &Path) -> Result<SigningKey, StartError> {
    let path = data_dir.join("signing.key");
    let wrong = || StartError::SigningKey { path: path.clone() };
    match std::fs::read_to_string(&path) {
        // The form of other servers: algorithm, version, seed.
        Ok(text) => match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["ed25519", version, seed] => SigningKey::from_seed(version, seed).map_err(|_| wrong()),
            _ => Err(wrong()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SigningKey::generate().map_err(|_| wrong())?;
            let text = Zeroizing::new(format!("ed25519 {} {}\n", key.version(), *key.to_seed()));
            write_secret(&path, &text).map_err(|source| StartError::File { path, source })?;
            Ok(key)
        }
        Err(source) => Err(StartError::File { path, source }),
    }
}

/// Writes a file that only the server may read; it is on disk when this returns.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Accepts connections until the server stops, then lets those that are open end.
async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) {
    let connections = GracefulShutdown::new();
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: give those that are open time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        drop(stream.set_nodelay(true));
        let builder = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(router.clone());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let watched = connections.watch(connection);
        tasks.spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(PATIENCE, connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not end in time");
    }
}
