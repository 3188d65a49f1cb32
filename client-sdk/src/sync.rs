//! Following the server.
//!
//! A sync is taken in one commit: keys, ratchets, rooms, the token, and the part that is meant for
//! the program. That part stays in the store until the program asks for the next one, so it is
//! delivered again if the process dies in between.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#syncing>

mod apply;

use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use ruma::{
    OneTimeKeyAlgorithm, OwnedRoomId, OwnedUserId, api::client::sync::sync_events,
    events::AnySyncTimelineEvent, serde::Raw,
};
use serde::{Deserialize, Serialize};

use self::apply::PendingRoom;
pub(crate) use self::apply::{Completeness, RoomState, StateFields};
use crate::{
    Client,
    client::{NotLoggedIn, OutgoingError},
    crypto::{
        Alarm, Bootstrap, InboxItem, Machine, MachineError, RejectedToDevice, RoomKeyInfo,
        SyncChanges, ToDeviceEvent,
    },
    room::{roster, state},
    store::{Batch, Changes, StoreError, Table},
    timeline::{Protection, TimelineEvent, UndecryptableReason},
    transport::RequestError,
};

/// How long [`Client::sync_stream`] lets the server wait for news.
const LONG_POLL: Duration = Duration::from_secs(30);
/// The pause of the stream after a failure; it doubles each time …
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What the syncs of one process have to remember.
#[derive(Default)]
pub(crate) struct SyncState {
    /// The number of the pending part that was delivered last in this process.
    delivered: Option<u64>,
    /// The user has an identity.
    has_identity: bool,
    /// Items of the inbox that were delivered with it.
    consumed: Vec<String>,
    /// What becomes of the store once the program has consumed it.
    after: Changes,
    rejected: Vec<RejectedToDevice>,
    alarms: Vec<Alarm>,
}

/// The part of a sync response that waits for the program.
#[derive(Default, Serialize, Deserialize)]
struct Pending {
    /// Each has a greater one.
    #[serde(default)]
    number: u64,
    initial: bool,
    rooms: Vec<PendingRoom>,
    invites: Vec<Invite>,
}

/// News.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SyncUpdate {
    /// It is the first sync of this device: the events in it are old.
    pub initial: bool,
    /// What happened in rooms.
    pub rooms: Vec<RoomUpdate>,
    /// New invitations.
    pub invites: Vec<Invite>,
    /// Events of earlier syncs that can be read now.
    pub decrypted_late: Vec<(OwnedRoomId, TimelineEvent)>,
    /// Messages to this device that are not about room keys.
    pub to_device: Vec<ToDeviceEvent>,
    /// Messages to this device that were refused.
    pub rejected: Vec<RejectedToDevice>,
    /// What the user should be told.
    pub alarms: Vec<Alarm>,
}

/// What happened in a room.
#[derive(Debug)]
pub struct RoomUpdate {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Whether we are in it.
    pub membership: Membership,
    /// We are in it since this sync.
    pub newly_joined: bool,
    /// Events are missing before these.
    pub limited: bool,
    /// Where to ask for what is before these.
    pub prev_batch: Option<String>,
    /// The events.
    pub timeline: Vec<TimelineEvent>,
}

/// Our part in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// We are in it.
    Joined,
    /// We were asked to come.
    Invited,
    /// We are not in it any more.
    Left,
}

/// An invitation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invite {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who asks, as far as the server says.
    pub inviter: Option<OwnedUserId>,
    /// The name of the room.
    pub name: Option<String>,
}

