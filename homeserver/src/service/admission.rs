//! Users of other servers who come into rooms of ours, leave them or knock, and invites of ours to rooms of
//! others ([spec](https://spec.matrix.org/v1.19/server-server-api/#joining-rooms)).
//!
//! What we sign for another server is only what [`sotto_federation::room::builder::countersign`] lets
//! through: an invite of a user of ours, and a join that a user of ours opens.

mod invite;
mod told_state;
mod welcome;

pub(crate) use self::{invite::Invite, welcome::Members};
use std::sync::Arc;

use ruma::{
    EventId, OwnedEventId, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use sotto_federation::room::{
    auth::auth_types,
    builder::{CountersignError, Expected, Hashes, Template, countersign, references},
    pdu::{Pdu, PduError, Unverified},
    signing::SigningKey,
    version,
};

use super::{
    doors::{DoorError, Doors},
    incoming::{Errand, Incoming, Refused},
    shared_history::{ShareError, SharedHistory},
    timeline::{SendError, Timeline, membership},
};
use crate::{
    clock::Clock,
    storage::{Storage, StorageError, events::StoredEvent, rooms::Room},
};

/// What somebody outside of a room may know of it.
const STRIPPED: [StateEventType; 6] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
];

/// Lets users of other servers in and out.
#[derive(Clone)]
pub(crate) struct Admission(Arc<Parts>);

/// What [`Admission`] is made of.
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) timeline: Timeline,
    pub(crate) doors: Doors,
    pub(crate) history: SharedHistory,
    pub(crate) incoming: Incoming,
    pub(crate) clock: Clock,
    pub(crate) key: Arc<SigningKey>,
}

/// Why somebody does not get in, or out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    /// The asking server speaks for a user of another.
    #[error("the user belongs to another server")]
    ForeignUser,
    /// The event is not what the path of the request says.
    #[error("the event is not the one that the request is about")]
    OtherEvent,
    /// The asking server does not know the version of the room.
    #[error("the room has the version {0}")]
    IncompatibleVersion(RoomVersionId),
    /// The user may not do this.
    #[error("the room does not allow it")]
    Forbidden,
    /// Whether the user may join depends on rooms that are not known here.
    #[error("this server cannot tell whether the user may join")]
    UnableToAuthorize,
    /// The user may join, but nobody here can open the room.
    #[error("this server cannot let the user join")]
    UnableToGrant,
    /// There is no such user here.
    #[error("there is no such user")]
    UnknownUser,
    /// The invited user wants no invites.
    #[error("the user wants no invites")]
    InviteBlocked,
    /// What is told of the room to which somebody is invited is not about it.
    #[error("the state that came with the invite is not that of the room")]
    RoomState,
    /// The event is malformed or wrongly signed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The event is not one to be signed by us.
    #[error(transparent)]
    Countersign(#[from] CountersignError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<PduError> for AdmissionError {
    fn from(error: PduError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<DoorError> for AdmissionError {
    fn from(error: DoorError) -> Self {
        match error {
            DoorError::Forbidden => Self::Forbidden,
            DoorError::UnableToAuthorize => Self::UnableToAuthorize,
            DoorError::UnableToGrant => Self::UnableToGrant,
            DoorError::Storage(error) => Self::Storage(error),
        }
    }
}

impl From<SendError> for AdmissionError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Storage(error) => Self::Storage(error),
            _ => Self::Forbidden,
        }
    }
}

/// Who asks to become what.
pub(crate) struct Asked<'a> {
    pub(crate) origin: &'a ServerName,
    pub(crate) room_id: &'a RoomId,
    pub(crate) user_id: &'a UserId,
    pub(crate) membership: MembershipState,
}

/// An event that another server signed, for a room of ours.
pub(crate) struct Signed<'a> {
    pub(crate) origin: &'a ServerName,
    pub(crate) room_id: &'a RoomId,
    pub(crate) event_id: &'a EventId,
    pub(crate) pdu: &'a RawValue,
    pub(crate) membership: MembershipState,
}

