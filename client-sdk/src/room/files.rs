//! Files in rooms.

use std::{io, path::Path};

use ruma::{
    OwnedEventId,
    api::client::{authenticated_media::get_content, media::create_content},
};
use serde_json::{Map, Value, json};
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{Room, RoomError};
use crate::{
    Client,
    attachment::{self, AttachmentError, Download, KeepError, Upload},
    client::NotLoggedIn,
    environment::RandomnessError,
    timeline::{Attachment, Source},
    transport::RequestError,
};

/// The type of files that nobody shall look into.
const OPAQUE: &str = "application/octet-stream";
/// Files that are shorter than this are read whole; of others the beginning tells whether they are
/// pictures.
const BEGINNING: u64 = 64 * 1024;

/// A small picture that stands for a file.
#[derive(Clone)]
pub struct Thumbnail {
    /// Its type, such as `image/jpeg`.
    pub mime: String,
    /// The picture.
    pub bytes: Vec<u8>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl std::fmt::Debug for Thumbnail {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Thumbnail")
            .field("width", &self.width)
            .field("height", &self.height)
            .finish_non_exhaustive()
    }
}

/// Why a file was not had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// Nobody is logged in.
    #[error(transparent)]
    NotLoggedIn(#[from] NotLoggedIn),
    /// The address is not one of a file.
    #[error("the address of the file is invalid")]
    InvalidAddress,
    /// The server refused, or was not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The file could not be opened.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The file could not be written.
    #[error("the file could not be written")]
    File(#[source] io::Error),
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
}

impl Room {
    /// Sends a file, encrypted if the room is.
    ///
    /// A JPEG, PNG or `WebP` goes without its metadata: nobody learns where it was taken, when, and
    /// with which camera.
    ///
    /// The server of an encrypted room learns its size and nothing else: name and type are in the
    /// encrypted event.
    pub async fn send_attachment(
        &self,
        name: &str,
        mime: &str,
        bytes: Vec<u8>,
    ) -> Result<OwnedEventId, RoomError> {
        self.send_with_thumbnail(name, mime, bytes, None).await
    }

    /// As [`Room::send_attachment`], with a small picture that others can show in its place. It is
    /// encrypted as the file is, with a key of its own.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#extensions-to-mroommessage-msgtypes>
    pub async fn send_with_thumbnail(
        &self,
        name: &str,
        mime: &str,
        bytes: Vec<u8>,
        thumbnail: Option<Thumbnail>,
    ) -> Result<OwnedEventId, RoomError> {
        let mut info = Map::new();
        if let Some(Thumbnail {
            mime,
            bytes,
            width,
            height,
        }) = thumbnail
        {
            let (place, size) = self.upload("thumbnail", &mime, bytes).await?;
            let (field, place) = place.to_json()?;
            info.insert(format!("thumbnail_{field}"), place);
            let about = json!({ "mimetype": mime, "size": size, "w": width, "h": height });
            info.insert("thumbnail_info".to_owned(), about);
        }
        let (place, size) = self.upload(name, mime, bytes).await?;
        self.send_file_event(name, mime, size, &place, info).await
    }

    /// Uploads a file without its metadata, encrypted if the room is; where it is, and its size.
    async fn upload(
        &self,
        name: &str,
        mime: &str,
        bytes: Vec<u8>,
    ) -> Result<(Source, u64), RoomError> {
        let bytes = attachment::without_metadata(&bytes).unwrap_or(bytes);
        let size = bytes.len() as u64;
        let transport = &self.client.inner.transport;
        let place = if self.is_encrypted().await? {
            let (ciphertext, secrets) =
                attachment::encrypt(bytes, &*self.client.inner.environment)?;
            let mut request = create_content::v3::Request::new(ciphertext);
            request.content_type = Some(OPAQUE.to_owned());
            let url = transport.send(request).await?.content_uri;
            Source::Encrypted(Box::new(secrets.at(url)))
        } else {
            let request = open_request(name, mime, bytes);
            Source::Plain(transport.send(request).await?.content_uri)
        };
        Ok((place, size))
    }

    /// Sends a file of the disk under its name, as [`Room::send_attachment`] does, without holding
    /// it in memory: it may be as large as the server allows. (Pictures are held in memory, as their
    /// metadata has to be found.)
    pub async fn send_file(
        &self,
        path: impl AsRef<Path>,
        mime: &str,
    ) -> Result<OwnedEventId, RoomError> {
        let path = path.as_ref().to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut file = File::open(&path).await.map_err(RoomError::File)?;
        let length = file.metadata().await.map_err(RoomError::File)?.len();
        let mut start = Vec::new();
        let mut beginning = (&mut file).take(BEGINNING);
        let read = beginning.read_to_end(&mut start).await;
        read.map_err(RoomError::File)?;
        if length < BEGINNING || attachment::is_picture(&start) {
            let read = file.read_to_end(&mut start).await;
            read.map_err(RoomError::File)?;
            return self.send_attachment(&name, mime, start).await;
        }
        let encrypted = self.is_encrypted().await?;
        let environment = encrypted.then(|| self.client.inner.environment.clone());
        let upload = Upload::new(path.clone(), length, environment);
        let mut request = open_request(&name, mime, Vec::new());
        if encrypted {
            request.content_type = Some(OPAQUE.to_owned());
            request.filename = None;
        }
        let body = || reqwest::Body::wrap_stream(upload.pieces());
        let transport = &self.client.inner.transport;
        let url = match transport.upload(request, length, body).await {
            Ok(response) => response.content_uri,
            Err(error) => return Err(upload.take_error().map_or(error.into(), RoomError::File)),
        };
        let place = match upload.take_secrets() {
            Some(secrets) => Source::Encrypted(Box::new(secrets.at(url))),
            None if encrypted => return Err(RequestError::Malformed.into()),
            None => Source::Plain(url),
        };
        self.send_file_event(&name, mime, length, &place, Map::new())
            .await
    }

    async fn send_file_event(
        &self,
        name: &str,
        mime: &str,
        size: u64,
        place: &Source,
        mut info: Map<String, Value>,
    ) -> Result<OwnedEventId, RoomError> {
        info.insert("mimetype".to_owned(), mime.into());
        info.insert("size".to_owned(), size.into());
        let (field, place) = place.to_json()?;
        let content = Map::from_iter([
            ("msgtype".to_owned(), msgtype(mime).into()),
            ("body".to_owned(), name.into()),
            ("filename".to_owned(), name.into()),
            ("info".to_owned(), info.into()),
            (field.to_owned(), place),
        ]);
        self.send("m.room.message", content).await
    }
}

impl Source {
    /// The field of an event that says it, and what that says.
    fn to_json(&self) -> Result<(&'static str, Value), RoomError> {
        match self {
            Self::Plain(url) => Ok(("url", url.as_str().into())),
            Self::Encrypted(file) => {
                let file = serde_json::to_value(file).map_err(|_| RoomError::Encode)?;
                Ok(("file", file))
            }
        }
    }
}

/// What everybody may know of a file in a room that is not encrypted.
fn open_request(name: &str, mime: &str, bytes: Vec<u8>) -> create_content::v3::Request {
    let mut request = create_content::v3::Request::new(bytes);
    request.content_type = Some(mime.to_owned());
    request.filename = Some(name.to_owned());
    request
}

impl Client {
    /// Downloads a file and opens it.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>
    pub async fn download_attachment(&self, file: &Attachment) -> Result<Vec<u8>, DownloadError> {
        self.machine()?;
        let request = download_request(file)?;
        let bytes = self.inner.transport.send(request).await?.file;
        match &file.source {
            Source::Plain(_) => Ok(bytes),
            Source::Encrypted(file) => Ok(attachment::decrypt(bytes, file)?),
        }
    }

    /// Downloads a file to the disk and opens it on the way, without holding it in memory.
    ///
    /// The file is there when it is whole and is what the sender has sent; before that it grows
    /// beside it, under a name that begins with a dot. What was there is replaced. At most 4 GiB
    /// are taken.
    ///
    /// The name that the sender gave it is not a path: choose one that cannot do harm.
    pub async fn download_attachment_to(
        &self,
        file: &Attachment,
        path: impl AsRef<Path>,
    ) -> Result<(), DownloadError> {
        self.machine()?;
        let request = download_request(file)?;
        let encrypted = match &file.source {
            Source::Plain(_) => None,
            Source::Encrypted(file) => Some(&**file),
        };
        let path = path.as_ref().to_owned();
        let download = Download::new(&path, encrypted, &*self.inner.environment)?;
        let kept = self.inner.transport.download(request, &download).await?;
        kept.map_err(|error| match error {
            KeepError::File(error) => DownloadError::File(error),
            KeepError::Attachment(error) => DownloadError::Attachment(error),
        })
    }
}

fn download_request(file: &Attachment) -> Result<get_content::v1::Request, DownloadError> {
    let url = match &file.source {
        Source::Plain(url) => url,
        Source::Encrypted(file) => &file.url,
    };
    get_content::v1::Request::from_uri(url).map_err(|_| DownloadError::InvalidAddress)
}

/// The kind of message that suits a type of file.
fn msgtype(mime: &str) -> &'static str {
    match mime.split('/').next() {
        Some("image") => "m.image",
        Some("video") => "m.video",
        Some("audio") => "m.audio",
        _ => "m.file",
    }
}
