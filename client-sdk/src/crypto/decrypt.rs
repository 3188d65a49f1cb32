//! Decrypting the events of rooms.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#mmegolmv1aes-sha2>

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    events::AnySyncTimelineEvent, serde::Raw,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use vodozemac::megolm::{DecryptionError, MegolmMessage};

use super::{
    cache::{Cache, Loaded},
    devices,
    error::{DecryptError, WithheldCode},
    exceptions, identity,
    keys::MEGOLM,
    machine::Machine,
    megolm::{InboundSession, session_partition, split},
    outbound::packed_state_key,
    to_device::{InboxItem, RoomKeyInfo, add_to_inbox},
    trust::{SenderData, SenderTrust},
};
use crate::store::{Batch, StoreError, Table};

/// A room event that was decrypted.
#[derive(Clone)]
pub struct DecryptedEvent {
    /// The type inside.
    pub kind: String,
    /// The state key inside, if it is a state event.
    pub state_key: Option<String>,
    /// The content inside, with what it relates to. Unless the sender's client says this inside as
    /// well, as ours does, it is what the server says.
    pub content: Map<String, Value>,
    /// The owner of the session: the authenticated sender.
    pub sender: SenderData,
    /// The session.
    pub session_id: String,
    /// The index of the message within the session.
    pub message_index: u32,
}

impl std::fmt::Debug for DecryptedEvent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DecryptedEvent")
            .field("kind", &self.kind)
            .field("sender", &self.sender)
            .field("session_id", &self.session_id)
            .field("message_index", &self.message_index)
            .finish_non_exhaustive()
    }
}

/// The parts of an encrypted event that decryption looks at.
#[derive(Deserialize)]
struct EncryptedEvent {
    event_id: OwnedEventId,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(rename = "type")]
    kind: String,
    state_key: Option<String>,
    content: Map<String, Value>,
}

#[derive(Deserialize)]
struct Plaintext {
    #[serde(rename = "type")]
    kind: String,
    state_key: Option<String>,
    content: Map<String, Value>,
    room_id: OwnedRoomId,
    /// What it relates to, if the sender's client says so here; null is to nothing.
    #[serde(default, rename = "org.sotto.relates_to", deserialize_with = "present")]
    relation: Option<Value>,
}

/// A field that is there, be it null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Plaintext {
    /// The content with what it relates to: as its sender says, or else as the event around it
    /// says, which the server may have changed.
    fn into_content(self, outside: Option<&Value>) -> Map<String, Value> {
        let mut content = self.content;
        let name = "m.relates_to";
        match (self.relation, outside) {
            (Some(relation), _) if !relation.is_null() => {
                content.insert(name.to_owned(), relation);
            }
            (None, Some(relation)) => {
                content.entry(name).or_insert_with(|| relation.clone());
            }
            _ => {}
        }
        content
    }
}

#[derive(PartialEq, Serialize, Deserialize)]
struct UsedIndex {
    event_id: OwnedEventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
}

impl Machine {
    /// Decrypts an event of a room.
    ///
    /// The fields `sender_key` and `device_id` of the event prove nothing and are not looked at.
    pub async fn decrypt_room_event(
        &self,
        room_id: &RoomId,
        event: &Raw<AnySyncTimelineEvent>,
    ) -> Result<DecryptedEvent, DecryptError> {
        let mut results = self.decrypt_room_events(room_id, [event]).await?;
        results.pop().unwrap_or(Err(DecryptError::Malformed))
    }

