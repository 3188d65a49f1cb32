//! Keeping the index: whoever comes first, a search or the worker, brings it up to the end of the log.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use ruma::{
    OwnedRoomId,
    events::{StateEventType, TimelineEventType},
};

use super::Search;
use crate::storage::{
    Families, StorageError,
    events::StoredEvent,
    log::{Change, StreamPosition},
    rooms::RoomNid,
    search_words::{Indexed, text::Text},
};

/// The names under which the places of the index are kept: in the log, and in the history that was fetched.
const NAMES: (&str, &str) = ("search", "search_past");
/// How many events are read from the database at once.
const PAGE: i64 = 500;
/// How many events are written at once: those who send wait for as long.
const MOST_WRITTEN: usize = 128;
/// How far the log may go on, without anything to find, before the place is written all the same.
const KEEP_AFTER: i64 = 5_000;

/// How far the index has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// What was looked at of the log.
    read: StreamPosition,
    /// What is written down of that.
    kept: StreamPosition,
    /// What was looked at of the history that was fetched from others, backwards from zero.
    past: i64,
}

impl Search {
    /// Brings the index to where the log is now. May be given up at any time, and repeated.
    pub(crate) async fn catch_up(&self) -> Result<(), StorageError> {
        let mut guard = self.place.lock().await;
        let place = match guard.as_mut() {
            Some(place) => place,
            None => guard.insert(self.start().await?),
        };
        let until = self.storage.log().position();
        while place.read < until {
            self.read(place, until).await?;
        }
        self.read_past(place).await
    }

    async fn start(&self) -> Result<Place, StorageError> {
        let mut reader = self.storage.read().await?;
        let read = reader
            .destinations()
            .follower(NAMES.0)
            .await?
            .unwrap_or_default();
        let past = reader
            .destinations()
            .follower(NAMES.1)
            .await?
            .unwrap_or_default();
        Ok(Place {
            read,
            kept: read,
            past: past.0,
        })
    }

    /// A piece of the log.
    async fn read(&self, place: &mut Place, until: StreamPosition) -> Result<(), StorageError> {
        if let Some(entries) = self.storage.log().since_if(place.read, is_wanted) {
            let events = entries.iter().filter_map(|entry| match &entry.change {
                Change::Event(event) => Some(&**event),
                _ => None,
            });
            self.index(events, place).await?;
            let last = entries.last().map_or(until, |entry| entry.position);
            return self.keep(place, last.max(until)).await;
        }
        let mut reader = self.storage.read().await?;
        let page = reader.events().after(place.read, until, PAGE).await?;
        drop(reader);
        self.index(page.iter(), place).await?;
        let full = i64::try_from(page.len()) == Ok(PAGE);
        let last = page.last().and_then(StoredEvent::log_position);
        self.keep(place, last.filter(|_| full).unwrap_or(until))
            .await
    }

    /// What was fetched from the past since.
    async fn read_past(&self, place: &mut Place) -> Result<(), StorageError> {
        let until = self.storage.counters().past();
        if until >= place.past {
            return Ok(());
        }
        // The writer works in order: what was given a place before this is committed after it.
        self.storage
            .write(|_| async { Ok::<_, StorageError>(()) }.boxed())
            .await?;
        while place.past > until {
            let mut reader = self.storage.read().await?;
            let page = reader.events().past(place.past, PAGE).await?;
            drop(reader);
            self.index(page.iter(), place).await?;
            let full = i64::try_from(page.len()) == Ok(PAGE);
            let last = page.last().and_then(|event| event.position);
            place.past = last.filter(|_| full).unwrap_or(until);
            self.follow(NAMES.1, StreamPosition(place.past)).await?;
        }
        Ok(())
    }

    /// Notes how far the log was read, and writes it down if that is worth it.
    async fn keep(&self, place: &mut Place, read: StreamPosition) -> Result<(), StorageError> {
        place.read = read;
        if read.0 - place.kept.0 >= KEEP_AFTER {
            self.follow(NAMES.0, read).await?;
            place.kept = read;
        }
        Ok(())
    }

