//! Getting back in: secrets and room keys on the server, encrypted with a key that only the user
//! has.
//!
//! ```no_run
//! # async fn example(first: sotto_client::Client, second: sotto_client::Client)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let recovery_key = first.enable_recovery(None).await?;
//! // The person writes it down. Later, on a new device that has logged in:
//! let recovered = second.recover(&recovery_key).await?;
//! assert!(recovered.identity);
//! # Ok(())
//! # }
//! ```
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#secrets>

use std::collections::BTreeMap;

use ruma::{
    api::client::{
        backup::{
            RoomKeyBackup, add_backup_keys, create_backup_version, get_backup_keys,
            get_latest_backup_info,
        },
        config::{get_global_account_data, set_global_account_data},
    },
    serde::Raw,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::{
    Client,
    client::{NotLoggedIn, OutgoingError},
    crypto::{
        BackupError, BackupUpload, KeyDescription, MachineError, Secret, SecretStorageError,
        StorageKey,
    },
    environment,
    transport::RequestError,
};

const DEFAULT_KEY: &str = "m.secret_storage.default_key";
const BACKUP_SECRET: &str = "m.megolm_backup.v1";
const IDENTITY_SECRETS: [&str; 3] = [
    "m.cross_signing.master",
    "m.cross_signing.self_signing",
    "m.cross_signing.user_signing",
];

/// Why there is no recovery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// This device does not have the private keys of the user's identity.
    #[error("this device does not have the user's private keys; verify it first")]
    NoPrivateKeys,
    /// The user has stored no secrets, or not with a key that this version knows.
    #[error("the user has stored no secrets")]
    NothingStored,
    /// The key is wrong, or does not open what is stored.
    #[error(transparent)]
    SecretStorage(#[from] SecretStorageError),
    /// The backup cannot be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A request cannot be encoded.
    #[error("a request cannot be encoded")]
    Encode,
    /// Requests of the machine were not sent.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// What a recovery brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// This device has the private keys of the user's identity, which vouches for it now.
    pub identity: bool,
    /// The room keys that were new.
    pub room_keys: usize,
}

impl Client {
    /// Stores the user's secrets on the server, encrypted, and begins to back room keys up;
    /// returns the recovery key that the person has to write down. With a passphrase that opens
    /// them as well.
    ///
    /// Whatever was stored before is replaced.
    pub async fn enable_recovery(
        &self,
        passphrase: Option<&Secret>,
    ) -> Result<Secret, RecoveryError> {
        let machine = self.machine()?;
        if !machine.has_private_keys().await? {
            return Err(RecoveryError::NoPrivateKeys);
        }
        if machine.backup_version().await?.is_none() {
            self.create_backup().await?;
        }
        let environment = &*self.inner.environment;
        let (key, description) = if let Some(passphrase) = passphrase {
            StorageKey::new_from_passphrase(environment, passphrase)?
        } else {
            let key = StorageKey::generate(environment).map_err(SecretStorageError::from)?;
            let description = key.describe(environment)?;
            (key, description)
        };
        let key_id = environment::transaction_id(environment)
            .map_err(SecretStorageError::from)?
            .to_string();
        self.set_account_data(&key_name(&key_id), &description)
            .await?;
        for (name, secret) in machine.secrets().await? {
            let content = key.encrypt(environment, &key_id, &name, &secret)?;
            self.set_account_data(&name, &content).await?;
        }
        // Last, so that nobody finds a key that opens nothing.
        let default = json!({ "key": key_id });
        self.set_account_data(DEFAULT_KEY, &default).await?;
        self.upload_backup().await?;
        Ok(key.recovery_key())
    }

    /// Opens the user's secrets with the recovery key or the passphrase: this device gets the
    /// private keys of the identity, which vouches for it, and the room keys of the backup.
    ///
    /// Private keys that do not belong to the identity that this device knows are refused: the
    /// server keeps the secrets, but cannot replace them.
    pub async fn recover(&self, key: &Secret) -> Result<Recovered, RecoveryError> {
        let machine = self.machine()?;
        self.send_outgoing().await?;
        let default: Map<String, Value> = self
            .account_data(DEFAULT_KEY)
            .await?
            .ok_or(RecoveryError::NothingStored)?;
        let key_id = default.get("key").and_then(Value::as_str);
        let key_id = key_id.ok_or(RecoveryError::NothingStored)?;
        let description: KeyDescription = self
            .account_data(&key_name(key_id))
            .await?
            .ok_or(RecoveryError::NothingStored)?;
        let key = match StorageKey::from_recovery_key(key) {
            Ok(key) => key,
            Err(_) => StorageKey::from_passphrase(key, &description)?,
        };
        key.check(&description)?;
        let mut secrets = BTreeMap::new();
        for name in IDENTITY_SECRETS.into_iter().chain([BACKUP_SECRET]) {
            let content: Option<Map<String, Value>> = self.account_data(name).await?;
            if let Some(content) = content {
                secrets.insert(name.to_owned(), key.decrypt(key_id, name, &content)?);
            }
        }
        let taken = machine.take_private_keys(&secrets).await?;
        self.send_outgoing().await?;
        let room_keys = match secrets.get(BACKUP_SECRET) {
            Some(secret) => self.restore_backup(secret).await?,
            None => 0,
        };
        Ok(Recovered {
            identity: taken == IDENTITY_SECRETS.len(),
            room_keys,
        })
    }

    /// Begins a new version of the backup.
    async fn create_backup(&self) -> Result<(), RecoveryError> {
        let machine = self.machine()?;
        let (secret, body) = machine.new_backup().await?;
        let request = create_backup_version::v3::Request::new(raw(&body)?);
        let version = self.inner.transport.send(request).await?.version;
        Ok(machine.use_backup(&version, &body, &secret).await?)
    }

    /// Uses the current version of the backup with the key given; how many keys were new.
    async fn restore_backup(&self, secret: &Secret) -> Result<usize, RecoveryError> {
        let machine = self.machine()?;
        let transport = &self.inner.transport;
        let request = get_latest_backup_info::v3::Request::new();
        let info = match transport.send(request).await {
            Ok(info) => info,
            Err(error) if is_missing(&error) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let description: Value =
            serde_json::from_str(info.algorithm.json().get()).map_err(|_| RecoveryError::Encode)?;
        machine
            .use_backup(&info.version, &description, secret)
            .await?;
        let request = get_backup_keys::v3::Request::new(info.version);
        let rooms = transport.send(request).await?.rooms;
        let rooms = serde_json::to_value(rooms).map_err(|_| RecoveryError::Encode)?;
        Ok(machine.take_backup(&rooms).await?)
    }

    /// Puts the keys into the backup that it lacks. Each sync does this by itself.
    pub async fn upload_backup(&self) -> Result<(), RecoveryError> {
        let machine = self.machine()?;
        while let Some(upload) = machine.backup_upload().await? {
            let request =
                add_backup_keys::v3::Request::new(upload.version.clone(), rooms(&upload)?);
            match self.inner.transport.send(request).await {
                Ok(_) => machine.backed_up(&upload).await?,
                Err(error) => {
                    let errcode = error.errcode();
                    if matches!(
                        errcode.as_deref(),
                        Some("M_WRONG_ROOM_KEYS_VERSION" | "M_NOT_FOUND")
                    ) {
                        // Another version may be anybody's; the person has to recover again.
                        machine.forget_backup().await?;
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Begins to use the backup whose key another device has given to this one.
    pub(crate) async fn use_shared_backup(&self) -> Result<(), RecoveryError> {
        let machine = self.machine()?;
        let Some(secret) = machine.unused_backup_key().await? else {
            return Ok(());
        };
        match self.restore_backup(&secret).await {
            Ok(_) => Ok(()),
            // It is the key of another version.
            Err(RecoveryError::Backup(error)) => {
                machine.forget_backup().await?;
                Err(error.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn account_data<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, RecoveryError> {
        let user_id = self.machine()?.user_id().to_owned();
        let request = get_global_account_data::v3::Request::new(user_id, name.into());
        match self.inner.transport.send(request).await {
            Ok(response) => Ok(serde_json::from_str(response.account_data.json().get()).ok()),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn set_account_data<T: Serialize>(
        &self,
        name: &str,
        content: &T,
    ) -> Result<(), RecoveryError> {
        let user_id = self.machine()?.user_id().to_owned();
        let request =
            set_global_account_data::v3::Request::new_raw(user_id, name.into(), raw(content)?);
        self.inner.transport.send(request).await?;
        Ok(())
    }
}

fn key_name(key_id: &str) -> String {
    format!("m.secret_storage.key.{key_id}")
}

fn is_missing(error: &RequestError) -> bool {
    error.errcode().as_deref() == Some("M_NOT_FOUND")
}

fn rooms(
    upload: &BackupUpload,
) -> Result<BTreeMap<ruma::OwnedRoomId, RoomKeyBackup>, RecoveryError> {
    let mut rooms = BTreeMap::new();
    for (room_id, sessions) in &upload.rooms {
        let mut encrypted = BTreeMap::new();
        for (session_id, key) in sessions {
            encrypted.insert(session_id.clone(), raw(key)?);
        }
        rooms.insert(room_id.clone(), RoomKeyBackup::new(encrypted));
    }
    Ok(rooms)
}

fn raw<T>(value: &impl Serialize) -> Result<Raw<T>, RecoveryError> {
    let json = to_raw_value(value).map_err(|_| RecoveryError::Encode)?;
    Ok(Raw::from_json(json))
}
