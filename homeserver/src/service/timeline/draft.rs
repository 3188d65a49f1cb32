//! Events that are being made, each on top of the one before, until all are appended at once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use sotto_federation::room::{
    auth::{self, Judged, Verdict},
    builder::{self, Basis, BuildError, Hashes, Template},
    pdu::Pdu,
    redaction, version,
};

use super::{SendError, Timeline};
use crate::{
    service::visibility,
    storage::{
        StorageError,
        append::{Append, Gaps, NewEvent, Placement, Redaction},
        events::{StoredEvent, Txn},
        rooms::{Head, Room, RoomNid},
        state_map::{self, Node, NodeId, StateKeyId},
        state_nodes::pair,
    },
};

/// How many events the next one names as those before it
/// ([spec](https://spec.matrix.org/v1.19/rooms/v4/#event-format)).
const MAX_PREV_EVENTS: usize = 20;

/// A room with events to be.
#[derive(Debug)]
pub(crate) struct Draft {
    room_nid: Option<RoomNid>,
    room_id: Option<OwnedRoomId>,
    version: RoomVersionId,
    expected: Option<i64>,
    /// What the next event builds on.
    extremities: Vec<OwnedEventId>,
    depth: i64,
    state: NodeId,
    events: Vec<NewEvent>,
    nodes: Vec<(NodeId, Arc<Node>)>,
    state_keys: Vec<(StateKeyId, Vec<u8>)>,
    redactions: Vec<Redaction>,
}

/// The state that decides on an event.
pub(crate) type AuthState = HashMap<(StateEventType, String), Arc<Pdu>>;

impl Draft {
    /// Starts on the head of a room; `None` if the server takes no part in it.
    pub(crate) fn of(room: &Room) -> Option<Self> {
        let head = room.head.clone()?;
        Some(Self {
            room_nid: Some(room.nid),
            room_id: Some(room.room_id.clone()),
            version: room.version.clone(),
            expected: Some(head.version),
            extremities: head.extremities,
            depth: head.depth,
            state: head.state,
            events: Vec::new(),
            nodes: Vec::new(),
            state_keys: Vec::new(),
            redactions: Vec::new(),
        })
    }

    /// Starts a new room. `room_id` is `None` where the create event will say it.
    pub(crate) fn new_room(version: RoomVersionId, room_id: Option<OwnedRoomId>) -> Self {
        Self {
            room_nid: None,
            room_id,
            version,
            expected: None,
            extremities: Vec::new(),
            depth: 0,
            state: state_map::empty().0,
            events: Vec::new(),
            nodes: Vec::new(),
            state_keys: Vec::new(),
            redactions: Vec::new(),
        }
    }

    /// What is to be appended.
    pub(crate) fn finish(self) -> Result<Append, SendError> {
        Ok(Append {
            room_nid: self.room_nid.ok_or(BuildError::RoomId)?,
            room_id: self.room_id.ok_or(BuildError::RoomId)?,
            version: self.version,
            expected: self.expected,
            head: Head {
                version: self.expected.unwrap_or(0) + 1,
                extremities: self.extremities,
                state: self.state,
                depth: self.depth,
            },
            events: self.events,
            outliers: Vec::new(),
            nodes: self.nodes,
            state_keys: self.state_keys,
            redactions: self.redactions,
            gaps: Gaps::default(),
        })
    }

    /// The room, once its create event is drafted.
    pub(crate) fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }

    /// The state on which the next event builds.
    pub(crate) fn state(&self) -> NodeId {
        self.state
    }

    /// The event that was drafted last.
    pub(super) fn newest(&self) -> Option<&Pdu> {
        self.events.last().map(|event| event.judged.pdu())
    }

    /// The events, which may get signatures.
    pub(super) fn judged_mut(&mut self) -> impl Iterator<Item = &mut Judged> {
        self.events.iter_mut().map(|event| &mut event.judged)
    }

    pub(crate) fn rules(&self) -> Result<RoomVersionRules, SendError> {
        let rules = version::rules(&self.version);
        rules.ok_or_else(|| BuildError::UnsupportedRoomVersion.into())
    }
}

