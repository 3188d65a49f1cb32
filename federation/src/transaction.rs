//! Transactions: what is sent together, and when to try again.

use std::time::Duration;

/// The most PDUs and EDUs in one transaction
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#transactions)).
pub const MAX_PDUS: usize = 50;
/// See [`MAX_PDUS`].
pub const MAX_EDUS: usize = 100;

/// How many of the waiting PDUs and EDUs go into the next transaction, oldest first.
#[must_use]
pub fn next_batch(pdus: usize, edus: usize) -> Batch {
    Batch {
        pdus: pdus.min(MAX_PDUS),
        edus: edus.min(MAX_EDUS),
    }
}

/// The size of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many PDUs.
    pub pdus: usize,
    /// How many EDUs.
    pub edus: usize,
}

impl Batch {
    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.pdus == 0 && self.edus == 0
    }
}

/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_hours(6);

/// How often a destination failed in a row, and so how long to leave it alone.
///
/// The pause doubles from five seconds to six hours. Whatever comes from the destination itself
/// shows that it is back, and calls for [`Backoff::recovered`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After this many failures in a row.
    #[must_use]
    pub fn after(failures: u32) -> Self {
        Self { failures }
    }

    /// How often the destination failed in a row.
    #[must_use]
    pub fn failures(self) -> u32 {
        self.failures
    }

    /// After one more failure.
    #[must_use]
    pub fn failed(self) -> Self {
        Self {
            failures: self.failures.saturating_add(1),
        }
    }

    /// After a success, or a sign of life.
    #[must_use]
    pub fn recovered(self) -> Self {
        Self::default()
    }

    /// How long to wait from the last failure on.
    ///
    /// `spread` is a random number: pauses are shortened by up to a quarter, lest all servers that
    /// lost one come back to it at the same moment.
    #[must_use]
    pub fn pause(self, spread: u8) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let pause = FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(LONGEST_PAUSE);
        pause.saturating_sub(pause * u32::from(spread) / (4 * u32::from(u8::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_bounded() {
        assert_eq!(next_batch(0, 0), Batch { pdus: 0, edus: 0 });
        assert!(next_batch(0, 0).is_empty());
        assert_eq!(
            next_batch(50, 100),
            Batch {
                pdus: 50,
                edus: 100
            }
        );
        assert_eq!(
            next_batch(51, 101),
            Batch {
                pdus: 50,
                edus: 100
            }
        );
        assert!(!next_batch(0, 1).is_empty());
    }

    #[test]
    fn pauses_double_up_to_six_hours_and_end_with_a_success() {
        let seconds = |failures| Backoff::after(failures).pause(0).as_secs();
        assert_eq!([0, 1, 2, 3, 10].map(seconds), [0, 5, 10, 20, 2560]);
        assert_eq!(
            [13, 14, 40, u32::MAX].map(seconds),
            [20480, 21600, 21600, 21600]
        );
        let backoff = Backoff::default().failed().failed();
        assert_eq!(backoff.failures(), 2);
        assert_eq!(backoff.recovered().pause(0), Duration::ZERO);
    }

    #[test]
    fn pauses_are_spread_over_a_quarter() {
        let backoff = Backoff::after(u32::MAX);
        assert_eq!(backoff.pause(u8::MAX), LONGEST_PAUSE * 3 / 4);
        assert!((0..=u8::MAX).all(|spread| backoff.pause(spread) >= LONGEST_PAUSE * 3 / 4));
    }
}
