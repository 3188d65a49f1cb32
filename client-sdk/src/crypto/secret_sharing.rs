//! Secrets and room keys from one device of a user to another.
//!
//! Only a device that the own identity vouches for is answered, while this device trusts that
//! identity; only what was asked for is taken, and only from such a device.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#sharing>

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedRoomId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Secret,
    cross_signing::is_verified_own_device,
    devices::{self, Device},
    error::{MachineError, RejectedMessage},
    identity_keys::Usage,
    key_export::{self, ExportedRoomKey},
    keys::MEGOLM,
    machine::{Machine, Volatile},
    megolm::{InboundSession, session_partition},
    olm,
    outbox::{Messages, Purpose},
    requests::OutgoingRequest,
    trust::SenderData,
};
use crate::{
    environment,
    store::{Batch, StoreError, Table},
};

const BACKUP: &str = "m.megolm_backup.v1";
/// A device that asks for more than this at once is not answered.
const MOST_ANSWERS: usize = 64;
/// The same room key is asked for once in this time: devices may be verified, or switched on,
/// later.
const ASK_AGAIN_AFTER_MS: u64 = 60 * 60 * 1000;

/// A request of another device that waits to be answered.
#[derive(Serialize, Deserialize)]
struct Wanted {
    device_id: String,
    request_id: String,
    what: What,
}

/// What a device asks for.
#[derive(Serialize, Deserialize)]
enum What {
    Secret(String),
    RoomKey(OwnedRoomId, String),
}

#[derive(Deserialize)]
struct Asked {
    action: String,
    requesting_device_id: String,
    request_id: String,
    name: Option<String>,
    body: Option<KeyBody>,
}

#[derive(Deserialize)]
struct KeyBody {
    room_id: OwnedRoomId,
    session_id: String,
}

#[derive(Deserialize)]
struct Answer {
    request_id: String,
    secret: Secret,
}

impl Machine {
    /// Asks the own devices for the secrets that this one lacks. Does nothing before the own
    /// identity is trusted: what comes could not be checked.
    pub(crate) async fn request_secrets(&self, batch: &mut Batch<'_>) -> Result<(), MachineError> {
        let names = Usage::ALL.map(Usage::secret_name).into_iter();
        for name in names.chain([BACKUP]) {
            let known: Option<Secret> = batch.get(Table::Secrets, "", name).await?;
            if known.is_some() {
                continue;
            }
            let id = environment::transaction_id(self.environment())?.to_string();
            let content = json!({
                "action": "request",
                "name": name,
                "request_id": id,
                "requesting_device_id": self.device_id(),
            });
            let mut to_user = BTreeMap::new();
            for device in devices::load_devices(batch, self.user_id()).await? {
                if !device.deleted {
                    to_user.insert(device.device_id, content.clone());
                }
            }
            if to_user.is_empty() {
                return Ok(());
            }
            batch.put(Table::SecretRequests, "sent", &id, &name)?;
            let messages = Messages::from([(self.user_id().to_owned(), to_user)]);
            self.queue("m.secret.request", messages, Purpose::Other, batch)
                .await?;
        }
        Ok(())
    }

    /// Asks the other devices of the user for a room key, at most once in an hour; returns whether
    /// anybody was asked. The key that comes is believed as little as one from a backup.
    ///
    /// Only a device that is verified gets an answer, so others do not ask.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#key-requests>
    pub async fn request_room_key(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<bool, MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        let name = session_partition(room_id, session_id);
        let asked: Option<u64> = batch.get(Table::SecretRequests, "keys", &name).await?;
        let lately = asked.is_some_and(|at| at.saturating_add(ASK_AGAIN_AFTER_MS) > self.now());
        if lately || !self.is_cross_signed().await? {
            return Ok(false);
        }
        let id = environment::transaction_id(self.environment())?;
        let content = json!({
            "action": "request",
            "request_id": id,
            "requesting_device_id": self.device_id(),
            "body": {
                "algorithm": MEGOLM,
                "room_id": room_id,
                "session_id": session_id,
                // Required, but of no use to anybody.
                "sender_key": "",
            },
        });
        let mut to_user = BTreeMap::new();
        for device in devices::load_devices(&batch, self.user_id()).await? {
            if is_verified_own_device(&batch, self.user_id(), &device.curve25519).await? {
                to_user.insert(device.device_id, content.clone());
            }
        }
        if to_user.is_empty() {
            return Ok(false);
        }
        batch.put(Table::SecretRequests, "keys", &name, &self.now())?;
        let messages = Messages::from([(self.user_id().to_owned(), to_user)]);
        self.queue("m.room_key_request", messages, Purpose::Other, &mut batch)
            .await?;
        batch.commit().await?;
        Ok(true)
    }

