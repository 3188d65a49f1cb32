//! One server: a transaction at a time, again after a pause if it does not answer.

use std::time::Duration;

use futures_util::FutureExt;
use ruma::{
    OwnedServerName, ServerName, TransactionId,
    api::federation::transactions::{
        edu::Edu, send_transaction_message::v1 as send_transaction_message,
    },
    serde::Raw,
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use sotto_federation::{
    client::ClientError,
    transaction::{Backoff, MAX_EDUS, MAX_PDUS},
};

use super::{
    FederationSender,
    queues::{Next, Waiting},
};
use crate::storage::{
    Families, StorageError, destinations::Behind, federation_edus::WaitingEdu, log::StreamPosition,
};

/// How often a server may refuse the same single thing before it is left out: what one server cannot stomach must
/// not keep all that comes later from it.
const MOST_REFUSALS: u32 = 3;

/// What became of a transaction.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Delivered,
    /// The server answered that it does not want it.
    Refused,
    /// The server did not answer.
    Down,
}

/// What to do after a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is done with: delivered, or refused often enough.
    On,
    /// Less is to be sent, to find what is refused.
    Less,
    /// It is to be sent once more later.
    Wait,
}

/// What goes into one transaction.
#[derive(Debug)]
struct Batch {
    events: Vec<Waiting>,
    edus: Vec<WaitingEdu>,
    /// The content of an `m.presence`.
    presence: Option<Value>,
}

impl Batch {
    fn len(&self) -> usize {
        self.events.len() + self.edus.len() + usize::from(self.presence.is_some())
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in the log the first thing is that is kept for the server.
    fn first(&self) -> Option<StreamPosition> {
        let event = self.events.first().map(|waiting| waiting.position);
        event.or_else(|| self.edus.first().map(|edu| edu.position))
    }
}

/// What is remembered of a server while it is sent to.
#[derive(Debug)]
struct Course {
    backoff: Backoff,
    /// The most events in a transaction; fewer after a refusal, to find the one that is refused.
    most: usize,
    /// What was refused on its own, and how often.
    refused: Option<(StreamPosition, u32)>,
}

impl FederationSender {
    /// Sends to a server until nothing waits for it.
    pub(super) async fn deliver(&self, server: OwnedServerName) {
        let mut course = Course {
            backoff: Backoff::default(),
            most: MAX_PDUS,
            refused: None,
        };
        loop {
            if self.0.stopping.is_cancelled() {
                self.0.queues.abandon(&server);
                return;
            }
            let step = match self.0.queues.next(&server, course.most) {
                Next::Send {
                    events,
                    edus,
                    presence,
                } => {
                    let batch = self.batch(&server, events, edus, course.most).await;
                    let presence = self.notice(&presence);
                    match batch.map(|batch| Batch { presence, ..batch }) {
                        Ok(batch) if batch.is_empty() => {
                            if self.0.queues.end(&server) {
                                return;
                            }
                            continue;
                        }
                        Ok(batch) => self.send_waiting(&server, &batch, &mut course).await,
                        Err(error) => Err(error),
                    }
                }
                Next::CatchUp(behind) => self.catch_up(&server, behind, &mut course).await,
            };
            if let Err(error) = step {
                tracing::error!(%server, %error, "what waits for a server cannot be read");
                self.pause(&server, Duration::from_secs(5)).await;
            }
        }
    }

    /// What goes into one transaction.
    async fn batch(
        &self,
        server: &ServerName,
        events: Vec<Waiting>,
        edus: bool,
        most: usize,
    ) -> Result<Batch, StorageError> {
        // After refusals one thing at a time, to find what is refused.
        let most_edus = match most {
            1 if events.is_empty() => 1,
            1 => 0,
            most => (2 * most).min(MAX_EDUS - 1),
        };
        let mut batch = Batch {
            events,
            edus: Vec::new(),
            presence: None,
        };
        if edus && most_edus > 0 {
            let limit = i64::try_from(most_edus).unwrap_or(1);
            let mut reader = self.0.storage.read().await?;
            batch.edus = reader.federation_edus().waiting(server, limit).await?;
            if batch.edus.is_empty() {
                self.0.queues.no_edus(server);
            }
        }
        Ok(batch)
    }

