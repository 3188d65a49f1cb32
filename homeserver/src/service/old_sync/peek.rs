//! Watching a room without being in it
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#peeking_get_matrixclientv3events)).

use std::time::Duration;

use ruma::{
    OwnedUserId, RoomId, api::client::filter::RoomEventFilter,
    events::room::member::MembershipState,
};
use serde_json::{Value, json};

use super::{MOST_EVENTS, OldSync, Stretch, in_room, name_in_content, stream_token, with_room};
use crate::{
    service::{
        accounts::Requester,
        sync::{SyncToken, ephemeral::receipt_events},
        timeline::{Direction, PageAsk, PageToken, ReadError},
    },
    storage::{Families, StorageError, log::StreamPosition},
};

impl OldSync {
    /// As [`OldSync::events`], of one room that the user need not be in.
    pub(crate) async fn peek(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        from: Option<SyncToken>,
        wait: Duration,
    ) -> Result<Stretch, ReadError> {
        let mut positions = self.storage.log().positions();
        let start = from.map_or_else(|| self.storage.log().position(), |token| token.position);
        let deadline = tokio::time::sleep(wait);
        let mut deadline = std::pin::pin!(deadline);
        let mut last = wait.is_zero();
        loop {
            let until = *positions.borrow_and_update();
            let stretch = self.stretch(requester, room_id, start, until).await?;
            if !stretch.chunk.is_empty() || last {
                return Ok(stretch);
            }
            tokio::select! {
                changed = positions.changed() => last = changed.is_err(),
                () = &mut deadline => last = true,
                () = self.stopping.cancelled() => last = true,
            }
        }
    }

    /// What happened in a room from `start` on; at least up to `until`, if that is not too much.
    async fn stretch(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        start: StreamPosition,
        until: StreamPosition,
    ) -> Result<Stretch, ReadError> {
        let filter = RoomEventFilter::default();
        let ask = PageAsk {
            from: Some(PageToken(start.0)),
            direction: Direction::Forwards,
            limit: usize::try_from(MOST_EVENTS).unwrap_or(1),
            filter: &filter,
        };
        let page = self.timeline.page(&requester.user_id, room_id, ask).await?;
        let newest = page.events.last().and_then(|event| event.position);
        let end = newest.map_or(until.max(start), StreamPosition);
        let mut chunk = self.passing(requester, room_id, start, end).await?;
        for event in &page.events {
            let events = &self.timeline.events;
            let event = events.for_client_with_room::<()>(event, requester).await?;
            chunk.push(in_room(&event, room_id));
        }
        Ok(Stretch {
            start: stream_token(start),
            end: stream_token(end),
            chunk,
        })
    }

    /// Who came and went, typed and read in a room. Who was in the room and is not any more does not learn of
    /// it.
    async fn passing(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        start: StreamPosition,
        end: StreamPosition,
    ) -> Result<Vec<Value>, StorageError> {
        let roster = self.storage.log().roster();
        let place = roster.place(&requester.user_id, room_id);
        if place.is_some_and(|place| place.membership != MembershipState::Join) {
            return Ok(Vec::new());
        }
        let is_new = |position: StreamPosition| position > start && position <= end;
        let mut users = self.presence.everybody();
        users.retain(|user_id| {
            self.presence.position(user_id).is_some_and(is_new)
                && roster.is_joined(user_id, room_id)
        });
        let event = |user_id: OwnedUserId| {
            let mut event = self.presence.event(&user_id);
            name_in_content(&mut event);
            event
        };
        let mut chunk: Vec<Value> = users.into_iter().map(event).collect();
        let typing = self.typing.in_room(room_id);
        let typing = typing.filter(|(position, _)| is_new(*position));
        chunk.extend(typing.map(|(_, users)| {
            let typing = json!({ "type": "m.typing", "content": { "user_ids": users } });
            with_room(typing, room_id)
        }));
        let (rooms, user_id) = ([room_id.to_owned()], &requester.user_id);
        let mut reader = self.storage.read().await?;
        let mut receipts = reader.receipts();
        let receipts = receipts.changed(&rooms, user_id, start, end).await?;
        let receipts = receipt_events(&receipts).into_iter();
        chunk.extend(receipts.map(|event| with_room(event, room_id)));
        Ok(chunk)
    }
}
