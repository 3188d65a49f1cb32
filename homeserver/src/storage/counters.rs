//! Numbers that are never given out twice, also not after a crash.
//!
//! They are counted in memory and reserved in the database in blocks: what a number was used for and the
//! reservation that covers it are committed together, and a restart goes on after the reservation.

use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::AnyConnection;

use super::{StorageError, log::StreamPosition, state_map::EventNid};

/// How many numbers a reservation adds.
const BLOCK: i64 = 10_000;

/// The sequence of the log, and the ids of rows.
#[derive(Debug)]
pub(crate) struct Counters {
    position: Counter,
    nid: Counter,
    /// The place before all others in its room, for events that are fetched from the past; counts down.
    past: Counter,
}

#[derive(Debug)]
struct Counter {
    name: &'static str,
    last: AtomicI64,
    reserved: AtomicI64,
}

impl Counters {
    pub(super) async fn load(connection: &mut AnyConnection) -> Result<Self, StorageError> {
        Ok(Self {
            position: Counter::load("position", connection).await?,
            nid: Counter::load("nid", connection).await?,
            past: Counter::load("past", connection).await?,
        })
    }

    /// The next number for a row (a room, an event); may be taken before its transaction begins.
    pub(crate) fn next_nid(&self) -> EventNid {
        EventNid(self.nid.next())
    }

    /// The next place in the log; only for the writer, inside of a transaction.
    pub(super) fn next_position(&self) -> StreamPosition {
        StreamPosition(self.position.next())
    }

    /// The next place before all events that a room has.
    pub(super) fn next_past(&self) -> i64 {
        -self.past.next()
    }

    /// The earliest place that was given out; the transaction that uses it may not be committed yet.
    pub(crate) fn past(&self) -> i64 {
        -self.past.last.load(Ordering::Acquire)
    }

    /// The last place that was given out.
    pub(super) fn position(&self) -> StreamPosition {
        StreamPosition(self.position.last.load(Ordering::Acquire))
    }

    /// Whether everything given out so far is reserved, and the next place in the log as well.
    pub(super) fn have_reserves(&self) -> bool {
        self.position.reserves(1) && self.nid.reserves(0) && self.past.reserves(0)
    }

    /// After a commit that failed: what it reserved is not reserved.
    pub(super) fn forget_reservations(&self) {
        for counter in [&self.position, &self.nid, &self.past] {
            counter.reserved.store(0, Ordering::Release);
        }
    }

    /// Makes sure, in the transaction that is about to commit, that nothing given out so far can be
    /// given out again.
    pub(super) async fn reserve(&self, connection: &mut AnyConnection) -> Result<(), StorageError> {
        for counter in [&self.position, &self.nid, &self.past] {
            counter.reserve(connection).await?;
        }
        Ok(())
    }
}

impl Counter {
    async fn load(
        name: &'static str,
        connection: &mut AnyConnection,
    ) -> Result<Self, StorageError> {
        let reserved: i64 = sqlx::query_scalar("SELECT reserved FROM counters WHERE name = $1")
            .bind(name)
            .fetch_one(connection)
            .await?;
        Ok(Self {
            name,
            last: reserved.into(),
            reserved: reserved.into(),
        })
    }

    fn next(&self) -> i64 {
        self.last.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether what was given out is reserved, and so many more.
    fn reserves(&self, more: i64) -> bool {
        self.last.load(Ordering::Acquire) + more <= self.reserved.load(Ordering::Acquire)
    }

    async fn reserve(&self, connection: &mut AnyConnection) -> Result<(), StorageError> {
        let last = self.last.load(Ordering::Acquire);
        if last <= self.reserved.load(Ordering::Acquire) {
            return Ok(());
        }
        sqlx::query("UPDATE counters SET reserved = $1 WHERE name = $2")
            .bind(last + BLOCK)
            .bind(self.name)
            .execute(connection)
            .await?;
        // Should the commit fail, `forget_reservations` takes this back.
        self.reserved.store(last + BLOCK, Ordering::Release);
        Ok(())
    }
}
