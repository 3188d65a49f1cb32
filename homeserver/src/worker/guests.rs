//! Lets guests leave when a room is closed to them
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#guest-access)).

use std::time::Duration;

use ruma::{OwnedRoomId, RoomId, events::TimelineEventType};
use tokio_util::sync::CancellationToken;

use crate::{
    service::membership::Membership,
    storage::{
        Storage, StorageError,
        log::{Change, StreamPosition},
    },
};

/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Watches who lets guests in.
pub(crate) struct GuestDismisser {
    storage: Storage,
    membership: Membership,
    stopping: CancellationToken,
}

impl GuestDismisser {
    pub(crate) fn new(
        storage: Storage,
        membership: Membership,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            storage,
            membership,
            stopping,
        }
    }

    /// Runs until the server stops. It begins by looking at all guests: a room may have been closed to
    /// them right before the last stop.
    pub(crate) async fn run(self) {
        let log = (self.storage.log()).follow(|change| guest_access(change).is_some());
        let mut read = self.storage.log().position();
        let mut todo = vec![None];
        loop {
            log.skip(&mut read);
            todo.extend(self.news(&mut read));
            let worked = tokio::select! {
                worked = self.work(&todo) => worked,
                () = self.stopping.cancelled() => return,
            };
            if let Err(error) = worked {
                tracing::error!(%error, "guests cannot be dismissed");
                tokio::select! {
                    () = tokio::time::sleep(AFTER_ERROR) => continue,
                    () = self.stopping.cancelled() => return,
                }
            }
            todo.clear();
            tokio::select! {
                () = log.woken() => {}
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// The rooms that said something about guests since; `None` for any of them.
    fn news(&self, read: &mut StreamPosition) -> Vec<Option<OwnedRoomId>> {
        let log = self.storage.log();
        let end = log.position();
        let Some(entries) = log.since(*read) else {
            *read = end;
            return vec![None];
        };
        *read = entries.last().map_or(end, |entry| entry.position);
        let rooms = entries.iter();
        rooms
            .filter_map(|entry| guest_access(&entry.change))
            .map(|room_id| Some(room_id.to_owned()))
            .collect()
    }

    async fn work(&self, rooms: &[Option<OwnedRoomId>]) -> Result<(), StorageError> {
        for room_id in rooms {
            self.membership.dismiss_guests(room_id.as_deref()).await?;
        }
        Ok(())
    }
}

/// The room that says whether guests may enter it.
fn guest_access(change: &Change) -> Option<&RoomId> {
    match change {
        Change::Event(event) if *event.pdu.event_type() == TimelineEventType::RoomGuestAccess => {
            Some(event.pdu.room_id())
        }
        _ => None,
    }
}
