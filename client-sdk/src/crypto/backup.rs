//! Room keys on the server, encrypted for the user.
//!
//! The encryption has no authentication: whoever has the public key, which the server has, can put
//! keys into a backup. So keys from it never replace others, and what they decrypt carries a
//! warning.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

use std::collections::BTreeMap;

use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vodozemac::{
    Curve25519PublicKey, Curve25519SecretKey, base64_decode, base64_encode,
    pk_encryption::{Message, PkDecryption, PkEncryption},
};
use zeroize::Zeroizing;

use super::{
    Secret,
    account::StoredAccount,
    cross_signing::own_key,
    error::{BackupError, MachineError},
    identity::Identity,
    identity_keys::{Usage, signed_by},
    key_export::{ExportedRoomKey, take_keys},
    keys,
    machine::Machine,
    megolm::InboundSession,
};
use crate::store::{Batch, StoreError, Table};

/// The only algorithm.
pub(crate) const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";
/// The name of the private key, as a secret.
pub(crate) const SECRET_NAME: &str = "m.megolm_backup.v1";
const BACKUP: &str = "backup";
/// Keys in one request.
const KEYS_PER_REQUEST: usize = 100;

/// The backup in use.
#[derive(Clone, Serialize, Deserialize)]
struct Backup {
    version: String,
    public_key: String,
}

/// Keys that wait to be put into the backup.
#[derive(Debug)]
pub struct BackupUpload {
    /// The version that they are for.
    pub version: String,
    /// Rooms, sessions, and the encrypted keys.
    pub rooms: BTreeMap<OwnedRoomId, BTreeMap<String, Value>>,
}

/// The private key of a backup.
fn private_key(secret: &Secret) -> Option<Curve25519SecretKey> {
    let bytes = Zeroizing::new(base64_decode(secret.expose()).ok()?);
    let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(bytes.as_slice().try_into().ok()?);
    Some(Curve25519SecretKey::from_slice(&bytes))
}

fn public_key(secret: &Secret) -> Option<String> {
    let key = private_key(secret)?;
    Some(Curve25519PublicKey::from(&key).to_base64())
}

impl Machine {
    /// Makes the private key of a new backup, and what the server is told about it: the body of a
    /// request for a new version.
    pub async fn new_backup(&self) -> Result<(Secret, Value), MachineError> {
        let _guard = self.lock().await?;
        let batch = self.batch();
        let key = Curve25519SecretKey::new();
        let bytes = Zeroizing::new(*key.to_bytes());
        let secret = Secret::new(base64_encode(*bytes));
        let public = Curve25519PublicKey::from(&key).to_base64();
        let auth_data = json!({ "public_key": public });
        let account = StoredAccount::load(&batch).await?;
        let Value::Object(fields) = auth_data.clone() else {
            return Err(MachineError::Encode);
        };
        let mut signed = keys::sign(fields, &account.olm, self.user_id(), self.device_id())?;
        if let Some(master) = own_key(&batch, Usage::Master).await? {
            let by_master = signed_by(&auth_data, self.user_id(), &master)?;
            let user = self.user_id().as_str();
            let added = by_master.get("signatures").and_then(|all| all.get(user));
            let mine = signed
                .get_mut("signatures")
                .and_then(|all| all.get_mut(user))
                .and_then(Value::as_object_mut);
            if let (Some(mine), Some(added)) = (mine, added.and_then(Value::as_object)) {
                mine.extend(added.clone());
            }
        }
        let body = json!({ "algorithm": ALGORITHM, "auth_data": signed });
        Ok((secret, body))
    }

    /// Uses a backup from now on: all keys go into the version given. `info` is what the server
    /// says about the version; its public key has to be that of `secret`.
    pub async fn use_backup(
        &self,
        version: &str,
        info: &Value,
        secret: &Secret,
    ) -> Result<(), BackupError> {
        let served = info
            .get("auth_data")
            .and_then(|data| data.get("public_key"))
            .and_then(Value::as_str);
        let public = public_key(secret).ok_or(BackupError::WrongKey)?;
        if served.and_then(keys::curve25519).map(|key| key.to_base64()) != Some(public.clone()) {
            return Err(BackupError::WrongKey);
        }
        let mut volatile = self.lock().await?;
        volatile.backup_idle = false;
        let mut batch = self.batch();
        let backup = Backup {
            version: version.to_owned(),
            public_key: public,
        };
        batch.put(Table::Meta, "", BACKUP, &backup)?;
        batch.put(Table::Secrets, "", SECRET_NAME, secret)?;
        Ok(batch.commit().await?)
    }

    /// Whether what the server says about a backup is signed by the own identity, or made with the
    /// private key that is known. Keys must not be put into any other.
    pub async fn is_backup_trusted(&self, info: &Value) -> Result<bool, MachineError> {
        let batch = self.batch();
        let Some(data) = info.get("auth_data") else {
            return Ok(false);
        };
        let served = data.get("public_key").and_then(Value::as_str);
        let secret: Option<Secret> = batch.get(Table::Secrets, "", SECRET_NAME).await?;
        let known = secret.as_ref().and_then(public_key);
        if known.is_some() && known.as_deref() == served {
            return Ok(true);
        }
        let own = Identity::load(&batch, self.user_id()).await?;
        let Some(own) = own.filter(|own| own.trusted) else {
            return Ok(false);
        };
        let key = keys::ed25519(&own.master);
        let signed = |key| keys::verify(data, self.user_id(), &own.master, &key).is_ok();
        Ok(key.is_some_and(signed))
    }

