//! Sealing of rows: the database file alone tells nothing but sizes.

use std::fmt;

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use sha2::{Digest, Sha256};
use vodozemac::base64_encode;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Key, StoreError, Table, Value};
use crate::environment::Environment;

/// The key that seals a store: 32 random bytes from a keyring or another safe place.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SealKey([u8; 32]);

impl SealKey {
    /// Uses the bytes given, which must come from a cryptographically secure source.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SealKey(..)")
    }
}

/// Seals values with XChaCha20-Poly1305 and hides the names of rows behind keyed hashes.
///
/// The name of the row is authenticated, so rows cannot be swapped.
pub(super) struct Seal {
    cipher: XChaCha20Poly1305,
    name_key: Zeroizing<[u8; 32]>,
}

impl Seal {
    pub(super) fn new(key: &SealKey) -> Self {
        let seal_key = Zeroizing::new(derive(&key.0, b"sotto store: seal"));
        Self {
            cipher: XChaCha20Poly1305::new((&*seal_key).into()),
            name_key: Zeroizing::new(derive(&key.0, b"sotto store: name")),
        }
    }

    pub(super) fn name(&self, table: Table, part: &str) -> String {
        let mut inner = Sha256::new();
        inner.update(*self.name_key);
        inner.update(table.name().as_bytes());
        inner.update([0]);
        inner.update(part.as_bytes());
        // The second pass with the key makes extension of the first hash useless.
        base64_encode(derive(&self.name_key, &inner.finalize()))
    }

    pub(super) fn seal(
        &self,
        environment: &dyn Environment,
        key: &Key,
        value: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let error = || StoreError::Encode { table: key.table };
        let plaintext = pack(&key.id, value).ok_or_else(error)?;
        let mut nonce = [0_u8; 24];
        environment.fill(&mut nonce)?;
        let aad = bound_name(
            key.table,
            &self.name(key.table, &key.partition),
            &self.name(key.table, &key.id),
        );
        let payload = Payload {
            msg: &plaintext,
            aad: aad.as_bytes(),
        };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| error())?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens a row found under the hidden names given; returns its real id and its value.
    pub(super) fn open(
        &self,
        table: Table,
        partition: &str,
        id: &str,
        sealed: &[u8],
    ) -> Result<(String, Value), StoreError> {
        let error = || StoreError::NotAuthentic { table };
        let (nonce, sealed) = sealed.split_first_chunk::<24>().ok_or_else(error)?;
        let aad = bound_name(table, partition, id);
        let payload = Payload {
            msg: sealed,
            aad: aad.as_bytes(),
        };
        let plaintext = self
            .cipher
            .decrypt(&XNonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| error())?;
        unpack(&plaintext).ok_or(StoreError::Corrupt { table })
    }
}

/// What is sealed: the length of the id (four bytes, little-endian), the id, the value.
fn pack(id: &str, value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let length = u32::try_from(id.len()).ok()?;
    let parts = [&length.to_le_bytes()[..], id.as_bytes(), value];
    Some(Zeroizing::new(parts.concat()))
}

fn unpack(plaintext: &[u8]) -> Option<(String, Value)> {
    let (length, rest) = plaintext.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (id, value) = rest.split_at_checked(length)?;
    let id = std::str::from_utf8(id).ok()?.to_owned();
    Some((id, Zeroizing::new(value.to_vec())))
}

fn bound_name(table: Table, partition: &str, id: &str) -> String {
    format!("{} {partition} {id}", table.name())
}

fn derive(key: &[u8; 32], what: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update(what);
    hash.finalize().into()
}
