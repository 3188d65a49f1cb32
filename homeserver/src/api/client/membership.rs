//! [Room membership](https://spec.matrix.org/v1.19/client-server-api/#room-membership).

use axum::extract::State;
use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, RoomId, UserId,
    api::client::{
        knock::knock_room,
        membership::{
            Invite3pid, ThirdPartySigned, ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, joined_rooms, kick_user, leave_room,
            unban_user,
        },
    },
    api::error::{ErrorBody, ErrorKind},
    events::room::member::MembershipState,
};
use serde_json::{Map, Value};
use sotto_federation::client::{self, ClientError};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, WithJson},
    },
    service::{
        accounts::{Accounts, Requester},
        aliases::Aliases,
        identity::Invitee,
        membership::{AnswerError, Change, Membership, MembershipError, RemoteError},
        policy_servers::PolicyError,
        third_party_invites::ThirdPartyInvites,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<ban_user::v3::Request, _, _>(ban_user)
        .add::<forget_room::v3::Request, _, _>(forget_room)
        .add::<invite_user::v3::Request, _, _>(invite_user)
        .add::<join_room_by_id::v3::Request, _, _>(join_room_by_id)
        .add::<join_room_by_id_or_alias::v3::Request, _, _>(join_room_by_id_or_alias)
        .add::<joined_rooms::v3::Request, _, _>(joined_rooms)
        .add::<kick_user::v3::Request, _, _>(kick_user)
        .add::<knock_room::v3::Request, _, _>(knock_room)
        .add::<leave_room::v3::Request, _, _>(leave_room)
        .add::<unban_user::v3::Request, _, _>(unban_user)
}

impl From<MembershipError> for MatrixError {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::NoGuests => Self::new(
                http::StatusCode::FORBIDDEN,
                ErrorKind::GuestAccessForbidden,
                "Guests may not be in this room",
            ),
            MembershipError::Blocked => Self::forbidden("This server has blocked the room"),
            MembershipError::InviteBlocked => Self::invite_blocked(),
            MembershipError::WrongState => {
                Self::forbidden("The user is not in the state that this would change")
            }
            MembershipError::Remote(error) => error.into(),
            MembershipError::Send(error) => error.into(),
            MembershipError::Storage(error) => error.into(),
        }
    }
}

impl From<RemoteError> for MatrixError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::NoServer => Self::not_found("No server is known that is in this room"),
            RemoteError::Client(error) | RemoteError::Answer(AnswerError::Client(error)) => {
                error.into()
            }
            RemoteError::UnsupportedVersion(_) => Self::bad_request(
                ErrorKind::UnsupportedRoomVersion,
                "A server does not support the version of the room",
            ),
            RemoteError::OtherVersion
            | RemoteError::Malformed(_)
            | RemoteError::Countersign(_)
            | RemoteError::Answer(
                AnswerError::Unsigned
                | AnswerError::NoCreateEvent
                | AnswerError::Ambiguous
                | AnswerError::Malformed
                | AnswerError::Stopped,
            ) => Self::new(
                http::StatusCode::BAD_GATEWAY,
                ErrorKind::Unknown,
                "The other server gave an answer that cannot be believed",
            ),
            // As if the user had sent it: clients know this error, and none of the other server's.
            RemoteError::NoEvent(_) => {
                Self::bad_json("The other server answered with what is no event")
            }
            RemoteError::Answer(AnswerError::NotAllowed(_)) => {
                Self::forbidden("The room does not allow it")
            }
            RemoteError::Answer(AnswerError::Storage(error)) | RemoteError::Storage(error) => {
                error.into()
            }
            RemoteError::Refused(_) => Self::forbidden("The room does not allow it"),
            RemoteError::Send(error) => error.into(),
        }
    }
}

/// What another server refused is refused with its errcode; what it could not do, is not done.
impl From<ClientError> for MatrixError {
    fn from(error: ClientError) -> Self {
        let refused = error.matrix().and_then(refusal);
        match refused {
            Some((status, kind)) => Self::new(status, kind, "The other server refuses"),
            None => Self::new(
                http::StatusCode::BAD_GATEWAY,
                ErrorKind::Unknown,
                "The other server could not be asked",
            ),
        }
    }
}

