//! Encrypted attachments, version 2.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#sending-encrypted-attachments>

mod download;
mod metadata;
mod upload;

use std::collections::BTreeMap;

use aes::{
    Aes256,
    cipher::{KeyIvInit, StreamCipher},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ruma::OwnedMxcUri;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

pub(crate) use self::{
    download::{Download, KeepError},
    metadata::{is_picture, without_metadata},
    upload::Upload,
};
use crate::environment::{Environment, RandomnessError};

type Aes256Ctr = ctr::Ctr128BE<Aes256>;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_encode_padding(false)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Where an encrypted file is and how it is opened: an `EncryptedFile` of the specification.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#definition-encryptedfile>
#[derive(Clone, Serialize, Deserialize)]
pub struct EncryptedFile {
    /// The ciphertext.
    pub url: OwnedMxcUri,
    #[serde(flatten)]
    secrets: FileSecrets,
}

/// The part of an [`EncryptedFile`] that exists before it is uploaded.
#[derive(Clone, Serialize, Deserialize)]
pub struct FileSecrets {
    key: JsonWebKey,
    iv: String,
    hashes: BTreeMap<String, String>,
    v: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct JsonWebKey {
    kty: String,
    key_ops: Vec<String>,
    alg: String,
    k: String,
    ext: bool,
}

impl Drop for JsonWebKey {
    fn drop(&mut self) {
        self.k.zeroize();
    }
}

impl FileSecrets {
    /// Completes them with the place where the ciphertext was uploaded to.
    #[must_use]
    pub fn at(self, url: OwnedMxcUri) -> EncryptedFile {
        EncryptedFile { url, secrets: self }
    }
}

impl std::fmt::Debug for EncryptedFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("EncryptedFile")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for FileSecrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("FileSecrets")
            .finish_non_exhaustive()
    }
}

/// Why an attachment was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachmentError {
    /// Its version is not one that is supported.
    #[error("the version of the attachment is not supported")]
    UnsupportedVersion,
    /// Its key is not a key for AES-256-CTR.
    #[error("the key of the attachment is invalid")]
    InvalidKey,
    /// Its initialization vector is none.
    #[error("the initialization vector of the attachment is invalid")]
    InvalidIv,
    /// It has no SHA-256 hash.
    #[error("the attachment has no hash")]
    MissingHash,
    /// The ciphertext is not the one that was sent.
    #[error("the attachment was changed on the way")]
    Changed,
}

/// Encrypts a file with a fresh key and returns the ciphertext and what is needed to open it.
pub fn encrypt(
    mut file: Vec<u8>,
    environment: &dyn Environment,
) -> Result<(Vec<u8>, FileSecrets), RandomnessError> {
    let mut encryptor = Encryptor::new(environment)?;
    encryptor.update(&mut file);
    Ok((file, encryptor.finish()))
}

/// Opens a ciphertext.
///
/// AES-CTR can be changed by anybody who stores it, so nothing is returned before the hash of the
/// whole ciphertext was compared.
pub fn decrypt(mut ciphertext: Vec<u8>, file: &EncryptedFile) -> Result<Vec<u8>, AttachmentError> {
    let mut decryptor = Decryptor::new(file)?;
    decryptor.update(&mut ciphertext);
    decryptor.finish()?;
    Ok(ciphertext)
}

/// Encrypts a file piece by piece, for files that are larger than the memory should be.
///
/// A file that is read once more is encrypted with another `Encryptor`: if it has changed in between,
/// one key would have encrypted two files, and both could be read.
pub struct Encryptor {
    key: Zeroizing<[u8; 32]>,
    iv: [u8; 16],
    cipher: Aes256Ctr,
    hash: Sha256,
}

impl Encryptor {
    /// Starts with a fresh key.
    pub fn new(environment: &dyn Environment) -> Result<Self, RandomnessError> {
        let mut key = Zeroizing::new([0_u8; 32]);
        environment.fill(&mut *key)?;
        // The last eight bytes count blocks and start at zero.
        let mut iv = [0_u8; 16];
        let (random, _) = iv.split_at_mut(8);
        environment.fill(random)?;
        Ok(Self {
            cipher: Aes256Ctr::new((&*key).into(), &iv.into()),
            key,
            iv,
            hash: Sha256::new(),
        })
    }

    /// Encrypts the next piece in place.
    pub fn update(&mut self, piece: &mut [u8]) {
        self.cipher.apply_keystream(piece);
        self.hash.update(piece);
    }

