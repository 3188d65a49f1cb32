//! Outbound Megolm sessions: writing to a room.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#mmegolmv1aes-sha2>

use ruma::{OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vodozemac::megolm::{GroupSession, GroupSessionPickle, InboundGroupSession, SessionConfig};
use zeroize::Zeroizing;

use super::{
    error::{EncryptError, MachineError},
    history,
    keys::MEGOLM,
    machine::Machine,
    megolm::{InboundSession, session_partition},
    outbox,
    rotation::{HOUR_MS, WEEK_MS},
    to_device::RoomChange,
    trust::{SenderData, SenderTrust},
};
use crate::store::{self, Batch, Changes, StoreError, Table};

const DEFAULT_MESSAGES: u64 = 100;
/// The lengths that payloads have, in bytes. Longer ones are rare, and have the length they have.
const LENGTHS: [usize; 8] = [256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768];

/// The encryption of a room. There is no way to remove it: a room that was encrypted once is
/// never again sent to in the clear, whatever its state says later.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mroomencryption>
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoomEncryption {
    pub(crate) supported: bool,
    pub(crate) rotation_period_ms: u64,
    pub(crate) rotation_period_messages: u64,
    /// State that need not be open is encrypted as well.
    #[serde(default)]
    pub(crate) encrypts_state: bool,
    /// It is a conversation of two. Not said by the event.
    #[serde(default)]
    pub(crate) direct: bool,
}

/// What a room says that encrypts its state (MSC4362, not stable yet).
pub(crate) const ENCRYPT_STATE: &str = "io.element.msc4362.encrypt_state_events";

/// The state key of an encrypted state event.
pub(crate) fn packed_state_key(kind: &str, state_key: &str) -> String {
    format!("{kind}:{state_key}")
}

impl RoomEncryption {
    /// Reads the content of an `m.room.encryption` event. The rotation periods are bounded, so
    /// that whoever may send state cannot switch rotation off, or make each message cost a session.
    fn parse(content: &Map<String, Value>) -> Self {
        let number = |name: &str| content.get(name).and_then(Value::as_u64);
        Self {
            supported: content.get("algorithm").and_then(Value::as_str) == Some(MEGOLM),
            rotation_period_ms: number("rotation_period_ms")
                .unwrap_or(WEEK_MS)
                .clamp(HOUR_MS, WEEK_MS),
            rotation_period_messages: number("rotation_period_msgs")
                .unwrap_or(DEFAULT_MESSAGES)
                .clamp(1, 10_000),
            encrypts_state: content.get(ENCRYPT_STATE) == Some(&Value::Bool(true)),
            direct: false,
        }
    }

    pub(crate) async fn load(
        batch: &Batch<'_>,
        room_id: &RoomId,
    ) -> Result<Option<Self>, StoreError> {
        batch.get(Table::EncryptedRooms, "", room_id.as_str()).await
    }

    pub(crate) fn save(&self, batch: &mut Batch<'_>, room_id: &RoomId) -> Result<(), StoreError> {
        batch.put(Table::EncryptedRooms, "", room_id.as_str(), self)
    }
}

/// Takes an `m.room.encryption` event of a room.
///
/// Later events may change when keys rotate. They cannot replace an algorithm that is supported, nor
/// have state sent in the clear again.
async fn set_encryption(
    batch: &mut Batch<'_>,
    room_id: &RoomId,
    content: &Map<String, Value>,
) -> Result<(), StoreError> {
    let mut new = RoomEncryption::parse(content);
    if let Some(known) = RoomEncryption::load(batch, room_id).await? {
        new.supported |= known.supported;
        new.encrypts_state |= known.encrypts_state;
        new.direct = known.direct;
        if new == known {
            return Ok(());
        }
        discard(batch, room_id).await?;
    }
    new.save(batch, room_id)
}

/// The current outbound session of a room.
pub(crate) struct OutboundSession {
    /// Boxed, as it is large and lives across many awaits.
    pub(crate) megolm: Box<GroupSession>,
    created_at: u64,
    discarded: bool,
    /// People who come later may get it.
    pub(crate) shared_history: bool,
}

#[derive(Serialize, Deserialize)]
struct Row {
    pickle: GroupSessionPickle,
    created_at: u64,
    discarded: bool,
    #[serde(default)]
    shared_history: bool,
}

/// A device that has got the key of an outbound session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeyShare {
    pub(crate) curve25519: String,
    pub(crate) message_index: u32,
    pub(crate) wedging: u64,
}

impl OutboundSession {
    pub(crate) async fn load(
        batch: &Batch<'_>,
        room_id: &RoomId,
    ) -> Result<Option<Self>, StoreError> {
        let row: Option<Row> = batch
            .get(Table::OutboundSessions, "", room_id.as_str())
            .await?;
        Ok(row.map(Self::from_row))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        store::decode(Table::OutboundSessions, bytes).map(Self::from_row)
    }

