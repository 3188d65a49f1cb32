//! One-time keys after a restore: how a database that is older than what we handed out is noticed.
//!
//! A one-time key must be handed out once
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys)). A database that
//! was put back from a backup has keys again that others got since. So there is a mark in two places, in the
//! database (the fact `otk_epoch`) and in the file `otk-epoch` beside it: an id that changes at each start,
//! and the number of claims so far. The database changes with the claim; the file after the commit and before
//! the answer. Hence a database that is ours has the id of the file and counts as many claims or more: more
//! after a crash, for claims whose answers never left. With any other, all one-time keys count as handed
//! out, fallback keys as used, and clients upload new ones.
//!
//! At a start both places get a new id, so that a copy that ran elsewhere is not taken for ours either. The
//! file first names both ids, then the database changes, then the file names the new one only: after a crash
//! in between the database has one of the two. Until the last step nothing is handed out.
//!
//! The file is not to be in the backup of the database: where it is missing, keys are dropped as well. A claim
//! does not wait for the disk to have the file: after a power cut it may be some seconds behind, which makes
//! only copies of these last seconds pass.

use std::{
    fs::File,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use sqlx::{AnyConnection, Connection};

use super::{Families, StorageError, writer::Tx};

/// The name of the file in the data directory.
const FILE: &str = "otk-epoch";

/// The mark of the running server.
#[derive(Debug)]
pub(crate) struct OtkEpoch {
    id: String,
    /// The last number that a claim took, whether or not it was committed.
    last: AtomicI64,
    path: PathBuf,
    written: Mutex<Written>,
}

/// What the file says.
#[derive(Debug)]
struct Written {
    file: File,
    claims: i64,
}

/// The number of a claim. Its keys may be handed out after [`OtkEpoch::reached`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClaimNumber(i64);

impl OtkEpoch {
    /// Compares the two marks, drops the keys if the database is not the one that we last wrote, and sets
    /// a new mark.
    pub(super) async fn begin(
        connection: &mut AnyConnection,
        data_dir: &Path,
    ) -> Result<Self, StorageError> {
        let path = data_dir.join(FILE);
        let failed = |error| file_error(&path, error);
        let in_file = match std::fs::read_to_string(&path) {
            Ok(text) => FileMark::Says(Mark::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => FileMark::Missing,
            // A torn file is not ours any more than one that says something else.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => FileMark::Says(None),
            Err(error) => return Err(failed(error)),
        };
        let query = sqlx::query_scalar("SELECT value FROM facts WHERE name = 'otk_epoch'");
        let in_database: Option<String> = query.fetch_optional(&mut *connection).await?;
        let standing = Standing::of(&in_file, in_database.as_deref());
        let id = fresh_id()?;
        let (claims, between) = match &standing {
            Standing::Ours(mark) => (mark.claims, mark.followed_by(&id)),
            Standing::New | Standing::Foreign => (0, line(&id, 0)),
        };
        replace(data_dir, &path, &between).map_err(failed)?;
        let mut tx = connection.begin().await?;
        if matches!(standing, Standing::Foreign) {
            tracing::warn!(
                "this database is not the one that the server last used here: all one-time keys are \
                 dropped, and clients upload new ones"
            );
            drop_keys(&mut tx).await?;
        }
        set_fact(&mut tx, &line(&id, claims)).await?;
        tx.commit().await?;
        replace(data_dir, &path, &line(&id, claims)).map_err(failed)?;
        let file = File::options().write(true).open(&path).map_err(failed)?;
        Ok(Self {
            id,
            last: AtomicI64::new(claims),
            written: Mutex::new(Written { file, claims }),
            path,
        })
    }

    /// Counts a claim in the transaction that takes its keys.
    pub(crate) async fn count(&self, tx: &mut Tx) -> Result<ClaimNumber, StorageError> {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        set_fact(tx.connection(), &line(&self.id, number)).await?;
        Ok(ClaimNumber(number))
    }

    /// Writes down, after the commit, that the keys of a claim are about to be handed out.
    pub(crate) fn reached(&self, ClaimNumber(number): ClaimNumber) -> Result<(), StorageError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if number <= written.claims {
            return Ok(());
        }
        // Some bytes that the system keeps in memory, always as many as before: no reason to leave the
        // thread.
        let text = line(&self.id, number);
        let file = &mut written.file;
        file.rewind()
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(|error| file_error(&self.path, error))?;
        written.claims = number;
        Ok(())
    }
}

/// What a database is to us.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Neither place has a mark.
    New,
    /// It is as we left it; its mark.
    Ours(Mark),
    /// It is older, or from elsewhere.
    Foreign,
}