    async fn send_waiting(
        &self,
        server: &ServerName,
        batch: &Batch,
        course: &mut Course,
    ) -> Result<(), StorageError> {
        let outcome = self.transaction(server, batch).await;
        match course.after(outcome, batch) {
            Step::On => self.confirm(server, batch).await?,
            Step::Less => return Ok(()),
            // What is in the queue is sent again after the start.
            Step::Wait if self.0.stopping.is_cancelled() => return Ok(()),
            Step::Wait => {
                let position = self.0.queues.delivered(server);
                return self.falls_behind(server, position, course).await;
            }
        }
        if self.0.queues.is_too_long(server) {
            let position = self.0.queues.delivered(server);
            self.write_behind(server, position, Backoff::default())
                .await?;
        }
        Ok(())
    }

    /// Forgets what the server has got.
    async fn confirm(&self, server: &ServerName, batch: &Batch) -> Result<(), StorageError> {
        if let Some(last) = batch.edus.last() {
            let (name, position) = (server.to_owned(), last.position);
            let write = self.0.storage.write(move |tx| {
                async move { tx.federation_edus().delete_up_to(&name, position).await }.boxed()
            });
            write.await?;
        }
        self.0.queues.sent(server, batch.events.len());
        Ok(())
    }

    /// Sends what a server missed, after the pause that its failures call for.
    async fn catch_up(
        &self,
        server: &ServerName,
        behind: Behind,
        course: &mut Course,
    ) -> Result<(), StorageError> {
        course.backoff = Backoff::after(behind.failures);
        let pause = course.backoff.pause(spread()).as_millis();
        let until = behind
            .failed_at
            .saturating_add(i64::try_from(pause).unwrap_or(i64::MAX));
        let now = i64::from(self.0.clock.now().0);
        if let Ok(left) = u64::try_from(until - now)
            && left > 0
        {
            // A clock that was set back must not silence a server for years.
            let left = Duration::from_millis(left).min(course.backoff.pause(0));
            self.pause(server, left).await;
            if self.0.stopping.is_cancelled() {
                return Ok(());
            }
        }
        let horizon = self.0.storage.log().position();
        let missed = self.missed(server, behind.position, horizon).await?;
        let mut rest = missed.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(course.most));
            let batch = Batch {
                events: now.to_vec(),
                edus: Vec::new(),
                presence: None,
            };
            let outcome = self.transaction(server, &batch).await;
            match course.after(outcome, &batch) {
                Step::On => rest = later,
                Step::Less => {}
                Step::Wait if self.0.stopping.is_cancelled() => return Ok(()),
                Step::Wait => return self.falls_behind(server, behind.position, course).await,
            }
        }
        if self.0.queues.catch_up(server, horizon) {
            let server = server.to_owned();
            let write = self
                .0
                .storage
                .write(move |tx| async move { tx.destinations().caught_up(&server).await }.boxed());
            return write.await;
        }
        self.write_behind(server, horizon, Backoff::default()).await
    }

    /// One more failure.
    async fn falls_behind(
        &self,
        server: &ServerName,
        position: StreamPosition,
        course: &mut Course,
    ) -> Result<(), StorageError> {
        course.backoff = course.backoff.failed();
        self.write_behind(server, position, course.backoff).await
    }

    async fn write_behind(
        &self,
        server: &ServerName,
        position: StreamPosition,
        backoff: Backoff,
    ) -> Result<(), StorageError> {
        let behind = Behind {
            position,
            failures: backoff.failures(),
            failed_at: i64::from(self.0.clock.now().0),
        };
        let name = server.to_owned();
        let write = self.0.storage.write(move |tx| {
            async move { tx.destinations().set_behind(&name, behind).await }.boxed()
        });
        write.await?;
        self.0.queues.set_behind(server, behind);
        Ok(())
    }

    async fn transaction(&self, server: &ServerName, batch: &Batch) -> Outcome {
        let Ok(_permit) = self.0.sending.acquire().await else {
            return Outcome::Down;
        };
        let now = self.0.clock.now();
        let own = self.0.federation.server_name().to_owned();
        let mut request = send_transaction_message::Request::new(TransactionId::new(), own, now);
        let events = batch.events.iter();
        request.pdus = events
            .map(|waiting| waiting.event.pdu.json().to_owned())
            .collect();
        request.edus = batch.edus.iter().filter_map(edu).collect();
        request
            .edus
            .extend(batch.presence.as_ref().and_then(presence));
        let sent = tokio::select! {
            sent = self.0.federation.send(server, request) => sent,
            () = self.0.stopping.cancelled() => return Outcome::Down,
        };
        match sent {
            Ok(answer) => {
                for (event_id, result) in answer.pdus {
                    if result.is_err() {
                        tracing::debug!(%server, %event_id, "a server refuses an event");
                    }
                }
                Outcome::Delivered
            }
            // Whatever it says beside, it has taken the transaction.
            Err(ClientError::OtherForm) => Outcome::Delivered,
            Err(error) => {
                tracing::info!(%server, %error, "a transaction was not delivered");
                match error {
                    // Not the transaction is refused, but us.
                    ClientError::Matrix(ref answer)
                        if answer.status_code.is_client_error()
                            && !matches!(answer.status_code.as_u16(), 401 | 403 | 404 | 429) =>
                    {
                        Outcome::Refused
                    }
                    _ => Outcome::Down,
                }
            }
        }
    }

    /// Waits; a request from the server itself ends the wait.
    async fn pause(&self, server: &ServerName, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.0.federation.sign_of_life(server) => {}
            () = self.0.stopping.cancelled() => {}
        }
    }
}

