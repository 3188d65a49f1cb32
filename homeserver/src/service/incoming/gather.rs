//! Fetching what events build on. Bounded: who sends an event with endless history gets no endless work.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{EventId, OwnedEventId, ServerName, room_version_rules::RoomVersionRules};
use serde_json::value::RawValue;
use sotto_federation::room::{
    auth::create_event_id,
    pdu::{Pdu, Unverified},
    signing::PolicyServer,
};

use super::{Errand, Incoming, source::StateIds};
use crate::{
    service::policy_servers::PolicyError,
    storage::{StorageError, rooms::Room},
};

/// How often a server is asked for events before those that it sent.
const ROUNDS: usize = 8;
/// How many events between the known ones and those that arrived are fetched.
const MOST_MISSING: usize = 400;
/// How many events are named in one such question.
const MOST_NAMED: usize = 20;
/// For how many events of a batch the whole state is fetched.
const MOST_STATES: usize = 4;
/// The same for a piece of history, which may begin in many branches at once.
const MOST_PAST_STATES: usize = 20;
/// From how many missing events on the whole state is cheaper than one request for each.
const WHOLE_STATE: usize = 16;
/// For how many events of a batch the auth chain is fetched.
const MOST_CHAINS: usize = 16;

/// How many events the policy server of a room is asked about at the same time.
const JUDGED_AT_ONCE: usize = 8;

/// Verified events that are to be stored, and what is known about their places.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Events that are to get a place in the graph of the room.
    pub(super) events: BTreeMap<OwnedEventId, Pdu>,
    /// Events that those refer to: states and auth chains.
    pub(super) outliers: BTreeMap<OwnedEventId, Pdu>,
    /// The states before events whose previous events are missing.
    pub(super) states: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    /// Events that the policy server of the room does not recommend.
    pub(super) unwanted: BTreeSet<OwnedEventId>,
}

impl Gathered {
    fn has(&self, event_id: &EventId) -> bool {
        self.events.contains_key(event_id) || self.outliers.contains_key(event_id)
    }
}

impl Incoming {
    /// Fetches everything without which the events cannot be placed.
    pub(super) async fn gather(
        &self,
        origin: &ServerName,
        room: &Room,
        rules: &RoomVersionRules,
        wanted: Vec<Pdu>,
        errand: Errand<'_>,
    ) -> Result<Gathered, StorageError> {
        let mut gathered = Gathered::default();
        let mut told = BTreeSet::new();
        for pdu in wanted {
            told.insert(pdu.event_id().to_owned());
            gathered.events.insert(pdu.event_id().to_owned(), pdu);
        }
        let most = if errand == Errand::History {
            // What is before this piece of history is the next one.
            MOST_PAST_STATES
        } else {
            self.missing_events(origin, room, rules, &mut gathered)
                .await?;
            MOST_STATES
        };
        let open = if room.partial {
            Vec::new()
        } else {
            self.with_missing_prev_events(&gathered).await?
        };
        for event_id in open.into_iter().take(most) {
            if self
                .state_before(origin, room, rules, &event_id, &mut gathered)
                .await?
            {
                continue;
            }
            // Who sends an event has what comes right before it, and would have given it.
            if !told.contains(&event_id) {
                self.states_before_missing(origin, room, rules, &event_id, &mut gathered)
                    .await?;
            }
        }
        self.auth_chains(origin, room, rules, &mut gathered).await?;
        if errand != Errand::History {
            self.recommendations(room, rules, &mut gathered).await?;
        }
        Ok(gathered)
    }

