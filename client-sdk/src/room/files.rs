//! Files in rooms.

use ruma::{
    OwnedEventId,
    api::client::{authenticated_media::get_content, media::create_content},
};
use serde_json::{Map, Value, json};

use super::{Room, RoomError};
use crate::{
    Client,
    attachment::{self, AttachmentError},
    client::NotLoggedIn,
    timeline::{Attachment, Source},
    transport::RequestError,
};

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
        let bytes = attachment::without_metadata(&bytes).unwrap_or(bytes);
        let size = bytes.len();
        let mut content = Map::new();
        let mut put = |name: &str, value: Value| content.insert(name.to_owned(), value);
        put("msgtype", msgtype(mime).into());
        put("body", name.into());
        put("filename", name.into());
        put("info", json!({ "mimetype": mime, "size": size }));
        if self.is_encrypted().await? {
            let (ciphertext, secrets) =
                attachment::encrypt(bytes, &*self.client.inner.environment)?;
            let mut request = create_content::v3::Request::new(ciphertext);
            request.content_type = Some("application/octet-stream".to_owned());
            let url = self.client.inner.transport.send(request).await?.content_uri;
            let file = serde_json::to_value(secrets.at(url)).map_err(|_| RoomError::Encode)?;
            put("file", file);
        } else {
            let mut request = create_content::v3::Request::new(bytes);
            request.content_type = Some(mime.to_owned());
            request.filename = Some(name.to_owned());
            let url = self.client.inner.transport.send(request).await?.content_uri;
            put("url", url.as_str().into());
        }
        self.send("m.room.message", content).await
    }
}

impl Client {
    /// Downloads a file and opens it.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>
    pub async fn download_attachment(&self, file: &Attachment) -> Result<Vec<u8>, DownloadError> {
        self.machine()?;
        let url = match &file.source {
            Source::Plain(url) => url,
            Source::Encrypted(file) => &file.url,
        };
        let request =
            get_content::v1::Request::from_uri(url).map_err(|_| DownloadError::InvalidAddress)?;
        let bytes = self.inner.transport.send(request).await?.file;
        match &file.source {
            Source::Plain(_) => Ok(bytes),
            Source::Encrypted(file) => Ok(attachment::decrypt(bytes, file)?),
        }
    }
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