    fn from_row(row: Row) -> Self {
        Self {
            megolm: Box::new(GroupSession::from_pickle(row.pickle)),
            created_at: row.created_at,
            discarded: row.discarded,
            shared_history: row.shared_history,
        }
    }

    pub(crate) fn save(&self, batch: &mut Batch<'_>, room_id: &RoomId) -> Result<(), StoreError> {
        let row = Row {
            pickle: self.megolm.pickle(),
            created_at: self.created_at,
            discarded: self.discarded,
            shared_history: self.shared_history,
        };
        batch.put(Table::OutboundSessions, "", room_id.as_str(), &row)
    }

    /// Whether it may encrypt another message.
    pub(crate) fn is_usable(&self, encryption: &RoomEncryption, now: u64) -> bool {
        let young = now.saturating_sub(self.created_at) < encryption.rotation_period_ms
            // A clock that was set back must not make a session live forever.
            && self.created_at <= now.saturating_add(HOUR_MS);
        let unused = u64::from(self.megolm.message_index()) < encryption.rotation_period_messages;
        young && unused && !self.discarded
    }

    pub(crate) fn partition(&self, room_id: &RoomId) -> String {
        session_partition(room_id, &self.megolm.session_id())
    }

    pub(crate) async fn shares(
        &self,
        batch: &Batch<'_>,
        room_id: &RoomId,
    ) -> Result<Vec<(OwnedUserId, String, KeyShare)>, StoreError> {
        let rows: Vec<(String, KeyShare)> = batch
            .list(Table::OutboundShares, &self.partition(room_id))
            .await?;
        let split = |(id, share): (String, KeyShare)| {
            let (user_id, device_id) = id.split_once(' ')?;
            Some((user_id.try_into().ok()?, device_id.to_owned(), share))
        };
        Ok(rows.into_iter().filter_map(split).collect())
    }
}

/// The id of the row that says that a device has got a key. User ids have no spaces.
pub(crate) fn share_id(user_id: &UserId, device_id: &ruma::DeviceId) -> String {
    format!("{user_id} {device_id}")
}

/// Takes what happened in rooms.
pub(crate) async fn take_room_changes(
    batch: &mut Batch<'_>,
    rooms: &[RoomChange],
) -> Result<(), StoreError> {
    for change in rooms {
        match change {
            RoomChange::Encryption(room_id, content) => {
                set_encryption(batch, room_id, content).await?;
            }
            RoomChange::Departed(room_id) => discard(batch, room_id).await?,
            RoomChange::History(room_id, sharing) => {
                history::set_sharing(batch, room_id, *sharing).await?;
            }
        }
    }
    Ok(())
}

/// Makes sure that the session of a room encrypts nothing more.
pub(crate) async fn discard(batch: &mut Batch<'_>, room_id: &RoomId) -> Result<(), StoreError> {
    if let Some(mut session) = OutboundSession::load(batch, room_id).await? {
        session.discarded = true;
        session.save(batch, room_id)?;
    }
    Ok(())
}

impl Machine {
    /// Whether the room is encrypted, or ever was.
    pub async fn is_encrypted(&self, room_id: &RoomId) -> Result<bool, MachineError> {
        Ok(RoomEncryption::load(&self.batch(), room_id)
            .await?
            .is_some())
    }

    /// Whether the state of the room is encrypted as well, or ever was.
    pub async fn encrypts_state(&self, room_id: &RoomId) -> Result<bool, MachineError> {
        let encryption = RoomEncryption::load(&self.batch(), room_id).await?;
        Ok(encryption.is_some_and(|encryption| encryption.encrypts_state))
    }

    /// Encrypts an event for a room.
    ///
    /// The key has to be shared first, and delivered: an event that is sent before its key is one
    /// that others see as undecryptable. Call [`Machine::share_room_key`] until it says that it is
    /// ready; if this then still says [`EncryptError::NotShared`], something changed in between.
    ///
    /// The ratchet is stored when this returns.
    pub async fn encrypt_room_event(
        &self,
        room_id: &RoomId,
        kind: &str,
        content: Map<String, Value>,
    ) -> Result<Map<String, Value>, EncryptError> {
        self.encrypt(room_id, kind, None, content).await
    }

    /// As [`Machine::encrypt_room_event`], for a state event; returns its state key as well, which
    /// is `{kind}:{state_key}`.
    ///
    /// <https://github.com/matrix-org/matrix-spec-proposals/pull/4362>
    pub async fn encrypt_state_event(
        &self,
        room_id: &RoomId,
        kind: &str,
        state_key: &str,
        content: Map<String, Value>,
    ) -> Result<(String, Map<String, Value>), EncryptError> {
        let encrypted = self.encrypt(room_id, kind, Some(state_key), content);
        Ok((packed_state_key(kind, state_key), encrypted.await?))
    }

