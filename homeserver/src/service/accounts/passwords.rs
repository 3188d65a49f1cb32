//! Hashing passwords, away from the threads that answer requests and only a few at a time: each one
//! takes a core for some tens of milliseconds and 19 MiB of memory.

use std::{fmt, sync::Arc};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, PasswordHash},
};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// How many are hashed at once.
const AT_ONCE: usize = 2;
/// The longest password, in bytes.
const LONGEST: usize = 512;
/// Room for this many blocks is asked for, but only those that Argon2 works on are ever touched.
/// Allocators give what is larger than 32 MiB back to the system as soon as it is freed; what is
/// smaller they like to keep.
const ROOM: usize = 33 * 1024;
/// The most memory that a hash from elsewhere may ask for, in blocks.
const MOST_BLOCKS: usize = 256 * 1024;

/// Hashes passwords. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Passwords {
    permits: Arc<Semaphore>,
}

/// A password as it is stored: Argon2id in PHC form.
#[derive(Clone)]
pub(crate) struct Hashed(pub(crate) String);

impl fmt::Debug for Hashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hashed(…)")
    }
}

/// Why a password cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PasswordError {
    #[error("the password is empty")]
    Empty,
    #[error("the password is too long")]
    TooLong,
    #[error("the password could not be hashed")]
    Hash,
}

impl Passwords {
    pub(super) fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Hashes a new password.
    pub(crate) async fn hash(&self, password: String) -> Result<Hashed, PasswordError> {
        if password.is_empty() {
            return Err(PasswordError::Empty);
        }
        if password.len() > LONGEST {
            return Err(PasswordError::TooLong);
        }
        let hash = self.run(move || hash(&Zeroizing::new(password))).await;
        hash.flatten().map(Hashed).ok_or(PasswordError::Hash)
    }

    /// Whether this is the password of that hash. Takes as long if there is no hash.
    pub(super) async fn verify(&self, password: String, known: Option<String>) -> bool {
        if password.len() > LONGEST {
            return false;
        }
        let verified = self.run(move || verify(&Zeroizing::new(password), known.as_deref()));
        verified.await.unwrap_or(false)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        done.await.ok()
    }
}

fn hash(password: &str) -> Option<String> {
    let mut salt = [0_u8; 16];
    getrandom::fill(&mut salt).ok()?;
    let params = Params::DEFAULT;
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
    let mut hash = [0_u8; Params::DEFAULT_OUTPUT_LEN];
    derive(&argon, password, &salt, &mut hash)?;
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    let (m, t, p) = (params.m_cost(), params.t_cost(), params.p_cost());
    Some(format!("$argon2id$v=19$m={m},t={t},p={p}${salt}${hash}"))
}

fn verify(password: &str, known: Option<&str>) -> bool {
    let Some(known) = known.and_then(|known| PasswordHash::new(known).ok()) else {
        drop(hash(password));
        return false;
    };
    check(password, &known).unwrap_or(false)
}

fn check(password: &str, known: &PasswordHash) -> Option<bool> {
    let algorithm = Algorithm::try_from(known.algorithm.as_str()).ok()?;
    let version = known
        .version
        .map_or(Ok(Version::V0x13), Version::try_from)
        .ok()?;
    let params = Params::try_from(known).ok()?;
    let expected = known.hash?;
    let argon = Argon2::new(algorithm, version, params);
    let mut found = vec![0_u8; expected.len()];
    derive(&argon, password, known.salt?.as_ref(), &mut found)?;
    // Compares in constant time.
    Some(Output::new(&found).ok()? == expected)
}

fn derive(argon: &Argon2<'_>, password: &str, salt: &[u8], out: &mut [u8]) -> Option<()> {
    let blocks = argon.params().block_count();
    if blocks > MOST_BLOCKS {
        return None;
    }
    let mut memory = Vec::with_capacity(blocks.max(ROOM));
    memory.resize(blocks, Block::new());
    argon
        .hash_password_into_with_memory(password.as_bytes(), salt, out, memory.as_mut_slice())
        .ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_password_is_known_again() {
        let passwords = Passwords::new();
        let known = passwords.hash("correct horse".to_owned()).await.unwrap().0;
        assert!(known.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(
            passwords
                .verify("correct horse".to_owned(), Some(known.clone()))
                .await
        );
        assert!(
            !passwords
                .verify("correct house".to_owned(), Some(known))
                .await
        );
        assert!(!passwords.verify("correct horse".to_owned(), None).await);
        let refused = passwords.hash(String::new()).await.unwrap_err();
        assert_eq!(refused, PasswordError::Empty);
        let refused = passwords.hash("x".repeat(513)).await.unwrap_err();
        assert_eq!(refused, PasswordError::TooLong);
    }

    /// Made by the reference implementation: `echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1`.
    #[test]
    fn hashes_of_others_are_understood() {
        let known = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert!(verify("password", Some(known)));
        assert!(!verify("Password", Some(known)));
    }
}