impl Course {
    fn after(&mut self, outcome: Outcome, batch: &Batch) -> Step {
        match outcome {
            Outcome::Delivered => {
                self.backoff = self.backoff.recovered();
                // More again, but not all at once: what is refused may be next.
                self.most = (2 * self.most).min(MAX_PDUS);
                Step::On
            }
            Outcome::Refused if batch.len() > 1 => {
                self.most = (self.most.min(batch.len()) / 2).max(1);
                Step::Less
            }
            Outcome::Refused => self.refused(batch),
            Outcome::Down => Step::Wait,
        }
    }

    /// Something was refused on its own.
    fn refused(&mut self, batch: &Batch) -> Step {
        // Presence is not kept for anybody.
        let Some(position) = batch.first() else {
            return Step::On;
        };
        let earlier = self.refused.filter(|(refused, _)| *refused == position);
        let count = earlier.map_or(0, |(_, count)| count) + 1;
        self.refused = Some((position, count));
        if count > MOST_REFUSALS {
            Step::On
        } else {
            Step::Wait
        }
    }
}

/// A unit as it is sent.
fn edu(waiting: &WaitingEdu) -> Option<Raw<Edu>> {
    let content: &RawValue = serde_json::from_str(&waiting.content).ok()?;
    let edu = json!({ "edu_type": waiting.kind, "content": content });
    to_raw_value(&edu).ok().map(Raw::from_json)
}

fn presence(content: &Value) -> Option<Raw<Edu>> {
    let edu = json!({ "edu_type": "m.presence", "content": content });
    to_raw_value(&edu).ok().map(Raw::from_json)
}

fn spread() -> u8 {
    let mut byte = [0];
    // Without randomness the pauses of several servers are the same, which is no harm.
    getrandom::fill(&mut byte).map_or(0, |()| byte[0])
}
