//! How far users have read
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#receipts)).

use std::collections::BTreeSet;

use futures_util::FutureExt;
use ruma::{
    EventId, OwnedEventId, OwnedUserId, RoomId, ServerName, UserId,
    api::federation::transactions::edu::ReceiptContent,
    events::receipt::{ReceiptThread, ReceiptType},
};
use serde_json::json;

use super::{
    account_data::{self, FULLY_READ},
    events::Events,
};
use crate::{
    clock::Clock,
    storage::{Families, Storage, StorageError, log::Change, receipts::StoredReceipt},
};

/// Keeps receipts.
#[derive(Clone)]
pub(crate) struct Receipts {
    storage: Storage,
    events: Events,
    clock: Clock,
}

/// Why a receipt was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiptError {
    #[error("the user is not in the room")]
    NotJoined,
    #[error("there is no such event in the room")]
    UnknownEvent,
    #[error("the thread is not one")]
    BadThread,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Receipts {
    pub(crate) fn new(storage: Storage, events: Events, clock: Clock) -> Self {
        Self {
            storage,
            events,
            clock,
        }
    }

    /// Moves a receipt of a local user. It never moves back.
    pub(crate) async fn set(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        receipt_type: ReceiptType,
        event_id: &EventId,
        thread: &ReceiptThread,
    ) -> Result<(), ReceiptError> {
        let thread_id = match thread {
            ReceiptThread::Unthreaded => None,
            ReceiptThread::Main | ReceiptThread::Thread(_) => thread.as_str().map(str::to_owned),
            _ => return Err(ReceiptError::BadThread),
        };
        let position = self.position(user_id, room_id, event_id).await?;
        let receipt = StoredReceipt {
            room_id: room_id.to_owned(),
            user_id: user_id.to_owned(),
            receipt_type: receipt_type.to_string(),
            thread_id,
            event_id: event_id.to_owned(),
            event_position: Some(position),
            received_at: self.now(),
        };
        Ok(self.put(receipt).await?)
    }

    /// Moves the fully read marker of a local user, wherever the user wants it
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#fully-read-markers)).
    pub(crate) async fn set_fully_read(
        &self,
        user_id: OwnedUserId,
        room_id: &RoomId,
        event_id: OwnedEventId,
    ) -> Result<(), ReceiptError> {
        self.position(&user_id, room_id, &event_id).await?;
        let room_id = Some(room_id.to_owned());
        let write = self.storage.write(move |tx| {
            async move {
                let content = json!({ "event_id": event_id }).to_string();
                account_data::put(tx, user_id, room_id, FULLY_READ.to_owned(), &content).await
            }
            .boxed()
        });
        Ok(write.await.map(drop)?)
    }

    /// Receipts that another server sends. What it may not say is ignored.
    pub(crate) async fn receive_remote(
        &self,
        origin: &ServerName,
        content: ReceiptContent,
    ) -> Result<(), StorageError> {
        for (room_id, receipts) in content.receipts {
            for (user_id, data) in receipts.read {
                let roster = self.storage.log().roster();
                if user_id.server_name() != origin || !roster.may_be_joined(&user_id, &room_id) {
                    continue;
                }
                let Some(event_id) = data.event_ids.into_iter().next_back() else {
                    continue;
                };
                let event = self.events.by_id(&event_id).await?;
                if event
                    .as_ref()
                    .is_some_and(|event| event.pdu.room_id() != room_id)
                {
                    continue;
                }
                let receipt = StoredReceipt {
                    room_id: room_id.clone(),
                    user_id,
                    receipt_type: ReceiptType::Read.to_string(),
                    thread_id: data.data.thread.as_str().map(str::to_owned),
                    event_id,
                    event_position: event.and_then(|event| event.position),
                    // When the user read is for their server to say.
                    received_at: data.data.ts.map_or_else(|| self.now(), |ts| ts.0.into()),
                };
                self.put(receipt).await?;
            }
        }
        Ok(())
    }

    /// The place of an event in a room that the user is in.
    async fn position(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<i64, ReceiptError> {
        if !self.storage.log().roster().is_joined(user_id, room_id) {
            return Err(ReceiptError::NotJoined);
        }
        let event = self.events.by_id(event_id).await?;
        let event = event.filter(|event| event.pdu.room_id() == room_id);
        event
            .and_then(|event| event.position)
            .ok_or(ReceiptError::UnknownEvent)
    }

    async fn put(&self, receipt: StoredReceipt) -> Result<(), StorageError> {
        let roster = self.storage.log().roster();
        let servers = if receipt.receipt_type == ReceiptType::Read.as_str() {
            roster.servers_to_tell(&receipt.user_id, &receipt.room_id)
        } else {
            // Where somebody read in private is nobody else's business.
            BTreeSet::new()
        };
        let write = self.storage.write(move |tx| {
            async move {
                if let Some((event_id, position)) = tx.receipts().place(&receipt).await? {
                    let back = matches!((position, receipt.event_position),
                        (Some(now), Some(new)) if new <= now);
                    if back || event_id == receipt.event_id.as_str() {
                        return Ok(());
                    }
                }
                let change = Change::Receipt {
                    room_id: receipt.room_id.clone(),
                    user_id: receipt.user_id.clone(),
                    private: receipt.receipt_type == ReceiptType::ReadPrivate.as_str(),
                };
                let told = notice(&receipt);
                for server in servers {
                    tx.push_edu(&server, "m.receipt", &told).await?;
                }
                let position = tx.log(change);
                tx.receipts().set(&receipt, position).await
            }
            .boxed()
        });
        write.await
    }

    fn now(&self) -> i64 {
        i64::from(self.clock.now().0)
    }
}

/// A receipt as other servers get it
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#receipts)).
fn notice(receipt: &StoredReceipt) -> String {
    let mut data = json!({ "ts": receipt.received_at });
    if let Some(thread_id) = &receipt.thread_id {
        data["thread_id"] = json!(thread_id);
    }
    let StoredReceipt {
        room_id,
        user_id,
        event_id,
        ..
    } = receipt;
    let read = json!({ user_id.as_str(): { "data": data, "event_ids": [event_id] } });
    json!({ room_id.as_str(): { "m.read": read } }).to_string()
}
