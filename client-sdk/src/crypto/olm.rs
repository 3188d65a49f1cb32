//! Olm sessions: one device to another.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#molmv1curve25519-aes-sha2>

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use vodozemac::{
    Curve25519PublicKey, base64_encode,
    olm::{
        Account, OlmMessage, PreKeyMessage, Session, SessionConfig, SessionCreationError,
        SessionPickle,
    },
};
use zeroize::Zeroizing;

use super::{
    account::StoredAccount,
    devices::Device,
    error::{MachineError, RejectedMessage},
    keys::OLM,
    machine::Machine,
    payload::{NewKeys, NewPayload, OlmPayload},
};
use crate::store::{self, Batch, StoreError, Table};

/// Sessions that are kept with one device; the specification asks for at least four.
const SESSIONS_PER_DEVICE: usize = 5;
/// Hashes of received messages that are kept for one device.
const REMEMBERED_MESSAGES: usize = 128;

#[derive(Serialize)]
struct RowRef<'a> {
    pickle: SessionPickle,
    used: &'a Used,
}

#[derive(Deserialize)]
struct Row {
    pickle: SessionPickle,
    used: Used,
}

/// The part of a row that says when it was used.
#[derive(Deserialize)]
struct UsedRow {
    used: Used,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Used {
    /// When it was made, or decrypted a message last. Sessions are chosen by this.
    at: u64,
    /// Orders sessions that were used in the same millisecond.
    order: u64,
}

struct StoredSession {
    /// Boxed, as it is large and lives across many awaits.
    olm: Box<Session>,
    used: Used,
}

impl StoredSession {
    fn save(&self, batch: &mut Batch<'_>, their_key: &str) -> Result<(), StoreError> {
        let row = RowRef {
            pickle: self.olm.pickle(),
            used: &self.used,
        };
        batch.put(Table::OlmSessions, their_key, &self.olm.session_id(), &row)
    }
}

/// A session as it is stored. To make one of these bytes costs as much as to use it.
struct Sealed {
    id: String,
    bytes: store::Value,
}

impl Sealed {
    fn open(&self) -> Result<StoredSession, StoreError> {
        let row: Row = store::decode(Table::OlmSessions, &self.bytes)?;
        Ok(StoredSession {
            olm: Box::new(Session::from_pickle(row.pickle)),
            used: row.used,
        })
    }
}

/// Sessions with a device, the one to be used first.
async fn sealed_sessions(batch: &Batch<'_>, their_key: &str) -> Result<Vec<Sealed>, StoreError> {
    let mut sessions = Vec::new();
    for (id, bytes) in batch.list_bytes(Table::OlmSessions, their_key).await? {
        let UsedRow { used } = store::decode(Table::OlmSessions, &bytes)?;
        sessions.push((used, Sealed { id, bytes }));
    }
    sessions.sort_by_key(|(used, _)| std::cmp::Reverse((used.at, used.order)));
    Ok(sessions.into_iter().map(|(_, sealed)| sealed).collect())
}

async fn load_sessions(
    batch: &Batch<'_>,
    their_key: &str,
) -> Result<Vec<StoredSession>, StoreError> {
    let sealed = sealed_sessions(batch, their_key).await?;
    sealed.iter().map(Sealed::open).collect()
}

pub(crate) async fn has_session(batch: &Batch<'_>, their_key: &str) -> Result<bool, StoreError> {
    let rows = batch.list_bytes(Table::OlmSessions, their_key).await?;
    Ok(!rows.is_empty())
}

async fn next_use(batch: &mut Batch<'_>, now: u64) -> Result<Used, StoreError> {
    const COUNTER: &str = "olm_use_counter";
    let order: u64 = batch.get(Table::Meta, "", COUNTER).await?.unwrap_or(0);
    batch.put(Table::Meta, "", COUNTER, &(order + 1))?;
    Ok(Used { at: now, order })
}

/// Stores a new session and drops the least recently used ones.
async fn add_session(
    batch: &mut Batch<'_>,
    their_key: &str,
    olm: Box<Session>,
    now: u64,
) -> Result<(), StoreError> {
    let used = next_use(batch, now).await?;
    StoredSession { olm, used }.save(batch, their_key)?;
    let sessions = sealed_sessions(batch, their_key).await?;
    for old in sessions.iter().skip(SESSIONS_PER_DEVICE) {
        batch.delete(Table::OlmSessions, their_key, &old.id);
    }
    Ok(())
}

/// What became of an incoming message.
pub(crate) struct Decrypted {
    pub(crate) payload: OlmPayload,
}

/// An Olm message as it arrived.
pub(crate) struct Received {
    pub(crate) sender_key: Curve25519PublicKey,
    message: OlmMessage,
    hash: String,
}

impl Received {
    /// Reads the content of an `m.room.encrypted` to-device event.
    pub(crate) fn parse(
        content: &Map<String, Value>,
        our_key: Curve25519PublicKey,
    ) -> Result<Self, RejectedMessage> {
        // A Megolm ciphertext here is an attempt to pass off a room event as a direct message.
        if content.get("algorithm").and_then(Value::as_str) != Some(OLM) {
            return Err(RejectedMessage::NotOlm);
        }
        let sender_key = content
            .get("sender_key")
            .and_then(Value::as_str)
            .and_then(super::keys::curve25519)
            .ok_or(RejectedMessage::Malformed)?;
        let ciphertext = content
            .get("ciphertext")
            .and_then(Value::as_object)
            .ok_or(RejectedMessage::Malformed)?
            .get(&our_key.to_base64())
            .ok_or(RejectedMessage::NotForUs)?;
        let kind = ciphertext.get("type").and_then(Value::as_u64);
        let kind = kind.and_then(|kind| usize::try_from(kind).ok());
        let body = ciphertext.get("body").and_then(Value::as_str);
        let (Some(kind), Some(body)) = (kind, body) else {
            return Err(RejectedMessage::Malformed);
        };
        let bytes = vodozemac::base64_decode(body).map_err(|_| RejectedMessage::Malformed)?;
        let message =
            OlmMessage::from_parts(kind, &bytes).map_err(|_| RejectedMessage::Malformed)?;
        let mut hash = Sha256::new();
        hash.update(sender_key.as_bytes());
        hash.update(&bytes);
        Ok(Self {
            sender_key,
            message,
            hash: base64_encode(hash.finalize()),
        })
    }
}

/// Decrypts a message; the changes to the session are in the batch if it succeeds.
///
/// The outer error is a failing store, the inner one says what is wrong with the message.
pub(crate) async fn decrypt(
    batch: &mut Batch<'_>,
    received: &Received,
    now: u64,
) -> Result<Result<Decrypted, RejectedMessage>, MachineError> {
    let their_key = received.sender_key.to_base64();
    let mut remembered: VecDeque<String> = batch
        .get(Table::OlmReplays, &their_key, "")
        .await?
        .unwrap_or_default();
    if remembered.contains(&received.hash) {
        return Ok(Err(RejectedMessage::Replay));
    }
    let result = match &received.message {
        OlmMessage::PreKey(message) => {
            decrypt_pre_key(batch, &their_key, received, message, now).await?
        }
        OlmMessage::Normal(_) => decrypt_normal(batch, &their_key, received, now).await?,
    };
    let plaintext = match result {
        Ok(plaintext) => plaintext,
        Err(error) => return Ok(Err(error)),
    };
    remembered.push_back(received.hash.clone());
    while remembered.len() > REMEMBERED_MESSAGES {
        remembered.pop_front();
    }
    batch.put(Table::OlmReplays, &their_key, "", &remembered)?;
    Ok(OlmPayload::parse(&plaintext).map(|payload| Decrypted { payload }))
}

async fn decrypt_pre_key(
    batch: &mut Batch<'_>,
    their_key: &str,
    received: &Received,
    message: &PreKeyMessage,
    now: u64,
) -> Result<Result<Vec<u8>, RejectedMessage>, MachineError> {
    if message.identity_key() != received.sender_key {
        return Ok(Err(RejectedMessage::MismatchedIdentityKey));
    }
    let sessions = load_sessions(batch, their_key).await?;
    let known = sessions
        .into_iter()
        .find(|known| known.olm.session_id() == message.session_id());
    if let Some(session) = known {
        return decrypt_with(batch, their_key, session, &received.message, now).await;
    }
    let mut account = StoredAccount::load(batch).await?;
    let config = SessionConfig::version_1();
    let created = match account
        .olm
        .create_inbound_session(config, received.sender_key, message)
    {
        Ok(created) => created,
        Err(SessionCreationError::MismatchedIdentityKey(..)) => {
            return Ok(Err(RejectedMessage::MismatchedIdentityKey));
        }
        Err(_) => return Ok(Err(RejectedMessage::DecryptionFailed)),
    };
    // The account has lost the one-time key; both are saved with the message or not at all.
    account.save(batch)?;
    add_session(batch, their_key, Box::new(created.session), now).await?;
    Ok(Ok(created.plaintext))
}

async fn decrypt_normal(
    batch: &mut Batch<'_>,
    their_key: &str,
    received: &Received,
    now: u64,
) -> Result<Result<Vec<u8>, RejectedMessage>, MachineError> {
    let sessions = load_sessions(batch, their_key).await?;
    if sessions.is_empty() {
        return Ok(Err(RejectedMessage::NoSession));
    }
    for session in sessions {
        let plaintext = decrypt_with(batch, their_key, session, &received.message, now).await?;
        if plaintext.is_ok() {
            return Ok(plaintext);
        }
    }
    Ok(Err(RejectedMessage::DecryptionFailed))
}

async fn decrypt_with(
    batch: &mut Batch<'_>,
    their_key: &str,
    mut session: StoredSession,
    message: &OlmMessage,
    now: u64,
) -> Result<Result<Vec<u8>, RejectedMessage>, MachineError> {
    let Ok(plaintext) = session.olm.decrypt(message) else {
        return Ok(Err(RejectedMessage::DecryptionFailed));
    };
    session.used = next_use(batch, now).await?;
    session.save(batch, their_key)?;
    Ok(Ok(plaintext))
}

impl Machine {
    /// Makes a session from a claimed one-time key.
    pub(crate) async fn create_outbound_session(
        &self,
        batch: &mut Batch<'_>,
        account: &Account,
        device: &Device,
        one_time_key: Curve25519PublicKey,
    ) -> Result<bool, MachineError> {
        let their_key = device.curve25519_key()?;
        let config = SessionConfig::version_1();
        let Ok(olm) = account.create_outbound_session(config, their_key, one_time_key) else {
            return Ok(false);
        };
        add_session(batch, &device.curve25519, Box::new(olm), self.now()).await?;
        Ok(true)
    }