    /// Takes a room key that another device passed on.
    pub(crate) async fn take_forwarded(
        &self,
        batch: &mut Batch<'_>,
        content: &Map<String, Value>,
        sender: &SenderData,
    ) -> Result<Result<(), RejectedMessage>, MachineError> {
        let key = serde_json::from_value(Value::Object(content.clone()));
        let Ok(key): Result<ExportedRoomKey, _> = key else {
            return Ok(Err(RejectedMessage::Unsolicited));
        };
        let (Some(room_id), Some(session_id)) = (&key.room_id, &key.session_id) else {
            return Ok(Err(RejectedMessage::Unsolicited));
        };
        let name = session_partition(room_id, session_id);
        let asked: Option<u64> = batch.get(Table::SecretRequests, "keys", &name).await?;
        let verified = sender.user_id == self.user_id()
            && is_verified_own_device(batch, self.user_id(), &sender.curve25519).await?;
        if asked.is_none() || !verified {
            return Ok(Err(RejectedMessage::Unsolicited));
        }
        batch.delete(Table::SecretRequests, "keys", &name);
        key_export::take_keys(batch, vec![key], None).await?;
        Ok(Ok(()))
    }

    /// Takes the request of a device, to be answered with the next outgoing requests.
    pub(crate) async fn take_secret_request(
        &self,
        batch: &mut Batch<'_>,
        sender: &UserId,
        content: &Map<String, Value>,
    ) -> Result<(), MachineError> {
        let request = serde_json::from_value(Value::Object(content.clone()));
        let Ok(request): Result<Asked, _> = request else {
            return Ok(());
        };
        let own =
            sender == self.user_id() && request.requesting_device_id != self.device_id().as_str();
        let id = format!("{} {}", request.requesting_device_id, request.request_id);
        if !own {
            return Ok(());
        }
        let what = match (request.name, request.body) {
            (Some(name), _) => Some(What::Secret(name)),
            (None, Some(body)) => Some(What::RoomKey(body.room_id, body.session_id)),
            (None, None) => None,
        };
        let Some(what) = what.filter(|_| request.action == "request") else {
            batch.delete(Table::SecretRequests, "received", &id);
            return Ok(());
        };
        let waiting: Vec<(String, Wanted)> = batch.list(Table::SecretRequests, "received").await?;
        if waiting.len() >= MOST_ANSWERS {
            return Ok(());
        }
        let wanted = Wanted {
            device_id: request.requesting_device_id,
            request_id: request.request_id,
            what,
        };
        Ok(batch.put(Table::SecretRequests, "received", &id, &wanted)?)
    }

