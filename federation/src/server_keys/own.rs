//! Publishing keys: our own, and as a notary those of others.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerSigningKeyId, ServerName,
    serde::Base64,
};
use serde_json::value::RawValue;

use super::{KeysError, ServerKeys};
use crate::room::signing::SigningKey;

/// A key that we used to sign with.
#[derive(Clone, Debug)]
pub struct OldKey {
    /// Its id.
    pub id: OwnedServerSigningKeyId,
    /// The public key.
    pub public_key: Base64,
    /// When we stopped.
    pub expired_ts: MilliSecondsSinceUnixEpoch,
}

/// The answer to `GET /_matrix/key/v2/server`
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server)), signed with
/// our key.
pub fn own_response(
    server_name: &ServerName,
    key: &SigningKey,
    old_keys: &[OldKey],
    valid_until_ts: MilliSecondsSinceUnixEpoch,
) -> Result<CanonicalJsonObject, KeysError> {
    let current = CanonicalJsonObject::from([("key".to_owned(), key.public_key_base64().into())]);
    let current = CanonicalJsonObject::from([(key.id().to_string(), current.into())]);
    let old = |old: &OldKey| {
        let entry = CanonicalJsonObject::from([
            ("expired_ts".to_owned(), old.expired_ts.0.into()),
            ("key".to_owned(), old.public_key.encode().into()),
        ]);
        (old.id.to_string(), entry.into())
    };
    let old: CanonicalJsonObject = old_keys.iter().map(old).collect();
    let mut response = CanonicalJsonObject::from([
        ("server_name".to_owned(), server_name.as_str().into()),
        ("valid_until_ts".to_owned(), valid_until_ts.0.into()),
        ("verify_keys".to_owned(), current.into()),
        ("old_verify_keys".to_owned(), old.into()),
    ]);
    key.sign_json(&mut response, server_name)
        .map_err(|_| KeysError::Malformed)?;
    Ok(response)
}

/// Adds our signature, as a notary, to the keys of another server
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server)).
///
/// The other server wrote what we sign here, so it must be a list of keys and nothing more: a
/// member beyond those could make it something else to somebody.
pub fn countersign(
    json: &RawValue,
    of: &ServerKeys,
    server_name: &ServerName,
    key: &SigningKey,
) -> Result<CanonicalJsonObject, KeysError> {
    const MEMBERS: [&str; 6] = [
        "old_verify_keys",
        "server_name",
        "signatures",
        "tls_fingerprints",
        "valid_until_ts",
        "verify_keys",
    ];

    let mut object: CanonicalJsonObject =
        serde_json::from_str(json.get()).map_err(|_| KeysError::Malformed)?;
    if !object
        .keys()
        .all(|member| MEMBERS.contains(&member.as_str()))
    {
        return Err(KeysError::UnknownMember);
    }
    if object.get("server_name").and_then(|name| name.as_str()) != Some(of.server_name().as_str()) {
        return Err(KeysError::OtherServer);
    }
    key.sign_json(&mut object, server_name)
        .map_err(|_| KeysError::Malformed)?;
    Ok(object)
}