    async fn encrypt(
        &self,
        room_id: &RoomId,
        kind: &str,
        state_key: Option<&str>,
        mut content: Map<String, Value>,
    ) -> Result<Map<String, Value>, EncryptError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let encryption = self.encryption_of(&batch, room_id).await?;
        let row = (Table::OutboundSessions, "", room_id.as_str());
        let bytes = batch.bytes(row.0, row.1, row.2).await?;
        let (Some(encryption), Some(bytes)) = (encryption, bytes) else {
            return Err(EncryptError::NotShared);
        };
        let mut session = volatile.cache.outbound(room_id, &bytes)?;
        let session_id = session.megolm.session_id();
        let undelivered = outbox::is_undelivered(&batch, &session_id).await?;
        if undelivered || !encryption.supported || !session.is_usable(&encryption, self.now()) {
            return Err(EncryptError::NotShared);
        }
        let relation = content.remove("m.relates_to");
        let payload = Payload {
            kind,
            state_key,
            content: &content,
            room_id,
            relation: relation.as_ref(),
        };
        let ciphertext = session.megolm.encrypt(payload.padded()?).to_base64();
        session.save(&mut batch, room_id)?;
        let bytes = batch.bytes(row.0, row.1, row.2).await?;
        batch.commit().await?;
        if let Some(bytes) = bytes {
            volatile.cache.keep_outbound(room_id, bytes, session);
        }
        let mut encrypted = Map::new();
        let mut put = |name: &str, value: Value| encrypted.insert(name.to_owned(), value);
        put("algorithm", MEGOLM.into());
        put("ciphertext", ciphertext.into());
        put("session_id", session_id.into());
        // Deprecated, and not looked at by us, but older clients find the session by them.
        put("sender_key", self.curve25519_key().to_base64().into());
        put("device_id", self.device_id().as_str().into());
        // The server aggregates relations, so it has to see them.
        relation.map(|relation| put("m.relates_to", relation));
        Ok(encrypted)
    }

    /// Takes what happened in rooms, when it became known in another way than by a sync.
    pub async fn receive_room_changes(
        &self,
        rooms: &[RoomChange],
        also: Changes,
    ) -> Result<(), MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        take_room_changes(&mut batch, rooms).await?;
        batch.extend(also);
        Ok(batch.commit().await?)
    }

    /// Makes sure that the next message of a room uses a new session.
    pub async fn discard_room_key(&self, room_id: &RoomId) -> Result<(), MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        discard(&mut batch, room_id).await?;
        Ok(batch.commit().await?)
    }

    /// Makes a new session for a room, which replaces the old one, and our own means to read it.
    pub(crate) async fn new_session(
        &self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
    ) -> Result<OutboundSession, StoreError> {
        if let Some(old) = OutboundSession::load(batch, room_id).await? {
            for (user_id, device_id, _) in old.shares(batch, room_id).await? {
                let id = share_id(&user_id, device_id.as_str().into());
                batch.delete(Table::OutboundShares, &old.partition(room_id), &id);
            }
        }
        let megolm = Box::new(GroupSession::new(SessionConfig::version_1()));
        let owner = SenderData {
            user_id: self.user_id().to_owned(),
            device_id: Some(self.device_id().to_owned()),
            curve25519: self.curve25519_key().to_base64(),
            ed25519: self.ed25519_key().to_base64(),
            trust: SenderTrust::OwnDevice,
            forwarded_by: None,
        };
        let shared_history = history::is_shared(batch, room_id).await?;
        let inbound = InboundSession {
            megolm: Box::new(InboundGroupSession::from(&*megolm)),
            owner,
            shared_history,
        };
        inbound.add(batch, room_id).await?;
        let session = OutboundSession {
            megolm,
            created_at: self.now(),
            discarded: false,
            shared_history,
        };
        session.save(batch, room_id)?;
        Ok(session)
    }
}

/// What is encrypted.
#[derive(Serialize)]
struct Payload<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    content: &'a Map<String, Value>,
    room_id: &'a RoomId,
    /// What the message relates to, said once more where the server can neither see nor change it;
    /// null if to nothing. The copy outside is for the server.
    #[serde(rename = "org.sotto.relates_to")]
    relation: Option<&'a Value>,
}

impl Payload<'_> {
    /// Its JSON, made as long as many others by a field that nobody looks at: the length of a
    /// ciphertext would tell much about what is in it.
    fn padded(&self) -> Result<Zeroizing<Vec<u8>>, MachineError> {
        const OPENING: &[u8] = b",\"org.sotto.pad\":\"";
        const END: &[u8] = b"\"}";
        let mut json = Zeroizing::new(Vec::with_capacity(LENGTHS[2]));
        serde_json::to_writer(&mut *json, self).map_err(|_| MachineError::Encode)?;
        // The last brace goes and comes again.
        let least = json.len() - 1 + OPENING.len() + END.len();
        if let Some(length) = LENGTHS.into_iter().find(|length| *length >= least) {
            json.pop();
            json.extend_from_slice(OPENING);
            json.resize(length - END.len(), b' ');
            json.extend_from_slice(END);
        }
        Ok(json)
    }
}
