//! What a server tells about a room that it is in, checked event by event
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomVersionId,
    api::federation::membership::create_join_event::v2::RoomState,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use sotto_federation::{
    client::{Answer, ClientError},
    room::{
        auth::{self, Judged, JudgedOutlier, Rejection, Verdict},
        pdu::{Pdu, Unverified},
        signing::{self, Verified},
        state::StateMap,
    },
};
use tokio::task::{JoinHandle, spawn_blocking};

use super::splitter::{List, SplitError, Splitter};
use crate::{
    service::{parallel::parallel, server_keys::ServerKeys},
    storage::StorageError,
};

/// How many events are parsed at a time, while others are on their way.
const PIECE: usize = 256;

/// How many servers may be said to be in a room.
const MOST_TOLD_SERVERS: usize = 50_000;

/// Whom was asked what.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) server: OwnedServerName,
    pub(super) room_id: OwnedRoomId,
    pub(super) version: RoomVersionId,
    pub(super) rules: RoomVersionRules,
}

/// What a server answered to `send_join`, parsed.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) state: Vec<Unverified>,
    pub(super) auth_chain: Vec<Unverified>,
    /// Our event as the server has it.
    pub(super) event: Option<Box<RawValue>>,
    /// If the members were left out: the servers that are in the room.
    pub(super) servers: Option<Vec<OwnedServerName>>,
}

/// A room as another server told it, and our event on top of it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) join: Judged,
    /// The state before the join; all of its events are among `events`.
    pub(super) state: StateMap,
    /// States and auth chains, each after those that it refers to.
    pub(super) events: Vec<JudgedOutlier>,
    /// If the members were left out: the servers that are in the room, the one that told this first.
    pub(super) servers: Option<Vec<OwnedServerName>>,
}

