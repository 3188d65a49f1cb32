//! Timelines: events of local users, appended to rooms, and read again.

mod annotations;
mod at_time;
mod draft;
mod proposal;
mod read;

use std::sync::Arc;

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId, UserId,
    api::error::ErrorKind,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde_json::{Map, Value, value::RawValue};
use sotto_federation::room::{
    auth::Rejection,
    builder::{BuildError, Template},
    signing::{PolicyServer, SigningKey},
};

pub(crate) use self::{
    draft::{AuthState, Draft, membership},
    proposal::Proposal,
    read::{Direction, Page, PageAsk, PageToken, ReadError},
};
use super::{
    accounts::Requester,
    events::Events,
    heads::{Heads, Slot},
    policy_servers::{PolicyError, PolicyServers},
    visibility::Visibility,
};
use crate::{
    clock::Clock,
    storage::{
        Families, Storage, StorageError,
        append::AppendError,
        events::{Txn, TxnScope},
    },
};

/// How often an event is decided upon again because somebody else was first.
const ATTEMPTS: usize = 16;

/// Appends and reads events.
#[derive(Clone)]
pub(crate) struct Timeline {
    storage: Storage,
    pub(crate) heads: Heads,
    pub(crate) events: Events,
    pub(crate) visibility: Visibility,
    pub(crate) policy_servers: PolicyServers,
    pub(super) clock: Clock,
    pub(crate) server_name: OwnedServerName,
    key: Arc<SigningKey>,
}

/// Why an event was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The server has no such room, or takes no part in it.
    #[error("the room is not known")]
    UnknownRoom,
    /// The rules of the room refuse it.
    #[error("the room does not allow it: {0}")]
    Refused(Rejection),
    /// There can be no such event.
    #[error(transparent)]
    Malformed(#[from] BuildError),
    /// The same transaction already made this event.
    #[error("the transaction was carried out before")]
    Repeated(OwnedEventId),
    /// The event that a redaction names is not in the room.
    #[error("there is no such event to redact")]
    NothingToRedact,
    /// A room cannot be replaced by itself.
    #[error("the room would be replaced by itself")]
    ReplacesItself,
    /// The sender has said the same of the same event already.
    #[error("the same annotation was made before")]
    DuplicateAnnotation,
    /// The event that a redaction names is in another room.
    #[error("the event to redact is in another room")]
    RedactsElsewhere,
    /// The event belongs to somebody else.
    #[error("the room does not allow to redact this event")]
    MayNotRedact,
    /// The policy server of the room does not recommend it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Others appended all the time.
    #[error("the room is too busy")]
    Busy,
    /// The state is not any more as it was when this was asked for.
    #[error("somebody else changed the same part of the state")]
    Overtaken,
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<AppendError> for SendError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Repeated(event_id) => Self::Repeated(event_id),
            AppendError::HeadMoved => Self::Busy,
            AppendError::Storage(error) => Self::Storage(error),
        }
    }
}

impl SendError {
    /// The errcode, and a sentence that may be shown.
    pub(crate) fn kind(&self) -> (ErrorKind, &'static str) {
        match self {
            Self::UnknownRoom => (ErrorKind::Forbidden, "You are not in this room"),
            Self::Refused(_) | Self::MayNotRedact => {
                (ErrorKind::Forbidden, "You are not allowed to do this here")
            }
            Self::Malformed(BuildError::TooLarge | BuildError::FieldTooLong(_)) => {
                (ErrorKind::TooLarge, "The event is too large")
            }
            Self::Malformed(_) => (ErrorKind::BadJson, "The event is not canonical JSON"),
            Self::ReplacesItself => (
                ErrorKind::InvalidParam,
                "A room cannot be replaced by itself",
            ),
            Self::RedactsElsewhere => (
                ErrorKind::InvalidParam,
                "The event to redact is in another room",
            ),
            Self::DuplicateAnnotation => (
                ErrorKind::DuplicateAnnotation,
                "You have said the same of this event already",
            ),
            Self::NothingToRedact => (ErrorKind::NotFound, "There is no such event"),
            Self::Policy(_) => (
                ErrorKind::Forbidden,
                "The policy server of the room does not recommend this",
            ),
            Self::Repeated(_) | Self::Busy | Self::Overtaken | Self::Storage(_) => {
                (ErrorKind::Unknown, "The server could not do this now")
            }
        }
    }
}

