//! One verification.

use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::{Verification, VerificationPhase};
use crate::crypto::sas::{CancelReason, Parties, Protocol};

/// How the messages of a flow travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    ToDevice,
    InRoom(OwnedRoomId),
}

pub(crate) struct Flow {
    /// A transaction id, or the event id of the request.
    pub(crate) id: String,
    pub(crate) transport: Transport,
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: Option<OwnedDeviceId>,
    pub(crate) began: u64,
    pub(crate) state: State,
}

pub(crate) enum State {
    /// We asked.
    Requested,
    /// They asked.
    Asked,
    Ready,
    Sas(Box<Parties>, Protocol),
    Done,
    Cancelled(CancelReason),
}

impl Flow {
    pub(crate) fn new(id: String, transport: Transport, user_id: &UserId, now: u64) -> Self {
        Self {
            id,
            transport,
            user_id: user_id.to_owned(),
            device_id: None,
            began: now,
            state: State::Requested,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Cancelled(_))
    }

    /// Adds to a content what names the flow.
    pub(crate) fn address(&self, mut content: Map<String, Value>) -> Map<String, Value> {
        match &self.transport {
            Transport::ToDevice => {
                content.insert("transaction_id".to_owned(), self.id.as_str().into());
            }
            Transport::InRoom(_) => {
                let relation = json!({ "rel_type": "m.reference", "event_id": self.id });
                content.insert("m.relates_to".to_owned(), relation);
            }
        }
        content
    }

    pub(crate) fn snapshot(&self) -> Verification {
        let phase = match &self.state {
            State::Requested => VerificationPhase::Requested,
            State::Asked => VerificationPhase::Asked,
            State::Ready => VerificationPhase::Ready,
            State::Sas(
                _,
                Protocol::Compare {
                    short, confirmed, ..
                },
            ) => {
                if *confirmed {
                    VerificationPhase::Waiting
                } else {
                    VerificationPhase::Compare(short.clone())
                }
            }
            State::Sas(..) => VerificationPhase::Started,
            State::Done => VerificationPhase::Done,
            State::Cancelled(reason) => VerificationPhase::Cancelled(*reason),
        };
        let room_id = match &self.transport {
            Transport::ToDevice => None,
            Transport::InRoom(room_id) => Some(room_id.clone()),
        };
        Verification {
            id: self.id.clone(),
            user_id: self.user_id.clone(),
            device_id: self.device_id.clone(),
            room_id,
            phase,
        }
    }
}