    /// The version of the backup in use.
    pub async fn backup_version(&self) -> Result<Option<String>, MachineError> {
        let backup: Option<Backup> = self.batch().get(Table::Meta, "", BACKUP).await?;
        Ok(backup.map(|backup| backup.version))
    }

    /// The private key of a backup that is not in use yet: another device gave it to this one.
    pub async fn unused_backup_key(&self) -> Result<Option<Secret>, MachineError> {
        let batch = self.batch();
        let used: Option<Backup> = batch.get(Table::Meta, "", BACKUP).await?;
        match used {
            Some(_) => Ok(None),
            None => Ok(backup_secret(&batch).await?),
        }
    }

    /// Stops to use a backup, and forgets its key: somebody has made another version, or deleted
    /// it.
    pub async fn forget_backup(&self) -> Result<(), MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        batch.delete(Table::Meta, "", BACKUP);
        batch.delete(Table::Secrets, "", SECRET_NAME);
        Ok(batch.commit().await?)
    }

    /// The next keys that the backup lacks. Report them with [`Machine::backed_up`].
    pub async fn backup_upload(&self) -> Result<Option<BackupUpload>, MachineError> {
        let mut volatile = self.lock().await?;
        if volatile.backup_idle {
            return Ok(None);
        }
        let batch = self.batch();
        let backup: Option<Backup> = batch.get(Table::Meta, "", BACKUP).await?;
        let Some(backup) = backup else {
            return Ok(None);
        };
        let public = keys::curve25519(&backup.public_key).ok_or(MachineError::Encode)?;
        let encryption = PkEncryption::from_key(public);
        let mut upload = BackupUpload {
            version: backup.version,
            rooms: BTreeMap::new(),
        };
        let waiting = InboundSession::not_in_backup(&batch, &upload.version).await?;
        for (room_id, session_id) in waiting.into_iter().take(KEYS_PER_REQUEST) {
            let best = InboundSession::best(&batch, &room_id, &session_id).await?;
            let Some(mut session) = best else { continue };
            let key = encrypt(&encryption, &room_id, &mut session)?;
            let room = upload.rooms.entry(room_id).or_default();
            room.insert(session_id, key);
        }
        volatile.backup_idle = upload.rooms.is_empty();
        Ok((!volatile.backup_idle).then_some(upload))
    }

    /// Takes note that keys are in the backup.
    pub async fn backed_up(&self, upload: &BackupUpload) -> Result<(), MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        for (room_id, sessions) in &upload.rooms {
            for session_id in sessions.keys() {
                InboundSession::note_backup(&mut batch, room_id, session_id, &upload.version)?;
            }
        }
        Ok(batch.commit().await?)
    }

    /// Takes keys from a backup, with the private key that is known; how many were new.
    ///
    /// `rooms` is the `rooms` of a `GET /room_keys/keys`.
    pub async fn take_backup(&self, rooms: &Value) -> Result<usize, BackupError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let secret = backup_secret(&batch).await?;
        let key = secret.as_ref().and_then(private_key);
        let decryption = PkDecryption::from_key(key.ok_or(BackupError::WrongKey)?);
        let mut keys = Vec::new();
        for (room_id, room) in rooms.as_object().into_iter().flatten() {
            let sessions = room.get("sessions").and_then(Value::as_object);
            for (session_id, data) in sessions.into_iter().flatten() {
                let key = decrypt(&decryption, room_id, session_id, data);
                if key.is_none() {
                    tracing::info!(%room_id, %session_id, "a key in the backup is broken");
                }
                keys.extend(key);
            }
        }
        let taken = take_keys(&mut batch, keys, None).await?;
        batch.commit().await?;
        self.note_import(&mut volatile, taken);
        Ok(taken)
    }
}

async fn backup_secret(batch: &Batch<'_>) -> Result<Option<Secret>, StoreError> {
    batch.get(Table::Secrets, "", SECRET_NAME).await
}

fn encrypt(
    encryption: &PkEncryption,
    room_id: &ruma::RoomId,
    session: &mut InboundSession,
) -> Result<Value, MachineError> {
    let mut key = ExportedRoomKey::of(room_id, session);
    key.room_id = None;
    key.session_id = None;
    let json = serde_json::to_vec(&key).map_err(|_| MachineError::Encode)?;
    let json = Zeroizing::new(json);
    let message = encryption
        .encrypt(&json)
        .map_err(|_| MachineError::Encode)?;
    Ok(json!({
        "first_message_index": session.megolm.first_known_index(),
        "forwarded_count": 0,
        "is_verified": session.owner.trust >= super::SenderTrust::SignedDevice,
        "session_data": {
            "ciphertext": base64_encode(message.ciphertext),
            "ephemeral": message.ephemeral_key.to_base64(),
            "mac": base64_encode(message.mac),
        },
    }))
}

fn decrypt(
    decryption: &PkDecryption,
    room_id: &str,
    session_id: &str,
    data: &Value,
) -> Option<ExportedRoomKey> {
    let data = data.get("session_data")?;
    let text = |name: &str| data.get(name).and_then(Value::as_str);
    let message = Message {
        ciphertext: base64_decode(text("ciphertext")?).ok()?,
        mac: base64_decode(text("mac")?).ok()?,
        ephemeral_key: keys::curve25519(text("ephemeral")?)?,
    };
    let json = Zeroizing::new(decryption.decrypt(&message).ok()?);
    let mut key: ExportedRoomKey = serde_json::from_slice(&json).ok()?;
    key.room_id = Some(room_id.try_into().ok()?);
    key.session_id = Some(session_id.to_owned());
    Some(key)
}
