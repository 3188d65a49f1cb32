//! Rooms that contain rooms, and what is told of a room to those who are not in it
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#spaces)).

mod children;
mod remote;
mod walk;

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, ServerName, UserId,
    events::{room::member::MembershipState, space::child::HierarchySpaceChildEvent},
    room::{RoomSummary, RoomType},
    serde::Raw,
};

pub(crate) use self::walk::{HierarchyAsk, HierarchyError};
use self::{children::Child, remote::Kept};
use super::{
    federation::Federation,
    room_summaries::{Asker, RoomSummaries},
    timeline::Timeline,
};
use crate::{
    clock::Clock,
    storage::{Storage, StorageError, state_map::NodeId},
};

/// Tells of rooms and of what is in them.
#[derive(Clone)]
pub(crate) struct Spaces {
    storage: Storage,
    timeline: Timeline,
    summaries: RoomSummaries,
    federation: Federation,
    clock: Clock,
    /// The rooms in a space, by its state.
    children: Arc<Cache<NodeId, Arc<Vec<Child>>>>,
    /// What other servers told.
    kept: Arc<Cache<OwnedRoomId, Kept>>,
}

/// A room, and the rooms in it.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) summary: RoomSummary,
    children: Arc<Vec<Child>>,
}

impl Space {
    fn is_space(&self) -> bool {
        self.summary.room_type == Some(RoomType::Space)
    }

    /// The rooms in it, in the order of the specification.
    fn children(&self, suggested_only: bool) -> impl DoubleEndedIterator<Item = &Child> {
        let children = self.children.iter();
        children.filter(move |child| child.suggested || !suggested_only)
    }

    /// The events that say so.
    pub(crate) fn events(&self, suggested_only: bool) -> Vec<Raw<HierarchySpaceChildEvent>> {
        let children = self.children(suggested_only);
        children.map(|child| child.event.clone()).collect()
    }
}

/// A space, as another server gets it.
#[derive(Debug)]
pub(crate) struct ForServer {
    pub(crate) space: Space,
    pub(crate) children: Vec<RoomSummary>,
    pub(crate) inaccessible: Vec<OwnedRoomId>,
}

impl Spaces {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        summaries: RoomSummaries,
        federation: Federation,
        clock: Clock,
    ) -> Self {
        Self {
            storage,
            timeline,
            summaries,
            federation,
            clock,
            children: Arc::new(Cache::new(1_024)),
            kept: Arc::new(Cache::new(1_024)),
        }
    }

    /// What a room says about itself, and what the asker is to it; `None` if there is no such room, or it is none
    /// of the asker's business
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias)).
    pub(crate) async fn summary(
        &self,
        asker: Option<&UserId>,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Option<(RoomSummary, Option<MembershipState>)>, StorageError> {
        let found = match self.local(room_id).await? {
            Some(space) => Some(space),
            // Other servers are only asked for those who say who they are.
            None if asker.is_some() => self.told(room_id, via).await.map(|told| told.space.clone()),
            None => None,
        };
        let may_know = |space: &Space| {
            let asker = asker.map_or(Asker::Nobody, Asker::User);
            self.summaries.may_know(asker, &space.summary)
        };
        let membership = asker.map(|asker| self.summaries.membership(asker, room_id));
        Ok(found
            .filter(may_know)
            .map(|space| (space.summary, membership)))
    }

    /// A space as another server may know it; `None` if it may not
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1hierarchyroomid)).
    pub(crate) async fn for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<Option<ForServer>, StorageError> {
        let asker = Asker::Server(server);
        let space = self.local(room_id).await?;
        let may_know = |space: &Space| self.summaries.may_know(asker, &space.summary);
        let Some(space) = space.filter(may_know) else {
            return Ok(None);
        };
        let (mut children, mut inaccessible) = (Vec::new(), Vec::new());
        for child in space.children(suggested_only) {
            match self.local(&child.room_id).await? {
                Some(child) if self.summaries.may_know(asker, &child.summary) => {
                    children.push(child.summary);
                }
                Some(child) => inaccessible.push(child.summary.room_id),
                // Perhaps others know it.
                None => {}
            }
        }
        Ok(Some(ForServer {
            space,
            children,
            inaccessible,
        }))
    }

    /// A room that this server is in.
    async fn local(&self, room_id: &RoomId) -> Result<Option<Space>, StorageError> {
        if self
            .storage
            .log()
            .roster()
            .local_members(room_id)
            .is_empty()
        {
            return Ok(None);
        }
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(None);
        };
        let (Some(head), Some(summary)) = (&room.head, self.summaries.of(&room).await?) else {
            return Ok(None);
        };
        let children = if summary.room_type == Some(RoomType::Space) {
            self.children_of(head.state).await?
        } else {
            Arc::default()
        };
        Ok(Some(Space { summary, children }))
    }
}
