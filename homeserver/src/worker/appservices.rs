//! Telling application services what happens
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/#pushing-events)).
//!
//! One task for each service that has an address reads the log forward. What concerns the service goes into
//! a transaction, which is written down before it is sent, with the place in the log up to which it reaches:
//! so it is the same whenever it is sent again, also after a crash. There is one at a time; the next one is
//! made when it is confirmed. A service that is away holds up nobody else: what it misses is in the log.

mod encryption;
mod gather;
mod interest;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use reqwest::Method;
use tokio_util::sync::CancellationToken;

use self::{gather::Batch, interest::Interest};
use crate::{
    clock::Clock,
    service::{
        appservices::{Appservice, Appservices},
        e2e_keys::E2eKeys,
        events::Events,
        presence::Presence,
        typing::Typing,
    },
    storage::{
        Families, Storage, StorageError,
        appservices::Cursor,
        log::{Change, StreamPosition},
    },
};

/// How long a service may take for a transaction.
const PATIENCE: Duration = Duration::from_mins(1);
/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How long it is waited for an answer when the server stops: one that is missed has to be given again.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// How far the log may go on, without anything for the service, before its place is written all the same.
const KEEP_AFTER: i64 = 5_000;

/// Tells one service what happens.
pub(crate) struct AppserviceSender {
    parts: Parts,
    service: Arc<Appservice>,
}

/// What the worker needs.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) services: Appservices,
    pub(crate) events: Events,
    pub(crate) keys: E2eKeys,
    pub(crate) presence: Presence,
    pub(crate) typing: Typing,
    pub(crate) stopping: CancellationToken,
}

/// Where the worker is.
struct Place {
    /// Everything up to here was looked at.
    read: StreamPosition,
    /// What was last decided; its position may be behind `read`.
    cursor: Cursor,
    /// Whether that is not written down.
    unsaved: bool,
    interest: Interest,
    /// How often in a row the service did not take the transaction.
    failures: u32,
}

/// What to do next.
enum Next {
    /// There may be more.
    GoOn,
    /// Wait for the log.
    Wait,
    /// Wait for the service, which may be there again when it asks for something.
    Pause { hurried: bool },
    /// The server stops.
    Stop,
}