/// Why what a server tells is not to be believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// A join to a restricted room came back without the signature of the server that opens it.
    #[error("the server did not sign the join")]
    Unsigned,
    /// The state has no create event, or it is that of another room.
    #[error("the state has no create event of this room")]
    NoCreateEvent,
    /// The state says two things of one place.
    #[error("the state is ambiguous")]
    Ambiguous,
    /// By what the server tells, our user may not join.
    #[error("the state does not allow the join: {0}")]
    NotAllowed(Rejection),
    /// There is no end to what the server tells, or no sense in it.
    #[error("the answer is malformed")]
    Malformed,
    /// The answer did not come as a whole.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The check was cut short by the end of the server.
    #[error("the check was not completed")]
    Stopped,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Question {
    /// Reads an answer of at most `most` bytes, and parses its events while it comes.
    pub(super) async fn hear(&self, mut answer: Answer, most: usize) -> Result<Heard, AnswerError> {
        let mut splitter = Splitter::default();
        let (mut bytes, mut waiting) = (0_usize, Vec::new());
        let mut parsing = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            bytes = bytes.saturating_add(chunk.len());
            if bytes > most {
                return Err(ClientError::TooLarge.into());
            }
            splitter.read(&chunk)?;
            waiting.append(&mut splitter.items());
            if waiting.len() >= PIECE {
                parsing.push(self.parse(std::mem::take(&mut waiting)));
            }
        }
        waiting.append(&mut splitter.items());
        parsing.push(self.parse(waiting));
        let mut members = splitter.finish()?;
        let mut heard = Heard {
            servers: self.servers(&members),
            event: members.remove("event"),
            ..Heard::default()
        };
        for parsed in parsing {
            for (list, pdu) in parsed.await.map_err(|_| AnswerError::Stopped)? {
                match list {
                    List::State => heard.state.push(pdu),
                    List::AuthChain => heard.auth_chain.push(pdu),
                }
            }
        }
        Ok(heard)
    }

    /// Who is in the room, if the members were left out.
    fn servers(&self, members: &BTreeMap<String, Box<RawValue>>) -> Option<Vec<OwnedServerName>> {
        let omitted = members.get("members_omitted");
        let omitted = omitted.and_then(|json| serde_json::from_str::<bool>(json.get()).ok());
        omitted.filter(|omitted| *omitted)?;
        let told = members.get("servers_in_room");
        let told = told.and_then(|json| serde_json::from_str(json.get()).ok());
        let mut servers: Vec<OwnedServerName> = told.unwrap_or_default();
        servers.truncate(MOST_TOLD_SERVERS);
        servers.retain(|server| *server != self.server);
        servers.insert(0, self.server.clone());
        Some(servers)
    }

    /// Parses an answer that came as a whole.
    pub(super) async fn heard(&self, told: RoomState) -> Result<Heard, AnswerError> {
        let lists = [
            (List::State, told.state),
            (List::AuthChain, told.auth_chain),
        ];
        let items = lists
            .into_iter()
            .flat_map(|(list, events)| events.into_iter().map(move |event| (list, event)));
        let parsed = self.parse(items.collect()).await;
        let (state, auth_chain): (Vec<_>, Vec<_>) = parsed
            .map_err(|_| AnswerError::Stopped)?
            .into_iter()
            .partition(|(list, _)| *list == List::State);
        let pdus = |list: Vec<(List, Unverified)>| list.into_iter().map(|(_, pdu)| pdu).collect();
        Ok(Heard {
            state: pdus(state),
            auth_chain: pdus(auth_chain),
            event: told.event,
            servers: None,
        })
    }

    /// Parses events, beside the threads that answer others. What is none of the room's is left out.
    fn parse(&self, items: Vec<(List, Box<RawValue>)>) -> JoinHandle<Vec<(List, Unverified)>> {
        let (rules, room_id) = (self.rules.clone(), self.room_id.clone());
        spawn_blocking(move || {
            let parsed = items
                .iter()
                .filter_map(|(list, json)| Some((*list, Pdu::parse(json, &rules).ok()?)));
            parsed.filter(|(_, pdu)| pdu.room_id() == room_id).collect()
        })
    }

    /// Checks signatures, hashes and authorization of everything.
    ///
    /// An event that fails is left out; what depends on it is then left out as well. The create event and
    /// what allows the join must remain.
    pub(super) async fn check(
        &self,
        server_keys: &ServerKeys,
        join: Verified,
        heard: Heard,
    ) -> Result<Told, AnswerError> {
        let Heard {
            state,
            auth_chain,
            servers,
            ..
        } = heard;
        let state_ids: Vec<_> = state.iter().map(|pdu| pdu.event_id().to_owned()).collect();
        let mut signed = Vec::with_capacity(state.len() + auth_chain.len());
        let mut seen = BTreeSet::new();
        for pdu in state.into_iter().chain(auth_chain) {
            if seen.insert(pdu.event_id().to_owned())
                && let Ok(required) = signing::required_keys(&pdu, &self.rules)
            {
                signed.push((pdu, required));
            }
        }
        let required: Vec<_> = signed
            .iter()
            .map(|(_, required)| required.clone())
            .collect();
        let notaries = [self.server.clone()];
        let keys = Arc::new(server_keys.known(&required, &notaries).await?);
        let rules = self.rules.clone();
        let verify = move |(pdu, required)| signing::verify(pdu, &keys.key_map(&required), &rules);
        let verified = parallel(signed, verify).await;
        let mut right = BTreeMap::new();
        for verified in verified.map_err(|_| AnswerError::Stopped)? {
            match verified {
                Ok(pdu) => drop(right.insert(pdu.pdu().event_id().to_owned(), pdu)),
                Err(error) => tracing::debug!(%error, "an event of a room's state is left out"),
            }
        }
        let this = self.clone();
        let judged = spawn_blocking(move || this.judge(join, &state_ids, right, servers));
        judged.await.map_err(|_| AnswerError::Stopped)?
    }

    fn judge(
        &self,
        join: Verified,
        state_ids: &[OwnedEventId],
        mut verified: BTreeMap<OwnedEventId, Verified>,
        servers: Option<Vec<OwnedServerName>>,
    ) -> Result<Told, AnswerError> {
        let rules = &self.rules;
        let mut found: BTreeMap<OwnedEventId, Arc<Pdu>> = BTreeMap::new();
        let mut events = Vec::with_capacity(verified.len());
        for event_id in self.in_order(&verified) {
            let Some(pdu) = verified.remove(&event_id) else {
                continue;
            };
            let lookup = |id: &EventId| found.get(id).cloned();
            if !auth::missing_auth_events(&pdu, &lookup, rules).is_empty() {
                continue;
            }
            let judged = auth::judge_outlier(pdu, &lookup, rules);
            found.insert(event_id, Arc::new(judged.pdu().clone()));
            events.push(judged);
        }
        let mut state = self.state(state_ids, &found, join.pdu().event_id())?;
        if servers.is_some() {
            // The members that allow the join are left out as well, and are told for that.
            add_members(&mut state, join.pdu(), &found);
        }
        let lookup = |id: &EventId| found.get(id).cloned();
        let part = |event_type: &StateEventType, key: &str| {
            found
                .get(state.get(&(event_type.clone(), key.to_owned()))?)
                .cloned()
        };
        let join = auth::judge(join, &lookup, part, part, rules);
        match join.verdict() {
            Verdict::Accepted => {}
            Verdict::SoftFailed(why) | Verdict::Rejected(why) => {
                return Err(AnswerError::NotAllowed(why.clone()));
            }
        }
        Ok(Told {
            join,
            state,
            events,
            servers,
        })
    }

    /// Events after those that they refer to. There are no cycles: an id is a hash.
    fn in_order(&self, events: &BTreeMap<OwnedEventId, Verified>) -> Vec<OwnedEventId> {
        enum Visit<'a> {
            Enter(&'a EventId),
            Leave(&'a EventId),
        }
        let create = auth::create_event_id(&self.room_id, &self.rules);
        let mut order = Vec::with_capacity(events.len());
        let mut entered = BTreeSet::new();
        let mut stack: Vec<_> = events.keys().map(|id| Visit::Enter(id)).collect();
        // On top of the stack: what all others refer to without saying so.
        stack.extend(create.as_deref().map(Visit::Enter));
        while let Some(visit) = stack.pop() {
            match visit {
                Visit::Leave(id) => order.push(id.to_owned()),
                Visit::Enter(id) => {
                    let Some((id, event)) = events.get_key_value(id) else {
                        continue;
                    };
                    if entered.insert(id) {
                        stack.push(Visit::Leave(id));
                        let before = event.pdu().auth_events();
                        stack.extend(before.iter().map(|id| Visit::Enter(id)));
                    }
                }
            }
        }
        order
    }

    /// The state that the accepted events make.
    fn state(
        &self,
        state_ids: &[OwnedEventId],
        found: &BTreeMap<OwnedEventId, Arc<Pdu>>,
        join: &EventId,
    ) -> Result<StateMap, AnswerError> {
        #[derive(serde::Deserialize)]
        struct Create {
            #[serde(default = "first_version")]
            room_version: RoomVersionId,
        }
        let mut state = StateMap::new();
        for event_id in state_ids.iter().filter(|id| **id != join) {
            let Some(pdu) = found.get(event_id).filter(|pdu| !pdu.is_rejected()) else {
                continue;
            };
            let Some(state_key) = pdu.state_key() else {
                continue;
            };
            let event_type = StateEventType::from(pdu.event_type().to_string());
            let key = (event_type, state_key.to_owned());
            let before = state.insert(key, event_id.clone());
            if before.is_some_and(|before| before != *event_id) {
                return Err(AnswerError::Ambiguous);
            }
        }
        let create = state
            .get(&(StateEventType::RoomCreate, String::new()))
            .and_then(|id| found.get(id))
            .filter(|pdu| *pdu.event_type() == TimelineEventType::RoomCreate)
            .and_then(|pdu| pdu.content_as::<Create>().ok());
        if create.is_some_and(|create| create.room_version == self.version) {
            Ok(state)
        } else {
            Err(AnswerError::NoCreateEvent)
        }
    }
}

/// Adds the memberships that an event names as what allows it.
fn add_members(state: &mut StateMap, event: &Pdu, found: &BTreeMap<OwnedEventId, Arc<Pdu>>) {
    for pdu in event.auth_events().iter().filter_map(|id| found.get(id)) {
        if *pdu.event_type() == TimelineEventType::RoomMember
            && !pdu.is_rejected()
            && let Some(user_id) = pdu.state_key()
        {
            let key = (StateEventType::RoomMember, user_id.to_owned());
            state
                .entry(key)
                .or_insert_with(|| pdu.event_id().to_owned());
        }
    }
}

fn first_version() -> RoomVersionId {
    RoomVersionId::V1
}

impl From<SplitError> for AnswerError {
    fn from(error: SplitError) -> Self {
        match error {
            SplitError::Malformed => Self::Malformed,
            SplitError::TooLarge => ClientError::TooLarge.into(),
        }
    }
}
