//! Endpoints as they were for room versions 1 and 2, with the status in the body as well:
//! [inviting](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1inviteroomideventid),
//! [joining](https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv1send_joinroomideventid)
//! and
//! [leaving](https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv1send_leaveroomideventid).
//! The latter two have left the specification; older servers still use them.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::put,
};
use ruma::api::{
    OutgoingResponse, OutgoingResponseExt,
    federation::membership::{create_invite, create_join_event, create_leave_event},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{authentication::Signed, joining_rooms};
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::admission::{Admission, Invite},
};

pub(super) fn routes(routes: Routes) -> Routes {
    let path = |what: &str| format!("/_matrix/federation/v1/{what}/{{room_id}}/{{event_id}}");
    routes
        .raw(&path("invite"), put(invite))
        .raw(&path("send_join"), put(send_join))
        .raw(&path("send_leave"), put(send_leave))
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`. Its body is the event, as that of `send_leave`.
async fn invite(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<create_leave_event::v2::Request>,
) -> Result<Response, MatrixError> {
    let invite = Invite {
        origin: &origin,
        room_id: &body.room_id,
        event_id: &body.event_id,
        version: None,
        event: &body.pdu,
        room_state: room_state(&body.pdu),
    };
    let event = admission.invite(invite).await?;
    with_status(Matrix(create_invite::v2::Response::new(event)))
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`
async fn send_join(
    admission: State<Admission>,
    signed: Signed<create_join_event::v2::Request>,
) -> Result<Response, MatrixError> {
    with_status(joining_rooms::create_join_event(admission, signed).await?)
}

/// `PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}`
async fn send_leave(
    admission: State<Admission>,
    signed: Signed<create_leave_event::v2::Request>,
) -> Result<Response, MatrixError> {
    with_status(joining_rooms::create_leave_event(admission, signed).await?)
}

/// What an invite tells of its room.
fn room_state(event: &RawValue) -> Vec<Box<RawValue>> {
    #[derive(Default, Deserialize)]
    struct Unsigned {
        #[serde(default)]
        invite_room_state: Vec<Box<RawValue>>,
    }
    #[derive(Default, Deserialize)]
    struct Event {
        #[serde(default)]
        unsigned: Unsigned,
    }
    let event: Event = serde_json::from_str(event.get()).unwrap_or_default();
    event.unsigned.invite_room_state
}

fn with_status<T: OutgoingResponse>(Matrix(answer): Matrix<T>) -> Result<Response, MatrixError> {
    let response = answer
        .try_into_http_response::<Vec<u8>>()
        .map_err(|error| MatrixError::internal(&error))?;
    let with_status = |body: Vec<u8>| [b"[200,".as_slice(), &body, b"]"].concat();
    Ok(response.map(with_status).map(Body::from).into_response())
}
