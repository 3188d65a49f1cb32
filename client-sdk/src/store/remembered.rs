//! Small partitions that were read or written last, so that they need not be read again.
//!
//! What is here is what the database holds: whoever has a store open is alone with it, or forgets this
//! whenever another had [a turn](super::turns), and what a commit
//! touches is not remembered before the commit has succeeded. A commit that fails, or that nobody waits
//! for any more, leaves nothing behind.

use std::collections::{BTreeMap, HashMap};

use super::{Changes, Table, Value};

/// How many partitions are remembered, and how many rows and bytes each may have: at most 8 MiB in all.
const PARTITIONS: usize = 256;
pub(super) const ROWS: usize = 128;
const BYTES: usize = 32 * 1024;

pub(super) type Rows = BTreeMap<String, Value>;

/// What is known about a partition.
pub(super) enum Known<'a> {
    /// All its rows.
    Rows(&'a Rows),
    /// That it is too big to be remembered.
    Big,
    /// Nothing.
    Nothing,
}

type Name = (Table, String);

struct Entry {
    /// None if they are too many.
    rows: Option<Rows>,
    used: u64,
}

/// Partitions that a commit is about to change.
pub(super) struct Touched(Vec<(Name, Entry)>);

#[derive(Default)]
pub(super) struct Remembered {
    partitions: HashMap<Name, Entry>,
    clock: u64,
}

impl Remembered {
    pub(super) fn find(&mut self, table: Table, partition: &str) -> Known<'_> {
        self.clock += 1;
        match self.partitions.get_mut(&(table, partition.to_owned())) {
            None => Known::Nothing,
            Some(entry) => {
                entry.used = self.clock;
                entry.rows.as_ref().map_or(Known::Big, Known::Rows)
            }
        }
    }

    /// Remembers all rows of a partition, or that they are too many.
    pub(super) fn learn(&mut self, table: Table, partition: &str, rows: Option<Rows>) {
        self.clock += 1;
        let used = self.clock;
        self.insert((table, partition.to_owned()), Entry { rows, used });
    }

    /// Forgets what the changes touch, until they are committed.
    pub(super) fn touch(&mut self, changes: &Changes) -> Touched {
        let mut touched = Vec::new();
        for (key, _) in changes.iter() {
            let name = (key.table, key.partition.clone());
            touched.extend(self.partitions.remove_entry(&name));
        }
        Touched(touched)
    }

    /// Remembers what was touched as it is after the changes.
    pub(super) fn committed(&mut self, touched: Touched, changes: &Changes) {
        for ((table, partition), mut entry) in touched.0 {
            if let Some(rows) = &mut entry.rows {
                for (id, value) in changes.of_partition(table, &partition) {
                    match value {
                        Some(value) => rows.insert(id.to_owned(), value.clone()),
                        None => rows.remove(id),
                    };
                }
            }
            self.insert((table, partition), entry);
        }
    }

    fn insert(&mut self, name: Name, mut entry: Entry) {
        entry.rows = entry.rows.filter(fits);
        if self.partitions.len() >= PARTITIONS {
            let oldest = self.partitions.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.partitions.remove(&oldest);
            }
        }
        self.partitions.insert(name, entry);
    }
}

fn fits(rows: &Rows) -> bool {
    let bytes: usize = rows.iter().map(|(id, value)| id.len() + value.len()).sum();
    rows.len() <= ROWS && bytes <= BYTES
}