    /// What is needed to open what was encrypted.
    #[must_use]
    pub fn finish(self) -> FileSecrets {
        FileSecrets {
            key: JsonWebKey {
                kty: "oct".to_owned(),
                key_ops: vec!["encrypt".to_owned(), "decrypt".to_owned()],
                alg: "A256CTR".to_owned(),
                k: URL_SAFE.encode(*self.key),
                ext: true,
            },
            iv: STANDARD.encode(self.iv),
            hashes: BTreeMap::from([("sha256".to_owned(), STANDARD.encode(self.hash.finalize()))]),
            v: "v2".to_owned(),
        }
    }
}

impl std::fmt::Debug for Encryptor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Encryptor").finish_non_exhaustive()
    }
}

/// Opens a ciphertext piece by piece.
///
/// Whoever stores the ciphertext may have changed it, and only [`Decryptor::finish`] knows: until
/// then what comes out belongs into a place where nobody looks at it.
/// [`Client::download_attachment_to`](crate::Client::download_attachment_to) does it so.
pub struct Decryptor {
    cipher: Aes256Ctr,
    hash: Sha256,
    expected: [u8; 32],
}

impl Decryptor {
    /// Starts with the first piece.
    pub fn new(file: &EncryptedFile) -> Result<Self, AttachmentError> {
        let secrets = &file.secrets;
        if secrets.v != "v2" {
            return Err(AttachmentError::UnsupportedVersion);
        }
        if secrets.key.kty != "oct" || secrets.key.alg != "A256CTR" {
            return Err(AttachmentError::InvalidKey);
        }
        let expected = secrets.hashes.get("sha256");
        let expected = expected.and_then(|hash| decode(&STANDARD, hash));
        let key = decode::<32>(&URL_SAFE, &secrets.key.k).ok_or(AttachmentError::InvalidKey)?;
        let key = Zeroizing::new(key);
        let iv: [u8; 16] = decode(&STANDARD, &secrets.iv).ok_or(AttachmentError::InvalidIv)?;
        Ok(Self {
            cipher: Aes256Ctr::new((&*key).into(), &iv.into()),
            hash: Sha256::new(),
            expected: expected.ok_or(AttachmentError::MissingHash)?,
        })
    }

    /// Decrypts the next piece in place.
    pub fn update(&mut self, piece: &mut [u8]) {
        self.hash.update(&*piece);
        self.cipher.apply_keystream(piece);
    }

    /// Whether all pieces together were what the sender has sent.
    pub fn finish(self) -> Result<(), AttachmentError> {
        if <[u8; 32]>::from(self.hash.finalize()) == self.expected {
            Ok(())
        } else {
            Err(AttachmentError::Changed)
        }
    }
}

impl std::fmt::Debug for Decryptor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Decryptor").finish_non_exhaustive()
    }
}

