//! All SQL. One file per family of tables; [`Storage::write`] and [`Storage::append`] are the only ways to
//! change anything, [`Storage::read`] the way to look.
//!
//! What was written is durable before the call returns, and visible to every reader in the order of the
//! log. One text of SQL serves SQLite and `PostgreSQL`; what really differs is in [`dialect`].

pub(crate) mod account_data;
pub(crate) mod accounts;
pub(crate) mod append;
pub(crate) mod appservices;
pub(crate) mod counters;
pub(crate) mod cross_signing;
pub(crate) mod destinations;
pub(crate) mod device_keys;
pub(crate) mod device_lists;
pub(crate) mod devices;
pub(crate) mod dialect;
pub(crate) mod directory;
pub(crate) mod event_cache;
pub(crate) mod events;
pub(crate) mod external_ids;
pub(crate) mod federation_edus;
pub(crate) mod filters;
pub(crate) mod found_users;
pub(crate) mod inbound;
pub mod inspect;
pub(crate) mod key_backup;
pub(crate) mod log;
pub(crate) mod media;
pub(crate) mod memberships;
pub(crate) mod one_time_keys;
pub(crate) mod otk_epoch;
pub(crate) mod partial_joins;
pub(crate) mod profile_changes;
pub(crate) mod pushers;
pub(crate) mod receipts;
pub(crate) mod registration_tokens;
pub(crate) mod related;
pub(crate) mod relations;
pub(crate) mod reports;
pub(crate) mod rooms;
pub(crate) mod roster;
pub(crate) mod search_words;
pub(crate) mod server_keys;
pub(crate) mod state_map;
pub(crate) mod state_nodes;
pub(crate) mod thread_subscriptions;
pub(crate) mod threepids;
pub(crate) mod thumbnails;
pub(crate) mod to_device;
pub(crate) mod tokens;
pub(crate) mod uia;
pub(crate) mod unread;
pub(crate) mod writer;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use futures_util::future::BoxFuture;
use ruma::{OwnedUserId, ServerName, UserId};
use sqlx::{Any, AnyConnection, AnyPool, any::AnyPoolOptions, pool::PoolConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use self::{
    append::{Append, AppendError, Appended},
    counters::Counters,
    dialect::Dialect,
    event_cache::EventCache,
    log::Log,
    otk_epoch::OtkEpoch,
    related::Related,
    roster::Roster,
    state_nodes::StateNodes,
    writer::{Closure, Job, Reply, Tx, Writer},
};

/// Why the database gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// The database refused or failed.
    #[error("the database failed: {0}")]
    Database(Arc<sqlx::Error>),
    /// A migration failed.
    #[error("the database could not be brought up to date: {0}")]
    Migration(Arc<sqlx::migrate::MigrateError>),
    /// A row holds something that we never wrote.
    #[error("table {table} has a broken {column} in row {row:?}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What identifies the row.
        row: String,
    },
    /// The database belongs to a server of another name.
    #[error("this database belongs to the server {found}, not to {expected}")]
    OtherServer {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// Another server uses the database.
    #[error("another sotto uses this database; stop it first, or choose another `database`")]
    InUse,
    /// The file beside the database that says how far it was cannot be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The server is stopping, or the transaction that this was part of was lost.
    #[error("the write was not carried out")]
    Stopped,
}

impl StorageError {
    pub(crate) fn inconsistent(table: &'static str, column: &'static str, row: &str) -> Self {
        Self::Inconsistent {
            table,
            column,
            row: row.to_owned(),
        }
    }
}

impl StorageError {
    /// Whether a text had a null character, which `PostgreSQL` cannot keep in a text.
    pub(crate) fn is_null_character(&self) -> bool {
        let Self::Database(error) = self else {
            return false;
        };
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| code == "22021")
    }
}

impl From<sqlx::Error> for StorageError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// The database of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: AnyPool,
    jobs: mpsc::Sender<Job>,
    counters: Arc<Counters>,
    log: Arc<Log>,
    states: StateNodes,
    events: Arc<EventCache>,
    otk_epoch: Arc<OtkEpoch>,
    related: Related,
    erased: RwLock<BTreeSet<OwnedUserId>>,
}

