//! Giving the members of a room the key of the session that the next message uses.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value};

use super::{
    devices::{self, Device, TrackedUser},
    error::{MachineError, ShareError},
    exceptions::Standing,
    history::SharedHistory,
    identity::{self, Identity},
    keys::MEGOLM,
    machine::{self, Machine, Volatile},
    megolm::RoomKeyContent,
    olm,
    outbound::{KeyShare, OutboundSession, RoomEncryption, share_id},
    outbox::{Messages, Purpose},
    requests::OutgoingRequest,
    withheld::Refusal,
};
use crate::store::{Batch, StoreError, Table};

/// Devices that get a key in one request.
const DEVICES_PER_REQUEST: usize = 250;

/// How far the sharing of a key has come.
#[derive(Debug)]
#[non_exhaustive]
pub enum Share {
    /// These have to be sent and answered; then ask again.
    Pending(Vec<OutgoingRequest>),
    /// Everybody who can have the key has it, or was told why not.
    Ready,
}

/// The device lists of the members of a room.
#[derive(Default)]
pub(crate) struct Lists {
    /// They have to be asked for, with their generations.
    pub(crate) outdated: Vec<(OwnedUserId, u64)>,
    /// Some are outdated, whether they can be asked for now or not.
    postponed: bool,
}

/// What one look at the members of a room found.
#[derive(Default)]
struct Plan {
    /// They have a session and lack the key.
    ready: Vec<Device>,
    /// They lack a session.
    claim: Vec<Device>,
    /// They get no key, for the reason given.
    refused: Vec<(Device, Refusal)>,
    /// They lack a session, and the last attempt to make one failed.
    unreachable: Vec<Device>,
}

