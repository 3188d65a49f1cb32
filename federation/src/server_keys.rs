//! Which keys of which server are valid when.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedServerName,
    OwnedServerSigningKeyId, ServerName, ServerSigningKeyId, UInt,
    serde::{Base64, base64::Standard},
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};
use serde_json::value::RawValue;

pub use self::own::{OldKey, countersign, own_response};
use crate::room::signing::RequiredKeys;

mod own;

/// However long a server says its keys are valid, they are so for at most seven days from when it
/// said so ([spec](https://spec.matrix.org/v1.19/rooms/v5/#signing-key-validity-period)).
const LONGEST_VALIDITY_MS: u32 = 7 * 24 * 60 * 60 * 1000;

/// Keys whose secret half is no secret: an installer once gave the same one to many servers (CVE-2026-24044).
/// What they sign proves nothing.
const SHARED_KEYS: &[&str] = &["l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og"];

/// The keys of a server, as it published and signed them
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#publishing-keys)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeys {
    server_name: OwnedServerName,
    valid_until: MilliSecondsSinceUnixEpoch,
    keys: BTreeMap<OwnedServerSigningKeyId, Key>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    public: Base64,
    /// The last moment of which the key can say something.
    valid_until: MilliSecondsSinceUnixEpoch,
    /// Whether requests may be signed with it, not events only.
    is_current: bool,
}