impl Storage {
    /// Opens the database, brings it up to date, and starts its writer on `tasks`. In `data_dir` is
    /// what must not be restored together with the database.
    pub(crate) async fn open(
        url: &str,
        data_dir: &Path,
        server_name: &ServerName,
        tasks: &TaskTracker,
    ) -> Result<Self, StorageError> {
        sqlx::any::install_default_drivers();
        let dialect = Dialect::of(url);
        let pool = AnyPoolOptions::new()
            // One of them is held all the time where the database is a server itself.
            .max_connections(9)
            // A file does not go away; a ping for each use would double the cost of small reads.
            .test_before_acquire(dialect == Dialect::Postgres)
            .after_connect(move |connection, _| Box::pin(dialect.prepare(connection)))
            .connect(url)
            .await?;
        let mut connection = pool.acquire().await?;
        dialect.take_over(&mut connection).await?;
        dialect
            .migrator()
            .run(&pool)
            .await
            .map_err(|error| StorageError::Migration(Arc::new(error)))?;
        let secret = claim(&mut connection, server_name).await?;
        let otk_epoch = Arc::new(OtkEpoch::begin(&mut connection, data_dir).await?);
        let counters = Arc::new(Counters::load(&mut connection).await?);
        let rows = memberships::Memberships(&mut connection).all().await?;
        let erased = accounts::Accounts(&mut connection).erased().await?;
        let roster = Roster::new(server_name, rows);
        partial_joins::PartialJoins(&mut connection)
            .load(&roster)
            .await?;
        let alone = (dialect == Dialect::Postgres).then_some(connection);
        let log = Arc::new(Log::new(counters.position(), roster));
        let (jobs, queue) = mpsc::channel(1024);
        let (states, events) = (StateNodes::new(secret), Arc::new(EventCache::new()));
        let writer = Writer {
            pool: pool.clone(),
            dialect,
            counters: counters.clone(),
            log: log.clone(),
            events: events.clone(),
            jobs: queue,
        };
        tasks.spawn(writer.run(alone));
        let related = Related::new(&counters);
        Ok(Self(Arc::new(Inner {
            pool,
            jobs,
            counters,
            log,
            states,
            events,
            otk_epoch,
            related,
            erased: RwLock::new(erased.into_iter().collect()),
        })))
    }

    /// The log.
    #[must_use]
    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.0.log
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn states(&self) -> &StateNodes {
        &self.0.states
    }

    pub(crate) fn event_cache(&self) -> &EventCache {
        &self.0.events
    }

    /// Which events others relate to.
    pub(crate) fn related(&self) -> &Related {
        &self.0.related
    }

    /// What keeps one-time keys from being handed out again after a restore.
    pub(crate) fn otk_epoch(&self) -> &Arc<OtkEpoch> {
        &self.0.otk_epoch
    }

    /// Whether a local user asked for their messages to be hidden from those who come later.
    pub(crate) fn is_erased(&self, user_id: &UserId) -> bool {
        let erased = self.0.erased.read().unwrap_or_else(PoisonError::into_inner);
        !erased.is_empty() && erased.contains(user_id)
    }

    /// Notes what a transaction wrote about a user.
    pub(crate) fn note_erased(&self, user_id: OwnedUserId) {
        let mut erased = self
            .0
            .erased
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        erased.insert(user_id);
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<Reader, StorageError> {
        Ok(Reader(self.0.pool.acquire().await?))
    }

    /// Runs `run` in a write transaction, together with whatever else waits to be written. When this
    /// returns `Ok` the changes are on disk and in the log; when `run` returns an error, none of its
    /// changes exist.
    pub(crate) async fn write<T, E, F>(&self, run: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<StorageError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Job::Write(Box::new(Closure::new(run, reply)));
        self.0
            .jobs
            .send(job)
            .await
            .map_err(|_| StorageError::Stopped)?;
        answer.await.map_err(|_| StorageError::Stopped)?
    }

    /// Adds events to a room if its head is still the one that they were decided upon.
    pub(crate) async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.enqueue(append, |_| {})
            .await?
            .await
            .map_err(|_| StorageError::Stopped)?
    }

    /// As [`Storage::append`], in two steps: the order of appends is fixed when this returns, the answer
    /// comes after the commit. Before that `learn` is called with it, also if nobody waits any more.
    pub(crate) async fn enqueue(
        &self,
        append: Append,
        learn: impl FnOnce(&Result<Appended, AppendError>) + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, StorageError> {
        self.0.related.note(&append.events, &self.0.counters);
        let (sender, answer) = oneshot::channel();
        let reply = Reply {
            learn: Box::new(learn),
            answer: sender,
        };
        let job = Job::Append(Box::new(append), reply);
        self.0
            .jobs
            .send(job)
            .await
            .map_err(|_| StorageError::Stopped)?;
        Ok(answer)
    }
}

/// A connection to read with.
#[derive(Debug)]
pub(crate) struct Reader(PoolConnection<Any>);

/// The families of tables, by name: `tx.devices().…`, `reader.devices().…`.
pub(crate) trait Families {
    fn connection(&mut self) -> &mut AnyConnection;

