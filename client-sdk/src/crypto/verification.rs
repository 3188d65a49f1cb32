//! Verifying people and devices: flows of messages, to devices or in a room.
//!
//! Flows live in memory: a verification that a restart interrupts has to be begun again.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#key-verification-framework>

mod flow;
mod incoming;
mod qr;
mod qr_code;

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};

use self::flow::{Flow, State, Transport};
pub use self::{incoming::InRoom, qr::QrSupport};
use super::{
    devices,
    emoji::ShortAuthString,
    error::{MachineError, VerificationError},
    identity::{self, Identity},
    machine::{Machine, Volatile},
    outbox::{Messages, Purpose},
    sas::{self, CancelReason, Parties, Protocol, Proven, Side},
};
use crate::{environment, store::Batch};

/// A verification takes no longer than this.
const TIMEOUT_MS: u64 = 10 * 60 * 1000;
const SAS: &str = "m.sas.v1";
/// Flows that are remembered.
const MAX_FLOWS: usize = 64;

/// How far a verification has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerificationPhase {
    /// We asked; the other side has not answered.
    Requested,
    /// The other side asks: [`Machine::accept_verification`] or [`Machine::cancel_verification`].
    Asked,
    /// Both sides want it: [`Machine::start_sas`], or [`Machine::show_qr`] and
    /// [`Machine::scan_qr`].
    Ready,
    /// Keys are being exchanged.
    Started,
    /// The people compare: [`Machine::confirm_sas`] or [`Machine::reject_sas`].
    Compare(Box<ShortAuthString>),
    /// The other side has scanned our QR code: [`Machine::confirm_qr`] if its person says that all
    /// is well, [`Machine::cancel_verification`] if they have scanned nothing.
    Scanned,
    /// Our person has confirmed; the other has not.
    Waiting,
    /// Both have confirmed.
    Done,
    /// It ended before its time.
    Cancelled(CancelReason),
}

/// A verification as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Names it in all calls.
    pub id: String,
    /// Who is verified.
    pub user_id: OwnedUserId,
    /// The device on the other side, once one has answered.
    pub device_id: Option<OwnedDeviceId>,
    /// The room in which it takes place, if it does.
    pub room_id: Option<OwnedRoomId>,
    /// How far it is.
    pub phase: VerificationPhase,
}

/// A message of a verification that has to be sent to a room.
#[derive(Debug, Clone)]
pub struct RoomVerificationMessage {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The type.
    pub kind: String,
    /// The content.
    pub content: Map<String, Value>,
}

/// The verifications of a machine.
#[derive(Default)]
pub(crate) struct Verifications {
    flows: BTreeMap<String, Flow>,
    room_messages: Vec<RoomVerificationMessage>,
}

impl Machine {
    /// What is offered to other sides, from the next verification on. Not stored.
    pub fn set_qr_support(&self, support: QrSupport) {
        self.with_settings(|settings| settings.qr_support = support);
    }

