//! Room keys in a file that a passphrase protects.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#key-exports>

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use vodozemac::megolm::{ExportedSessionKey, InboundGroupSession, SessionConfig};
use zeroize::Zeroizing;

use super::{
    Secret,
    error::{KeyFileError, MachineError},
    history::SharedHistory,
    keys::MEGOLM,
    machine::Machine,
    megolm::InboundSession,
    symmetric::{CipherKeys, fresh_iv},
    to_device::{InboxItem, RoomKeyInfo, add_to_inbox},
    trust::{SenderData, SenderTrust},
};
use crate::{
    environment::Environment,
    store::{Batch, StoreError},
};

const BEGIN: &str = "-----BEGIN MEGOLM SESSION DATA-----";
const END: &str = "-----END MEGOLM SESSION DATA-----";
/// The number of rounds comes with the file: more than this would only keep us busy.
const MOST_ROUNDS: u32 = 10_000_000;
/// Rounds of PBKDF2 for new files.
pub(crate) const ROUNDS: u32 = 500_000;
/// Version, salt, initialization vector, rounds.
const HEADER: usize = 1 + 16 + 16 + 4;
const MAC: usize = 32;

/// A room key outside of a store: in a file, or in a backup.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#key-export-format>
#[derive(Clone, Serialize, Deserialize)]
pub struct ExportedRoomKey {
    pub(crate) algorithm: String,
    /// Left out in backups, where the place says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) room_id: Option<OwnedRoomId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session_id: Option<String>,
    pub(crate) session_key: Secret,
    pub(crate) sender_key: String,
    #[serde(default)]
    pub(crate) sender_claimed_keys: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) forwarding_curve25519_key_chain: Vec<String>,
    #[serde(flatten)]
    pub(crate) sharing: SharedHistory,
}

impl std::fmt::Debug for ExportedRoomKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ExportedRoomKey")
            .field("room_id", &self.room_id)
            .field("session_id", &self.session_id)
            .finish_non_exhaustive()
    }
}

impl ExportedRoomKey {
    pub(crate) fn of(room_id: &RoomId, session: &mut InboundSession) -> Self {
        let key = session.megolm.export_at_first_known_index();
        let ed25519 = session.owner.ed25519.clone();
        Self {
            algorithm: MEGOLM.to_owned(),
            room_id: Some(room_id.to_owned()),
            session_id: Some(session.megolm.session_id()),
            session_key: Secret::new(key.to_base64()),
            sender_key: session.owner.curve25519.clone(),
            sender_claimed_keys: [("ed25519".to_owned(), ed25519)].into(),
            forwarding_curve25519_key_chain: Vec::new(),
            sharing: SharedHistory::of(session.shared_history),
        }
    }

    /// The session that the key makes, which belongs to nobody that we know. `None` if it is not
    /// what it says.
    pub(crate) fn into_session(self) -> Option<(OwnedRoomId, InboundSession)> {
        if self.algorithm != MEGOLM {
            return None;
        }
        let key = ExportedSessionKey::from_base64(self.session_key.expose()).ok()?;
        let config = SessionConfig::version_1();
        let megolm = Box::new(InboundGroupSession::import(&key, config));
        if Some(megolm.session_id()) != self.session_id {
            return None;
        }
        let owner = SenderData {
            user_id: nobody()?,
            device_id: None,
            curve25519: self.sender_key,
            ed25519: self
                .sender_claimed_keys
                .get("ed25519")
                .cloned()
                .unwrap_or_default(),
            trust: SenderTrust::Imported,
            forwarded_by: None,
        };
        let session = InboundSession {
            megolm,
            owner,
            shared_history: self.sharing.is_allowed(),
        };
        Some((self.room_id?, session))
    }
}

/// Stands for the owner of a key of whom nothing is known. No server has this name.
fn nobody() -> Option<OwnedUserId> {
    "@:imported.invalid".try_into().ok()
}