    async fn follow(&self, name: &'static str, to: StreamPosition) -> Result<(), StorageError> {
        let write = self
            .storage
            .write(move |tx| async move { tx.destinations().follow(name, to).await }.boxed());
        write.await
    }

    /// Keeps the words of some events, in their order.
    async fn index(
        &self,
        events: impl Iterator<Item = &StoredEvent>,
        place: &mut Place,
    ) -> Result<(), StorageError> {
        let mut found: Vec<(OwnedRoomId, Indexed)> = Vec::new();
        let (mut rooms, mut closing) = (BTreeSet::new(), BTreeSet::new());
        for event in events {
            if is_encryption(event) {
                closing.insert(event.room_nid);
            }
            let Some((position, text)) = event.position.zip(Text::of(&event.pdu)) else {
                continue;
            };
            let room_id = event.pdu.room_id().to_owned();
            rooms.insert(room_id.clone());
            let indexed = Indexed {
                nid: event.nid,
                room_nid: event.room_nid,
                position,
                hashes: text.hashes().into_iter().collect(),
            };
            found.push((room_id, indexed));
        }
        for room_nid in closing {
            self.clear(room_nid).await?;
        }
        let encrypted = self.encrypted(rooms).await?;
        found.retain(|(room_id, _)| !encrypted.contains(room_id));
        let events: Vec<_> = found.into_iter().map(|(_, indexed)| indexed).collect();
        for piece in events.chunks(MOST_WRITTEN) {
            let piece = piece.to_vec();
            let last = piece.last().map_or(0, |event| event.position);
            let write = self.storage.write(move |tx| {
                async move {
                    tx.search_words().insert(&piece).await?;
                    if last > 0 {
                        tx.destinations()
                            .follow(NAMES.0, StreamPosition(last))
                            .await?;
                    }
                    Ok::<_, StorageError>(())
                }
                .boxed()
            });
            write.await?;
            place.kept = place.kept.max(StreamPosition(last));
        }
        Ok(())
    }

    /// Which of some rooms are encrypted: nothing of these is kept.
    async fn encrypted(
        &self,
        rooms: BTreeSet<OwnedRoomId>,
    ) -> Result<BTreeSet<OwnedRoomId>, StorageError> {
        let rooms: Vec<_> = rooms.into_iter().collect();
        let mut found = BTreeSet::new();
        for (room_id, room) in self.timeline.heads.rooms(&rooms).await? {
            let Some(head) = room.head else { continue };
            let encryption = StateEventType::RoomEncryption;
            let event = self
                .timeline
                .events
                .state_event(head.state, &encryption, "")
                .await?;
            if event.is_some() {
                found.insert(room_id);
            }
        }
        Ok(found)
    }

    /// Takes everything of a room away, bit by bit.
    async fn clear(&self, room_nid: RoomNid) -> Result<(), StorageError> {
        loop {
            let write = self
                .storage
                .write(move |tx| async move { tx.search_words().clear(room_nid).await }.boxed());
            if write.await? {
                return Ok(());
            }
        }
    }
}

/// Whether a change is one for the index.
pub(crate) fn is_wanted(change: &Change) -> bool {
    let Change::Event(event) = change else {
        return false;
    };
    let (event_type, is_state) = (event.pdu.event_type(), event.pdu.is_state());
    match event_type {
        TimelineEventType::RoomMessage => !is_state,
        TimelineEventType::RoomName
        | TimelineEventType::RoomTopic
        | TimelineEventType::RoomEncryption => is_state,
        _ => false,
    }
}

fn is_encryption(event: &StoredEvent) -> bool {
    *event.pdu.event_type() == TimelineEventType::RoomEncryption
        && event.pdu.state_key() == Some("")
}
