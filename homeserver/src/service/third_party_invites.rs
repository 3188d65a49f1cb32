//! Invites by e-mail address or telephone number, once an identity server knows whose it is
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#third-party-invites)).

use ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId,
    api::federation::thirdparty::exchange_invite::v1 as exchange_invite,
    events::{StateEventType, TimelineEventType, room::member::RoomMemberEventContent},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
use sotto_federation::{
    client::ClientError,
    room::builder::{BuildError, Template},
};

use super::{
    federation::Federation,
    membership::{Membership, MembershipError},
    timeline::{SendError, Timeline},
};
use crate::storage::StorageError;

/// The most invites that one address is told of at once.
const MOST_INVITES: usize = 100;

/// Turns invites of addresses into invites of users.
#[derive(Clone)]
pub(crate) struct ThirdPartyInvites {
    timeline: Timeline,
    membership: Membership,
    federation: Federation,
}

/// What an identity server signed: this user has the address to which this token was sent.
#[derive(Clone, Deserialize)]
pub(crate) struct Signed {
    mxid: OwnedUserId,
    token: String,
    signatures: Value,
}

/// An invite of an address that is known to be a user's.
#[derive(Deserialize)]
pub(crate) struct Bound {
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    signed: Signed,
}

/// Why there is no invite.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThirdPartyInviteError {
    /// The room has no such invite, or the user who made it is not of this server.
    #[error("there is no such invite")]
    NoSuchInvite,
    /// The asking server speaks for a user of another.
    #[error("the user belongs to another server")]
    ForeignUser,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ThirdPartyInvites {
    pub(crate) fn new(timeline: Timeline, membership: Membership, federation: Federation) -> Self {
        Self {
            timeline,
            membership,
            federation,
        }
    }

    /// A server whose user was invited asks for the invite
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid)).
    pub(crate) async fn exchange(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        target: &UserId,
        signed: &Signed,
    ) -> Result<(), ThirdPartyInviteError> {
        if target.server_name() != origin || signed.mxid != target {
            return Err(ThirdPartyInviteError::ForeignUser);
        }
        self.invite(room_id, signed).await
    }

    /// An identity server says whose an address is
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv13pidonbind)). What it says is
    /// believed only as far as the rooms do, which have its public key.
    pub(crate) async fn bound(
        &self,
        user_id: &UserId,
        invites: Vec<Bound>,
    ) -> Result<(), ThirdPartyInviteError> {
        let own: &OwnedServerName = &self.timeline.server_name;
        if user_id.server_name() != own {
            return Err(ThirdPartyInviteError::ForeignUser);
        }
        for bound in invites.into_iter().take(MOST_INVITES) {
            let is_ours = bound.sender.server_name() == own;
            let done = if bound.signed.mxid != user_id {
                Err(ThirdPartyInviteError::ForeignUser)
            } else if is_ours {
                self.invite(&bound.room_id, &bound.signed).await
            } else {
                self.ask(&bound).await
            };
            if let Err(error) = done {
                tracing::info!(room_id = %bound.room_id, %error, "an address was not invited");
            }
        }
        Ok(())
    }

    /// Asks the server of whoever invited the address.
    async fn ask(&self, bound: &Bound) -> Result<(), ThirdPartyInviteError> {
        let content = json!({
            "membership": "invite",
            "third_party_invite": { "display_name": "", "signed": bound.signed.json() },
        });
        let unsendable = |_| ClientError::Unsendable;
        let content =
            Raw::<RoomMemberEventContent>::from_json(to_raw_value(&content).map_err(unsendable)?);
        let (room_id, target) = (bound.room_id.clone(), bound.signed.mxid.clone());
        let request = exchange_invite::Request::new(room_id, bound.sender.clone(), target, content);
        let server = bound.sender.server_name();
        self.federation.send(server, request).await?;
        Ok(())
    }

    /// Invites the user in the name of whoever invited the address. The event is made here, of nothing but
    /// what the identity server signed; the rules of the room check that signature.
    async fn invite(&self, room_id: &RoomId, signed: &Signed) -> Result<(), ThirdPartyInviteError> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(default)]
            display_name: String,
        }
        let room = self.timeline.heads.room(room_id).await?;
        let head = room.and_then(|room| room.head);
        let head = head.ok_or(ThirdPartyInviteError::NoSuchInvite)?;
        let kind = StateEventType::RoomThirdPartyInvite;
        let events = &self.timeline.events;
        let invite = events.state_pdu(head.state, &kind, &signed.token).await?;
        let (_, invite) = invite.ok_or(ThirdPartyInviteError::NoSuchInvite)?;
        let sender = invite.sender();
        if sender.server_name() != self.timeline.server_name {
            return Err(ThirdPartyInviteError::NoSuchInvite);
        }
        let name = invite.content_as::<Content>();
        let name = name.map(|content| content.display_name).unwrap_or_default();
        let mut content = Map::new();
        if signed.mxid.server_name() == self.timeline.server_name {
            content.extend(self.timeline.profile(&signed.mxid).await?);
        }
        content.insert("membership".to_owned(), json!("invite"));
        let third_party = json!({ "display_name": name, "signed": signed.json() });
        content.insert("third_party_invite".to_owned(), third_party);
        let content = to_raw_value(&content)
            .map_err(|_| SendError::from(BuildError::NotCanonical))
            .map_err(MembershipError::from)?;
        let template = || template(&signed.mxid, content.clone());
        let membership = &self.membership;
        membership
            .invite_with(sender, &signed.mxid, room_id, template)
            .await?;
        Ok(())
    }
}

impl Signed {
    fn json(&self) -> Value {
        json!({ "mxid": self.mxid, "token": self.token, "signatures": self.signatures })
    }
}

fn template(target: &UserId, content: Box<RawValue>) -> Template {
    Template {
        event_type: TimelineEventType::RoomMember,
        content,
        state_key: Some(target.to_string()),
        redacts: None,
    }
}
