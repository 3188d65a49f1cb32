//! Where files are: in a directory or a bucket, under random names. Nothing that a client or another server
//! chose is ever part of a path.
//!
//! A file is written to the disk first, and takes its place when it is whole and durable. Until its row
//! in the database is durable too, its copy in `incoming` says that it may have to go again: after a crash
//! [`Files::left_over`] names those.

use std::{
    io::SeekFrom,
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::Either};
use tokio::{
    fs,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

use super::bucket::Bucket;

/// How much of a file is in memory at once.
const PIECE: usize = 64 * 1024;

/// The files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    directory: PathBuf,
    incoming: PathBuf,
    /// Where new files go, if not into the directory.
    bucket: Option<Bucket>,
}

/// Why there is no whole file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the file is too large")]
    TooLarge,
    #[error("the content ended too early")]
    Interrupted,
    #[error("the media store failed: {0}")]
    Store(#[from] std::io::Error),
}

/// A whole file that has not taken its place. Removed when this is dropped.
#[derive(Debug)]
pub(super) struct Spooled {
    pub(super) name: String,
    pub(super) size: u64,
    path: PathBuf,
}

impl Spooled {
    /// Where it is until then.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // Gone already when it has taken its place.
        drop(std::fs::remove_file(&self.path));
    }
}

/// A file on the disk, for what reads it in one go.
#[derive(Debug)]
pub(super) enum Local {
    Placed(PathBuf),
    /// A copy of one that is in the bucket.
    Fetched(Spooled),
}

impl Local {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Placed(path) => path,
            Self::Fetched(spooled) => spooled.path(),
        }
    }
}

impl Files {
    pub(super) fn new(data_dir: &Path, bucket: Option<Bucket>) -> Self {
        let directory = data_dir.join("media");
        Self {
            incoming: directory.join("incoming"),
            directory,
            bucket,
        }
    }

    /// Writes content of at most `limit` bytes; it is durable when this returns.
    pub(super) async fn spool<E>(
        &self,
        content: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<Spooled, WriteError> {
        let name = super::random_name().map_err(std::io::Error::other)?;
        fs::create_dir_all(&self.incoming).await?;
        let path = self.incoming.join(&name);
        let mut file = fs::File::create_new(&path).await?;
        let mut spooled = Spooled {
            name,
            size: 0,
            path,
        };
        let mut content = std::pin::pin!(content);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|_| WriteError::Interrupted)?;
            spooled.size += u64::try_from(piece.len()).unwrap_or(u64::MAX);
            if spooled.size > limit {
                return Err(WriteError::TooLarge);
            }
            file.write_all(&piece).await?;
        }
        file.sync_all().await?;
        Ok(spooled)
    }

    /// Gives a file its place. The copy in `incoming` stays.
    pub(super) async fn place(&self, spooled: &Spooled) -> Result<(), WriteError> {
        if let Some(bucket) = &self.bucket {
            return Ok(bucket.put(&spooled.name, &spooled.path).await?);
        }
        let path = self.path(&spooled.name);
        let folder = path.parent().unwrap_or(&self.directory).to_owned();
        fs::create_dir_all(&folder).await?;
        if fs::hard_link(&spooled.path, &path).await.is_err() {
            // Not every file system has links.
            fs::copy(&spooled.path, &path).await?;
            fs::File::open(&path).await?.sync_all().await?;
        }
        for folder in [&folder, &self.directory] {
            fs::File::open(folder).await?.sync_all().await?;
        }
        Ok(())
    }

    /// Removes a file; that there is none is no error.
    pub(super) async fn remove(&self, name: &str) -> std::io::Result<()> {
        match fs::remove_file(self.path(name)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match &self.bucket {
                Some(bucket) => bucket.remove(name).await,
                None => Ok(()),
            },
            removed => removed,
        }
    }

    /// The names of files of which a crash left open whether there are rows of them. Asked for before anything
    /// is written.
    pub(super) fn left_over(&self) -> std::io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.incoming) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// It is known now: the copy in `incoming` is not needed any more.
    pub(super) async fn settle(&self, name: &str) -> std::io::Result<()> {
        fs::remove_file(self.incoming.join(name)).await
    }

    /// A part of a file, piece by piece.
    pub(super) async fn open(
        &self,
        name: &str,
        part: Range<u64>,
    ) -> std::io::Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>> {
        match (fs::File::open(self.path(name)).await, &self.bucket) {
            (Ok(file), _) => Ok(Either::Left(pieces(file, part).await?)),
            (Err(error), Some(bucket)) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Either::Right(bucket.get(name, part).await?))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// A file of this many bytes on the disk, fetched if it is not there.
    pub(super) async fn local(&self, name: &str, size: u64) -> std::io::Result<Local> {
        let path = self.path(name);
        if self.bucket.is_none() || fs::try_exists(&path).await? {
            return Ok(Local::Placed(path));
        }
        let content = self.open(name, 0..size).await?;
        match self.spool(content, size).await {
            Ok(spooled) => Ok(Local::Fetched(spooled)),
            Err(WriteError::Store(error)) => Err(error),
            Err(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let (folder, rest) = name.split_at_checked(2).unwrap_or(("", name));
        self.directory.join(folder).join(rest)
    }
}

async fn pieces(
    mut file: fs::File,
    part: Range<u64>,
) -> std::io::Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>> {
    if part.start > 0 {
        file.seek(SeekFrom::Start(part.start)).await?;
    }
    let file = file.take(part.end.saturating_sub(part.start));
    let pieces = futures_util::stream::unfold(Some(file), async |file| {
        let mut file = file?;
        let mut piece = Vec::with_capacity(PIECE);
        match file.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(piece)), Some(file))),
            Err(error) => Some((Err(error), None)),
        }
    });
    // One that can be moved, as the pieces of a bucket can.
    Ok(pieces.boxed())
}