impl ServerKeys {
    /// Reads what a server or a notary answered, at `fetched_at`, about the keys of `server_name`.
    ///
    /// The answer must be signed with at least one of the keys in it, and wrongly with none.
    pub fn parse(
        json: &RawValue,
        server_name: &ServerName,
        fetched_at: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, KeysError> {
        Self::parse_without(SHARED_KEYS, json, server_name, fetched_at)
    }

    /// As [`ServerKeys::parse`], without keys that are not to be believed.
    fn parse_without(
        shared: &[&str],
        json: &RawValue,
        server_name: &ServerName,
        fetched_at: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, KeysError> {
        let object: CanonicalJsonObject =
            serde_json::from_str(json.get()).map_err(|_| KeysError::Malformed)?;
        if object
            .get("server_name")
            .and_then(CanonicalJsonValue::as_str)
            != Some(server_name.as_str())
        {
            return Err(KeysError::OtherServer);
        }
        let claimed = timestamp(&object, "valid_until_ts")?;
        let valid_until = claimed.min(after(fetched_at, LONGEST_VALIDITY_MS));

        let mut keys = BTreeMap::new();
        for (id, old) in entries(&object, "old_verify_keys") {
            let valid_until = timestamp(old, "expired_ts")?;
            keys.insert(
                id,
                Key {
                    public: public_key(old)?,
                    valid_until,
                    is_current: false,
                },
            );
        }
        for (id, current) in entries(&object, "verify_keys") {
            let public = public_key(current)?;
            keys.insert(
                id,
                Key {
                    public,
                    valid_until,
                    is_current: true,
                },
            );
        }
        let mut keys = Self {
            server_name: server_name.to_owned(),
            valid_until,
            keys,
        };
        keys.check_signature(&object)?;
        let is_shared = |key: &Key| shared.contains(&key.public.encode().trim_end_matches('='));
        keys.keys.retain(|_, key| !is_shared(key));
        Ok(keys)
    }

    /// Only signatures by the keys of the answer count; it may have more, of notaries for example.
    fn check_signature(&self, object: &CanonicalJsonObject) -> Result<(), KeysError> {
        let signatures = object
            .get("signatures")
            .and_then(|signatures| signatures.as_object()?.get(self.server_name.as_str()))
            .ok_or(KeysError::WrongSignature)?;
        let mut signed = object.clone();
        let own = CanonicalJsonObject::from([(self.server_name.to_string(), signatures.clone())]);
        signed.insert("signatures".to_owned(), own.into());
        let current = self.keys.iter().filter(|(_, key)| key.is_current);
        let keys: PublicKeySet = current
            .map(|(id, key)| (id.to_string(), key.public.clone()))
            .collect();
        let map = PublicKeyMap::from([(self.server_name.to_string(), keys)]);
        verify_json(&map, &signed).map_err(|_| KeysError::WrongSignature)
    }

    /// Whose keys they are.
    #[must_use]
    pub fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// When they have to be asked for again.
    #[must_use]
    pub fn valid_until(&self) -> MilliSecondsSinceUnixEpoch {
        self.valid_until
    }

    /// The key of this id, if an event of that time may be signed with it. Without a time, any key
    /// that the server ever published will do.
    #[must_use]
    pub fn for_event(
        &self,
        id: &ServerSigningKeyId,
        sent_at: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Option<&Base64> {
        let key = self.keys.get(id)?;
        sent_at
            .is_none_or(|at| at <= key.valid_until)
            .then_some(&key.public)
    }

    /// The key of this id, if a request may be signed with it now.
    #[must_use]
    pub fn for_request(
        &self,
        id: &ServerSigningKeyId,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Option<&Base64> {
        let key = self.keys.get(id)?;
        (key.is_current && now <= key.valid_until).then_some(&key.public)
    }

    /// Adds the keys of an earlier answer that this one no longer mentions. They remain valid for
    /// events of the time of which the earlier answer spoke.
    #[must_use]
    pub fn with_earlier(mut self, earlier: &Self) -> Self {
        if earlier.server_name == self.server_name {
            for (id, key) in &earlier.keys {
                self.keys.entry(id.clone()).or_insert(Key {
                    is_current: false,
                    ..key.clone()
                });
            }
        }
        self
    }
}

/// Finds the keys with which an event is to be verified, and tells which are missing.
///
/// A server of which none of the needed keys is known and valid has to be asked, or a notary about
/// it, with [`RequiredKeys::valid_at`] as `minimum_valid_until_ts`.
pub fn select(
    required: &RequiredKeys,
    known: impl Fn(&ServerName) -> Option<Arc<ServerKeys>>,
) -> Selected {
    let mut selected = Selected::default();
    for (server, ids) in &required.servers {
        let keys = known(server);
        let key = |id: &OwnedServerSigningKeyId| {
            let key = keys.as_ref()?.for_event(id, required.valid_at)?;
            Some((id.to_string(), key.clone()))
        };
        let found: PublicKeySet = ids.iter().filter_map(key).collect();
        if found.is_empty() {
            selected
                .missing
                .insert(server.clone(), ids.iter().cloned().collect());
        } else {
            selected.keys.insert(server.to_string(), found);
        }
    }
    selected
}

/// What [`select`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// The keys, for [`crate::room::signing::verify`].
    pub keys: PublicKeyMap,
    /// The servers to ask, with the keys that they must tell.
    pub missing: BTreeMap<OwnedServerName, Vec<OwnedServerSigningKeyId>>,
}

/// Why an answer does not tell the keys of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// The answer is not of the form that the specification gives it.
    #[error("the list of keys is malformed")]
    Malformed,
    /// The answer is about another server.
    #[error("the list of keys is that of another server")]
    OtherServer,
    /// The answer is not signed with the keys in it.
    #[error("the list of keys is not signed with one of them")]
    WrongSignature,
    /// The answer has members that a list of keys does not have.
    #[error("the list of keys says more than keys")]
    UnknownMember,
}

/// The keys of an algorithm that is known, in one of the two maps of the answer.
fn entries<'a>(
    object: &'a CanonicalJsonObject,
    field: &str,
) -> impl Iterator<Item = (OwnedServerSigningKeyId, &'a CanonicalJsonObject)> {
    let map = object.get(field).and_then(CanonicalJsonValue::as_object);
    map.into_iter()
        .flatten()
        .filter(|(id, _)| id.starts_with("ed25519:"))
        .filter_map(|(id, entry)| Some((id.as_str().try_into().ok()?, entry.as_object()?)))
}

fn public_key(entry: &CanonicalJsonObject) -> Result<Base64, KeysError> {
    let key = entry.get("key").and_then(CanonicalJsonValue::as_str);
    key.and_then(|key| Base64::<Standard>::parse(key).ok())
        .filter(|key| key.as_bytes().len() == 32)
        .ok_or(KeysError::Malformed)
}

fn timestamp(
    object: &CanonicalJsonObject,
    field: &str,
) -> Result<MilliSecondsSinceUnixEpoch, KeysError> {
    let value = object.get(field).and_then(CanonicalJsonValue::as_integer);
    value
        .and_then(|value| UInt::try_from(i64::from(value)).ok())
        .map(MilliSecondsSinceUnixEpoch)
        .ok_or(KeysError::Malformed)
}

fn after(time: MilliSecondsSinceUnixEpoch, milliseconds: u32) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(time.0.saturating_add(milliseconds.into()))
}

#[cfg(test)]
mod tests;
