//! Giving the history of a room to people who are invited.
//!
//! Only keys whose creators allow it are passed on, and whoever gets them has only the giver's word
//! for whose they are.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#sharing-keys-between-users>

use std::collections::BTreeSet;

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    HistorySharing, Share,
    devices::{self, Device, LocalTrust},
    error::{BundleError, MachineError, RejectedMessage, ShareError},
    identity::{self, Identity},
    key_export::{ExportedRoomKey, take_keys},
    keys::MEGOLM,
    machine::Machine,
    megolm::InboundSession,
    olm, outbound,
    outbox::{Messages, Purpose},
    trust::{SenderData, SenderTrust},
};
use crate::{
    attachment::EncryptedFile,
    store::{Batch, StoreError, Table},
};

const SHARING: &str = "history sharing of room";

/// The mark on a room key that says whether people who come later may have it, in the spellings of
/// several generations.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mroom_key>
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SharedHistory {
    #[serde(
        default,
        rename = "shared_history",
        skip_serializing_if = "Option::is_none"
    )]
    stable: Option<bool>,
    #[serde(
        default,
        rename = "m.shared_history",
        skip_serializing_if = "Option::is_none"
    )]
    draft: Option<bool>,
    #[serde(
        default,
        rename = "org.matrix.msc3061.shared_history",
        skip_serializing_if = "Option::is_none"
    )]
    unstable: Option<bool>,
}

impl SharedHistory {
    pub(crate) fn of(allowed: bool) -> Self {
        Self {
            stable: Some(allowed),
            draft: None,
            // What other clients read today.
            unstable: Some(allowed),
        }
    }

    pub(crate) fn is_allowed(&self) -> bool {
        let said = self.stable.or(self.draft).or(self.unstable);
        said.unwrap_or(false)
    }
}

/// Takes what the state of a room says about its history.
pub(crate) async fn set_sharing(
    batch: &mut Batch<'_>,
    room_id: &RoomId,
    sharing: HistorySharing,
) -> Result<(), StoreError> {
    let allowed = sharing == HistorySharing::Allowed;
    if is_shared(batch, room_id).await? != allowed {
        batch.put(Table::Meta, SHARING, room_id.as_str(), &allowed)?;
        outbound::discard(batch, room_id).await?;
    }
    Ok(())
}

pub(crate) async fn is_shared(batch: &Batch<'_>, room_id: &RoomId) -> Result<bool, StoreError> {
    let allowed: Option<bool> = batch.get(Table::Meta, SHARING, room_id.as_str()).await?;
    Ok(allowed.unwrap_or(false))
}

/// The keys of a room for somebody who is invited.
#[derive(Serialize, Deserialize)]
pub struct KeyBundle {
    room_keys: Vec<ExportedRoomKey>,
    #[serde(default)]
    withheld: Vec<Value>,
}

impl KeyBundle {
    /// Whether it has no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.room_keys.is_empty()
    }
}

impl std::fmt::Debug for KeyBundle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KeyBundle")
            .field("room_keys", &self.room_keys.len())
            .field("withheld", &self.withheld.len())
            .finish()
    }
}

/// Says where the keys of a room are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyBundleNotice {
    /// The encrypted bundle.
    pub file: EncryptedFile,
    sender: SenderData,
}

#[derive(Deserialize)]
struct NoticeContent {
    room_id: OwnedRoomId,
    file: EncryptedFile,
}

/// Keeps a notice until the program asks for it: nothing is downloaded because a stranger says so.
pub(crate) fn take_notice(
    batch: &mut Batch<'_>,
    content: &Map<String, Value>,
    sender: &SenderData,
) -> Result<Result<(), RejectedMessage>, MachineError> {
    let content = serde_json::from_value(Value::Object(content.clone()));
    let Ok(NoticeContent { room_id, file }) = content else {
        return Ok(Err(RejectedMessage::Malformed));
    };
    let from = sender.user_id.to_string();
    let notice = KeyBundleNotice {
        file,
        sender: sender.clone(),
    };
    batch.put(Table::KeyBundles, room_id.as_str(), &from, &notice)?;
    Ok(Ok(()))
}

impl Machine {
    /// The keys of a room that somebody who is invited may have; the others are named as withheld.
    pub async fn key_bundle(&self, room_id: &RoomId) -> Result<KeyBundle, MachineError> {
        let _guard = self.lock().await?;
        let batch = self.batch();
        let mut bundle = KeyBundle {
            room_keys: Vec::new(),
            withheld: Vec::new(),
        };
        for (room, session_id) in InboundSession::names(&batch).await? {
            if room != room_id {
                continue;
            }
            let best = InboundSession::best(&batch, &room, &session_id).await?;
            let Some(mut session) = best else { continue };
            if session.shared_history {
                let mut key = ExportedRoomKey::of(&room, &mut session);
                key.sharing = SharedHistory::default();
                bundle.room_keys.push(key);
            } else {
                bundle.withheld.push(json!({
                    "algorithm": MEGOLM,
                    "code": "m.history_not_shared",
                    "reason": "The sender does not share the history.",
                    "room_id": room,
                    "sender_key": session.owner.curve25519,
                    "session_id": session_id,
                }));
            }
        }
        Ok(bundle)
    }

