//! Events that another server is asked about before they are appended.

use ruma::{
    OwnedEventId, RoomId, RoomVersionId, UserId, events::StateEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use sotto_federation::room::{
    auth::{self, Verdict},
    builder::Template,
    pdu::Pdu,
    signing::Verified,
};

use super::{Draft, SendError, Timeline};
use crate::storage::{StorageError, state_map::NodeId};

/// An event on top of the head of a room, not appended yet.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) pdu: Pdu,
    pub(crate) version: RoomVersionId,
    pub(crate) rules: RoomVersionRules,
    /// The state before it.
    pub(crate) state: NodeId,
    /// The version of the head on which it stands.
    head_version: i64,
}

impl Timeline {
    /// Builds and judges an event, and leaves the room as it is.
    pub(crate) async fn propose(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        template: Template,
    ) -> Result<Proposal, SendError> {
        let room = self.heads.room(room_id).await?;
        let room = room.ok_or(SendError::UnknownRoom)?;
        let mut draft = Draft::of(&room).ok_or(SendError::UnknownRoom)?;
        let (rules, state) = (draft.rules()?, draft.state());
        self.draft_event(&mut draft, sender, template, None).await?;
        let pdu = draft.newest().ok_or(SendError::UnknownRoom)?.clone();
        Ok(Proposal {
            pdu,
            version: room.version,
            rules,
            state,
            head_version: room.head_version,
        })
    }

    /// Whether the rules of a room let a local user set a part of its state.
    pub(crate) async fn may_set_state(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_type: &StateEventType,
    ) -> Result<bool, StorageError> {
        let template = Template {
            event_type: event_type.to_string().into(),
            content: RawValue::from_string("{}".to_owned()).unwrap_or_default(),
            state_key: Some(String::new()),
            redacts: None,
            origin_server_ts: None,
        };
        match self.propose(user_id, room_id, template).await {
            Ok(_) => Ok(true),
            Err(SendError::Storage(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Appends a proposed event, which has got signatures meanwhile. `None` if the room went on, so that
    /// it has to be proposed again.
    pub(crate) async fn carry_out(
        &self,
        room_id: &RoomId,
        proposal: Proposal,
        signed: Verified,
    ) -> Result<Option<OwnedEventId>, SendError> {
        let mut signed = signed;
        if let Some(room) = self.heads.room(room_id).await?
            && let Some(policy) = self.policy_servers.of(&room).await?
        {
            let (pdu, rules) = (signed.pdu(), &proposal.rules);
            signed = self.policy_servers.sign(&policy, pdu, rules).await?;
        }
        let slot = self.heads.hold(room_id).await?;
        let Some(room) = slot
            .room()
            .filter(|r| r.head_version == proposal.head_version)
        else {
            return Ok(None);
        };
        let mut draft = Draft::of(room).ok_or(SendError::UnknownRoom)?;
        let (pdu, rules) = (signed.pdu(), &proposal.rules);
        let template = Template {
            event_type: pdu.event_type().clone(),
            content: pdu.content().to_owned(),
            state_key: pdu.state_key().map(ToOwned::to_owned),
            redacts: None,
            origin_server_ts: None,
        };
        let auth = self
            .auth_state(draft.state(), pdu.sender(), &template, rules)
            .await?;
        let part = |event_type: &StateEventType, state_key: &str| {
            auth.get(&(event_type.clone(), state_key.to_owned()))
                .cloned()
        };
        let judged = auth::judge_own(signed, part, rules);
        if let Verdict::SoftFailed(why) | Verdict::Rejected(why) = judged.verdict() {
            return Err(SendError::Refused(why.clone()));
        }
        let event_id = judged.pdu().event_id().to_owned();
        self.place(&mut draft, judged, None).await?;
        Ok(slot.append(draft.finish()?).await?.map(|_| event_id))
    }
}
