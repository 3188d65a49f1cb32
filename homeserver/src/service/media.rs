//! The media store ([spec](https://spec.matrix.org/v1.19/client-server-api/#content-repository)): files under
//! random names, and a table that says what they are. A file can be seen when its row is there, and the row is
//! written when the file is durable.

mod bucket;
mod care;
mod files;
mod multipart;
pub(crate) mod picture;
mod previewed;
mod remote;
pub(crate) mod thumbnails;
mod turns;

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, future::BoxFuture};
use ruma::{OwnedMxcUri, OwnedServerName, OwnedUserId, ServerName, UserId};
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::bucket::BucketError;
use self::{
    bucket::Bucket,
    files::{Files, Spooled, WriteError},
    turns::Turns,
};
use super::federation::Federation;
use crate::{
    clock::Clock,
    config,
    storage::{
        Families, Storage, StorageError,
        media::{StoredFile, StoredMedia},
        writer::Tx,
    },
};

/// How long a reserved address waits for its upload.
const RESERVED: i64 = 24 * 60 * 60 * 1000;
/// The longest that a download waits.
const LONGEST: Duration = Duration::from_mins(1);
/// The longest content type and file name that are kept, in bytes.
const MAX_NAME: usize = 255;
/// How many files of other servers are fetched at once.
const FETCHES: usize = 16;

/// Keeps media. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Media(Arc<Inner>);

struct Inner {
    storage: Storage,
    clock: Clock,
    federation: Federation,
    server_name: OwnedServerName,
    files: Files,
    settings: config::Media,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// Told when an upload comes to an address that was reserved.
    uploaded: Notify,
    turns: Turns,
    fetching: Semaphore,
    /// What may be decoded at once.
    decoding: Semaphore,
}

/// What the media store is made of.
pub(crate) struct Parts<'a> {
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) federation: Federation,
    pub(crate) data_dir: &'a Path,
    pub(crate) settings: config::Media,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

