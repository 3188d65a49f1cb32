//! Reading timelines back: pages of messages, single events, what is around them.

use std::{fmt, str::FromStr, sync::Arc};

use ruma::{
    RoomId, UserId,
    events::{AnyStateEvent, StateEventType, TimelineEventType, room::member::MembershipState},
    serde::Raw,
};

use super::Timeline;
use crate::{
    service::{accounts::Requester, visibility::Visibility},
    storage::{
        Families, StorageError,
        events::{Slice, StoredEvent},
        rooms::Room,
        state_map::NodeId,
    },
};

/// A place between two events of a timeline: after the event with this position, before the next. Tokens
/// of sync are such places too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageToken(pub(crate) i64);

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl FromStr for PageToken {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix('s').unwrap_or(text).parse().map(Self)
    }
}

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Backwards,
    Forwards,
}

/// A part of a timeline.
#[derive(Debug)]
pub(crate) struct Page {
    /// In the order of reading.
    pub(crate) events: Vec<Arc<StoredEvent>>,
    /// Where it began.
    pub(crate) start: PageToken,
    /// Where to go on; `None` at the end.
    pub(crate) end: Option<PageToken>,
}

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The user was never in the room, or there is no such room: which of them is not said.
    #[error("the room is not open to the user")]
    NotInRoom,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a user may read of a room.
#[derive(Debug)]
pub(crate) struct Readable {
    pub(crate) room: Room,
    /// The state that the user sees as the current one: the room's, or, for one who left, that of the
    /// moment of leaving.
    pub(crate) state: NodeId,
    /// Nothing after this position is shown.
    pub(crate) until: i64,
}

impl Timeline {
    fn visibility(&self) -> Visibility {
        Visibility::new(self.storage.clone(), self.events.clone())
    }

    /// What a user may read of a room.
    pub(crate) async fn readable(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Readable, ReadError> {
        let place = self.storage.log().roster().place(user_id, room_id);
        let place = place
            .filter(|place| !place.forgotten)
            .ok_or(ReadError::NotInRoom)?;
        let room = self
            .heads
            .room(room_id)
            .await?
            .ok_or(ReadError::NotInRoom)?;
        let head = room.head.as_ref().ok_or(ReadError::NotInRoom)?;
        match (place.membership, place.joined_until) {
            (MembershipState::Join, _) => Ok(Readable {
                state: head.state,
                until: i64::MAX,
                room,
            }),
            (_, Some(until)) => {
                let mut reader = self.storage.read().await?;
                let slice = Slice::Backwards { at_most: until.0 };
                let last = reader.events().slice(room.nid, slice, 1).await?;
                let state = last
                    .first()
                    .and_then(|event| event.state)
                    .map(|state| state.head);
                let state = state.ok_or(ReadError::NotInRoom)?;
                Ok(Readable {
                    state,
                    until: until.0,
                    room,
                })
            }
            _ => Err(ReadError::NotInRoom),
        }
    }

    /// A page of the timeline of a room that the user may read
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages)).
    pub(crate) async fn page(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        from: Option<PageToken>,
        direction: Direction,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let readable = self.readable(user_id, room_id).await?;
        let newest = self.storage.log().position().0.min(readable.until);
        let start = from.unwrap_or(match direction {
            Direction::Backwards => PageToken(newest),
            Direction::Forwards => PageToken(i64::MIN),
        });
        let slice = match direction {
            Direction::Backwards => Slice::Backwards {
                at_most: start.0.min(newest),
            },
            Direction::Forwards => Slice::Forwards { above: start.0 },
        };
        let asked = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = self
            .storage
            .read()
            .await?
            .events()
            .slice(readable.room.nid, slice, asked)
            .await?;
        let complete = found.len() < limit;
        let mut last = start.0;
        let mut events = Vec::with_capacity(found.len());
        for event in found {
            let event = self.events.keep(event);
            let Some(position) = event.position else {
                continue;
            };
            if position > newest {
                break;
            }
            last = match direction {
                Direction::Backwards => position - 1,
                Direction::Forwards => position,
            };
            if self.visibility().allows(user_id, &event).await? {
                events.push(event);
            }
        }
        let end = (!complete).then_some(PageToken(last));
        Ok(Page { events, start, end })
    }

    /// The state of a room as the user sees it.
    pub(crate) async fn state(
        &self,
        requester: &Requester,
        room_id: &RoomId,
    ) -> Result<Vec<Raw<AnyStateEvent>>, ReadError> {
        let readable = self.readable(&requester.user_id, room_id).await?;
        let mut state = Vec::new();
        for event in self.events.full_state(readable.state).await? {
            state.push(self.events.for_client_with_room(&event, requester).await?);
        }
        Ok(state)
    }

    /// An event of the state of a room as the user sees it.
    pub(crate) async fn state_event(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_type: &StateEventType,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        let readable = self.readable(user_id, room_id).await?;
        Ok(self
            .events
            .state_event(readable.state, event_type, state_key)
            .await?)
    }

    /// The membership events of a room as the user sees it.
    pub(crate) async fn members(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Vec<Arc<StoredEvent>>, ReadError> {
        let readable = self.readable(user_id, room_id).await?;
        let mut events = self.events.full_state(readable.state).await?;
        events.retain(|event| *event.pdu.event_type() == TimelineEventType::RoomMember);
        Ok(events)
    }

    /// An event, if it is in the room and the user may see it.
    pub(crate) async fn visible_event(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &ruma::EventId,
    ) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        let event = self.events.by_id(event_id).await?;
        let Some(event) = event.filter(|event| event.pdu.room_id() == room_id) else {
            return Ok(None);
        };
        Ok(self
            .visibility()
            .allows(user_id, &event)
            .await?
            .then_some(event))
    }
}
