//! Known devices and the users whose device lists are followed.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#tracking-the-device-list-for-a-user>

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use vodozemac::{Curve25519PublicKey, Ed25519PublicKey};

use super::{
    error::MachineError,
    keys::{self, DeviceKeys, MEGOLM, OLM},
    machine::Machine,
};
use crate::store::{Batch, StoreError, Table};

/// A device whose keys were served once and are pinned since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The user it belongs to.
    pub user_id: OwnedUserId,
    /// Its id.
    pub device_id: OwnedDeviceId,
    /// The algorithms that it understands.
    pub algorithms: Vec<String>,
    /// Its Ed25519 key, unpadded base64. Never changes.
    pub ed25519: String,
    /// Its Curve25519 key, unpadded base64. Never changes.
    pub curve25519: String,
    /// The name that its user gave it; not authenticated.
    pub display_name: Option<String>,
    /// What the user of this client decided about it.
    pub local_trust: LocalTrust,
    /// It is not in its user's list any more. The row stays, so that it cannot come back with
    /// other keys.
    pub deleted: bool,
    /// How often its Olm sessions were replaced; whoever got a key before that gets it again.
    pub(crate) wedging: u64,
    /// How often in a row no session could be made with it.
    pub(crate) claim_failures: u32,
    /// No session is tried before this time, in milliseconds since the epoch.
    pub(crate) claim_after: u64,
    /// How many claims in a row had no answer.
    #[serde(default)]
    pub(crate) claims_unanswered: u32,
    /// With how many sessions in a row the server gave its fallback key.
    #[serde(default)]
    pub(crate) fallback_keys: u32,
    /// It was told that no session can be made.
    pub(crate) told_no_olm: bool,
    /// The self-signing key that signed it.
    #[serde(default)]
    pub(crate) signed_by: Option<String>,
    /// Its keys as they are served; kept for devices of the own user, to be signed.
    #[serde(default)]
    pub(crate) object: Option<serde_json::Value>,
}

/// What the user decided about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LocalTrust {
    /// Nothing.
    #[default]
    Unset,
    /// It gets no keys.
    Blocked,
}

impl Device {
    pub(crate) fn new(keys: &DeviceKeys) -> Self {
        Self {
            user_id: keys.user_id.clone(),
            device_id: keys.device_id.clone(),
            algorithms: keys.algorithms.clone(),
            ed25519: keys.ed25519.to_base64(),
            curve25519: keys.curve25519.to_base64(),
            display_name: keys.display_name.clone(),
            local_trust: LocalTrust::Unset,
            deleted: false,
            wedging: 0,
            claim_failures: 0,
            claim_after: 0,
            claims_unanswered: 0,
            fallback_keys: 0,
            told_no_olm: false,
            signed_by: None,
            object: None,
        }
    }

    /// Whether the identity that its user had when its keys were last seen has signed it.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.signed_by.is_some()
    }

    /// Whether a session with it may be tried now. When no answer came at all, the fault may be
    /// anywhere: a few more attempts are worth more than a message that the device cannot read.
    pub(crate) fn may_be_claimed(&self, now: u64) -> bool {
        self.claim_after <= now || is_worth_repeating(self.claims_unanswered)
    }

    /// Whether these keys are the ones that were pinned.
    pub(crate) fn has_keys(&self, keys: &DeviceKeys) -> bool {
        self.ed25519 == keys.ed25519.to_base64() && self.curve25519 == keys.curve25519.to_base64()
    }

    pub(crate) fn understands_encryption(&self) -> bool {
        [OLM, MEGOLM]
            .iter()
            .all(|name| self.algorithms.iter().any(|offered| offered == name))
    }

    pub(crate) fn ed25519_key(&self) -> Result<Ed25519PublicKey, StoreError> {
        keys::ed25519(&self.ed25519).ok_or(StoreError::Corrupt {
            table: Table::Devices,
        })
    }

    pub(crate) fn curve25519_key(&self) -> Result<Curve25519PublicKey, StoreError> {
        keys::curve25519(&self.curve25519).ok_or(StoreError::Corrupt {
            table: Table::Devices,
        })
    }

    pub(crate) fn save(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        batch.put(
            Table::Devices,
            self.user_id.as_str(),
            self.device_id.as_str(),
            self,
        )
    }
}

pub(crate) async fn load_device(
    batch: &Batch<'_>,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<Device>, StoreError> {
    batch
        .get(Table::Devices, user_id.as_str(), device_id.as_str())
        .await
}

/// All devices of a user, also deleted ones.
pub(crate) async fn load_devices(
    batch: &Batch<'_>,
    user_id: &UserId,
) -> Result<Vec<Device>, StoreError> {
    let rows = batch.list(Table::Devices, user_id.as_str()).await?;
    Ok(rows.into_iter().map(|(_, device)| device).collect())
}

