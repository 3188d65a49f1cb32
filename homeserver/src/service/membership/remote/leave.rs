//! Leaving a room that only other servers know, or declining to enter it
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites)).

use ruma::{
    RoomId, RoomVersionId, ServerName, UserId,
    api::federation::membership::{
        create_leave_event::v2 as create_leave_event,
        prepare_leave_event::v1 as prepare_leave_event,
    },
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::de::IgnoredAny;
use serde_json::{Map, value::to_raw_value};
use sotto_federation::{
    client::Limits,
    room::{
        builder::{
            self, Basis, BuildError, Hashes, MembershipTemplate, RemoteMembership, Template,
            from_make_response,
        },
        pdu::Pdu,
        version,
    },
};

use super::{Remote, RemoteError, as_before, content};
use crate::{
    service::outside::let_out,
    storage::{StorageError, rooms::Room},
};

impl Remote {
    /// Tells a server of the room, and lets the user out in any case: nobody is kept in a room because
    /// its server is gone. Whether there was something to leave.
    pub(in crate::service::membership) async fn leave(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        reason: Option<&str>,
    ) -> Result<bool, StorageError> {
        let place = self.storage.log().roster().place(user_id, room_id);
        let place = place.filter(|place| {
            matches!(
                place.membership,
                MembershipState::Invite | MembershipState::Knock | MembershipState::Join
            )
        });
        let Some(place) = place else {
            return Ok(false);
        };
        let mut leave = None;
        for server in self.candidates(user_id, room_id, Vec::new()).await? {
            match self.leave_through(&server, user_id, room_id, reason).await {
                Ok(told) => {
                    leave = Some(told);
                    break;
                }
                Err(error) => {
                    tracing::info!(%server, %room_id, %error, "a server was not told of a leave");
                }
            }
        }
        // What the user was to the room ends here, whatever others say.
        if let Some(room) = self.timeline.heads.room(room_id).await? {
            let leave = leave.or_else(|| self.leave_alone(user_id, &room, reason).ok());
            let_out(&self.storage, &room, user_id, place, leave.as_ref()).await?;
        }
        Ok(true)
    }

    /// The leave of which no server wants to hear. It is made for the user's own clients, and stands nowhere.
    fn leave_alone(
        &self,
        user_id: &UserId,
        room: &Room,
        reason: Option<&str>,
    ) -> Result<Pdu, BuildError> {
        let rules = version::rules(&room.version).ok_or(BuildError::UnsupportedRoomVersion)?;
        let mut said = content(Map::new(), reason)?;
        said.insert("membership".to_owned(), "leave".into());
        let template = Template {
            event_type: TimelineEventType::RoomMember,
            content: to_raw_value(&said).map_err(|_| BuildError::NotCanonical)?,
            state_key: Some(user_id.to_string()),
            redacts: None,
            origin_server_ts: None,
        };
        let nowhere = Basis {
            room_id: Some(room.room_id.clone()),
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            hashes: Hashes::default(),
            depth: 1,
        };
        let (now, own) = (self.clock.now(), self.federation.server_name());
        let leave = builder::build(template, &nowhere, user_id, now, &rules, own, &self.key)?;
        Ok(leave.pdu().clone())
    }

    async fn leave_through(
        &self,
        server: &ServerName,
        user_id: &UserId,
        room_id: &RoomId,
        reason: Option<&str>,
    ) -> Result<Pdu, RemoteError> {
        let request = prepare_leave_event::Request::new(room_id.to_owned(), user_id.to_owned());
        let made = self.federation.send(server, request).await?;
        let version = made.room_version.unwrap_or(RoomVersionId::V1);
        let rules = version::rules(&version)
            .ok_or_else(|| RemoteError::UnsupportedVersion(version.clone()))?;
        let known = self.timeline.heads.room(room_id).await?;
        Self::check_version(known.as_ref(), &version)?;
        let template = MembershipTemplate {
            room_id,
            user_id,
            membership: RemoteMembership::Leave,
            content: content(Map::new(), reason)?,
        };
        let (now, own) = (self.clock.now(), self.federation.server_name());
        let leave = from_make_response(template, &made.event, now, &rules, own, &self.key)?;
        let event_id = leave.pdu().event_id().to_owned();
        let json = leave.pdu().json().to_owned();
        let request = create_leave_event::Request::new(room_id.to_owned(), event_id, json);
        match self.federation.send(server, request).await {
            Ok(_) => return Ok(leave.pdu().clone()),
            Err(error) if error.is_unknown_endpoint() => {}
            Err(error) => return Err(error.into()),
        }
        let (place, limits) = (as_before::Place::SendLeave, Limits::default());
        self.send_as_before::<IgnoredAny>(server, place, leave.pdu(), None, limits)
            .await?;
        Ok(leave.pdu().clone())
    }
}
