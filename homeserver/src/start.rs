//! Putting a server together, and taking it apart.

mod data_dir;
mod listeners;
mod services;

use std::{fs::File, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    data_dir::{lock, signing_key},
    listeners::{bind, listen_admin, listen_tls},
    services::services,
};
use crate::{
    api::{self, Edge},
    clock::Clock,
    config::Config,
    listen::{self, ListenTlsError, PATIENCE},
    service::{
        appservices::registration::AppserviceError,
        events::Events,
        federation::{Federation, FederationError},
        media::BucketError,
        sign_on::JwtKeyError,
    },
    storage::{Storage, StorageError},
    worker::{
        appservices::{self, AppserviceSender},
        federation_sender::FederationSender,
        profile_repeater::ProfileRepeater,
        push::{self, PushSender},
        search::SearchIndexer,
        user_directory::UserDirectoryWorker,
    },
};

/// A running server.
#[derive(Debug)]
pub struct Homeserver {
    address: SocketAddr,
    federation_address: Option<SocketAddr>,
    first_token: Option<String>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    /// Locked for as long as the server runs.
    _lock: File,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another server runs on the same data.
    #[error("another sotto is running on {path}; stop it first, or choose another `data_dir`")]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
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
    /// The certificate for other servers cannot be used.
    #[error(transparent)]
    ListenTls(#[from] ListenTlsError),
    /// The registration of an application service cannot be used.
    #[error(transparent)]
    Appservice(#[from] AppserviceError),
    /// Other servers cannot be spoken to as the configuration says.
    #[error(transparent)]
    Federation(#[from] FederationError),
    /// There is no place for files.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// No token with which somebody logs in could be checked.
    #[error(transparent)]
    Jwt(#[from] JwtKeyError),
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
        let lock = lock(data_dir)?;
        let key = Arc::new(signing_key(data_dir)?);
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let storage = Storage::open(
            &config.database_url(),
            data_dir,
            &config.server_name,
            &tasks,
        )
        .await?;
        let federation = Federation::new(&config, &clock, &key)?;
        let edge = services(
            &config,
            &storage,
            &clock,
            &key,
            &federation,
            &stopping,
            &tasks,
        )?;
        edge.accounts.make_senders().await?;
        follow(&edge, &storage, federation, &stopping, &tasks);
        let first_token = edge.accounts.first_registration_token().await?;
        listen_admin(
            data_dir,
            api::admin::router(edge.clone()),
            &stopping,
            &tasks,
        );
        let mut router = api::router(edge);
        if config.deprecated_requests {
            router = api::with_deprecated_requests(router);
        }
        let (listener, address) = bind(config.listen).await?;
        tasks.spawn(listen::serve(
            listener,
            None,
            router.clone(),
            stopping.clone(),
        ));
        let federation_address = listen_tls(&config, router, &stopping, &tasks).await?;
        Ok(Self {
            address,
            federation_address,
            first_token,
            stopping,
            tasks,
            _lock: lock,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where other servers connect with TLS, if the configuration says that they do.
    #[must_use]
    pub fn federation_address(&self) -> Option<SocketAddr> {
        self.federation_address
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

/// Starts what reads the log forward.
fn follow(
    edge: &Edge,
    storage: &Storage,
    federation: Federation,
    stopping: &CancellationToken,
    tasks: &TaskTracker,
) {
    let push = PushSender::new(push::Parts {
        storage: storage.clone(),
        clock: edge.clock.clone(),
        events: Events::new(storage.clone()),
        federation: federation.clone(),
        rules: edge.push_rules.clone(),
        unread: edge.unread.clone(),
        tasks: tasks.clone(),
        stopping: stopping.clone(),
    });
    tasks.spawn(push.run());
    let sender = FederationSender::new(
        storage.clone(),
        federation,
        edge.presence.clone(),
        Events::new(storage.clone()),
        edge.clock.clone(),
        tasks.clone(),
        stopping.clone(),
    );
    tasks.spawn(sender.run());
    for service in edge.appservices.all() {
        if service.url.is_some() {
            let parts = appservices::Parts {
                storage: storage.clone(),
                clock: edge.clock.clone(),
                services: edge.appservices.clone(),
                events: Events::new(storage.clone()),
                keys: edge.e2e_keys.clone(),
                presence: edge.presence.clone(),
                typing: edge.typing.clone(),
                stopping: stopping.clone(),
            };
            tasks.spawn(AppserviceSender::new(parts, service.clone()).run());
        }
    }
    let profiles = edge.profiles.clone();
    let repeater = ProfileRepeater::new(storage.clone(), profiles, stopping.clone());
    tasks.spawn(repeater.run());
    let directory = edge.user_directory.clone();
    let directory = UserDirectoryWorker::new(storage.clone(), directory, stopping.clone());
    tasks.spawn(directory.run());
    let indexer = SearchIndexer::new(storage.clone(), edge.search.clone(), stopping.clone());
    tasks.spawn(indexer.run());
}
