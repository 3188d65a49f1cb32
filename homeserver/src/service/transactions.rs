//! Transactions of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#transactions)).
//!
//! A transaction is carried out once, also if the server that sent it loses patience and sends it again:
//! the work goes on without the request, and what came of it is stored. Should the server end before that,
//! the repetition does no harm: events have ids, messages to devices too, and the rest says what is, not
//! what changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, OwnedTransactionId, ServerName,
    UInt, api::federation::transactions::edu::Edu, serde::Raw,
};
use serde_json::value::RawValue;
use sotto_federation::transaction::{MAX_EDUS, MAX_PDUS};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use super::{
    e2e_keys::E2eKeys,
    incoming::{Incoming, Refused},
    presence::Presence,
    receipts::Receipts,
    to_device::{ToDevice, ToDeviceError},
    typing::Typing,
};
use crate::{
    clock::Clock,
    storage::{Families, Storage, StorageError},
};

/// For how long the answers to transactions are kept.
const MEMORY: Duration = Duration::from_hours(24);

/// Takes in transactions.
#[derive(Clone)]
pub(crate) struct Transactions(Arc<Inner>);

struct Inner {
    storage: Storage,
    clock: Clock,
    e2e_keys: E2eKeys,
    incoming: Incoming,
    presence: Presence,
    receipts: Receipts,
    to_device: ToDevice,
    typing: Typing,
    tasks: TaskTracker,
    server_name: OwnedServerName,
    delegated_to: Option<OwnedServerName>,
    /// A server's transactions wait here for the one before.
    lanes: Cache<OwnedServerName, Arc<Mutex<()>>>,
}

/// What [`Transactions`] is made of.
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) e2e_keys: E2eKeys,
    pub(crate) incoming: Incoming,
    pub(crate) presence: Presence,
    pub(crate) receipts: Receipts,
    pub(crate) to_device: ToDevice,
    pub(crate) typing: Typing,
    pub(crate) tasks: TaskTracker,
    pub(crate) server_name: OwnedServerName,
    pub(crate) delegated_to: Option<OwnedServerName>,
}

/// What another server sent.
pub(crate) struct Transaction {
    /// Who signed the request.
    pub(crate) origin: OwnedServerName,
    /// Who the body says that sent it.
    pub(crate) claimed_origin: OwnedServerName,
    pub(crate) id: OwnedTransactionId,
    pub(crate) pdus: Vec<Box<RawValue>>,
    pub(crate) edus: Vec<Raw<Edu>>,
}

/// What became of each event; an error is a sentence for whoever runs the other server.
pub(crate) type Answer = BTreeMap<OwnedEventId, Result<(), String>>;

