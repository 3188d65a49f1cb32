//! What a connection remembers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::sync::Cache;
use ruma::OwnedRoomId;

use crate::{service::accounts::Requester, storage::log::StreamPosition};

/// How many devices have connections in memory.
const DEVICES: usize = 4_096;
/// How many connections a device has.
const CONNECTIONS: usize = 8;
/// How many memories of a connection are kept: that of the last token that came, and those of replies
/// that may have been lost.
const MEMORIES: usize = 6;

/// The name of a memory. It says nothing, and is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryId(pub(super) u64);

/// How far something of a room was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Up to the position of the token.
    Live,
    /// Up to an earlier one.
    Until(StreamPosition),
}

/// Which state of a room is kept up to date with the client: pairs of type and state key.
pub(super) type Patterns = BTreeSet<(String, String)>;

/// How the events of a room were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RoomTold {
    pub(super) told: Told,
    /// How many events the client asked for.
    pub(super) limit: usize,
    pub(super) required: Arc<Patterns>,
}

/// Which rooms were told how far. Rooms that are not in it were not told.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) rooms: BTreeMap<OwnedRoomId, RoomTold>,
    pub(super) receipts: BTreeMap<OwnedRoomId, Told>,
    pub(super) account_data: BTreeMap<OwnedRoomId, Told>,
}

/// The memories of a connection, the last used at the end.
#[derive(Debug)]
struct Connection {
    name: String,
    memories: VecDeque<(MemoryId, Arc<Memory>)>,
}

/// The connections of a device, the last used at the end.
type Device = Arc<Mutex<VecDeque<Connection>>>;

/// The connections of all devices. What is not found has been forgotten; its client begins anew.
#[derive(Clone, Debug)]
pub(in crate::service::sync) struct Connections(Arc<Cache<Requester, Device>>);

impl Told {
    /// Up to which position, for a client whose token is at `since`.
    pub(super) fn position(self, since: StreamPosition) -> StreamPosition {
        match self {
            Self::Live => since,
            Self::Until(position) => position,
        }
    }
}

impl Connections {
    pub(in crate::service::sync) fn new() -> Self {
        Self(Arc::new(Cache::new(DEVICES)))
    }

    /// The memory of one who begins.
    pub(super) fn begin() -> (MemoryId, Arc<Memory>) {
        (MemoryId(0), Arc::default())
    }

    /// What a connection remembered.
    pub(super) fn find(
        &self,
        requester: &Requester,
        name: &str,
        id: MemoryId,
    ) -> Option<Arc<Memory>> {
        let device = self.0.get(requester)?;
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let at = device
            .iter()
            .position(|connection| connection.name == name)?;
        let mut connection = device.remove(at)?;
        let memories = &mut connection.memories;
        let found = memories.iter().position(|memory| memory.0 == id);
        let memory = found.and_then(|at| memories.remove(at));
        // What is asked for is what the client has: the last to be thrown away.
        memories.extend(memory.clone());
        device.push_back(connection);
        memory.map(|memory| memory.1)
    }

    /// Keeps what a connection remembers after a reply to one that was at `base`.
    pub(super) fn remember(
        &self,
        requester: &Requester,
        name: &str,
        base: MemoryId,
        memory: Arc<Memory>,
    ) -> MemoryId {
        let id = MemoryId(rand::random::<u64>() | 1);
        let fresh = || Ok::<_, std::convert::Infallible>(Device::default());
        let device = match self.0.get_or_insert_with(requester, fresh) {
            Ok(device) => device,
            Err(never) => match never {},
        };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let at = device.iter().position(|connection| connection.name == name);
        let mut connection = at
            .and_then(|at| device.remove(at))
            .unwrap_or_else(|| Connection {
                name: name.to_owned(),
                memories: VecDeque::new(),
            });
        let memories = &mut connection.memories;
        while memories.len() >= MEMORIES {
            let oldest = memories.iter().position(|memory| memory.0 != base);
            if oldest.and_then(|at| memories.remove(at)).is_none() {
                break;
            }
        }
        memories.push_back((id, memory));
        device.push_back(connection);
        while device.len() > CONNECTIONS {
            device.pop_front();
        }
        id
    }
}
