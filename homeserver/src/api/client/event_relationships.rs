//! [Relationships between events, and threads](https://spec.matrix.org/v1.19/client-server-api/#relationships-between-events).

use axum::extract::State;
use ruma::{
    OwnedEventId, OwnedRoomId, UInt,
    api::client::{
        relations::{
            get_relating_events, get_relating_events_with_rel_type,
            get_relating_events_with_rel_type_and_event_type,
        },
        threads::get_threads,
    },
    events::AnyMessageLikeEvent,
    serde::Raw,
};

use super::messages::{limit, page_token};
use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        accounts::Requester,
        relations::{ChildrenAsk, MAX_DEPTH, Relations, RelationsError},
        timeline::Direction,
    },
};

/// How many events a page has if the client does not say.
const PAGE: u32 = 50;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_relating_events::v1::Request, _, _>(get_relating_events)
        .add::<get_relating_events_with_rel_type::v1::Request, _, _>(of_type)
        .add::<get_relating_events_with_rel_type_and_event_type::v1::Request, _, _>(of_both_types)
        .add::<get_threads::v1::Request, _, _>(get_threads)
}

impl From<RelationsError> for MatrixError {
    fn from(error: RelationsError) -> Self {
        match error {
            RelationsError::NotFound => Self::not_found("There is no such event"),
            RelationsError::Read(error) => error.into(),
        }
    }
}

/// What the three endpoints have in common.
struct Ask {
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    rel_type: Option<String>,
    event_type: Option<String>,
    from: Option<String>,
    to: Option<String>,
    direction: ruma::api::Direction,
    limit: Option<UInt>,
    recurse: bool,
}

/// What the three endpoints answer.
struct Found {
    chunk: Vec<Raw<AnyMessageLikeEvent>>,
    next_batch: Option<String>,
    prev_batch: Option<String>,
    recursion_depth: Option<UInt>,
}

async fn children(
    relations: &Relations,
    requester: &Requester,
    ask: Ask,
) -> Result<Found, MatrixError> {
    let found = relations
        .children(
            requester,
            ChildrenAsk {
                room_id: &ask.room_id,
                parent: &ask.event_id,
                rel_type: ask.rel_type.as_deref(),
                event_type: ask.event_type.as_deref(),
                recurse: ask.recurse,
                direction: match ask.direction {
                    ruma::api::Direction::Backward => Direction::Backwards,
                    ruma::api::Direction::Forward => Direction::Forwards,
                },
                from: page_token(ask.from.as_deref())?,
                to: page_token(ask.to.as_deref())?,
                limit: limit(ask.limit.unwrap_or(PAGE.into())),
            },
        )
        .await?;
    Ok(Found {
        chunk: relations.bundled(requester, &found.events).await?,
        next_batch: found.next.map(|token| token.to_string()),
        prev_batch: ask.from,
        recursion_depth: ask.recurse.then(|| MAX_DEPTH.into()),
    })
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`
async fn get_relating_events(
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<get_relating_events::v1::Request>,
) -> Result<Matrix<get_relating_events::v1::Response>, MatrixError> {
    let ask = Ask {
        room_id: body.room_id,
        event_id: body.event_id,
        rel_type: None,
        event_type: None,
        from: body.from,
        to: body.to,
        direction: body.dir,
        limit: body.limit,
        recurse: body.recurse,
    };
    let found = children(&relations, &requester, ask).await?;
    let mut response = get_relating_events::v1::Response::new(found.chunk);
    response.next_batch = found.next_batch;
    response.prev_batch = found.prev_batch;
    response.recursion_depth = found.recursion_depth;
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}`
async fn of_type(
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<
        get_relating_events_with_rel_type::v1::Request,
    >,
) -> Result<Matrix<get_relating_events_with_rel_type::v1::Response>, MatrixError> {
    let ask = Ask {
        room_id: body.room_id,
        event_id: body.event_id,
        rel_type: Some(body.rel_type.to_string()),
        event_type: None,
        from: body.from,
        to: body.to,
        direction: body.dir,
        limit: body.limit,
        recurse: body.recurse,
    };
    let found = children(&relations, &requester, ask).await?;
    let mut response = get_relating_events_with_rel_type::v1::Response::new(found.chunk);
    response.next_batch = found.next_batch;
    response.prev_batch = found.prev_batch;
    response.recursion_depth = found.recursion_depth;
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`
async fn of_both_types(
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<
        get_relating_events_with_rel_type_and_event_type::v1::Request,
    >,
) -> Result<Matrix<get_relating_events_with_rel_type_and_event_type::v1::Response>, MatrixError> {
    let ask = Ask {
        room_id: body.room_id,
        event_id: body.event_id,
        rel_type: Some(body.rel_type.to_string()),
        event_type: Some(body.event_type.to_string()),
        from: body.from,
        to: body.to,
        direction: body.dir,
        limit: body.limit,
        recurse: body.recurse,
    };
    let found = children(&relations, &requester, ask).await?;
    let mut response =
        get_relating_events_with_rel_type_and_event_type::v1::Response::new(found.chunk);
    response.next_batch = found.next_batch;
    response.prev_batch = found.prev_batch;
    response.recursion_depth = found.recursion_depth;
    Ok(Matrix(response))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`
async fn get_threads(
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<get_threads::v1::Request>,
) -> Result<Matrix<get_threads::v1::Response>, MatrixError> {
    let from = page_token(body.from.as_deref())?;
    let limit = limit(body.limit.unwrap_or(PAGE.into()));
    let found = relations
        .threads(&requester, &body.room_id, &body.include, from, limit)
        .await?;
    let chunk = relations.bundled(&requester, &found.events).await?;
    let mut response = get_threads::v1::Response::new(chunk);
    response.next_batch = found.next.map(|token| token.to_string());
    Ok(Matrix(response))
}
