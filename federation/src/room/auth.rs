//! Whether an event is allowed.

use std::sync::Arc;

use ruma::{
    EventId, OwnedEventId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::{
        auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules,
    },
};
use serde_json::value::RawValue;

use self::snapshot::Snapshot;
use super::{
    pdu::Pdu,
    redaction::{self, RedactError},
    signing::Verified,
};

mod snapshot;

/// The parts of the state that decide on an event
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection)): its
/// `auth_events` are those of them that there are.
///
/// Since room version 12 the create event decides too, but is not among them.
pub fn auth_types(
    event_type: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
    rules: &RoomVersionRules,
) -> Result<Vec<(StateEventType, String)>, Rejection> {
    auth_types_for_event(event_type, sender, state_key, content, &rules.authorization).map_err(
        |reason| Rejection {
            step: Step::Selection,
            reason,
        },
    )
}

/// The create event of a room whose id is that event's hash
/// ([spec](https://spec.matrix.org/v1.19/rooms/v12/#room-ids-as-hashes-of-the-create-event)).
#[must_use]
pub fn create_event_id(room_id: &RoomId, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    rules
        .authorization
        .room_create_event_id_as_room_id
        .then(|| EventId::parse(format!("${}", room_id.strip_sigil())).ok())
        .flatten()
}

/// The events that must be at hand to judge an event by its auth events, and are not.
///
/// To be asked before judging: an event whose auth events are missing would be rejected for good,
/// though they could be fetched.
pub fn missing_auth_events(
    pdu: &Verified,
    auth_events: &impl Fn(&EventId) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Vec<OwnedEventId> {
    let pdu = pdu.pdu();
    let create = (*pdu.event_type() != TimelineEventType::RoomCreate)
        .then(|| create_event_id(pdu.room_id(), rules))
        .flatten();
    let needed = pdu.auth_events().iter().cloned().chain(create);
    needed.filter(|id| auth_events(id).is_none()).collect()
}

/// An event that was judged, whatever the verdict. Made only by [`judge`] and [`judge_own`].
#[derive(Debug)]
pub struct Judged {
    pdu: Pdu,
    verdict: Verdict,
}

impl Judged {
    fn new(pdu: Pdu, verdict: Verdict) -> Self {
        match verdict {
            Verdict::Rejected(_) => Self {
                pdu: pdu.into_rejected(),
                verdict,
            },
            Verdict::Accepted | Verdict::SoftFailed(_) => Self { pdu, verdict },
        }
    }

    /// The event.
    #[must_use]
    pub fn pdu(&self) -> &Pdu {
        &self.pdu
    }

    /// The verdict.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The event, which knows whether it was rejected.
    #[must_use]
    pub fn into_pdu(self) -> Pdu {
        self.pdu
    }

    /// Adds the signatures that the event has got since. They say nothing about the verdict.
    pub fn sign(&mut self, signed: Verified) {
        if signed.pdu().event_id() == self.pdu.event_id() {
            *self = Self::new(signed.into_pdu(), self.verdict.clone());
        }
    }

    /// The event without what a redaction took from it. Whether it is allowed was decided by what it said: it
    /// still is where it was, and may be more than its pruned form could be.
    pub fn redacted(self, rules: &RoomVersionRules) -> Result<Self, RedactError> {
        let pruned = redaction::redact(&self.pdu, rules)?;
        Ok(Self::new(pruned, self.verdict))
    }

    /// Soft-fails an accepted event that the room's policy server did not sign (step 7 of
    /// [the checks](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu)).
    #[must_use]
    pub fn refused_by_policy_server(self) -> Self {
        match self.verdict {
            Verdict::Accepted => {
                let rejection = Rejection {
                    step: Step::PolicyServer,
                    reason: String::new(),
                };
                Self {
                    verdict: Verdict::SoftFailed(rejection),
                    ..self
                }
            }
            Verdict::SoftFailed(_) | Verdict::Rejected(_) => self,
        }
    }
}

/// What follows from the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed.
    Accepted,
    /// Allowed where it stands in the graph, but not by the current state: takes part in state
    /// resolution, is not shown to clients, and nothing refers to it
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#soft-failure)).
    SoftFailed(Rejection),
    /// Not allowed: kept in the graph, and the state is as if it were not there
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#rejection)).
    Rejected(Rejection),
}

impl Verdict {
    /// Whether clients may see the event.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted)
    }

    /// Whether the event was rejected.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }
}

/// At which step an event failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event is not allowed {step}")]
pub struct Rejection {
    step: Step,
    reason: String,
}

impl Rejection {
    /// The step at which the event failed.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// The rule that the event breaks, in words. It may name users and event types, so it belongs
    /// into an answer to the sender, not into a log.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// The steps of the
/// [checks](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An auth event is not at hand.
    MissingAuthEvent,
    /// The auth events are others than they must be, or one was rejected; or a create event is
    /// malformed.
    Selection,
    /// By the state that the auth events make.
    AuthEvents,
    /// By the state before the event.
    StateBefore,
    /// By the current state of the room.
    CurrentState,
    /// By the policy server of the room.
    PolicyServer,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MissingAuthEvent => "because an auth event is missing",
            Self::Selection => "with these auth events",
            Self::AuthEvents => "by its auth events",
            Self::StateBefore => "by the state before it",
            Self::CurrentState => "by the current state",
            Self::PolicyServer => "by the policy server",
        })
    }
}

