//! Devices that get no key, and telling them so.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#reporting-that-decryption-keys-are-withheld>

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    devices::{Device, LocalTrust},
    error::{MachineError, RejectedMessage, ShareError, WithheldCode},
    exceptions::Standing,
    identity::{Identity, IdentityState},
    keys::MEGOLM,
    machine::Machine,
    megolm::session_partition,
    outbound::{OutboundSession, share_id},
    outbox::{Messages, Purpose},
    trust::SharePolicy,
};
use crate::store::{Batch, StoreError, Table};

/// Why a device gets no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The user blocked it.
    Blocked,
    /// The policy does not allow it.
    Untrusted,
}

impl Refusal {
    fn code(self) -> &'static str {
        match self {
            Self::Blocked => "m.blacklisted",
            Self::Untrusted => "m.unverified",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Blocked => "The sender has blocked this device.",
            Self::Untrusted => "This device is not verified by its owner.",
        }
    }
}

impl Machine {
    /// Why a device gets no key, if it does not; with the standing of its user and the own identity.
    pub(crate) fn refusal_of(
        &self,
        device: &Device,
        standing: &Standing,
        own: Option<&Identity>,
    ) -> Option<Refusal> {
        if device.local_trust == LocalTrust::Blocked {
            return Some(Refusal::Blocked);
        }
        let vouched = standing.vouching_for(device);
        let trusted = match self.share_policy() {
            SharePolicy::AllDevices => true,
            SharePolicy::SignedDevicesOnly => vouched.is_some() || standing.is_excepted(),
            SharePolicy::VerifiedOnly => {
                vouched.is_some_and(|identity| identity.state(own) == IdentityState::Verified)
            }
        };
        (!trusted).then_some(Refusal::Untrusted)
    }

    /// Refuses to send to users whose identity is not the one that is known.
    pub(crate) async fn check_identities(
        &self,
        batch: &Batch<'_>,
        members: &BTreeSet<OwnedUserId>,
    ) -> Result<(), ShareError> {
        let own = Identity::load(batch, self.user_id()).await?;
        let lax = self.share_policy() == SharePolicy::AllDevices;
        let mut users = Vec::new();
        for user_id in members {
            let Some(identity) = Identity::load(batch, user_id).await? else {
                continue;
            };
            match identity.state(own.as_ref()) {
                IdentityState::VerificationViolation => users.push(user_id.clone()),
                IdentityState::PinViolation if !lax => users.push(user_id.clone()),
                _ => {}
            }
        }
        if users.is_empty() {
            Ok(())
        } else {
            Err(ShareError::IdentitiesChanged { users })
        }
    }

    /// Tells devices, once for each session, that they get no key.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#reporting-that-decryption-keys-are-withheld>
    pub(crate) async fn tell_refused(
        &self,
        batch: &mut Batch<'_>,
        room_id: &RoomId,
        session: &OutboundSession,
        devices: &[(Device, Refusal)],
    ) -> Result<(), MachineError> {
        const TOLD: &str = "refused devices were told of session";
        let mut told: BTreeMap<String, String> = batch
            .get(Table::Meta, TOLD, room_id.as_str())
            .await?
            .unwrap_or_default();
        let mut messages = Messages::new();
        for (device, refusal) in devices {
            let session_id = session.megolm.session_id();
            let id = share_id(&device.user_id, &device.device_id);
            if told.insert(id, session_id.clone()).as_ref() == Some(&session_id) {
                continue;
            }
            let content = json!({
                "algorithm": MEGOLM,
                "code": refusal.code(),
                "reason": refusal.reason(),
                "room_id": room_id,
                "sender_key": self.curve25519_key().to_base64(),
                "session_id": session_id,
            });
            let user = messages.entry(device.user_id.clone()).or_default();
            user.insert(device.device_id.clone(), content);
        }
        if messages.is_empty() {
            return Ok(());
        }
        batch.put(Table::Meta, TOLD, room_id.as_str(), &told)?;
        self.queue("m.room_key.withheld", messages, Purpose::Other, batch)
            .await
    }

    /// Tells devices, once until a session is made, that there is no way to reach them.
    pub(crate) async fn tell_unreachable(
        &self,
        batch: &mut Batch<'_>,
        devices: &[Device],
    ) -> Result<(), MachineError> {
        let mut messages = Messages::new();
        for device in devices.iter().filter(|device| !device.told_no_olm) {
            let content = json!({
                "algorithm": MEGOLM,
                "code": "m.no_olm",
                "reason": "No secure channel could be established.",
                "sender_key": self.curve25519_key().to_base64(),
            });
            let user = messages.entry(device.user_id.clone()).or_default();
            user.insert(device.device_id.clone(), content);
            let mut device = device.clone();
            device.told_no_olm = true;
            device.save(batch)?;
        }
        self.queue("m.room_key.withheld", messages, Purpose::Other, batch)
            .await
    }
}

#[derive(Deserialize)]
struct WithheldContent {
    code: WithheldCode,
    room_id: Option<OwnedRoomId>,
    session_id: Option<String>,
}

/// Keeps the reason why we do not get a key. It came in the clear, so it explains and no more.
pub(crate) fn take_withheld(
    batch: &mut Batch<'_>,
    sender: &UserId,
    content: &Map<String, Value>,
) -> Result<Result<(), RejectedMessage>, StoreError> {
    let content: Result<WithheldContent, _> =
        serde_json::from_value(Value::Object(content.clone()));
    let Ok(content) = content else {
        return Ok(Err(RejectedMessage::Malformed));
    };
    if let (Some(room_id), Some(session_id)) = (content.room_id, content.session_id) {
        let partition = session_partition(&room_id, &session_id);
        batch.put(Table::Withheld, &partition, sender.as_str(), &content.code)?;
    }
    Ok(Ok(()))
}