    /// The names of the methods that this device offers.
    fn methods(&self) -> Vec<&'static str> {
        let qr = self.qr_support().methods();
        [SAS].iter().chain(qr).copied().collect()
    }

    /// All verifications since the machine was opened.
    pub async fn verifications(&self) -> Result<Vec<Verification>, MachineError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        self.expire_verifications(&mut volatile, &mut batch).await?;
        batch.commit().await?;
        let flows = &volatile.verifications.flows;
        Ok(flows.values().map(Flow::snapshot).collect())
    }

    /// Asks devices of a user for a verification, by messages to these devices; for the own user
    /// its other devices. Returns the name of the verification.
    ///
    /// Another user is better asked in a room: [`Machine::verification_request`].
    pub async fn request_verification(
        &self,
        user_id: &UserId,
    ) -> Result<String, VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let id = environment::transaction_id(self.environment())
            .map_err(MachineError::from)?
            .to_string();
        let content = json!({
            "from_device": self.device_id(),
            "methods": self.methods(),
            "timestamp": self.now(),
            "transaction_id": id,
        });
        let mut to_user = BTreeMap::new();
        for device in devices::load_devices(&batch, user_id).await? {
            if !device.deleted {
                to_user.insert(device.device_id, content.clone());
            }
        }
        if to_user.is_empty() {
            return Err(VerificationError::NoDevice);
        }
        let messages = Messages::from([(user_id.to_owned(), to_user)]);
        let kind = "m.key.verification.request";
        self.queue(kind, messages, Purpose::Other, &mut batch)
            .await?;
        batch.commit().await.map_err(MachineError::from)?;
        let flow = Flow::new(id.clone(), Transport::ToDevice, user_id, self.now());
        volatile.verifications.add(flow);
        Ok(id)
    }

    /// The content of an `m.room.message` that asks a user for a verification. Send it to a room
    /// with the user, and report its event id with [`Machine::verification_requested`].
    #[must_use]
    pub fn verification_request(&self, user_id: &UserId) -> Map<String, Value> {
        let content = json!({
            "msgtype": "m.key.verification.request",
            "body": "Somebody wants to verify that you are who they think. Your client does not \
                support this.",
            "from_device": self.device_id(),
            "methods": self.methods(),
            "to": user_id,
        });
        content.as_object().cloned().unwrap_or_default()
    }

    /// Takes note that a request was sent to a room.
    pub async fn verification_requested(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        event_id: &ruma::EventId,
    ) {
        let transport = Transport::InRoom(room_id.to_owned());
        let flow = Flow::new(event_id.to_string(), transport, user_id, self.now());
        self.memory().await.verifications.add(flow);
    }

    /// Agrees to a verification that the other side asked for.
    pub async fn accept_verification(&self, id: &str) -> Result<(), VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let flow = volatile.verifications.flow(id)?;
        if !matches!(flow.state, State::Asked) {
            return Err(VerificationError::WrongPhase);
        }
        flow.state = State::Ready;
        let content = json!({ "from_device": self.device_id(), "methods": self.methods() });
        let content = content.as_object().cloned().unwrap_or_default();
        let kind = "m.key.verification.ready";
        self.tell(&mut volatile, &mut batch, id, kind, content)
            .await?;
        Ok(batch.commit().await.map_err(MachineError::from)?)
    }

    /// Begins to compare short strings.
    pub async fn start_sas(&self, id: &str) -> Result<(), VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let flow = volatile.verifications.flow(id)?;
        if !matches!(flow.state, State::Ready) {
            return Err(VerificationError::WrongPhase);
        }
        let content = flow.address(sas::start_content(self.device_id().as_str()));
        let start = Value::Object(content.clone());
        let parties = self.parties(&batch, flow, true, start).await?;
        let parties = parties.ok_or(VerificationError::NoDevice)?;
        flow.state = State::Sas(Box::new(parties), Protocol::Started);
        let kind = "m.key.verification.start";
        self.tell(&mut volatile, &mut batch, id, kind, content)
            .await?;
        Ok(batch.commit().await.map_err(MachineError::from)?)
    }

    /// The person says that both devices show the same.
    pub async fn confirm_sas(&self, id: &str) -> Result<(), VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let flow = volatile.verifications.flow(id)?;
        let State::Sas(parties, protocol) = &mut flow.state else {
            return Err(VerificationError::WrongPhase);
        };
        let content = protocol.confirm(parties);
        let content = content.ok_or(VerificationError::WrongPhase)?;
        let kind = "m.key.verification.mac";
        self.tell(&mut volatile, &mut batch, id, kind, content)
            .await?;
        self.finish_if_proven(&mut volatile, &mut batch, id).await?;
        Ok(batch.commit().await.map_err(MachineError::from)?)
    }

    /// The person says that the devices show different things: somebody is in between.
    pub async fn reject_sas(&self, id: &str) -> Result<(), VerificationError> {
        self.end_verification(id, CancelReason::MismatchedSas).await
    }

    /// The person does not want to go on.
    pub async fn cancel_verification(&self, id: &str) -> Result<(), VerificationError> {
        self.end_verification(id, CancelReason::User).await
    }

    async fn end_verification(
        &self,
        id: &str,
        reason: CancelReason,
    ) -> Result<(), VerificationError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        if volatile.verifications.flow(id)?.is_over() {
            return Err(VerificationError::WrongPhase);
        }
        self.cancel(&mut volatile, &mut batch, id, reason).await?;
        Ok(batch.commit().await.map_err(MachineError::from)?)
    }

    /// The messages of verifications that have to be sent to rooms now. They are given once.
    pub async fn take_verification_messages(&self) -> Vec<RoomVerificationMessage> {
        std::mem::take(&mut self.memory().await.verifications.room_messages)
    }

    /// Both sides with their keys as they are now; `None` if the other side's are not known.
    async fn parties(
        &self,
        batch: &Batch<'_>,
        flow: &Flow,
        we_started: bool,
        start: Value,
    ) -> Result<Option<Parties>, MachineError> {
        let Some(device_id) = flow.device_id.clone() else {
            return Ok(None);
        };
        let device = devices::load_device(batch, &flow.user_id, &device_id).await?;
        let Some(device) = device.filter(|device| !device.deleted) else {
            return Ok(None);
        };
        let own = Identity::load(batch, self.user_id()).await?;
        let theirs = Identity::load(batch, &flow.user_id).await?;
        let own = own.filter(|own| own.trusted);
        Ok(Some(Parties {
            flow: flow.id.clone(),
            us: Side {
                user_id: self.user_id().to_owned(),
                device_id: self.device_id().to_owned(),
                ed25519: self.ed25519_key().to_base64(),
                master: own.map(|own| own.master),
            },
            them: Side {
                user_id: flow.user_id.clone(),
                device_id,
                ed25519: device.ed25519,
                master: theirs.map(|identity| identity.master),
            },
            we_started,
            start,
        }))
    }

    /// Sends a message of a flow to the other side.
    async fn tell(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        id: &str,
        kind: &str,
        content: Map<String, Value>,
    ) -> Result<(), MachineError> {
        let Some(flow) = volatile.verifications.flows.get(id) else {
            return Ok(());
        };
        let content = flow.address(content);
        if let Transport::InRoom(room_id) = &flow.transport {
            let message = RoomVerificationMessage {
                room_id: room_id.clone(),
                kind: kind.to_owned(),
                content,
            };
            volatile.verifications.room_messages.push(message);
            return Ok(());
        }
        let mut to_user = BTreeMap::new();
        if let Some(device_id) = &flow.device_id {
            to_user.insert(device_id.clone(), Value::Object(content));
        } else {
            for device in devices::load_devices(batch, &flow.user_id).await? {
                to_user.insert(device.device_id, Value::Object(content.clone()));
            }
        }
        let messages = Messages::from([(flow.user_id.clone(), to_user)]);
        self.queue(kind, messages, Purpose::Other, batch).await
    }

    /// Tells the devices that we asked as well that another one goes on.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#key-verification-framework>
    async fn tell_others(
        &self,
        volatile: &Volatile,
        batch: &mut Batch<'_>,
        id: &str,
    ) -> Result<(), MachineError> {
        let flow = volatile.verifications.flows.get(id);
        let Some(flow) = flow.filter(|flow| flow.transport == Transport::ToDevice) else {
            return Ok(());
        };
        let content = Value::Object(flow.address(CancelReason::AcceptedElsewhere.content()));
        let mut others = BTreeMap::new();
        for device in devices::load_devices(batch, &flow.user_id).await? {
            if !device.deleted && Some(&device.device_id) != flow.device_id.as_ref() {
                others.insert(device.device_id, content.clone());
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        let messages = Messages::from([(flow.user_id.clone(), others)]);
        let kind = "m.key.verification.cancel";
        self.queue(kind, messages, Purpose::Other, batch).await
    }

    /// Ends a flow and says why.
    async fn cancel(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        id: &str,
        reason: CancelReason,
    ) -> Result<(), MachineError> {
        let kind = "m.key.verification.cancel";
        self.tell(volatile, batch, id, kind, reason.content())
            .await?;
        if let Some(flow) = volatile.verifications.flows.get_mut(id) {
            flow.state = State::Cancelled(reason);
        }
        Ok(())
    }

    pub(crate) async fn expire_verifications(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
    ) -> Result<(), MachineError> {
        let now = self.now();
        let flows = volatile.verifications.flows.values();
        let late = flows.filter(|flow| !flow.is_over() && flow.began + TIMEOUT_MS < now);
        let late: Vec<String> = late.map(|flow| flow.id.clone()).collect();
        for id in late {
            self.cancel(volatile, batch, &id, CancelReason::Timeout)
                .await?;
        }
        Ok(())
    }

    /// Once our person has confirmed and the other side has proven its keys, they are signed.
    async fn finish_if_proven(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        id: &str,
    ) -> Result<(), MachineError> {
        let proof = volatile.verifications.flows.get(id).and_then(Flow::proof);
        let Some((them, proven)) = proof else {
            return Ok(());
        };
        if let Some(reason) = self.take_proof(batch, &them, proven).await? {
            return self.cancel(volatile, batch, id, reason).await;
        }
        volatile.devices_changed();
        let kind = "m.key.verification.done";
        self.tell(volatile, batch, id, kind, Map::new()).await?;
        if let Some(flow) = volatile.verifications.flows.get_mut(id) {
            flow.state = State::Done;
        }
        Ok(())
    }

    /// Signs what was proven, or says why that is not enough.
    async fn take_proof(
        &self,
        batch: &mut Batch<'_>,
        them: &Side,
        proven: Proven,
    ) -> Result<Option<CancelReason>, MachineError> {
        let identity = Identity::load(batch, &them.user_id).await?;
        let same = |identity: &Identity| Some(&identity.master) == them.master.as_ref();
        let identity = identity.filter(|identity| proven.master && same(identity));
        if them.user_id != self.user_id() {
            // A device of another user is vouched for by that user's identity, or not at all.
            let Some(identity) = identity else {
                return Ok(Some(CancelReason::KeyMismatch));
            };
            let signed = self
                .sign_user_in(batch, &them.user_id, &identity.master)
                .await;
            if let Err(error) = signed {
                tracing::warn!(%error, "a verified user was not signed");
                return Ok(Some(CancelReason::User));
            }
            return Ok(None);
        }
        if !proven.device && identity.is_none() {
            return Ok(Some(CancelReason::KeyMismatch));
        }
        if let Some(own) = identity.filter(|own| !own.trusted) {
            identity::trust_own(batch, own).await?;
            self.request_secrets(batch).await?;
        }
        let device = devices::load_device(batch, &them.user_id, &them.device_id).await?;
        if let Some(device) = device.filter(|device| device.ed25519 == them.ed25519)
            && proven.device
            && let Err(error) = self.sign_device_in(batch, &device).await
        {
            // The other device has the private keys, or nobody has.
            tracing::debug!(%error, "a verified device was not signed");
        }
        Ok(None)
    }
}

impl Verifications {
    /// The flows with a device that are not over.
    fn open_with(&self, user_id: &UserId, device_id: &DeviceId) -> Vec<String> {
        let with = |flow: &&Flow| {
            flow.user_id == user_id
                && flow.device_id.as_deref() == Some(device_id)
                && !flow.is_over()
        };
        self.flows
            .values()
            .filter(with)
            .map(|flow| flow.id.clone())
            .collect()
    }

    fn add(&mut self, flow: Flow) {
        if self.flows.len() >= MAX_FLOWS {
            self.flows.retain(|_, flow| !flow.is_over());
        }
        if self.flows.len() < MAX_FLOWS {
            self.flows.insert(flow.id.clone(), flow);
        }
    }

    fn flow(&mut self, id: &str) -> Result<&mut Flow, VerificationError> {
        self.flows.get_mut(id).ok_or(VerificationError::Unknown)
    }
}
