//! Notifying users through push gateways
//! ([spec](https://spec.matrix.org/v1.19/push-gateway-api/)).
//!
//! One task reads the log and marks, for each pusher, the rooms in which something happened; only users
//! who have a pusher are looked at. A task for each pusher with marked rooms asks what its user has not
//! read there ([`crate::service::unread`]) and sends what is newer than what the pusher has got, oldest
//! first. So nothing waits in memory but the names of rooms, and what was read in the meantime is not
//! sent. A gateway that does not answer is tried again after pauses; how far each pusher has got is
//! written down after each notification, so that a crash at worst repeats the one that was under way.

mod delivery;
mod gateway;
mod notice;
mod queues;
mod surroundings;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use ruma::{RoomId, UserId, events::room::member::MembershipState};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::queues::{Mark, Queues};
use crate::{
    clock::Clock,
    service::{
        events::Events, federation::Federation, push_rules::PushRules, timeline::membership,
        unread::Unread,
    },
    storage::{
        Families, Storage, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
        pushers::PusherId,
    },
};

/// The name under which the place of the worker is kept.
const NAME: &str = "push";
/// How often the place of the worker is written, at most.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How far the log may go on, without anything to push, before the place is written all the same.
const KEEP_AFTER: i64 = 5_000;
/// How many events are read from the database at once.
const PAGE: i64 = 500;
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Notifies users. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PushSender(Arc<Inner>);

