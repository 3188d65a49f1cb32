//! [Messages, events, and what is around them](https://spec.matrix.org/v1.19/client-server-api/#syncing).

use std::collections::BTreeSet;

use axum::extract::State;
use ruma::{
    RoomId,
    api::client::{
        context::get_context,
        message::get_message_events,
        room::{get_event_by_timestamp, get_room_event},
    },
};

use crate::{
    api::{
        Routes,
        error::MatrixError,
        extract::{Authenticated, Matrix},
    },
    service::{
        accounts::Requester,
        backfill::Backfill,
        relations::Relations,
        timeline::{Direction, Page, PageAsk, PageToken, Timeline},
    },
};

/// How many events a page has at most.
const MAX_PAGE: u64 = 1_000;
/// How many pieces of history are fetched from others to fill a page: those may give little at a time, and
/// of that a user may see little.
const MAX_PIECES: usize = 5;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add::<get_message_events::v3::Request, _, _>(get_message_events)
        .add::<get_event_by_timestamp::v1::Request, _, _>(get_event_by_timestamp)
        .add::<get_room_event::v3::Request, _, _>(get_room_event)
        .add::<get_context::v3::Request, _, _>(get_context)
}

/// Reads a place in a timeline.
pub(super) fn page_token(text: Option<&str>) -> Result<Option<PageToken>, MatrixError> {
    let wrong = |_| MatrixError::invalid_param("The token is malformed");
    text.map(str::parse).transpose().map_err(wrong)
}