    /// Decrypts many events of a room, with one commit for all. The results are in the order of
    /// the events; the outer error is a failing store.
    pub async fn decrypt_room_events<'e>(
        &self,
        room_id: &RoomId,
        events: impl IntoIterator<Item = &'e Raw<AnySyncTimelineEvent>>,
    ) -> Result<Vec<Result<DecryptedEvent, DecryptError>>, StoreError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let mut results = Vec::new();
        for event in events {
            let cache = &mut volatile.cache;
            match decrypt(self, cache, &mut batch, room_id, event).await {
                Err(DecryptError::Store(error)) => return Err(error),
                result => results.push(result),
            }
        }
        batch.commit().await?;
        Ok(results)
    }

    /// What is known about a sender by now: the device list may have arrived after the message, and
    /// the identity of the user may be verified by now. What was known then is not forgotten.
    pub(crate) async fn sender_now(
        &self,
        batch: &Batch<'_>,
        mut sender: SenderData,
    ) -> Result<SenderData, StoreError> {
        if sender.trust == SenderTrust::OwnDevice || sender.trust == SenderTrust::Imported {
            return Ok(sender);
        }
        let key = &sender.curve25519;
        let device = devices::load_device_by_curve25519(batch, &sender.user_id, key).await?;
        if let Some(device) = device.filter(|device| device.ed25519 == sender.ed25519) {
            let now = identity::trust_of(batch, self.user_id(), &device).await?;
            sender.device_id = Some(device.device_id);
            sender.trust = sender.trust.max(now);
        }
        Ok(sender)
    }

    /// The session that an encrypted event asks for.
    #[must_use]
    pub fn session_id_of(event: &Raw<AnySyncTimelineEvent>) -> Option<String> {
        let content = event
            .get_field::<Map<String, Value>>("content")
            .ok()
            .flatten()?;
        content
            .get("session_id")
            .and_then(Value::as_str)
            .map(str::to_owned)
    }
}

async fn decrypt(
    machine: &Machine,
    cache: &mut Cache,
    batch: &mut Batch<'_>,
    room_id: &RoomId,
    event: &Raw<AnySyncTimelineEvent>,
) -> Result<DecryptedEvent, DecryptError> {
    let event: EncryptedEvent =
        serde_json::from_str(event.json().get()).map_err(|_| DecryptError::Malformed)?;
    let text = |name: &str| event.content.get(name).and_then(Value::as_str);
    if event.kind != "m.room.encrypted" {
        return Err(DecryptError::Malformed);
    }
    if text("algorithm") != Some(MEGOLM) {
        return Err(DecryptError::UnsupportedAlgorithm);
    }
    let session_id = text("session_id").ok_or(DecryptError::Malformed)?;
    let ciphertext = text("ciphertext").ok_or(DecryptError::Malformed)?;
    let message = MegolmMessage::from_base64(ciphertext).map_err(|_| DecryptError::Malformed)?;

    let wanted = (session_id, message.message_index());
    let mut loaded = session_of(cache, batch, room_id, wanted, &event.sender).await?;
    let opened = open(&mut loaded.session, &message);
    let mut owner = loaded.session.owner.clone();
    cache.keep_inbound(loaded);
    let (plaintext, index) = opened?;
    if owner.trust == SenderTrust::Imported {
        owner.user_id.clone_from(&event.sender);
    }
    let plaintext = parse(&plaintext)?;
    if plaintext.room_id != room_id {
        return Err(DecryptError::MismatchedRoom {
            encrypted_for: plaintext.room_id,
        });
    }
    // What the server sees of a state event names what is inside, so it cannot put one in the place
    // of another, nor make a message into state.
    let packed = plaintext.state_key.as_deref();
    let packed = packed.map(|state_key| packed_state_key(&plaintext.kind, state_key));
    if packed != event.state_key {
        return Err(DecryptError::MismatchedState);
    }
    claim_index(batch, room_id, session_id, index, &event).await?;

    let kind = plaintext.kind.clone();
    let state_key = plaintext.state_key.clone();
    let content = plaintext.into_content(event.content.get("m.relates_to"));
    let sender = if let Some(sender) = cache.sender(&owner) {
        sender
    } else {
        let sender = machine.sender_now(batch, owner.clone()).await?;
        cache.keep_sender(owner, sender.clone());
        sender
    };
    if !exceptions::is_heard(batch, &sender, machine.trust_requirement()).await? {
        let name = session_partition(room_id, session_id);
        batch.put(Table::Held, &sender.curve25519, &name, &true)?;
        let sender = Box::new(sender);
        return Err(DecryptError::UntrustedSender { sender });
    }
    let session_id = session_id.to_owned();
    Ok(DecryptedEvent {
        kind,
        state_key,
        content,
        sender,
        session_id,
        message_index: index,
    })
}

