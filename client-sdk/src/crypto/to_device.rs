//! What a sync brings for the machine, above all messages from device to device.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

use ruma::{
    OneTimeKeyAlgorithm, OwnedRoomId, OwnedUserId, UserId,
    api::client::sync::sync_events::DeviceLists, events::AnyToDeviceEvent, serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vodozemac::Curve25519PublicKey;

use super::{
    account::{Inbox, StoredAccount},
    devices::{self, TrackedUser},
    error::{MachineError, RejectedMessage},
    history,
    identity::{self, Identity},
    machine::{Machine, Volatile},
    megolm::RoomKeyContent,
    olm::{self, Received},
    outbound,
    payload::{CheckedPayload, Recipient},
    query,
    trust::{SenderData, SenderTrust},
    unwedge, withheld,
};
use crate::store::{Batch, Changes, StoreError, Table};

const SYNC_TOKEN: &str = "sync_token";
const INBOX_COUNTER: &str = "inbox_counter";

/// The parts of a sync response that concern encryption.
#[derive(Debug)]
pub struct SyncChanges<'a> {
    /// The token to sync from next.
    pub next_batch: &'a str,
    /// The messages to this device.
    pub to_device: &'a [Raw<AnyToDeviceEvent>],
    /// The users whose devices changed.
    pub device_lists: &'a DeviceLists,
    /// The signed one-time keys that the server has left. A response that does not say means none.
    pub one_time_keys: u64,
    /// The algorithms of which the fallback key is unused; `None` if the server did not say.
    pub unused_fallback_keys: Option<&'a [OneTimeKeyAlgorithm]>,
    /// What happened in rooms.
    pub rooms: &'a [RoomChange],
    /// The items of [`Machine::inbox`] that the application has consumed.
    pub consumed: &'a [String],
    /// Changes of the caller that belong to the same moment.
    pub also: Changes,
}

impl SyncChanges<'_> {
    /// Whether it brings nothing that has to do with devices or members.
    fn is_quiet(&self) -> bool {
        self.to_device.is_empty() && self.device_lists.is_empty() && self.rooms.is_empty()
    }
}

/// Something in a room that matters for its encryption.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RoomChange {
    /// The content of an `m.room.encryption` event.
    Encryption(OwnedRoomId, Map<String, Value>),
    /// Somebody who might have the current key is not a member any more.
    Departed(OwnedRoomId),
    /// Who comes later may read what is sent from now on, or may not any more.
    History(OwnedRoomId, HistorySharing),
}

/// Whether people who come later may read what is sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistorySharing {
    /// They may: the visibility is `shared` or `world_readable`.
    Allowed,
    /// They may not.
    Forbidden,
}

/// What the machine made of a sync.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SyncOutcome {
    /// The messages that were refused, and why.
    pub rejected: Vec<RejectedToDevice>,
}

/// A to-device message that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedToDevice {
    /// Who sent it, as the server says.
    pub sender: Option<OwnedUserId>,
    /// Why.
    pub reason: RejectedMessage,
}

/// An item of the inbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub enum InboxItem {
    /// A message for the application.
    Message(ToDeviceEvent),
    /// A key with which events may become readable.
    RoomKey(RoomKeyInfo),
}

/// A message from a device to this one.
#[derive(Clone, Serialize, Deserialize)]
pub struct ToDeviceEvent {
    /// The type.
    pub kind: String,
    /// The sender; authenticated only as far as `encrypted_by` says.
    pub sender: OwnedUserId,
    /// The content.
    pub content: Map<String, Value>,
    /// The device that encrypted it; `None` if it came in the clear.
    pub encrypted_by: Option<SenderData>,
}

impl std::fmt::Debug for ToDeviceEvent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ToDeviceEvent")
            .field("kind", &self.kind)
            .field("sender", &self.sender)
            .field("encrypted_by", &self.encrypted_by)
            .finish_non_exhaustive()
    }
}

/// A room key that arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomKeyInfo {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The session.
    pub session_id: String,
}

#[derive(Deserialize)]
struct RawToDevice {
    #[serde(rename = "type")]
    kind: String,
    sender: OwnedUserId,
    content: Map<String, Value>,
}

impl Machine {
    /// Takes everything of a sync response that concerns encryption, in one commit: decrypted
    /// messages, the ratchets that decrypted them, the sync token, and `also`.
    pub async fn receive_sync_changes(
        &self,
        changes: SyncChanges<'_>,
    ) -> Result<SyncOutcome, MachineError> {
        let mut volatile = self.lock().await?;
        // Without a token to start from, all lists become outdated below.
        if !changes.is_quiet() || self.sync_token().await?.is_none() {
            volatile.devices_changed();
            volatile.backup_idle = false;
        }
        let mut batch = self.batch();
        self.take_device_lists(&mut batch, changes.device_lists)
            .await?;
        outbound::take_room_changes(&mut batch, changes.rooms).await?;
        for id in changes.consumed {
            batch.delete(Table::Inbox, "", id);
        }
        let mut outcome = SyncOutcome::default();
        for event in changes.to_device {
            let taken = self.take_event(&mut volatile, &mut batch, event).await?;
            if let Err(rejected) = taken {
                tracing::info!(sender = ?rejected.sender, reason = %rejected.reason, "refused a to-device message");
                outcome.rejected.push(rejected);
            }
        }
        let mut account = StoredAccount::load(&batch).await?;
        let (count, unused) = (changes.one_time_keys, changes.unused_fallback_keys);
        let inbox = match changes.to_device {
            [] => Inbox::Empty,
            _ => Inbox::Filled,
        };
        if account.take_counts(count, unused, inbox, self.now()) {
            account.save(&mut batch)?;
        }
        batch.put(Table::Meta, "", SYNC_TOKEN, &changes.next_batch)?;
        batch.extend(changes.also);
        batch.commit().await?;
        Ok(outcome)
    }