    fn account_data(&mut self) -> account_data::AccountData<'_> {
        account_data::AccountData(self.connection())
    }
    fn accounts(&mut self) -> accounts::Accounts<'_> {
        accounts::Accounts(self.connection())
    }
    fn appservices(&mut self) -> appservices::Appservices<'_> {
        appservices::Appservices(self.connection())
    }
    fn destinations(&mut self) -> destinations::Destinations<'_> {
        destinations::Destinations(self.connection())
    }
    fn cross_signing(&mut self) -> cross_signing::CrossSigning<'_> {
        cross_signing::CrossSigning(self.connection())
    }
    fn device_keys(&mut self) -> device_keys::DeviceKeys<'_> {
        device_keys::DeviceKeys(self.connection())
    }
    fn device_lists(&mut self) -> device_lists::DeviceLists<'_> {
        device_lists::DeviceLists(self.connection())
    }
    fn devices(&mut self) -> devices::Devices<'_> {
        devices::Devices(self.connection())
    }
    fn directory(&mut self) -> directory::Directory<'_> {
        directory::Directory(self.connection())
    }
    fn events(&mut self) -> events::Events<'_> {
        events::Events(self.connection())
    }
    fn external_ids(&mut self) -> external_ids::ExternalIds<'_> {
        external_ids::ExternalIds(self.connection())
    }
    fn inbound(&mut self) -> inbound::Inbound<'_> {
        inbound::Inbound(self.connection())
    }
    fn filters(&mut self) -> filters::Filters<'_> {
        filters::Filters(self.connection())
    }
    fn federation_edus(&mut self) -> federation_edus::FederationEdus<'_> {
        federation_edus::FederationEdus(self.connection())
    }
    fn key_backup(&mut self) -> key_backup::KeyBackup<'_> {
        key_backup::KeyBackup(self.connection())
    }
    fn found_users(&mut self) -> found_users::FoundUsers<'_> {
        found_users::FoundUsers(self.connection())
    }
    fn media(&mut self) -> media::Media<'_> {
        media::Media(self.connection())
    }
    fn memberships(&mut self) -> memberships::Memberships<'_> {
        memberships::Memberships(self.connection())
    }
    fn partial_joins(&mut self) -> partial_joins::PartialJoins<'_> {
        partial_joins::PartialJoins(self.connection())
    }
    fn profile_changes(&mut self) -> profile_changes::ProfileChanges<'_> {
        profile_changes::ProfileChanges(self.connection())
    }
    fn pushers(&mut self) -> pushers::Pushers<'_> {
        pushers::Pushers(self.connection())
    }
    fn receipts(&mut self) -> receipts::Receipts<'_> {
        receipts::Receipts(self.connection())
    }
    fn one_time_keys(&mut self) -> one_time_keys::OneTimeKeys<'_> {
        one_time_keys::OneTimeKeys(self.connection())
    }
    fn registration_tokens(&mut self) -> registration_tokens::RegistrationTokens<'_> {
        registration_tokens::RegistrationTokens(self.connection())
    }
    fn relations(&mut self) -> relations::Relations<'_> {
        relations::Relations(self.connection())
    }
    fn reports(&mut self) -> reports::Reports<'_> {
        reports::Reports(self.connection())
    }
    fn rooms(&mut self) -> rooms::Rooms<'_> {
        rooms::Rooms(self.connection())
    }
    fn search_words(&mut self) -> search_words::SearchWords<'_> {
        search_words::SearchWords(self.connection())
    }
    fn server_keys(&mut self) -> server_keys::ServerKeys<'_> {
        server_keys::ServerKeys(self.connection())
    }
    fn thread_subscriptions(&mut self) -> thread_subscriptions::ThreadSubscriptions<'_> {
        thread_subscriptions::ThreadSubscriptions(self.connection())
    }
    fn threepids(&mut self) -> threepids::Threepids<'_> {
        threepids::Threepids(self.connection())
    }
    fn thumbnails(&mut self) -> thumbnails::Thumbnails<'_> {
        thumbnails::Thumbnails(self.connection())
    }
    fn to_device(&mut self) -> to_device::ToDevice<'_> {
        to_device::ToDevice(self.connection())
    }
    fn tokens(&mut self) -> tokens::Tokens<'_> {
        tokens::Tokens(self.connection())
    }
    fn uia(&mut self) -> uia::Uia<'_> {
        uia::Uia(self.connection())
    }
    fn unread(&mut self) -> unread::Unread<'_> {
        unread::Unread(self.connection())
    }
}

impl Families for Reader {
    fn connection(&mut self) -> &mut AnyConnection {
        &mut self.0
    }
}

impl Families for Tx {
    fn connection(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}

/// Binds the database to the name of its server, once and for all; the secret of its state keys.
async fn claim(
    connection: &mut AnyConnection,
    server_name: &ServerName,
) -> Result<String, StorageError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| StorageError::Stopped)?;
    let fresh = STANDARD_NO_PAD.encode(bytes);
    for (name, value) in [
        ("server_name", server_name.as_str()),
        ("state_key_secret", &fresh),
    ] {
        sqlx::query(
            "INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(value)
        .execute(&mut *connection)
        .await?;
    }
    let mut fact = async |name: &'static str| -> Result<String, StorageError> {
        let query = sqlx::query_scalar("SELECT value FROM facts WHERE name = $1").bind(name);
        Ok(query.fetch_one(&mut *connection).await?)
    };
    let found = fact("server_name").await?;
    if found != server_name.as_str() {
        return Err(StorageError::OtherServer {
            found,
            expected: server_name.to_string(),
        });
    }
    fact("state_key_secret").await
}
