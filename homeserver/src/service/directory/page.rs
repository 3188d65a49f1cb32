//! Pages of the list: the rooms with most members first, in a total order, so that a token is nothing but
//! the place of a room.

use std::{cmp::Reverse, fmt, str::FromStr};

use ruma::{OwnedRoomId, RoomId, UInt, directory::PublicRoomsChunk};

/// A part of a list.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) chunk: Vec<PublicRoomsChunk>,
    pub(crate) next: Option<String>,
    pub(crate) previous: Option<String>,
    /// How many rooms the whole list has.
    pub(crate) total: Option<UInt>,
}

/// Where a page begins: after a room, or, read backwards, before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    After(Place),
    Before(Place),
}

/// The place of a room in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(Reverse<UInt>, OwnedRoomId);

impl Place {
    fn of(room: &PublicRoomsChunk) -> Self {
        Self(Reverse(room.num_joined_members), room.room_id.clone())
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, Place(Reverse(members), room_id)) = match self {
            Self::After(place) => ('f', place),
            Self::Before(place) => ('b', place),
        };
        write!(f, "{way}{members}_{room_id}")
    }
}

/// The text is no token.
#[derive(Debug)]
pub(crate) struct NoToken;

impl FromStr for Since {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let (members, room_id) = text.split_once('_').ok_or(NoToken)?;
        let place = |members: &str| {
            let members = members.parse().map_err(|_| NoToken)?;
            let room_id = RoomId::parse(room_id).map_err(|_| NoToken)?;
            Ok(Place(Reverse(members), room_id))
        };
        if let Some(members) = members.strip_prefix('f') {
            place(members).map(Self::After)
        } else if let Some(members) = members.strip_prefix('b') {
            place(members).map(Self::Before)
        } else {
            Err(NoToken)
        }
    }
}

/// Cuts a page out of the whole list.
pub(super) fn page(mut rooms: Vec<PublicRoomsChunk>, since: Option<&Since>, limit: usize) -> List {
    rooms.sort_by_cached_key(Place::of);
    let (start, end) = match since {
        None => (0, limit.min(rooms.len())),
        Some(Since::After(place)) => {
            let start = rooms.partition_point(|room| Place::of(room) <= *place);
            (start, (start + limit).min(rooms.len()))
        }
        Some(Since::Before(place)) => {
            let end = rooms.partition_point(|room| Place::of(room) < *place);
            (end.saturating_sub(limit), end)
        }
    };
    let (more_before, more_after) = (start > 0, end < rooms.len());
    let chunk: Vec<_> = rooms.drain(start..end).collect();
    let token = |room: Option<&PublicRoomsChunk>, since: fn(Place) -> Since| {
        room.map(|room| since(Place::of(room)).to_string())
    };
    List {
        next: more_after
            .then(|| token(chunk.last(), Since::After))
            .flatten(),
        previous: more_before
            .then(|| token(chunk.first(), Since::Before))
            .flatten(),
        total: None,
        chunk,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use ruma::directory::PublicRoomsChunkInit;

    use super::*;

    fn room(members: u32, name: &str) -> PublicRoomsChunk {
        let room_id = RoomId::parse(format!("!{name}:example.org")).unwrap();
        let (world_readable, guest_can_join) = (false, false);
        PublicRoomsChunk::from(PublicRoomsChunkInit {
            num_joined_members: members.into(),
            room_id,
            world_readable,
            guest_can_join,
        })
    }

    #[test]
    fn pages_have_every_room_once_in_both_directions() {
        let rooms: Vec<_> = (0..11_u32).map(|n| room(n % 4, &format!("r{n}"))).collect();
        for limit in 1..13 {
            let (mut seen, mut since) = (Vec::new(), None);
            let end = loop {
                let list = page(rooms.clone(), since.as_ref(), limit);
                assert!(list.chunk.len() <= limit);
                seen.extend(list.chunk.iter().map(|room| room.room_id.clone()));
                since = list.next.as_deref().map(|token| token.parse().unwrap());
                if since.is_none() {
                    break list;
                }
            };
            assert_eq!(seen.len(), rooms.len());
            let mut back: Vec<_> = end.chunk.iter().map(|room| room.room_id.clone()).collect();
            let mut since = end.previous;
            while let Some(token) = since {
                let list = page(rooms.clone(), Some(&token.parse().unwrap()), limit);
                let chunk = list.chunk.iter().map(|room| room.room_id.clone());
                back.splice(0..0, chunk);
                since = list.previous;
            }
            assert_eq!(back, seen);
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "f", "f1", "f_!a:b", "x1_!a:b", "f1_a", "f-1_!a:b"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
    }
}
