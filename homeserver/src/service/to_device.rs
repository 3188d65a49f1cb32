//! Messages between devices, each delivered once
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging)).
//!
//! A request or a message of another server that is repeated is recognized in the transaction that stores
//! it. What waits for a device is deleted when the device presents a later sync token, never before.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use ruma::{
    DeviceId, OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, TransactionId, UserId,
    events::{AnyToDeviceEventContent, ToDeviceEventType},
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::accounts::{Requester, random_id};
use crate::{
    clock::Clock,
    storage::{Families, Storage, StorageError, writer::Tx},
};

/// The largest content of a message, in bytes.
const MAX_CONTENT: usize = 64 * 1024;
/// How many messages may wait for a device before users of this server must wait with theirs. Messages of
/// other servers are taken all the same: to drop one loses a key for good, and a transaction that is put off
/// until a device reads its messages, which it may never do, would hold up all that the other server says.
/// Only of one server that alone has sent as many, the next ones are dropped: it costs nobody else.
const MAX_WAITING: i64 = 50_000;

/// Messages, by user and device.
pub(crate) type Messages =
    BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>>;

/// Carries messages between devices.
#[derive(Clone, Debug)]
pub(crate) struct ToDevice {
    storage: Storage,
    clock: Clock,
    server_name: OwnedServerName,
}

/// Why messages were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToDeviceError {
    /// A message is too large.
    #[error("a message is too large")]
    TooLarge,
    /// A message of another server is not from one of its users.
    #[error("the sender is a user of another server")]
    ForeignSender,
    /// Too much waits for a device already.
    #[error("too many messages wait for a device")]
    Full,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the specification")]
struct Event<'a> {
    content: &'a RawValue,
    sender: &'a UserId,
    #[serde(rename = "type")]
    event_type: &'a ToDeviceEventType,
}

#[derive(Serialize)]
struct DirectToDevice<'a> {
    sender: &'a UserId,
    #[serde(rename = "type")]
    event_type: &'a ToDeviceEventType,
    message_id: &'a str,
    messages: &'a Messages,
}

impl ToDevice {
    pub(crate) fn new(storage: Storage, clock: Clock, server_name: OwnedServerName) -> Self {
        Self {
            storage,
            clock,
            server_name,
        }
    }

    /// Sends messages of a local device. The same transaction id does nothing a second time.
    pub(crate) async fn send(
        &self,
        requester: &Requester,
        event_type: &ToDeviceEventType,
        txn_id: &TransactionId,
        messages: Messages,
    ) -> Result<(), ToDeviceError> {
        check_sizes(&messages)?;
        let mut remote: BTreeMap<OwnedServerName, Messages> = BTreeMap::new();
        let mut local = Messages::new();
        for (user_id, devices) in messages {
            if user_id.server_name() == self.server_name {
                local.insert(user_id, devices);
            } else {
                let server = user_id.server_name().to_owned();
                remote.entry(server).or_default().insert(user_id, devices);
            }
        }
        let edus: Vec<_> = remote
            .into_iter()
            .filter_map(|(server, messages)| {
                let content = DirectToDevice {
                    sender: &requester.user_id,
                    event_type,
                    message_id: &random_id(),
                    messages: &messages,
                };
                Some((server, serde_json::to_string(&content).ok()?))
            })
            .collect();
        // Transaction ids are unique for each path, which the event type is part of.
        let txn = format!("{event_type}\u{1f}{txn_id}");
        let (requester, event_type) = (requester.clone(), event_type.clone());
        let now = self.clock.now();
        let write = self.storage.write(move |tx| {
            async move {
                let Requester {
                    user_id, device_id, ..
                } = &requester;
                let mut sent = tx.to_device();
                if !sent.begin_request(user_id, device_id, &txn, now).await? {
                    return Ok(());
                }
                refuse_if_full(tx, &local).await?;
                let sent = Sent {
                    sender: user_id,
                    origin: None,
                    event_type: &event_type,
                };
                deliver(tx, &sent, &local).await?;
                for (server, content) in edus {
                    tx.push_edu(&server, "m.direct_to_device", &content).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }

    /// Takes the content of an `m.direct_to_device` of another server. The same message id does nothing
    /// a second time
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#send-to-device-messaging)).
    pub(crate) async fn receive_remote(
        &self,
        origin: &ServerName,
        sender: OwnedUserId,
        event_type: ToDeviceEventType,
        message_id: &TransactionId,
        mut messages: Messages,
    ) -> Result<(), ToDeviceError> {
        if sender.server_name() != origin {
            return Err(ToDeviceError::ForeignSender);
        }
        check_sizes(&messages)?;
        messages.retain(|user_id, _| user_id.server_name() == self.server_name);
        let (origin, message_id) = (origin.to_owned(), message_id.to_owned());
        let now = self.clock.now();
        let write = self.storage.write(move |tx| {
            async move {
                let mut received = tx.to_device();
                let new = received.begin_received(&origin, message_id.as_str(), now);
                if new.await? {
                    let sent = Sent {
                        sender: &sender,
                        origin: Some(&origin),
                        event_type: &event_type,
                    };
                    deliver(tx, &sent, &messages).await?;
                }
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

fn check_sizes(messages: &Messages) -> Result<(), ToDeviceError> {
    let mut contents = messages.values().flat_map(BTreeMap::values);
    if contents.any(|content| content.json().get().len() > MAX_CONTENT) {
        Err(ToDeviceError::TooLarge)
    } else {
        Ok(())
    }
}

/// Whether too much waits for one of the devices: then nothing is delivered, and the sender learns of it.
async fn refuse_if_full(tx: &mut Tx, messages: &Messages) -> Result<(), ToDeviceError> {
    for (user_id, devices) in messages {
        let full = tx.to_device().full(user_id, MAX_WAITING).await?;
        let is_target = |device_id: &OwnedDeviceId| devices.keys().any(|to| is_for(to, device_id));
        if full.iter().any(is_target) {
            return Err(ToDeviceError::Full);
        }
    }
    Ok(())
}

/// What messages have in common.
#[derive(Clone, Copy)]
struct Sent<'a> {
    sender: &'a UserId,
    /// The other server from which they come, if they do.
    origin: Option<&'a ServerName>,
    event_type: &'a ToDeviceEventType,
}

/// Leaves messages for local devices that exist.
async fn deliver(tx: &mut Tx, sent: &Sent<'_>, messages: &Messages) -> Result<(), ToDeviceError> {
    let Sent {
        sender,
        origin,
        event_type,
    } = *sent;
    for (user_id, devices) in messages {
        let mut existing = tx.to_device().devices_of(user_id).await?;
        if let Some(origin) = origin {
            let full = tx.to_device().full_of(origin, user_id, MAX_WAITING).await?;
            if !full.is_empty() {
                tracing::warn!(%origin, %user_id, "a server leaves too much for a device");
                existing.retain(|device_id| !full.contains(device_id));
            }
        }
        for (target, content) in devices {
            let event = Event {
                content: content.json(),
                sender,
                event_type,
            };
            let json = serde_json::to_string(&event).map_err(|_| {
                StorageError::inconsistent("to_device", "json", event_type.to_string().as_str())
            })?;
            for device_id in existing.iter().filter(|id| is_for(target, id)) {
                tx.leave_for_device(user_id, device_id, origin, &json)
                    .await?;
            }
        }
    }
    Ok(())
}

fn is_for(target: &DeviceIdOrAllDevices, device_id: &DeviceId) -> bool {
    match target {
        DeviceIdOrAllDevices::AllDevices => true,
        DeviceIdOrAllDevices::DeviceId(target) => target == device_id,
    }
}
