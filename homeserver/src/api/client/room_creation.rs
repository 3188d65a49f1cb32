//! [Room creation](https://spec.matrix.org/v1.19/client-server-api/#creation-1).

use axum::extract::State;
use ruma::{
    api::{client::room::create_room::v3, error::ErrorKind},
    events::room::member::MembershipState,
};

use super::membership::address;
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        membership::{Change, Membership},
        rooms::{CreateRoomError, Rooms},
        third_party_invites::ThirdPartyInvites,
        timeline::SendError,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<v3::Request, _, _>(create_room)
}

impl From<CreateRoomError> for MatrixError {
    fn from(error: CreateRoomError) -> Self {
        match error {
            CreateRoomError::UnsupportedVersion(_) => Self::bad_request(
                ErrorKind::UnsupportedRoomVersion,
                "This server does not support the room version",
            ),
            CreateRoomError::AliasTaken => {
                Self::bad_request(ErrorKind::RoomInUse, "The alias is taken")
            }
            CreateRoomError::AliasExclusive => {
                Self::exclusive("The alias is kept for an application service, or not for yours")
            }
            CreateRoomError::InvalidAlias => Self::invalid_param("The alias is malformed"),
            CreateRoomError::Malformed(field) => Self::bad_json(format!("`{field}` is malformed")),
            // A room that refuses its own creation was asked for with impossible contents.
            CreateRoomError::Send(SendError::Refused(_)) => Self::bad_request(
                ErrorKind::InvalidRoomState,
                "The initial state contradicts itself",
            ),
            CreateRoomError::Send(error) => error.into(),
            CreateRoomError::Storage(error) => error.into(),
        }
    }
}

/// `POST /_matrix/client/v3/createRoom`
async fn create_room(
    State(rooms): State<Rooms>,
    State(membership): State<Membership>,
    State(invites): State<ThirdPartyInvites>,
    Authenticated { requester, body }: Authenticated<v3::Request>,
) -> Result<Matrix<v3::Response>, MatrixError> {
    let room_id = rooms.create(&requester, &body).await?;
    let invite = |target| Change {
        sender: &requester.user_id,
        target,
        membership: MembershipState::Invite,
        reason: None,
        is_direct: body.is_direct,
    };
    membership
        .invite_all(&room_id, body.invite.iter().map(|user_id| invite(user_id)))
        .await;
    let addresses = body.invite_3pid.iter().map(address);
    invites
        .invite_addresses(&requester.user_id, &room_id, addresses)
        .await;
    Ok(Matrix(v3::Response::new(room_id)))
}