impl Timeline {
    /// Adds an event of a local user to a draft.
    pub(crate) async fn draft_event(
        &self,
        draft: &mut Draft,
        sender: &UserId,
        template: Template,
        txn: Option<Txn>,
    ) -> Result<OwnedEventId, SendError> {
        let rules = draft.rules()?;
        if replaces_itself(&template, draft.room_id()) {
            return Err(SendError::ReplacesItself);
        }
        let target = self.redaction_target(draft, &template).await?;
        let auth = self
            .auth_state(draft.state, sender, &template, &rules)
            .await?;
        let hashes = self.hashes(draft, &auth, &rules).await?;
        let judged = self.build(draft, sender, template, (&auth, hashes), &rules)?;
        match judged.verdict() {
            Verdict::Accepted => {}
            Verdict::SoftFailed(rejection) | Verdict::Rejected(rejection) => {
                return Err(SendError::Refused(rejection.clone()));
            }
        }
        let event_id = judged.pdu().event_id().to_owned();
        if let Some(target) = target {
            redact(draft, &judged, &target, &auth, &rules)?;
        }
        self.place(draft, judged, txn).await?;
        Ok(event_id)
    }

    /// The parts of the state that the rules ask for
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection)), and the create
    /// event, which they need where it is not among them.
    pub(crate) async fn auth_state(
        &self,
        state: NodeId,
        sender: &UserId,
        template: &Template,
        rules: &RoomVersionRules,
    ) -> Result<AuthState, SendError> {
        let Template {
            event_type,
            state_key,
            content,
            ..
        } = template;
        let types = auth::auth_types(event_type, sender, state_key.as_deref(), content, rules)
            .map_err(SendError::Refused)?;
        let create = (StateEventType::RoomCreate, String::new());
        let mut found = AuthState::new();
        for key in types.into_iter().chain([create]) {
            if !found.contains_key(&key)
                && let Some((_, pdu)) = self.events.state_pdu(state, &key.0, &key.1).await?
            {
                found.insert(key, pdu);
            }
        }
        Ok(found)
    }

    /// The hashes that an event on top of a draft names, if events of its version name any.
    async fn hashes(
        &self,
        draft: &Draft,
        auth: &AuthState,
        rules: &RoomVersionRules,
    ) -> Result<Hashes, SendError> {
        let mut hashes = Hashes::default();
        if !Hashes::needed(rules) {
            return Ok(hashes);
        }
        let drafted = draft.events.iter().map(|event| event.judged.pdu());
        for pdu in drafted.chain(auth.values().map(|pdu| &**pdu)) {
            hashes.add(pdu, rules)?;
        }
        let mut stored = draft.extremities.clone();
        stored.retain(|id| {
            !draft
                .events
                .iter()
                .any(|event| event.judged.pdu().event_id() == id)
        });
        for event in self.extremities(&stored).await? {
            hashes.add(&event.pdu, rules)?;
        }
        Ok(hashes)
    }

    /// Forward extremities that are or will be in the database.
    pub(crate) async fn extremities(
        &self,
        extremities: &[OwnedEventId],
    ) -> Result<Vec<Arc<StoredEvent>>, StorageError> {
        let found = self.events.by_ids(extremities).await?;
        if found.len() == extremities.len() {
            return Ok(found.into_values().collect());
        }
        // Events whose commit is under way: this write comes after them.
        let barrier = self
            .storage
            .write(|_| Box::pin(async { Ok::<_, StorageError>(()) }));
        barrier.await?;
        let found = self.events.by_ids(extremities).await?;
        Ok(found.into_values().collect())
    }

    fn build(
        &self,
        draft: &Draft,
        sender: &UserId,
        template: Template,
        (auth, hashes): (&AuthState, Hashes),
        rules: &RoomVersionRules,
    ) -> Result<Judged, SendError> {
        let Template {
            event_type,
            state_key,
            content,
            ..
        } = &template;
        let selected = auth::auth_types(event_type, sender, state_key.as_deref(), content, rules)
            .map_err(SendError::Refused)?;
        let auth_events = selected.iter().filter_map(|key| auth.get(key));
        let basis = Basis {
            room_id: draft.room_id.clone(),
            prev_events: draft
                .extremities
                .iter()
                .take(MAX_PREV_EVENTS)
                .cloned()
                .collect(),
            auth_events: auth_events.map(|pdu| pdu.event_id().to_owned()).collect(),
            hashes,
            depth: u64::try_from(draft.depth + 1).unwrap_or(1),
        };
        let now = template
            .origin_server_ts
            .unwrap_or_else(|| self.clock.now());
        let key = &self.key;
        let built = builder::build(template, &basis, sender, now, rules, &self.server_name, key)?;
        let state = |event_type: &StateEventType, state_key: &str| {
            auth.get(&(event_type.clone(), state_key.to_owned()))
                .cloned()
        };
        Ok(auth::judge_own(built, state, rules))
    }

    /// Puts a judged event on top of the draft.
    pub(super) async fn place(
        &self,
        draft: &mut Draft,
        judged: Judged,
        txn: Option<Txn>,
    ) -> Result<(), SendError> {
        let nid = self.storage.counters().next_nid();
        let before = draft.state;
        let mut replaces = None;
        let mut memberships = Vec::new();
        let pdu = judged.pdu();
        if let Some(state_key) = pdu.state_key() {
            let event_type = StateEventType::from(pdu.event_type().to_string());
            replaces = self
                .storage
                .state_get(before, &event_type, state_key)
                .await?;
            let key = self.storage.states().key(&event_type, state_key);
            let change = BTreeMap::from([(key, Some(nid))]);
            let after = self.storage.state_change(before, &change).await?;
            draft.state = after.root;
            draft.nodes.extend(after.nodes);
            if replaces.is_none() {
                draft.state_keys.push((key, pair(&event_type, state_key)));
            }
            memberships.extend(membership(pdu).map(|(user, is)| (user, is, nid)));
            self.storage
                .event_cache()
                .insert_pending(nid, Arc::new(pdu.clone()));
        }
        if draft.room_nid.is_none() {
            draft.room_nid = Some(RoomNid(self.storage.counters().next_nid().0));
            draft.room_id = Some(pdu.room_id().to_owned());
        }
        // More extremities than an event may name stay for the next one.
        draft
            .extremities
            .drain(..draft.extremities.len().min(MAX_PREV_EVENTS));
        draft.extremities.push(pdu.event_id().to_owned());
        draft.depth = i64::try_from(pdu.depth()).unwrap_or(i64::MAX - 1);
        draft.events.push(NewEvent {
            nid,
            judged,
            placement: Placement::Timeline,
            state_before: before,
            state_after: draft.state,
            head_before: before,
            head_state: draft.state,
            replaces,
            memberships,
            txn,
        });
        Ok(())
    }

    /// The event that a template redacts, if it is a redaction.
    async fn redaction_target(
        &self,
        draft: &Draft,
        template: &Template,
    ) -> Result<Option<Arc<StoredEvent>>, SendError> {
        let Some(target) = &template.redacts else {
            return Ok(None);
        };
        match self.events.by_id(target).await? {
            None => Err(SendError::NothingToRedact),
            Some(target) if Some(target.room_nid) == draft.room_nid => Ok(Some(target)),
            Some(_) => Err(SendError::RedactsElsewhere),
        }
    }
}

