//! Messages of verifications that arrive.

use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, Value};

use super::{Flow, State, TIMEOUT_MS, Transport};
use crate::{
    crypto::{
        devices,
        error::MachineError,
        machine::{Machine, Volatile},
        sas::{self, CancelReason, Protocol},
    },
    store::Batch,
};

/// A clock of the other side may be this far ahead.
const AHEAD_MS: u64 = 5 * 60 * 1000;

/// An event of a room that may belong to a verification, after its decryption.
#[derive(Debug, Clone)]
pub struct InRoom {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event.
    pub event_id: OwnedEventId,
    /// Its sender, authenticated by the encryption.
    pub sender: OwnedUserId,
    /// When it was sent, in milliseconds since the epoch, as its server says.
    pub timestamp: u64,
    /// Its type.
    pub kind: String,
    /// Its content.
    pub content: Map<String, Value>,
}

/// A message, however it came.
struct Message<'a> {
    flow: String,
    sender: &'a UserId,
    /// The part of the type after `m.key.verification.`.
    step: &'a str,
    content: &'a Map<String, Value>,
}

fn text<'a>(content: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    content.get(name).and_then(Value::as_str)
}

fn device(content: &Map<String, Value>) -> Option<OwnedDeviceId> {
    text(content, "from_device").map(Into::into)
}

fn offers_sas(content: &Map<String, Value>) -> bool {
    let methods = content.get("methods").and_then(Value::as_array);
    methods.is_some_and(|methods| methods.iter().any(|method| method == "m.sas.v1"))
}

impl Machine {
    /// Takes an event of a room that may belong to a verification; returns whether it did. What it
    /// answers is in [`Machine::take_verification_messages`].
    ///
    /// Give it the decrypted events of every timeline, also the own ones.
    pub async fn receive_verification_event(&self, event: &InRoom) -> Result<bool, MachineError> {
        let is_request = event.kind == "m.room.message"
            && text(&event.content, "msgtype") == Some("m.key.verification.request");
        let step = event.kind.strip_prefix("m.key.verification.");
        if step.is_none() && !is_request {
            return Ok(false);
        }
        let mut volatile = self.lock().await;
        let mut batch = self.batch();
        if is_request {
            let for_us = text(&event.content, "to") == Some(self.user_id().as_str())
                && event.sender != self.user_id();
            if for_us {
                let transport = Transport::InRoom(event.room_id.clone());
                let id = event.event_id.to_string();
                let at = Some(event.timestamp);
                self.take_request(
                    &mut volatile,
                    (id, transport),
                    &event.sender,
                    &event.content,
                    at,
                );
                devices::track(&mut batch, &event.sender).await?;
            }
        } else if let Some(step) = step {
            let relation = event.content.get("m.relates_to");
            let relates = relation.and_then(|relation| relation.get("event_id"));
            let Some(flow) = relates.and_then(Value::as_str) else {
                return Ok(true);
            };
            let flows = &volatile.verifications.flows;
            let here = Transport::InRoom(event.room_id.clone());
            if flows.get(flow).is_some_and(|flow| flow.transport == here) {
                let message = Message {
                    flow: flow.to_owned(),
                    sender: &event.sender,
                    step,
                    content: &event.content,
                };
                self.take_message(&mut volatile, &mut batch, message)
                    .await?;
            }
        }
        batch.commit().await?;
        Ok(true)
    }

    /// Takes a message to this device.
    pub(crate) async fn take_verification(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        sender: &UserId,
        step: &str,
        content: &Map<String, Value>,
    ) -> Result<(), MachineError> {
        let Some(flow) = text(content, "transaction_id").map(str::to_owned) else {
            return Ok(());
        };
        if step == "request" {
            let at = content.get("timestamp").and_then(Value::as_u64);
            let name = (flow, Transport::ToDevice);
            self.take_request(volatile, name, sender, content, at);
            return Ok(devices::track(batch, sender).await?);
        }
        let known = volatile.verifications.flows.get(&flow);
        if known.is_none_or(|flow| flow.transport != Transport::ToDevice) {
            return Ok(());
        }
        let message = Message {
            flow,
            sender,
            step,
            content,
        };
        self.take_message(volatile, batch, message).await
    }

    fn take_request(
        &self,
        volatile: &mut Volatile,
        (id, transport): (String, Transport),
        sender: &UserId,
        content: &Map<String, Value>,
        at: Option<u64>,
    ) {
        let now = self.now();
        let timely = at.is_some_and(|at| at + TIMEOUT_MS > now && at < now + AHEAD_MS);
        let known = volatile.verifications.flows.contains_key(&id);
        let Some(device_id) = device(content) else {
            return;
        };
        let own = sender == self.user_id() && device_id == self.device_id();
        if !timely || known || own || !offers_sas(content) {
            return;
        }
        let mut flow = Flow::new(id, transport, sender, now);
        flow.device_id = Some(device_id);
        flow.state = State::Asked;
        volatile.verifications.add(flow);
    }