pub(crate) async fn load_device_by_curve25519(
    batch: &Batch<'_>,
    user_id: &UserId,
    curve25519: &str,
) -> Result<Option<Device>, StoreError> {
    let devices = load_devices(batch, user_id).await?;
    Ok(devices
        .into_iter()
        .find(|device| device.curve25519 == curve25519))
}

/// A user whose device list is followed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TrackedUser {
    /// The list that we have is not the newest.
    pub(crate) outdated: bool,
    /// Counts the times that the list became outdated, so that an answer to an earlier question
    /// cannot clear the flag of a later change.
    pub(crate) generation: u64,
    /// How often in a row the list could not be had.
    pub(crate) failures: u32,
    /// The list is not asked for before this time.
    pub(crate) retry_after: u64,
    /// How many questions in a row had no answer.
    #[serde(default)]
    pub(crate) unanswered: u32,
    /// No room is shared with the user: nobody tells of changes. The row stays, so that an answer to
    /// a question from before is known as such when the user is back.
    #[serde(default)]
    pub(crate) out_of_sight: bool,
}

/// After so many requests without an answer nobody waits for one any more.
const PATIENCE: u32 = 3;

fn is_worth_repeating(unanswered: u32) -> bool {
    (1..=PATIENCE).contains(&unanswered)
}

impl TrackedUser {
    /// Whether the list may be asked for before a message is sent. When no answer came at all, the
    /// fault may be anywhere: a few more attempts are worth more than a message that a new device
    /// cannot read.
    pub(crate) fn may_be_asked(&self, now: u64) -> bool {
        self.retry_after <= now || is_worth_repeating(self.unanswered)
    }

    pub(crate) async fn load(
        batch: &Batch<'_>,
        user_id: &UserId,
    ) -> Result<Option<Self>, StoreError> {
        batch.get(Table::TrackedUsers, "", user_id.as_str()).await
    }

    pub(crate) fn save(&self, batch: &mut Batch<'_>, user_id: &UserId) -> Result<(), StoreError> {
        batch.put(Table::TrackedUsers, "", user_id.as_str(), self)
    }
}

/// Notes that the list of a user changed, if it is followed.
pub(crate) async fn mark_outdated(
    batch: &mut Batch<'_>,
    user_id: &UserId,
) -> Result<(), StoreError> {
    let tracked = TrackedUser::load(batch, user_id).await?;
    if let Some(mut tracked) = tracked.filter(|tracked| !tracked.out_of_sight) {
        tracked.outdated = true;
        tracked.generation += 1;
        // The change is news from the user's server, so the server is there again.
        tracked.failures = 0;
        tracked.retry_after = 0;
        tracked.save(batch, user_id)?;
    }
    Ok(())
}

/// Starts to follow a user, whose list is outdated until it is asked for.
pub(crate) async fn track(batch: &mut Batch<'_>, user_id: &UserId) -> Result<(), StoreError> {
    let before = TrackedUser::load(batch, user_id).await?;
    if before.as_ref().is_some_and(|before| !before.out_of_sight) {
        return Ok(());
    }
    let tracked = TrackedUser {
        outdated: true,
        generation: before.map_or(0, |before| before.generation) + 1,
        ..TrackedUser::default()
    };
    tracked.save(batch, user_id)
}

/// Stops to follow a user.
pub(crate) async fn untrack(batch: &mut Batch<'_>, user_id: &UserId) -> Result<(), StoreError> {
    if let Some(mut tracked) = TrackedUser::load(batch, user_id).await? {
        tracked.out_of_sight = true;
        tracked.save(batch, user_id)?;
    }
    Ok(())
}

impl Machine {
    /// Whether changes of a user's devices reach us. They do from the first message on that the
    /// user may read, until no room is shared any more; at other times [`Machine::devices`] is what
    /// we knew last.
    pub async fn follows(&self, user_id: &UserId) -> Result<bool, MachineError> {
        let tracked = TrackedUser::load(&self.batch(), user_id).await?;
        Ok(tracked.is_some_and(|tracked| !tracked.out_of_sight))
    }

    /// The devices of a user that are known and not deleted.
    pub async fn devices(&self, user_id: &UserId) -> Result<Vec<Device>, MachineError> {
        let batch = self.batch();
        let mut devices = load_devices(&batch, user_id).await?;
        devices.retain(|device| !device.deleted);
        Ok(devices)
    }

    /// Decides about a device. A blocked device gets no further room keys, and the sessions that
    /// it already has are replaced before the next message.
    ///
    /// Returns whether the device is known.
    pub async fn set_local_trust(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        trust: LocalTrust,
    ) -> Result<bool, MachineError> {
        let mut volatile = self.lock().await?;
        volatile.devices_changed();
        let mut batch = self.batch();
        let Some(mut device) = load_device(&batch, user_id, device_id).await? else {
            return Ok(false);
        };
        device.local_trust = trust;
        device.save(&mut batch)?;
        batch.commit().await?;
        Ok(true)
    }
}
