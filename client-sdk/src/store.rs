//! Where a client keeps what must survive: keys, sessions, the sync position, rooms.
//!
//! The contract is small on purpose. A store maps (table, partition, id) to bytes, lists a
//! partition, and applies a set of [`Changes`] completely or not at all. Everything that the SDK
//! promises about crashes follows from that last sentence: a decrypted message, the ratchet that
//! decrypted it and the sync token that brought it are one commit. What has to be alone between what it
//! reads and what it writes begins with [`Store::enter`].

mod batch;
mod memory;
mod passphrase;
mod remembered;
mod seal;
mod sqlite;
#[cfg(test)]
mod suite;
mod turns;
mod visit;

use std::{collections::BTreeMap, fmt};

use futures_util::future::{BoxFuture, ready};
use zeroize::Zeroizing;

pub(crate) use self::batch::{Batch, decode};
pub use self::{
    memory::MemoryStore,
    seal::SealKey,
    sqlite::{SqliteOptions, SqliteStore},
    visit::Visit,
};

/// The kinds of things that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Table {
    /// The session of the client and other single values.
    Meta,
    /// The Olm account: one row.
    Account,
    /// Olm sessions, partitioned by the other side's Curve25519 key.
    OlmSessions,
    /// Hashes of the Olm messages that were decrypted last, by sender key.
    OlmReplays,
    /// Devices whose Olm session is broken and has to be replaced.
    WedgedDevices,
    /// Inbound Megolm sessions, partitioned by room and session id.
    InboundSessions,
    /// Sessions with events that are not shown because of their sender's device, partitioned by
    /// the device's Curve25519 key.
    Held,
    /// The names of all inbound Megolm sessions, with the backup version that has them.
    SessionNames,
    /// The current outbound Megolm session of each room.
    OutboundSessions,
    /// Who has got an outbound session from which index, partitioned by room and session id.
    OutboundShares,
    /// Which event used which message index, partitioned by room and session id.
    MessageIndices,
    /// Notes of others that they will not give us a key, partitioned by room and session id.
    Withheld,
    /// Known devices, partitioned by user.
    Devices,
    /// The identities of users.
    Identities,
    /// Users whose devices get keys though nothing vouches for them.
    UnsignedAllowed,
    /// Private keys of the own identity and other secrets.
    Secrets,
    /// Bundles of room keys that users offer, partitioned by room.
    KeyBundles,
    /// Requests for secrets: those that were sent, and those that wait for an answer.
    SecretRequests,
    /// Signatures that wait to be uploaded.
    SignatureUploads,
    /// Users whose device lists are followed.
    TrackedUsers,
    /// The encryption settings of rooms. Rows are never removed.
    EncryptedRooms,
    /// To-device messages that wait to be sent.
    Outbox,
    /// Decrypted to-device messages that wait to be handed to the application.
    Inbox,
    /// Rooms.
    Rooms,
    /// Members of rooms, partitioned by room.
    Members,
    /// Members who are wanted in a room, as far as we know, partitioned by room.
    Roster,
    /// The part of a sync response that the application has not consumed yet.
    PendingSync,
    /// Events that could not be decrypted yet, partitioned by room and session id.
    Undecryptable,
}

impl Table {
    /// The name under which the table is kept on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Account => "account",
            Self::OlmSessions => "olm_sessions",
            Self::OlmReplays => "olm_replays",
            Self::WedgedDevices => "wedged_devices",
            Self::InboundSessions => "inbound_sessions",
            Self::Held => "held",
            Self::SessionNames => "session_names",
            Self::OutboundSessions => "outbound_sessions",
            Self::OutboundShares => "outbound_shares",
            Self::MessageIndices => "message_indices",
            Self::Withheld => "withheld",
            Self::Devices => "devices",
            Self::Identities => "identities",
            Self::UnsignedAllowed => "unsigned_allowed",
            Self::Secrets => "secrets",
            Self::KeyBundles => "key_bundles",
            Self::SecretRequests => "secret_requests",
            Self::SignatureUploads => "signature_uploads",
            Self::TrackedUsers => "tracked_users",
            Self::EncryptedRooms => "encrypted_rooms",
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
            Self::Rooms => "rooms",
            Self::Members => "members",
            Self::Roster => "roster",
            Self::PendingSync => "pending_sync",
            Self::Undecryptable => "undecryptable",
        }
    }
}