impl Admission {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// An event for the other server to sign. `versions` are those that it knows; `None` if it did not
    /// have to say.
    pub(crate) async fn make(
        &self,
        asked: Asked<'_>,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<(RoomVersionId, Box<RawValue>), AdmissionError> {
        if asked.user_id.server_name() != asked.origin {
            return Err(AdmissionError::ForeignUser);
        }
        let room = self.open(asked.origin, asked.room_id).await?;
        if versions.is_some_and(|versions| !versions.contains(&room.version)) {
            return Err(AdmissionError::IncompatibleVersion(room.version));
        }
        let rules = rules(&room)?;
        let authorizer = self.check(&room, &rules, &asked).await?;
        let mut content = json!({ "membership": asked.membership });
        if let Some(user_id) = authorizer {
            content["join_authorised_via_users_server"] = json!(user_id);
        }
        let template = Template {
            event_type: TimelineEventType::RoomMember,
            content: to_raw_value(&content).map_err(|_| AdmissionError::Forbidden)?,
            state_key: Some(asked.user_id.to_string()),
            redacts: None,
            origin_server_ts: None,
        };
        let event = self.outline(&room, &rules, &asked, &template).await?;
        Ok((room.version, event))
    }

    /// A room of which we know who is in it.
    async fn open(&self, origin: &ServerName, room_id: &RoomId) -> Result<Room, ShareError> {
        let room = self.0.history.open(origin, room_id).await?;
        if room.partial {
            return Err(ShareError::Partial);
        }
        Ok(room)
    }

    /// The event without what the other server adds.
    async fn outline(
        &self,
        room: &Room,
        rules: &RoomVersionRules,
        asked: &Asked<'_>,
        template: &Template,
    ) -> Result<Box<RawValue>, AdmissionError> {
        let head = room.head.as_ref().ok_or(ShareError::UnknownRoom)?;
        let user_id = asked.user_id;
        let timeline = &self.0.timeline;
        let auth = timeline
            .auth_state(head.state, user_id, template, rules)
            .await?;
        let (event_type, state_key) = (&template.event_type, template.state_key.as_deref());
        let types = auth_types(event_type, user_id, state_key, &template.content, rules);
        let types = types.map_err(|_| AdmissionError::Forbidden)?;
        let auth_events: Vec<_> = types
            .iter()
            .filter_map(|key| auth.get(key))
            .map(|pdu| pdu.event_id().to_owned())
            .collect();
        let prev_events: Vec<_> = head.extremities.iter().take(20).cloned().collect();
        let mut hashes = Hashes::default();
        if Hashes::needed(rules) {
            let before = timeline.extremities(&prev_events).await?;
            for pdu in before.iter().map(|e| &e.pdu).chain(auth.values()) {
                hashes.add(pdu, rules).map_err(SendError::from)?;
            }
        }
        let named =
            |events: &[OwnedEventId]| references(events, &hashes, rules).map_err(SendError::from);
        let (prev_events, auth_events) = (named(&prev_events)?, named(&auth_events)?);
        let event = json!({
            "auth_events": auth_events,
            "content": template.content,
            "depth": head.depth.saturating_add(1),
            "origin_server_ts": self.0.clock.now(),
            "prev_events": prev_events,
            "room_id": room.room_id,
            "sender": user_id,
            "state_key": user_id,
            "type": event_type,
        });
        to_raw_value(&event).map_err(|_| AdmissionError::Forbidden)
    }

    /// Whether the user may become that; for a restricted room, by whom of ours.
    async fn check(
        &self,
        room: &Room,
        rules: &RoomVersionRules,
        asked: &Asked<'_>,
    ) -> Result<Option<OwnedUserId>, AdmissionError> {
        let now = self.membership(room, asked.user_id).await?;
        match (&asked.membership, now) {
            (_, MembershipState::Ban) => Err(AdmissionError::Forbidden),
            (MembershipState::Join, MembershipState::Join | MembershipState::Invite)
            | (
                MembershipState::Leave,
                MembershipState::Join | MembershipState::Invite | MembershipState::Knock,
            ) => Ok(None),
            (MembershipState::Join, _) => {
                let doors = &self.0.doors;
                Ok(doors.may_join(room, rules, asked.user_id).await?)
            }
            (MembershipState::Knock, MembershipState::Leave | MembershipState::Knock) => {
                self.0.doors.may_knock(room, rules).await?;
                Ok(None)
            }
            _ => Err(AdmissionError::Forbidden),
        }
    }

