//! Secrets on the server, encrypted with a key that only the user has.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#storage>

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vodozemac::{base64_decode, base64_encode};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    Secret,
    symmetric::{CipherKeys, fresh_iv, key_from_passphrase},
};
use crate::environment::{Environment, RandomnessError};

/// The only algorithm.
const ALGORITHM: &str = "m.secret_storage.v1.aes-hmac-sha2";
const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// What a recovery key begins with.
const PREFIX: [u8; 2] = [0x8b, 0x01];
/// Rounds of PBKDF2 for new passphrases.
const ROUNDS: u32 = 500_000;
/// The server keeps the number of rounds: fewer than this would help it to guess, more than the
/// other would only keep us busy.
const FEWEST_ROUNDS: u32 = 100_000;
const MOST_ROUNDS: u32 = 10_000_000;

/// The key that opens the secrets.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct StorageKey([u8; 32]);

impl std::fmt::Debug for StorageKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("StorageKey(..)")
    }
}

/// Why a key or a secret could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretStorageError {
    /// The text is not a recovery key: mistyped, or cut off.
    #[error("this is not a recovery key")]
    NotARecoveryKey,
    /// The description of the key cannot be used, or asks for a dangerous number of rounds.
    #[error("the description of the key cannot be used")]
    UnusableDescription,
    /// The key is another one.
    #[error("this is not the key that encrypted the secrets")]
    WrongKey,
    /// The secret was not encrypted with this key, or was changed.
    #[error("the secret cannot be decrypted")]
    Undecryptable,
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
}