/// Why a transaction was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransactionError {
    /// Too many PDUs or EDUs.
    #[error("the transaction is too large")]
    TooLarge,
    /// The body names another server.
    #[error("the transaction names another origin")]
    OtherOrigin,
    /// The database failed; the other server will try again.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Transactions {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            storage,
            clock,
            e2e_keys,
            incoming,
            presence,
            receipts,
            to_device,
            typing,
            tasks,
            server_name,
            delegated_to,
        } = parts;
        Self(Arc::new(Inner {
            storage,
            clock,
            e2e_keys,
            incoming,
            presence,
            receipts,
            to_device,
            typing,
            tasks,
            server_name,
            delegated_to,
            lanes: Cache::new(4_096),
        }))
    }

    /// Our name.
    pub(crate) fn server_name(&self) -> &ServerName {
        &self.0.server_name
    }

    /// Where other servers find us, if that is not under our name.
    pub(crate) fn delegated_to(&self) -> Option<&OwnedServerName> {
        self.0.delegated_to.as_ref()
    }

    /// Carries out a transaction, or finds what it was answered before.
    pub(crate) async fn receive(
        &self,
        transaction: Transaction,
    ) -> Result<Answer, TransactionError> {
        if transaction.claimed_origin != transaction.origin {
            return Err(TransactionError::OtherOrigin);
        }
        if transaction.pdus.len() > MAX_PDUS || transaction.edus.len() > MAX_EDUS {
            return Err(TransactionError::TooLarge);
        }
        let this = self.clone();
        let work = async move { this.carry_out(transaction).await };
        let outcome = self.0.tasks.spawn(work).await;
        Ok(outcome.unwrap_or(Err(StorageError::Stopped))?)
    }

    async fn carry_out(&self, transaction: Transaction) -> Result<Answer, StorageError> {
        let Transaction {
            origin,
            id,
            pdus,
            edus,
            ..
        } = transaction;
        let lane = self.lane(&origin);
        let _turn = lane.lock().await;
        let mut reader = self.0.storage.read().await?;
        let before = reader.inbound().answer(&origin, &id).await?;
        drop(reader);
        if let Some(answer) = before {
            return read(&origin, &answer);
        }
        // Keys and messages to devices do not wait for events, which may take a while; receipts do, for
        // the events that they are about.
        let (now, later): (Vec<_>, Vec<_>) = edus.iter().partition(|edu| is_for_devices(edu));
        for edu in now {
            self.ephemeral(&origin, edu).await?;
        }
        let outcomes = self.0.incoming.receive(&origin, &pdus).await;
        let answer: Answer = outcomes
            .into_iter()
            .map(|(id, outcome)| (id, told(outcome)))
            .collect();
        for edu in later {
            self.ephemeral(&origin, edu).await?;
        }
        let text = write(&answer);
        let now = self.0.clock.now();
        let memory = UInt::try_from(MEMORY.as_millis()).unwrap_or_default();
        let horizon = MilliSecondsSinceUnixEpoch(now.0.saturating_sub(memory));
        let keep = self.0.storage.write(move |tx| {
            Box::pin(async move {
                let mut inbound = tx.inbound();
                inbound.keep_answer(&origin, &id, &text, now, horizon).await
            })
        });
        keep.await.map_err(|error: StorageError| error)?;
        Ok(answer)
    }

    /// Takes in what is not an event. Whatever is malformed or not the origin's to say is left out.
    async fn ephemeral(&self, origin: &ServerName, edu: &Raw<Edu>) -> Result<(), StorageError> {
        // Read leniently: one user whose presence is malformed must not cost that of all others.
        if let Ok(Some(kind)) = edu.get_field::<String>("edu_type")
            && kind == "m.presence"
        {
            let content = edu.get_field("content").ok().flatten();
            let content = content.unwrap_or_default();
            return self.0.presence.receive_remote(origin, &content).await;
        }
        match edu.deserialize() {
            Ok(Edu::Typing(content)) => {
                if self.0.incoming.hears(origin, &content.room_id).await? {
                    self.0.typing.receive_remote(origin, &content).await?;
                }
                Ok(())
            }
            Ok(Edu::Receipt(mut content)) => {
                for (room_id, receipts) in std::mem::take(&mut content.receipts) {
                    if self.0.incoming.hears(origin, &room_id).await? {
                        content.receipts.insert(room_id, receipts);
                    }
                }
                self.0.receipts.receive_remote(origin, content).await
            }
            Ok(Edu::DeviceListUpdate(content)) => {
                let keys = &self.0.e2e_keys;
                keys.receive_device_list_update(origin, content).await
            }
            Ok(Edu::SigningKeyUpdate(content)) => {
                let keys = &self.0.e2e_keys;
                keys.receive_signing_key_update(origin, content).await
            }
            Ok(Edu::DirectToDevice(content)) => {
                let (sender, kind) = (content.sender, content.ev_type);
                let to_device = &self.0.to_device;
                let (id, messages) = (&content.message_id, content.messages);
                match to_device
                    .receive_remote(origin, sender, kind, id, messages)
                    .await
                {
                    Err(ToDeviceError::Storage(error)) => Err(error),
                    Err(error) => {
                        tracing::debug!(%origin, %error, "a message to devices was dropped");
                        Ok(())
                    }
                    Ok(()) => Ok(()),
                }
            }
            Ok(_) => Ok(()),
            Err(_) => {
                tracing::debug!(%origin, "a malformed EDU was dropped");
                Ok(())
            }
        }
    }

    fn lane(&self, origin: &ServerName) -> Arc<Mutex<()>> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        match self.0.lanes.get_or_insert_with(origin, fresh) {
            Ok(lane) => lane,
            Err(never) => match never {},
        }
    }
}

/// What the other server is told of an event. It hears of an error where it may have made one itself. An
/// event that the rules do not allow was taken in, as a rejected one; and one whose place could not be found
/// waits for whoever has what it builds on: sending it again would help neither.
fn told(outcome: Result<(), Refused>) -> Result<(), String> {
    match outcome {
        Ok(())
        | Err(
            Refused::Rejected(_)
            | Refused::MissingPrevEvents
            | Refused::MissingAuthEvents
            | Refused::Unresolvable,
        ) => Ok(()),
        Err(refused) => Err(refused.to_string()),
    }
}

/// Whether a unit is about devices or for them.
fn is_for_devices(edu: &Raw<Edu>) -> bool {
    let kind = edu.get_field::<String>("edu_type").ok().flatten();
    matches!(
        kind.as_deref(),
        Some("m.direct_to_device" | "m.device_list_update" | "m.signing_key_update")
    )
}

fn write(answer: &Answer) -> String {
    let entries: BTreeMap<_, _> = answer
        .iter()
        .map(|(id, outcome)| (id, outcome.as_ref().err()))
        .collect();
    serde_json::to_string(&entries).unwrap_or_default()
}

fn read(origin: &ServerName, text: &str) -> Result<Answer, StorageError> {
    let wrong = |_| StorageError::inconsistent("inbound_transactions", "answer", origin.as_str());
    let entries: BTreeMap<OwnedEventId, Option<String>> =
        serde_json::from_str(text).map_err(wrong)?;
    let entry = |(id, error): (_, Option<String>)| (id, error.map_or(Ok(()), Err));
    Ok(entries.into_iter().map(entry).collect())
}
