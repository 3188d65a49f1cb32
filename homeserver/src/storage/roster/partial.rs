//! What is known of rooms whose members are missing, and of how they got them.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use ruma::{OwnedRoomId, OwnedServerName, RoomId};

use super::{Inner, Membership, Roster};
use crate::storage::{log::StreamPosition, rooms::RoomNid, state_map::NodeId};

/// That the members of a room came.
#[derive(Clone, Debug)]
pub(crate) struct Completed {
    pub(crate) position: StreamPosition,
    pub(crate) room_id: OwnedRoomId,
    pub(crate) room_nid: RoomNid,
    /// The current state without them, and with them.
    pub(crate) before: NodeId,
    pub(crate) after: NodeId,
    /// Who came; filled only for entries of the log.
    pub(crate) memberships: Vec<Membership>,
}

/// The servers that are said to be in a room.
#[derive(Clone, Debug)]
pub(crate) struct ToldServers {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) servers: Vec<OwnedServerName>,
    pub(crate) since: StreamPosition,
}

impl Roster {
    /// The last time that the members of a room came, up to a position.
    #[must_use]
    pub(crate) fn completed(
        &self,
        room_id: &RoomId,
        until: StreamPosition,
    ) -> Option<Arc<Completed>> {
        self.read(|inner| {
            let completed = inner.rooms.get(room_id)?.completed.iter().rev();
            let mut until = completed.filter(|completed| completed.position <= until);
            Some(until.next().cloned())
        })
    }

    /// Takes in what the database knows.
    pub(in crate::storage) fn load(&self, told: &[ToldServers], completed: Vec<Completed>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for told in told {
            self.tell(&mut inner, told);
        }
        for completed in completed {
            inner.keep(&completed);
        }
    }

    /// Puts the servers that are said to be in a room in the place of those that were. Members make servers
    /// stay in any case.
    pub(super) fn tell(&self, inner: &mut Inner, told: &ToldServers) {
        let servers = told.servers.iter();
        let servers: BTreeSet<_> = servers.filter(|name| **name != self.server_name).collect();
        let room = inner.rooms.entry(told.room_id.clone()).or_default();
        let before = std::mem::take(&mut room.told);
        for gone in before {
            if !servers.contains(&gone) && !room.remote.contains_key(&gone) {
                room.came.remove(&gone);
                if let Some(rooms) = inner.servers.get_mut(&gone) {
                    rooms.remove(&told.room_id);
                    if rooms.is_empty() {
                        inner.servers.remove(&gone);
                    }
                }
            }
        }
        for server in servers {
            room.came.entry(server.clone()).or_insert(told.since);
            room.told.insert(server.clone());
            let rooms = inner.servers.entry(server.clone()).or_default();
            rooms.insert(told.room_id.clone());
        }
    }

    /// Moves on to a room with its members.
    pub(super) fn complete(&self, inner: &mut Inner, completed: &Arc<Completed>) {
        for row in &completed.memberships {
            inner.set(&self.server_name, row.clone());
        }
        let nobody = ToldServers {
            room_id: completed.room_id.clone(),
            servers: Vec::new(),
            since: completed.position,
        };
        self.tell(inner, &nobody);
        inner.keep(completed);
    }
}

impl Inner {
    fn keep(&mut self, completed: &Completed) {
        let room = self.rooms.entry(completed.room_id.clone()).or_default();
        room.completed.push(Arc::new(Completed {
            memberships: Vec::new(),
            ..completed.clone()
        }));
    }
}
