//! Which membership events a device has, for lazy loading
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members)).
//!
//! What is remembered says at which token the device was told, so a device that comes back with an older
//! token is told again. It is kept in memory, and only saves repeating what is known: when it is lost,
//! membership events are sent that the device has already.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, RoomId, UserId};

use crate::{
    service::accounts::Requester,
    storage::{log::StreamPosition, state_map::EventNid},
};

/// How many devices are remembered.
const DEVICES: usize = 4_096;
/// How many members are remembered of each.
const MEMBERS: usize = 20_000;

/// What devices know of members.
#[derive(Clone, Debug)]
pub(super) struct KnownMembers(Arc<Cache<Requester, Arc<Mutex<Device>>>>);

/// By room and user: the event, and the token of the reply that had it.
type Device = HashMap<OwnedRoomId, HashMap<String, (EventNid, StreamPosition)>>;

impl KnownMembers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Cache::new(DEVICES)))
    }

    /// Whether a device that was told everything up to `since` knows that this is the membership event of
    /// a user.
    pub(super) fn knows(
        &self,
        requester: &Requester,
        since: StreamPosition,
        room_id: &RoomId,
        user_id: &UserId,
        event: EventNid,
    ) -> bool {
        let Some(device) = self.0.get(requester) else {
            return false;
        };
        let device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let told = device
            .get(room_id)
            .and_then(|room| room.get(user_id.as_str()));
        told.is_some_and(|(known, at)| *known == event && *at <= since)
    }

    /// A device is told membership events of a room in the reply that ends at `until`. What it has already
    /// stays as old as it is.
    pub(super) fn tell<'a>(
        &self,
        requester: &Requester,
        until: StreamPosition,
        room_id: &RoomId,
        members: impl Iterator<Item = (&'a UserId, EventNid)>,
    ) {
        let mut members = members.peekable();
        if members.peek().is_none() {
            return;
        }
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let device = match self.0.get_or_insert_with(requester, fresh) {
            Ok(device) => device,
            Err(never) => match never {},
        };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        if device.values().map(HashMap::len).sum::<usize>() > MEMBERS {
            device.clear();
        }
        let room = device.entry(room_id.to_owned()).or_default();
        for (user_id, event) in members {
            let told = room.entry(user_id.to_string()).or_insert((event, until));
            *told = match *told {
                (known, at) if known == event => (event, at.min(until)),
                _ => (event, until),
            };
        }
    }

    /// A device begins anew.
    pub(super) fn forget(&self, requester: &Requester) {
        self.0.remove(requester);
    }
}