/// What an uploader says of a file.
#[derive(Clone, Default)]
pub(crate) struct Description {
    pub(crate) content_type: Option<String>,
    pub(crate) file_name: Option<String>,
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the file is too large")]
    TooLarge,
    #[error("the user may not store so much")]
    OverQuota,
    #[error("too many addresses are reserved")]
    TooManyReserved,
    #[error("the upload ended too early")]
    Interrupted,
    #[error("there is no such reserved address")]
    NotReserved,
    #[error("the address was reserved by somebody else")]
    NotYours,
    #[error("something was uploaded there before")]
    Taken,
    #[error("the media store failed: {0}")]
    Store(#[source] std::io::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<WriteError> for UploadError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::TooLarge => Self::TooLarge,
            WriteError::Interrupted => Self::Interrupted,
            WriteError::Store(error) => Self::Store(error),
        }
    }
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("there is no such file")]
    NotFound,
    #[error("the file was not uploaded yet")]
    NotYetUploaded,
    #[error("the file is too large")]
    TooLarge,
    #[error("the server that has the file did not give it")]
    Unreachable,
    #[error("the media store failed: {0}")]
    Store(#[from] std::io::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Media {
    pub(crate) fn new(parts: Parts<'_>) -> Result<Self, BucketError> {
        let server_name = parts.federation.server_name().to_owned();
        let budget = usize::try_from(thumbnails::BUDGET).unwrap_or(usize::MAX >> 4);
        let bucket = match &parts.settings.store {
            config::MediaStore::Directory => None,
            config::MediaStore::S3(bucket) => {
                let tls = rustls::ClientConfig::clone(parts.federation.tls());
                Some(Bucket::new(bucket, tls)?)
            }
        };
        Ok(Self(Arc::new(Inner {
            storage: parts.storage,
            clock: parts.clock,
            federation: parts.federation,
            server_name,
            files: Files::new(parts.data_dir, bucket),
            settings: parts.settings,
            tasks: parts.tasks,
            stopping: parts.stopping,
            uploaded: Notify::new(),
            turns: Turns::default(),
            fetching: Semaphore::new(FETCHES),
            decoding: Semaphore::new(budget),
        })))
    }

    /// The largest upload, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.0.settings.max_upload_bytes
    }

    /// Reserves an address; until when, in milliseconds since the Unix epoch.
    pub(crate) async fn reserve(
        &self,
        user_id: &UserId,
    ) -> Result<(OwnedMxcUri, i64), UploadError> {
        let media_id = random_name().map_err(|error| UploadError::Store(error.into()))?;
        let uri = self.uri(&media_id);
        let (own, now) = (self.0.server_name.clone(), self.now());
        let (most, user_id) = (self.0.settings.max_pending_uploads, user_id.to_owned());
        let write = self.0.storage.write(move |tx| {
            async move {
                let pending = tx.media().pending_of(&user_id, now - RESERVED).await?;
                if pending >= i64::from(most) {
                    return Err(UploadError::TooManyReserved);
                }
                let uploader = Some(&*user_id);
                tx.media().insert(&own, &media_id, uploader, now).await?;
                Ok(())
            }
            .boxed()
        });
        write.await?;
        Ok((uri, now + RESERVED))
    }

    /// Stores a file; its address. It is on disk when this returns.
    pub(crate) async fn upload<E>(
        &self,
        user_id: &UserId,
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<OwnedMxcUri, UploadError> {
        let media_id = random_name().map_err(|error| UploadError::Store(error.into()))?;
        let uri = self.uri(&media_id);
        let (spooled, file) = self.receive(user_id, description, content).await?;
        let (own, now) = (self.0.server_name.clone(), self.now());
        let (user_id, quota) = (user_id.to_owned(), self.0.settings.max_bytes_per_user);
        let kept = self.keep(spooled, move |tx| {
            async move {
                let uploader = Some(&*user_id);
                tx.media().insert(&own, &media_id, uploader, now).await?;
                let filled = tx.media().fill(&own, &media_id, &file).await?;
                within(tx, &user_id, quota).await?;
                Ok(filled)
            }
            .boxed()
        });
        kept.await?.then_some(uri).ok_or(UploadError::Taken)
    }

    /// Stores a file at an address that its uploader reserved.
    pub(crate) async fn upload_at<E>(
        &self,
        user_id: &UserId,
        address: (&ServerName, &str),
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), UploadError> {
        let (server_name, media_id) = address;
        let found = self.known(server_name, media_id).await?;
        let found = found.ok_or(UploadError::NotReserved)?;
        if found.uploader.as_deref() != Some(user_id.as_str()) {
            return Err(UploadError::NotYours);
        }
        if found.file.is_some() {
            return Err(UploadError::Taken);
        }
        if found.created_at + RESERVED < self.now() {
            return Err(UploadError::NotReserved);
        }
        let (spooled, file) = self.receive(user_id, description, content).await?;
        let (server_name, media_id) = (server_name.to_owned(), media_id.to_owned());
        let (user_id, quota) = (user_id.to_owned(), self.0.settings.max_bytes_per_user);
        let kept = self.keep(spooled, move |tx| {
            async move {
                let filled = tx.media().fill(&server_name, &media_id, &file).await?;
                within(tx, &user_id, quota).await?;
                Ok(filled)
            }
            .boxed()
        });
        if !kept.await? {
            return Err(UploadError::Taken);
        }
        self.0.uploaded.notify_waiters();
        Ok(())
    }

    /// Reads what somebody uploads, no more of it than they may store.
    async fn receive<E>(
        &self,
        user_id: &UserId,
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(Spooled, StoredFile), UploadError> {
        let mut limit = self.limit();
        if let Some(quota) = self.0.settings.max_bytes_per_user {
            let mut reader = self.0.storage.read().await?;
            let used = reader.media().bytes_of(user_id).await?;
            limit = limit.min(quota.saturating_sub(u64::try_from(used).unwrap_or(0)));
        }
        let spooled = match self.0.files.spool(content, limit).await {
            Err(WriteError::TooLarge) if limit < self.limit() => {
                return Err(UploadError::OverQuota);
            }
            spooled => spooled?,
        };
        let file = described(&spooled, description)?;
        Ok((spooled, file))
    }

    /// Gives a file its place and its row, also if whoever waits for it goes away meanwhile. Without a row the
    /// file goes.
    async fn keep<F>(&self, spooled: Spooled, insert: F) -> Result<bool, UploadError>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<bool, UploadError>> + Send + 'static,
    {
        let this = self.clone();
        let task = self.0.tasks.spawn(async move {
            this.0.files.place(&spooled).await?;
            let kept = this.0.storage.write(insert).await;
            match &kept {
                Ok(true) => {}
                // Whether there is a row is not known: the next start looks.
                Err(UploadError::Storage(_)) => std::mem::forget(spooled),
                _ => this
                    .0
                    .files
                    .remove(&spooled.name)
                    .await
                    .map_err(UploadError::Store)?,
            }
            kept
        });
        task.await.map_err(|_| StorageError::Stopped)?
    }

    /// A file of this server; waits for an upload that was announced.
    pub(crate) async fn own(
        &self,
        media_id: &str,
        patience: Duration,
    ) -> Result<StoredFile, FetchError> {
        let waited = tokio::time::timeout(patience.min(LONGEST), async {
            loop {
                let uploaded = self.0.uploaded.notified();
                let mut uploaded = std::pin::pin!(uploaded);
                uploaded.as_mut().enable();
                match self.own_now(media_id).await {
                    Err(FetchError::NotYetUploaded) => uploaded.await,
                    found => return found,
                }
            }
        });
        tokio::select! {
            found = waited => match found {
                Ok(found) => found,
                // The last look: without patience there was none before.
                Err(_) => self.own_now(media_id).await,
            },
            () = self.0.stopping.cancelled() => Err(FetchError::NotYetUploaded),
        }
    }

    async fn own_now(&self, media_id: &str) -> Result<StoredFile, FetchError> {
        let found = self.known(&self.0.server_name, media_id).await?;
        let found = found.filter(|found| !found.quarantined);
        let found = found.ok_or(FetchError::NotFound)?;
        match found.file {
            Some(file) => Ok(file),
            None if found.created_at + RESERVED < self.now() => Err(FetchError::NotFound),
            None => Err(FetchError::NotYetUploaded),
        }
    }

    /// A file of any server, fetched from there if it is not here yet.
    pub(crate) async fn any(
        &self,
        server_name: &ServerName,
        media_id: &str,
        patience: Duration,
    ) -> Result<StoredFile, FetchError> {
        if server_name == self.0.server_name {
            self.own(media_id, patience).await
        } else {
            self.of_others(server_name, media_id, patience).await
        }
    }

    /// A part of the content of a file, piece by piece.
    pub(crate) async fn open(
        &self,
        file: &StoredFile,
        part: Range<u64>,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, FetchError> {
        Ok(self.0.files.open(&file.name, part).await?)
    }

    async fn known(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<Option<StoredMedia>, StorageError> {
        let mut reader = self.0.storage.read().await?;
        reader.media().by_id(server_name, media_id).await
    }

    fn uri(&self, media_id: &str) -> OwnedMxcUri {
        OwnedMxcUri::from(format!("mxc://{}/{media_id}", self.0.server_name))
    }

    fn now(&self) -> i64 {
        i64::from(self.0.clock.now().0)
    }
}

/// Whether somebody has not stored more than they may, now that the file is there.
async fn within(tx: &mut Tx, user_id: &OwnedUserId, quota: Option<u64>) -> Result<(), UploadError> {
    let Some(quota) = quota else {
        return Ok(());
    };
    let used = tx.media().bytes_of(user_id).await?;
    if u64::try_from(used).is_ok_and(|used| used > quota) {
        return Err(UploadError::OverQuota);
    }
    Ok(())
}

/// What is kept of what is said of a file.
fn described(spooled: &Spooled, description: Description) -> Result<StoredFile, UploadError> {
    let visible = |text: &String| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
    Ok(StoredFile {
        name: spooled.name.clone(),
        size: i64::try_from(spooled.size).map_err(|_| UploadError::TooLarge)?,
        content_type: description
            .content_type
            .filter(|text| visible(text) && text.is_ascii()),
        file_name: description.file_name.filter(visible),
    })
}

/// A name that nobody can guess: for files, and for the addresses of media.
fn random_name() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)?;
    let digits = bytes.into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
    Ok(digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect())
}