/// A part of the state of a room, as somebody wants it to be.
pub(crate) struct StatePart {
    pub(crate) event_type: StateEventType,
    pub(crate) state_key: String,
    pub(crate) content: Box<RawValue>,
    /// When it became so, if not now.
    pub(crate) origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
    /// The event that said before how it is, if it matters that no other one has done so since.
    pub(crate) instead_of: Option<OwnedEventId>,
}

impl StatePart {
    /// What is so from now on, whatever was so before.
    pub(crate) fn now(
        event_type: StateEventType,
        state_key: impl Into<String>,
        content: Box<RawValue>,
    ) -> Self {
        Self {
            event_type,
            state_key: state_key.into(),
            content,
            origin_server_ts: None,
            instead_of: None,
        }
    }
}

impl Timeline {
    pub(crate) fn new(
        storage: Storage,
        events: Events,
        policy_servers: PolicyServers,
        clock: Clock,
        server_name: OwnedServerName,
        key: Arc<SigningKey>,
    ) -> Self {
        let heads = Heads::new(storage.clone());
        let visibility = Visibility::new(storage.clone(), events.clone());
        Self {
            storage,
            heads,
            events,
            visibility,
            policy_servers,
            clock,
            server_name,
            key,
        }
    }

    /// Sends a message event
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid)).
    pub(crate) async fn send(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        mut template: Template,
        txn_id: &ruma::TransactionId,
    ) -> Result<OwnedEventId, SendError> {
        if template.event_type == TimelineEventType::RoomRedaction && template.redacts.is_none() {
            // A redaction can be sent like any event, in every room version.
            #[derive(serde::Deserialize)]
            struct Content {
                redacts: OwnedEventId,
            }
            let content = serde_json::from_str::<Content>(template.content.get());
            template.redacts = content.ok().map(|content| content.redacts);
        }
        let endpoint = format!("send/{}", template.event_type);
        let txn = Txn {
            scope: TxnScope::new(requester, &endpoint),
            id: txn_id.to_owned(),
        };
        if let Some(before) = self.annotation(&requester.user_id, &template).await? {
            // A client that asks again is told what it was told before.
            return if before.txn.as_ref() == Some(&txn) {
                Ok(before.pdu.event_id().to_owned())
            } else {
                Err(SendError::DuplicateAnnotation)
            };
        }
        let sent = self
            .append(&requester.user_id, room_id, template, Some(txn))
            .await;
        match sent {
            Err(SendError::Repeated(event_id)) => Ok(event_id),
            sent => sent,
        }
    }

    /// Sets a part of the state; what already is so is not said again
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey)).
    pub(crate) async fn set_state(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        part: StatePart,
    ) -> Result<OwnedEventId, SendError> {
        let StatePart {
            event_type,
            state_key,
            content,
            origin_server_ts,
            instead_of,
        } = part;
        let room = self.heads.room(room_id).await?;
        if let Some(head) = room.and_then(|room| room.head)
            && let Some((_, now)) = self
                .events
                .state_pdu(head.state, &event_type, &state_key)
                .await?
            && now.sender() == sender
            && same_json(now.content(), &content)
        {
            return Ok(now.event_id().to_owned());
        }
        let event_type = TimelineEventType::from(event_type.to_string());
        let template = Template {
            event_type,
            content,
            state_key: Some(state_key),
            redacts: None,
            origin_server_ts,
        };
        self.append_instead(sender, room_id, template, None, instead_of.as_deref())
            .await
    }

    /// The parts of a local user's profile that a membership event repeats.
    pub(crate) async fn profile(
        &self,
        user_id: &UserId,
    ) -> Result<Map<String, Value>, StorageError> {
        let fields = self
            .storage
            .read()
            .await?
            .accounts()
            .profile(user_id)
            .await?;
        let shown = fields
            .into_iter()
            .filter(|(field, _)| field == "displayname" || field == "avatar_url")
            .filter_map(|(field, value)| Some((field, serde_json::from_str(&value).ok()?)));
        Ok(shown.collect())
    }

    /// Builds, judges and appends one event of a local user.
    pub(crate) async fn append(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        template: Template,
        txn: Option<Txn>,
    ) -> Result<OwnedEventId, SendError> {
        self.append_instead(sender, room_id, template, txn, None)
            .await
    }

    /// [`Timeline::append`], if the state has still this event in the place of the new one.
    async fn append_instead(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        template: Template,
        txn: Option<Txn>,
        before: Option<&EventId>,
    ) -> Result<OwnedEventId, SendError> {
        for _ in 0..ATTEMPTS {
            let slot = self.heads.hold(room_id).await?;
            let room = slot.room().ok_or(SendError::UnknownRoom)?;
            let mut draft = Draft::of(room).ok_or(SendError::UnknownRoom)?;
            if before.is_some() && self.replaced(&draft, &template).await?.as_deref() != before {
                return Err(SendError::Overtaken);
            }
            let event_id = self
                .draft_event(&mut draft, sender, copy(&template), txn.clone())
                .await?;
            let Some(slot) = self.recommended(slot, &mut draft).await? else {
                continue;
            };
            if slot.append(draft.finish()?).await?.is_some() {
                return Ok(event_id);
            }
        }
        Err(SendError::Busy)
    }

    /// The event of the state that one on top of a draft would replace.
    async fn replaced(
        &self,
        draft: &Draft,
        template: &Template,
    ) -> Result<Option<OwnedEventId>, StorageError> {
        let Some(state_key) = &template.state_key else {
            return Ok(None);
        };
        let event_type = StateEventType::from(template.event_type.to_string());
        let found = self
            .events
            .state_pdu(draft.state(), &event_type, state_key)
            .await?;
        Ok(found.map(|(_, pdu)| pdu.event_id().to_owned()))
    }

    /// Has the events of a draft signed by the policy server of the room, if that has a say. Nobody waits for the
    /// room while another server thinks; `None` if it went on meanwhile.
    pub(crate) async fn recommended(
        &self,
        slot: Slot,
        draft: &mut Draft,
    ) -> Result<Option<Slot>, SendError> {
        let room = slot.room().ok_or(SendError::UnknownRoom)?;
        let Some(policy) = self.policy_servers.of(room).await? else {
            return Ok(Some(slot));
        };
        let (room_id, version) = (room.room_id.clone(), room.head_version);
        drop(slot);
        let rules = draft.rules()?;
        for event in draft.judged_mut() {
            let pdu = event.pdu();
            if !PolicyServer::judges(pdu) {
                continue;
            }
            match self.policy_servers.sign(&policy, pdu, &rules).await {
                Ok(signed) => event.sign(signed),
                // Nobody is kept in a room.
                Err(_)
                    if membership(pdu)
                        == Some((pdu.sender().to_owned(), MembershipState::Leave)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let slot = self.heads.hold(&room_id).await?;
        let same = slot.room().map(|room| room.head_version) == Some(version);
        Ok(same.then_some(slot))
    }
}

fn copy(template: &Template) -> Template {
    Template {
        event_type: template.event_type.clone(),
        content: template.content.clone(),
        state_key: template.state_key.clone(),
        redacts: template.redacts.clone(),
        origin_server_ts: template.origin_server_ts,
    }
}

fn same_json(a: &RawValue, b: &RawValue) -> bool {
    let parse = |json: &RawValue| serde_json::from_str::<Value>(json.get()).ok();
    parse(a) == parse(b)
}