/// What another server says to a user of ours, in its own words, but for what only we may say to one: a
/// client that hears that its token is not known logs out, and throws away its keys.
fn refusal(error: &client::MatrixError) -> Option<(http::StatusCode, ErrorKind)> {
    let (status, kind) = (error.status_code, error.error_kind()?);
    let about_account = matches!(
        kind,
        ErrorKind::MissingToken
            | ErrorKind::Unauthorized
            | ErrorKind::UnknownToken(_)
            | ErrorKind::UserDeactivated
            | ErrorKind::UserLocked
            | ErrorKind::UserSuspended
    );
    let may_say = status.is_client_error() && status != http::StatusCode::UNAUTHORIZED;
    (may_say && !about_account).then(|| (status, kind.clone()))
}

impl From<PolicyError> for MatrixError {
    fn from(error: PolicyError) -> Self {
        /// The most characters of what the policy server says.
        const MOST: usize = 500;
        if let PolicyError::Client(error) = &error
            && let Some(error) = error.matrix()
            && let Some((status, kind)) = refusal(error)
            && let ErrorBody::Standard(body) = &error.body
        {
            let message: String = body.message.chars().take(MOST).collect();
            return Self::new(status, kind, message);
        }
        Self::new(
            http::StatusCode::BAD_GATEWAY,
            ErrorKind::Unknown,
            "The policy server of the room did not recommend this",
        )
    }
}

fn change<'a>(
    requester: &'a Requester,
    target: &'a UserId,
    membership: MembershipState,
    reason: Option<String>,
) -> Change<'a> {
    Change {
        sender: &requester.user_id,
        target,
        membership,
        reason,
        is_direct: false,
    }
}

/// What a client wants to be said in its membership event: the reason, and whatever the specification has no
/// name for.
fn said(mut json: Map<String, Value>) -> Map<String, Value> {
    for ours in [
        "is_direct",
        "join_authorised_via_users_server",
        "membership",
        "third_party_invite",
        "third_party_signed",
    ] {
        json.remove(ours);
    }
    json
}

