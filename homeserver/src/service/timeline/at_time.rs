//! Which event is closest to a time
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event)).

use std::sync::Arc;

use ruma::{MilliSecondsSinceUnixEpoch, RoomId, UserId};

use super::{Direction, ReadError, Timeline};
use crate::storage::{
    Families, StorageError,
    events::{Slice, StoredEvent},
    rooms::RoomNid,
};

/// How many events before and after the right place are looked at: clocks differ, so events are not quite
/// in the order of their times.
const AROUND: i64 = 100;

impl Timeline {
    /// The event closest to a time that a user may see, at or before it, or at or after it.
    pub(crate) async fn at_time(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        time: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Result<Option<Arc<StoredEvent>>, ReadError> {
        let readable = self.readable(user_id, room_id).await?;
        let until = self.storage.log().position().0.min(readable.until);
        for event in self
            .by_distance(readable.room.nid, time, direction, until)
            .await?
        {
            if self.visibility.allows(user_id, &event).await? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Whether the events of a room that are here begin only after a time.
    pub(crate) async fn begins_after(
        &self,
        room_id: &RoomId,
        time: MilliSecondsSinceUnixEpoch,
    ) -> Result<bool, StorageError> {
        let Some(room) = self.heads.room(room_id).await? else {
            return Ok(false);
        };
        let from = Slice::Forwards { above: i64::MIN };
        let mut reader = self.storage.read().await?;
        let oldest = reader.events().slice(room.nid, from, 1).await?;
        Ok(oldest
            .first()
            .is_some_and(|event| event.pdu.origin_server_ts() > time))
    }

    /// Events on one side of a time, the closest first.
    pub(crate) async fn by_distance(
        &self,
        room_nid: RoomNid,
        time: MilliSecondsSinceUnixEpoch,
        direction: Direction,
        until: i64,
    ) -> Result<Vec<Arc<StoredEvent>>, StorageError> {
        let Some(place) = self.place_of(room_nid, time, until).await? else {
            return Ok(Vec::new());
        };
        let mut reader = self.storage.read().await?;
        let before = Slice::Backwards { at_most: place };
        let mut found = reader.events().slice(room_nid, before, AROUND).await?;
        let after = Slice::Forwards { above: place };
        found.extend(reader.events().slice(room_nid, after, AROUND).await?);
        drop(reader);
        found.retain(|event| {
            let (at, position) = (event.pdu.origin_server_ts(), event.position);
            let side = match direction {
                Direction::Backwards => at <= time,
                Direction::Forwards => at >= time,
            };
            side && position.is_some_and(|position| position <= until)
        });
        found.sort_by_key(|event| (event.pdu.origin_server_ts(), event.position));
        if direction == Direction::Backwards {
            found.reverse();
        }
        Ok(found
            .into_iter()
            .map(|event| self.events.keep(event))
            .collect())
    }

    /// About where in a room something that happened at a time is: by halving, as if all clocks were right.
    async fn place_of(
        &self,
        room_nid: RoomNid,
        time: MilliSecondsSinceUnixEpoch,
        until: i64,
    ) -> Result<Option<i64>, StorageError> {
        let mut reader = self.storage.read().await?;
        let mut events = reader.events();
        let first = Slice::Forwards { above: i64::MIN };
        let first = events.slice(room_nid, first, 1).await?;
        let Some(mut low) = first.first().and_then(|event| event.position) else {
            return Ok(None);
        };
        let mut high = until.max(low);
        while low < high {
            let middle = low + (high - low) / 2;
            let at_most = Slice::Backwards { at_most: middle };
            match events.slice(room_nid, at_most, 1).await?.first() {
                Some(event) if event.pdu.origin_server_ts() >= time => {
                    high = event.position.unwrap_or(middle).min(middle);
                }
                _ => low = middle + 1,
            }
        }
        Ok(Some(low))
    }
}
