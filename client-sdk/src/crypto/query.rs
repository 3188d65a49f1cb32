//! Asking for device lists, and taking the answers.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#tracking-the-device-list-for-a-user>

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, UserId,
    api::client::keys::get_keys,
    encryption::{CrossSigningKey, DeviceKeys as RawDeviceKeys},
    serde::Raw,
};
use serde_json::Value;

use super::{
    decrypt,
    devices::{self, Device, TrackedUser},
    error::MachineError,
    identity::Identity,
    keys::{self, DeviceKeys},
    machine::{self, Asked, InFlight, Machine, Volatile},
    requests::{Alarm, OutgoingRequest, Request},
};
use crate::{
    environment,
    store::{Batch, StoreError, Table},
};

/// Users in one query.
const USERS_PER_QUERY: usize = 250;
/// The first pause after a failure; it doubles each time.
const FIRST_PAUSE_MS: u64 = 15_000;
/// The longest pause.
const LONGEST_PAUSE_MS: u64 = 60 * 60 * 1000;

/// The pause after `failures` failures in a row.
pub(crate) fn pause_ms(failures: u32) -> u64 {
    let doubled = FIRST_PAUSE_MS.saturating_mul(1_u64 << failures.saturating_sub(1).min(20));
    doubled.min(LONGEST_PAUSE_MS)
}

impl Machine {
    /// Queries for all lists that are outdated, may be asked for, and are not being asked for.
    pub(crate) async fn due_queries(
        &self,
        volatile: &mut Volatile,
    ) -> Result<Vec<OutgoingRequest>, MachineError> {
        let asked: BTreeSet<OwnedUserId> = volatile
            .in_flight
            .values()
            .filter_map(|request| match &request.what {
                Asked::Query { generations, .. } => Some(generations.keys().cloned()),
                _ => None,
            })
            .flatten()
            .collect();
        let batch = self.batch();
        let mut due = Vec::new();
        for (id, tracked) in batch.list::<TrackedUser>(Table::TrackedUsers, "").await? {
            let Ok(user_id) = OwnedUserId::try_from(id) else {
                continue;
            };
            let wants = tracked.outdated && !tracked.out_of_sight;
            if wants && tracked.retry_after <= self.now() && !asked.contains(&user_id) {
                due.push((user_id, tracked.generation));
            }
        }
        self.queries_for(volatile, &due)
    }

    /// Queries for the users given, with the generations of their lists.
    pub(crate) fn queries_for(
        &self,
        volatile: &mut Volatile,
        users: &[(OwnedUserId, u64)],
    ) -> Result<Vec<OutgoingRequest>, MachineError> {
        let mut requests = Vec::new();
        for chunk in users.chunks(USERS_PER_QUERY) {
            volatile.queries += 1;
            let mut request = get_keys::v3::Request::new();
            request.device_keys = chunk
                .iter()
                .map(|(user, _)| (user.clone(), Vec::new()))
                .collect();
            let id = environment::transaction_id(self.environment())?;
            let generations = chunk.iter().cloned().collect();
            let what = Asked::Query {
                order: volatile.queries,
                generations,
            };
            volatile.in_flight.insert(
                id.clone(),
                InFlight {
                    since: self.now(),
                    what,
                },
            );
            requests.push(OutgoingRequest {
                id,
                request: Request::KeysQuery(request),
            });
        }
        Ok(requests)
    }

    pub(crate) async fn take_query(
        &self,
        volatile: &mut Volatile,
        response: &get_keys::v3::Response,
        order: u64,
        generations: &BTreeMap<OwnedUserId, u64>,
    ) -> Result<Vec<Alarm>, MachineError> {
        let mut batch = self.batch();
        let mut alarms = Vec::new();
        let mut taken = Vec::new();
        for (user_id, generation) in generations {
            // Answers may overtake each other; an older one must not overwrite a newer one.
            if volatile
                .answered
                .get(user_id)
                .is_some_and(|answered| *answered > order)
            {
                continue;
            }
            let tracked = TrackedUser::load(&batch, user_id).await?;
            let changed = |tracked: &TrackedUser| tracked.generation != *generation;
            // Another process may have taken the answer to a newer question.
            if order <= volatile.overtaken && tracked.as_ref().is_some_and(changed) {
                continue;
            }
            let devices = response.device_keys.get(user_id);
            let failed = response
                .failures
                .contains_key(user_id.server_name().as_str());
            if failed {
                // It is asked again; what is served meanwhile is better than nothing.
                if devices.is_some_and(|devices| !devices.is_empty()) {
                    let (taken, _) = self.take_keys(&mut batch, user_id, response).await?;
                    alarms.extend(taken);
                }
                self.postpone(&mut batch, user_id).await?;
                continue;
            }
            alarms.extend(self.take_list(&mut batch, user_id, response).await?);
            if let Some(mut tracked) = TrackedUser::load(&batch, user_id).await? {
                // A change that came after the question leaves the list outdated.
                tracked.outdated = tracked.generation != *generation;
                tracked.failures = 0;
                tracked.retry_after = 0;
                tracked.unanswered = 0;
                tracked.save(&mut batch, user_id)?;
            }
            taken.push(user_id.clone());
        }
        batch.commit().await?;
        volatile
            .answered
            .extend(taken.into_iter().map(|user_id| (user_id, order)));
        Ok(alarms)
    }

    pub(crate) async fn fail_query(
        &self,
        users: impl Iterator<Item = &OwnedUserId>,
    ) -> Result<(), MachineError> {
        let mut batch = self.batch();
        for user_id in users {
            self.postpone(&mut batch, user_id).await?;
            if let Some(mut tracked) = TrackedUser::load(&batch, user_id).await? {
                tracked.unanswered = tracked.unanswered.saturating_add(1);
                tracked.save(&mut batch, user_id)?;
            }
        }
        Ok(batch.commit().await?)
    }

