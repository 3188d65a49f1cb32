//! Users whose devices get keys though nothing vouches for them: bots and bridges that know no
//! cross-signing.

use ruma::{OwnedUserId, UserId};

use super::{
    decrypt,
    devices::{self, Device},
    error::MachineError,
    identity::Identity,
    machine::Machine,
    trust::{SenderData, SenderTrust, TrustRequirement},
};
use crate::store::{Batch, StoreError, Table};

/// What counts of a user when keys are shared.
pub(crate) struct Standing {
    identity: Option<Identity>,
    excepted: bool,
}

impl Standing {
    pub(crate) async fn load(batch: &Batch<'_>, user_id: &UserId) -> Result<Self, StoreError> {
        let identity = Identity::load(batch, user_id).await?;
        // Whoever was seen to have an identity once has one for ever, whatever the server shows now.
        let excepted = identity.is_none() && is_listed(batch, user_id).await?;
        Ok(Self { identity, excepted })
    }

    /// The identity of the user, if it vouches for the device.
    pub(crate) fn vouching_for(&self, device: &Device) -> Option<&Identity> {
        self.identity
            .as_ref()
            .filter(|identity| identity.vouches_for(device))
    }

    /// Whether the devices of the user do with nobody to vouch for them.
    pub(crate) fn is_excepted(&self) -> bool {
        self.excepted
    }
}

async fn is_listed(batch: &Batch<'_>, user_id: &UserId) -> Result<bool, StoreError> {
    let row = batch.bytes(Table::UnsignedAllowed, "", user_id.as_str());
    Ok(row.await?.is_some())
}

/// Whether what somebody sent is shown: the sender is trusted enough, or is excepted and has the device in
/// the list. Where only verified people count there are no exceptions.
pub(crate) async fn is_heard(
    batch: &Batch<'_>,
    sender: &SenderData,
    requirement: TrustRequirement,
) -> Result<bool, StoreError> {
    if requirement.is_met_by(sender.trust) {
        return Ok(true);
    }
    if sender.trust != SenderTrust::UnsignedDevice || requirement == TrustRequirement::Verified {
        return Ok(false);
    }
    let standing = Standing::load(batch, &sender.user_id).await?;
    Ok(standing.is_excepted())
}

impl Machine {
    /// Makes an exception for a user who has no cross-signing identity, as many bots and bridges: with
    /// [`SharePolicy::SignedDevicesOnly`](super::SharePolicy::SignedDevicesOnly) their devices get keys
    /// all the same, and what these send is shown. Stored; there are no exceptions unless this is called.
    ///
    /// What it gives up: nobody vouches for these devices, so the servers of this user and of ours can
    /// add one, and it reads what is sent from then on in every room where the user is, and speaks for
    /// the user there. Make it for programs, not for people.
    ///
    /// What it does not give up:
    /// - It counts only while no identity of the user has ever been seen. From the first on, devices
    ///   that it does not vouch for get nothing, also if the server hides it again.
    /// - [`SenderData`] tells the truth: the devices stay unsigned, with their
    ///   [`Shield`](super::Shield).
    /// - Devices that were blocked stay so. Neither does it count with
    ///   [`SharePolicy::VerifiedOnly`](super::SharePolicy::VerifiedOnly) or
    ///   [`TrustRequirement::Verified`], for the history of rooms, nor for secrets.
    ///
    /// Returns whether the exception was made: not for the own user, nor for one who has an identity.
    pub async fn allow_unsigned_devices(&self, user_id: &UserId) -> Result<bool, MachineError> {
        let mut volatile = self.lock().await?;
        let mut batch = self.batch();
        let identity = Identity::load(&batch, user_id).await?;
        if user_id == self.user_id() || identity.is_some() {
            return Ok(false);
        }
        batch.put(Table::UnsignedAllowed, "", user_id.as_str(), &true)?;
        for device in devices::load_devices(&batch, user_id).await? {
            decrypt::release_held(&mut batch, &device.curve25519).await?;
        }
        volatile.devices_changed();
        batch.commit().await?;
        self.note_import(&mut volatile, 1);
        Ok(true)
    }

    /// Takes an exception back. Keys that these devices have are replaced before the next message.
    pub async fn forbid_unsigned_devices(&self, user_id: &UserId) -> Result<(), MachineError> {
        let mut volatile = self.lock().await?;
        volatile.devices_changed();
        let mut batch = self.batch();
        batch.delete(Table::UnsignedAllowed, "", user_id.as_str());
        Ok(batch.commit().await?)
    }

    /// The users for whom [`Machine::allow_unsigned_devices`] made an exception, also those for whom it
    /// counts no more because they have an identity now.
    pub async fn unsigned_devices_allowed(&self) -> Result<Vec<OwnedUserId>, MachineError> {
        let rows: Vec<(String, bool)> = self.batch().list(Table::UnsignedAllowed, "").await?;
        let ids = rows.into_iter().filter_map(|(id, _)| id.try_into().ok());
        Ok(ids.collect())
    }
}
