//! `POST /keys/query`: the devices and identity keys of users
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery)).

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedDeviceId, OwnedUserId, UserId,
    encryption::{CrossSigningKey, DeviceKeys, KeyUsage},
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{E2eKeys, verify};
use crate::storage::{Families, StorageError, cross_signing::SignatureRow};

/// For each user the devices that are wanted; none for all.
pub(crate) type Wanted = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// Keys, as they may be told.
#[derive(Debug, Default)]
#[expect(clippy::struct_field_names, reason = "the names of the specification")]
pub(crate) struct Found {
    pub(crate) device_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Raw<DeviceKeys>>>,
    pub(crate) master_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    pub(crate) self_signing_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    pub(crate) user_signing_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker<'a> {
    /// A local user, who sees the names of devices, and signatures of their own.
    User(&'a UserId),
    /// Another server.
    Server,
}

impl Found {
    /// Adds what another server answered.
    pub(super) fn add(&mut self, other: Self) {
        self.device_keys.extend(other.device_keys);
        self.master_keys.extend(other.master_keys);
        self.self_signing_keys.extend(other.self_signing_keys);
    }
}

impl E2eKeys {
    /// What the database has of some users.
    pub(crate) async fn query_stored(
        &self,
        asker: Asker<'_>,
        wanted: &Wanted,
    ) -> Result<Found, StorageError> {
        let mut reader = self.storage.read().await?;
        read(&mut reader, asker, wanted).await
    }
}

/// Reads keys, with the signatures that were added to them later.
pub(super) async fn read(
    reader: &mut impl Families,
    asker: Asker<'_>,
    wanted: &Wanted,
) -> Result<Found, StorageError> {
    let users: Vec<_> = wanted.keys().cloned().collect();
    let mut found = Found::default();
    let reading = match asker {
        Asker::User(user_id) => Some(user_id),
        Asker::Server => None,
    };
    let mut signatures: BTreeMap<(OwnedUserId, String), Vec<SignatureRow>> = BTreeMap::new();
    for row in reader.cross_signing().signatures(&users, reading).await? {
        let target = (row.target_user_id.clone(), row.target_key_id.clone());
        signatures.entry(target).or_default().push(row);
    }
    let on = |user_id: &OwnedUserId, key_id: &str| {
        let key = (user_id.clone(), key_id.to_owned());
        signatures.get(&key).map_or(&[][..], Vec::as_slice)
    };
    for user_id in &users {
        found.device_keys.insert(user_id.clone(), BTreeMap::new());
    }
    for row in reader.device_keys().of_users(&users).await? {
        let of_user = wanted.get(&row.user_id);
        if of_user.is_some_and(|ids| !ids.is_empty() && !ids.contains(&row.device_id)) {
            continue;
        }
        let mut object = object("device_keys", &row.json)?;
        sign(&mut object, on(&row.user_id, row.device_id.as_str()));
        if let Asker::User(_) = asker {
            name(&mut object, row.display_name);
        }
        let devices = found.device_keys.entry(row.user_id).or_default();
        devices.insert(row.device_id, raw(object)?);
    }
    for row in reader.cross_signing().of_users(&users).await? {
        let mut key = object("cross_signing_keys", &row.json)?;
        if let Some(public) = public_key(&key) {
            let public = public.to_owned();
            sign(&mut key, on(&row.user_id, &public));
        }
        if let Asker::Server = asker {
            keep_signatures_of(&mut key, &row.user_id);
        }
        match row.usage {
            KeyUsage::Master => drop(found.master_keys.insert(row.user_id, raw(key)?)),
            KeyUsage::SelfSigning => drop(found.self_signing_keys.insert(row.user_id, raw(key)?)),
            // Only its owner may know whom a user trusts.
            KeyUsage::UserSigning if reading == Some(&row.user_id) => {
                drop(found.user_signing_keys.insert(row.user_id, raw(key)?));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The one public key in a cross-signing key.
pub(super) fn public_key(key: &CanonicalJsonObject) -> Option<&str> {
    let keys = key.get("keys")?.as_object()?;
    keys.values().next()?.as_str()
}

/// Tells the name of a device; `unsigned` is there also if it has none.
pub(super) fn name(object: &mut CanonicalJsonObject, display_name: Option<String>) {
    let name = display_name.map(CanonicalJsonValue::String);
    let name = name.map(|name| ("device_display_name".to_owned(), name));
    let unsigned = CanonicalJsonValue::Object(name.into_iter().collect());
    if unsigned
        .as_object()
        .is_some_and(CanonicalJsonObject::is_empty)
    {
        object.entry("unsigned".to_owned()).or_insert(unsigned);
    } else {
        object.insert("unsigned".to_owned(), unsigned);
    }
}

/// Adds signatures to an object.
fn sign(object: &mut CanonicalJsonObject, rows: &[SignatureRow]) {
    for row in rows {
        verify::add_signature(
            object,
            &row.signer_user_id,
            &row.signer_key_id,
            &row.signature,
        );
    }
}

/// Takes away the signatures of others.
fn keep_signatures_of(object: &mut CanonicalJsonObject, user_id: &UserId) {
    let signatures = object
        .get_mut("signatures")
        .and_then(CanonicalJsonValue::as_object_mut);
    if let Some(signatures) = signatures {
        signatures.retain(|signer, _| signer == user_id.as_str());
    }
}

fn object(table: &'static str, json: &str) -> Result<CanonicalJsonObject, StorageError> {
    verify::object(json).ok_or_else(|| StorageError::inconsistent(table, "json", ""))
}

pub(super) fn raw<T>(object: CanonicalJsonObject) -> Result<Raw<T>, StorageError> {
    let json = CanonicalJsonValue::Object(object).to_string();
    let json = RawValue::from_string(json)
        .map_err(|_| StorageError::inconsistent("device_keys", "json", ""))?;
    Ok(Raw::from_json(json))
}
