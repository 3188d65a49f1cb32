//! Who is where: the memberships of local users and the servers of each room, in memory.
//!
//! An index over the table `memberships`, loaded at the start and moved forward by the log alone, so it is
//! always the truth at [`super::log::Log::position`].

mod partial;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId,
    events::room::member::MembershipState,
};

pub(crate) use self::partial::{Completed, ToldServers};
use super::log::{Change, StreamPosition};

/// Who is where.
#[derive(Debug)]
pub(crate) struct Roster {
    server_name: OwnedServerName,
    inner: RwLock<Inner>,
}

/// What a local user is to a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The membership.
    pub(crate) membership: MembershipState,
    /// Since when, in the log.
    pub(crate) since: StreamPosition,
    /// For one who is not joined: until when the user last was.
    pub(crate) joined_until: Option<StreamPosition>,
    /// Whether the user forgot the room.
    pub(crate) forgotten: bool,
}

impl Place {
    /// What a user has just become.
    #[must_use]
    pub(crate) fn new(membership: MembershipState, since: StreamPosition) -> Self {
        Self {
            membership,
            since,
            joined_until: None,
            forgotten: false,
        }
    }
}

/// A row of the table `memberships`.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    /// The room.
    pub(crate) room_id: OwnedRoomId,
    /// The member.
    pub(crate) user_id: OwnedUserId,
    /// What the member is to the room.
    pub(crate) place: Place,
}

#[derive(Debug, Default)]
struct Inner {
    users: HashMap<OwnedUserId, BTreeMap<OwnedRoomId, Place>>,
    rooms: HashMap<OwnedRoomId, Room>,
    /// The rooms of each other server.
    servers: HashMap<OwnedServerName, BTreeSet<OwnedRoomId>>,
}

#[derive(Debug, Default)]
struct Room {
    local: BTreeSet<OwnedUserId>,
    remote: BTreeMap<OwnedServerName, BTreeSet<OwnedUserId>>,
    /// Servers that are said to have somebody there, while the members are missing.
    told: BTreeSet<OwnedServerName>,
    /// Since when each other server has had somebody there.
    came: BTreeMap<OwnedServerName, StreamPosition>,
    invited: BTreeSet<OwnedUserId>,
    /// When missing members came.
    completed: Vec<Arc<Completed>>,
}

impl Roster {
    pub(super) fn new(server_name: &ServerName, rows: Vec<Membership>) -> Self {
        let roster = Self {
            server_name: server_name.to_owned(),
            inner: RwLock::default(),
        };
        {
            let mut inner = roster.inner.write().unwrap_or_else(PoisonError::into_inner);
            for row in rows {
                inner.set(&roster.server_name, row);
            }
        }
        roster
    }

    /// The rooms that a local user is or was in, with what the user is there.
    #[must_use]
    pub(crate) fn places(&self, user_id: &UserId) -> BTreeMap<OwnedRoomId, Place> {
        self.read(|inner| inner.users.get(user_id).cloned())
    }

    /// What a local user is to a room.
    #[must_use]
    pub(crate) fn place(&self, user_id: &UserId, room_id: &RoomId) -> Option<Place> {
        self.read(|inner| Some(inner.users.get(user_id)?.get(room_id).cloned()))
    }

    /// Whether a user, local or remote, is joined to a room.
    #[must_use]
    pub(crate) fn is_joined(&self, user_id: &UserId, room_id: &RoomId) -> bool {
        self.read(|inner| Some(inner.rooms.get(room_id)?.contains(user_id)))
    }

    /// Whether a user is joined to a room as far as anybody here knows: while its members are missing, all of
    /// the servers that are said to have somebody there may be.
    #[must_use]
    pub(crate) fn may_be_joined(&self, user_id: &UserId, room_id: &RoomId) -> bool {
        self.read(|inner| {
            let room = inner.rooms.get(room_id)?;
            Some(room.contains(user_id) || room.told.contains(user_id.server_name()))
        })
    }

    /// The joined members of a room, local and remote.
    #[must_use]
    pub(crate) fn members(&self, room_id: &RoomId) -> Vec<OwnedUserId> {
        self.read(|inner| {
            let room = inner.rooms.get(room_id)?;
            Some(
                room.local
                    .iter()
                    .chain(room.remote.values().flatten())
                    .cloned()
                    .collect(),
            )
        })
    }

    /// How many members are joined to a room, local and remote.
    #[must_use]
    pub(crate) fn member_count(&self, room_id: &RoomId) -> usize {
        self.read(|inner| {
            let room = inner.rooms.get(room_id)?;
            let remote = room.remote.values().map(BTreeSet::len).sum::<usize>();
            Some(room.local.len() + remote)
        })
    }