    /// Answers the requests of devices that may have an answer; returns the claim that it takes to
    /// answer the others.
    pub(crate) async fn answer_secret_requests(
        &self,
        volatile: &mut Volatile,
    ) -> Result<Option<OutgoingRequest>, MachineError> {
        let mut batch = self.batch();
        let waiting: Vec<(String, Wanted)> = batch.list(Table::SecretRequests, "received").await?;
        let mut unreached = BTreeMap::new();
        for (id, wanted) in waiting {
            let device = self.entitled(&batch, &wanted).await?;
            let answer = answer_to(&batch, &wanted).await?;
            let (Some(device), Some((kind, content))) = (device, answer) else {
                batch.delete(Table::SecretRequests, "received", &id);
                continue;
            };
            if !olm::has_session(&batch, &device.curve25519).await? {
                if device.claim_after <= self.now() {
                    unreached.insert(device.device_id.clone(), device);
                }
                continue;
            }
            let encrypted = self
                .encrypt_for(&mut batch, &device, kind, &content)
                .await?;
            if let Some(encrypted) = encrypted {
                let to_one = BTreeMap::from([(device.device_id.clone(), encrypted)]);
                let messages = Messages::from([(device.user_id.clone(), to_one)]);
                self.queue("m.room.encrypted", messages, Purpose::Other, &mut batch)
                    .await?;
            }
            batch.delete(Table::SecretRequests, "received", &id);
        }
        batch.commit().await?;
        let unreached: Vec<Device> = unreached.into_values().collect();
        if unreached.is_empty() || super::unwedge::any_claimed(volatile, &unreached) {
            return Ok(None);
        }
        self.claim_request(volatile, &unreached).map(Some)
    }

    /// The device that asks, if it may have secrets.
    async fn entitled(
        &self,
        batch: &Batch<'_>,
        wanted: &Wanted,
    ) -> Result<Option<Device>, StoreError> {
        let device_id = <&DeviceId>::from(wanted.device_id.as_str());
        let device = devices::load_device(batch, self.user_id(), device_id).await?;
        let Some(device) = device else {
            return Ok(None);
        };
        let verified = is_verified_own_device(batch, self.user_id(), &device.curve25519).await?;
        Ok(verified.then_some(device))
    }

    /// Takes a secret that came over Olm.
    pub(crate) async fn take_secret(
        &self,
        batch: &mut Batch<'_>,
        content: &Map<String, Value>,
        sender: &SenderData,
    ) -> Result<Result<(), RejectedMessage>, MachineError> {
        let answer = serde_json::from_value(Value::Object(content.clone()));
        let Ok(answer): Result<Answer, _> = answer else {
            return Ok(Err(RejectedMessage::Unsolicited));
        };
        let name: Option<String> = batch
            .get(Table::SecretRequests, "sent", &answer.request_id)
            .await?;
        let verified = sender.user_id == self.user_id()
            && is_verified_own_device(batch, self.user_id(), &sender.curve25519).await?;
        let Some(name) = name.filter(|_| verified) else {
            return Ok(Err(RejectedMessage::Unsolicited));
        };
        if name == BACKUP {
            batch.put(Table::Secrets, "", BACKUP, &answer.secret)?;
        } else {
            let seeds = BTreeMap::from([(name, answer.secret)]);
            if self.take_private_keys_in(batch, &seeds).await? == 0 {
                return Ok(Err(RejectedMessage::Unsolicited));
            }
        }
        batch.delete(Table::SecretRequests, "sent", &answer.request_id);
        Ok(Ok(()))
    }
}

/// The message that answers a request, if this device has what is asked for.
async fn answer_to(
    batch: &Batch<'_>,
    wanted: &Wanted,
) -> Result<Option<(&'static str, Map<String, Value>)>, StoreError> {
    let (kind, content) = match &wanted.what {
        What::Secret(name) => {
            let secret: Option<Secret> = batch.get(Table::Secrets, "", name).await?;
            let Some(secret) = secret else {
                return Ok(None);
            };
            let content = json!({ "request_id": wanted.request_id, "secret": secret });
            ("m.secret.send", content)
        }
        What::RoomKey(room_id, session_id) => {
            let session = InboundSession::best(batch, room_id, session_id).await?;
            let Some(mut session) = session else {
                return Ok(None);
            };
            let key = ExportedRoomKey::of(room_id, &mut session);
            let mut content = serde_json::to_value(key).unwrap_or_default();
            if let Some(fields) = content.as_object_mut() {
                let ed25519 = session.owner.ed25519.clone();
                fields.insert("sender_claimed_ed25519_key".to_owned(), ed25519.into());
            }
            ("m.forwarded_room_key", content)
        }
    };
    Ok(content.as_object().cloned().map(|content| (kind, content)))
}
