//! Events that relate to others: reading them, threads, and what is bundled with the event that they
//! relate to
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#relationships-between-events)).

mod bundle;

use std::sync::Arc;

use ruma::{EventId, OwnedEventId, RoomId, api::client::threads::get_threads::v1::IncludeThreads};

pub(crate) use self::bundle::Bundles;
use super::{
    accounts::Requester,
    timeline::{Direction, PageToken, ReadError, Timeline},
};
use crate::storage::{
    Families, Storage, StorageError,
    events::{Slice, StoredEvent},
    relations::RelationsAsk,
};

/// How far relations of relations are followed.
pub(crate) const MAX_DEPTH: u32 = 3;
/// How many pages of threads are looked through for those of one user.
const ROUNDS: usize = 8;

/// Reads what relates to what.
#[derive(Clone)]
pub(crate) struct Relations {
    storage: Storage,
    timeline: Timeline,
}

/// Which of the events that relate to one are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildrenAsk<'a> {
    pub(crate) room_id: &'a RoomId,
    pub(crate) parent: &'a EventId,
    pub(crate) rel_type: Option<&'a str>,
    pub(crate) event_type: Option<&'a str>,
    /// Whether also what relates to what relates to the parent, and so on.
    pub(crate) recurse: bool,
    pub(crate) direction: Direction,
    pub(crate) from: Option<PageToken>,
    pub(crate) to: Option<PageToken>,
    pub(crate) limit: usize,
}

impl ChildrenAsk<'_> {
    /// Whether an event at this position is beyond the end that was asked for.
    fn ends_before(&self, position: i64) -> bool {
        match (self.direction, self.to) {
            (_, None) => false,
            (Direction::Backwards, Some(to)) => position <= to.0,
            (Direction::Forwards, Some(to)) => position > to.0,
        }
    }

    /// Where to go on after an event.
    fn after(&self, position: i64) -> PageToken {
        match self.direction {
            Direction::Backwards => PageToken(position - 1),
            Direction::Forwards => PageToken(position),
        }
    }
}

/// A part of a list of events.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) events: Vec<Arc<StoredEvent>>,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<PageToken>,
}

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelationsError {
    /// There is no such event, or none that the user may see.
    #[error("there is no such event")]
    NotFound,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<StorageError> for RelationsError {
    fn from(error: StorageError) -> Self {
        Self::Read(error.into())
    }
}

impl Relations {
    pub(crate) fn new(storage: Storage, timeline: Timeline) -> Self {
        Self { storage, timeline }
    }

    /// The events that relate to one
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventid)).
    pub(crate) async fn children(
        &self,
        requester: &Requester,
        ask: ChildrenAsk<'_>,
    ) -> Result<Chunk, RelationsError> {
        let user_id = &requester.user_id;
        let visible = self
            .timeline
            .visible_event(user_id, ask.room_id, ask.parent);
        visible.await?.ok_or(RelationsError::NotFound)?;
        let newest = self.timeline.readable(user_id, ask.room_id).await?.until;
        let slice = match ask.direction {
            Direction::Backwards => Slice::Backwards {
                at_most: ask.from.map_or(newest, |from| from.0.min(newest)),
            },
            Direction::Forwards => Slice::Forwards {
                above: ask.from.map_or(i64::MIN, |from| from.0),
            },
        };
        let wanted = RelationsAsk {
            parent: ask.parent,
            depth: if ask.recurse { MAX_DEPTH.into() } else { 1 },
            rel_type: ask.rel_type,
            event_type: ask.event_type,
            slice,
            limit: i64::try_from(ask.limit + 1).unwrap_or(i64::MAX),
        };
        let nids = {
            let mut reader = self.storage.read().await?;
            reader.relations().children(wanted).await?
        };
        let mut found = self.timeline.events.by_nids(&nids).await?;
        let (mut events, mut next) = (Vec::new(), None);
        for (index, event) in nids.iter().filter_map(|nid| found.remove(nid)).enumerate() {
            let Some(position) = event
                .position
                .filter(|position| !ask.ends_before(*position))
            else {
                next = None;
                break;
            };
            if index == ask.limit {
                break;
            }
            let is_last = index + 1 == ask.limit && nids.len() > ask.limit;
            next = is_last.then(|| ask.after(position));
            if position <= newest
                && event.pdu.room_id() == ask.room_id
                && let Some(event) = self.timeline.visible(user_id, event).await?
            {
                events.push(event);
            }
        }
        Ok(Chunk { events, next })
    }

    /// The threads of a room by their latest event, the liveliest first
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidthreads)).
    pub(crate) async fn threads(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        include: &IncludeThreads,
        from: Option<PageToken>,
        limit: usize,
    ) -> Result<Chunk, RelationsError> {
        let user_id = &requester.user_id;
        let readable = self.timeline.readable(user_id, room_id).await?;
        let mut at_most = from.map_or(readable.until, |from| from.0.min(readable.until));
        let asked = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut events = Vec::new();
        for _ in 0..ROUNDS {
            let (threads, groups) = {
                let mut reader = self.storage.read().await?;
                let mut relations = reader.relations();
                let threads = relations.threads(readable.room.nid, readable.until, at_most, asked);
                let threads = threads.await?;
                let roots: Vec<OwnedEventId> = threads.iter().map(|t| t.root.clone()).collect();
                let groups = match include {
                    IncludeThreads::Participated => relations.groups(&roots).await?,
                    _ => Vec::new(),
                };
                (threads, groups)
            };
            let roots: Vec<_> = threads.iter().map(|thread| thread.root.clone()).collect();
            let mut found = self.timeline.events.by_ids(&roots).await?;
            let complete = threads.len() < limit;
            for thread in threads {
                at_most = thread.last - 1;
                let Some(root) = found.remove(&thread.root) else {
                    continue;
                };
                let wrote = || {
                    groups.iter().any(|group| {
                        group.parent == thread.root
                            && group.rel_type == "m.thread"
                            && group.sender == *user_id
                    })
                };
                let wanted = *include != IncludeThreads::Participated
                    || root.pdu.sender() == user_id
                    || wrote();
                if wanted
                    && root.pdu.room_id() == room_id
                    && let Some(root) = self.timeline.visible(user_id, root).await?
                {
                    events.push(root);
                    if events.len() == limit {
                        return Ok(Chunk {
                            events,
                            next: Some(PageToken(at_most)),
                        });
                    }
                }
            }
            if complete {
                return Ok(Chunk { events, next: None });
            }
        }
        Ok(Chunk {
            events,
            next: Some(PageToken(at_most)),
        })
    }
}
