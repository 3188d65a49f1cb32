//! How long one room key is used.
//!
//! A room may say so itself, within bounds. In a conversation of two a new key costs next to nothing, so
//! there it is used for a day: whoever gets hold of a device's keys reads less of what was said before.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#mroomencryption>

use std::time::Duration;

use ruma::RoomId;

use super::{error::MachineError, machine::Machine, outbound::RoomEncryption};
use crate::store::{Batch, StoreError};

pub(crate) const HOUR_MS: u64 = 60 * 60 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The longest that any key is used.
pub(crate) const WEEK_MS: u64 = 7 * DAY_MS;

/// The longest that a key of a conversation of two is used, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirectRotation(u64);

impl Default for DirectRotation {
    fn default() -> Self {
        Self(DAY_MS)
    }
}

impl From<Duration> for DirectRotation {
    fn from(period: Duration) -> Self {
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        Self(period.clamp(HOUR_MS, WEEK_MS))
    }
}

impl Machine {
    /// How long a key of a conversation of two is used at most.
    #[must_use]
    pub fn direct_rotation(&self) -> Duration {
        Duration::from_millis(self.settings().direct_rotation.0)
    }

    /// Decides how long a key of a conversation of two is used at most: an hour at least, a week at
    /// most, a day if not called. What such a room says itself counts if it is shorter. Not stored.
    pub fn set_direct_rotation(&self, period: Duration) {
        self.with_settings(|settings| settings.direct_rotation = period.into());
    }

    /// Takes note whether an encrypted room is a conversation of two. Stored; nothing, if the room
    /// is not encrypted.
    pub async fn set_direct(&self, room_id: &RoomId, direct: bool) -> Result<(), MachineError> {
        let _guard = self.lock().await?;
        let mut batch = self.batch();
        if let Some(mut known) = RoomEncryption::load(&batch, room_id).await?
            && known.direct != direct
        {
            known.direct = direct;
            known.save(&mut batch, room_id)?;
        }
        Ok(batch.commit().await?)
    }

    /// The encryption of a room, with the period for which its keys are used by this device.
    pub(crate) async fn encryption_of(
        &self,
        batch: &Batch<'_>,
        room_id: &RoomId,
    ) -> Result<Option<RoomEncryption>, StoreError> {
        let mut encryption = RoomEncryption::load(batch, room_id).await?;
        if let Some(direct) = encryption.as_mut().filter(|known| known.direct) {
            let DirectRotation(longest) = self.settings().direct_rotation;
            direct.rotation_period_ms = direct.rotation_period_ms.min(longest);
        }
        Ok(encryption)
    }
}