    async fn take_message(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        message: Message<'_>,
    ) -> Result<(), MachineError> {
        let Some(flow) = volatile.verifications.flows.get_mut(&message.flow) else {
            return Ok(());
        };
        if flow.is_over() {
            return Ok(());
        }
        if message.sender != flow.user_id {
            // In a room our own messages come back, and those of our other devices.
            let elsewhere = message.sender == self.user_id()
                && message.step == "ready"
                && matches!(flow.state, State::Asked);
            if elsewhere {
                flow.state = State::Cancelled(CancelReason::AcceptedElsewhere);
            }
            return Ok(());
        }
        if message.step == "cancel" {
            let code = text(message.content, "code").unwrap_or_default();
            flow.state = State::Cancelled(CancelReason::of(code));
            return Ok(());
        }
        let id = message.flow.clone();
        if let Err(reason) = self.step(volatile, batch, &message).await? {
            self.cancel(volatile, batch, &id, reason).await?;
        }
        self.finish_if_proven(volatile, batch, &id).await
    }

    /// The outer error is a failing store, the inner one ends the verification.
    async fn step(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        message: &Message<'_>,
    ) -> Result<Result<(), CancelReason>, MachineError> {
        let (content, id) = (message.content, message.flow.as_str());
        if message.step == "start" {
            return self.take_start(volatile, batch, message).await;
        }
        let Some(flow) = volatile.verifications.flows.get_mut(id) else {
            return Ok(Ok(()));
        };
        let state = std::mem::replace(&mut flow.state, State::Ready);
        let answer = match (state, message.step) {
            (State::Requested, "ready") => {
                let device_id = device(content);
                if device_id.is_none() || !offers_sas(content) {
                    return Ok(Err(CancelReason::UnknownMethod));
                }
                flow.device_id = device_id;
                Ok(None)
            }
            (State::Sas(parties, protocol), "accept") => {
                protocol.take_accept(content).map(|(protocol, key)| {
                    flow.state = State::Sas(parties, protocol);
                    Some(("m.key.verification.key", key))
                })
            }
            (State::Sas(parties, protocol), "key") => {
                protocol.take_key(&parties, content).map(|(protocol, key)| {
                    flow.state = State::Sas(parties, protocol);
                    key.map(|key| ("m.key.verification.key", key))
                })
            }
            (State::Sas(parties, mut protocol), "mac") => {
                protocol.take_mac(&parties, content).map(|()| {
                    flow.state = State::Sas(parties, protocol);
                    None
                })
            }
            // Their side may be done before ours is.
            (state @ State::Sas(..), "done") => {
                flow.state = state;
                Ok(None)
            }
            _ => Err(CancelReason::UnexpectedMessage),
        };
        match answer {
            Ok(Some((kind, content))) => {
                self.tell(volatile, batch, id, kind, content).await?;
                Ok(Ok(()))
            }
            Ok(None) => Ok(Ok(())),
            Err(reason) => Ok(Err(reason)),
        }
    }

    async fn take_start(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        message: &Message<'_>,
    ) -> Result<Result<(), CancelReason>, MachineError> {
        let Some(flow) = volatile.verifications.flows.get_mut(&message.flow) else {
            return Ok(Ok(()));
        };
        let from = device(message.content);
        if from.is_none() || from != flow.device_id {
            return Ok(Err(CancelReason::UnexpectedMessage));
        }
        match &flow.state {
            State::Ready => {}
            State::Sas(_, Protocol::Started) => {
                // Both have started: the one with the smaller name wins.
                let ours = (self.user_id().as_str(), self.device_id().as_str());
                let theirs = (
                    message.sender.as_str(),
                    from.as_ref().map_or("", |id| id.as_str()),
                );
                if ours < theirs {
                    return Ok(Ok(()));
                }
            }
            _ => return Ok(Err(CancelReason::UnexpectedMessage)),
        }
        let start = Value::Object(message.content.clone());
        let parties = self.parties(batch, flow, false, start).await?;
        let Some(parties) = parties else {
            return Ok(Err(CancelReason::KeyMismatch));
        };
        let (protocol, content) = match sas::accept(&parties) {
            Ok(accepted) => accepted,
            Err(reason) => return Ok(Err(reason)),
        };
        flow.state = State::Sas(Box::new(parties), protocol);
        let kind = "m.key.verification.accept";
        self.tell(volatile, batch, &message.flow, kind, content)
            .await?;
        Ok(Ok(()))
    }
}