/// `POST /_matrix/client/v3/rooms/{roomId}/join`
async fn join_room_by_id(
    State(membership): State<Membership>,
    State(invites): State<ThirdPartyInvites>,
    WithJson {
        requester,
        body,
        json,
    }: WithJson<join_room_by_id::v3::Request>,
) -> Result<Matrix<join_room_by_id::v3::Response>, MatrixError> {
    let (user_id, signed) = (&requester.user_id, body.third_party_signed);
    redeem(&invites, user_id, &body.room_id, signed).await;
    membership
        .join(user_id, &body.room_id, Vec::new(), said(json))
        .await?;
    Ok(Matrix(join_room_by_id::v3::Response::new(body.room_id)))
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`
async fn join_room_by_id_or_alias(
    State(membership): State<Membership>,
    State(aliases): State<Aliases>,
    State(invites): State<ThirdPartyInvites>,
    WithJson {
        requester,
        body,
        json,
    }: WithJson<join_room_by_id_or_alias::v3::Request>,
) -> Result<Matrix<join_room_by_id_or_alias::v3::Response>, MatrixError> {
    let (room_id, via) = find(&aliases, body.room_id_or_alias, body.via).await?;
    let (user_id, signed) = (&requester.user_id, body.third_party_signed);
    redeem(&invites, user_id, &room_id, signed).await;
    membership.join(user_id, &room_id, via, said(json)).await?;
    Ok(Matrix(join_room_by_id_or_alias::v3::Response::new(room_id)))
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`
async fn knock_room(
    State(membership): State<Membership>,
    State(aliases): State<Aliases>,
    Authenticated { requester, body }: Authenticated<knock_room::v3::Request>,
) -> Result<Matrix<knock_room::v3::Response>, MatrixError> {
    let (room_id, via) = find(&aliases, body.room_id_or_alias, body.via).await?;
    membership
        .knock(&requester.user_id, &room_id, via, body.reason)
        .await?;
    Ok(Matrix(knock_room::v3::Response::new(room_id)))
}

/// The room of an id or alias, and the servers through which it can be reached.
async fn find(
    aliases: &Aliases,
    room: OwnedRoomOrAliasId,
    mut via: Vec<OwnedServerName>,
) -> Result<(OwnedRoomId, Vec<OwnedServerName>), MatrixError> {
    match OwnedRoomId::try_from(room) {
        Ok(room_id) => Ok((room_id, via)),
        Err(alias) => {
            let found = aliases.resolve(&alias).await?;
            let (room_id, servers) =
                found.ok_or_else(|| MatrixError::not_found("There is no such alias"))?;
            via.extend(servers);
            Ok((room_id, via))
        }
    }
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`
async fn invite_user(
    State(membership): State<Membership>,
    State(invites): State<ThirdPartyInvites>,
    Authenticated { requester, body }: Authenticated<invite_user::v3::Request>,
) -> Result<Matrix<invite_user::v3::Response>, MatrixError> {
    match &body.recipient {
        InvitationRecipient::UserId(user) => {
            let (target, reason) = (&user.user_id, user.reason.clone());
            let invite = change(&requester, target, MembershipState::Invite, reason);
            membership.invite(&body.room_id, invite).await?;
        }
        InvitationRecipient::ThirdPartyId(threepid) => {
            let (sender, address) = (&requester.user_id, address(threepid));
            invites
                .invite_address(sender, &body.room_id, address)
                .await?;
        }
        _ => return Err(MatrixError::bad_json("It is not said who is invited")),
    }
    Ok(Matrix(invite_user::v3::Response::new()))
}

/// An address that is to be invited.
pub(super) fn address(invited: &Invite3pid) -> Invitee<'_> {
    Invitee {
        id_server: &invited.id_server,
        id_access_token: &invited.id_access_token,
        medium: invited.medium.as_str(),
        address: &invited.address,
    }
}

/// Takes what an identity server signed, if a client brings that. Whether it was any good shows when the
/// user joins.
async fn redeem(
    invites: &ThirdPartyInvites,
    user_id: &UserId,
    room_id: &RoomId,
    signed: Option<ThirdPartySigned>,
) {
    let Some(signed) = signed else { return };
    let sender = signed.sender.clone();
    let signed = serde_json::to_value(signed).and_then(serde_json::from_value);
    if let Ok(signed) = signed
        && let Err(error) = invites.redeem(user_id, room_id, sender, signed).await
    {
        tracing::info!(%room_id, %error, "an address was not invited");
    }
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`
async fn leave_room(
    State(membership): State<Membership>,
    Authenticated { requester, body }: Authenticated<leave_room::v3::Request>,
) -> Result<Matrix<leave_room::v3::Response>, MatrixError> {
    membership
        .leave(&requester.user_id, &body.room_id, body.reason)
        .await?;
    Ok(Matrix(leave_room::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`
async fn kick_user(
    State(membership): State<Membership>,
    Authenticated { requester, body }: Authenticated<kick_user::v3::Request>,
) -> Result<Matrix<kick_user::v3::Response>, MatrixError> {
    let kick = change(
        &requester,
        &body.user_id,
        MembershipState::Leave,
        body.reason,
    );
    membership.kick(&body.room_id, kick).await?;
    Ok(Matrix(kick_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`
async fn ban_user(
    State(membership): State<Membership>,
    Authenticated { requester, body }: Authenticated<ban_user::v3::Request>,
) -> Result<Matrix<ban_user::v3::Response>, MatrixError> {
    let ban = change(&requester, &body.user_id, MembershipState::Ban, body.reason);
    membership.change(&body.room_id, ban).await?;
    Ok(Matrix(ban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`
async fn unban_user(
    State(membership): State<Membership>,
    Authenticated { requester, body }: Authenticated<unban_user::v3::Request>,
) -> Result<Matrix<unban_user::v3::Response>, MatrixError> {
    let unban = change(
        &requester,
        &body.user_id,
        MembershipState::Leave,
        body.reason,
    );
    membership.unban(&body.room_id, unban).await?;
    Ok(Matrix(unban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`
async fn forget_room(
    State(membership): State<Membership>,
    Authenticated { requester, body }: Authenticated<forget_room::v3::Request>,
) -> Result<Matrix<forget_room::v3::Response>, MatrixError> {
    match membership.forget(&body.room_id, &requester.user_id).await {
        Ok(()) => Ok(Matrix(forget_room::v3::Response::new())),
        Err(MembershipError::WrongState) => Err(MatrixError::bad_request(
            ErrorKind::Unknown,
            "You have not left the room",
        )),
        Err(error) => Err(error.into()),
    }
}

/// `GET /_matrix/client/v3/joined_rooms`
async fn joined_rooms(
    State(accounts): State<Accounts>,
    request: Authenticated<joined_rooms::v3::Request>,
) -> Result<Matrix<joined_rooms::v3::Response>, MatrixError> {
    let rooms = accounts.joined_rooms(&request.requester.user_id);
    Ok(Matrix(joined_rooms::v3::Response::new(rooms)))
}
