//! Moves what users keep for a room once it says that it is replaced. Whoever came into the new room before that was
//! known, as happens when another server closes the old one, gets it then
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-18)).

use std::time::Duration;

use futures_util::FutureExt;
use ruma::{OwnedRoomId, RoomId, events::TimelineEventType};
use tokio_util::sync::CancellationToken;

use crate::{
    service::succession::Succession,
    storage::{
        Families, Storage, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
    },
};

/// The name under which the place of the worker is kept.
const NAME: &str = "succession";
/// How many events are read from the database at once.
const PAGE: i64 = 500;
/// How far the log may go on, without a room that is closed, before the place is written all the same.
const KEEP_AFTER: i64 = 5_000;
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Watches which rooms are closed.
pub(crate) struct SuccessionWorker {
    storage: Storage,
    succession: Succession,
    stopping: CancellationToken,
}

impl SuccessionWorker {
    pub(crate) fn new(
        storage: Storage,
        succession: Succession,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            storage,
            succession,
            stopping,
        }
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let log = (self.storage.log()).follow(|change| closed_room(change).is_some());
        let mut place: Option<Place> = None;
        loop {
            if let Some(place) = &mut place {
                log.skip(&mut place.read);
            }
            let worked = tokio::select! {
                worked = self.work(&mut place) => worked,
                () = self.stopping.cancelled() => return,
            };
            let pause = match worked {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => {
                    tracing::error!(%error, "nothing moves to rooms that replaced others");
                    Some(AFTER_ERROR)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                () = log.woken(), if pause.is_none() => {}
                () = self.stopping.cancelled() => return,
            }
        }
    }

    /// Does the next part of the work; returns whether there is more of it.
    async fn work(&self, place: &mut Option<Place>) -> Result<bool, StorageError> {
        let place = match place {
            Some(place) => place,
            None => place.insert(self.start().await?),
        };
        let (rooms, read) = self.closed(place.read).await?;
        for room_id in &rooms {
            self.succession.closed(room_id).await?;
        }
        if !rooms.is_empty() || read.0 - place.kept.0 >= KEEP_AFTER {
            self.keep(read).await?;
            place.kept = read;
        }
        place.read = read;
        Ok(read < self.storage.log().position())
    }

    /// Where the work was left; at the very first time everybody who came has got what they had.
    async fn start(&self) -> Result<Place, StorageError> {
        let mut reader = self.storage.read().await?;
        let kept = reader.destinations().follower(NAME).await?;
        drop(reader);
        if let Some(kept) = kept {
            return Ok(Place { read: kept, kept });
        }
        let now = self.storage.log().position();
        self.keep(now).await?;
        Ok(Place {
            read: now,
            kept: now,
        })
    }

    /// The rooms that were closed since, and up to where the log was read for that.
    async fn closed(
        &self,
        since: StreamPosition,
    ) -> Result<(Vec<OwnedRoomId>, StreamPosition), StorageError> {
        let log = self.storage.log();
        let end = log.position();
        if let Some(entries) = log.since(since) {
            let read = entries.last().map_or(end, |entry| entry.position);
            let rooms = entries
                .iter()
                .filter_map(|entry| closed_room(&entry.change));
            return Ok((rooms.map(ToOwned::to_owned).collect(), read));
        }
        // After a restart, or far behind: from the database, page by page.
        let mut reader = self.storage.read().await?;
        let page = reader.events().after(since, end, PAGE).await?;
        let last = page.last().and_then(StoredEvent::log_position);
        let full = i64::try_from(page.len()).unwrap_or(PAGE) >= PAGE;
        let rooms = page.iter().filter_map(closed_by).map(ToOwned::to_owned);
        Ok((rooms.collect(), last.filter(|_| full).unwrap_or(end)))
    }

    async fn keep(&self, position: StreamPosition) -> Result<(), StorageError> {
        let write = (self.storage)
            .write(move |tx| async move { tx.destinations().follow(NAME, position).await }.boxed());
        write.await
    }
}

/// Where the worker is in the log.
struct Place {
    /// What was looked at.
    read: StreamPosition,
    /// What is written down.
    kept: StreamPosition,
}

fn closed_room(change: &Change) -> Option<&RoomId> {
    match change {
        Change::Event(event) => closed_by(event),
        _ => None,
    }
}

fn closed_by(event: &StoredEvent) -> Option<&RoomId> {
    let closes = *event.pdu.event_type() == TimelineEventType::RoomTombstone;
    closes.then(|| event.pdu.room_id())
}
