//! The client: one account on one homeserver.

mod builder;

use std::{
    collections::{BTreeSet, HashMap},
    fmt, mem,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use ruma::{
    DeviceId, OwnedRoomId, OwnedTransactionId, OwnedUserId, RoomId, RoomOrAliasId, ServerName,
    UserId,
    api::client::{
        membership::join_room_by_id_or_alias,
        room::{Visibility, create_room},
    },
    events::AnyInitialStateEvent,
    serde::Raw,
};
use serde_json::{json, value::to_raw_value};

pub(crate) use self::builder::Settings;
pub use self::builder::{BuildError, ClientBuilder, StoreConfig};
use crate::{
    Room,
    crypto::{
        Alarm, ENCRYPT_STATE, Failure, Machine, MachineError, MarkError, OutgoingRequest, Request,
        Response, RoomChange,
    },
    environment::Environment,
    room::{RoomError, RoomRow},
    store::{Batch, Changes, Store, StoreError, Table, Visit},
    sync::SyncState,
    transport::{RequestError, Transport},
};

/// A client of one homeserver; cheap to clone, all clones are the same client.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sotto_client::Client;
///
/// let client = Client::builder()
///     .homeserver("https://example.org")
///     .store("./alice.sqlite")
///     .build()
///     .await?;
/// if !client.restore().await? {
///     client.login_password("alice", "correct horse battery staple").await?;
/// }
/// client.sync_once(std::time::Duration::ZERO).await?;
/// for room in client.rooms().await? {
///     room.send_text("hello").await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) transport: Transport,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) sync: tokio::sync::Mutex<SyncState>,
    /// Guards the rows of rooms, which are read and written again.
    rooms: tokio::sync::Mutex<()>,
    machine: OnceLock<Arc<Machine>>,
    pub(crate) settings: Settings,
    sending: Mutex<HashMap<OwnedRoomId, Arc<tokio::sync::Mutex<()>>>>,
}

/// Nobody else reads and writes again rows of rooms, here or in another process.
pub(crate) struct Rooms<'c> {
    _visit: Visit,
    _rooms: tokio::sync::MutexGuard<'c, ()>,
}

/// Nobody has logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is not logged in")]
pub struct NotLoggedIn;

/// What a new room should be like. Encrypted, private and without a name, unless said otherwise.
#[derive(Debug, Clone)]
pub struct RoomOptions {
    /// The name of the room.
    pub name: Option<String>,
    /// Who is invited at once.
    pub invite: Vec<OwnedUserId>,
    /// Whether the room is encrypted.
    pub encrypted: bool,
    /// Who can read the name, topic, avatar and pins of an encrypted room.
    pub state: StateSecrecy,
    /// Whether anybody may join, and the room is listed.
    pub public: bool,
    /// Whether it is a conversation of two: nobody else gets keys, whoever the server says is in
    /// the room.
    pub direct: bool,
}

/// Who can read what a room says about itself; see [`Room::set_state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateSecrecy {
    /// Everybody on the way.
    Open,
    /// Members alone. Few other clients can read it.
    Encrypted,
}

impl Default for RoomOptions {
    fn default() -> Self {
        Self {
            name: None,
            invite: Vec::new(),
            encrypted: true,
            state: StateSecrecy::Open,
            public: false,
            direct: false,
        }
    }
}