    /// How many are joined to a room, and how many invited.
    #[must_use]
    pub(crate) fn counts(&self, room_id: &RoomId) -> (usize, usize) {
        self.read(|inner| {
            let room = inner.rooms.get(room_id)?;
            let remote: usize = room.remote.values().map(BTreeSet::len).sum();
            Some((room.local.len() + remote, room.invited.len()))
        })
    }

    /// The joined local members of a room.
    #[must_use]
    pub(crate) fn local_members(&self, room_id: &RoomId) -> BTreeSet<OwnedUserId> {
        self.read(|inner| Some(inner.rooms.get(room_id)?.local.clone()))
    }

    /// The other servers that have a joined member in the room.
    #[must_use]
    pub(crate) fn remote_servers(&self, room_id: &RoomId) -> BTreeSet<OwnedServerName> {
        self.read(|inner| Some(inner.rooms.get(room_id)?.came.keys().cloned().collect()))
    }

    /// The other servers that have a joined member in a room, and had one before a position.
    #[must_use]
    pub(crate) fn remote_servers_before(
        &self,
        room_id: &RoomId,
        position: StreamPosition,
    ) -> BTreeSet<OwnedServerName> {
        self.read(|inner| {
            let came = inner.rooms.get(room_id)?.came.iter();
            let before = came.filter(|(_, since)| **since < position);
            Some(before.map(|(server, _)| server.clone()).collect())
        })
    }

    /// Whether another server has a joined member in the room.
    #[must_use]
    pub(crate) fn has_remote_members(&self, room_id: &RoomId) -> bool {
        self.read(|inner| Some(!inner.rooms.get(room_id)?.came.is_empty()))
    }

    /// The rooms in which another server has a joined member.
    #[must_use]
    pub(crate) fn rooms_with(&self, server: &ServerName) -> BTreeSet<OwnedRoomId> {
        self.read(|inner| inner.servers.get(server).cloned())
    }

    /// Whether another server has a joined member in a room.
    #[must_use]
    pub(crate) fn has_server(&self, server: &ServerName, room_id: &RoomId) -> bool {
        self.read(|inner| Some(inner.rooms.get(room_id)?.came.contains_key(server)))
    }

    /// The other servers in a room that learn from this one what a user does there: all of them for a
    /// local user, none for others.
    #[must_use]
    pub(crate) fn servers_to_tell(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> BTreeSet<OwnedServerName> {
        if user_id.server_name() == self.server_name {
            self.remote_servers(room_id)
        } else {
            BTreeSet::new()
        }
    }

    /// The rooms to which a user, local or remote, is joined.
    #[must_use]
    pub(crate) fn rooms_shared_with(&self, user_id: &UserId) -> BTreeSet<OwnedRoomId> {
        self.read(|inner| {
            if user_id.server_name() == self.server_name {
                let places = inner.users.get(user_id)?;
                let joined = places
                    .iter()
                    .filter(|p| p.1.membership == MembershipState::Join);
                Some(joined.map(|(room_id, _)| room_id.clone()).collect())
            } else {
                let of_server = inner.servers.get(user_id.server_name())?.iter();
                let shared = of_server.filter(|room_id| {
                    let room = inner.rooms.get(*room_id);
                    room.is_some_and(|room| room.contains(user_id))
                });
                Some(shared.cloned().collect())
            }
        })
    }

    /// Whether a local user and another one are both joined to some room.
    #[must_use]
    pub(crate) fn share_a_room(&self, local: &UserId, other: &UserId) -> bool {
        self.shared_room(local, other).is_some()
    }

    /// Some room to which a local user and another one are both joined.
    #[must_use]
    pub(crate) fn shared_room(&self, local: &UserId, other: &UserId) -> Option<OwnedRoomId> {
        self.read(|inner| {
            let mut joined = inner
                .users
                .get(local)?
                .iter()
                .filter(|(_, place)| place.membership == MembershipState::Join);
            let shared = joined.find(|(room_id, _)| inner.is_joined(other, room_id));
            shared.map(|(room_id, _)| Some(room_id.clone()))
        })
    }

    /// Some room among these to which a user is joined, and a local one as well: what becomes of others is
    /// not known here.
    #[must_use]
    pub(crate) fn joined_to_any(
        &self,
        user_id: &UserId,
        rooms: &BTreeSet<OwnedRoomId>,
    ) -> Option<OwnedRoomId> {
        let joined = |inner: &Inner, room_id: &&OwnedRoomId| {
            let room = inner.rooms.get(*room_id);
            room.is_some_and(|room| !room.local.is_empty() && room.contains(user_id))
        };
        self.read(|inner| {
            let found = if user_id.server_name() == self.server_name {
                let places = inner.users.get(user_id)?.keys();
                let mut both = places.filter(|room_id| rooms.contains(*room_id));
                both.find(|room_id| joined(inner, room_id))
            } else {
                let of_server = inner.servers.get(user_id.server_name())?;
                let (few, many) = if of_server.len() < rooms.len() {
                    (of_server, rooms)
                } else {
                    (rooms, of_server)
                };
                let mut both = few.iter().filter(|room_id| many.contains(*room_id));
                both.find(|room_id| joined(inner, room_id))
            };
            found.map(|room_id| Some(room_id.clone()))
        })
    }

    /// Whether a user of another server is in any room with a local one.
    #[must_use]
    pub(crate) fn knows(&self, remote: &UserId) -> bool {
        self.read(|inner| {
            let mut rooms = inner.servers.get(remote.server_name())?.iter();
            Some(rooms.any(|room_id| {
                let room = inner.rooms.get(room_id);
                room.is_some_and(|room| !room.local.is_empty() && room.contains(remote))
            }))
        })
    }

    /// Calls `each` for the local members of a room that may be among `candidates`: it walks whichever
    /// of the two is smaller.
    pub(crate) fn each_local_member<'a>(
        &self,
        room_id: &RoomId,
        candidates: impl Iterator<Item = &'a OwnedUserId>,
        count: usize,
        mut each: impl FnMut(&UserId),
    ) {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(room) = inner.rooms.get(room_id) else {
            return;
        };
        if count < room.local.len() {
            candidates
                .filter(|user_id| room.local.contains(*user_id))
                .for_each(|u| each(u));
        } else {
            room.local.iter().for_each(|user_id| each(user_id));
        }
    }