/// `m.secret_storage.key.[key ID]`: how a key can be recognized.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#msecret_storagev1aes-hmac-sha2>
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDescription {
    algorithm: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passphrase: Option<PassphraseDescription>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PassphraseDescription {
    algorithm: String,
    salt: String,
    iterations: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Encrypted {
    iv: String,
    ciphertext: String,
    mac: String,
}

impl StorageKey {
    /// A random key.
    pub fn generate(environment: &dyn Environment) -> Result<Self, RandomnessError> {
        let mut bytes = [0_u8; 32];
        environment.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// A key from a passphrase, with the description that it takes to make it again.
    pub fn new_from_passphrase(
        environment: &dyn Environment,
        passphrase: &Secret,
    ) -> Result<(Self, KeyDescription), SecretStorageError> {
        let mut salt = [0_u8; 24];
        environment.fill(&mut salt)?;
        let salt = base64_encode(salt);
        let key = key_from_passphrase(passphrase.expose(), &salt, ROUNDS)
            .ok_or(SecretStorageError::UnusableDescription)?;
        let key = Self(*key);
        let mut description = key.describe(environment)?;
        description.passphrase = Some(PassphraseDescription {
            algorithm: "m.pbkdf2".to_owned(),
            salt,
            iterations: u64::from(ROUNDS),
            bits: None,
        });
        Ok((key, description))
    }

    /// The key that a passphrase makes, if it is the one that is described.
    pub fn from_passphrase(
        passphrase: &Secret,
        description: &KeyDescription,
    ) -> Result<Self, SecretStorageError> {
        let how = description
            .passphrase
            .as_ref()
            .filter(|how| how.algorithm == "m.pbkdf2" && how.bits.is_none_or(|bits| bits == 256))
            .ok_or(SecretStorageError::UnusableDescription)?;
        let rounds = u32::try_from(how.iterations)
            .ok()
            .filter(|rounds| (FEWEST_ROUNDS..=MOST_ROUNDS).contains(rounds))
            .ok_or(SecretStorageError::UnusableDescription)?;
        let key = key_from_passphrase(passphrase.expose(), &how.salt, rounds)
            .ok_or(SecretStorageError::UnusableDescription)?;
        let key = Self(*key);
        key.check(description)?;
        Ok(key)
    }

    /// Reads what a person keeps on paper. Spaces do not matter.
    ///
    /// <https://spec.matrix.org/v1.19/appendices/#cryptographic-key-representation>
    pub fn from_recovery_key(text: &Secret) -> Result<Self, SecretStorageError> {
        let bytes = base58_decode(text.expose()).ok_or(SecretStorageError::NotARecoveryKey)?;
        let wrong = SecretStorageError::NotARecoveryKey;
        let parity = bytes.iter().fold(0, |sum, byte| sum ^ byte);
        let key = bytes.strip_prefix(&PREFIX).ok_or(wrong)?;
        let (key, rest) = key.split_first_chunk::<32>().ok_or(wrong)?;
        if parity != 0 || rest.len() != 1 {
            return Err(wrong);
        }
        Ok(Self(*key))
    }

    /// The key as a person keeps it on paper, in groups of four.
    #[must_use]
    pub fn recovery_key(&self) -> Secret {
        let mut bytes = Zeroizing::new(Vec::with_capacity(35));
        bytes.extend(PREFIX);
        bytes.extend(self.0);
        let parity = bytes.iter().fold(0, |sum, byte| sum ^ byte);
        bytes.push(parity);
        let text = Zeroizing::new(base58_encode(&bytes));
        let groups: Vec<&str> = text
            .as_bytes()
            .chunks(4)
            .filter_map(|group| std::str::from_utf8(group).ok())
            .collect();
        Secret::new(groups.join(" "))
    }

    /// Describes the key, so that it can be recognized.
    pub fn describe(
        &self,
        environment: &dyn Environment,
    ) -> Result<KeyDescription, SecretStorageError> {
        let iv = fresh_iv(environment)?;
        let mac = self
            .mac_of_zeros(&iv)
            .ok_or(SecretStorageError::UnusableDescription)?;
        Ok(KeyDescription {
            algorithm: ALGORITHM.to_owned(),
            name: None,
            passphrase: None,
            iv: Some(base64_encode(iv)),
            mac: Some(base64_encode(mac)),
        })
    }

    /// Checks that this is the key that is described.
    ///
    /// A description without a check matches every key: what the key opens has to be checked
    /// against what is known, as [`Machine::take_private_keys`](super::Machine::take_private_keys)
    /// does.
    pub fn check(&self, description: &KeyDescription) -> Result<(), SecretStorageError> {
        if description.algorithm != ALGORITHM {
            return Err(SecretStorageError::UnusableDescription);
        }
        let (Some(iv), Some(mac)) = (&description.iv, &description.mac) else {
            return Ok(());
        };
        let unusable = SecretStorageError::UnusableDescription;
        let iv: [u8; 16] = decode(iv).ok_or(unusable)?;
        let expected = base64_decode(mac).map_err(|_| unusable)?;
        let keys = CipherKeys::derive(&self.0, "").ok_or(unusable)?;
        let mut zeros = [0_u8; 32];
        keys.apply(&iv, &mut zeros).ok_or(unusable)?;
        if keys.is_authentic(&zeros, &expected) {
            Ok(())
        } else {
            Err(SecretStorageError::WrongKey)
        }
    }

    fn mac_of_zeros(&self, iv: &[u8; 16]) -> Option<Vec<u8>> {
        let keys = CipherKeys::derive(&self.0, "")?;
        let mut zeros = [0_u8; 32];
        keys.apply(iv, &mut zeros)?;
        keys.mac(&zeros)
    }

    /// Encrypts a secret: the content of its account data. `key_id` names this key.
    pub fn encrypt(
        &self,
        environment: &dyn Environment,
        key_id: &str,
        name: &str,
        secret: &Secret,
    ) -> Result<Map<String, Value>, SecretStorageError> {
        let iv = fresh_iv(environment)?;
        let failed = SecretStorageError::Undecryptable;
        let keys = CipherKeys::derive(&self.0, name).ok_or(failed)?;
        let mut data = secret.expose().as_bytes().to_vec();
        keys.apply(&iv, &mut data).ok_or(failed)?;
        let mac = keys.mac(&data).ok_or(failed)?;
        let encrypted = Encrypted {
            iv: base64_encode(iv),
            ciphertext: base64_encode(data),
            mac: base64_encode(mac),
        };
        let content = json!({ "encrypted": { key_id: encrypted } });
        Ok(content.as_object().cloned().unwrap_or_default())
    }

    /// Decrypts a secret from the content of its account data.
    pub fn decrypt(
        &self,
        key_id: &str,
        name: &str,
        content: &Map<String, Value>,
    ) -> Result<Secret, SecretStorageError> {
        let failed = SecretStorageError::Undecryptable;
        let encrypted = content.get("encrypted").and_then(|all| all.get(key_id));
        let encrypted = encrypted.ok_or(failed)?;
        let encrypted: Encrypted = Encrypted::deserialize(encrypted).map_err(|_| failed)?;
        let iv: [u8; 16] = decode(&encrypted.iv).ok_or(failed)?;
        let data = base64_decode(&encrypted.ciphertext).map_err(|_| failed)?;
        let mac = base64_decode(&encrypted.mac).map_err(|_| failed)?;
        let keys = CipherKeys::derive(&self.0, name).ok_or(failed)?;
        if !keys.is_authentic(&data, &mac) {
            return Err(failed);
        }
        let mut data = Zeroizing::new(data);
        keys.apply(&iv, &mut data).ok_or(failed)?;
        let text = std::str::from_utf8(&data).map_err(|_| failed)?;
        Ok(Secret::new(text))
    }
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    base64_decode(text).ok()?.try_into().ok()
}

fn base58_encode(bytes: &[u8]) -> String {
    let mut digits: Vec<u8> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = u8::try_from(carry % 58).unwrap_or_default();
            carry /= 58;
        }
        while carry > 0 {
            digits.push(u8::try_from(carry % 58).unwrap_or_default());
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).map(|_| '1');
    let digits = digits.iter().rev();
    let digits = digits.filter_map(|digit| BASE58.get(usize::from(*digit)));
    zeros
        .chain(digits.map(|digit| char::from(*digit)))
        .collect()
}

fn base58_decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes: Zeroizing<Vec<u8>> = Zeroizing::new(Vec::new());
    // Longer than any recovery key; the time grows with the square.
    if text.len() > 512 {
        return None;
    }
    for symbol in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let digit = BASE58.iter().position(|known| *known == symbol)?;
        let mut carry = u32::try_from(digit).ok()?;
        for byte in bytes.iter_mut() {
            carry += u32::from(*byte) * 58;
            *byte = u8::try_from(carry & 0xff).ok()?;
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push(u8::try_from(carry & 0xff).ok()?);
            carry >>= 8;
        }
    }
    bytes.reverse();
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::environment::SystemEnvironment;

    #[test]
    fn t_4s_1_recovery_keys_round_trip_and_mistakes_are_noticed() {
        let key = StorageKey::generate(&SystemEnvironment).unwrap();
        let text = key.recovery_key();
        assert!(text.expose().starts_with("Es"));
        assert_eq!(StorageKey::from_recovery_key(&text).unwrap().0, key.0);
        let spaceless = Secret::new(text.expose().replace(' ', ""));
        assert_eq!(StorageKey::from_recovery_key(&spaceless).unwrap().0, key.0);
        for wrong in ["", "Es", "0OIl", &text.expose()[..50], &"1".repeat(60)] {
            let error = StorageKey::from_recovery_key(&Secret::new(wrong));
            assert_eq!(error.unwrap_err(), SecretStorageError::NotARecoveryKey);
        }
        let mut other: Vec<char> = spaceless.expose().chars().collect();
        let last = other.last_mut().unwrap();
        *last = if *last == '2' { '3' } else { '2' };
        let other = Secret::new(other.into_iter().collect::<String>());
        assert!(StorageKey::from_recovery_key(&other).is_err());
    }

    /// A key in the form in which other clients show it.
    #[test]
    fn t_4s_2_keys_of_other_clients_are_read() {
        let text = "EsTc LW2K PGiF wKEA 3As5 g5c4 BXwk qeeJ ZJV8 Q9fu gUMN UE4d";
        let key = StorageKey::from_recovery_key(&Secret::new(text)).unwrap();
        assert_eq!(key.recovery_key().expose(), text);
    }

    #[test]
    fn t_4s_3_secrets_open_with_their_key_and_under_their_name_only() {
        let environment = SystemEnvironment;
        let key = StorageKey::generate(&environment).unwrap();
        let other = StorageKey::generate(&environment).unwrap();
        let secret = Secret::new("the secret");
        let content = key.encrypt(&environment, "k", "name", &secret).unwrap();
        assert_eq!(key.decrypt("k", "name", &content).unwrap(), secret);
        assert!(key.decrypt("k", "another name", &content).is_err());
        assert!(key.decrypt("another key", "name", &content).is_err());
        assert!(other.decrypt("k", "name", &content).is_err());
        let mut changed = content.clone();
        let ciphertext = changed["encrypted"]["k"]["ciphertext"].as_str().unwrap();
        let mut bytes = base64_decode(ciphertext).unwrap();
        bytes[0] ^= 1;
        changed["encrypted"]["k"]["ciphertext"] = base64_encode(bytes).into();
        assert!(key.decrypt("k", "name", &changed).is_err());
        let mut padded = content;
        let mac = padded["encrypted"]["k"]["mac"].as_str().unwrap();
        padded["encrypted"]["k"]["mac"] = format!("{mac}=").into();
        assert_eq!(key.decrypt("k", "name", &padded).unwrap(), secret);
    }

    #[test]
    fn t_4s_4_a_description_recognizes_its_key() {
        let environment = SystemEnvironment;
        let key = StorageKey::generate(&environment).unwrap();
        let description = key.describe(&environment).unwrap();
        let other = StorageKey::generate(&environment).unwrap();
        assert_eq!(key.check(&description), Ok(()));
        assert_eq!(other.check(&description), Err(SecretStorageError::WrongKey));
    }

    #[test]
    fn t_4s_5_the_server_cannot_make_a_passphrase_cheap_to_guess() {
        let passphrase = Secret::new("correct horse battery staple");
        for iterations in [0, 1, 99_999, 100_000, 10_000_001, u64::MAX] {
            let description = KeyDescription {
                algorithm: ALGORITHM.to_owned(),
                name: None,
                passphrase: Some(PassphraseDescription {
                    algorithm: "m.pbkdf2".to_owned(),
                    salt: "salt".to_owned(),
                    iterations,
                    bits: None,
                }),
                iv: None,
                mac: None,
            };
            let refused = StorageKey::from_passphrase(&passphrase, &description).err();
            let expected = SecretStorageError::UnusableDescription;
            let control = iterations == 100_000;
            assert_eq!(refused, (!control).then_some(expected), "{iterations}");
        }
    }
}
