//! Time and randomness, passed in so that tests can move the clock and repeat a run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ruma::OwnedTransactionId;

/// What the SDK asks of the outside world besides storage and network.
///
/// vodozemac takes its randomness from the operating system itself; this covers what is ours:
/// transaction ids, attachment keys, nonces, and every decision that depends on time.
pub trait Environment: Send + Sync + 'static {
    /// The time that has passed since the Unix epoch.
    fn now(&self) -> Duration;

    /// Fills `bytes` with cryptographically secure randomness.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomnessError>;
}

/// The system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct RandomnessError;

/// The clock and the random source of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that others ask"
    )]
    fn now(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }

    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomnessError> {
        getrandom::fill(bytes).map_err(|_| RandomnessError)
    }
}

/// Milliseconds since the Unix epoch, as they are stored.
pub(crate) fn now_ms(environment: &dyn Environment) -> u64 {
    u64::try_from(environment.now().as_millis()).unwrap_or(u64::MAX)
}

/// A fresh transaction id: 128 random bits, so that it is unique across restarts.
pub(crate) fn transaction_id(
    environment: &dyn Environment,
) -> Result<OwnedTransactionId, RandomnessError> {
    let mut bytes = [0_u8; 16];
    environment.fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)).into())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that only moves when told to.
    #[derive(Debug)]
    pub(crate) struct TestEnvironment(AtomicU64);

    impl Default for TestEnvironment {
        fn default() -> Self {
            Self(AtomicU64::new(1_790_000_000_000))
        }
    }

    impl TestEnvironment {
        pub(crate) fn advance(&self, by: Duration) {
            self.0
                .fetch_add(u64::try_from(by.as_millis()).unwrap_or(0), Ordering::SeqCst);
        }
    }

    impl Environment for TestEnvironment {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::SeqCst))
        }

        fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomnessError> {
            SystemEnvironment.fill(bytes)
        }
    }
}
