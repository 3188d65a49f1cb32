//! How a store in a file is opened.

use std::{fmt, path::PathBuf};

use super::{SealKey, SqliteStore, StoreError};
use crate::crypto::Secret;

/// How the rows of a store are sealed.
#[derive(Clone)]
pub(super) enum Opening {
    Plain,
    Key(SealKey),
    Passphrase(Secret),
}

/// Who may have a store open at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    Alone,
    Turns,
    /// Everybody, without care.
    #[cfg(test)]
    Careless,
}

/// How a [`SqliteStore`] is opened.
#[derive(Clone)]
pub struct SqliteOptions {
    pub(super) path: PathBuf,
    pub(super) opening: Opening,
    pub(super) sharing: Sharing,
}

impl fmt::Debug for SqliteOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SqliteOptions")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl SqliteOptions {
    /// The file at `path`, unsealed, for one process at a time.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            opening: Opening::Plain,
            sharing: Sharing::Alone,
        }
    }

    /// As [`SqliteStore::open_sealed`].
    #[must_use]
    pub fn sealed(mut self, key: &SealKey) -> Self {
        self.opening = Opening::Key(key.clone());
        self
    }

    /// As [`SqliteStore::open_with_passphrase`].
    #[must_use]
    pub fn passphrase(mut self, passphrase: &Secret) -> Self {
        self.opening = Opening::Passphrase(passphrase.clone());
        self
    }

    /// Lets several processes have the store open, as an app and the extension that shows its
    /// notifications. All have to open it so; while one has, nobody can open it for itself alone.
    ///
    /// Each operation that reads and then writes is alone in the store, and begins with a lock on a
    /// file and a look at whose turn was the last. Whenever it was another's, what this process
    /// remembers is forgotten. A process that dies in its turn takes nothing from the others; where one
    /// does not come to an end, the others get [`StoreError::InUse`] after ten seconds.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.sharing = Sharing::Turns;
        self
    }

    /// As [`Self::shared`], but nobody waits for a turn: what that is good for, without it.
    #[cfg(test)]
    pub(crate) fn careless(mut self) -> Self {
        self.sharing = Sharing::Careless;
        self
    }

    /// Opens or creates the file.
    pub async fn open(self) -> Result<SqliteStore, StoreError> {
        SqliteStore::open_with(self).await
    }
}