impl Client {
    /// The user, if somebody is logged in.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        Some(self.inner.machine.get()?.user_id())
    }

    /// The device, if somebody is logged in.
    #[must_use]
    pub fn device_id(&self) -> Option<&DeviceId> {
        Some(self.inner.machine.get()?.device_id())
    }

    /// The URL of the homeserver.
    #[must_use]
    pub fn homeserver(&self) -> &str {
        self.inner.transport.homeserver()
    }

    /// The encryption, for what has no method here.
    pub fn machine(&self) -> Result<&Arc<Machine>, NotLoggedIn> {
        self.inner.machine.get().ok_or(NotLoggedIn)
    }

    pub(crate) async fn set_machine(&self, machine: Machine) {
        let settings = &self.inner.settings;
        machine.set_share_policy(settings.share_policy).await;
        machine.set_trust_requirement(settings.trust_requirement);
        if let Some(period) = settings.direct_rotation {
            machine.set_direct_rotation(period);
        }
        // Logging in twice at the same moment is refused by whoever stores the session.
        let _ = self.inner.machine.set(Arc::new(machine));
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch::new(&*self.inner.store)
    }

    /// Begins to read and write again rows of rooms.
    pub(crate) async fn with_rooms(&self) -> Result<Rooms<'_>, StoreError> {
        let rooms = self.inner.rooms.lock().await;
        let visit = self.inner.store.enter().await?;
        Ok(Rooms {
            _visit: visit,
            _rooms: rooms,
        })
    }

    /// A room by its id, whether it is known or not.
    #[must_use]
    pub fn room(&self, room_id: &RoomId) -> Room {
        Room::new(self.clone(), room_id.to_owned())
    }

    /// The rooms that this account has joined, as far as the last sync tells.
    pub async fn rooms(&self) -> Result<Vec<Room>, StoreError> {
        let rows: Vec<(String, RoomRow)> = self.batch().list(Table::Rooms, "").await?;
        let joined = rows.into_iter().filter(|(_, row)| row.is_joined());
        let ids = joined.filter_map(|(id, _)| OwnedRoomId::try_from(id).ok());
        Ok(ids.map(|id| Room::new(self.clone(), id)).collect())
    }

    /// Creates a room.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>
    pub async fn create_room(&self, options: RoomOptions) -> Result<Room, RoomError> {
        let machine = self.machine()?;
        let mut encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        let hides_name = options.encrypted && options.state == StateSecrecy::Encrypted;
        if hides_name {
            encryption[ENCRYPT_STATE] = true.into();
        }
        let mut request = create_room::v3::Request::new();
        let (open_name, hidden_name) = match options.name {
            Some(name) if hides_name => (None, Some(name)),
            name => (name, None),
        };
        request.name = open_name;
        request.invite = options.invite;
        request.is_direct = options.direct;
        let other = match request.invite.as_slice() {
            [other] if options.direct => Some(other.clone()),
            _ => None,
        };
        request.preset = Some(match (options.public, options.direct) {
            (true, _) => create_room::v3::RoomPreset::PublicChat,
            (false, true) => create_room::v3::RoomPreset::TrustedPrivateChat,
            (false, false) => create_room::v3::RoomPreset::PrivateChat,
        });
        if options.public {
            request.visibility = Visibility::Public;
        }
        if options.encrypted {
            let event = json!({
                "type": "m.room.encryption",
                "state_key": "",
                "content": encryption,
            });
            let event: Raw<AnyInitialStateEvent> =
                Raw::from_json(to_raw_value(&event).map_err(|_| RoomError::Encode)?);
            request.initial_state.push(event);
        }
        let invited = request.invite.clone();
        let room_id = self.inner.transport.send(request).await?.room_id;
        if let (true, Some(content)) = (options.encrypted, encryption.as_object()) {
            // We know it ourselves; the server cannot make us forget it.
            let change = RoomChange::Encryption(room_id.clone(), content.clone());
            machine
                .receive_room_changes(&[change], Changes::default())
                .await?;
        }
        let room = self.room(&room_id);
        room.confirm(&invited).await?;
        if other.is_some() {
            room.set_direct_with(other).await?;
        }
        if let Some(name) = hidden_name {
            room.set_name(&name).await?;
        }
        Ok(room)
    }

    /// Joins a room, by its id or an alias; `via` names servers that know the room.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3joinroomidoralias>
    pub async fn join(&self, room: &RoomOrAliasId, via: &[&ServerName]) -> Result<Room, RoomError> {
        self.machine()?;
        let mut request = join_room_by_id_or_alias::v3::Request::new(room.to_owned());
        request.via = via.iter().map(|&server| server.to_owned()).collect();
        let response = self.inner.transport.send(request).await?;
        let room = self.room(&response.room_id);
        room.note_accepted().await?;
        Ok(room)
    }

    /// The lock that keeps the messages of a room in order.
    pub(crate) fn sending(&self, room_id: &RoomId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self
            .inner
            .sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        locks.entry(room_id.to_owned()).or_default().clone()
    }

    /// Sends what the machine wants to be sent. A request that fails is offered again later.
    pub(crate) async fn send_outgoing(&self) -> Result<Vec<Alarm>, OutgoingError> {
        let requests = self.machine()?.outgoing_requests().await?;
        self.send_requests(requests).await
    }

    /// Sends requests of the machine and reports how they went. Stops where the server cannot be
    /// reached; goes on where it refuses.
    pub(crate) async fn send_requests(
        &self,
        requests: Vec<OutgoingRequest>,
    ) -> Result<Vec<Alarm>, OutgoingError> {
        let machine = self.machine()?;
        let ids = requests.iter().map(|request| request.id.clone()).collect();
        let mut unreported = Unreported { machine, ids };
        let mut alarms = Vec::new();
        for OutgoingRequest { id, request } in requests {
            match self.send_crypto_request(request).await {
                Ok(response) => alarms.extend(machine.mark_request_as_sent(&id, &response).await?),
                Err((error, failure)) => {
                    alarms.extend(machine.mark_request_as_failed(&id, failure).await?);
                    if !error.is_permanent() {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, errcode = ?error.errcode(), "a key request was refused");
                }
            }
            unreported.ids.remove(&id);
        }
        Ok(alarms)
    }

    async fn send_crypto_request(
        &self,
        request: Request,
    ) -> Result<Response, (RequestError, Failure)> {
        let transport = &self.inner.transport;
        let failure = |error: RequestError| {
            let failure = if error.is_permanent() {
                Failure::Permanent
            } else {
                Failure::Temporary
            };
            (error, failure)
        };
        match request {
            Request::KeysUpload(request) => transport
                .send(request)
                .await
                .map(Response::KeysUpload)
                .map_err(|error| match error.server_message() {
                    Some(text) if is_duplicate_key(text) => (error, Failure::OneTimeKeyExists),
                    _ => failure(error),
                }),
            Request::KeysQuery(request) => transport
                .send(request)
                .await
                .map(Response::KeysQuery)
                .map_err(failure),
            Request::KeysClaim(request) => transport
                .send(request)
                .await
                .map(Response::KeysClaim)
                .map_err(failure),
            Request::SignaturesUpload(request) => transport
                .send(request)
                .await
                .map(Response::SignaturesUpload)
                .map_err(failure),
            // It may take a person: see `Client::bootstrap_cross_signing`.
            Request::SigningKeysUpload(_) => Err((RequestError::Malformed, Failure::Temporary)),
            Request::ToDevice(request) => transport
                .send(request)
                .await
                .map(Response::ToDevice)
                .map_err(failure),
        }
    }
}

/// Requests of the machine whose answers were not reported yet. Whoever sends them may stop at any moment; the
/// machine must not wait for answers then.
struct Unreported<'a> {
    machine: &'a Machine,
    ids: BTreeSet<OwnedTransactionId>,
}

impl Drop for Unreported<'_> {
    fn drop(&mut self) {
        self.machine.give_up_requests(mem::take(&mut self.ids));
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("homeserver", &self.homeserver())
            .field("user_id", &self.user_id())
            .field("device_id", &self.device_id())
            .finish_non_exhaustive()
    }
}

/// Servers agree on this sentence although no specification has it.
fn is_duplicate_key(message: &str) -> bool {
    message.starts_with("One time key") && message.contains("already exists")
}

/// Why the requests of the machine were not all sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutgoingError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The machine did not want an answer.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// The server was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
}