    /// Takes in a membership event that another server signed, and gives back how it is stored.
    pub(crate) async fn send(
        &self,
        signed: Signed<'_>,
    ) -> Result<Arc<StoredEvent>, AdmissionError> {
        let room = self.open(signed.origin, signed.room_id).await?;
        let rules = rules(&room)?;
        let parsed = Pdu::parse(signed.pdu, &rules)?;
        let user_id = check_event(&parsed, &signed)?;
        let json = if self.authorizer(&parsed).is_none() {
            signed.pdu.to_owned()
        } else {
            let asked = Asked {
                origin: signed.origin,
                room_id: signed.room_id,
                user_id: &user_id,
                membership: signed.membership.clone(),
            };
            self.check(&room, &rules, &asked).await?;
            self.sign_join(parsed, &signed, &rules).await?
        };
        let incoming = &self.0.incoming;
        let errand = Errand::HandedIn(signed.event_id);
        let mut outcomes = incoming
            .receive_in_room(signed.origin, signed.room_id, &[&json], errand)
            .await;
        match outcomes.remove(signed.event_id) {
            Some(Ok(())) => {}
            Some(Err(Refused::Rejected(_))) | None => return Err(AdmissionError::Forbidden),
            Some(Err(refused)) => return Err(refused.into()),
        }
        let stored = self.0.timeline.events.by_id(signed.event_id).await?;
        let accepted = stored.filter(|event| event.is_accepted() && event.state.is_some());
        accepted.ok_or(AdmissionError::Forbidden)
    }

    /// What those may know who are not in the room yet
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#stripped-state)).
    pub(crate) async fn shown_to_outsiders(
        &self,
        knock: &StoredEvent,
    ) -> Result<Vec<Box<RawValue>>, AdmissionError> {
        let state = knock.state.ok_or(AdmissionError::Forbidden)?;
        let mut shown = Vec::new();
        for event_type in STRIPPED {
            let events = &self.0.timeline.events;
            let event = events.state_event(state.before, &event_type, "").await?;
            shown.extend(event.map(|event| event.pdu.json().to_owned()));
        }
        Ok(shown)
    }

    /// Signs the join of somebody to whom a user of ours opens the room.
    async fn sign_join(
        &self,
        parsed: Unverified,
        signed: &Signed<'_>,
        rules: &RoomVersionRules,
    ) -> Result<Box<RawValue>, AdmissionError> {
        let expected = Expected::RestrictedJoin {
            event_id: signed.event_id,
            room_id: signed.room_id,
            origin: signed.origin,
        };
        let us = &self.0.timeline.server_name;
        let countersigned = countersign(parsed, expected, rules, us, &self.0.key)?;
        Ok(self.verified(countersigned, rules).await?.json().to_owned())
    }

    async fn verified(
        &self,
        event: Unverified,
        rules: &RoomVersionRules,
    ) -> Result<Pdu, AdmissionError> {
        let mut verified = self.0.incoming.verify(vec![event], rules).await;
        let (_, verified) = verified.pop().ok_or(AdmissionError::Forbidden)?;
        Ok(verified?)
    }

    /// The user of ours who opens the room, as a join says.
    fn authorizer(&self, event: &Unverified) -> Option<OwnedUserId> {
        #[derive(serde::Deserialize)]
        struct Content {
            join_authorised_via_users_server: OwnedUserId,
        }
        let content = event.content_as::<Content>().ok()?;
        let user_id = content.join_authorised_via_users_server;
        (user_id.server_name() == self.0.timeline.server_name).then_some(user_id)
    }

    async fn membership(
        &self,
        room: &Room,
        user_id: &UserId,
    ) -> Result<MembershipState, AdmissionError> {
        let member = self
            .state(room, StateEventType::RoomMember, user_id.as_str())
            .await?;
        let is = member.and_then(|pdu| membership(&pdu));
        Ok(is.map_or(MembershipState::Leave, |(_, is)| is))
    }

    async fn state(
        &self,
        room: &Room,
        event_type: StateEventType,
        state_key: &str,
    ) -> Result<Option<Arc<Pdu>>, AdmissionError> {
        let head = room.head.as_ref().ok_or(ShareError::UnknownRoom)?;
        let events = &self.0.timeline.events;
        let found = events.state_pdu(head.state, &event_type, state_key).await?;
        Ok(found.map(|(_, pdu)| pdu))
    }
}

fn rules(room: &Room) -> Result<RoomVersionRules, AdmissionError> {
    version::rules(&room.version)
        .ok_or_else(|| AdmissionError::IncompatibleVersion(room.version.clone()))
}

/// That an event is what the request is about; whose membership it is.
fn check_event(event: &Unverified, signed: &Signed<'_>) -> Result<OwnedUserId, AdmissionError> {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    let is: Option<Content> = event.content_as().ok();
    let right = event.event_id() == signed.event_id
        && event.room_id() == signed.room_id
        && *event.event_type() == TimelineEventType::RoomMember
        && event.state_key() == Some(event.sender().as_str())
        && is.is_some_and(|is| is.membership == signed.membership);
    if !right {
        return Err(AdmissionError::OtherEvent);
    }
    if event.sender().server_name() != signed.origin {
        return Err(AdmissionError::ForeignUser);
    }
    Ok(event.sender().to_owned())
}