/// How many events a page has, within bounds.
pub(super) fn limit(asked: ruma::UInt) -> usize {
    usize::try_from(u64::from(asked).clamp(1, MAX_PAGE)).unwrap_or(1)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`
async fn get_message_events(
    State(timeline): State<Timeline>,
    State(backfill): State<Backfill>,
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<get_message_events::v3::Request>,
) -> Result<Matrix<get_message_events::v3::Response>, MatrixError> {
    let direction = match body.dir {
        ruma::api::Direction::Backward => Direction::Backwards,
        ruma::api::Direction::Forward => Direction::Forwards,
    };
    let from = page_token(body.from.as_deref())?;
    let ask = PageAsk {
        from,
        direction,
        limit: limit(body.limit),
        filter: &body.filter,
    };
    let mut page = timeline
        .page(&requester.user_id, &body.room_id, ask)
        .await?;
    if direction == Direction::Backwards && page.end.is_none() {
        page = with_history(&timeline, &backfill, (&requester, &body.room_id), ask, page).await?;
    }
    let mut response = get_message_events::v3::Response::new();
    response.start = page.start.to_string();
    // Also on the last page: clients take an `end` that is missing for an empty page.
    let last = page.events.last().and_then(|event| event.position);
    let last = last.map(|position| match direction {
        Direction::Backwards => PageToken(position - 1),
        Direction::Forwards => PageToken(position),
    });
    response.end = page.end.or(last).map(|token| token.to_string());
    if !body.filter.lazy_load_options.is_disabled() {
        let events = page.events.iter().map(AsRef::as_ref);
        response.state = timeline.speakers(&requester, &body.room_id, events).await?;
    }
    response.chunk = relations.bundled(&requester, &page.events).await?;
    Ok(Matrix(response))
}

/// A page at the beginning of what is here, with what others have of the time before.
async fn with_history(
    timeline: &Timeline,
    backfill: &Backfill,
    (requester, room_id): (&Requester, &RoomId),
    ask: PageAsk<'_>,
    mut page: Page,
) -> Result<Page, MatrixError> {
    for _ in 0..MAX_PIECES {
        if page.end.is_some() || !backfill.earlier(room_id).await? {
            return Ok(page);
        }
        page = timeline.page(&requester.user_id, room_id, ask).await?;
    }
    // There may be more, which is for the next request.
    page.end.get_or_insert(page.reached);
    Ok(page)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`
async fn get_room_event(
    State(timeline): State<Timeline>,
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<get_room_event::v3::Request>,
) -> Result<Matrix<get_room_event::v3::Response>, MatrixError> {
    let found = timeline
        .visible_event(&requester.user_id, &body.room_id, &body.event_id)
        .await?;
    let missing = || MatrixError::not_found("There is no such event");
    let event = found.ok_or_else(missing)?;
    let shown = relations.bundled(&requester, &[event]).await?;
    let json = shown.into_iter().next().ok_or_else(missing)?;
    Ok(Matrix(get_room_event::v3::Response::new(json)))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
async fn get_event_by_timestamp(
    State(timeline): State<Timeline>,
    State(backfill): State<Backfill>,
    Authenticated { requester, body }: Authenticated<get_event_by_timestamp::v1::Request>,
) -> Result<Matrix<get_event_by_timestamp::v1::Response>, MatrixError> {
    let (user_id, room_id) = (&requester.user_id, &body.room_id);
    let direction = match body.dir {
        ruma::api::Direction::Backward => Direction::Backwards,
        ruma::api::Direction::Forward => Direction::Forwards,
    };
    timeline.readable(user_id, room_id).await?;
    for _ in 0..MAX_PIECES {
        if !(timeline.begins_after(room_id, body.ts).await? && backfill.earlier(room_id).await?) {
            break;
        }
    }
    let found = timeline
        .at_time(user_id, room_id, body.ts, direction)
        .await?;
    let event = found.ok_or_else(|| MatrixError::not_found("There is no event at that time"))?;
    Ok(Matrix(get_event_by_timestamp::v1::Response::new(
        event.pdu.event_id().to_owned(),
        event.pdu.origin_server_ts(),
    )))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`
async fn get_context(
    State(timeline): State<Timeline>,
    State(relations): State<Relations>,
    Authenticated { requester, body }: Authenticated<get_context::v3::Request>,
) -> Result<Matrix<get_context::v3::Response>, MatrixError> {
    let (user_id, room_id) = (&requester.user_id, &body.room_id);
    let found = timeline
        .visible_event(user_id, room_id, &body.event_id)
        .await?;
    let missing = || MatrixError::not_found("There is no such event");
    if found.is_none() {
        // Whoever may not look into the room learns that, and not what is in it.
        timeline.readable(user_id, room_id).await?;
    }
    let event = found.ok_or_else(missing)?;
    let position = event.position.ok_or_else(missing)?;
    // Of both together; none is as good as some.
    let most = usize::try_from(u64::from(body.limit).min(MAX_PAGE)).unwrap_or(0);
    let (earlier, later) = (PageToken(position - 1), PageToken(position));
    let ask = |from, direction, limit| PageAsk {
        from: Some(from),
        direction,
        limit,
        filter: &body.filter,
    };
    let ask_before = ask(earlier, Direction::Backwards, most / 2);
    let before = timeline.page(user_id, room_id, ask_before).await?;
    let ask_after = ask(later, Direction::Forwards, most - most / 2);
    let after = timeline.page(user_id, room_id, ask_after).await?;
    let mut response = get_context::v3::Response::new();
    response.start = Some(before.end.unwrap_or(earlier).to_string());
    response.end = Some(after.end.unwrap_or(later).to_string());
    let shown = before.events.iter().chain(&after.events).chain([&event]);
    let speakers: BTreeSet<_> = shown.map(|event| event.pdu.sender().as_str()).collect();
    let lazy = !body.filter.lazy_load_options.is_disabled();
    let last = after.events.last().unwrap_or(&event);
    let state = timeline.state_after(&requester, last, |event| {
        let member = event.pdu.membership_target();
        !lazy || member.is_none_or(|user_id| speakers.contains(user_id.as_str()))
    });
    response.state = state.await?;
    response.event = relations.bundled(&requester, &[event]).await?.pop();
    response.events_before = relations.bundled(&requester, &before.events).await?;
    response.events_after = relations.bundled(&requester, &after.events).await?;
    Ok(Matrix(response))
}
