//! [Syncing as it was before `/sync`](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3initialsync),
//! and looking into rooms without joining them
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-previews)).

use std::{str::FromStr, time::Duration};

use axum::{extract::State, routing::get};
use ruma::{EventId, RoomId};
use serde_json::json;

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Plain, Untyped},
        standing,
    },
    service::{
        accounts::Accounts,
        old_sync::{OldSync, Stretch},
        sync::SyncToken,
    },
};

/// How many events of a room come if nothing is said.
const LIMIT: u32 = 10;
/// How long is waited for news at most, in milliseconds.
const LONGEST: u64 = 300_000;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .raw("/_matrix/client/v3/initialSync", get(initial_sync))
        .raw(
            "/_matrix/client/v3/rooms/{room_id}/initialSync",
            get(room_initial_sync),
        )
        .raw("/_matrix/client/v3/events", get(events))
        .raw("/_matrix/client/v3/events/{event_id}", get(event))
}

/// `GET /_matrix/client/v3/initialSync`
async fn initial_sync(State(old): State<OldSync>, request: Untyped) -> Result<Plain, MatrixError> {
    let limit = parameter(&request, "limit")?.unwrap_or(LIMIT);
    let archived = request.query("archived") == Some("true");
    Ok(Plain(
        old.initial(&request.requester, limit.min(1_000), archived)
            .await?,
    ))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/initialSync`
async fn room_initial_sync(
    State(old): State<OldSync>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let limit = parameter(&request, "limit")?.unwrap_or(LIMIT);
    let room_id = request.path.first().map(RoomId::parse);
    let room_id = room_id.and_then(Result::ok);
    let room_id = room_id.ok_or_else(|| MatrixError::invalid_param("The room id is malformed"))?;
    Ok(Plain(
        old.room(&request.requester, &room_id, limit.min(1_000))
            .await?,
    ))
}

/// `GET /_matrix/client/v3/events`
async fn events(
    State(old): State<OldSync>,
    State(accounts): State<Accounts>,
    request: Untyped,
) -> Result<Plain, MatrixError> {
    let from = parameter::<SyncToken>(&request, "from")?;
    let wait = parameter::<u64>(&request, "timeout")?.unwrap_or(0);
    let wait = Duration::from_millis(wait.min(LONGEST));
    // What there is comes in one piece, but nonsense is refused.
    parameter::<u32>(&request, "limit")?;
    let requester = &request.requester;
    let Stretch { start, end, chunk } = match request.query("room_id") {
        // Guests look into rooms.
        None if accounts.is_guest(&requester.user_id).await? => return Err(standing::no_guests()),
        None => old.events(requester, from, wait).await?,
        Some(room_id) => {
            let room_id = RoomId::parse(room_id);
            let room_id =
                room_id.map_err(|_| MatrixError::invalid_param("The room id is malformed"))?;
            old.peek(requester, &room_id, from, wait).await?
        }
    };
    Ok(Plain(json!({ "start": start, "end": end, "chunk": chunk })))
}

/// `GET /_matrix/client/v3/events/{eventId}`
async fn event(State(old): State<OldSync>, request: Untyped) -> Result<Plain, MatrixError> {
    let missing = || MatrixError::not_found("There is no such event");
    let event_id = request.path.first().and_then(|id| EventId::parse(id).ok());
    let event_id = event_id.ok_or_else(missing)?;
    let event = old.event(&request.requester, &event_id).await?;
    event.map(Plain).ok_or_else(missing)
}

fn parameter<T: FromStr>(request: &Untyped, name: &str) -> Result<Option<T>, MatrixError> {
    let given = request.query(name).filter(|given| !given.is_empty());
    let parsed = given.map(str::parse).transpose();
    parsed.map_err(|_| MatrixError::invalid_param(format!("`{name}` is malformed")))
}