    /// The token of the last sync that was taken.
    pub async fn sync_token(&self) -> Result<Option<String>, MachineError> {
        Ok(self.batch().get(Table::Meta, "", SYNC_TOKEN).await?)
    }

    /// What arrived and was not yet named in [`SyncChanges::consumed`], oldest first.
    pub async fn inbox(&self) -> Result<Vec<(String, InboxItem)>, MachineError> {
        Ok(self.batch().list(Table::Inbox, "").await?)
    }

    async fn take_device_lists(
        &self,
        batch: &mut Batch<'_>,
        lists: &DeviceLists,
    ) -> Result<(), StoreError> {
        let token: Option<String> = batch.get(Table::Meta, "", SYNC_TOKEN).await?;
        if token.is_none() {
            // Without a token to start from the server cannot know what we have missed.
            for (user_id, _) in batch.list::<TrackedUser>(Table::TrackedUsers, "").await? {
                if let Ok(user_id) = <&UserId>::try_from(user_id.as_str()) {
                    devices::mark_outdated(batch, user_id).await?;
                }
            }
        }
        for user_id in &lists.changed {
            devices::mark_outdated(batch, user_id).await?;
        }
        for user_id in lists
            .left
            .iter()
            .filter(|user_id| *user_id != self.user_id())
        {
            devices::untrack(batch, user_id).await?;
        }
        Ok(())
    }

    /// The outer error is a failing store, the inner one says what is wrong with the message.
    async fn take_event(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        event: &Raw<AnyToDeviceEvent>,
    ) -> Result<Result<(), RejectedToDevice>, MachineError> {
        let Ok(event) = serde_json::from_str::<RawToDevice>(event.json().get()) else {
            let reason = RejectedMessage::Malformed;
            return Ok(Err(RejectedToDevice {
                sender: None,
                reason,
            }));
        };
        let result = match event.kind.as_str() {
            "m.room.encrypted" => self.take_encrypted(batch, &event).await?,
            "m.room_key.withheld" => withheld::take_withheld(batch, &event.sender, &event.content)?,
            // These are believed because of who encrypted them, so in the clear they are nothing.
            "m.room_key"
            | "m.forwarded_room_key"
            | "m.secret.send"
            | "m.dummy"
            | "m.room_key_bundle" => Err(RejectedMessage::NotEncrypted),
            kind if kind.starts_with("m.key.verification.") => {
                let step = kind.trim_start_matches("m.key.verification.");
                self.take_verification(volatile, batch, &event.sender, step, &event.content)
                    .await?;
                Ok(())
            }
            "m.secret.request" | "m.room_key_request" => {
                self.take_secret_request(batch, &event.sender, &event.content)
                    .await?;
                Ok(())
            }
            _ => {
                let RawToDevice {
                    kind,
                    sender,
                    content,
                } = event;
                let event = ToDeviceEvent {
                    kind,
                    sender,
                    content,
                    encrypted_by: None,
                };
                add_to_inbox(batch, &InboxItem::Message(event)).await?;
                return Ok(Ok(()));
            }
        };
        Ok(result.map_err(|reason| RejectedToDevice {
            sender: Some(event.sender),
            reason,
        }))
    }

    async fn take_encrypted(
        &self,
        batch: &mut Batch<'_>,
        event: &RawToDevice,
    ) -> Result<Result<(), RejectedMessage>, MachineError> {
        let received = match Received::parse(&event.content, self.curve25519_key()) {
            Ok(received) => received,
            Err(error) => return Ok(Err(error)),
        };
        let payload = match olm::decrypt(batch, &received, self.now()).await? {
            Ok(decrypted) => decrypted.payload,
            Err(error) => {
                use RejectedMessage::{DecryptionFailed, NoSession};
                if matches!(error, DecryptionFailed | NoSession) {
                    let (sender, key) = (&event.sender, received.sender_key);
                    unwedge::note_broken_session(batch, sender, key, self.now()).await?;
                }
                return Ok(Err(error));
            }
        };
        let recipient = Recipient {
            user_id: self.user_id(),
            ed25519: self.ed25519_key(),
        };
        let checked = match payload.check(&event.sender, received.sender_key, &recipient) {
            Ok(checked) => checked,
            Err(error) => return Ok(Err(error)),
        };
        let sender = match sender_data(batch, self.user_id(), &checked, received.sender_key).await?
        {
            Ok(sender) => sender,
            Err(error) => return Ok(Err(error)),
        };
        match checked.kind() {
            "m.secret.send" => self.take_secret(batch, checked.content(), &sender).await,
            "m.forwarded_room_key" => self.take_forwarded(batch, checked.content(), &sender).await,
            _ => take_payload(batch, checked, sender).await,
        }
    }
}