/// What the worker needs.
pub(crate) struct Parts {
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    pub(crate) federation: Federation,
    pub(crate) rules: PushRules,
    pub(crate) unread: Unread,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

struct Inner {
    parts: Parts,
    queues: Queues,
    /// Whether anybody has had a pusher since the start. Until then nothing else is of interest.
    has_had_pushers: AtomicBool,
}

/// Where the worker is in the log.
#[derive(Debug)]
struct Place {
    read: StreamPosition,
    /// What is written down.
    kept: StreamPosition,
}

impl PushSender {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            queues: Queues::default(),
            has_had_pushers: AtomicBool::new(false),
        }))
    }

    fn storage(&self) -> &Storage {
        &self.0.parts.storage
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let stopping = self.0.parts.stopping.clone();
        let sender = self.clone();
        let log = (self.storage().log()).follow(move |change| sender.wants(change));
        let mut place = loop {
            match self.start().await {
                Ok(place) => break place,
                Err(error) => tracing::error!(%error, "the push worker cannot start"),
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_ERROR) => {}
                () = stopping.cancelled() => return,
            }
        };
        let mut keep = tokio::time::interval(KEEP_EVERY);
        loop {
            log.skip(&mut place.read);
            self.0.queues.apply(place.read, Vec::new());
            if let Err(error) = self.read(&mut place).await {
                tracing::error!(%error, "the push worker cannot read the log");
                tokio::time::sleep(AFTER_ERROR).await;
            }
            tokio::select! {
                () = log.woken() => {}
                _ = keep.tick(), if self.is_worth_keeping(&place) => self.keep(&mut place).await,
                () = stopping.cancelled() => break,
            }
        }
        self.keep(&mut place).await;
    }

    /// Whether an entry of the log may be worth a notification. Called by the one writer, before the entry
    /// can be read.
    fn wants(&self, change: &Change) -> bool {
        let pushers = &self.0.has_had_pushers;
        match change {
            Change::Pushers { .. } => {
                pushers.store(true, Ordering::Relaxed);
                true
            }
            Change::Event(_)
            | Change::OutsideMembership(_)
            | Change::Receipt { .. }
            | Change::Redacted { .. } => pushers.load(Ordering::Relaxed),
            _ => false,
        }
    }

    /// Takes up the work where it was left.
    async fn start(&self) -> Result<Place, StorageError> {
        let mut reader = self.storage().read().await?;
        let kept = reader.destinations().follower(NAME).await?;
        let pushers = reader.pushers().all().await?;
        drop(reader);
        let now = self.storage().log().position();
        let kept = kept.unwrap_or(now);
        self.0.queues.apply(kept, Vec::new());
        if !pushers.is_empty() {
            self.0.has_had_pushers.store(true, Ordering::Relaxed);
        }
        for pusher in pushers {
            let (id, progress) = (pusher.id, pusher.progress);
            let invited = self.invited_since(&id.user_id, progress.position);
            self.0.queues.add(&id, &progress, kept);
            if progress.failures > 0 {
                self.0.queues.mark_all(&id);
                self.wake(id);
            } else {
                let marks = invited
                    .iter()
                    .map(|room_id| mark(&id.user_id, room_id, false));
                self.0.queues.apply(kept, marks.collect());
            }
        }
        Ok(Place { read: kept, kept })
    }

    /// Reads the log up to its end.
    async fn read(&self, place: &mut Place) -> Result<(), StorageError> {
        let log = self.storage().log();
        if let Some(entries) = log.since(place.read) {
            for entry in entries {
                if let Change::Pushers { user_id } = &entry.change {
                    self.reload(user_id, entry.position).await?;
                }
                let marks = self.marks(&entry.change);
                self.0.queues.apply(entry.position, marks);
                place.read = entry.position;
            }
            self.wake_marked();
            return Ok(());
        }
        // After a restart, or far behind: from the database, page by page.
        let end = log.position();
        while place.read < end {
            let mut reader = self.storage().read().await?;
            let page = reader.events().after(place.read, end, PAGE).await?;
            drop(reader);
            for event in &page {
                if let Some(position) = event.log_position() {
                    let marks = self.marks_of_event(event);
                    self.0.queues.apply(position, marks);
                }
            }
            let last = page.last().and_then(StoredEvent::log_position);
            place.read = last.unwrap_or(end);
        }
        // What else the log had: who came to have pushers.
        let mut reader = self.storage().read().await?;
        for pusher in reader.pushers().all().await? {
            self.0.queues.add(&pusher.id, &pusher.progress, end);
        }
        self.0.queues.apply(place.read, Vec::new());
        self.wake_marked();
        Ok(())
    }

    /// The rooms that an entry of the log marks.
    fn marks(&self, change: &Change) -> Vec<Mark> {
        match change {
            Change::Event(event) => self.marks_of_event(event),
            Change::OutsideMembership(row) => vec![mark(&row.user_id, &row.room_id, false)],
            Change::Receipt {
                room_id, user_id, ..
            } => vec![mark(user_id, room_id, true)],
            Change::Redacted { room_id, .. } => self.marks_of_members(room_id, true),
            _ => Vec::new(),
        }
    }

    fn marks_of_event(&self, event: &StoredEvent) -> Vec<Mark> {
        let room_id = event.pdu.room_id();
        let mut marks = self.marks_of_members(room_id, false);
        // One who speaks has read; and who was invited is not in the room yet.
        marks.push(mark(event.pdu.sender(), room_id, true));
        if let Some((user_id, MembershipState::Invite)) = membership(&event.pdu) {
            marks.push(mark(&user_id, room_id, false));
        }
        marks
    }

    /// A room, for those of its members who have pushers.
    fn marks_of_members(&self, room_id: &RoomId, read: bool) -> Vec<Mark> {
        let users = self.0.queues.users();
        let roster = self.storage().log().roster();
        let mut marks = Vec::new();
        roster.each_local_member(room_id, users.iter(), users.len(), |user_id| {
            if users.contains(user_id) {
                marks.push(mark(user_id, room_id, read));
            }
        });
        marks
    }

    fn wake_marked(&self) {
        for id in self.0.queues.idle() {
            self.wake(id);
        }
    }

    /// Starts to work for a pusher, unless that is under way.
    fn wake(&self, id: PusherId) {
        if self.0.queues.begin(&id) {
            let sender = self.clone();
            let tasks = &self.0.parts.tasks;
            tasks.spawn(async move { sender.deliver(id).await });
        }
    }

    /// Learns which pushers a user has now.
    async fn reload(&self, user_id: &UserId, at: StreamPosition) -> Result<(), StorageError> {
        let mut reader = self.storage().read().await?;
        let pushers = reader.pushers().of_user(user_id).await?;
        drop(reader);
        for pusher in &pushers {
            self.0.queues.add(&pusher.id, &pusher.progress, at);
            // Its gateway may be another one now.
            self.0.queues.hurry(&pusher.id);
        }
        Ok(())
    }

    /// The rooms to which a user was invited after a position.
    fn invited_since(&self, user_id: &UserId, position: StreamPosition) -> Vec<ruma::OwnedRoomId> {
        let places = self.storage().log().roster().places(user_id).into_iter();
        let invited = places.filter(|(_, place)| {
            place.membership == MembershipState::Invite && place.since > position
        });
        invited.map(|(room_id, _)| room_id).collect()
    }

    fn is_worth_keeping(&self, place: &Place) -> bool {
        let durable = self.0.queues.durable();
        durable > place.kept
            && (self.0.queues.has_pushers() || durable.0 - place.kept.0 > KEEP_AFTER)
    }

    /// Writes the place down from which to go on after a restart.
    async fn keep(&self, place: &mut Place) {
        let position = self.0.queues.durable();
        if position <= place.kept {
            return;
        }
        let write = self
            .storage()
            .write(move |tx| async move { tx.destinations().follow(NAME, position).await }.boxed());
        match write.await {
            Ok(()) => place.kept = position,
            Err(error) => tracing::error!(%error, "the push worker cannot keep its place"),
        }
    }
}

fn mark(user_id: &UserId, room_id: &RoomId, read: bool) -> Mark {
    Mark {
        user_id: user_id.to_owned(),
        room_id: room_id.to_owned(),
        read,
    }
}
