//! Claiming one-time keys, and replacing Olm sessions that broke.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#recovering-from-undecryptable-messages>

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId, UserId,
    api::client::keys::claim_keys,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vodozemac::Curve25519PublicKey;

use super::{
    account::StoredAccount,
    devices::{self, Device},
    error::MachineError,
    keys::{self, SignatureError},
    machine::{Asked, InFlight, Machine, Volatile},
    outbox::{Messages, Purpose},
    query::pause_ms,
    requests::{Alarm, OutgoingRequest, Request},
};
use crate::{
    environment,
    store::{Batch, StoreError, Table},
};

/// A session with one device is replaced at most this often, so that nobody can make us burn
/// one-time keys by sending garbage.
const REPLACE_AT_MOST_EVERY_MS: u64 = 60 * 60 * 1000;

/// A device may be out of one-time keys. So many sessions in a row that begin with its fallback key are
/// more than bad luck.
const SUSPICIOUS_FALLBACK_KEYS: u32 = 3;

/// A device that sent something which could not be decrypted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Wedged {
    /// A new session should be made.
    pending: bool,
    /// When one was made, or tried, last.
    replaced_at: Option<u64>,
}

fn wedged_id(user_id: &UserId, curve25519: &str) -> String {
    format!("{user_id} {curve25519}")
}

/// Notes that a message of a device could not be decrypted.
pub(crate) async fn note_broken_session(
    batch: &mut Batch<'_>,
    user_id: &UserId,
    sender_key: Curve25519PublicKey,
    now: u64,
) -> Result<(), StoreError> {
    let curve25519 = sender_key.to_base64();
    let id = wedged_id(user_id, &curve25519);
    let wedged: Option<Wedged> = batch.get(Table::WedgedDevices, "", &id).await?;
    let mut wedged = wedged.unwrap_or_default();
    let recently = wedged
        .replaced_at
        .is_some_and(|at| now.saturating_sub(at) < REPLACE_AT_MOST_EVERY_MS);
    if recently || wedged.pending {
        return Ok(());
    }
    // Only a device that its user's list names is worth a session; a key that anybody can make up
    // is not worth a row.
    if devices::load_device_by_curve25519(batch, user_id, &curve25519)
        .await?
        .is_none()
    {
        return devices::mark_outdated(batch, user_id).await;
    }
    wedged.pending = true;
    batch.put(Table::WedgedDevices, "", &id, &wedged)
}

/// Marks the replacement of a device's session as tried; returns whether it was wanted.
async fn settle(batch: &mut Batch<'_>, device: &Device, now: u64) -> Result<bool, StoreError> {
    let id = wedged_id(&device.user_id, &device.curve25519);
    let wedged: Option<Wedged> = batch.get(Table::WedgedDevices, "", &id).await?;
    if !wedged.is_some_and(|wedged| wedged.pending) {
        return Ok(false);
    }
    let wedged = Wedged {
        pending: false,
        replaced_at: Some(now),
    };
    batch.put(Table::WedgedDevices, "", &id, &wedged)?;
    Ok(true)
}

impl Machine {
    /// A claim for the devices whose sessions have to be replaced.
    pub(crate) async fn unwedging_claim(
        &self,
        volatile: &mut Volatile,
    ) -> Result<Option<OutgoingRequest>, MachineError> {
        let batch = self.batch();
        let mut broken = Vec::new();
        for (id, wedged) in batch.list::<Wedged>(Table::WedgedDevices, "").await? {
            let Some((user_id, curve25519)) = id.split_once(' ') else {
                continue;
            };
            let Ok(user_id) = <&UserId>::try_from(user_id) else {
                continue;
            };
            if !wedged.pending {
                continue;
            }
            let device = devices::load_device_by_curve25519(&batch, user_id, curve25519).await?;
            broken.extend(device.filter(|device| {
                let key = (device.user_id.clone(), device.device_id.clone());
                !device.deleted && !is_claimed(volatile, &key)
            }));
        }
        if broken.is_empty() {
            return Ok(None);
        }
        self.claim_request(volatile, &broken).map(Some)
    }

    pub(crate) fn claim_request(
        &self,
        volatile: &mut Volatile,
        devices: &[Device],
    ) -> Result<OutgoingRequest, MachineError> {
        let mut keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, _>> = BTreeMap::new();
        let mut asked = BTreeSet::new();
        for device in devices {
            let user = keys.entry(device.user_id.clone()).or_default();
            user.insert(
                device.device_id.clone(),
                OneTimeKeyAlgorithm::SignedCurve25519,
            );
            asked.insert((device.user_id.clone(), device.device_id.clone()));
        }
        let id = environment::transaction_id(self.environment())?;
        let what = Asked::Claim { devices: asked };
        volatile.in_flight.insert(
            id.clone(),
            InFlight {
                since: self.now(),
                what,
            },
        );
        Ok(OutgoingRequest {
            id,
            request: Request::KeysClaim(claim_keys::v3::Request::new(keys)),
        })
    }