/// Binds a message to a device of its sender (check 2, and the rule that keys never change).
async fn sender_data(
    batch: &mut Batch<'_>,
    own_id: &UserId,
    payload: &CheckedPayload,
    sender_key: Curve25519PublicKey,
) -> Result<Result<SenderData, RejectedMessage>, StoreError> {
    let curve25519 = sender_key.to_base64();
    let user_id = payload.sender().to_owned();
    let known = devices::load_devices(batch, &user_id).await?;
    let mut data = SenderData {
        user_id,
        device_id: payload.claimed_device().map(ToOwned::to_owned),
        curve25519,
        ed25519: payload.ed25519().to_base64(),
        trust: SenderTrust::UnknownDevice,
        forwarded_by: None,
    };
    if let Some(device) = known
        .iter()
        .find(|device| device.curve25519 == data.curve25519)
    {
        if !payload.is_of_device(&device.ed25519) {
            return Ok(Err(RejectedMessage::MismatchedSenderKeys));
        }
        if payload
            .claimed_device()
            .is_some_and(|claimed| claimed != device.device_id)
        {
            return Ok(Err(RejectedMessage::MismatchedDeviceKeys));
        }
        data.device_id = Some(device.device_id.clone());
        data.trust = identity::trust_of(batch, own_id, device).await?;
        return Ok(Ok(data));
    }
    if known
        .iter()
        .any(|device| Some(&device.device_id) == data.device_id.as_ref())
    {
        return Ok(Err(RejectedMessage::MismatchedDeviceKeys));
    }
    // The device may be gone before its list arrives: what the identity has signed is signed.
    if let Some(object) = payload.device_keys()
        && let Some(identity) = Identity::load(batch, &data.user_id).await?
        && query::signer(object, &identity).is_some()
    {
        data.trust = identity::trust_under(batch, own_id, &identity).await?;
    }
    // The device list will tell whether the user has such a device.
    devices::track(batch, &data.user_id).await?;
    devices::mark_outdated(batch, &data.user_id).await?;
    Ok(Ok(data))
}

async fn take_payload(
    batch: &mut Batch<'_>,
    payload: CheckedPayload,
    sender: SenderData,
) -> Result<Result<(), RejectedMessage>, MachineError> {
    match payload.kind() {
        "m.room_key" => take_room_key(batch, payload.content(), sender).await,
        // The second is what clients send that are older than the specification of it.
        "m.room_key_bundle" | "io.element.msc4268.room_key_bundle" => {
            history::take_notice(batch, payload.content(), &sender)
        }
        "m.dummy" => {
            // Their session with us broke, so what we sent over it may be lost.
            let device =
                devices::load_device_by_curve25519(batch, &sender.user_id, &sender.curve25519);
            if let Some(mut device) = device.await? {
                device.wedging += 1;
                device.save(batch)?;
            }
            Ok(Ok(()))
        }
        "m.room.encrypted" => Ok(Err(RejectedMessage::Malformed)),
        kind => {
            let event = ToDeviceEvent {
                kind: kind.to_owned(),
                sender: sender.user_id.clone(),
                encrypted_by: Some(sender),
                content: payload.into_content(),
            };
            add_to_inbox(batch, &InboxItem::Message(event)).await?;
            Ok(Ok(()))
        }
    }
}

async fn take_room_key(
    batch: &mut Batch<'_>,
    content: &Map<String, Value>,
    owner: SenderData,
) -> Result<Result<(), RejectedMessage>, MachineError> {
    let content: Result<RoomKeyContent, _> = serde_json::from_value(Value::Object(content.clone()));
    let Ok(content) = content else {
        return Ok(Err(RejectedMessage::Malformed));
    };
    let (room_id, session) = match content.into_session(owner) {
        Ok(session) => session,
        Err(error) => return Ok(Err(error)),
    };
    let session_id = session.megolm.session_id();
    if session.add(batch, &room_id).await? {
        let key = RoomKeyInfo {
            room_id,
            session_id,
        };
        add_to_inbox(batch, &InboxItem::RoomKey(key)).await?;
    }
    Ok(Ok(()))
}

pub(crate) async fn add_to_inbox(
    batch: &mut Batch<'_>,
    item: &InboxItem,
) -> Result<(), StoreError> {
    let number: u64 = batch
        .get(Table::Meta, "", INBOX_COUNTER)
        .await?
        .unwrap_or(0);
    batch.put(Table::Meta, "", INBOX_COUNTER, &(number + 1))?;
    batch.put(Table::Inbox, "", &format!("{number:016x}"), item)
}