fn decode<const N: usize>(engine: &GeneralPurpose, text: &str) -> Option<[u8; N]> {
    Zeroizing::new(engine.decode(text).ok()?)
        .as_slice()
        .try_into()
        .ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::environment::SystemEnvironment;

    fn encrypted(file: &[u8]) -> (Vec<u8>, EncryptedFile) {
        let (ciphertext, secrets) = encrypt(file.to_vec(), &SystemEnvironment).unwrap();
        (ciphertext, secrets.at("mxc://example.org/file".into()))
    }

    /// The whole in pieces of these sizes, over and over.
    fn pieces<'a>(
        mut rest: &'a mut [u8],
        sizes: &'a [usize],
    ) -> impl Iterator<Item = &'a mut [u8]> {
        let mut sizes = sizes.iter().cycle();
        std::iter::from_fn(move || {
            let size = (*sizes.next()?).min(rest.len());
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(size);
            rest = after;
            (!piece.is_empty()).then_some(piece)
        })
    }

    proptest! {
        #[test]
        fn what_is_encrypted_is_decrypted(file: Vec<u8>) {
            let (ciphertext, info) = encrypted(&file);
            let info: EncryptedFile =
                serde_json::from_str(&serde_json::to_string(&info).unwrap()).unwrap();
            prop_assert_eq!(decrypt(ciphertext, &info).unwrap(), file);
        }

        #[test]
        fn pieces_of_any_size_are_the_same_file(
            file: Vec<u8>,
            sizes in proptest::collection::vec(1_usize..100, 1..20),
        ) {
            let mut ciphertext = file.clone();
            let mut encryptor = Encryptor::new(&SystemEnvironment).unwrap();
            for piece in pieces(&mut ciphertext, &sizes) {
                encryptor.update(piece);
            }
            let info = encryptor.finish().at("mxc://example.org/file".into());
            prop_assert_eq!(&decrypt(ciphertext.clone(), &info).unwrap(), &file);
            let mut decryptor = Decryptor::new(&info).unwrap();
            let sizes: Vec<usize> = sizes.into_iter().rev().collect();
            for piece in pieces(&mut ciphertext, &sizes) {
                decryptor.update(piece);
            }
            prop_assert_eq!(decryptor.finish(), Ok(()));
            prop_assert_eq!(ciphertext, file);
        }

        #[test]
        fn t_att_1_one_flipped_bit_gives_an_error_and_nothing_else(
            file in proptest::collection::vec(any::<u8>(), 1..2000),
            at: prop::sample::Index,
            bit in 0_u8..8,
        ) {
            let (mut ciphertext, info) = encrypted(&file);
            prop_assert_eq!(decrypt(ciphertext.clone(), &info).unwrap(), file);
            let at = at.index(ciphertext.len());
            ciphertext[at] ^= 1 << bit;
            prop_assert_eq!(decrypt(ciphertext, &info).unwrap_err(), AttachmentError::Changed);
        }
    }

    #[test]
    fn each_file_has_a_key_and_a_vector_of_its_own_and_the_counter_starts_at_zero() {
        let (one, other) = (encrypted(b"same").1, encrypted(b"same").1);
        assert_ne!(one.secrets.key.k, other.secrets.key.k);
        assert_ne!(one.secrets.iv, other.secrets.iv);
        let iv: [u8; 16] = decode(&STANDARD, &one.secrets.iv).unwrap();
        assert_eq!(iv[8..], [0; 8]);
    }

    #[test]
    fn the_shape_is_that_of_the_specification() {
        let value = serde_json::to_value(encrypted(b"file").1).unwrap();
        assert_eq!(value["v"], "v2");
        assert_eq!(value["url"], "mxc://example.org/file");
        assert_eq!(value["key"]["alg"], "A256CTR");
        assert_eq!(value["key"]["ext"], true);
        assert_eq!(value["key"]["kty"], "oct");
        assert_eq!(value["key"]["key_ops"], json!(["encrypt", "decrypt"]));
        assert_eq!(value["key"]["k"].as_str().unwrap().len(), 43);
        assert_eq!(value["iv"].as_str().unwrap().len(), 22);
        assert_eq!(value["hashes"]["sha256"].as_str().unwrap().len(), 43);
    }

    /// A vector made with another implementation of AES-256-CTR (OpenSSL).
    #[test]
    fn a_foreign_file_is_opened() {
        let key: [u8; 32] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let ciphertext = STANDARD.decode("Cw0P8UiaORivlqWC8vMNx4s").unwrap();
        let info = json!({
            "url": "mxc://example.org/file",
            "v": "v2",
            "key": {
                "kty": "oct", "alg": "A256CTR", "ext": true, "key_ops": ["decrypt"],
                "k": URL_SAFE.encode(key),
            },
            "iv": "AQIDBAUGBwgAAAAAAAAAAA==",
            "hashes": { "sha256": STANDARD.encode(Sha256::digest(&ciphertext)) },
        });
        let info: EncryptedFile = serde_json::from_value(info).unwrap();
        assert_eq!(decrypt(ciphertext, &info).unwrap(), b"not only ours, so");
    }

    #[test]
    fn malformed_secrets_are_errors() {
        let (ciphertext, info) = encrypted(b"file");
        let good = serde_json::to_value(&info).unwrap();
        let try_with = |pointer: &str, value: Value| {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let bad: EncryptedFile = serde_json::from_value(bad).unwrap();
            decrypt(ciphertext.clone(), &bad).unwrap_err()
        };
        assert_eq!(
            try_with("/v", json!("v1")),
            AttachmentError::UnsupportedVersion
        );
        assert_eq!(
            try_with("/key/k", json!("AAAA")),
            AttachmentError::InvalidKey
        );
        assert_eq!(
            try_with("/key/alg", json!("A128CTR")),
            AttachmentError::InvalidKey
        );
        assert_eq!(try_with("/iv", json!("AAAA")), AttachmentError::InvalidIv);
        assert_eq!(try_with("/hashes", json!({})), AttachmentError::MissingHash);
        assert_eq!(
            try_with("/hashes/sha256", json!("?")),
            AttachmentError::MissingHash
        );
    }
}