/// Why there is no news.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The server has ended the session.
    #[error("the server has ended the session")]
    LoggedOut,
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(RequestError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RequestError> for SyncError {
    fn from(error: RequestError) -> Self {
        match error.errcode().as_deref() {
            Some("M_UNKNOWN_TOKEN") => Self::LoggedOut,
            _ => Self::Request(error),
        }
    }
}

impl Client {
    /// Asks for news and waits up to `timeout` for them. Room keys that are imported meanwhile end
    /// the waiting: the events that they open are in [`SyncUpdate::decrypted_late`].
    ///
    /// News that a previous process did not consume come first. To call this again says that the
    /// news of the last call were consumed. A call that is not waited for to its end loses nothing:
    /// the next one brings its news.
    pub async fn sync_once(&self, timeout: Duration) -> Result<SyncUpdate, SyncError> {
        let machine = self.machine()?.clone();
        let mut state = self.inner.sync.lock().await;
        let waiting: Option<Pending> = self.batch().get(Table::PendingSync, "", "").await?;
        let last = waiting.as_ref().map(|pending| pending.number);
        let pending = match waiting {
            Some(pending) if state.delivered != Some(pending.number) => pending,
            _ => loop {
                let fetched = self.fetch(&machine, &mut state, last, timeout).await?;
                if let Some(pending) = fetched {
                    break pending;
                }
            },
        };
        let number = pending.number;
        match self.send_outgoing().await {
            Ok(alarms) => state.alarms.extend(alarms),
            Err(OutgoingError::Machine(error)) => return Err(error.into()),
            // They are offered again with the next sync.
            Err(error) => tracing::warn!(%error, "key requests could not be sent"),
        }
        if self.inner.settings.cross_signing && !state.has_identity {
            state.has_identity = self.ensure_identity().await;
        }
        let update = self.deliver(&machine, &mut state, pending).await?;
        if let Err(error) = self.take_key_bundles().await {
            tracing::warn!(%error, "the history of a room is not readable yet");
        }
        if let Err(error) = self.take_verifications(&update).await {
            tracing::warn!(%error, "a verification does not go on");
        }
        let backup = async {
            self.use_shared_backup().await?;
            self.upload_backup().await
        };
        if let Err(error) = backup.await {
            tracing::warn!(%error, "the backup is not up to date");
        }
        // Last, as this may be dropped wherever it waits.
        state.delivered = Some(number);
        state.rejected.clear();
        state.alarms.clear();
        Ok(update)
    }

    /// News as they come. Failures are reported and tried again with growing pauses; the stream
    /// ends only when the session does.
    pub fn sync_stream(&self) -> impl Stream<Item = Result<SyncUpdate, SyncError>> + use<> {
        let first = Some((self.clone(), Duration::ZERO));
        unfold(first, |state| async {
            let (client, pause) = state?;
            tokio::time::sleep(pause).await;
            let result = client.sync_once(LONG_POLL).await;
            let next = match &result {
                Ok(_) => Some((client, Duration::ZERO)),
                Err(SyncError::LoggedOut | SyncError::NotLoggedIn(_)) => None,
                Err(_) => {
                    let pause = pause.saturating_mul(2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                    Some((client, pause))
                }
            };
            Some((result, next))
        })
    }

    /// Makes an identity if the user has none; returns whether there is one.
    async fn ensure_identity(&self) -> bool {
        let made = self.bootstrap_cross_signing(Bootstrap::IfMissing, None);
        match made.await {
            Ok(true) => true,
            // There is one, or that is not known yet.
            Ok(false) => match (self.machine(), self.user_id()) {
                (Ok(machine), Some(user_id)) => machine
                    .master_key(user_id)
                    .await
                    .is_ok_and(|key| key.is_some()),
                _ => false,
            },
            Err(error) => {
                tracing::warn!(%error, "there is no identity yet");
                false
            }
        }
    }

    /// Takes the next response; none if another process has taken one meanwhile, after which this is no
    /// news.
    async fn fetch(
        &self,
        machine: &Machine,
        state: &mut SyncState,
        last: Option<u64>,
        timeout: Duration,
    ) -> Result<Option<Pending>, SyncError> {
        if !self.inner.transport.has_token() {
            return Err(SyncError::LoggedOut);
        }
        let mut request = sync_events::v3::Request::new();
        let since = machine.sync_token().await?;
        request.since.clone_from(&since);
        request.timeout = Some(timeout);
        let transport = &self.inner.transport;
        let response = tokio::select! {
            response = transport.send(request.clone()) => response?,
            () = machine.room_keys_imported() => {
                // Events can be read now that could not before: the server may have no news for long.
                request.timeout = Some(Duration::ZERO);
                transport.send(request).await?
            }
        };

        let _rooms = self.with_rooms().await?;
        if machine.sync_token().await? != since {
            return Ok(None);
        }
        let mut batch = self.batch();
        let (rooms, invites, changes) =
            apply::apply(&mut batch, machine.user_id(), &response.rooms).await?;
        let pending = Pending {
            // The store may be that of another session than the last time.
            number: 1 + last.max(state.delivered).unwrap_or(0),
            initial: since.is_none(),
            rooms,
            invites,
        };
        batch.put(Table::PendingSync, "", "", &pending)?;
        // In this order: what the program has consumed goes, what is new comes.
        let mut also = state.after.clone();
        also.extend(batch.into_changes());
        let algorithm = OneTimeKeyAlgorithm::SignedCurve25519;
        let count = response.device_one_time_keys_count.get(&algorithm);
        let outcome = machine
            .receive_sync_changes(SyncChanges {
                next_batch: &response.next_batch,
                to_device: &response.to_device.events,
                device_lists: &response.device_lists,
                one_time_keys: count.map_or(0, |count| u64::from(*count)),
                unused_fallback_keys: response.device_unused_fallback_key_types.as_deref(),
                rooms: &changes,
                consumed: &state.consumed,
                also,
            })
            .await?;
        state.after = Changes::default();
        state.consumed.clear();
        state.rejected.extend(outcome.rejected);
        Ok(Some(pending))
    }

    async fn deliver(
        &self,
        machine: &Machine,
        state: &mut SyncState,
        pending: Pending,
    ) -> Result<SyncUpdate, SyncError> {
        let mut update = SyncUpdate {
            initial: pending.initial,
            invites: pending.invites,
            rejected: state.rejected.clone(),
            alarms: state.alarms.clone(),
            ..SyncUpdate::default()
        };
        let mut after = self.batch();
        let mut unread = self.batch();
        let _rooms = self.with_rooms().await?;
        state.consumed.clear();
        for (id, item) in machine.inbox().await? {
            match item {
                InboxItem::Message(event) if event.kind == roster::ROSTER => {
                    roster::take(&mut unread, machine, &event).await?;
                }
                InboxItem::Message(event) => update.to_device.push(event),
                InboxItem::RoomKey(key) => {
                    let late = self.read_late(machine, &mut after, &key).await?;
                    for (room_id, event) in &late {
                        // What comes late may be old.
                        if self.room(room_id).name().await?.is_none() {
                            state::take_hidden_name(&mut unread, room_id, event).await?;
                        }
                    }
                    update.decrypted_late.extend(late);
                }
            }
            state.consumed.push(id);
        }
        for room in pending.rooms {
            update
                .rooms
                .push(read_room(machine, &mut unread, room).await?);
        }
        unread.commit().await?;
        state.after = after.into_changes();
        if !update.initial {
            request_keys(machine, &update.rooms).await?;
        }
        Ok(update)
    }

    /// Reads the events that waited for a key.
    async fn read_late(
        &self,
        machine: &Machine,
        after: &mut Batch<'_>,
        key: &RoomKeyInfo,
    ) -> Result<Vec<(OwnedRoomId, TimelineEvent)>, StoreError> {
        let partition = unread_partition(&key.room_id, &key.session_id);
        let mut late = Vec::new();
        let rows: Vec<(String, Raw<AnySyncTimelineEvent>)> =
            after.list(Table::Undecryptable, &partition).await?;
        let raw = rows.iter().map(|(_, raw)| raw);
        for event in TimelineEvent::read(machine, &key.room_id, raw).await? {
            if matches!(event.protection, Protection::Encrypted(_)) {
                after.delete(Table::Undecryptable, &partition, event.event_id.as_str());
                late.push((key.room_id.clone(), event));
            }
        }
        Ok(late)
    }
}

fn unread_partition(room_id: &ruma::RoomId, session_id: &str) -> String {
    format!("{room_id} {session_id}")
}

/// Asks the other devices of the user for the keys of new events that this one lacks. What is old
/// is in the backup.
async fn request_keys(machine: &Machine, rooms: &[RoomUpdate]) -> Result<(), MachineError> {
    for room in rooms {
        for event in &room.timeline {
            if let Protection::Undecryptable(reason) = &event.protection
                && matches!(reason, UndecryptableReason::MissingRoomKey { .. })
                && let Some(session_id) = Machine::session_id_of(&event.raw)
            {
                machine.request_room_key(&room.room_id, &session_id).await?;
            }
        }
    }
    Ok(())
}

async fn read_room(
    machine: &Machine,
    unread: &mut Batch<'_>,
    room: PendingRoom,
) -> Result<RoomUpdate, StoreError> {
    let hidden = TimelineEvent::read(machine, &room.room_id, &room.hidden_state).await?;
    let timeline = TimelineEvent::read(machine, &room.room_id, &room.timeline).await?;
    for event in hidden.iter().chain(&timeline) {
        state::take_hidden_name(unread, &room.room_id, event).await?;
        if let Protection::Undecryptable(reason) = &event.protection
            && reason.may_be_cured()
            && let Some(session_id) = Machine::session_id_of(&event.raw)
        {
            let partition = unread_partition(&room.room_id, &session_id);
            let id = event.event_id.as_str();
            unread.put(Table::Undecryptable, &partition, id, &event.raw)?;
        }
    }
    Ok(RoomUpdate {
        room_id: room.room_id,
        membership: room.membership,
        newly_joined: room.newly_joined,
        limited: room.limited,
        prev_batch: room.prev_batch,
        timeline,
    })
}
