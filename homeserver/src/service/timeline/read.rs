//! Reading timelines back: pages of messages, single events, what is around them.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::filter::RoomEventFilter,
    events::{AnyStateEvent, StateEventType, TimelineEventType, room::member::MembershipState},
    serde::Raw,
};

use super::Timeline;
use crate::{
    service::{accounts::Requester, filter},
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
        // A sync token may have a second part, which is about messages between devices.
        let text = text.strip_prefix('s').unwrap_or(text);
        let text = text.split_once('_').map_or(text, |(position, _)| position);
        text.parse().map(Self)
    }
}

/// How often a page is filled up when a filter left it short.
const ROUNDS: usize = 8;
/// How many events are looked at in one go when a filter may want few of them.
const STEP: usize = 100;

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Backwards,
    Forwards,
}

/// Which part of a timeline is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageAsk<'a> {
    /// Where to begin; `None` for the end that is read from.
    pub(crate) from: Option<PageToken>,
    pub(crate) direction: Direction,
    /// How many events at most.
    pub(crate) limit: usize,
    /// Which events.
    pub(crate) filter: &'a RoomEventFilter,
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
    /// Where reading stopped, also if nothing is left here.
    pub(crate) reached: PageToken,
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
    /// What a user may read of a room.
    pub(crate) async fn readable(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Readable, ReadError> {
        let place = self.storage.log().roster().place(user_id, room_id);
        let place = place.filter(|place| !place.forgotten);
        let room = self
            .heads
            .room(room_id)
            .await?
            .ok_or(ReadError::NotInRoom)?;
        let head = room.head.as_ref().ok_or(ReadError::NotInRoom)?;
        let joined = place.as_ref().map(|place| &place.membership) == Some(&MembershipState::Join);
        // Everybody sees what is open to the world, whether they were there or not.
        let open = joined || self.visibility.is_world_readable(head.state).await?;
        // Who is banned has nothing more to do with the room.
        let place = place.filter(|place| place.membership != MembershipState::Ban);
        match place.and_then(|place| place.joined_until) {
            _ if open => Ok(Readable {
                state: head.state,
                until: i64::MAX,
                room,
            }),
            Some(until) => {
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
            None => Err(ReadError::NotInRoom),
        }
    }

    /// A page of the timeline of a room that the user may read
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages)).
    pub(crate) async fn page(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        ask: PageAsk<'_>,
    ) -> Result<Page, ReadError> {
        let readable = self.readable(user_id, room_id).await?;
        let newest = self.storage.log().position().0.min(readable.until);
        let start = ask.from.unwrap_or(match ask.direction {
            Direction::Backwards => PageToken(newest),
            Direction::Forwards => PageToken(i64::MIN),
        });
        let step = if filter::allows_all(ask.filter) {
            ask.limit
        } else {
            ask.limit.max(STEP)
        };
        let asked = i64::try_from(step).unwrap_or(i64::MAX);
        let (mut last, mut events, mut complete) = (start.0, Vec::new(), false);
        // What the filter does not let through is made up for, within bounds: there is always a next page.
        for _ in 0..ROUNDS {
            let slice = match ask.direction {
                Direction::Backwards => Slice::Backwards {
                    at_most: last.min(newest),
                },
                Direction::Forwards => Slice::Forwards { above: last },
            };
            let mut reader = self.storage.read().await?;
            let found = reader
                .events()
                .slice(readable.room.nid, slice, asked)
                .await?;
            drop(reader);
            complete = found.len() < step;
            for event in found {
                let event = self.events.keep(event);
                let Some(position) = event.position else {
                    continue;
                };
                if position > newest || events.len() == ask.limit {
                    complete = position > newest;
                    break;
                }
                last = match ask.direction {
                    Direction::Backwards => position - 1,
                    Direction::Forwards => position,
                };
                if filter::wants_event(ask.filter, &event.pdu)
                    && let Some(event) = self.visibility.view(user_id, event).await?
                {
                    events.push(event);
                }
            }
            if complete || events.len() == ask.limit {
                break;
            }
        }
        let reached = PageToken(last);
        let end = (!complete).then_some(reached);
        Ok(Page {
            events,
            start,
            end,
            reached,
        })
    }

    /// The membership events of those who speak in a page
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members)).
    pub(crate) async fn speakers(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        events: impl Iterator<Item = &StoredEvent>,
    ) -> Result<Vec<Raw<AnyStateEvent>>, ReadError> {
        let readable = self.readable(&requester.user_id, room_id).await?;
        let speakers: BTreeSet<OwnedUserId> =
            events.map(|event| event.pdu.sender().to_owned()).collect();
        let mut found = Vec::with_capacity(speakers.len());
        for user_id in speakers {
            let member = StateEventType::RoomMember;
            let event = self
                .events
                .state_event(readable.state, &member, user_id.as_str())
                .await?;
            if let Some(event) = event {
                found.push(self.events.for_client_with_room(&event, requester).await?);
            }
        }
        Ok(found)
    }

    /// The state of a room as the user sees it, as far as `wanted` says.
    pub(crate) async fn state(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        wanted: impl Fn(&StoredEvent) -> bool + Send,
    ) -> Result<Vec<Raw<AnyStateEvent>>, ReadError> {
        let readable = self.readable(&requester.user_id, room_id).await?;
        self.show_state(requester, readable.state, wanted).await
    }

    /// The state of a room after an event that the user may see, as far as `wanted` says.
    pub(crate) async fn state_after(
        &self,
        requester: &Requester,
        event: &StoredEvent,
        wanted: impl Fn(&StoredEvent) -> bool + Send,
    ) -> Result<Vec<Raw<AnyStateEvent>>, ReadError> {
        let room_id = event.pdu.room_id();
        let readable = self.readable(&requester.user_id, room_id).await?;
        let state = event.state.map_or(readable.state, |state| state.after);
        self.show_state(requester, state, wanted).await
    }

    async fn show_state(
        &self,
        requester: &Requester,
        state: NodeId,
        wanted: impl Fn(&StoredEvent) -> bool + Send,
    ) -> Result<Vec<Raw<AnyStateEvent>>, ReadError> {
        let mut shown = Vec::new();
        for event in self.events.full_state(state).await? {
            if wanted(&event) {
                shown.push(self.events.for_client_with_room(&event, requester).await?);
            }
        }
        Ok(shown)
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
        self.readable(user_id, room_id).await?;
        self.heads.whole(room_id).await?;
        let readable = self.readable(user_id, room_id).await?;
        let mut events = self.events.full_state(readable.state).await?;
        events.retain(|event| *event.pdu.event_type() == TimelineEventType::RoomMember);
        Ok(events)
    }

    /// What a user may see of an event.
    pub(crate) async fn visible(
        &self,
        user_id: &UserId,
        event: Arc<StoredEvent>,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        self.visibility.view(user_id, event).await
    }

    /// Whom a user ignores.
    pub(crate) async fn ignored(
        &self,
        user_id: &UserId,
    ) -> Result<Arc<BTreeSet<OwnedUserId>>, StorageError> {
        self.visibility.ignored(user_id).await
    }

    /// An event, if it is in the room and the user may see it.
    pub(crate) async fn visible_event(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &ruma::EventId,
    ) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        let event = self.visible_anywhere(user_id, event_id).await?;
        Ok(event.filter(|event| event.pdu.room_id() == room_id))
    }

    /// An event of any room, if the user may see it.
    pub(crate) async fn visible_anywhere(
        &self,
        user_id: &UserId,
        event_id: &ruma::EventId,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        match self.events.by_id(event_id).await? {
            Some(event) => self.visibility.view(user_id, event).await,
            None => Ok(None),
        }
    }
}