/// Lets a redaction take effect, if its sender may redact the event
/// ([spec](https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions)).
fn redact(
    draft: &mut Draft,
    judged: &Judged,
    target: &StoredEvent,
    auth: &AuthState,
    rules: &RoomVersionRules,
) -> Result<(), SendError> {
    let sender = judged.pdu().sender();
    if target.pdu.sender() != sender && !visibility::may_redact(sender, auth, rules) {
        return Err(SendError::MayNotRedact);
    }
    let pruned = redaction::redact(&target.pdu, rules).map_err(|_| {
        StorageError::inconsistent("events", "json", target.pdu.event_id().as_str())
    })?;
    draft.redactions.push(Redaction {
        target: target.nid,
        pruned: Arc::new(pruned),
        by: judged.pdu().event_id().to_owned(),
    });
    Ok(())
}

/// Whether an event says that a room is replaced by itself.
fn replaces_itself(template: &Template, room_id: Option<&RoomId>) -> bool {
    #[derive(serde::Deserialize)]
    struct Tombstone {
        replacement_room: OwnedRoomId,
    }
    if template.event_type.to_string() != "m.room.tombstone" {
        return false;
    }
    let tombstone = serde_json::from_str::<Tombstone>(template.content.get());
    tombstone.is_ok_and(|tombstone| Some(&*tombstone.replacement_room) == room_id)
}

/// Whose membership an event sets, and to what.
pub(crate) fn membership(pdu: &Pdu) -> Option<(OwnedUserId, MembershipState)> {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    if *pdu.event_type() != TimelineEventType::RoomMember {
        return None;
    }
    let user_id = pdu.membership_target()?.to_owned();
    Some((user_id, pdu.content_as::<Content>().ok()?.membership))
}
