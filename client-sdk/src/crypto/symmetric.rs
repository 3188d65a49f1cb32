//! AES-256-CTR with HMAC-SHA-256, as secret storage and key files use it.

use aes::{
    Aes256,
    cipher::{KeyIvInit, StreamCipher},
};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use crate::environment::{Environment, RandomnessError};

type Aes256Ctr = ctr::Ctr128BE<Aes256>;
type HmacSha256 = Hmac<Sha256>;

/// A key for the cipher and one for the authentication.
pub(crate) struct CipherKeys(Zeroizing<[u8; 64]>);

impl CipherKeys {
    /// By HKDF-SHA-256 with a salt of zeros.
    pub(crate) fn derive(key: &[u8; 32], info: &str) -> Option<Self> {
        let mut keys = Zeroizing::new([0_u8; 64]);
        Hkdf::<Sha256>::new(Some(&[0_u8; 32]), key)
            .expand(info.as_bytes(), keys.as_mut_slice())
            .ok()?;
        Some(Self(keys))
    }

    /// By PBKDF2-SHA-512.
    pub(crate) fn from_passphrase(passphrase: &str, salt: &[u8], rounds: u32) -> Option<Self> {
        let mut keys = Zeroizing::new([0_u8; 64]);
        let passphrase = passphrase.as_bytes();
        pbkdf2::pbkdf2::<Hmac<Sha512>>(passphrase, salt, rounds, keys.as_mut_slice()).ok()?;
        Some(Self(keys))
    }

    /// Encrypts or decrypts in place.
    pub(crate) fn apply(&self, iv: &[u8; 16], data: &mut [u8]) -> Option<()> {
        let key: &[u8; 32] = self.0.first_chunk()?;
        Aes256Ctr::new(key.into(), iv.into()).apply_keystream(data);
        Some(())
    }

    fn hmac(&self, data: &[u8]) -> Option<HmacSha256> {
        let key: &[u8; 32] = self.0.last_chunk()?;
        let hmac = <HmacSha256 as KeyInit>::new_from_slice(key).ok()?;
        Some(hmac.chain_update(data))
    }

    /// The authentication code of some data.
    pub(crate) fn mac(&self, data: &[u8]) -> Option<Vec<u8>> {
        Some(self.hmac(data)?.finalize().into_bytes().to_vec())
    }

    /// Compares an authentication code, in constant time.
    pub(crate) fn is_authentic(&self, data: &[u8], mac: &[u8]) -> bool {
        self.hmac(data)
            .is_some_and(|hmac| hmac.verify_slice(mac).is_ok())
    }
}

/// A key of 32 bytes from a passphrase, by PBKDF2-SHA-512.
pub(crate) fn key_from_passphrase(
    passphrase: &str,
    salt: &str,
    rounds: u32,
) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0_u8; 32]);
    let (passphrase, salt) = (passphrase.as_bytes(), salt.as_bytes());
    pbkdf2::pbkdf2::<Hmac<Sha512>>(passphrase, salt, rounds, key.as_mut_slice()).ok()?;
    Some(key)
}

/// An initialization vector. Bit 63 is zero, because implementations of the counter differ.
pub(crate) fn fresh_iv(environment: &dyn Environment) -> Result<[u8; 16], RandomnessError> {
    let mut iv = [0_u8; 16];
    environment.fill(&mut iv)?;
    iv[8] &= 0x7f;
    Ok(iv)
}
