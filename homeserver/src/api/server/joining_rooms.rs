//! [Joining rooms](https://spec.matrix.org/v1.19/server-server-api/#joining-rooms),
//! [knocking upon a room](https://spec.matrix.org/v1.19/server-server-api/#knocking-upon-a-room) and
//! [leaving rooms](https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites).

use axum::extract::State;
use http::StatusCode;
use ruma::{
    api::{
        error::{ErrorKind, IncompatibleRoomVersionErrorData},
        federation::membership::{
            RawStrippedState, create_join_event, create_knock_event, create_leave_event,
            prepare_join_event, prepare_knock_event, prepare_leave_event,
        },
    },
    events::room::member::MembershipState,
};
use sotto_federation::room::pdu::PduError;

use super::authentication::Signed;
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    service::{
        admission::{Admission, AdmissionError, Asked, Members, Signed as SignedEvent},
        incoming::Refused,
        shared_history::pdus,
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<create_join_event::v2::Request, _, _>(create_join_event)
        .add::<create_knock_event::v1::Request, _, _>(create_knock_event)
        .add::<create_leave_event::v2::Request, _, _>(create_leave_event)
        .add::<prepare_join_event::v1::Request, _, _>(prepare_join_event)
        .add::<prepare_knock_event::v1::Request, _, _>(prepare_knock_event)
        .add::<prepare_leave_event::v1::Request, _, _>(prepare_leave_event)
}

impl From<AdmissionError> for MatrixError {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::ForeignUser => Self::forbidden("The user belongs to another server"),
            AdmissionError::OtherEvent => {
                Self::invalid_param("The event is not what the request is about")
            }
            AdmissionError::IncompatibleVersion(version) => {
                let data = IncompatibleRoomVersionErrorData::new(version);
                Self::bad_request(
                    ErrorKind::IncompatibleRoomVersion(data),
                    "The version of the room is not supported",
                )
            }
            AdmissionError::Forbidden | AdmissionError::Refused(Refused::Rejected(_)) => {
                Self::forbidden("The room does not allow this")
            }
            AdmissionError::UnableToAuthorize => Self::bad_request(
                ErrorKind::UnableToAuthorizeJoin,
                "This server cannot tell whether the user may join",
            ),
            AdmissionError::UnableToGrant => Self::bad_request(
                ErrorKind::UnableToGrantJoin,
                "Nobody of this server can let the user join",
            ),
            AdmissionError::RoomState => {
                Self::invalid_param("The state of the room is not made of its events")
            }
            AdmissionError::InviteBlocked => Self::invite_blocked(),
            AdmissionError::UnknownUser => Self::not_found("There is no such user"),
            AdmissionError::Refused(Refused::Busy | Refused::Storage) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Unknown,
                "The server could not do this now; try again",
            ),
            AdmissionError::Refused(
                Refused::Acl | Refused::NotInRoom | Refused::Signature(_) | Refused::OtherRoom,
            ) => Self::forbidden("The event is not accepted"),
            AdmissionError::Refused(Refused::Malformed(PduError::NotCanonical)) => {
                Self::bad_json("The event is not canonical JSON")
            }
            AdmissionError::Refused(Refused::Malformed(_)) => {
                Self::invalid_param("The event is malformed")
            }
            AdmissionError::Refused(
                Refused::MissingPrevEvents | Refused::MissingAuthEvents | Refused::Unresolvable,
            ) => Self::invalid_param("The event cannot be used"),
            AdmissionError::Countersign(_) => {
                Self::invalid_param("The event is not one that this server signs")
            }
            AdmissionError::Share(error) => error.into(),
            AdmissionError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`
async fn prepare_join_event(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<prepare_join_event::v1::Request>,
) -> Result<Matrix<prepare_join_event::v1::Response>, MatrixError> {
    let asked = Asked {
        origin: &origin,
        room_id: &body.room_id,
        user_id: &body.user_id,
        membership: MembershipState::Join,
    };
    let (version, event) = admission.make(asked, Some(&body.ver)).await?;
    let mut response = prepare_join_event::v1::Response::new(event);
    response.room_version = Some(version);
    Ok(Matrix(response))
}

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`
async fn prepare_leave_event(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<prepare_leave_event::v1::Request>,
) -> Result<Matrix<prepare_leave_event::v1::Response>, MatrixError> {
    let asked = Asked {
        origin: &origin,
        room_id: &body.room_id,
        user_id: &body.user_id,
        membership: MembershipState::Leave,
    };
    let (version, event) = admission.make(asked, None).await?;
    Ok(Matrix(prepare_leave_event::v1::Response::new(
        Some(version),
        event,
    )))
}

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`
async fn prepare_knock_event(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<prepare_knock_event::v1::Request>,
) -> Result<Matrix<prepare_knock_event::v1::Response>, MatrixError> {
    let asked = Asked {
        origin: &origin,
        room_id: &body.room_id,
        user_id: &body.user_id,
        membership: MembershipState::Knock,
    };
    let (version, event) = admission.make(asked, Some(&body.ver)).await?;
    Ok(Matrix(prepare_knock_event::v1::Response::new(
        version, event,
    )))
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
pub(super) async fn create_join_event(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<create_join_event::v2::Request>,
) -> Result<Matrix<create_join_event::v2::Response>, MatrixError> {
    let signed = SignedEvent {
        origin: &origin,
        room_id: &body.room_id,
        event_id: &body.event_id,
        pdu: &body.pdu,
        membership: MembershipState::Join,
    };
    let join = admission.send(signed).await?;
    let members = if body.omit_members {
        Members::MayBeOmitted
    } else {
        Members::All
    };
    let welcome = admission.welcome(&join, members).await?;
    let mut state = create_join_event::v2::RoomState::new();
    state.auth_chain = pdus(&welcome.auth_chain);
    state.state = pdus(&welcome.state);
    state.event = Some(welcome.event);
    state.members_omitted = welcome.members_omitted;
    let servers = welcome.servers.iter().map(ToString::to_string);
    state.servers_in_room = Some(servers.collect());
    Ok(Matrix(create_join_event::v2::Response::new(state)))
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
pub(super) async fn create_leave_event(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<create_leave_event::v2::Request>,
) -> Result<Matrix<create_leave_event::v2::Response>, MatrixError> {
    let signed = SignedEvent {
        origin: &origin,
        room_id: &body.room_id,
        event_id: &body.event_id,
        pdu: &body.pdu,
        membership: MembershipState::Leave,
    };
    admission.send(signed).await?;
    Ok(Matrix(create_leave_event::v2::Response::new()))
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
async fn create_knock_event(
    State(admission): State<Admission>,
    Signed { origin, body }: Signed<create_knock_event::v1::Request>,
) -> Result<Matrix<create_knock_event::v1::Response>, MatrixError> {
    let signed = SignedEvent {
        origin: &origin,
        room_id: &body.room_id,
        event_id: &body.event_id,
        pdu: &body.pdu,
        membership: MembershipState::Knock,
    };
    let knock = admission.send(signed).await?;
    let shown = admission.shown_to_outsiders(&knock).await?;
    let state = shown.into_iter().map(RawStrippedState::Pdu).collect();
    Ok(Matrix(create_knock_event::v1::Response::new(state)))
}
