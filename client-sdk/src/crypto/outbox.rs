//! Messages to devices that wait to be sent.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

use std::collections::BTreeMap;

use ruma::{
    OwnedDeviceId, OwnedTransactionId, OwnedUserId, TransactionId,
    api::client::to_device::send_event_to_device, events::AnyToDeviceEventContent, serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::to_raw_value};

use super::{
    error::MachineError,
    machine::Machine,
    requests::{OutgoingRequest, Request},
};
use crate::{
    environment,
    store::{Batch, StoreError, Table},
};

const OUTBOX_COUNTER: &str = "outbox_counter";

/// Contents by user and device.
pub(crate) type Messages = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Value>>;

/// A request that waits in the outbox.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    txn_id: OwnedTransactionId,
    event_type: String,
    /// As they are sent: nobody looks into them any more.
    messages: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Raw<AnyToDeviceEventContent>>>,
    purpose: Purpose,
}

/// The part of an [`Outgoing`] that is not its messages, of which there may be hundreds.
#[derive(Deserialize)]
struct OutgoingHead {
    txn_id: OwnedTransactionId,
    purpose: Purpose,
}

/// What waits for a request in the outbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// The next event of a room.
    RoomKey { session_id: String },
    /// Nothing.
    Other,
}

impl Purpose {
    fn is_key_of(&self, session: &str) -> bool {
        matches!(self, Self::RoomKey { session_id } if session_id == session)
    }
}

impl Outgoing {
    fn new(
        txn_id: OwnedTransactionId,
        event_type: &str,
        messages: Messages,
        purpose: Purpose,
    ) -> Result<Self, MachineError> {
        let raw = |(id, content): (OwnedDeviceId, Value)| {
            let content = to_raw_value(&content).map_err(|_| MachineError::Encode)?;
            Ok((id, Raw::from_json(content)))
        };
        let of_user = |(user_id, devices): (OwnedUserId, BTreeMap<_, _>)| {
            let devices = devices.into_iter().map(raw);
            Ok((user_id, devices.collect::<Result<_, MachineError>>()?))
        };
        let messages: Result<_, MachineError> = messages.into_iter().map(of_user).collect();
        Ok(Self {
            txn_id,
            event_type: event_type.to_owned(),
            messages: messages?,
            purpose,
        })
    }

    pub(crate) fn into_request(self) -> OutgoingRequest {
        let messages = self
            .messages
            .into_iter()
            .map(|(user_id, devices)| {
                let devices = devices
                    .into_iter()
                    .map(|(id, content)| (DeviceIdOrAllDevices::DeviceId(id), content))
                    .collect();
                (user_id, devices)
            })
            .collect();
        let request = send_event_to_device::v3::Request::new_raw(
            self.event_type.into(),
            self.txn_id.clone(),
            messages,
        );
        OutgoingRequest {
            id: self.txn_id,
            request: Request::ToDevice(request),
        }
    }
}

impl Machine {
    /// Queues messages; they are sent once the batch is committed.
    pub(crate) async fn queue(
        &self,
        event_type: &str,
        messages: Messages,
        purpose: Purpose,
        batch: &mut Batch<'_>,
    ) -> Result<(), MachineError> {
        if messages.is_empty() {
            return Ok(());
        }
        let txn_id = environment::transaction_id(self.environment())?;
        let outgoing = Outgoing::new(txn_id, event_type, messages, purpose)?;
        let number: u64 = batch
            .get(Table::Meta, "", OUTBOX_COUNTER)
            .await?
            .unwrap_or(0);
        batch.put(Table::Meta, "", OUTBOX_COUNTER, &(number + 1))?;
        Ok(batch.put(Table::Outbox, "", &format!("{number:016x}"), &outgoing)?)
    }

    /// The queued messages that carry the key of a session.
    pub(crate) async fn waiting_keys(
        &self,
        session_id: &str,
    ) -> Result<Vec<OutgoingRequest>, StoreError> {
        let batch = self.batch();
        let rows: Vec<(String, Outgoing)> = batch.list(Table::Outbox, "").await?;
        Ok(rows
            .into_iter()
            .filter(|(_, outgoing)| outgoing.purpose.is_key_of(session_id))
            .map(|(_, outgoing)| outgoing.into_request())
            .collect())
    }

    pub(crate) async fn remove_from_outbox(&self, id: &TransactionId) -> Result<(), MachineError> {
        let mut batch = self.batch();
        for (row, outgoing) in batch.list::<OutgoingHead>(Table::Outbox, "").await? {
            if outgoing.txn_id == id {
                batch.delete(Table::Outbox, "", &row);
            }
        }
        Ok(batch.commit().await?)
    }
}

/// Whether messages with the key of a session still wait to be sent.
pub(crate) async fn is_undelivered(
    batch: &Batch<'_>,
    session_id: &str,
) -> Result<bool, StoreError> {
    let rows: Vec<(String, OutgoingHead)> = batch.list(Table::Outbox, "").await?;
    Ok(rows
        .iter()
        .any(|(_, outgoing)| outgoing.purpose.is_key_of(session_id)))
}
