//! Finding users by what they are called
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#user-directory)).
//!
//! The database knows the words by which users are found; whom somebody may find is decided by the rooms that they
//! share now, and by those that are open to all. `worker/user_directory.rs` keeps the words.

mod index;
mod words;

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, UserId, events::StateEventType};

pub(crate) use self::index::News;
use self::words::{fold, prefixes};
use super::{room_summaries::RoomSummaries, timeline::Timeline};
use crate::storage::{Families, Storage, StorageError, found_users::FoundUser};

/// How many users are told of at once.
const MOST_USERS: usize = 50;
/// How many users with fitting words are looked at. There are more only for words that say very little.
const MOST_CANDIDATES: i64 = 2_000;
/// How many shared rooms are told of at once.
const MOST_ROOMS: usize = 200;

/// Finds users.
#[derive(Clone)]
pub(crate) struct UserDirectory {
    storage: Storage,
    timeline: Timeline,
    summaries: RoomSummaries,
    server_name: OwnedServerName,
    /// The rooms that everybody may read or join.
    open: Arc<RwLock<BTreeSet<OwnedRoomId>>>,
}

/// Some of the rooms that two users share.
#[derive(Debug)]
pub(crate) struct MutualRooms {
    pub(crate) rooms: Vec<OwnedRoomId>,
    pub(crate) count: usize,
    pub(crate) next: Option<String>,
}

/// Why there is no list of shared rooms.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MutualRoomsError {
    #[error("one shares all rooms with oneself")]
    Oneself,
    #[error("there is no page of this token")]
    BadToken,
}

impl UserDirectory {
    pub(crate) fn new(storage: Storage, timeline: Timeline, summaries: RoomSummaries) -> Self {
        let server_name = timeline.server_name.clone();
        Self {
            storage,
            timeline,
            summaries,
            server_name,
            open: Arc::default(),
        }
    }

    /// The users that somebody finds, best first, and whether there are more
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3user_directorysearch)).
    pub(crate) async fn search(
        &self,
        searcher: &UserId,
        term: &str,
        limit: usize,
    ) -> Result<(Vec<FoundUser>, bool), StorageError> {
        let wanted = prefixes(term);
        if wanted.is_empty() {
            return Ok((Vec::new(), false));
        }
        let mut reader = self.storage.read().await?;
        let candidates = reader.found_users().find(&wanted, MOST_CANDIDATES).await?;
        drop(reader);
        let mut found: Vec<_> = candidates
            .into_iter()
            .filter_map(|user| Some((self.met(searcher, &user.user_id)?, user)))
            .collect();
        let term = fold(term.trim());
        found.sort_by_cached_key(|(_, user)| self.rank(&term, user));
        let limit = limit.min(MOST_USERS);
        let limited = found.len() > limit;
        found.truncate(limit);
        let mut users = Vec::with_capacity(found.len());
        for (room_id, user) in found {
            users.push(self.as_seen(room_id, user).await?);
        }
        Ok((users, limited))
    }

    /// The rooms that a user shares with another, page by page
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mutual_rooms)).
    pub(crate) fn mutual_rooms(
        &self,
        user_id: &UserId,
        other: &UserId,
        from: Option<&str>,
    ) -> Result<MutualRooms, MutualRoomsError> {
        if user_id == other {
            return Err(MutualRoomsError::Oneself);
        }
        let after = from.map(OwnedRoomId::try_from).transpose();
        let after = after.map_err(|_| MutualRoomsError::BadToken)?;
        let roster = self.storage.log().roster();
        let mut rooms: Vec<_> = roster.rooms_shared_with(user_id).into_iter().collect();
        rooms.retain(|room_id| roster.is_joined(other, room_id));
        let count = rooms.len();
        if let Some(after) = after {
            rooms.retain(|room_id| *room_id > after);
        }
        let more = rooms.len() > MOST_ROOMS;
        rooms.truncate(MOST_ROOMS);
        let next = rooms.last().filter(|_| more).map(ToString::to_string);
        Ok(MutualRooms { rooms, count, next })
    }

    /// A room by which somebody may find a user: one that both are in, or one that is open to all.
    fn met(&self, searcher: &UserId, user_id: &UserId) -> Option<OwnedRoomId> {
        let roster = self.storage.log().roster();
        let shared = (searcher != user_id)
            .then(|| roster.shared_room(searcher, user_id))
            .flatten();
        shared.or_else(|| {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            roster.joined_to_any(user_id, &open)
        })
    }

    /// Smaller is better: whoever has the very name, then whose name begins so; those who tell their name,
    /// and those of this server first.
    fn rank(
        &self,
        term: &str,
        user: &FoundUser,
    ) -> (u8, Reverse<bool>, Reverse<bool>, OwnedUserId) {
        let name = fold(user.display_name.as_deref().unwrap_or_default());
        let id = fold(user.user_id.as_str());
        let local = fold(user.user_id.localpart());
        let fit = if local == term || id == term {
            0
        } else if name == term {
            1
        } else if name.starts_with(term) {
            2
        } else if local.starts_with(term.trim_start_matches('@')) {
            3
        } else {
            4
        };
        let named = user.display_name.is_some();
        let ours = user.user_id.server_name() == self.server_name;
        (fit, Reverse(named), Reverse(ours), user.user_id.clone())
    }

    /// A user as they are called where the searcher meets them: what somebody is called in another room may
    /// be nothing for everybody.
    async fn as_seen(
        &self,
        room_id: OwnedRoomId,
        user: FoundUser,
    ) -> Result<FoundUser, StorageError> {
        if user.user_id.server_name() == self.server_name {
            return Ok(user);
        }
        let room = self.timeline.heads.room(&room_id).await?;
        let Some(head) = room.and_then(|room| room.head) else {
            return Ok(user);
        };
        let events = &self.timeline.events;
        let member = StateEventType::RoomMember;
        let event = events
            .state_event(head.state, &member, user.user_id.as_str())
            .await?;
        Ok(event
            .and_then(|event| index::member(&event.pdu))
            .unwrap_or(user))
    }
}