/// Encrypts keys for a file.
pub(crate) fn encrypt(
    keys: &[ExportedRoomKey],
    passphrase: &Secret,
    rounds: u32,
    environment: &dyn Environment,
) -> Result<String, KeyFileError> {
    let mut salt = [0_u8; 16];
    environment.fill(&mut salt)?;
    let iv = fresh_iv(environment)?;
    let json = serde_json::to_vec(keys).map_err(|_| KeyFileError::Malformed)?;
    let mut json = Zeroizing::new(json);
    let cipher = CipherKeys::from_passphrase(passphrase.expose(), &salt, rounds);
    let cipher = cipher.ok_or(KeyFileError::Malformed)?;
    cipher
        .apply(&iv, &mut json)
        .ok_or(KeyFileError::Malformed)?;
    let mut data = vec![1];
    data.extend(salt);
    data.extend(iv);
    data.extend(rounds.to_be_bytes());
    data.extend(&*json);
    data.extend(cipher.mac(&data).ok_or(KeyFileError::Malformed)?);
    let text = BASE64_STANDARD.encode(data);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(96)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    Ok(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")))
}

/// Decrypts the keys of a file.
pub(crate) fn decrypt(
    file: &str,
    passphrase: &Secret,
) -> Result<Vec<ExportedRoomKey>, KeyFileError> {
    let (_, rest) = file.split_once(BEGIN).ok_or(KeyFileError::Malformed)?;
    let (text, _) = rest.split_once(END).ok_or(KeyFileError::Malformed)?;
    let text: String = text.split_whitespace().collect();
    let data = vodozemac::base64_decode(text).map_err(|_| KeyFileError::Malformed)?;
    let body = data.len().checked_sub(MAC).ok_or(KeyFileError::Malformed)?;
    let (signed, mac) = data.split_at(body);
    let (header, ciphertext) = signed
        .split_first_chunk::<HEADER>()
        .ok_or(KeyFileError::Malformed)?;
    let (version, header) = header.split_first().ok_or(KeyFileError::Malformed)?;
    let (salt, header) = header
        .split_first_chunk::<16>()
        .ok_or(KeyFileError::Malformed)?;
    let (iv, rounds) = header
        .split_first_chunk::<16>()
        .ok_or(KeyFileError::Malformed)?;
    let rounds = <[u8; 4]>::try_from(rounds).map_err(|_| KeyFileError::Malformed)?;
    let rounds = u32::from_be_bytes(rounds);
    if *version != 1 || rounds == 0 || rounds > MOST_ROUNDS {
        return Err(KeyFileError::Malformed);
    }
    let cipher = CipherKeys::from_passphrase(passphrase.expose(), salt, rounds);
    let cipher = cipher.ok_or(KeyFileError::Malformed)?;
    if !cipher.is_authentic(signed, mac) {
        return Err(KeyFileError::WrongPassphrase);
    }
    let mut json = Zeroizing::new(ciphertext.to_vec());
    cipher.apply(iv, &mut json).ok_or(KeyFileError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| KeyFileError::Malformed)
}

impl Machine {
    /// All room keys, as the content of a file that the passphrase opens.
    pub async fn export_room_keys(&self, passphrase: &Secret) -> Result<String, KeyFileError> {
        self.export_with(passphrase, ROUNDS).await
    }

    pub(crate) async fn export_with(
        &self,
        passphrase: &Secret,
        rounds: u32,
    ) -> Result<String, KeyFileError> {
        let guard = self.lock().await?;
        let batch = self.batch();
        let mut keys = Vec::new();
        for (room_id, session_id) in InboundSession::names(&batch).await? {
            let best = InboundSession::best(&batch, &room_id, &session_id).await?;
            keys.extend(best.map(|mut session| ExportedRoomKey::of(&room_id, &mut session)));
        }
        // It takes a moment, for which nobody has to wait.
        drop(guard);
        encrypt(&keys, passphrase, rounds, self.environment())
    }

    /// Takes the room keys of a file; how many were new. Whoever made the file may have forged
    /// them, so what they decrypt carries a warning.
    pub async fn import_room_keys(
        &self,
        file: &str,
        passphrase: &Secret,
    ) -> Result<usize, KeyFileError> {
        let keys = decrypt(file, passphrase)?;
        Ok(self.take_exported(keys).await?)
    }

    /// Takes keys that were not given to us by their owners.
    pub(crate) async fn take_exported(
        &self,
        keys: Vec<ExportedRoomKey>,
    ) -> Result<usize, MachineError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let taken = take_keys(&mut batch, keys, None).await?;
        batch.commit().await?;
        self.note_import(&mut volatile, taken);
        Ok(taken)
    }
}

/// Takes keys that were not given to us by their owners, but by another user if `giver` says so.
pub(crate) async fn take_keys(
    batch: &mut Batch<'_>,
    keys: Vec<ExportedRoomKey>,
    giver: Option<&UserId>,
) -> Result<usize, StoreError> {
    let mut taken = 0;
    for key in keys {
        let Some((room_id, mut session)) = key.into_session() else {
            continue;
        };
        session.owner.forwarded_by = giver.map(ToOwned::to_owned);
        session.shared_history |= giver.is_some();
        let session_id = session.megolm.session_id();
        if session.add_imported(batch, &room_id).await? {
            // Events may become readable.
            let key = RoomKeyInfo {
                room_id,
                session_id,
            };
            add_to_inbox(batch, &InboxItem::RoomKey(key)).await?;
            taken += 1;
        }
    }
    Ok(taken)
}
