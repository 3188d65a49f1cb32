//! What a user's presence is at a moment: pure.

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, presence::PresenceState};

/// After this time without a request a device is gone, in milliseconds.
pub(super) const GONE_AFTER: u64 = 30_000;
/// After this time without doing anything a user is not available.
pub(super) const IDLE_AFTER: u64 = 5 * 60_000;
/// For this time after doing something a user is active.
const ACTIVE_FOR: u64 = 60_000;
/// After this time without a word from their server remote users are offline.
pub(super) const SILENT_AFTER: u64 = 30 * 60_000;

/// What is told of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) presence: PresenceState,
    /// What the user shows beside it.
    pub(crate) message: Option<String>,
    /// When the user last did something, in milliseconds since the Unix epoch.
    pub(crate) last_active: Option<u64>,
    pub(crate) currently_active: bool,
}

impl Status {
    /// Of one of whom nothing is known.
    pub(crate) fn offline() -> Self {
        Self {
            presence: PresenceState::Offline,
            message: None,
            last_active: None,
            currently_active: false,
        }
    }
}

/// A local user.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    devices: BTreeMap<OwnedDeviceId, Device>,
    message: Option<String>,
    last_active: Option<u64>,
}

#[derive(Clone, Debug)]
struct Device {
    /// What the device says that the user is.
    says: PresenceState,
    /// When it last asked for something.
    seen: u64,
    /// How many of its requests wait for news.
    waiting: u32,
}

impl Device {
    fn is_there(&self, now: u64) -> bool {
        self.waiting > 0 || now < self.seen + GONE_AFTER
    }
}

impl Local {
    /// A device says what the user is.
    pub(super) fn says(&mut self, device_id: OwnedDeviceId, presence: PresenceState, now: u64) {
        let comes = presence == PresenceState::Online;
        let device = self.devices.get_mut(&device_id);
        let was = device
            .as_ref()
            .is_some_and(|device| device.is_there(now) && device.says == PresenceState::Online);
        if let Some(device) = device {
            (device.says, device.seen) = (presence, now);
        } else {
            let device = Device {
                says: presence,
                seen: now,
                waiting: 0,
            };
            self.devices.insert(device_id, device);
        }
        // To come back is to do something; to go on waiting for news is not.
        if comes && !was {
            self.last_active = Some(now);
        }
    }

    /// The message that the user shows.
    pub(super) fn set_message(&mut self, message: Option<String>) {
        self.message = message;
    }

    /// The user does something.
    pub(super) fn acts(&mut self, now: u64) {
        self.last_active = Some(now);
    }

    /// A request of a device begins to wait.
    pub(super) fn waits(&mut self, device_id: &OwnedDeviceId) {
        if let Some(device) = self.devices.get_mut(device_id) {
            device.waiting += 1;
        }
    }

    /// A request of a device waits no longer.
    pub(super) fn waited(&mut self, device_id: &OwnedDeviceId, now: u64) {
        if let Some(device) = self.devices.get_mut(device_id) {
            device.waiting = device.waiting.saturating_sub(1);
            device.seen = now;
        }
    }

    /// Forgets the devices that are gone.
    pub(super) fn tidy(&mut self, now: u64) {
        self.devices.retain(|_, device| device.is_there(now));
    }

    pub(super) fn status(&self, now: u64) -> Status {
        let there = self.devices.values().filter(|device| device.is_there(now));
        let best = there
            .map(|device| &device.says)
            .max_by_key(|says| rank(says));
        let active = |within| self.last_active.is_some_and(|last| now < last + within);
        let presence = match best {
            Some(PresenceState::Online) if !active(IDLE_AFTER) => PresenceState::Unavailable,
            Some(says) => says.clone(),
            None => PresenceState::Offline,
        };
        Status {
            currently_active: presence == PresenceState::Online && active(ACTIVE_FOR),
            presence,
            message: self.message.clone(),
            last_active: self.last_active,
        }
    }

    /// When the presence may change by itself.
    pub(super) fn due(&self, now: u64) -> Option<u64> {
        let idle = self.last_active.map(|last| last + IDLE_AFTER);
        let gone = self
            .devices
            .values()
            .filter(|device| device.waiting == 0)
            .map(|device| device.seen + GONE_AFTER);
        gone.chain(idle).filter(|due| *due > now).min()
    }
}

/// A user of another server, as that server says.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) status: Status,
    pub(super) heard: u64,
}

impl Remote {
    pub(super) fn status(&self, now: u64) -> Status {
        if now < self.heard + SILENT_AFTER {
            self.status.clone()
        } else {
            Status::offline()
        }
    }
}

fn rank(presence: &PresenceState) -> u8 {
    match presence {
        PresenceState::Online => 2,
        PresenceState::Unavailable => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use PresenceState::{Offline, Online, Unavailable};

    use super::*;

    fn is(local: &Local, now: u64) -> PresenceState {
        local.status(now).presence
    }

    #[test]
    fn who_stays_away_goes_offline() {
        let mut local = Local::default();
        assert_eq!(is(&local, 0), Offline);
        local.says("A".into(), Online, 1_000);
        assert_eq!(is(&local, 1_000), Online);
        assert_eq!(local.due(1_000), Some(1_000 + GONE_AFTER));
        assert_eq!(is(&local, 1_000 + GONE_AFTER), Offline);
    }

    #[test]
    fn who_waits_for_news_and_does_nothing_is_idle() {
        let mut local = Local::default();
        local.says("A".into(), Online, 0);
        local.waits(&"A".into());
        assert_eq!(local.due(0), Some(IDLE_AFTER));
        assert_eq!(is(&local, IDLE_AFTER - 1), Online);
        assert_eq!(is(&local, IDLE_AFTER), Unavailable);
        // To ask again is nothing new, to act is.
        local.waited(&"A".into(), IDLE_AFTER);
        local.says("A".into(), Online, IDLE_AFTER);
        assert_eq!(is(&local, IDLE_AFTER), Unavailable);
        local.acts(IDLE_AFTER);
        assert_eq!(is(&local, IDLE_AFTER), Online);
    }

    #[test]
    fn the_best_of_the_devices_counts() {
        let mut local = Local::default();
        local.says("A".into(), Unavailable, 0);
        assert_eq!(is(&local, 0), Unavailable);
        local.says("B".into(), Online, 20_000);
        assert_eq!(is(&local, 20_000), Online);
        local.says("B".into(), Offline, 21_000);
        assert_eq!(is(&local, 21_000), Unavailable);
        local.tidy(GONE_AFTER);
        assert_eq!(is(&local, GONE_AFTER), Offline);
    }

    #[test]
    fn activity_is_recent() {
        let mut local = Local::default();
        local.says("A".into(), Online, 0);
        assert!(local.status(ACTIVE_FOR / 3).currently_active);
        local.waits(&"A".into());
        assert!(!local.status(ACTIVE_FOR).currently_active);
    }
}