/// Has the events looked at again that were not shown because of their sender's device.
pub(crate) async fn release_held(
    batch: &mut Batch<'_>,
    curve25519: &str,
) -> Result<(), StoreError> {
    for (name, _) in batch.list::<bool>(Table::Held, curve25519).await? {
        batch.delete(Table::Held, curve25519, &name);
        if let Some((room_id, session_id)) = split(&name) {
            let key = RoomKeyInfo {
                room_id,
                session_id,
            };
            add_to_inbox(batch, &InboxItem::RoomKey(key)).await?;
        }
    }
    Ok(())
}

/// The session as it was given to us by the sender of the event.
async fn session_of(
    cache: &mut Cache,
    batch: &Batch<'_>,
    room_id: &RoomId,
    (session_id, index): (&str, u32),
    sender: &OwnedUserId,
) -> Result<Loaded, DecryptError> {
    let partition = session_partition(room_id, session_id);
    let mut sessions = Vec::new();
    for (id, bytes) in batch.list_bytes(Table::InboundSessions, &partition).await? {
        sessions.push(cache.inbound(&partition, id, bytes)?);
    }
    let owned = |session: &InboundSession| session.owner.user_id == *sender;
    let imported = |session: &InboundSession| session.owner.trust == SenderTrust::Imported;
    let opens = |session: &InboundSession| session.megolm.first_known_index() <= index;
    // Two devices of one user may have given the key; the one that opens more is the better. One
    // that was imported serves where there is no better; the server alone says whose it is.
    sessions.sort_by_key(|loaded| {
        let session = &loaded.session;
        (
            !(owned(session) || imported(session)),
            !opens(session),
            !owned(session),
            session.megolm.first_known_index(),
        )
    });
    match sessions.into_iter().next() {
        Some(loaded) if owned(&loaded.session) || imported(&loaded.session) => Ok(loaded),
        Some(loaded) => Err(DecryptError::MismatchedSender {
            owner: loaded.session.owner.user_id,
        }),
        None => {
            let withheld: Option<WithheldCode> = batch
                .get(Table::Withheld, &partition, sender.as_str())
                .await?;
            Err(DecryptError::MissingRoomKey { withheld })
        }
    }
}

fn open(
    session: &mut InboundSession,
    message: &MegolmMessage,
) -> Result<(Vec<u8>, u32), DecryptError> {
    match session.megolm.decrypt(message) {
        Ok(decrypted) => Ok((decrypted.plaintext, decrypted.message_index)),
        Err(DecryptionError::UnknownMessageIndex(first_known_index, index)) => {
            Err(DecryptError::RoomKeyTooNew {
                first_known_index,
                index,
            })
        }
        Err(_) => Err(DecryptError::Invalid),
    }
}

fn parse(plaintext: &[u8]) -> Result<Plaintext, DecryptError> {
    let text = std::str::from_utf8(plaintext).map_err(|_| DecryptError::Malformed)?;
    serde_json::from_str(text).map_err(|_| DecryptError::Malformed)
}

/// Notes which event used the index. The same event may be decrypted again, no other may.
async fn claim_index(
    batch: &mut Batch<'_>,
    room_id: &RoomId,
    session_id: &str,
    index: u32,
    event: &EncryptedEvent,
) -> Result<(), DecryptError> {
    let partition = session_partition(room_id, session_id);
    let id = index.to_string();
    let used = UsedIndex {
        event_id: event.event_id.clone(),
        origin_server_ts: event.origin_server_ts,
    };
    match batch
        .get::<UsedIndex>(Table::MessageIndices, &partition, &id)
        .await?
    {
        Some(before) if before != used => Err(DecryptError::Replay),
        Some(_) => Ok(()),
        None => Ok(batch.put(Table::MessageIndices, &partition, &id, &used)?),
    }
}