/// Judges an event that has its place in the graph (steps 4 to 6 of
/// [the checks](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu)).
///
/// `auth_events` gives events by id, `state_before` and `current` give the state before the event
/// and that of the room now. What the rules ask is the same three times, so where the three states
/// agree on it the rules are applied once.
pub fn judge(
    pdu: Verified,
    auth_events: &impl Fn(&EventId) -> Option<Arc<Pdu>>,
    state_before: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    current: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Judged {
    let pdu = pdu.into_pdu();
    let by_auth_events = match check_by_auth_events(&pdu, auth_events, rules) {
        Ok(snapshot) => snapshot,
        Err(rejection) => return Judged::new(pdu, Verdict::Rejected(rejection)),
    };

    let before = by_auth_events.same_keys(state_before);
    if before != by_auth_events
        && let Err(rejection) = check(&pdu, &before, Step::StateBefore, rules)
    {
        return Judged::new(pdu, Verdict::Rejected(rejection));
    }

    let now = by_auth_events.same_keys(current);
    if now != by_auth_events
        && now != before
        && let Err(rejection) = check(&pdu, &now, Step::CurrentState, rules)
    {
        return Judged::new(pdu, Verdict::SoftFailed(rejection));
    }
    Judged::new(pdu, Verdict::Accepted)
}

/// Judges an event that we just built on top of the current state.
///
/// The state before the event and the current state are the same, and its auth events must be
/// those selected from it; so one application of the rules is all three checks.
pub fn judge_own(
    built: Verified,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Judged {
    let pdu = built.into_pdu();
    let verdict = match check_own(&pdu, state, rules) {
        Ok(()) => Verdict::Accepted,
        Err(rejection) => Verdict::Rejected(rejection),
    };
    Judged::new(pdu, verdict)
}

/// An event without a place in the graph, judged as far as that goes. Made only by
/// [`judge_outlier`].
///
/// It can be an auth event or part of a state that another server gave us. To show it to clients,
/// [`judge`] it once the state before it is known.
#[derive(Debug)]
pub struct JudgedOutlier {
    pdu: Pdu,
    rejection: Option<Rejection>,
}

impl JudgedOutlier {
    /// The event.
    #[must_use]
    pub fn pdu(&self) -> &Pdu {
        &self.pdu
    }

    /// Why it was rejected, if it was.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        self.rejection.as_ref()
    }

    /// The event, which knows whether it was rejected.
    #[must_use]
    pub fn into_pdu(self) -> Pdu {
        self.pdu
    }
}

/// Judges an event by its auth events only (step 4 of
/// [the checks](https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu)).
pub fn judge_outlier(
    pdu: Verified,
    auth_events: &impl Fn(&EventId) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> JudgedOutlier {
    let pdu = pdu.into_pdu();
    match check_by_auth_events(&pdu, auth_events, rules) {
        Ok(_) => JudgedOutlier {
            pdu,
            rejection: None,
        },
        Err(rejection) => JudgedOutlier {
            pdu: pdu.into_rejected(),
            rejection: Some(rejection),
        },
    }
}

/// The rules that need no state, and those that do by the state which the auth events make.
fn check_by_auth_events(
    pdu: &Pdu,
    auth_events: &impl Fn(&EventId) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Result<Snapshot, Rejection> {
    let snapshot = Snapshot::of_auth_events(pdu, auth_events, rules)?;
    check_selection(pdu, auth_events, rules)?;
    check(pdu, &snapshot, Step::AuthEvents, rules)?;
    Ok(snapshot)
}

fn check_own(
    pdu: &Pdu,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Result<(), Rejection> {
    let snapshot = Snapshot::of_state(pdu, state, rules)?;
    if !snapshot.is_selected_by(pdu, rules) {
        let reason = "the auth events are not those selected from the state".to_owned();
        return Err(Rejection {
            step: Step::Selection,
            reason,
        });
    }
    check_selection(pdu, &|id: &EventId| snapshot.by_id(id), rules)?;
    check(pdu, &snapshot, Step::CurrentState, rules)
}

fn check_selection(
    pdu: &Pdu,
    auth_events: &impl Fn(&EventId) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Result<(), Rejection> {
    check_state_independent_auth_rules(&rules.authorization, pdu, auth_events).map_err(|reason| {
        Rejection {
            step: Step::Selection,
            reason,
        }
    })
}

/// Whether a state allows an event, for the resolution of states.
pub(super) fn is_allowed(
    pdu: &Pdu,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> bool {
    check_state_dependent_auth_rules(&rules.authorization, pdu, state).is_ok()
}

fn check(
    pdu: &Pdu,
    state: &Snapshot,
    step: Step,
    rules: &RoomVersionRules,
) -> Result<(), Rejection> {
    let fetch = |event_type: &StateEventType, state_key: &str| state.get(event_type, state_key);
    check_state_dependent_auth_rules(&rules.authorization, pdu, fetch)
        .map_err(|reason| Rejection { step, reason })
}

#[cfg(test)]
mod tests;
