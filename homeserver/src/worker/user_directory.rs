//! Keeps the words by which users are found: reads the log forward from a durable place, and everything that there is
//! when it has none.

use std::time::Duration;

use futures_util::FutureExt;
use ruma::events::room::member::MembershipState;
use tokio_util::sync::CancellationToken;

use crate::{
    service::{
        timeline::membership,
        user_directory::{News, UserDirectory},
    },
    storage::{
        Families, Storage, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
    },
};

/// The name under which the place of the worker is kept.
const NAME: &str = "user_directory";
/// How many events are read from the database at once.
const PAGE: i64 = 500;
/// How many users are written at once.
const MOST_USERS: usize = 500;
/// How far the log may go on, without anything to learn, before the place is written all the same.
const KEEP_AFTER: i64 = 5_000;
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Keeps the words.
pub(crate) struct UserDirectoryWorker {
    storage: Storage,
    directory: UserDirectory,
    stopping: CancellationToken,
}

impl UserDirectoryWorker {
    pub(crate) fn new(
        storage: Storage,
        directory: UserDirectory,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            storage,
            directory,
            stopping,
        }
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let log = self.storage.log().follow(is_wanted);
        let mut place: Option<Place> = None;
        loop {
            if let Some(place) = &mut place {
                log.skip(&mut place.read);
            }
            let outcome = match &mut place {
                None => self.start().await.map(|start| place = Some(start)),
                Some(place) => self.read(place).await,
            };
            let pause = match outcome {
                Ok(()) if self.is_behind(place.as_ref()) => continue,
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(%error, "the user directory cannot be kept");
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

    fn is_behind(&self, place: Option<&Place>) -> bool {
        place.is_some_and(|place| place.read < self.storage.log().position())
    }

    /// Takes up the work where it was left; at the very first time that is everything there is.
    async fn start(&self) -> Result<Place, StorageError> {
        let mut reader = self.storage.read().await?;
        let kept = reader.destinations().follower(NAME).await?;
        drop(reader);
        self.directory.load().await?;
        if let Some(kept) = kept {
            return Ok(Place { read: kept, kept });
        }
        let mut place = Place::default();
        let now = self.storage.log().position();
        let mut news = News::default();
        let rooms = self.storage.read().await?.rooms().with_head().await?;
        for room_id in rooms {
            self.directory.learn_room(room_id, &mut news).await?;
            if news.len() > MOST_USERS {
                self.write(std::mem::take(&mut news), &mut place).await?;
            }
        }
        place.read = now;
        self.write(news, &mut place).await?;
        Ok(place)
    }

    /// Reads the log up to its end.
    async fn read(&self, place: &mut Place) -> Result<(), StorageError> {
        let mut news = News::default();
        let log = self.storage.log();
        if let Some(entries) = log.since(place.read) {
            for entry in entries {
                match &entry.change {
                    Change::Event(event) => {
                        let arrives = event.memberships.len() > 1;
                        self.directory.learn(event, arrives, &mut news).await?;
                    }
                    Change::Completed(completed) => {
                        let room_id = completed.room_id.clone();
                        self.directory.learn_room(room_id, &mut news).await?;
                    }
                    Change::Profile { user_id } => {
                        self.directory.learn_local(user_id, &mut news).await?;
                    }
                    _ => {}
                }
                place.read = entry.position;
            }
            return self.write(news, place).await;
        }
        // After a restart, or far behind: from the database, page by page.
        let end = log.position();
        let mut reader = self.storage.read().await?;
        let page = reader.events().after(place.read, end, PAGE).await?;
        let changed = reader.profile_changes().oldest(PAGE).await?;
        drop(reader);
        for event in &page {
            let comes = membership(&event.pdu).is_some_and(|(_, is)| is == MembershipState::Join);
            let arrives = comes && event.replaces.is_none();
            self.directory.learn(event, arrives, &mut news).await?;
        }
        for (user_id, _) in changed {
            self.directory.learn_local(&user_id, &mut news).await?;
        }
        let last = page.last().and_then(StoredEvent::log_position);
        let full = i64::try_from(page.len()).unwrap_or(PAGE) >= PAGE;
        place.read = last.filter(|_| full).unwrap_or(end);
        self.write(news, place).await
    }

    /// Writes what was learnt together with the place from which to go on.
    async fn write(&self, news: News, place: &mut Place) -> Result<(), StorageError> {
        let position = place.read;
        if news.is_empty() && position.0 - place.kept.0 < KEEP_AFTER {
            return Ok(());
        }
        let write = self.storage.write(move |tx| {
            async move {
                news.write(tx).await?;
                if position > StreamPosition(0) {
                    tx.destinations().follow(NAME, position).await?;
                }
                Ok(news)
            }
            .boxed()
        });
        let news: Result<News, StorageError> = write.await;
        self.directory.apply(&news?);
        place.kept = position;
        Ok(())
    }
}

/// Where the worker is in the log.
#[derive(Debug, Default)]
struct Place {
    /// What was learnt from.
    read: StreamPosition,
    /// What is written down.
    kept: StreamPosition,
}

/// What says who is in which room and what they are called.
fn is_wanted(change: &Change) -> bool {
    match change {
        Change::Event(event) => event.pdu.is_state() || !event.memberships.is_empty(),
        Change::Completed(_) | Change::Profile { .. } => true,
        _ => false,
    }
}