    /// Makes sessions from the keys that were claimed.
    pub(crate) async fn take_claim(
        &self,
        response: &claim_keys::v3::Response,
        asked: &BTreeSet<(OwnedUserId, OwnedDeviceId)>,
    ) -> Result<Vec<Alarm>, MachineError> {
        let mut batch = self.batch();
        let mut alarms = Vec::new();
        // Once for all: to read it costs more than to make a session.
        let account = StoredAccount::load(&batch).await?.olm;
        for (user_id, device_id) in asked {
            let Some(mut device) = devices::load_device(&batch, user_id, device_id).await? else {
                continue;
            };
            let object = one_time_key(response, user_id, device_id);
            let key = match &object {
                Some(object) => verified(object, &device)?,
                None => None,
            };
            let made = match key {
                Some(key) => {
                    self.create_outbound_session(&mut batch, &account, &device, key)
                        .await?
                }
                None => false,
            };
            if made {
                alarms.extend(note_fallback_key(&mut device, object.as_ref()));
                self.session_made(&mut batch, device).await?;
            } else {
                settle(&mut batch, &device, self.now()).await?;
                self.note_failed_claim(&mut device);
                device.claims_unanswered = 0;
                device.save(&mut batch)?;
            }
        }
        batch.commit().await?;
        Ok(alarms)
    }

    pub(crate) async fn fail_claim(
        &self,
        asked: &BTreeSet<(OwnedUserId, OwnedDeviceId)>,
    ) -> Result<(), MachineError> {
        let mut batch = self.batch();
        for (user_id, device_id) in asked {
            if let Some(mut device) = devices::load_device(&batch, user_id, device_id).await? {
                self.note_failed_claim(&mut device);
                device.claims_unanswered = device.claims_unanswered.saturating_add(1);
                device.save(&mut batch)?;
            }
        }
        Ok(batch.commit().await?)
    }

    fn note_failed_claim(&self, device: &mut Device) {
        device.claim_failures = device.claim_failures.saturating_add(1);
        device.claim_after = self.now().saturating_add(pause_ms(device.claim_failures));
    }

    async fn session_made(
        &self,
        batch: &mut Batch<'_>,
        mut device: Device,
    ) -> Result<(), MachineError> {
        device.claim_failures = 0;
        device.claim_after = 0;
        device.claims_unanswered = 0;
        device.told_no_olm = false;
        if settle(batch, &device, self.now()).await? {
            // Whatever we sent over the broken session may be lost as well.
            device.wedging += 1;
            let dummy = self
                .encrypt_for(batch, &device, "m.dummy", &Map::new())
                .await?;
            if let Some(dummy) = dummy {
                let to_one = BTreeMap::from([(device.device_id.clone(), dummy)]);
                let messages = Messages::from([(device.user_id.clone(), to_one)]);
                self.queue("m.room.encrypted", messages, Purpose::Other, batch)
                    .await?;
            }
        }
        Ok(device.save(batch)?)
    }
}

/// Counts the sessions that begin with the fallback key of a device, which says by its signature that it
/// is one; once they are too many somebody should know.
fn note_fallback_key(device: &mut Device, object: Option<&Value>) -> Option<Alarm> {
    let is_fallback = object.and_then(|object| object.get("fallback")) == Some(&Value::Bool(true));
    device.fallback_keys = if is_fallback {
        device.fallback_keys.saturating_add(1)
    } else {
        0
    };
    (device.fallback_keys == SUSPICIOUS_FALLBACK_KEYS).then(|| Alarm::OnlyFallbackKeys {
        user_id: device.user_id.clone(),
        device_id: device.device_id.clone(),
    })
}

/// Whether keys of one of the devices are being claimed.
pub(crate) fn any_claimed(volatile: &Volatile, devices: &[Device]) -> bool {
    devices.iter().any(|device| {
        is_claimed(
            volatile,
            &(device.user_id.clone(), device.device_id.clone()),
        )
    })
}

fn is_claimed(volatile: &Volatile, device: &(OwnedUserId, OwnedDeviceId)) -> bool {
    volatile.in_flight.values().any(
        |request| matches!(&request.what, Asked::Claim { devices } if devices.contains(device)),
    )
}

fn one_time_key(
    response: &claim_keys::v3::Response,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Option<Value> {
    let keys = response.one_time_keys.get(user_id)?.get(device_id)?;
    let (_, key) = keys
        .iter()
        .find(|(id, _)| id.algorithm() == OneTimeKeyAlgorithm::SignedCurve25519)?;
    serde_json::from_str(key.json().get()).ok()
}

/// The key, if the device's own pinned key signed it.
fn verified(object: &Value, device: &Device) -> Result<Option<Curve25519PublicKey>, StoreError> {
    let result = keys::verify(
        object,
        &device.user_id,
        device.device_id.as_str(),
        &device.ed25519_key()?,
    )
    .and_then(|()| {
        let text = object
            .get("key")
            .and_then(Value::as_str)
            .ok_or(SignatureError::Malformed)?;
        keys::curve25519(text).ok_or(SignatureError::InvalidKey)
    });
    if let Err(error) = &result {
        let (user_id, device_id) = (&device.user_id, &device.device_id);
        tracing::warn!(%user_id, %device_id, %error, "refused a one-time key");
    }
    Ok(result.ok())
}
