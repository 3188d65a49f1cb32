//! The key of a store, kept beside its rows under a passphrase.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use sqlx::{Row as _, SqliteConnection};
use zeroize::Zeroizing;

use super::{SealKey, StoreError};
use crate::{crypto::Secret, environment::Environment};

/// The row of the wrapped key.
pub(super) const KIND: &str = "wrapped key";
const CONTEXT: &[u8] = b"sotto store: wrapped key";
/// Memory in KiB, passes, and lanes.
const COST: (u32, u32, u32) = (64 * 1024, 3, 1);

/// The key under which a store key is wrapped, by Argon2id.
fn wrapping_key(passphrase: &Secret, salt: &[u8; 16]) -> Option<Zeroizing<[u8; 32]>> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(32)).ok()?;
    let mut key = Zeroizing::new([0_u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.expose().as_bytes(), salt, key.as_mut_slice())
        .ok()?;
    Some(key)
}

/// The key of the store; a random one is made if the store is empty.
pub(super) async fn store_key(
    database: &mut SqliteConnection,
    passphrase: &Secret,
    environment: &dyn Environment,
) -> Result<SealKey, StoreError> {
    let row = sqlx::query("SELECT value FROM items WHERE kind = $1")
        .bind(KIND)
        .fetch_optional(&mut *database)
        .await?;
    if let Some(row) = row {
        let wrapped: Vec<u8> = row.try_get(0)?;
        return unwrap(&wrapped, passphrase).ok_or(StoreError::WrongKey);
    }
    let rows: i64 = sqlx::query("SELECT COUNT(*) FROM items")
        .fetch_one(&mut *database)
        .await?
        .try_get(0)?;
    if rows > 0 {
        // It was made without a passphrase.
        return Err(StoreError::WrongKey);
    }
    let mut key = Zeroizing::new([0_u8; 32]);
    environment.fill(key.as_mut_slice())?;
    let (mut salt, mut nonce) = ([0_u8; 16], [0_u8; 24]);
    environment.fill(&mut salt)?;
    environment.fill(&mut nonce)?;
    let cipher = wrapping_key(passphrase, &salt).ok_or(StoreError::WrongKey)?;
    let payload = Payload {
        msg: key.as_slice(),
        aad: CONTEXT,
    };
    let sealed = XChaCha20Poly1305::new((&*cipher).into())
        .encrypt(&XNonce::from(nonce), payload)
        .map_err(|_| StoreError::WrongKey)?;
    sqlx::query("INSERT INTO items (kind, partition, id, value) VALUES ($1, '', '', $2)")
        .bind(KIND)
        .bind([&salt[..], &nonce[..], &sealed[..]].concat())
        .execute(database)
        .await?;
    Ok(SealKey::from_bytes(*key))
}

fn unwrap(wrapped: &[u8], passphrase: &Secret) -> Option<SealKey> {
    let (salt, rest) = wrapped.split_first_chunk::<16>()?;
    let (nonce, sealed) = rest.split_first_chunk::<24>()?;
    let cipher = wrapping_key(passphrase, salt)?;
    let payload = Payload {
        msg: sealed,
        aad: CONTEXT,
    };
    let key = XChaCha20Poly1305::new((&*cipher).into())
        .decrypt(&XNonce::from(*nonce), payload)
        .map(Zeroizing::new)
        .ok()?;
    Some(SealKey::from_bytes(key.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::store::{Changes, Key, SqliteStore, Store, Table};

    #[tokio::test]
    async fn t_sto_1_a_passphrase_opens_the_store_and_another_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.sqlite");
        let passphrase = Secret::new("correct horse battery staple");
        let canary = "a very secret ratchet";
        let key = Key::new(Table::Meta, "partition canary", "id canary");
        {
            let store = SqliteStore::open_with_passphrase(&path, &passphrase);
            let store = store.await.unwrap();
            let mut changes = Changes::default();
            let value = format!("\"{canary}\"").into_bytes();
            changes.put(key.clone(), Zeroizing::new(value));
            store.commit(changes).await.unwrap();
        }
        for wrong in ["", "Correct horse battery staple"] {
            let opened = SqliteStore::open_with_passphrase(&path, &Secret::new(wrong)).await;
            assert!(matches!(opened, Err(StoreError::WrongKey)));
        }
        assert!(SqliteStore::open(&path).await.is_err());
        // As long as it is open, no file of it goes away.
        let store = SqliteStore::open_with_passphrase(&path, &passphrase).await;
        let store = store.unwrap();
        let value = store.get(&key).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&value).contains(canary));
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            for word in [canary, "partition canary", "id canary", "correct horse"] {
                assert!(!text.contains(word), "{word}");
            }
        }
    }

    #[tokio::test]
    async fn a_store_without_a_passphrase_is_not_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.sqlite");
        drop(SqliteStore::open(&path).await.unwrap());
        let opened = SqliteStore::open_with_passphrase(&path, &Secret::new("x")).await;
        assert!(matches!(opened, Err(StoreError::WrongKey)));
    }
}
