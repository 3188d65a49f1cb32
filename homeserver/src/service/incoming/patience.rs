//! For how long a room waits for what cannot be had at the moment.

use std::time::Duration;

use quick_cache::sync::Cache;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, RoomId};

/// For how long the states of a room may wait for the keys of servers that are away.
const LONGEST: Duration = Duration::from_mins(5);
/// They do not wait again before this, so that nobody holds a room up by one dead server after another.
const AGAIN: Duration = Duration::from_hours(1);

/// Since when rooms wait.
pub(super) struct Patience(Cache<OwnedRoomId, MilliSecondsSinceUnixEpoch>);

impl Patience {
    pub(super) fn new() -> Self {
        Self(Cache::new(4_096))
    }

    /// Whether the room may go on waiting, or begin to.
    pub(super) fn allows(&self, room_id: &RoomId, now: MilliSecondsSinceUnixEpoch) -> bool {
        let waited = |since: MilliSecondsSinceUnixEpoch| {
            Duration::from_millis(now.get().saturating_sub(since.get()).into())
        };
        match self.0.get(room_id).map(waited) {
            Some(waited) if waited < AGAIN => waited < LONGEST,
            _ => {
                self.0.insert(room_id.to_owned(), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, owned_room_id};

    use super::*;

    #[test]
    fn a_room_waits_once_and_not_for_ever() {
        let (patience, room_id) = (Patience::new(), owned_room_id!("!room:one.test"));
        let allows = |minutes: u32| {
            let now = MilliSecondsSinceUnixEpoch(UInt::from(minutes * 60_000));
            patience.allows(&room_id, now)
        };
        let minutes = [10, 11, 14, 15, 30, 69, 70, 74, 75];
        let allowed = [true, true, true, false, false, false, true, true, false];
        assert_eq!(minutes.map(allows), allowed);
    }
}
