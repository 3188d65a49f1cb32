//! Time as an argument: the server asks a [`Clock`], and a test moves it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use ruma::{MilliSecondsSinceUnixEpoch, UInt};

/// What time it is.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// The system's time, moved by this many milliseconds.
    Moved(Arc<AtomicI64>),
}

impl Clock {
    /// The clock of the machine.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that runs with that of the machine until somebody moves it.
    #[must_use]
    pub fn movable() -> Self {
        Self(Source::Moved(Arc::default()))
    }

    /// Moves the clock, and all its clones, by this many milliseconds. Without effect on the system's.
    pub fn advance(&self, milliseconds: i64) {
        if let Source::Moved(by) = &self.0 {
            by.fetch_add(milliseconds, Ordering::Relaxed);
        }
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> MilliSecondsSinceUnixEpoch {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that asks the machine"
        )]
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            });
        let by = match &self.0 {
            Source::System => 0,
            Source::Moved(by) => by.load(Ordering::Relaxed),
        };
        MilliSecondsSinceUnixEpoch(UInt::try_from((now + by).max(0)).unwrap_or(UInt::MAX))
    }
}