    /// Has what the policy server of the room did not sign judged by it
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures)).
    async fn recommendations(
        &self,
        room: &Room,
        rules: &RoomVersionRules,
        gathered: &mut Gathered,
    ) -> Result<(), StorageError> {
        let policy_servers = &self.0.timeline.policy_servers;
        let Some(policy) = policy_servers.of(room).await? else {
            return Ok(());
        };
        let events = gathered.events.values();
        let unsigned: Vec<_> = events
            .filter(|pdu| PolicyServer::judges(pdu) && !policy.has_signed(pdu, rules))
            .cloned()
            .collect();
        for (index, events) in unsigned.chunks(JUDGED_AT_ONCE).enumerate() {
            let asked = events
                .iter()
                .map(|pdu| policy_servers.sign(&policy, pdu, rules));
            let mut answers = false;
            for (pdu, signed) in events
                .iter()
                .zip(futures_util::future::join_all(asked).await)
            {
                let event_id = pdu.event_id().to_owned();
                answers |= signed.as_ref().err().is_none_or(PolicyError::is_answer);
                match signed {
                    Ok(signed) => drop(gathered.events.insert(event_id, signed.pdu().clone())),
                    Err(error) => {
                        tracing::debug!(%event_id, %error, "an event is not recommended");
                        gathered.unwanted.insert(event_id);
                    }
                }
            }
            if !answers {
                // It is not there. The others do not wait for it as well.
                let rest = unsigned.iter().skip((index + 1) * JUDGED_AT_ONCE);
                let rest = rest.map(|pdu| pdu.event_id().to_owned());
                gathered.unwanted.extend(rest);
                break;
            }
        }
        Ok(())
    }

    /// Walks backwards from what arrived to what is known.
    async fn missing_events(
        &self,
        origin: &ServerName,
        room: &Room,
        rules: &RoomVersionRules,
        gathered: &mut Gathered,
    ) -> Result<(), StorageError> {
        let head = room.head.as_ref();
        let earliest: Vec<_> = head
            .map(|head| head.extremities.iter().take(MOST_NAMED).cloned().collect())
            .unwrap_or_default();
        for _ in 0..ROUNDS {
            let mut latest = self.with_missing_prev_events(gathered).await?;
            latest.truncate(MOST_NAMED);
            if latest.is_empty() || gathered.events.len() >= MOST_MISSING {
                return Ok(());
            }
            let source = &self.0.source;
            let answer = source
                .missing_events(origin, &room.room_id, earliest.clone(), latest)
                .await;
            let Ok(events) = answer else { return Ok(()) };
            let before = gathered.events.len();
            let room_left = MOST_MISSING.saturating_sub(before);
            let fetched = parse(&events, room, rules, room_left);
            let fetched = self.unplaced(fetched, gathered).await?;
            for (event_id, verified) in self.verify(fetched, rules).await {
                if let Ok(pdu) = verified {
                    gathered.events.insert(event_id, pdu);
                }
            }
            if gathered.events.len() == before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The gathered events that refer to events which are neither gathered nor known.
    async fn with_missing_prev_events(
        &self,
        gathered: &Gathered,
    ) -> Result<Vec<OwnedEventId>, StorageError> {
        let prev_events = gathered.events.values().flat_map(Pdu::prev_events);
        let asked: BTreeSet<_> = prev_events
            .filter(|id| !gathered.events.contains_key(*id))
            .cloned()
            .collect();
        let asked: Vec<_> = asked.into_iter().collect();
        let known = self.0.timeline.events.by_ids(&asked).await?;
        let placed = |id: &OwnedEventId| {
            gathered.events.contains_key(id)
                || known.get(id).is_some_and(|event| event.state.is_some())
        };
        let open = gathered
            .events
            .values()
            .filter(|pdu| !pdu.prev_events().iter().all(placed));
        Ok(open.map(|pdu| pdu.event_id().to_owned()).collect())
    }

    /// Fetches the state before an event, as the server that sent it has it; whether it told.
    async fn state_before(
        &self,
        origin: &ServerName,
        room: &Room,
        rules: &RoomVersionRules,
        event_id: &EventId,
        gathered: &mut Gathered,
    ) -> Result<bool, StorageError> {
        let source = &self.0.source;
        let Ok(ids) = source.state_ids(origin, &room.room_id, event_id).await else {
            return Ok(false);
        };
        let of = (event_id, None);
        self.add_state(origin, room, rules, of, ids, gathered)
            .await?;
        Ok(true)
    }

    /// Fetches the events before an event that are missing, and the states before them.
    async fn states_before_missing(
        &self,
        origin: &ServerName,
        room: &Room,
        rules: &RoomVersionRules,
        event_id: &EventId,
        gathered: &mut Gathered,
    ) -> Result<(), StorageError> {
        let source = &self.0.source;
        let Some(pdu) = gathered.events.get(event_id) else {
            return Ok(());
        };
        for missing in self.unplaced_among(pdu.prev_events(), gathered).await? {
            let Ok(ids) = source.state_ids(origin, &room.room_id, &missing).await else {
                return Ok(());
            };
            let of = (&*missing, Some(missing.clone()));
            self.add_state(origin, room, rules, of, ids, gathered)
                .await?;
        }
        Ok(())
    }

    /// Fetches the events of the state before an event; that event as well, if it is asked for.
    async fn add_state(
        &self,
        origin: &ServerName,
        room: &Room,
        rules: &RoomVersionRules,
        (of, with): (&EventId, Option<OwnedEventId>),
        ids: StateIds,
        gathered: &mut Gathered,
    ) -> Result<(), StorageError> {
        let source = &self.0.source;
        let all = ids.state.iter().chain(&ids.auth_chain).chain(&with);
        let missing = self.unknown(all.cloned().collect(), gathered).await?;
        if missing.len() > WHOLE_STATE
            && let Ok(events) = source.state(origin, &room.room_id, of).await
        {
            self.add_outliers(&events, &missing, room, rules, gathered)
                .await;
        }
        let missing = self
            .unknown(missing.into_iter().collect(), gathered)
            .await?;
        let mut requests = Vec::new();
        for id in missing.iter().take(WHOLE_STATE) {
            requests.push(source.event(origin, id));
        }
        let events: Vec<_> = futures_util::future::join_all(requests)
            .await
            .into_iter()
            .filter_map(Result::ok)
            .collect();
        self.add_outliers(&events, &missing, room, rules, gathered)
            .await;
        gathered.states.insert(of.to_owned(), ids.state);
        Ok(())
    }

    /// The events that are neither gathered nor have a place.
    async fn unplaced_among(
        &self,
        ids: &[OwnedEventId],
        gathered: &Gathered,
    ) -> Result<Vec<OwnedEventId>, StorageError> {
        let mut unplaced = ids.to_vec();
        unplaced.retain(|id| !gathered.events.contains_key(id));
        let known = self.0.timeline.events.by_ids(&unplaced).await?;
        unplaced.retain(|id| known.get(id).is_none_or(|event| event.state.is_none()));
        Ok(unplaced)
    }

    /// Fetches the auth chains of events whose auth events are missing.
    async fn auth_chains(
        &self,
        origin: &ServerName,
        room: &Room,
        rules: &RoomVersionRules,
        gathered: &mut Gathered,
    ) -> Result<(), StorageError> {
        let create = create_event_id(&room.room_id, rules);
        let events: Vec<_> = gathered.events.keys().cloned().collect();
        let mut asked = 0;
        for event_id in events {
            let Some(pdu) = gathered.events.get(&event_id) else {
                continue;
            };
            let needed: Vec<_> = pdu.auth_events().iter().chain(&create).cloned().collect();
            if self.unknown(needed, gathered).await?.is_empty() {
                continue;
            }
            if asked == MOST_CHAINS {
                break;
            }
            asked += 1;
            let source = &self.0.source;
            let answer = source.event_auth(origin, &room.room_id, &event_id).await;
            let Ok(events) = answer else { continue };
            let chain = parse(&events, room, rules, usize::MAX);
            let ids: Vec<_> = chain.iter().map(|pdu| pdu.event_id().to_owned()).collect();
            let missing = self.unknown(ids, gathered).await?;
            self.add_outliers(&events, &missing, room, rules, gathered)
                .await;
        }
        Ok(())
    }

    /// Verifies events that were asked for, and keeps them; what was not asked for is left out.
    async fn add_outliers(
        &self,
        events: &[Box<RawValue>],
        asked: &BTreeSet<OwnedEventId>,
        room: &Room,
        rules: &RoomVersionRules,
        gathered: &mut Gathered,
    ) {
        let mut parsed = parse(events, room, rules, usize::MAX);
        parsed.retain(|pdu| asked.contains(pdu.event_id()) && !gathered.has(pdu.event_id()));
        for (event_id, verified) in self.verify(parsed, rules).await {
            if let Ok(pdu) = verified {
                gathered.outliers.insert(event_id, pdu);
            }
        }
    }

    /// Leaves out what is gathered, or has its place.
    async fn unplaced(
        &self,
        mut events: Vec<Unverified>,
        gathered: &Gathered,
    ) -> Result<Vec<Unverified>, StorageError> {
        events.retain(|pdu| !gathered.events.contains_key(pdu.event_id()));
        let mut outcomes = super::Outcomes::new();
        self.without_known(events, &mut outcomes).await
    }

    /// The ids of events that are neither gathered nor stored.
    async fn unknown(
        &self,
        mut asked: Vec<OwnedEventId>,
        gathered: &Gathered,
    ) -> Result<BTreeSet<OwnedEventId>, StorageError> {
        asked.retain(|id| !gathered.has(id));
        asked.sort_unstable();
        asked.dedup();
        let known = self.0.timeline.events.by_ids(&asked).await?;
        Ok(asked
            .into_iter()
            .filter(|id| !known.contains_key(id))
            .collect())
    }
}

/// The events of the room among what a server answered.
fn parse(
    events: &[Box<RawValue>],
    room: &Room,
    rules: &RoomVersionRules,
    most: usize,
) -> Vec<Unverified> {
    events
        .iter()
        .filter_map(|json| Pdu::parse(json, rules).ok())
        .filter(|pdu| pdu.room_id() == room.room_id)
        .take(most)
        .collect()
}
