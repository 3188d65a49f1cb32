//! [Getting the state of a room](https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room).

use std::collections::BTreeMap;

use axum::extract::State;
use ruma::{
    api::client::{
        membership::{get_member_events, joined_members},
        state::{
            get_state_event_for_key::{self, v3::StateEventFormat},
            get_state_events,
        },
    },
    events::room::member::MembershipState,
};
use serde_json::json;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix, Plain},
    },
    service::timeline::{ReadError, Timeline, membership},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_state_events::v3::Request, _, _>(get_state_events)
        .add::<get_state_event_for_key::v3::Request, _, _>(get_state_event_for_key)
        .add::<get_member_events::v3::Request, _, _>(get_member_events)
        .add::<joined_members::v3::Request, _, _>(joined_members)
}

impl From<ReadError> for MatrixError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotInRoom => Self::forbidden("You are not in this room"),
            ReadError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`
async fn get_state_events(
    State(timeline): State<Timeline>,
    Authenticated { requester, body }: Authenticated<get_state_events::v3::Request>,
) -> Result<Matrix<get_state_events::v3::Response>, MatrixError> {
    let state = timeline.state(&requester, &body.room_id, |_| true).await?;
    Ok(Matrix(get_state_events::v3::Response::new(state)))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
pub(super) async fn get_state_event_for_key(
    State(timeline): State<Timeline>,
    Authenticated { requester, body }: Authenticated<get_state_event_for_key::v3::Request>,
) -> Result<Matrix<get_state_event_for_key::v3::Response>, MatrixError> {
    let (event_type, key) = (&body.event_type, &body.state_key);
    let found = timeline
        .state_event(&requester.user_id, &body.room_id, event_type, key)
        .await?;
    let event = found.ok_or_else(|| MatrixError::not_found("There is no such state event"))?;
    let json = match body.format {
        StateEventFormat::Event => timeline
            .events
            .for_client_with_room::<()>(&event, &requester)
            .await?
            .into_json(),
        _ => event.pdu.content().to_owned(),
    };
    Ok(Matrix(get_state_event_for_key::v3::Response::new(json)))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/members`
async fn get_member_events(
    State(timeline): State<Timeline>,
    Authenticated { requester, body }: Authenticated<get_member_events::v3::Request>,
) -> Result<Matrix<get_member_events::v3::Response>, MatrixError> {
    let wanted = |is: &MembershipState| {
        body.membership.as_ref().is_none_or(|wanted| wanted == is)
            && body
                .not_membership
                .as_ref()
                .is_none_or(|unwanted| unwanted != is)
    };
    let mut chunk = Vec::new();
    for event in timeline.members(&requester.user_id, &body.room_id).await? {
        if membership(&event.pdu).is_some_and(|(_, is)| wanted(&is)) {
            chunk.push(
                timeline
                    .events
                    .for_client_with_room(&event, &requester)
                    .await?,
            );
        }
    }
    Ok(Matrix(get_member_events::v3::Response::new(chunk)))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`
async fn joined_members(
    State(timeline): State<Timeline>,
    Authenticated { requester, body }: Authenticated<joined_members::v3::Request>,
) -> Result<Plain, MatrixError> {
    #[derive(Default, serde::Deserialize)]
    struct Content {
        displayname: Option<String>,
        avatar_url: Option<ruma::OwnedMxcUri>,
    }
    let mut joined = BTreeMap::new();
    for event in timeline.members(&requester.user_id, &body.room_id).await? {
        let Some((user_id, MembershipState::Join)) = membership(&event.pdu) else {
            continue;
        };
        let content = event.pdu.content_as::<Content>().unwrap_or_default();
        // Clients read `null` from most servers where somebody has no name or picture.
        let (name, avatar) = (content.displayname, content.avatar_url);
        joined.insert(
            user_id,
            json!({ "display_name": name, "avatar_url": avatar }),
        );
    }
    Ok(Plain(json!({ "joined": joined })))
}
