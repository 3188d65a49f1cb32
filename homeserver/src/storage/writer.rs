//! The one way to write: jobs wait in a queue, one task takes all that wait, runs them in order in one
//! transaction (each behind a savepoint), commits with one fsync, publishes what they changed, and only
//! then answers.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use sqlx::{Any, AnyPool, pool::PoolConnection};
use tokio::sync::{mpsc, oneshot};

use super::{
    StorageError,
    append::{self, Append, AppendError, Appended},
    counters::Counters,
    dialect::Dialect,
    event_cache::EventCache,
    log::{Change, Entry, Log, StreamPosition},
};

/// The most jobs that one transaction takes.
const BATCH: usize = 256;

/// An open write transaction: the families of tables (through [`super::Families`]) and the log.
#[derive(Debug)]
pub(crate) struct Tx {
    pub(super) connection: PoolConnection<Any>,
    dialect: Dialect,
    pub(super) counters: Arc<Counters>,
    entries: Vec<Entry>,
}

impl Tx {
    /// Adds a change to the log, in this transaction. The position goes into the rows that hold it.
    pub(crate) fn log(&mut self, change: Change) -> StreamPosition {
        let position = self.next_position();
        self.log_at(position, change);
        position
    }

    /// Takes the next place in the log, to be filled with [`Tx::log_at`] before any other is taken.
    pub(crate) fn next_position(&mut self) -> StreamPosition {
        self.counters.next_position()
    }

    /// Fills a place that [`Tx::next_position`] gave.
    pub(crate) fn log_at(&mut self, position: StreamPosition, change: Change) {
        self.entries.push(Entry { position, change });
    }

    /// Takes back what this transaction logged.
    pub(super) fn forget_entries(&mut self) {
        self.entries.clear();
    }

    async fn run(&mut self, sql: &'static str) -> Result<(), StorageError> {
        let query = sqlx::query(sql).persistent(true);
        self.dialect.execute(query, &mut self.connection).await?;
        Ok(())
    }
}

/// What memory does when it learns how an append went.
type Learn = Box<dyn FnOnce(&Result<Appended, AppendError>) + Send>;

/// Whom to tell how an append went.
pub(super) struct Reply {
    /// Called first, also if whoever asked is gone.
    pub(super) learn: Learn,
    pub(super) answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Reply {
    fn send(self, outcome: Result<Appended, AppendError>) {
        (self.learn)(&outcome);
        drop(self.answer.send(outcome));
    }
}

/// Something that waits to be written.
pub(super) enum Job {
    Append(Box<Append>, Reply),
    Write(Box<dyn Write>),
}

/// A closure over a transaction, and whom to tell.
pub(super) trait Write: Send {
    /// Runs it; whether its changes stay.
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, bool>;
    /// Tells the outcome.
    fn finish(self: Box<Self>, committed: Result<(), StorageError>);
}

/// The closure that [`super::Storage::write`] was given.
pub(super) struct Closure<F, T, E> {
    run: Option<F>,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Closure<F, T, E> {
    pub(super) fn new(run: F, reply: oneshot::Sender<Result<T, E>>) -> Self {
        Self {
            run: Some(run),
            result: None,
            reply,
        }
    }
}

impl<F, T, E> Write for Closure<F, T, E>
where
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send,
    T: Send,
    E: From<StorageError> + Send,
{
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, bool> {
        Box::pin(async move {
            let Some(run) = self.run.take() else {
                return false;
            };
            let result = run(tx).await;
            let stays = result.is_ok();
            self.result = Some(result);
            stays
        })
    }

    fn finish(self: Box<Self>, committed: Result<(), StorageError>) {
        let result = match (self.result, committed) {
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(_)), Err(error)) => Err(error.into()),
            (None, outcome) => Err(outcome.err().unwrap_or(StorageError::Stopped).into()),
        };
        // Whoever asked may be gone; what was committed stays committed.
        drop(self.reply.send(result));
    }
}

/// The task that owns all writing.
pub(super) struct Writer {
    pub(super) pool: AnyPool,
    pub(super) dialect: Dialect,
    pub(super) counters: Arc<Counters>,
    pub(super) log: Arc<Log>,
    pub(super) events: Arc<EventCache>,
    pub(super) jobs: mpsc::Receiver<Job>,
}

/// What happened to one job inside of the transaction.
enum Done {
    Append(Reply, Result<Appended, AppendError>),
    Write(Box<dyn Write>),
}

impl Writer {
    /// Runs until every handle of the storage is gone, and then closes the database. `alone` keeps others out
    /// of it as long as it is held.
    pub(super) async fn run(mut self, alone: Option<PoolConnection<Any>>) {
        // One connection for all batches: SQLite forgets the pages that a connection has read when another
        // one writes.
        let mut held = None;
        let mut waiting = Vec::with_capacity(BATCH);
        while self.jobs.recv_many(&mut waiting, BATCH).await > 0 {
            let mut done = Vec::with_capacity(waiting.len());
            let jobs = std::mem::take(&mut waiting);
            let outcome = self.batch(&mut held, jobs, &mut done).await;
            if let Err(error) = &outcome {
                tracing::error!(%error, "a batch of writes was not committed");
            }
            for done in done {
                done.tell(&outcome);
            }
        }
        drop((held, alone));
        self.pool.close().await;
    }

