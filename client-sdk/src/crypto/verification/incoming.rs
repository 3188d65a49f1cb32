//! Messages of verifications that arrive.

use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, Value};

use super::{
    Flow, SAS, State, TIMEOUT_MS, Transport,
    flow::QrStep,
    qr::{RECIPROCATE, SCAN, SHOW, take_reciprocation},
};
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
    /// Its sender: authenticated by the encryption, or else, as these events may come in the clear, who the
    /// server says. What a verification proves does not depend on it.
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

/// A request, however it came.
struct Request<'a> {
    id: String,
    transport: Transport,
    sender: &'a UserId,
    content: &'a Map<String, Value>,
    /// When it was made, as the other side says.
    at: Option<u64>,
}

fn text<'a>(content: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    content.get(name).and_then(Value::as_str)
}

fn device(content: &Map<String, Value>) -> Option<OwnedDeviceId> {
    text(content, "from_device").map(Into::into)
}

/// The methods that the other side offers.
fn methods(content: &Map<String, Value>) -> Vec<String> {
    let methods = content.get("methods").and_then(Value::as_array);
    let names = methods.into_iter().flatten().filter_map(Value::as_str);
    names.map(ToOwned::to_owned).collect()
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
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        if is_request {
            let for_us = text(&event.content, "to") == Some(self.user_id().as_str())
                && event.sender != self.user_id();
            if for_us {
                let transport = Transport::InRoom(event.room_id.clone());
                let id = event.event_id.to_string();
                let at = Some(event.timestamp);
                let request = Request {
                    id,
                    transport,
                    sender: &event.sender,
                    content: &event.content,
                    at,
                };
                self.take_request(&mut volatile, &mut batch, request)
                    .await?;
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
            let request = Request {
                id: flow,
                transport: Transport::ToDevice,
                sender,
                content,
                at,
            };
            self.take_request(volatile, batch, request).await?;
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

    /// Whether there is something that both sides can do.
    fn can_verify(&self, methods: &[String]) -> bool {
        let they = |method: &str| methods.iter().any(|named| named == method);
        let ours = self.qr_support().methods();
        let we = |method: &str| ours.contains(&method);
        let qr = they(RECIPROCATE) && (we(SHOW) && they(SCAN) || we(SCAN) && they(SHOW));
        they(SAS) || qr
    }

    async fn take_request(
        &self,
        volatile: &mut Volatile,
        batch: &mut Batch<'_>,
        request: Request<'_>,
    ) -> Result<(), MachineError> {
        let now = self.now();
        let soon = now.saturating_add(AHEAD_MS);
        let timely = |at: u64| at.saturating_add(TIMEOUT_MS) > now && at < soon;
        let known = volatile.verifications.flows.contains_key(&request.id);
        let Some(device_id) = device(request.content) else {
            return Ok(());
        };
        let own = request.sender == self.user_id() && device_id == self.device_id();
        let methods = methods(request.content);
        if !request.at.is_some_and(timely) || known || own || !self.can_verify(&methods) {
            return Ok(());
        }
        // Of two at once nobody can say which of them the people talk about.
        let mut doubtful = volatile.verifications.open_with(request.sender, &device_id);
        let mut flow = Flow::new(request.id.clone(), request.transport, request.sender, now);
        flow.device_id = Some(device_id);
        flow.methods = methods;
        flow.state = State::Asked;
        volatile.verifications.add(flow);
        if !doubtful.is_empty() {
            doubtful.push(request.id);
        }
        for id in doubtful {
            self.cancel(volatile, batch, &id, CancelReason::UnexpectedMessage)
                .await?;
        }
        Ok(())
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
                let methods = methods(content);
                let Some(device_id) = device(content).filter(|_| self.can_verify(&methods)) else {
                    return Ok(Err(CancelReason::UnknownMethod));
                };
                flow.device_id = Some(device_id);
                flow.methods = methods;
                self.tell_others(volatile, batch, id).await?;
                return Ok(Ok(()));
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
            (State::Qr(parties, proven, QrStep::WeScanned), "done") => {
                flow.state = State::Qr(parties, proven, QrStep::Agreed);
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
        if text(message.content, "method") == Some(RECIPROCATE) {
            return Ok(take_reciprocation(flow, message.content));
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