    /// Moves forward over one change; whether anybody's place changed.
    pub(super) fn apply(&self, change: &Change) -> bool {
        let rows = match change {
            Change::Event(event) => event.memberships.as_slice(),
            Change::OutsideMembership(row) => std::slice::from_ref(row),
            Change::Completed(completed) => {
                let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                self.complete(&mut inner, completed);
                return true;
            }
            Change::ToldServers(told) => {
                let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                self.tell(&mut inner, told);
                return false;
            }
            _ => &[],
        };
        if rows.is_empty() {
            return false;
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            inner.set(&self.server_name, row.clone());
        }
        true
    }

    fn read<T: Default>(&self, f: impl FnOnce(&Inner) -> Option<T>) -> T {
        f(&self.inner.read().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }
}

impl Inner {
    fn is_joined(&self, user_id: &UserId, room_id: &RoomId) -> bool {
        let room = self.rooms.get(room_id);
        room.is_some_and(|room| room.contains(user_id))
    }

    fn set(&mut self, server_name: &ServerName, row: Membership) {
        let Membership {
            room_id,
            user_id,
            place,
        } = row;
        let room = self.rooms.entry(room_id.clone()).or_default();
        let joined = place.membership == MembershipState::Join;
        if place.membership == MembershipState::Invite {
            room.invited.insert(user_id.clone());
        } else {
            room.invited.remove(&user_id);
        }
        let home = user_id.server_name();
        if home == server_name {
            if joined {
                room.local.insert(user_id.clone());
            } else {
                room.local.remove(&user_id);
            }
            let places = self.users.entry(user_id).or_default();
            let before = places.get(&room_id);
            let joined_until = match before {
                _ if joined => None,
                Some(before) if before.membership == MembershipState::Join => Some(place.since),
                Some(before) => before.joined_until,
                None => place.joined_until,
            };
            // A new name or picture is no new membership.
            let since = match before {
                Some(before) if before.membership == place.membership => before.since,
                _ => place.since,
            };
            places.insert(
                room_id,
                Place {
                    since,
                    joined_until,
                    ..place
                },
            );
        } else {
            self.set_remote(room_id, user_id, joined.then_some(place.since));
        }
    }

    /// Sets whether a user of another server is in a room, and since when.
    fn set_remote(
        &mut self,
        room_id: OwnedRoomId,
        user_id: OwnedUserId,
        joined: Option<StreamPosition>,
    ) {
        let room = self.rooms.entry(room_id.clone()).or_default();
        let home = user_id.server_name();
        if let Some(since) = joined {
            let rooms = self.servers.entry(home.to_owned()).or_default();
            rooms.insert(room_id);
            let came = room.came.entry(home.to_owned()).or_insert(since);
            *came = (*came).min(since);
            let members = room.remote.entry(home.to_owned()).or_default();
            members.insert(user_id);
        } else if let Some(members) = room.remote.get_mut(home) {
            members.remove(&user_id);
            if members.is_empty() {
                room.remote.remove(home);
                if room.told.contains(home) {
                    return;
                }
                room.came.remove(home);
                if let Some(rooms) = self.servers.get_mut(home) {
                    rooms.remove(&room_id);
                    if rooms.is_empty() {
                        self.servers.remove(home);
                    }
                }
            }
        }
    }
}

impl Room {
    fn contains(&self, user_id: &UserId) -> bool {
        self.local.contains(user_id)
            || self
                .remote
                .get(user_id.server_name())
                .is_some_and(|m| m.contains(user_id))
    }
}
