//! Inviting users of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room)).

use std::collections::BTreeMap;

use ruma::{
    OwnedEventId, RoomId, ServerName, UserId,
    api::{
        error::ErrorKind,
        federation::membership::{RawStrippedState, create_invite::v2 as create_invite},
    },
    events::StateEventType,
};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use sotto_federation::{
    client::{ClientError, Limits},
    room::{
        builder::{Hashes, Template},
        pdu::Pdu,
        signing,
    },
};

use super::{Remote, RemoteError, as_before};
use crate::{
    service::timeline::{Proposal, SendError},
    storage::StorageError,
};

/// How often an invite is made again because the room went on meanwhile.
const ATTEMPTS: usize = 5;

/// What tells the invited user which room it is
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#stripped-state)).
const TELLING: [StateEventType; 7] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
];

impl Remote {
    /// Invites a user: the user's server signs the invite before it becomes part of the room.
    pub(in crate::service::membership) async fn invite(
        &self,
        sender: &UserId,
        target: &UserId,
        room_id: &RoomId,
        template: impl Fn() -> Template,
    ) -> Result<OwnedEventId, RemoteError> {
        for _ in 0..ATTEMPTS {
            let proposal = self.timeline.propose(sender, room_id, template()).await?;
            let signed = self.ask(target.server_name(), sender, &proposal).await?;
            if let Some(event_id) = self.timeline.carry_out(room_id, proposal, signed).await? {
                return Ok(event_id);
            }
        }
        Err(SendError::Busy.into())
    }

    async fn ask(
        &self,
        server: &ServerName,
        sender: &UserId,
        proposal: &Proposal,
    ) -> Result<signing::Verified, RemoteError> {
        let pdu = &proposal.pdu;
        let request = create_invite::Request::new(
            pdu.room_id().to_owned(),
            pdu.event_id().to_owned(),
            proposal.version.clone(),
            pdu.json().to_owned(),
            self.telling(sender, proposal).await?,
        );
        let room_state = request.invite_room_state.clone();
        let event = match self.federation.send(server, request).await {
            Ok(answer) => Some(answer.event),
            Err(error) if Hashes::needed(&proposal.rules) && error.is_unknown_endpoint() => None,
            Err(error) if does_not_know_version(&error) => {
                return Err(RemoteError::UnsupportedVersion(proposal.version.clone()));
            }
            Err(error) => return Err(error.into()),
        };
        let event = match event {
            Some(event) => event,
            None => self.ask_as_before(server, pdu, room_state).await?,
        };
        let answer = Pdu::parse(&event, &proposal.rules)?;
        let required = signing::keys_of_countersigner(&answer, server)?;
        let keys = self.server_keys.key_map(&required, &[]).await?;
        Ok(signing::verify_countersigned(
            pdu,
            answer,
            server,
            &keys,
            &proposal.rules,
        )?)
    }

    /// As [`Remote::ask`], of a server that knows the first room versions only
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1inviteroomideventid)).
    async fn ask_as_before(
        &self,
        server: &ServerName,
        pdu: &Pdu,
        room_state: Vec<RawStrippedState>,
    ) -> Result<Box<RawValue>, RemoteError> {
        #[derive(Deserialize)]
        struct Answer {
            event: Box<RawValue>,
        }
        let unsigned = to_raw_value(&BTreeMap::from([("invite_room_state", room_state)]));
        let unsigned = unsigned.map_err(|_| ClientError::Unsendable)?;
        let (place, limits) = (as_before::Place::Invite, Limits::default());
        let answer: Answer = self
            .send_as_before(server, place, pdu, Some(unsigned), limits)
            .await?;
        Ok(answer.event)
    }

    /// The parts of the state that the invited user's server is told, as full events.
    async fn telling(
        &self,
        sender: &UserId,
        proposal: &Proposal,
    ) -> Result<Vec<RawStrippedState>, StorageError> {
        let inviter = (StateEventType::RoomMember, sender.as_str());
        let keys = TELLING.into_iter().map(|event_type| (event_type, ""));
        let mut found = Vec::new();
        for (event_type, state_key) in keys.chain([inviter]) {
            let events = &self.timeline.events;
            let part = events
                .state_pdu(proposal.state, &event_type, state_key)
                .await?;
            found.extend(part.map(|(_, pdu)| RawStrippedState::Pdu(pdu.json().to_owned())));
        }
        Ok(found)
    }
}

fn does_not_know_version(error: &ClientError) -> bool {
    let kind = error.matrix().and_then(|error| error.error_kind());
    matches!(kind, Some(ErrorKind::IncompatibleRoomVersion(_)))
}