/// The name of one stored value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The kind of thing.
    pub table: Table,
    /// What the thing belongs to; empty if the table is not partitioned.
    pub partition: String,
    /// The thing itself; empty if a partition has a single row.
    pub id: String,
}

impl Key {
    /// Names a value.
    pub fn new(table: Table, partition: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            table,
            partition: partition.into(),
            id: id.into(),
        }
    }
}

/// Bytes of a stored value, wiped when they are dropped.
pub type Value = Zeroizing<Vec<u8>>;

/// Writes and deletions that are applied together.
#[derive(Clone, Default)]
pub struct Changes(BTreeMap<Key, Option<Value>>);

impl Changes {
    /// Writes a value, replacing what was there.
    pub fn put(&mut self, key: Key, value: Value) {
        self.0.insert(key, Some(value));
    }

    /// Deletes a value.
    pub fn delete(&mut self, key: Key) {
        self.0.insert(key, None);
    }

    /// Adds the changes of `other`, which win where both change the same key.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether there is nothing to apply.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What these changes say about `key`: `None` if nothing, `Some(None)` if it is deleted.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Option<&Value>> {
        self.0.get(key).map(Option::as_ref)
    }

    /// The changes of one partition, ordered by id.
    pub(crate) fn of_partition<'a>(
        &'a self,
        table: Table,
        partition: &'a str,
    ) -> impl Iterator<Item = (&'a str, Option<&'a Value>)> {
        let first = Key::new(table, partition, "");
        self.0
            .range(first..)
            .take_while(move |(key, _)| key.table == table && key.partition == partition)
            .map(|(key, value)| (key.id.as_str(), value.as_ref()))
    }

    /// All changes, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, Option<&Value>)> {
        self.0.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// All changes, ordered by key.
    pub fn into_entries(self) -> impl Iterator<Item = (Key, Option<Value>)> {
        self.0.into_iter()
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Changes")
            .field(&self.0.len())
            .finish()
    }
}

/// The contract of all stores. One suite of tests runs against each of them.
pub trait Store: Send + Sync + 'static {
    /// Reads one value.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Value>, StoreError>>;

    /// Reads all values of a partition, with their ids, ordered by id.
    fn list<'a>(
        &'a self,
        table: Table,
        partition: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(String, Value)>, StoreError>>;

    /// Applies all changes or none. When it returns `Ok`, they are durable.
    fn commit(&self, changes: Changes) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Comes in for an operation that reads and then writes. A store that several processes use at the
    /// same time lets one in at a time; one that is used alone has nothing to do.
    fn enter(&self) -> BoxFuture<'_, Result<Visit, StoreError>> {
        Box::pin(ready(Ok(Visit::alone())))
    }
}

/// Why a store could not answer.
///
/// No variant carries a stored value or the text of a parser, as both may quote secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database failed.
    #[error("the client's database failed")]
    Database(#[from] sqlx::Error),
    /// A row does not have the shape that this version writes.
    #[error("a row of the table {} cannot be read", table.name())]
    Corrupt {
        /// The table it is in.
        table: Table,
    },
    /// A row does not authenticate: wrong key, or it was changed or moved.
    #[error("a row of the table {} is not authentic", table.name())]
    NotAuthentic {
        /// The table it is in.
        table: Table,
    },
    /// The key given does not open this store.
    #[error("the key does not open this store, or the store is not sealed with a key")]
    WrongKey,
    /// Another program, or another client of this one, has the store open. Two that used it at once
    /// would encrypt two messages with one key. Or all of them [share](SqliteOptions::shared) it, and
    /// one does not come to an end.
    #[error("the store is in use by another program")]
    InUse,
    /// The lock of the store cannot be taken.
    #[error("the store cannot be locked")]
    Lock(#[source] std::io::Error),
    /// A value cannot be encoded.
    #[error("a value for the table {} cannot be encoded", table.name())]
    Encode {
        /// The table it is meant for.
        table: Table,
    },
    /// No randomness for a nonce.
    #[error(transparent)]
    Randomness(#[from] crate::environment::RandomnessError),
}
