//! [Backfilling and retrieving missing events](https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events)
//! and [retrieving events](https://spec.matrix.org/v1.19/server-server-api/#retrieving-events).

use std::sync::Arc;

use axum::extract::State;
use ruma::{
    OwnedEventId, RoomId, UInt,
    api::federation::{
        authorization::get_event_authorization,
        backfill::get_backfill,
        event::{
            get_event, get_event_by_timestamp, get_missing_events, get_room_state,
            get_room_state_ids,
        },
    },
};

use serde::Deserialize;

use super::authentication::{Signed, SignedJson};
use crate::{
    api::{Routes, error::MatrixError, extract::Matrix},
    clock::Clock,
    service::{
        shared_history::{ShareError, SharedHistory},
        timeline::Direction,
        transactions::Transactions,
    },
    storage::events::StoredEvent,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_backfill::v1::Request, _, _>(get_backfill)
        .add::<get_event::v1::Request, _, _>(get_event)
        .add::<get_event_authorization::v1::Request, _, _>(get_event_authorization)
        .add::<get_event_by_timestamp::v1::Request, _, _>(get_event_by_timestamp)
        .add::<get_missing_events::v1::Request, _, _>(get_missing_events)
        .add::<get_room_state::v1::Request, _, _>(get_room_state)
        .add::<get_room_state_ids::v1::Request, _, _>(get_room_state_ids)
}

impl From<ShareError> for MatrixError {
    fn from(error: ShareError) -> Self {
        match error {
            ShareError::UnknownRoom => Self::not_found("This server is not in the room"),
            ShareError::NotInRoom => Self::forbidden("Your server is not in the room"),
            ShareError::Partial => {
                Self::not_found("This server does not know the members of the room yet")
            }
            ShareError::UnknownEvent => Self::not_found("There is no such event"),
            ShareError::Storage(error) => error.into(),
        }
    }
}

/// `GET /_matrix/federation/v1/event/{eventId}`
async fn get_event(
    State(history): State<SharedHistory>,
    State(us): State<Transactions>,
    State(clock): State<Clock>,
    Signed { origin, body }: Signed<get_event::v1::Request>,
) -> Result<Matrix<get_event::v1::Response>, MatrixError> {
    let pdu = history.event(&origin, &body.event_id).await?;
    let name = us.server_name().to_owned();
    Ok(Matrix(get_event::v1::Response::new(name, clock.now(), pdu)))
}

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
async fn get_event_by_timestamp(
    State(history): State<SharedHistory>,
    Signed { origin, body }: Signed<get_event_by_timestamp::v1::Request>,
) -> Result<Matrix<get_event_by_timestamp::v1::Response>, MatrixError> {
    let direction = match body.dir {
        ruma::api::Direction::Backward => Direction::Backwards,
        ruma::api::Direction::Forward => Direction::Forwards,
    };
    let found = history.at_time(&origin, &body.room_id, body.ts, direction);
    let event = found.await?;
    Ok(Matrix(get_event_by_timestamp::v1::Response::new(
        event.pdu.event_id().to_owned(),
        event.pdu.origin_server_ts(),
    )))
}

/// `GET /_matrix/federation/v1/state/{roomId}`
async fn get_room_state(
    State(history): State<SharedHistory>,
    Signed { origin, body }: Signed<get_room_state::v1::Request>,
) -> Result<Matrix<get_room_state::v1::Response>, MatrixError> {
    let (state, chain) = history
        .state_events(&origin, &body.room_id, &body.event_id)
        .await?;
    Ok(Matrix(get_room_state::v1::Response::new(chain, state)))
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}`
async fn get_room_state_ids(
    State(history): State<SharedHistory>,
    Signed { origin, body }: Signed<get_room_state_ids::v1::Request>,
) -> Result<Matrix<get_room_state_ids::v1::Response>, MatrixError> {
    let (state, chain) = history
        .state(&origin, &body.room_id, &body.event_id)
        .await?;
    Ok(Matrix(get_room_state_ids::v1::Response::new(
        ids(&chain),
        ids(&state),
    )))
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
async fn get_event_authorization(
    State(history): State<SharedHistory>,
    Signed { origin, body }: Signed<get_event_authorization::v1::Request>,
) -> Result<Matrix<get_event_authorization::v1::Response>, MatrixError> {
    let chain = history
        .event_auth(&origin, &body.room_id, &body.event_id)
        .await?;
    Ok(Matrix(get_event_authorization::v1::Response::new(chain)))
}

/// `GET /_matrix/federation/v1/backfill/{roomId}`
async fn get_backfill(
    State(history): State<SharedHistory>,
    State(us): State<Transactions>,
    State(clock): State<Clock>,
    Signed { origin, body }: Signed<get_backfill::v1::Request>,
) -> Result<Matrix<get_backfill::v1::Response>, MatrixError> {
    let limit = usize::try_from(body.limit).unwrap_or(usize::MAX);
    let pdus = history
        .backfill(&origin, &body.room_id, &body.v, limit)
        .await?;
    let name = us.server_name().to_owned();
    Ok(Matrix(get_backfill::v1::Response::new(
        name,
        clock.now(),
        pdus,
    )))
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`. Servers leave out lists that are empty.
async fn get_missing_events(
    State(history): State<SharedHistory>,
    request: SignedJson,
) -> Result<Matrix<get_missing_events::v1::Response>, MatrixError> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default = "usual_limit")]
        limit: UInt,
        #[serde(default)]
        earliest_events: Vec<OwnedEventId>,
        #[serde(default)]
        latest_events: Vec<OwnedEventId>,
    }
    let body: Body = request.read()?;
    let [room_id] = request.path.as_slice() else {
        return Err(MatrixError::invalid_param("The room is missing"));
    };
    let room_id = RoomId::parse(room_id)
        .map_err(|_| MatrixError::invalid_param("The id of the room is malformed"))?;
    let limit = usize::try_from(body.limit).unwrap_or(usize::MAX);
    let (earliest, latest) = (&body.earliest_events, &body.latest_events);
    let events = history
        .missing(&request.origin, &room_id, earliest, latest, limit)
        .await?;
    Ok(Matrix(get_missing_events::v1::Response::new(events)))
}

fn usual_limit() -> UInt {
    UInt::from(10_u32)
}

fn ids(events: &[Arc<StoredEvent>]) -> Vec<OwnedEventId> {
    events
        .iter()
        .map(|event| event.pdu.event_id().to_owned())
        .collect()
}
