//! The media store ([spec](https://spec.matrix.org/v1.19/client-server-api/#content-repository)): files
//! under random names in a directory, and a table that says what they are. Nothing that a client or
//! another server chose is ever part of a path.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use ruma::{
    OwnedMxcUri, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::federation::authenticated_media::{FileOrLocation, get_content},
};
use sotto_federation::client::Limits;
use tokio::{fs, io::AsyncWriteExt};

use super::federation::Federation;
use crate::{
    clock::Clock,
    storage::{Families, Storage, StorageError, media::StoredFile},
};

/// How long a reserved address waits for its upload.
const RESERVED: i64 = 24 * 60 * 60 * 1000;
/// How often a download looks whether the upload that it waits for has come.
const LOOK: Duration = Duration::from_millis(250);
/// The longest that a download waits.
const LONGEST: Duration = Duration::from_mins(1);
/// The longest content type and file name that are kept, in bytes.
const MAX_NAME: usize = 255;

/// Keeps media.
#[derive(Clone)]
pub(crate) struct Media {
    storage: Storage,
    clock: Clock,
    federation: Federation,
    server_name: OwnedServerName,
    directory: Arc<Path>,
    limit: u64,
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
    #[error("the upload ended too early")]
    Interrupted,
    #[error("there is no such reserved address")]
    NotReserved,
    #[error("the address was reserved by somebody else")]
    NotYours,
    #[error("something was uploaded there before")]
    Taken,
    #[error("the media store failed: {0}")]
    Store(#[from] std::io::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
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
    #[error("the media store failed: {0}")]
    Store(#[from] std::io::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Media {
    pub(crate) fn new(
        storage: Storage,
        clock: Clock,
        federation: Federation,
        data_dir: &Path,
        limit: u64,
    ) -> Self {
        let server_name = federation.server_name().to_owned();
        Self {
            storage,
            clock,
            federation,
            server_name,
            directory: data_dir.join("media").into(),
            limit,
        }
    }

    /// The largest upload, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Reserves an address; until when, in milliseconds since the Unix epoch.
    pub(crate) async fn reserve(
        &self,
        user_id: &UserId,
    ) -> Result<(OwnedMxcUri, i64), UploadError> {
        let media_id = random_name().map_err(std::io::Error::other)?;
        let now = self.now();
        let uploader = Some(user_id.to_owned());
        self.insert(self.server_name.clone(), media_id.clone(), uploader, None)
            .await?;
        Ok((self.uri(&media_id), now + RESERVED))
    }

    /// Stores a file; its address. It is on disk when this returns.
    pub(crate) async fn upload<E>(
        &self,
        user_id: &UserId,
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<OwnedMxcUri, UploadError> {
        let media_id = random_name().map_err(std::io::Error::other)?;
        let file = self.write(description, content).await?;
        let uploader = Some(user_id.to_owned());
        let own = self.server_name.clone();
        self.insert(own, media_id.clone(), uploader, Some(file))
            .await?;
        Ok(self.uri(&media_id))
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
        let mut reader = self.storage.read().await?;
        let found = reader.media().by_id(server_name, media_id).await?;
        drop(reader);
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
        let file = self.write(description, content).await?;
        let path = self.path(&file.name);
        let (server_name, media_id) = (server_name.to_owned(), media_id.to_owned());
        let write = self.storage.write(move |tx| {
            async move { tx.media().fill(&server_name, &media_id, &file).await }.boxed()
        });
        let filled: Result<bool, StorageError> = write.await;
        if filled? {
            return Ok(());
        }
        fs::remove_file(path).await?;
        Err(UploadError::Taken)
    }

    /// A file of this server; waits for an upload that was announced.
    pub(crate) async fn own(
        &self,
        media_id: &str,
        patience: Duration,
    ) -> Result<StoredFile, FetchError> {
        let mut left = patience.min(LONGEST);
        loop {
            let mut reader = self.storage.read().await?;
            let found = reader.media().by_id(&self.server_name, media_id).await?;
            drop(reader);
            let found = found.ok_or(FetchError::NotFound)?;
            if let Some(file) = found.file {
                return Ok(file);
            }
            if found.created_at + RESERVED < self.now() {
                return Err(FetchError::NotFound);
            }
            if left.is_zero() {
                return Err(FetchError::NotYetUploaded);
            }
            let pause = left.min(LOOK);
            tokio::time::sleep(pause).await;
            left -= pause;
        }
    }

    /// A file of any server, fetched from there if it is not here yet.
    pub(crate) async fn any(
        &self,
        server_name: &ServerName,
        media_id: &str,
        patience: Duration,
    ) -> Result<StoredFile, FetchError> {
        if server_name == self.server_name {
            return self.own(media_id, patience).await;
        }
        let mut reader = self.storage.read().await?;
        let found = reader.media().by_id(server_name, media_id).await?;
        drop(reader);
        if let Some(file) = found.and_then(|found| found.file) {
            return Ok(file);
        }
        self.fetch(server_name, media_id).await
    }

    /// The content of a file, piece by piece.
    pub(crate) async fn open(
        &self,
        file: &StoredFile,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, FetchError> {
        let file = fs::File::open(self.path(&file.name)).await?;
        Ok(futures_util::stream::unfold(Some(file), async |file| {
            use tokio::io::AsyncReadExt;
            let mut file = file?;
            let mut piece = Vec::with_capacity(64 * 1024);
            match file.read_buf(&mut piece).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(Bytes::from(piece)), Some(file))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn fetch(
        &self,
        server_name: &ServerName,
        media_id: &str,
    ) -> Result<StoredFile, FetchError> {
        let opaque = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if media_id.is_empty() || media_id.len() > MAX_NAME || !media_id.bytes().all(opaque) {
            return Err(FetchError::NotFound);
        }
        let request = get_content::v1::Request::new(media_id.to_owned());
        let limits = Limits {
            // The other parts of the answer are small.
            answer: usize::try_from(self.limit).unwrap_or(usize::MAX / 2) + 64 * 1024,
            ..Limits::default()
        };
        let answer = self
            .federation
            .send_within(server_name, request, limits)
            .await;
        let content = match answer {
            Ok(answer) => answer.content,
            Err(error) => {
                tracing::info!(%server_name, %error, "a file could not be fetched");
                return Err(FetchError::NotFound);
            }
        };
        let FileOrLocation::File(content) = content else {
            return Err(FetchError::NotFound);
        };
        let description = Description {
            content_type: content.content_type,
            file_name: content.content_disposition.and_then(|d| d.filename),
        };
        let bytes = Bytes::from(content.file);
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes)]);
        let file = match self.write(description, stream).await {
            Ok(file) => file,
            Err(UploadError::TooLarge) => return Err(FetchError::TooLarge),
            Err(UploadError::Store(error)) => return Err(error.into()),
            Err(UploadError::Storage(error)) => return Err(error.into()),
            Err(_) => return Err(FetchError::NotFound),
        };
        let (server, id) = (server_name.to_owned(), media_id.to_owned());
        self.insert(server, id, None, Some(file.clone())).await?;
        Ok(file)
    }

    async fn insert(
        &self,
        server_name: OwnedServerName,
        media_id: String,
        uploader: Option<OwnedUserId>,
        file: Option<StoredFile>,
    ) -> Result<(), StorageError> {
        let now = self.now();
        let write = self.storage.write(move |tx| {
            async move {
                tx.media()
                    .insert(&server_name, &media_id, uploader.as_deref(), now)
                    .await?;
                if let Some(file) = &file {
                    tx.media().fill(&server_name, &media_id, file).await?;
                }
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await
    }

    /// Writes content to a new file, and makes it durable. Leaves nothing behind if it fails.
    async fn write<E>(
        &self,
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<StoredFile, UploadError> {
        let name = random_name().map_err(std::io::Error::other)?;
        let path = self.path(&name);
        let folder = path.parent().unwrap_or(&self.directory).to_owned();
        fs::create_dir_all(&folder).await?;
        let written = self.pour(&path, content).await;
        let size = match written {
            Ok(size) => size,
            Err(error) => {
                // Already failing: that is what is told.
                drop(fs::remove_file(&path).await);
                return Err(error);
            }
        };
        for folder in [&folder, &*self.directory] {
            fs::File::open(folder).await?.sync_all().await?;
        }
        let visible = |text: &String| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
        Ok(StoredFile {
            name,
            size,
            content_type: description
                .content_type
                .filter(|text| visible(text) && text.is_ascii()),
            file_name: description.file_name.filter(visible),
        })
    }

    async fn pour<E>(
        &self,
        path: &Path,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<i64, UploadError> {
        let mut file = fs::File::create_new(path).await?;
        let mut content = std::pin::pin!(content);
        let mut size = 0_u64;
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|_| UploadError::Interrupted)?;
            size += u64::try_from(piece.len()).unwrap_or(u64::MAX);
            if size > self.limit {
                return Err(UploadError::TooLarge);
            }
            file.write_all(&piece).await?;
        }
        file.sync_all().await?;
        i64::try_from(size).map_err(|_| UploadError::TooLarge)
    }

    fn path(&self, name: &str) -> PathBuf {
        let (folder, rest) = name.split_at_checked(2).unwrap_or(("", name));
        self.directory.join(folder).join(rest)
    }

    fn uri(&self, media_id: &str) -> OwnedMxcUri {
        OwnedMxcUri::from(format!("mxc://{}/{media_id}", self.server_name))
    }

    fn now(&self) -> i64 {
        i64::from(self.clock.now().0)
    }
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
