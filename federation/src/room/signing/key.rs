//! Our own signing key.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerSigningKeyId, ServerName,
    ServerSigningKeyId,
    room_version_rules::RedactionRules,
    serde::{Base64, base64::Standard},
    signatures::{Ed25519KeyPair, KeyPair, sign_json},
};
use zeroize::Zeroizing;

use crate::room::object::Object;

/// The header of a private key of Ed25519 in PKCS #8 version 1
/// ([RFC 8410](https://www.rfc-editor.org/rfc/rfc8410#section-7)); the 32 bytes of the seed follow.
const PKCS8_HEADER: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The key with which a server signs events, requests and its list of keys
/// ([spec](https://spec.matrix.org/v1.19/appendices/#signing-json)).
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
    id: OwnedServerSigningKeyId,
}

impl SigningKey {
    /// Makes a new key from the randomness of the operating system, with a name of its own: a
    /// name must never be used for two keys.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        let mut name = [0; 4];
        getrandom::fill(&mut name).map_err(|_| KeyError::NoRandomness)?;
        Self::from_seed_bytes(&format!("s_{:08x}", u32::from_be_bytes(name)), seed)
    }

    /// Reads a key that [`SigningKey::to_seed`] wrote. `version` is the part of its id after the
    /// colon.
    pub fn from_seed(version: &str, seed: &str) -> Result<Self, KeyError> {
        let decoded = Base64::<Standard>::parse(seed.trim()).map_err(|_| KeyError::Seed)?;
        let bytes = Zeroizing::new(decoded.into_inner());
        let seed = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Seed)?;
        Self::from_seed_bytes(version, Zeroizing::new(seed))
    }

    fn from_seed_bytes(version: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        let id = format!("ed25519:{version}")
            .try_into()
            .map_err(|_| KeyError::Version)?;
        let mut document = Zeroizing::new(Vec::with_capacity(48));
        document.extend_from_slice(&PKCS8_HEADER);
        document.extend_from_slice(seed.as_ref());
        let pair =
            Ed25519KeyPair::from_der(&document, version.to_owned()).map_err(|_| KeyError::Seed)?;
        Ok(Self { pair, seed, id })
    }

    /// The secret, as unpadded base64, to be kept in a file that only the server can read.
    #[must_use]
    pub fn to_seed(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::<Standard, &[u8]>::new(self.seed.as_ref()).encode())
    }

    /// The id, `ed25519:` and the version.
    #[must_use]
    pub fn id(&self) -> &ServerSigningKeyId {
        &self.id
    }

    /// The part of the id after the colon.
    #[must_use]
    pub fn version(&self) -> &str {
        self.pair.version()
    }

    /// The public key, as unpadded base64.
    #[must_use]
    pub fn public_key_base64(&self) -> String {
        self.public_key().encode()
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> Base64 {
        Base64::new(self.pair.public_key().to_vec())
    }

    /// Adds the signature of `server_name`, which is ours, to an object
    /// ([spec](https://spec.matrix.org/v1.19/appendices/#signing-details)).
    ///
    /// For structures that we built, never for those that others supplied.
    pub fn sign_json(
        &self,
        object: &mut CanonicalJsonObject,
        server_name: &ServerName,
    ) -> Result<(), KeyError> {
        sign_json(server_name.as_str(), &self.pair, object).map_err(|_| KeyError::Unsignable)
    }

    /// Signs bytes that are canonical JSON.
    pub(crate) fn sign_bytes(&self, canonical_json: &[u8]) -> Base64 {
        Base64::new(self.pair.sign(canonical_json).as_bytes().to_vec())
    }

    /// Adds our signature to an event that has its content hash.
    pub(in crate::room) fn sign_event(
        &self,
        object: &mut Object,
        server_name: &ServerName,
        rules: &RedactionRules,
    ) -> Result<(), KeyError> {
        let signed = object.signed_json(rules);
        let signature = self.sign_bytes(signed.map_err(|_| KeyError::Unsignable)?.as_bytes());
        let mut signatures = match object.map().get("signatures") {
            None => CanonicalJsonObject::new(),
            Some(CanonicalJsonValue::Object(signatures)) => signatures.clone(),
            Some(_) => return Err(KeyError::Unsignable),
        };
        let of_server = signatures
            .entry(server_name.to_string())
            .or_insert_with(|| CanonicalJsonObject::new().into());
        let CanonicalJsonValue::Object(of_server) = of_server else {
            return Err(KeyError::Unsignable);
        };
        of_server.insert(self.id.to_string(), signature.encode().into());
        object.insert("signatures", signatures.into());
        Ok(())
    }
}

/// Shows the public part.
impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Why there is no signing key, or no signature by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The operating system has no random numbers.
    #[error("the operating system gave no random numbers")]
    NoRandomness,
    /// Not 32 bytes in base64.
    #[error("the seed of a signing key is 32 bytes in base64")]
    Seed,
    /// The version has other characters than `[a-zA-Z0-9_]`.
    #[error("the version of a signing key consists of letters, digits and `_`")]
    Version,
    /// The object has `signatures` that are not of the form that the specification gives them.
    #[error("the object has malformed signatures")]
    Unsignable,
}
