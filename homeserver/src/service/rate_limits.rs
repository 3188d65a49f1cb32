//! How often people may ask for things: token buckets, by user or by address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ruma::OwnedUserId;

use crate::{
    clock::Clock,
    config::{Rate, RateLimits as Settings},
};

/// How many buckets are kept. One that is full again says nothing and is forgotten; if there are too many
/// others, those that are nearest to full go.
const CAPACITY: usize = 50_000;

/// What people ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Login,
    Password,
    Registration,
    Verification,
    Message,
    Join,
    Invite,
    Report,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    User(OwnedUserId),
    Address(IpAddr),
}

/// Counts. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RateLimits {
    settings: Arc<Settings>,
    clock: Clock,
    buckets: Arc<Mutex<HashMap<(Action, Asker), Bucket>>>,
}

/// A bucket, as it was when somebody took of it.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: u64,
}

/// Too often; try again then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests")]
pub(crate) struct TooOften {
    pub(crate) retry_after: Duration,
}

impl RateLimits {
    pub(crate) fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings: Arc::new(settings),
            clock,
            buckets: Arc::default(),
        }
    }

    /// Takes one request, or says how long to wait.
    pub(crate) fn take(&self, action: Action, asker: Asker) -> Result<(), TooOften> {
        if !self.settings.enabled {
            return Ok(());
        }
        let rate = self.rate(action);
        let now = u64::from(self.clock.now().0);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CAPACITY {
            self.make_room(&mut buckets, now);
        }
        let bucket = buckets.entry((action, asker)).or_insert(Bucket {
            left: f64::from(rate.burst),
            at: now,
        });
        *bucket = bucket.filled(rate, now);
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - bucket.left) / rate.per_second.max(1e-6);
        // A whole second more than none, so that a header in seconds says the truth as well.
        let retry_after = Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0).ceil());
        Err(TooOften { retry_after })
    }

    /// Gives back what was taken for something that turned out to be fine.
    pub(crate) fn give_back(&self, action: Action, asker: Asker) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&(action, asker)) {
            bucket.left = (bucket.left + 1.0).min(f64::from(self.rate(action).burst));
        }
    }

    fn make_room(&self, buckets: &mut HashMap<(Action, Asker), Bucket>, now: u64) {
        buckets.retain(|(action, _), bucket| {
            let rate = self.rate(*action);
            bucket.filled(rate, now).left < f64::from(rate.burst)
        });
        if buckets.len() < CAPACITY {
            return;
        }
        // Those that are at most half empty; if everybody asks too often, all but them stay.
        buckets.retain(|(action, _), bucket| {
            let rate = self.rate(*action);
            bucket.filled(rate, now).left < f64::from(rate.burst) / 2.0
        });
        if buckets.len() >= CAPACITY {
            buckets.clear();
        }
    }

    fn rate(&self, action: Action) -> Rate {
        match action {
            Action::Login => self.settings.login,
            Action::Password => self.settings.password,
            Action::Registration => self.settings.registration,
            Action::Verification => self.settings.verification,
            Action::Message => self.settings.messages,
            Action::Join => self.settings.joins,
            Action::Invite => self.settings.invites,
            Action::Report => self.settings.reports,
        }
    }
}

impl Bucket {
    fn filled(self, rate: Rate, now: u64) -> Self {
        let since = Duration::from_millis(now.saturating_sub(self.at)).as_secs_f64();
        Self {
            left: (self.left + since * rate.per_second).min(f64::from(rate.burst)),
            at: now.max(self.at),
        }
    }
}

impl Asker {
    /// Somebody at an address. Whoever has one address of IPv6 has the whole network of it.
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                IpAddr::V6(network.into())
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn limits(settings: Settings) -> (RateLimits, Clock) {
        let clock = Clock::movable();
        (RateLimits::new(settings, clock.clone()), clock)
    }

    fn address(text: &str) -> Asker {
        Asker::at(text.parse().unwrap())
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let settings = Settings {
            login: Rate {
                per_second: 0.01,
                burst: 3,
            },
            ..Settings::default()
        };
        let (limits, clock) = limits(settings);
        let one = || address("192.0.2.1");
        for _ in 0..3 {
            limits.take(Action::Login, one()).unwrap();
        }
        let refused = limits.take(Action::Login, one()).unwrap_err();
        assert!((99..=100).contains(&refused.retry_after.as_secs()));
        // Others, and other things, are not touched.
        limits.take(Action::Login, address("192.0.2.2")).unwrap();
        limits.take(Action::Registration, one()).unwrap();
        clock.advance(100_000);
        limits.take(Action::Login, one()).unwrap();
        limits.take(Action::Login, one()).unwrap_err();
        limits.give_back(Action::Login, one());
        limits.take(Action::Login, one()).unwrap();
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }

    #[test]
    fn memory_is_bounded() {
        let (limits, _clock) = limits(Settings::default());
        for n in 0..(u32::try_from(CAPACITY).unwrap() * 2) {
            limits
                .take(Action::Login, Asker::at(IpAddr::V4(n.into())))
                .unwrap();
        }
        assert!(limits.buckets.lock().unwrap().len() <= CAPACITY);
    }

    #[test]
    fn limits_can_be_switched_off() {
        let settings = Settings {
            enabled: false,
            ..Settings::default()
        };
        let (limits, _clock) = limits(settings);
        for _ in 0..1_000 {
            limits
                .take(Action::Registration, address("192.0.2.1"))
                .unwrap();
        }
    }
}
