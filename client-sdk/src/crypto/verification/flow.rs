//! One verification.

use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::{Verification, VerificationPhase, qr_code::QrCode};
use crate::crypto::sas::{CancelReason, Parties, Protocol, Proven, Side};

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
    /// The methods of the other side, once it has named them.
    pub(crate) methods: Vec<String>,
    /// The code that we show.
    pub(crate) shown: Option<Box<Shown>>,
    pub(crate) state: State,
}

/// A code that we show, with the keys that are in it.
pub(crate) struct Shown {
    pub(crate) parties: Parties,
    pub(crate) code: QrCode,
}

/// Who has agreed to the keys in a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QrStep {
    /// The other side has scanned our code; our person has to say so.
    TheyScanned,
    /// We have scanned their code; their person has to say so.
    WeScanned,
    /// Both.
    Agreed,
}

pub(crate) enum State {
    /// We asked.
    Requested,
    /// They asked.
    Asked,
    Ready,
    Sas(Box<Parties>, Protocol),
    /// A code was scanned; this is what it proves.
    Qr(Box<Parties>, Proven, QrStep),
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
            methods: Vec::new(),
            shown: None,
            state: State::Requested,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Cancelled(_))
    }

    /// What was proven of the other side, once both persons have agreed.
    pub(crate) fn proof(&self) -> Option<(Side, Proven)> {
        let (parties, proven) = match &self.state {
            State::Sas(
                parties,
                Protocol::Compare {
                    confirmed: true,
                    proven: Some(proven),
                    ..
                },
            )
            | State::Qr(parties, proven, QrStep::Agreed) => (parties, *proven),
            _ => return None,
        };
        Some((parties.them.clone(), proven))
    }

    /// Whether the other side has named a method.
    pub(crate) fn they_can(&self, method: &str) -> bool {
        self.methods.iter().any(|named| named == method)
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
            State::Qr(_, _, QrStep::TheyScanned) => VerificationPhase::Scanned,
            State::Qr(..) => VerificationPhase::Waiting,
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
