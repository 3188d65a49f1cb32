//! A file that comes from a server to the disk in pieces, and is there when it is whole.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{fs::File, io::AsyncWriteExt as _};

use super::{AttachmentError, Decryptor, EncryptedFile};
use crate::{
    environment::{self, Environment, RandomnessError},
    transport::{Interrupted, Receive},
};

/// No file is larger than this; reading stops there.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// Why a file that came was not kept.
#[derive(Debug)]
pub(crate) enum KeepError {
    File(io::Error),
    Attachment(AttachmentError),
}

impl From<io::Error> for KeepError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl From<AttachmentError> for KeepError {
    fn from(error: AttachmentError) -> Self {
        Self::Attachment(error)
    }
}

/// A file on its way. It grows under another name, and goes away if it does not become whole.
pub(crate) struct Download<'a> {
    to: &'a Path,
    growing: PathBuf,
    /// How it is opened, if it is encrypted.
    encrypted: Option<&'a EncryptedFile>,
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        to: &'a Path,
        encrypted: Option<&'a EncryptedFile>,
        environment: &dyn Environment,
    ) -> Result<Self, RandomnessError> {
        let name = environment::transaction_id(environment)?;
        Ok(Self {
            to,
            growing: to.with_file_name(format!(".{name}.part")),
            encrypted,
        })
    }

    async fn grow(
        &self,
        response: &mut reqwest::Response,
    ) -> Result<Result<(), KeepError>, Interrupted> {
        let decryptor = self.encrypted.map(Decryptor::new).transpose();
        let (mut decryptor, mut file) = match (decryptor, File::create(&self.growing).await) {
            (Ok(decryptor), Ok(file)) => (decryptor, file),
            (Err(error), _) => return Ok(Err(error.into())),
            (_, Err(error)) => return Ok(Err(error.into())),
        };
        let mut left = MAX_FILE_BYTES;
        while let Some(piece) = response.chunk().await? {
            let mut piece = Vec::from(piece);
            left = left
                .checked_sub(piece.len() as u64)
                .ok_or(Interrupted::TooLarge)?;
            if let Some(decryptor) = &mut decryptor {
                decryptor.update(&mut piece);
            }
            if let Err(error) = file.write_all(&piece).await {
                return Ok(Err(error.into()));
            }
        }
        Ok(self.complete(decryptor, file).await)
    }

    async fn complete(&self, decryptor: Option<Decryptor>, file: File) -> Result<(), KeepError> {
        decryptor.map_or(Ok(()), Decryptor::finish)?;
        file.sync_all().await?;
        Ok(tokio::fs::rename(&self.growing, self.to).await?)
    }
}

impl Receive for Download<'_> {
    type Got = Result<(), KeepError>;

    async fn receive(&self, mut response: reqwest::Response) -> Result<Self::Got, Interrupted> {
        self.grow(&mut response).await
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        // It is there only if something went wrong.
        let _ = std::fs::remove_file(&self.growing);
    }
}
