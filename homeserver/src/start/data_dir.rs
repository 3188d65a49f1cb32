//! What a server has in its data directory beside the database.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use sotto_federation::room::signing::SigningKey;
use zeroize::Zeroizing;

use super::StartError;

/// Takes the data directory for this process alone: two writers would give out the same positions.
pub(super) fn lock(data_dir: &Path) -> Result<File, StartError> {
    let path = data_dir.join("lock");
    let failed = |source| StartError::File {
        path: path.clone(),
        source,
    };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse {
            path: data_dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The key with which the server signs; made at the first start.
pub(super) fn signing_key(data_dir: &Path) -> Result<SigningKey, StartError> {
    let path = data_dir.join("signing.key");
    let wrong = || StartError::SigningKey { path: path.clone() };
    match std::fs::read_to_string(&path) {
        // The form of other servers: algorithm, version, seed.
        Ok(text) => match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["ed25519", version, seed] => SigningKey::from_seed(version, seed).map_err(|_| wrong()),
            _ => Err(wrong()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SigningKey::generate().map_err(|_| wrong())?;
            let text = Zeroizing::new(format!("ed25519 {} {}\n", key.version(), *key.to_seed()));
            write_secret(&path, &text).map_err(|source| StartError::File { path, source })?;
            Ok(key)
        }
        Err(source) => Err(StartError::File { path, source }),
    }
}

/// Writes a file that only the server may read; it is on disk when this returns.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