    /// Carries out and commits some jobs through the connection that is held, or another one.
    async fn batch(
        &self,
        held: &mut Option<PoolConnection<Any>>,
        jobs: Vec<Job>,
        done: &mut Vec<Done>,
    ) -> Result<(), StorageError> {
        let connection = match held.take() {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                done.extend(jobs.into_iter().map(|job| match job {
                    Job::Append(_, reply) => Done::Append(reply, Err(StorageError::Stopped.into())),
                    Job::Write(write) => Done::Write(write),
                }));
                return Err(error);
            }
        };
        let counters = self.counters.clone();
        let mut tx = Tx {
            connection,
            dialect: self.dialect,
            counters,
            entries: Vec::new(),
        };
        let outcome = self.transaction(&mut tx, jobs, done).await;
        if outcome.is_ok() {
            for entry in &tx.entries {
                if let Change::Redacted { target, .. } = entry.change {
                    self.events.redact(target);
                }
            }
            let position = tx.entries.last().map(|entry| entry.position);
            if let Some(position) = position {
                self.log.publish(tx.entries, position);
            }
        } else {
            self.counters.forget_reservations();
            if tx.run("ROLLBACK").await.is_err() {
                // The state of this connection is unknown: never use it again.
                drop(tx.connection.detach());
                return outcome;
            }
        }
        *held = Some(tx.connection);
        outcome
    }

    async fn connect(&self) -> Result<PoolConnection<Any>, StorageError> {
        let mut connection = self.pool.acquire().await?;
        append::lone::prepare(&mut connection, self.dialect).await?;
        Ok(connection)
    }

    async fn transaction(
        &self,
        tx: &mut Tx,
        mut jobs: Vec<Job>,
        done: &mut Vec<Done>,
    ) -> Result<(), StorageError> {
        if let Some((append, reply)) = lone(tx, &mut jobs) {
            let result = append::lone::apply(tx, self.dialect, append).await;
            let (result, outcome) = match result {
                Ok(result) => (result, Ok(())),
                Err(error) => (Err(error.clone().into()), Err(error)),
            };
            done.push(Done::Append(reply, result));
            return outcome;
        }
        let alone = jobs.len() == 1;
        tx.run(self.dialect.begin()).await?;
        let mut appends = Vec::new();
        for job in jobs {
            match job {
                Job::Append(append, reply) => appends.push((*append, reply)),
                Job::Write(write) => {
                    Self::append(tx, std::mem::take(&mut appends), done).await?;
                    self.write(tx, write, alone, done).await?;
                }
            }
        }
        Self::append(tx, appends, done).await?;
        tx.counters.clone().reserve(&mut tx.connection).await?;
        tx.run("COMMIT").await
    }

    /// Events of any number of rooms, with one statement per table and not per event.
    async fn append(
        tx: &mut Tx,
        appends: Vec<(Append, Reply)>,
        done: &mut Vec<Done>,
    ) -> Result<(), StorageError> {
        if appends.is_empty() {
            return Ok(());
        }
        let (appends, replies): (Vec<_>, Vec<_>) = appends.into_iter().unzip();
        let results = append::apply(tx, appends).await;
        match results {
            Ok(results) => {
                done.extend(
                    replies
                        .into_iter()
                        .zip(results)
                        .map(|(r, a)| Done::Append(r, a)),
                );
                Ok(())
            }
            Err(error) => {
                let failed = |reply| Done::Append(reply, Err(StorageError::Stopped.into()));
                done.extend(replies.into_iter().map(failed));
                Err(error)
            }
        }
    }

    async fn write(
        &self,
        tx: &mut Tx,
        mut write: Box<dyn Write>,
        alone: bool,
        done: &mut Vec<Done>,
    ) -> Result<(), StorageError> {
        let outcome = self.run_write(tx, &mut *write, alone).await;
        done.push(Done::Write(write));
        outcome
    }

    /// Runs one job so that it leaves nothing behind if it fails. Alone in its transaction it needs no
    /// savepoint for that.
    async fn run_write(
        &self,
        tx: &mut Tx,
        write: &mut dyn Write,
        alone: bool,
    ) -> Result<(), StorageError> {
        let entries = tx.entries.len();
        if !alone {
            tx.run("SAVEPOINT job").await?;
        }
        // A job that panics fails alone: the writer serves everybody.
        let stays = AssertUnwindSafe(write.run(tx))
            .catch_unwind()
            .await
            .unwrap_or(false);
        if !stays {
            tx.entries.truncate(entries);
            if alone {
                tx.run("ROLLBACK").await?;
                return tx.run(self.dialect.begin()).await;
            }
            tx.run("ROLLBACK TO SAVEPOINT job").await?;
        }
        if alone {
            Ok(())
        } else {
            tx.run("RELEASE SAVEPOINT job").await
        }
    }
}

/// Takes out the only job if it is an append that needs no transaction of several statements.
fn lone(tx: &Tx, jobs: &mut Vec<Job>) -> Option<(Append, Reply)> {
    match jobs.as_slice() {
        [Job::Append(append, _)] if append::lone::is_lone(tx, append) => {}
        _ => return None,
    }
    match jobs.pop() {
        Some(Job::Append(append, reply)) => Some((*append, reply)),
        _ => None,
    }
}

impl Done {
    fn tell(self, outcome: &Result<(), StorageError>) {
        let committed = || {
            outcome
                .as_ref()
                .map_or_else(|e| Err(e.clone()), |()| Ok(()))
        };
        match self {
            Self::Append(reply, result) => {
                let result = match committed() {
                    Ok(()) => result,
                    Err(error) => Err(error.into()),
                };
                reply.send(result);
            }
            Self::Write(write) => write.finish(committed()),
        }
    }
}

#[cfg(test)]
mod tests;
