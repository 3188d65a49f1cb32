//! [Sending events to a room](https://spec.matrix.org/v1.19/client-server-api/#sending-events-to-a-room)
//! and [redactions](https://spec.matrix.org/v1.19/client-server-api/#redactions).

use axum::extract::State;
use ruma::{
    api::{
        client::{message::send_message_event, redact::redact_event, state::send_state_event},
        error::ErrorKind,
    },
    events::TimelineEventType,
};
use serde_json::{json, value::to_raw_value};
use sotto_federation::room::builder::{BuildError, Template};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
        masquerade::Massaged,
    },
    service::{
        aliases::{Aliases, CanonicalError},
        membership::{Membership, invited_by},
        timeline::{SendError, StatePart, Timeline},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<send_message_event::v3::Request, _, _>(send_message_event)
        .add::<send_state_event::v3::Request, _, _>(send_state_event)
        .raw(
            "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
            axum::routing::put(send_state_event).get(super::room_state::get_state_event_for_key),
        )
        .raw(
            "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/",
            axum::routing::put(send_state_event).get(super::room_state::get_state_event_for_key),
        )
        .add::<redact_event::v3::Request, _, _>(redact_event)
}

impl From<SendError> for MatrixError {
    fn from(error: SendError) -> Self {
        let (kind, message) = error.kind();
        match error {
            SendError::Storage(error) => error.into(),
            SendError::UnknownRoom | SendError::Refused(_) | SendError::MayNotRedact => {
                Self::forbidden(message)
            }
            SendError::NothingToRedact => Self::not_found(message),
            SendError::Malformed(BuildError::TooLarge | BuildError::FieldTooLong(_)) => {
                Self::new(http::StatusCode::PAYLOAD_TOO_LARGE, kind, message)
            }
            SendError::Malformed(_)
            | SendError::RedactsElsewhere
            | SendError::ReplacesItself
            | SendError::DuplicateAnnotation => Self::bad_request(kind, message),
            SendError::Policy(error) => error.into(),
            SendError::Busy | SendError::Overtaken | SendError::Repeated(_) => Self::new(
                http::StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Unknown,
                message,
            ),
        }
    }
}

impl From<CanonicalError> for MatrixError {
    fn from(error: CanonicalError) -> Self {
        match error {
            CanonicalError::Malformed => Self::invalid_param("An alias is malformed"),
            CanonicalError::BadAlias => {
                Self::bad_request(ErrorKind::BadAlias, "An alias does not lead to this room")
            }
            CanonicalError::Storage(error) => error.into(),
        }
    }
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`
async fn send_message_event(
    State(timeline): State<Timeline>,
    Massaged(origin_server_ts): Massaged,
    Authenticated { requester, body }: Authenticated<send_message_event::v3::Request>,
) -> Result<Matrix<send_message_event::v3::Response>, MatrixError> {
    let template = Template {
        event_type: TimelineEventType::from(body.event_type.to_string()),
        content: body.body.into_json(),
        state_key: None,
        redacts: None,
        origin_server_ts,
    };
    let event_id = timeline
        .send(&requester, &body.room_id, template, &body.txn_id)
        .await?;
    Ok(Matrix(send_message_event::v3::Response::new(event_id)))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
async fn send_state_event(
    State(aliases): State<Aliases>,
    State(membership): State<Membership>,
    State(timeline): State<Timeline>,
    Massaged(origin_server_ts): Massaged,
    Authenticated { requester, body }: Authenticated<send_state_event::v3::Request>,
) -> Result<Matrix<send_state_event::v3::Response>, MatrixError> {
    let send_state_event::v3::Request {
        room_id,
        event_type,
        state_key,
        body,
        ..
    } = body;
    let content = body.into_json();
    let key = (&event_type, state_key.as_str());
    aliases
        .check_canonical(&requester.user_id, &room_id, key, &content)
        .await?;
    let part = StatePart {
        origin_server_ts,
        ..StatePart::now(event_type, state_key, content)
    };
    let sender = &requester.user_id;
    let event_id = match invited_by(&part) {
        Some(target) => {
            membership
                .invite_as(sender, &target, &room_id, part)
                .await?
        }
        None => timeline.set_state(sender, &room_id, part).await?,
    };
    Ok(Matrix(send_state_event::v3::Response::new(event_id)))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`
async fn redact_event(
    State(timeline): State<Timeline>,
    Authenticated { requester, body }: Authenticated<redact_event::v3::Request>,
) -> Result<Matrix<redact_event::v3::Response>, MatrixError> {
    let content = match &body.reason {
        Some(reason) => json!({ "reason": reason }),
        None => json!({}),
    };
    let template = Template {
        event_type: TimelineEventType::RoomRedaction,
        content: to_raw_value(&content).map_err(|error| MatrixError::internal(&error))?,
        state_key: None,
        redacts: Some(body.event_id),
        origin_server_ts: None,
    };
    let event_id = timeline
        .send(&requester, &body.room_id, template, &body.txn_id)
        .await?;
    Ok(Matrix(redact_event::v3::Response::new(event_id)))
}
