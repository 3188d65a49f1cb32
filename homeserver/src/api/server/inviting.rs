//! [Inviting to a room](https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room).

use axum::extract::State;
use ruma::api::federation::membership::{RawStrippedState, create_invite};

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::admission::{Admission, Invite},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.add::<create_invite::v2::Request, _, _>(create_invite)
}

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
async fn create_invite(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<create_invite::v2::Request>,
) -> Result<Matrix<create_invite::v2::Response>, MatrixError> {
    #[expect(
        deprecated,
        reason = "servers that do not know of full events yet send stripped ones"
    )]
    let json = |state| match state {
        RawStrippedState::Pdu(pdu) => Some(pdu),
        RawStrippedState::Stripped(stripped) => Some(stripped.into_json()),
        _ => None,
    };
    let invite = Invite {
        origin: &origin,
        room_id: &body.room_id,
        event_id: &body.event_id,
        version: Some(&body.room_version),
        event: &body.event,
        room_state: body
            .invite_room_state
            .into_iter()
            .filter_map(json)
            .collect(),
    };
    let event = admission.invite(invite).await?;
    Ok(Matrix(create_invite::v2::Response::new(event)))
}