    /// Encrypts content for a device with which there is a session; `None` if there is none.
    ///
    /// The ratchet moves in the batch: the ciphertext may leave once that is committed.
    pub(crate) async fn encrypt_for(
        &self,
        batch: &mut Batch<'_>,
        device: &Device,
        kind: &str,
        content: &Map<String, Value>,
    ) -> Result<Option<Value>, MachineError> {
        let payload = self.payload_for(device, kind, content)?;
        self.encrypt_payload(batch, device, &payload).await
    }

    pub(crate) fn payload_for(
        &self,
        device: &Device,
        kind: &str,
        content: &Map<String, Value>,
    ) -> Result<Zeroizing<Vec<u8>>, MachineError> {
        let own_key = self.ed25519_key().to_base64();
        let device_keys = self.device_keys();
        let payload = NewPayload {
            kind,
            content,
            sender: self.user_id(),
            sender_device: self.device_id(),
            recipient: &device.user_id,
            recipient_keys: NewKeys {
                ed25519: &device.ed25519,
            },
            keys: NewKeys { ed25519: &own_key },
            sender_device_keys: &device_keys,
        };
        let mut plaintext = Zeroizing::new(Vec::with_capacity(2048));
        serde_json::to_writer(&mut *plaintext, &payload).map_err(|_| MachineError::Encode)?;
        Ok(plaintext)
    }

    pub(crate) async fn encrypt_payload(
        &self,
        batch: &mut Batch<'_>,
        device: &Device,
        plaintext: &[u8],
    ) -> Result<Option<Value>, MachineError> {
        let sessions = sealed_sessions(batch, &device.curve25519).await?;
        let Some(first) = sessions.first() else {
            return Ok(None);
        };
        let mut session = first.open()?;
        let message = session
            .olm
            .encrypt(plaintext)
            .map_err(|_| MachineError::Olm)?;
        session.save(batch, &device.curve25519)?;
        let (kind, body) = message.to_parts();
        Ok(Some(json!({
            "algorithm": OLM,
            "sender_key": self.curve25519_key().to_base64(),
            "ciphertext": {
                device.curve25519.as_str(): { "type": kind, "body": base64_encode(body) },
            },
        })))
    }
}