impl Machine {
    /// Shares the key of the room's session with all devices of `members`, one step at a time.
    ///
    /// `members` are the users who may read the next message: those who have joined, and those who
    /// are invited if the room lets them read. Send what is returned, report the answers, and call
    /// again until it is [`Share::Ready`]. Each step is stored before it is returned, so it does
    /// not matter where a process dies.
    pub async fn share_room_key(
        &self,
        room_id: &RoomId,
        members: &BTreeSet<OwnedUserId>,
    ) -> Result<Share, ShareError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let encryption = self
            .encryption_of(&batch, room_id)
            .await?
            .ok_or(ShareError::NotEncrypted)?;
        if !encryption.supported {
            return Err(ShareError::UnsupportedAlgorithm);
        }
        if machine::own_device_mismatch(&batch).await? {
            return Err(ShareError::OwnDeviceMismatch);
        }
        if identity::own_identity_changed(&batch).await? {
            return Err(ShareError::OwnIdentityChanged);
        }
        if self
            .is_settled(&volatile, &batch, room_id, members, &encryption)
            .await?
        {
            return Ok(Share::Ready);
        }
        let lists = self.lists_of(&mut batch, members).await?;
        if !lists.outdated.is_empty() {
            batch.commit().await?;
            return Ok(Share::Pending(
                self.queries_for(&mut volatile, &lists.outdated)?,
            ));
        }
        self.check_identities(&batch, members).await?;
        let session = self
            .usable_session(&mut batch, room_id, members, &encryption)
            .await?;
        let plan = self.plan(&batch, room_id, &session, members).await?;
        if !plan.claim.is_empty() {
            batch.commit().await?;
            return Ok(Share::Pending(self.claims_for(&mut volatile, &plan.claim)?));
        }
        let all_reached = plan.unreachable.is_empty() && !lists.postponed;
        self.carry_out(&mut batch, room_id, &session, plan).await?;
        batch.commit().await?;
        let session_id = session.megolm.session_id();
        let waiting = self.waiting_keys(&session_id).await?;
        if !waiting.is_empty() {
            return Ok(Share::Pending(waiting));
        }
        if all_reached {
            volatile
                .settled
                .insert(room_id.to_owned(), (session_id, members.clone()));
        }
        Ok(Share::Ready)
    }

    /// Whether this very session was found to be with these very members, and nothing has happened
    /// since that could change this. Spares a look at each device for each message.
    async fn is_settled(
        &self,
        volatile: &Volatile,
        batch: &Batch<'_>,
        room_id: &RoomId,
        members: &BTreeSet<OwnedUserId>,
        encryption: &RoomEncryption,
    ) -> Result<bool, StoreError> {
        let Some((session_id, settled)) = volatile.settled.get(room_id) else {
            return Ok(false);
        };
        let session = OutboundSession::load(batch, room_id).await?;
        Ok(settled == members
            && session.is_some_and(|session| {
                session.is_usable(encryption, self.now())
                    && session.megolm.session_id() == *session_id
            }))
    }

    /// Looks which device lists have to be asked for first; all are followed from now on.
    pub(crate) async fn lists_of(
        &self,
        batch: &mut Batch<'_>,
        members: &BTreeSet<OwnedUserId>,
    ) -> Result<Lists, StoreError> {
        let mut lists = Lists::default();
        for user_id in self.readers(members) {
            devices::track(batch, user_id).await?;
            let tracked = TrackedUser::load(batch, user_id).await?.unwrap_or_default();
            // A server that does not answer must not keep a room silent: its users get the key
            // on the devices that are known, and on the others when it is back.
            if tracked.outdated && tracked.may_be_asked(self.now()) {
                lists
                    .outdated
                    .push((user_id.to_owned(), tracked.generation));
            }
            lists.postponed |= tracked.outdated;
        }
        Ok(lists)
    }

    /// The members and, for our other devices, ourselves.
    fn readers<'a>(&'a self, members: &'a BTreeSet<OwnedUserId>) -> BTreeSet<&'a UserId> {
        members
            .iter()
            .map(|id| &**id)
            .chain([self.user_id()])
            .collect()
    }

    /// The session that the next message may use: the current one, or a new one if that is used
    /// up, was discarded, or is known to somebody who should not read on.
    async fn usable_session(
        &self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
        members: &BTreeSet<OwnedUserId>,
        encryption: &RoomEncryption,
    ) -> Result<OutboundSession, StoreError> {
        if let Some(session) = OutboundSession::load(batch, room_id).await?
            && session.is_usable(encryption, self.now())
            && !self
                .is_overshared(batch, room_id, &session, members)
                .await?
        {
            return Ok(session);
        }
        self.new_session(batch, room_id).await
    }

    async fn is_overshared(
        &self,
        batch: &Batch<'_>,
        room_id: &RoomId,
        session: &OutboundSession,
        members: &BTreeSet<OwnedUserId>,
    ) -> Result<bool, StoreError> {
        let mut by_user: BTreeMap<OwnedUserId, Vec<(String, KeyShare)>> = BTreeMap::new();
        for (user_id, device_id, share) in session.shares(batch, room_id).await? {
            let of_user = by_user.entry(user_id).or_default();
            of_user.push((device_id, share));
        }
        let own = Identity::load(batch, self.user_id()).await?;
        for (user_id, shares) in by_user {
            if !members.contains(&user_id) && user_id != self.user_id() {
                return Ok(true);
            }
            let standing = Standing::load(batch, &user_id).await?;
            let devices = devices::load_devices(batch, &user_id).await?;
            let may_have = |(device_id, share): &(String, KeyShare)| {
                let is_it = |device: &&Device| device.device_id == *device_id;
                devices.iter().find(is_it).is_some_and(|device| {
                    !device.deleted
                        && device.curve25519 == share.curve25519
                        && self.refusal_of(device, &standing, own.as_ref()).is_none()
                })
            };
            if !shares.iter().all(may_have) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn plan(
        &self,
        batch: &Batch<'_>,
        room_id: &RoomId,
        session: &OutboundSession,
        members: &BTreeSet<OwnedUserId>,
    ) -> Result<Plan, StoreError> {
        let shares: BTreeMap<String, KeyShare> = session
            .shares(batch, room_id)
            .await?
            .into_iter()
            .map(|(user, device, share)| (share_id(&user, device.as_str().into()), share))
            .collect();
        let mut plan = Plan::default();
        let own = Identity::load(batch, self.user_id()).await?;
        for user_id in self.readers(members) {
            let standing = Standing::load(batch, user_id).await?;
            for device in devices::load_devices(batch, user_id).await? {
                if device.deleted || !device.understands_encryption() {
                    continue;
                }
                let refusal = self.refusal_of(&device, &standing, own.as_ref());
                if let Some(refusal) = refusal {
                    plan.refused.push((device, refusal));
                    continue;
                }
                let share = shares.get(&share_id(&device.user_id, &device.device_id));
                if share.is_some_and(|share| share.wedging >= device.wedging) {
                    continue;
                }
                if olm::has_session(batch, &device.curve25519).await? {
                    plan.ready.push(device);
                } else if device.may_be_claimed(self.now()) {
                    plan.claim.push(device);
                } else {
                    plan.unreachable.push(device);
                }
            }
        }
        Ok(plan)
    }

    async fn carry_out(
        &self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
        session: &OutboundSession,
        plan: Plan,
    ) -> Result<(), MachineError> {
        for chunk in plan.ready.chunks(DEVICES_PER_REQUEST) {
            self.queue_keys(batch, room_id, session, chunk).await?;
        }
        self.tell_refused(batch, room_id, session, &plan.refused)
            .await?;
        self.tell_unreachable(batch, &plan.unreachable).await
    }

    /// Encrypts the key for each device and queues it, together with the note that they have it.
    async fn queue_keys(
        &self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
        session: &OutboundSession,
        devices: &[Device],
    ) -> Result<(), MachineError> {
        let content = RoomKeyContent {
            algorithm: MEGOLM.to_owned(),
            room_id: room_id.to_owned(),
            session_id: session.megolm.session_id(),
            session_key: session.megolm.session_key().to_base64(),
            sharing: SharedHistory::of(session.shared_history),
        };
        let Ok(Value::Object(content)) = serde_json::to_value(content) else {
            return Err(MachineError::Encode);
        };
        let mut messages = Messages::new();
        for device in devices {
            let encrypted = self
                .encrypt_for(batch, device, "m.room_key", &content)
                .await?;
            let Some(encrypted) = encrypted else { continue };
            messages
                .entry(device.user_id.clone())
                .or_default()
                .insert(device.device_id.clone(), encrypted);
            let share = KeyShare {
                curve25519: device.curve25519.clone(),
                message_index: session.megolm.message_index(),
                wedging: device.wedging,
            };
            let id = share_id(&device.user_id, &device.device_id);
            batch.put(
                Table::OutboundShares,
                &session.partition(room_id),
                &id,
                &share,
            )?;
        }
        let purpose = Purpose::RoomKey {
            session_id: session.megolm.session_id(),
        };
        self.queue("m.room.encrypted", messages, purpose, batch)
            .await
    }

    /// Sends content to one device over Olm, as soon as the outbox is sent.
    ///
    /// Returns whether there is a session with the device.
    pub async fn send_to_device(
        &self,
        device: &Device,
        kind: &str,
        content: Map<String, Value>,
    ) -> Result<bool, MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        let encrypted = self.encrypt_for(&mut batch, device, kind, &content).await?;
        let Some(encrypted) = encrypted else {
            return Ok(false);
        };
        let to_one = BTreeMap::from([(device.device_id.clone(), encrypted)]);
        let messages = Messages::from([(device.user_id.clone(), to_one)]);
        self.queue("m.room.encrypted", messages, Purpose::Other, &mut batch)
            .await?;
        batch.commit().await?;
        Ok(true)
    }

    pub(crate) fn claims_for(
        &self,
        volatile: &mut Volatile,
        devices: &[Device],
    ) -> Result<Vec<OutgoingRequest>, MachineError> {
        devices
            .chunks(DEVICES_PER_REQUEST)
            .map(|chunk| self.claim_request(volatile, chunk))
            .collect()
    }
}
