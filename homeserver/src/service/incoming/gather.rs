//! Fetching what events build on. Bounded: who sends an event with endless history gets no endless work.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    EventId, OwnedEventId, OwnedServerName, RoomId, ServerName,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use sotto_federation::{
    client::ClientError,
    room::{
        auth::create_event_id,
        pdu::{Pdu, Unverified},
        signing::{PolicyServer, SignatureError},
    },
};

use super::{Errand, Incoming, Refused, source::StateIds};
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

/// Of whom something is asked, and about which room.
#[derive(Clone, Copy)]
struct Asked<'a> {
    origin: &'a ServerName,
    room: &'a Room,
    rules: &'a RoomVersionRules,
}

/// What a server said when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// What it was asked for.
    All,
    /// That it does not tell.
    No,
    /// Nothing. It may do so at another time.
    Nothing,
}

impl Heard {
    fn error(error: &ClientError) -> Self {
        if error.is_server_down() {
            Self::Nothing
        } else {
            Self::No
        }
    }
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
        let asked = Asked {
            origin,
            room,
            rules,
        };
        for event_id in open.into_iter().take(most) {
            let is_told = told.contains(&event_id);
            self.states_behind(asked, &event_id, is_told, &mut gathered)
                .await?;
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

    /// Fetches what is needed for the state before an event, some of whose previous events are missing.
    ///
    /// Where others of them are known, the states before the missing ones are: all of them together make the same
    /// here as for everybody who has the whole graph. What the state before the event itself makes together with
    /// known ones is not always that state again, so that is for those who cannot tell the others.
    async fn states_behind(
        &self,
        asked: Asked<'_>,
        event_id: &EventId,
        is_told: bool,
        gathered: &mut Gathered,
    ) -> Result<(), StorageError> {
        let Some(pdu) = gathered.events.get(event_id) else {
            return Ok(());
        };
        let missing = self.unplaced_among(pdu.prev_events(), gathered).await?;
        if missing.len() < pdu.prev_events().len() {
            let heard = self.states_before(asked, missing, gathered).await?;
            if heard == Heard::No {
                self.state_before(asked, event_id, gathered).await?;
            }
            return Ok(());
        }
        let heard = self.state_before(asked, event_id, gathered).await?;
        // Who sends an event has what comes right before it, and would have given it.
        if heard != Heard::All && !is_told {
            self.states_before(asked, missing, gathered).await?;
        }
        Ok(())
    }

    /// Fetches the state before an event, as the server that sent it has it.
    async fn state_before(
        &self,
        asked: Asked<'_>,
        event_id: &EventId,
        gathered: &mut Gathered,
    ) -> Result<Heard, StorageError> {
        let (source, room_id) = (&self.0.source, &asked.room.room_id);
        match source.state_ids(asked.origin, room_id, event_id).await {
            Ok(ids) => self.add_state(asked, (event_id, None), ids, gathered).await,
            Err(error) => Ok(Heard::error(&error)),
        }
    }

    /// Fetches missing events, and the states before them.
    async fn states_before(
        &self,
        asked: Asked<'_>,
        missing: Vec<OwnedEventId>,
        gathered: &mut Gathered,
    ) -> Result<Heard, StorageError> {
        let (source, room_id) = (&self.0.source, &asked.room.room_id);
        for event_id in missing {
            let ids = match source.state_ids(asked.origin, room_id, &event_id).await {
                Ok(ids) => ids,
                Err(error) => return Ok(Heard::error(&error)),
            };
            let of = (&*event_id, Some(event_id.clone()));
            let heard = self.add_state(asked, of, ids, gathered).await?;
            if heard != Heard::All {
                return Ok(heard);
            }
        }
        Ok(Heard::All)
    }

    /// Fetches the events of the state before an event; that event as well, if it is asked for. A part of a
    /// state is none: it would be a state that nobody else has.
    async fn add_state(
        &self,
        asked: Asked<'_>,
        (of, with): (&EventId, Option<OwnedEventId>),
        ids: StateIds,
        gathered: &mut Gathered,
    ) -> Result<Heard, StorageError> {
        let Asked {
            origin,
            room,
            rules,
        } = asked;
        let source = &self.0.source;
        let all = ids.state.iter().chain(&ids.auth_chain).chain(&with);
        let mut missing = self.unknown(all.cloned().collect(), gathered).await?;
        let mut keyless = BTreeSet::new();
        if missing.len() > WHOLE_STATE {
            match source.state(origin, &room.room_id, of).await {
                Ok(events) => {
                    keyless = self
                        .add_outliers(&events, &missing, room, rules, gathered)
                        .await;
                    missing = self
                        .unknown(missing.into_iter().collect(), gathered)
                        .await?;
                }
                Err(error) => return Ok(Heard::error(&error)),
            }
        }
        let mut requests = Vec::new();
        for id in missing.iter().take(WHOLE_STATE) {
            requests.push(source.event(origin, id));
        }
        let mut events = Vec::with_capacity(requests.len());
        for answer in futures_util::future::join_all(requests).await {
            match answer {
                Ok(event) => events.push(event),
                Err(error) if error.is_server_down() => return Ok(Heard::Nothing),
                Err(_) => {}
            }
        }
        keyless.extend(
            self.add_outliers(&events, &missing, room, rules, gathered)
                .await,
        );
        if self.waits_for_keys(&room.room_id, &keyless).await {
            return Ok(Heard::Nothing);
        }
        gathered.states.insert(of.to_owned(), ids.state);
        Ok(Heard::All)
    }

    /// Whether a state without the events of these servers is no state yet: they may tell their keys when they are
    /// back. Nobody waits long for them, as they may be gone for good, and the room goes on.
    async fn waits_for_keys(&self, room_id: &RoomId, servers: &BTreeSet<OwnedServerName>) -> bool {
        for server in servers {
            if self.0.source.is_away(server).await {
                let now = self.0.timeline.clock.now();
                return self.0.patience.allows(room_id, now);
            }
        }
        false
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

    /// Verifies events that were asked for, and keeps them; what was not asked for is left out. Returns the servers
    /// without whose keys some could not be verified.
    async fn add_outliers(
        &self,
        events: &[Box<RawValue>],
        asked: &BTreeSet<OwnedEventId>,
        room: &Room,
        rules: &RoomVersionRules,
        gathered: &mut Gathered,
    ) -> BTreeSet<OwnedServerName> {
        let mut parsed = parse(events, room, rules, usize::MAX);
        parsed.retain(|pdu| asked.contains(pdu.event_id()) && !gathered.has(pdu.event_id()));
        let mut unknown = BTreeSet::new();
        for (event_id, verified) in self.verify(parsed, rules).await {
            match verified {
                Ok(pdu) => drop(gathered.outliers.insert(event_id, pdu)),
                Err(Refused::Signature(SignatureError::Missing(server))) => {
                    unknown.insert(server);
                }
                Err(_) => {}
            }
        }
        unknown
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
