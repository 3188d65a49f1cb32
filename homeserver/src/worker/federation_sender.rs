//! Sending to other servers what they must learn of
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#transactions)).
//!
//! One task reads the log and puts events into queues in memory, one for each server; nothing is written
//! for that, and rooms without other servers cost nothing. A server that does not answer, or not fast
//! enough, is *behind*: that is written down, its queue is dropped, and once it answers again it gets the
//! newest events of the rooms that it is in. The durable place of the worker is before everything that
//! still is in a queue, so that after a crash the last events are sent again rather than never.

mod catch_up;
mod delivery;
mod devices;
mod presence;
mod queues;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use ruma::{OwnedServerName, OwnedUserId, events::room::member::MembershipState};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::queues::Queues;
use crate::{
    clock::Clock,
    service::{events::Events, federation::Federation, presence::Presence, timeline::membership},
    storage::{
        Families, Storage, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
    },
};

/// The name under which the place of the worker is kept.
const NAME: &str = "federation_sender";
/// How many servers are sent to at the same time.
const AT_ONCE: usize = 256;
/// How often the place of the worker is written, at most.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How far the log may go on, without anything to send, before the place is written all the same.
const KEEP_AFTER: i64 = 5_000;
/// How many events are read from the database at once.
const PAGE: i64 = 500;
/// How long to wait after the database failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Sends events to other servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FederationSender(Arc<Inner>);

