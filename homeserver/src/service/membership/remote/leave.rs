//! Leaving a room that only other servers know, or declining to enter it
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites)).

use ruma::{
    RoomId, RoomVersionId, ServerName, UserId,
    api::federation::membership::{
        create_leave_event::v2 as create_leave_event,
        prepare_leave_event::v1 as prepare_leave_event,
    },
    events::room::member::MembershipState,
};
use serde::de::IgnoredAny;
use serde_json::Map;
use sotto_federation::{
    client::Limits,
    room::{
        builder::{MembershipTemplate, RemoteMembership, from_make_response},
        version,
    },
};

use super::{Remote, RemoteError, as_before, content};
use crate::{service::outside::let_out, storage::StorageError};

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
        for server in self.candidates(user_id, room_id, Vec::new()).await? {
            match self.leave_through(&server, user_id, room_id, reason).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::info!(%server, %room_id, %error, "a server was not told of a leave");
                }
            }
        }
        // What the user was to the room ends here, whatever others say.
        if let Some(room) = self.timeline.heads.room(room_id).await? {
            let_out(&self.storage, &room, user_id, place).await?;
        }
        Ok(true)
    }

    async fn leave_through(
        &self,
        server: &ServerName,
        user_id: &UserId,
        room_id: &RoomId,
        reason: Option<&str>,
    ) -> Result<(), RemoteError> {
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
            Ok(_) => return Ok(()),
            Err(error) if error.is_unknown_endpoint() => {}
            Err(error) => return Err(error.into()),
        }
        let (place, limits) = (as_before::Place::SendLeave, Limits::default());
        self.send_as_before::<IgnoredAny>(server, place, leave.pdu(), None, limits)
            .await?;
        Ok(())
    }
}