    async fn postpone(&self, batch: &mut Batch<'_>, user_id: &UserId) -> Result<(), StoreError> {
        let Some(mut tracked) = TrackedUser::load(batch, user_id).await? else {
            return Ok(());
        };
        tracked.failures = tracked.failures.saturating_add(1);
        tracked.retry_after = self.now().saturating_add(pause_ms(tracked.failures));
        tracked.save(batch, user_id)
    }

    /// Takes the list of a user: what is not in it is gone.
    async fn take_list(
        &self,
        batch: &mut Batch<'_>,
        user_id: &UserId,
        response: &get_keys::v3::Response,
    ) -> Result<Vec<Alarm>, StoreError> {
        let (alarms, present) = self.take_keys(batch, user_id, response).await?;
        for mut device in devices::load_devices(batch, user_id).await? {
            if !device.deleted && !present.contains(&device.device_id) {
                device.deleted = true;
                device.save(batch)?;
            }
        }
        Ok(alarms)
    }

    /// Takes the keys of a user's identity and devices; returns which devices have usable ones.
    async fn take_keys(
        &self,
        batch: &mut Batch<'_>,
        user_id: &UserId,
        response: &get_keys::v3::Response,
    ) -> Result<(Vec<Alarm>, BTreeSet<OwnedDeviceId>), StoreError> {
        let served = response.device_keys.get(user_id);
        let mut identities = cross_signing_keys(response, user_id);
        let mut alarms: Vec<_> = self
            .take_identity(batch, user_id, response)
            .await?
            .into_iter()
            .collect();
        let identity = Identity::load(batch, user_id).await?;
        // The server may show the two one after the other.
        identities.extend(identity.iter().flat_map(Identity::keys).map(str::to_owned));
        let mut present = BTreeSet::new();
        for (device_id, keys) in served.into_iter().flatten() {
            // A device id that is also a key id would make two different keys have one name.
            if identities.contains(device_id.as_str()) {
                continue;
            }
            let Some((keys, object)) = parse(keys, user_id, device_id) else {
                continue;
            };
            if user_id == self.user_id() && device_id == self.device_id() {
                if keys.ed25519 != self.ed25519_key() || keys.curve25519 != self.curve25519_key() {
                    machine::set_own_device_mismatch(batch)?;
                    alarms.push(Alarm::OwnDeviceMismatch);
                } else if identity
                    .as_ref()
                    .is_some_and(|identity| signer(&object, identity).is_some())
                {
                    self.take_own_signatures(batch, &object)?;
                }
                continue;
            }
            present.insert(device_id.clone());
            let seen = Seen {
                signed_by: identity
                    .as_ref()
                    .and_then(|identity| signer(&object, identity)),
                object: (user_id == self.user_id()).then_some(object),
            };
            if !take_device(batch, &keys, seen).await? {
                let (user_id, device_id) = (user_id.to_owned(), device_id.clone());
                alarms.push(Alarm::DeviceKeysChanged { user_id, device_id });
            }
        }
        Ok((alarms, present))
    }
}

/// What is known of a device beside its keys.
struct Seen {
    signed_by: Option<String>,
    object: Option<Value>,
}

/// The self-signing key of an identity that signed the keys of a device.
pub(crate) fn signer(object: &Value, identity: &Identity) -> Option<String> {
    let name = identity.self_signing.as_deref()?;
    let key = keys::ed25519(name)?;
    let signed = keys::verify(object, &identity.user_id, name, &key).is_ok();
    signed.then(|| name.to_owned())
}

/// Stores a device; `false` if its keys are not those that were pinned.
async fn take_device(
    batch: &mut Batch<'_>,
    keys: &DeviceKeys,
    seen: Seen,
) -> Result<bool, StoreError> {
    let known = devices::load_device(batch, &keys.user_id, &keys.device_id).await?;
    let mut device = match known {
        None => Device::new(keys),
        Some(device) if !device.has_keys(keys) => return Ok(false),
        Some(mut device) => {
            device.algorithms.clone_from(&keys.algorithms);
            device.display_name.clone_from(&keys.display_name);
            device.deleted = false;
            device
        }
    };
    if seen.signed_by.is_some() && device.signed_by.is_none() {
        decrypt::release_held(batch, &device.curve25519).await?;
    }
    device.signed_by = seen.signed_by;
    device.object = seen.object;
    device.save(batch)?;
    Ok(true)
}

fn parse(
    keys: &Raw<RawDeviceKeys>,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Option<(DeviceKeys, Value)> {
    let object: Value = serde_json::from_str(keys.json().get()).ok()?;
    match DeviceKeys::parse_for(&object, user_id, device_id) {
        Ok(keys) => Some((keys, object)),
        Err(error) => {
            tracing::debug!(%user_id, %device_id, %error, "refused a device");
            None
        }
    }
}

/// The public keys that are shown of a user's identity, which no device of the user may have as its id.
fn cross_signing_keys(response: &get_keys::v3::Response, user_id: &UserId) -> BTreeSet<String> {
    let key = |keys: &BTreeMap<OwnedUserId, Raw<CrossSigningKey>>| {
        keys.get(user_id).and_then(|key| {
            key.get_field::<BTreeMap<String, String>>("keys")
                .ok()
                .flatten()
        })
    };
    [
        &response.master_keys,
        &response.self_signing_keys,
        &response.user_signing_keys,
    ]
    .into_iter()
    .filter_map(key)
    .flat_map(BTreeMap::into_values)
    .collect()
}