    /// Makes sure that the devices of a user who will be invited can be reached. Send what is
    /// returned, report the answers, and call again until it is [`Share::Ready`].
    pub async fn reach_invited(&self, user_id: &UserId) -> Result<Share, ShareError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let users = BTreeSet::from([user_id.to_owned()]);
        let lists = self.lists_of(&mut batch, &users).await?;
        batch.commit().await?;
        if !lists.outdated.is_empty() {
            let queries = self.queries_for(&mut volatile, &lists.outdated)?;
            return Ok(Share::Pending(queries));
        }
        let batch = self.batch();
        self.check_identities(&batch, &users).await?;
        let mut unreached = Vec::new();
        for device in self.vouched(&batch, user_id).await? {
            let reached = olm::has_session(&batch, &device.curve25519).await?;
            if !reached && device.may_be_claimed(self.now()) {
                unreached.push(device);
            }
        }
        if unreached.is_empty() {
            return Ok(Share::Ready);
        }
        let claims = self.claims_for(&mut volatile, &unreached)?;
        Ok(Share::Pending(claims))
    }

    /// Tells the devices of a user who will be invited where the keys of the room are; how many
    /// are told. Devices for which the user's identity does not vouch never are, whatever the
    /// policy says about keys.
    pub async fn offer_key_bundle(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        file: &EncryptedFile,
    ) -> Result<usize, MachineError> {
        let content = json!({ "room_id": room_id, "file": file });
        let content = content.as_object().cloned().unwrap_or_default();
        let users = BTreeSet::from([user_id.to_owned()]);
        self.tell_vouched(&users, "m.room_key_bundle", content)
            .await
    }

    /// Sends content to the devices of users for which their identities vouch and with which there
    /// are sessions; how many that are.
    pub(crate) async fn tell_vouched(
        &self,
        users: &BTreeSet<OwnedUserId>,
        kind: &str,
        content: Map<String, Value>,
    ) -> Result<usize, MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        let mut messages = Messages::new();
        let mut told = 0;
        for user_id in users {
            for device in self.vouched(&batch, user_id).await? {
                let encrypted = self
                    .encrypt_for(&mut batch, &device, kind, &content)
                    .await?;
                if let Some(encrypted) = encrypted {
                    let user = messages.entry(device.user_id).or_default();
                    user.insert(device.device_id, encrypted);
                    told += 1;
                }
            }
        }
        self.queue("m.room.encrypted", messages, Purpose::Other, &mut batch)
            .await?;
        batch.commit().await?;
        Ok(told)
    }

    async fn vouched(
        &self,
        batch: &Batch<'_>,
        user_id: &UserId,
    ) -> Result<Vec<Device>, StoreError> {
        let identity = Identity::load(batch, user_id).await?;
        let mut devices = devices::load_devices(batch, user_id).await?;
        devices.retain(|device| {
            let vouched = |identity: &Identity| identity.vouches_for(device);
            !device.deleted
                && device.local_trust != LocalTrust::Blocked
                && device.understands_encryption()
                && identity.as_ref().is_some_and(vouched)
        });
        Ok(devices)
    }

    /// Where the keys of a room are that a user has offered. Only to be asked for when this user's
    /// invitation was accepted.
    pub async fn offered_key_bundle(
        &self,
        room_id: &RoomId,
        from: &UserId,
    ) -> Result<Option<KeyBundleNotice>, MachineError> {
        let batch = self.batch();
        let notice = batch.get(Table::KeyBundles, room_id.as_str(), from.as_str());
        Ok(notice.await?)
    }

    /// Forgets what a user has offered.
    pub async fn forget_key_bundle(
        &self,
        room_id: &RoomId,
        from: &UserId,
    ) -> Result<(), MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        batch.delete(Table::KeyBundles, room_id.as_str(), from.as_str());
        Ok(batch.commit().await?)
    }

    /// Takes a bundle that was downloaded and decrypted; how many keys were new. Keys of other
    /// rooms in it are ignored.
    pub async fn take_key_bundle(
        &self,
        room_id: &RoomId,
        notice: &KeyBundleNotice,
        bundle: &[u8],
    ) -> Result<usize, BundleError> {
        let bundle: KeyBundle =
            serde_json::from_slice(bundle).map_err(|_| BundleError::Malformed)?;
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let from = &notice.sender.user_id;
        let device =
            devices::load_device_by_curve25519(&batch, from, &notice.sender.curve25519).await?;
        let trust = match device {
            Some(device) => identity::trust_of(&batch, self.user_id(), &device).await?,
            None => SenderTrust::UnknownDevice,
        };
        if trust < SenderTrust::SignedDevice {
            return Err(BundleError::UntrustedSender);
        }
        let mut keys = bundle.room_keys;
        keys.retain(|key| key.room_id.as_deref() == Some(room_id));
        let taken = take_keys(&mut batch, keys, Some(from)).await?;
        batch.delete(Table::KeyBundles, room_id.as_str(), from.as_str());
        batch.commit().await?;
        self.note_import(&mut volatile, taken);
        Ok(taken)
    }
}
