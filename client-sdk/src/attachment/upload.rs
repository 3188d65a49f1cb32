//! A file that goes from the disk to a server in pieces, encrypted on the way.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, stream::try_unfold};
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{Encryptor, FileSecrets};
use crate::environment::Environment;

/// So much of a file is in memory at once.
const PIECE: usize = 64 * 1024;

/// A file that is to be sent, perhaps more than once.
pub(crate) struct Upload {
    pub(crate) path: PathBuf,
    pub(crate) length: u64,
    /// Where a fresh key comes from, if the file is to be encrypted.
    pub(crate) encrypt_with: Option<Arc<dyn Environment>>,
    outcome: Arc<Mutex<Outcome>>,
}

/// What came of the last attempt.
#[derive(Default)]
struct Outcome {
    secrets: Option<FileSecrets>,
    error: Option<io::Error>,
}

impl Upload {
    pub(crate) fn new(
        path: PathBuf,
        length: u64,
        encrypt_with: Option<Arc<dyn Environment>>,
    ) -> Self {
        Self {
            path,
            length,
            encrypt_with,
            outcome: Arc::default(),
        }
    }

    /// The file from its beginning; each time with another key.
    pub(crate) fn pieces(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let reading = Reading {
            path: self.path.clone(),
            file: None,
            left: self.length,
            encrypt_with: self.encrypt_with.clone(),
            encryptor: None,
            outcome: self.outcome.clone(),
        };
        try_unfold(reading, Reading::next)
    }

    /// With what the ciphertext is opened that was sent last. `None` if it was not sent to its end.
    pub(crate) fn take_secrets(&self) -> Option<FileSecrets> {
        self.outcome().secrets.take()
    }

    /// Why the file could not be read.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        self.outcome().error.take()
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is being read.
struct Reading {
    path: PathBuf,
    file: Option<File>,
    left: u64,
    encrypt_with: Option<Arc<dyn Environment>>,
    encryptor: Option<Encryptor>,
    outcome: Arc<Mutex<Outcome>>,
}

impl Reading {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let piece = self.piece().await;
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match piece {
            Ok(Some(piece)) => {
                // Who knows the length of the body does not ask for more than that.
                if self.left == 0 {
                    outcome.secrets = self.encryptor.take().map(Encryptor::finish);
                }
                drop(outcome);
                Ok(Some((piece, self)))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                outcome.error = Some(error);
                Err(io::Error::other("the file cannot be read"))
            }
        }
    }

    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.file.is_none() {
            if let Some(environment) = &self.encrypt_with {
                self.encryptor = Some(Encryptor::new(&**environment).map_err(io::Error::other)?);
            }
            self.file = Some(File::open(&self.path).await?);
        }
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        let size = usize::try_from(self.left).map_or(PIECE, |left| left.min(PIECE));
        let mut piece = vec![0; size];
        file.read_exact(&mut piece).await?;
        self.left = self.left.saturating_sub(piece.len() as u64);
        if let Some(encryptor) = &mut self.encryptor {
            encryptor.update(&mut piece);
        }
        Ok(Some(piece.into()))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use futures_util::TryStreamExt as _;

    use super::*;
    use crate::{attachment::decrypt, environment::SystemEnvironment};

    fn file(size: usize) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..size)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        std::fs::write(&path, &bytes).unwrap();
        (directory, path, bytes)
    }

    fn encrypted(path: PathBuf, length: usize) -> Upload {
        let environment: Arc<dyn Environment> = Arc::new(SystemEnvironment);
        Upload::new(path, u64::try_from(length).unwrap(), Some(environment))
    }

    #[tokio::test]
    async fn a_file_goes_in_small_pieces_and_each_time_under_another_key() {
        let (_directory, path, bytes) = file(5 * PIECE / 2);
        let upload = encrypted(path, bytes.len());
        let mut ciphertexts = Vec::new();
        for _ in 0..2 {
            let pieces: Vec<Bytes> = upload.pieces().try_collect().await.unwrap();
            assert_eq!(pieces.len(), 3);
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
            let ciphertext = pieces.concat();
            let info = upload.take_secrets().unwrap().at("mxc://a/b".into());
            assert_eq!(decrypt(ciphertext.clone(), &info).unwrap(), bytes);
            ciphertexts.push(ciphertext);
        }
        assert_ne!(ciphertexts.first(), ciphertexts.last());
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_and_gives_no_secrets() {
        let (_directory, path, bytes) = file(2 * PIECE);
        let upload = encrypted(path, bytes.len() + 1);
        upload.pieces().try_collect::<Vec<_>>().await.unwrap_err();
        let error = upload.take_error().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(upload.take_secrets().is_none());
    }
}
