//! What requests to a bucket are signed with: the hashes that the rest of the server uses.

use hmac::{Hmac, KeyInit, Mac};
use object_store::{
    Error, Result,
    client::{
        CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm,
    },
};
use sha2::{Digest, Sha256};

/// SHA-256, and HMAC with it.
#[derive(Debug)]
pub(super) struct Hashes;

/// A hash under way, and what came of it.
struct Hashing<H> {
    state: H,
    out: Vec<u8>,
}

impl CryptoProvider for Hashes {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hashing {
                state: Sha256::new(),
                out: Vec::new(),
            })),
            _ => Err(unknown()),
        }
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hashing {
                state: Hmac::<Sha256>::new_from_slice(secret).map_err(|_| unknown())?,
                out: Vec::new(),
            })),
            _ => Err(unknown()),
        }
    }

    fn sign(&self, _: SigningAlgorithm, _: &[u8]) -> Result<Box<dyn Signer>> {
        // S3 asks for none.
        Err(unknown())
    }
}

impl DigestContext for Hashing<Sha256> {
    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.state, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.out = self.state.clone().finalize().to_vec();
        Ok(&self.out)
    }
}

impl HmacContext for Hashing<Hmac<Sha256>> {
    fn update(&mut self, data: &[u8]) {
        Mac::update(&mut self.state, data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.out = self.state.clone().finalize().into_bytes().to_vec();
        Ok(&self.out)
    }
}

fn unknown() -> Error {
    Error::NotSupported {
        source: "there is no such algorithm here".into(),
    }
}