struct Inner {
    storage: Storage,
    federation: Federation,
    presence: Presence,
    /// Local users of whose presence other servers are about to learn.
    seen: Mutex<BTreeSet<OwnedUserId>>,
    events: Events,
    clock: Clock,
    queues: Queues,
    sending: Semaphore,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl FederationSender {
    pub(crate) fn new(
        storage: Storage,
        federation: Federation,
        presence: Presence,
        events: Events,
        clock: Clock,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            storage,
            federation,
            presence,
            seen: Mutex::default(),
            events,
            clock,
            queues: Queues::default(),
            sending: Semaphore::new(AT_ONCE),
            tasks,
            stopping,
        }))
    }

    /// Runs until the server stops.
    pub(crate) async fn run(self) {
        let stopping = self.0.stopping.clone();
        let mut place = loop {
            match self.start().await {
                Ok(place) => break place,
                Err(error) => tracing::error!(%error, "the federation sender cannot start"),
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_ERROR) => {}
                () = stopping.cancelled() => return,
            }
        };
        let sender = self.clone();
        let log = (self.0.storage.log()).follow(move |change| sender.wants(change));
        let mut keep = tokio::time::interval(KEEP_EVERY);
        let mut seen = tokio::time::interval(presence::TELL_EVERY);
        loop {
            log.skip(&mut place.read);
            self.0.queues.fill(place.read);
            if let Err(error) = self.read(&mut place).await {
                tracing::error!(%error, "the federation sender cannot read the log");
                tokio::time::sleep(AFTER_ERROR).await;
            }
            tokio::select! {
                () = log.woken() => {}
                _ = keep.tick(), if place.is_worth_keeping(&self.0.queues) => {
                    self.keep(&mut place).await;
                }
                _ = seen.tick(), if self.has_seen() => self.tell_presence(),
                () = stopping.cancelled() => break,
            }
        }
        self.keep(&mut place).await;
    }

    /// Takes up the work where it was left.
    async fn start(&self) -> Result<Place, StorageError> {
        let mut reader = self.0.storage.read().await?;
        let kept = reader.destinations().follower(NAME).await?;
        let behind = reader.destinations().behind().await?;
        let waiting = reader.federation_edus().destinations().await?;
        drop(reader);
        let kept = if let Some(kept) = kept {
            kept
        } else {
            let now = self.0.storage.log().position();
            let write = self
                .0
                .storage
                .write(move |tx| async move { tx.destinations().follow(NAME, now).await }.boxed());
            write.await.map(|()| now)?
        };
        self.0.queues.fill(kept);
        for (server, behind) in behind {
            self.0.queues.set_behind(&server, behind);
            self.wake(server);
        }
        for server in waiting {
            self.0.queues.push_edu(&server);
            self.wake(server);
        }
        Ok(Place {
            read: kept,
            kept,
            sent: false,
        })
    }

    /// Reads the log up to its end.
    async fn read(&self, place: &mut Place) -> Result<(), StorageError> {
        let log = self.0.storage.log();
        if let Some(entries) = log.since(place.read) {
            for entry in entries {
                match &entry.change {
                    Change::Event(event) => {
                        self.tell_devices(event, entry.position).await?;
                        place.sent |= self.route(event, entry.position);
                        self.introduce(event);
                    }
                    Change::Presence { user_id } => self.saw(user_id),
                    Change::FederationEdu { destination } => {
                        self.0.queues.push_edu(destination);
                        self.wake(destination.clone());
                    }
                    _ => {}
                }
                place.read = entry.position;
                self.0.queues.fill(place.read);
            }
            return Ok(());
        }
        // After a restart, or far behind: from the database, page by page.
        let end = log.position();
        while place.read < end {
            let mut reader = self.0.storage.read().await?;
            let page = reader.events().after(place.read, end, PAGE).await?;
            drop(reader);
            let Some(last) = page.last().and_then(StoredEvent::log_position) else {
                place.read = end;
                self.0.queues.fill(end);
                break;
            };
            for event in page {
                if let Some(position) = event.log_position() {
                    self.tell_devices(&event, position).await?;
                    place.sent |= self.route(&Arc::new(event), position);
                }
            }
            place.read = last;
            self.0.queues.fill(last);
        }
        // What else the log had is not in the table of events.
        let mut reader = self.0.storage.read().await?;
        let waiting = reader.federation_edus().destinations().await?;
        drop(reader);
        for server in waiting {
            self.0.queues.push_edu(&server);
            self.wake(server);
        }
        Ok(())
    }

    /// Whether an entry of the log may have something for another server.
    fn wants(&self, change: &Change) -> bool {
        let roster = self.0.storage.log().roster();
        match change {
            Change::Event(event) => {
                event.pdu.is_state()
                    || !event.memberships.is_empty()
                    || roster.has_remote_members(event.pdu.room_id())
            }
            Change::Presence { .. } | Change::FederationEdu { .. } => true,
            _ => false,
        }
    }

    /// Puts an event into the queues of the servers that must get it; whether there are any.
    fn route(&self, event: &Arc<StoredEvent>, position: StreamPosition) -> bool {
        let servers = self.audience(event, position);
        let sent = !servers.is_empty();
        for server in servers {
            if self.0.queues.push(&server, event, position) {
                self.wake(server);
            }
        }
        sent
    }

    /// The servers that must get an event: those in the room, and that of somebody who was just put out
    /// of it. One that came later must not: what was before may be none of its business.
    fn audience(&self, event: &StoredEvent, position: StreamPosition) -> Vec<OwnedServerName> {
        let own = self.0.federation.server_name();
        if !event.is_ours_to_send(own) {
            return Vec::new();
        }
        let roster = self.0.storage.log().roster();
        let mut servers = roster.remote_servers_before(event.pdu.room_id(), position);
        if let Some((user_id, MembershipState::Leave | MembershipState::Ban)) =
            membership(&event.pdu)
        {
            servers.insert(user_id.server_name().to_owned());
        }
        // Whoever made the event has it.
        servers.remove(own);
        if !event.is_for_another() {
            servers.remove(event.pdu.sender().server_name());
        }
        servers.into_iter().collect()
    }

    /// Starts to send to a server, unless that is under way.
    fn wake(&self, server: OwnedServerName) {
        if self.0.queues.begin(&server) {
            let sender = self.clone();
            self.0
                .tasks
                .spawn(async move { sender.deliver(server).await });
        }
    }

    /// Writes the place down from which to go on after a restart.
    async fn keep(&self, place: &mut Place) {
        let position = place.durable(&self.0.queues);
        if position <= place.kept {
            return;
        }
        let write = self
            .0
            .storage
            .write(move |tx| async move { tx.destinations().follow(NAME, position).await }.boxed());
        match write.await {
            Ok(()) => {
                place.kept = position;
                place.sent = false;
            }
            Err(error) => tracing::error!(%error, "the federation sender cannot keep its place"),
        }
    }
}

/// Where the worker is in the log.
#[derive(Debug)]
struct Place {
    /// Everything up to here is in queues, or was sent.
    read: StreamPosition,
    /// What is written down.
    kept: StreamPosition,
    /// Whether anything was to be sent since.
    sent: bool,
}

impl Place {
    /// Everything up to here was sent, but for the servers that are behind.
    fn durable(&self, queues: &Queues) -> StreamPosition {
        match queues.oldest() {
            Some(oldest) => StreamPosition(oldest.0 - 1).min(self.read),
            None => self.read,
        }
    }

    fn is_worth_keeping(&self, queues: &Queues) -> bool {
        let durable = self.durable(queues);
        durable > self.kept && (self.sent || durable.0 - self.kept.0 > KEEP_AFTER)
    }
}
