//! Invites by e-mail address or telephone number: of users, where an identity server knows whose it is, and
//! otherwise of whoever will show that it is theirs
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#third-party-invites)).

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId,
    api::federation::thirdparty::exchange_invite::v1 as exchange_invite,
    events::{
        StateEventType, TimelineEventType,
        room::member::{MembershipState, RoomMemberEventContent},
    },
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
    e2e_keys::verify,
    federation::Federation,
    identity::{Identity, IdentityError, InviteKey, Invitee},
    membership::{Change, Membership, MembershipError},
    timeline::{SendError, StatePart, Timeline},
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
    identity: Identity,
}

/// What an identity server signed: this user has the address to which this token was sent.
#[derive(Clone, Deserialize)]
pub(crate) struct Signed {
    mxid: OwnedUserId,
    token: String,
    signatures: Value,
    /// What else it signed.
    #[serde(flatten)]
    more: Map<String, Value>,
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
    /// The identity server has revoked the key with which the invite is signed.
    #[error("the signature of the invite does not count any more")]
    Revoked,
    /// The asking server speaks for a user of another.
    #[error("the user belongs to another server")]
    ForeignUser,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ThirdPartyInvites {
    pub(crate) fn new(
        timeline: Timeline,
        membership: Membership,
        federation: Federation,
        identity: Identity,
    ) -> Self {
        Self {
            timeline,
            membership,
            federation,
            identity,
        }
    }

    /// Invites an address
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite-1)): the
    /// user whose it is, or else, by an event, whoever will show that it is theirs.
    pub(crate) async fn invite_address(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        address: Invitee<'_>,
    ) -> Result<(), ThirdPartyInviteError> {
        let kind = StateEventType::RoomThirdPartyInvite;
        // Nobody is written to in the name of who may not invite.
        if !self.timeline.may_set_state(sender, room_id, &kind).await? {
            return Err(ThirdPartyInviteError::NoSuchInvite);
        }
        if let Some(target) = self.identity.look_up(address).await? {
            let change = Change {
                sender,
                target: &target,
                membership: MembershipState::Invite,
                reason: None,
                is_direct: false,
            };
            return Ok(self.membership.invite(room_id, change).await?);
        }
        let about = self.about(sender, room_id).await?;
        let kept = self.identity.keep_invite(address, about).await?;
        let first = kept.public_keys.first();
        let content = json!({
            "display_name": kept.display_name,
            "key_validity_url": first.and_then(|key| key.key_validity_url.as_deref()).unwrap_or_default(),
            "public_key": first.map(|key| key.public_key.as_str()),
            "public_keys": kept.public_keys,
        });
        let content = to_raw_value(&content).map_err(unbuildable)?;
        let set =
            self.timeline
                .set_state(sender, room_id, StatePart::now(kind, kept.token, content));
        set.await.map_err(MembershipError::from)?;
        Ok(())
    }

    /// Invites addresses to a room that was just made. One that cannot be invited does not keep the others
    /// out.
    pub(crate) async fn invite_addresses<'a>(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        addresses: impl Iterator<Item = Invitee<'a>>,
    ) {
        for address in addresses {
            if let Err(error) = self.invite_address(sender, room_id, address).await {
                tracing::info!(%room_id, %error, "an address was not invited to a new room");
            }
        }
    }

    /// What an identity server may tell of a room and of who invites to it.
    async fn about(&self, sender: &UserId, room_id: &RoomId) -> Result<Value, StorageError> {
        let mut about = json!({ "room_id": room_id, "sender": sender });
        for (field, value) in self.timeline.profile(sender).await? {
            let name = match field.as_str() {
                "displayname" => "sender_display_name",
                _ => "sender_avatar_url",
            };
            about[name] = value;
        }
        Ok(about)
    }

    /// A user comes with what an identity server signed, and is invited with it.
    pub(crate) async fn redeem(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        sender: OwnedUserId,
        signed: Signed,
    ) -> Result<(), ThirdPartyInviteError> {
        if signed.mxid != user_id {
            return Err(ThirdPartyInviteError::ForeignUser);
        }
        let room_id = room_id.to_owned();
        self.take(&Bound {
            room_id,
            sender,
            signed,
        })
        .await
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
        let mut failed = None;
        for bound in invites.into_iter().take(MOST_INVITES) {
            let done = if bound.signed.mxid == user_id {
                self.take(&bound).await
            } else {
                Err(ThirdPartyInviteError::ForeignUser)
            };
            if let Err(error) = done {
                tracing::info!(room_id = %bound.room_id, %error, "an address was not invited");
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes an invite of an address into one of the user, if this server is in the room, or has it made.
    async fn take(&self, bound: &Bound) -> Result<(), ThirdPartyInviteError> {
        if self.membership.is_resident(&bound.room_id).await? {
            self.invite(&bound.room_id, &bound.signed).await
        } else {
            self.ask(bound).await
        }
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

    /// The rules of the room check the signature; but the identity server may have revoked its key.
    async fn check_key(
        &self,
        invite: &Content,
        signed: &Signed,
    ) -> Result<(), ThirdPartyInviteError> {
        for key in invite.keys() {
            if signed.is_signed_by(&key) && self.identity.is_valid(&key).await? {
                return Ok(());
            }
        }
        Err(ThirdPartyInviteError::Revoked)
    }

    /// Invites the user in the name of whoever invited the address. The event is made here, of nothing but
    /// what the identity server signed; the rules of the room check that signature.
    async fn invite(&self, room_id: &RoomId, signed: &Signed) -> Result<(), ThirdPartyInviteError> {
        let room = self.timeline.heads.room(room_id).await?;
        let head = room.and_then(|room| room.head);
        let head = head.ok_or(ThirdPartyInviteError::NoSuchInvite)?;
        let kind = StateEventType::RoomThirdPartyInvite;
        let events = &self.timeline.events;
        let invite = events.state_pdu(head.state, &kind, &signed.token).await?;
        let (_, invite) = invite.ok_or(ThirdPartyInviteError::NoSuchInvite)?;
        let sender = invite.sender();
        let own: &OwnedServerName = &self.timeline.server_name;
        if sender.server_name() != own && signed.mxid.server_name() != own {
            return Err(ThirdPartyInviteError::NoSuchInvite);
        }
        let invite = invite.content_as::<Content>().unwrap_or_default();
        self.check_key(&invite, signed).await?;
        let mut content = Map::new();
        if signed.mxid.server_name() == self.timeline.server_name {
            content.extend(self.timeline.profile(&signed.mxid).await?);
        }
        content.insert("membership".to_owned(), json!("invite"));
        let third_party = json!({ "display_name": invite.display_name, "signed": signed.json() });
        content.insert("third_party_invite".to_owned(), third_party);
        let content = to_raw_value(&content).map_err(unbuildable)?;
        let template = || template(&signed.mxid, content.clone());
        let membership = &self.membership;
        membership
            .invite_with(sender, &signed.mxid, room_id, template)
            .await?;
        Ok(())
    }
}

/// What the room has of an invite of an address.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Content {
    display_name: String,
    public_keys: Vec<InviteKey>,
    /// What was there before there could be several.
    public_key: Option<String>,
    key_validity_url: Option<String>,
}

impl Content {
    fn keys(&self) -> Vec<InviteKey> {
        let first = self.public_key.iter().map(|key| InviteKey {
            public_key: key.clone(),
            key_validity_url: self.key_validity_url.clone(),
        });
        self.public_keys.iter().cloned().chain(first).collect()
    }
}

impl Signed {
    fn json(&self) -> Value {
        let mut json = self.more.clone();
        json.remove("unsigned");
        json.insert("mxid".to_owned(), json!(self.mxid));
        json.insert("token".to_owned(), json!(self.token));
        json.insert("signatures".to_owned(), self.signatures.clone());
        Value::Object(json)
    }

    /// Whether a key made one of the signatures.
    fn is_signed_by(&self, key: &InviteKey) -> bool {
        let object = serde_json::from_value::<CanonicalJsonObject>(self.json());
        let key = verify::ed25519(&key.public_key);
        object
            .ok()
            .zip(key.ok())
            .is_some_and(|(object, key)| verify::is_signed_by(&object, &key))
    }
}

fn unbuildable(_: serde_json::Error) -> MembershipError {
    SendError::from(BuildError::NotCanonical).into()
}

fn template(target: &UserId, content: Box<RawValue>) -> Template {
    Template {
        event_type: TimelineEventType::RoomMember,
        content,
        state_key: Some(target.to_string()),
        redacts: None,
        origin_server_ts: None,
    }
}
