//! Knocking at a room that only other servers know
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#knocking-upon-a-room)).

use ruma::{
    OwnedServerName, ServerName,
    api::federation::membership::{
        RawStrippedState, create_knock_event::v1 as create_knock_event,
        prepare_knock_event::v1 as prepare_knock_event,
    },
    events::room::member::MembershipState,
};
use serde_json::value::RawValue;
use sotto_federation::room::{
    builder::{MembershipTemplate, RemoteMembership, from_make_response},
    version,
};

use super::{Remote, RemoteError, content, join::Wish};
use crate::service::outside::{Outside, stripped};

impl Remote {
    /// Knocks through the first server that helps.
    pub(in crate::service::membership) async fn knock(
        &self,
        wish: Wish<'_>,
        via: Vec<OwnedServerName>,
    ) -> Result<(), RemoteError> {
        let mut last = RemoteError::NoServer;
        for server in self.candidates(wish.user_id, wish.room_id, via).await? {
            match self.knock_through(&server, &wish).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::info!(%server, room_id = %wish.room_id, %error, "a knock failed");
                    if error.is_final() {
                        return Err(error);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn knock_through(&self, server: &ServerName, wish: &Wish<'_>) -> Result<(), RemoteError> {
        let (room_id, user_id) = (wish.room_id, wish.user_id);
        let mut request = prepare_knock_event::Request::new(room_id.to_owned(), user_id.to_owned());
        request.ver = version::supported().collect();
        let made = self.federation.send(server, request).await?;
        let version = made.room_version;
        let rules = version::rules(&version)
            .filter(|rules| rules.authorization.knocking)
            .ok_or_else(|| RemoteError::UnsupportedVersion(version.clone()))?;
        let known = self.timeline.heads.room(room_id).await?;
        Self::check_version(known.as_ref(), &version)?;
        let template = MembershipTemplate {
            room_id,
            user_id,
            membership: RemoteMembership::Knock,
            content: content(wish.profile.clone(), wish.reason.as_deref())?,
        };
        let (now, own) = (self.clock.now(), self.federation.server_name());
        let knock = from_make_response(template, &made.event, now, &rules, own, &self.key)?;
        let pdu = knock.pdu();
        let (event_id, json) = (pdu.event_id().to_owned(), pdu.json().to_owned());
        let request = create_knock_event::Request::new(room_id.to_owned(), event_id, json);
        let answer = self.federation.send(server, request).await?;
        let told: Vec<_> = answer
            .knock_room_state
            .into_iter()
            .filter_map(json_of)
            .collect();
        let knocking = Outside {
            user_id,
            room_id,
            version: &version,
            membership: MembershipState::Knock,
            event_id: pdu.event_id(),
            stripped: stripped(pdu, &told),
        };
        Ok(knocking.keep(&self.storage, &self.timeline.heads).await?)
    }
}

fn json_of(state: RawStrippedState) -> Option<Box<RawValue>> {
    #[expect(
        deprecated,
        reason = "servers that do not know of full events yet send stripped ones"
    )]
    match state {
        RawStrippedState::Pdu(pdu) => Some(pdu),
        RawStrippedState::Stripped(stripped) => Some(stripped.into_json()),
        _ => None,
    }
}