impl AppserviceSender {
    pub(crate) fn new(parts: Parts, service: Arc<Appservice>) -> Self {
        Self { parts, service }
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let stopping = self.parts.stopping.clone();
        let service = self.service.clone();
        let log = self.parts.storage.log();
        let log = log.follow(move |change| may_concern(&service, change));
        let mut place = loop {
            match self.start().await {
                Ok(place) => break place,
                Err(error) => self.broken(&error),
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_ERROR) => {}
                () = stopping.cancelled() => return,
            }
        };
        loop {
            log.skip(&mut place.read);
            let next = match self.step(&mut place).await {
                Ok(next) => next,
                Err(error) => {
                    self.broken(&error);
                    tokio::time::sleep(AFTER_ERROR).await;
                    Next::GoOn
                }
            };
            match next {
                Next::Stop => break,
                _ if stopping.is_cancelled() => break,
                Next::GoOn => {}
                Next::Wait => tokio::select! {
                    () = log.woken() => {}
                    () = stopping.cancelled() => break,
                },
                Next::Pause { hurried } => self.pause(place.failures, hurried).await,
            }
        }
        if place.cursor.body.is_none() {
            place.cursor.position = place.read;
            if let Err(error) = self.save(&mut place, &[]).await {
                self.broken(&error);
            }
        }
    }

    /// Takes up the work where it was left. A new service is told what happens from now on.
    async fn start(&self) -> Result<Place, StorageError> {
        let mut reader = self.parts.storage.read().await?;
        let known = reader
            .appservices()
            .cursor(self.service.id.as_str())
            .await?;
        drop(reader);
        let unsaved = known.is_none();
        let cursor = known.unwrap_or_else(|| Cursor {
            position: self.parts.storage.log().position(),
            txn_id: self.parts.clock.now().0.into(),
            body: None,
        });
        let mut place = Place {
            read: cursor.position,
            cursor,
            unsaved,
            interest: Interest::load(&self.parts.storage, &self.service).await?,
            failures: 0,
        };
        if unsaved {
            self.save(&mut place, &[]).await?;
        }
        Ok(place)
    }

    /// Makes a transaction if there is none, and sends it.
    async fn step(&self, place: &mut Place) -> Result<Next, StorageError> {
        if place.cursor.body.is_none() {
            let batch = self.gather(place.read, &mut place.interest).await?;
            place.read = batch.until;
            if let Some(body) = batch.body(&self.service) {
                place.cursor = Cursor {
                    position: batch.until,
                    txn_id: place.cursor.txn_id + 1,
                    body: Some(body),
                };
                self.save(place, &batch.taken).await?;
            } else {
                if place.unsaved || place.read.0 - place.cursor.position.0 > KEEP_AFTER {
                    place.cursor.position = place.read;
                    self.save(place, &[]).await?;
                }
                let at_end = place.read >= self.parts.storage.log().position();
                return Ok(if at_end { Next::Wait } else { Next::GoOn });
            }
        }
        Ok(self.send(place).await)
    }

    async fn send(&self, place: &mut Place) -> Next {
        let path = format!("transactions/{}", place.cursor.txn_id);
        let body = place.cursor.body.clone();
        let services = &self.parts.services;
        let sent = services.send(&self.service, Method::PUT, &path, body, PATIENCE);
        let sent = tokio::select! {
            sent = sent => sent,
            () = self.out_of_time() => return Next::Stop,
        };
        let (id, txn) = (&self.service.id, place.cursor.txn_id);
        let hurried = match sent {
            Ok(answer) if answer.is_good() => {
                if place.failures > 0 {
                    tracing::info!(%id, "an application service is there again");
                }
                // Written down with the next transaction, or when there is none: until then it may be
                // sent again, as the same.
                place.cursor.body = None;
                (place.unsaved, place.failures) = (true, 0);
                return Next::GoOn;
            }
            Ok(answer) => {
                let status = answer.status;
                tracing::warn!(%id, txn, status, "an application service does not take a transaction");
                false
            }
            Err(error) => {
                tracing::warn!(%id, txn, %error, "an application service does not take a transaction");
                true
            }
        };
        place.failures = place.failures.saturating_add(1);
        Next::Pause { hurried }
    }

    /// Ends when the server stops and cannot wait for an answer any more.
    async fn out_of_time(&self) {
        self.parts.stopping.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    }

    /// Waits before a transaction is sent again.
    async fn pause(&self, failures: u32, hurried: bool) {
        let doublings = failures.saturating_sub(1);
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings));
        let rest = pause.min(LONGEST_PAUSE).saturating_sub(FIRST_PAUSE);
        let seen = self.service.seen();
        let wait = async {
            tokio::time::sleep(FIRST_PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = seen, if hurried => {}
            }
        };
        tokio::select! {
            () = wait => {}
            () = self.parts.stopping.cancelled() => {}
        }
    }

    /// Writes down how far the service has got. The messages that are `taken` are in a transaction now.
    async fn save(&self, place: &mut Place, taken: &[gather::Message]) -> Result<(), StorageError> {
        let (id, cursor) = (self.service.id.clone(), place.cursor.clone());
        let taken = taken.to_vec();
        let write = self.parts.storage.write(move |tx| {
            async move {
                for message in taken {
                    let (user_id, device_id) = (&message.user_id, &message.device_id);
                    tx.to_device()
                        .delete_up_to(user_id, device_id, message.position)
                        .await?;
                }
                tx.appservices().set(id.as_str(), &cursor).await
            }
            .boxed()
        });
        write.await?;
        place.unsaved = false;
        Ok(())
    }

    fn broken(&self, error: &StorageError) {
        tracing::error!(id = %self.service.id, %error, "an application service cannot be worked for");
    }
}

/// Whether an entry of the log may be for the service. Called by the one writer.
fn may_concern(service: &Appservice, change: &Change) -> bool {
    match change {
        Change::Event(_) | Change::OutsideMembership(_) => true,
        Change::Aliases { .. } => service.has_aliases(),
        Change::Typing { .. }
        | Change::Receipt { .. }
        | Change::Presence { .. }
        | Change::ToDevice { .. } => service.ephemeral.is_some(),
        Change::DeviceList { .. } | Change::OneTimeKeys { .. } => service.encryption,
        _ => false,
    }
}

impl Batch {
    /// What is sent; `None` if there is nothing.
    fn body(&self, service: &Appservice) -> Option<String> {
        gather::body(self, service).map(|body| body.to_string())
    }
}