impl Standing {
    fn of(file: &FileMark, database: Option<&str>) -> Self {
        match (file, database) {
            (FileMark::Missing, None) => Self::New,
            (FileMark::Says(Some(file)), Some(database)) => match Mark::parse(database) {
                Some(mark) if file.allows(&mark) => Self::Ours(mark),
                _ => Self::Foreign,
            },
            _ => Self::Foreign,
        }
    }
}

/// What was found in the file.
#[derive(Debug)]
enum FileMark {
    Missing,
    /// `None` if it cannot be understood.
    Says(Option<Mark>),
}

/// A mark as it is written: an id, a number of claims, in the file perhaps the id that comes next.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    id: String,
    claims: i64,
    next: Option<String>,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mark = Self {
            id: words.next()?.to_owned(),
            claims: words.next()?.parse().ok()?,
            next: words.next().map(ToOwned::to_owned),
        };
        words.next().is_none().then_some(mark)
    }

    /// Whether a database with this mark is the one beside which this file was written.
    fn allows(&self, database: &Self) -> bool {
        let same = self.id == database.id || self.next.as_ref() == Some(&database.id);
        same && database.claims >= self.claims
    }

    /// For the file, while the database changes from this mark to one with another id.
    fn followed_by(&self, next: &str) -> String {
        format!("{} {next}\n", line(&self.id, self.claims).trim_end())
    }
}

/// A mark with one id, of the same length whatever the number is.
fn line(id: &str, claims: i64) -> String {
    format!("{id} {claims:020}\n")
}

fn fresh_id() -> Result<String, StorageError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| StorageError::Stopped)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Puts a text in the place of the file; on disk when this returns.
fn replace(data_dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let new = data_dir.join("otk-epoch.new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    #[cfg(unix)]
    File::open(data_dir)?.sync_all()?;
    Ok(())
}

async fn set_fact(connection: &mut AnyConnection, value: &str) -> Result<(), StorageError> {
    sqlx::query(
        "INSERT INTO facts (name, value) VALUES ('otk_epoch', $1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(value.trim_end())
    .execute(connection)
    .await?;
    Ok(())
}

async fn drop_keys(connection: &mut AnyConnection) -> Result<(), StorageError> {
    for statement in [
        // They stay, as keys that were handed out do, so that an upload does not bring them back.
        "UPDATE one_time_keys SET claimed = 1",
        // Still handed out, because there may be nothing else, but the devices are told to replace them.
        "UPDATE fallback_keys SET used = 1",
    ] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

fn file_error(path: &Path, error: io::Error) -> StorageError {
    StorageError::File {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn standing(file: Option<&str>, database: Option<&str>) -> Standing {
        let file = file.map_or(FileMark::Missing, |text| FileMark::Says(Mark::parse(text)));
        Standing::of(&file, database)
    }

    #[test]
    fn a_database_is_ours_if_it_is_not_older_than_the_file() {
        let ours =
            |file, database| matches!(standing(Some(file), Some(database)), Standing::Ours(_));
        assert!(ours("a 5\n", "a 5"));
        assert!(ours("a 5\n", "a 6"), "a crash before the file was written");
        assert!(!ours("a 5\n", "a 4"), "a copy made before the last claim");
        assert!(!ours("a 5\n", "b 5"), "a copy of another start");
        assert!(
            ours("a 5 b\n", "a 5"),
            "a crash before the database changed"
        );
        assert!(ours("a 5 b\n", "b 5"), "a crash after the database changed");
        assert!(!ours("a 5 b\n", "a 4") && !ours("a 5 b\n", "c 5"));
        for torn in ["", "a", "a 5 b c", "a five"] {
            assert!(!ours(torn, "a 5") && !ours("a 5", torn));
        }
        assert_eq!(standing(None, None), Standing::New);
        assert_eq!(standing(None, Some("a 5")), Standing::Foreign);
        assert_eq!(standing(Some("a 5"), None), Standing::Foreign);
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let id = fresh_id().unwrap();
        let mark = Mark::parse(&line(&id, 7)).unwrap();
        let both = Mark::parse(&mark.followed_by("b")).unwrap();
        assert_eq!(
            (mark.id.as_str(), mark.claims, mark.next),
            (id.as_str(), 7, None)
        );
        assert_eq!((both.claims, both.next.as_deref()), (7, Some("b")));
        assert_eq!(line(&id, 7).len(), line(&id, i64::MAX).len());
    }
}
