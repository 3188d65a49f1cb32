//! Telling the keys of other servers
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server)).

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId,
    ServerSigningKeyId,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use sotto_federation::server_keys;

use super::{ServerKeys, Slot};
use crate::storage::StorageError;

/// What somebody wants to know of the keys of a server.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) server: OwnedServerName,
    /// The keys; all current ones if none is named.
    pub(crate) ids: Vec<OwnedServerSigningKeyId>,
    /// Up to when they are to be valid.
    pub(crate) valid_at: MilliSecondsSinceUnixEpoch,
}

impl ServerKeys {
    /// The keys of a server, signed by us as well, as far as they are to be had. A key that the server no
    /// longer has is told as the server told it last: nobody makes us forget it.
    pub(crate) async fn as_notary(
        &self,
        question: &Question,
    ) -> Result<Vec<CanonicalJsonObject>, StorageError> {
        let us = self.0.federation.server_name();
        if question.server == us {
            return Ok(self.own().into_iter().collect());
        }
        let slot = self.slot(&question.server);
        let mut slot = slot.lock().await;
        self.load_slot(&question.server, &mut slot).await?;
        // The keys of the future are nobody's to know.
        let valid_at = question.valid_at.min(self.0.clock.now());
        let is_enough = slot.keys.as_ref().is_some_and(|keys| {
            let known = |id: &OwnedServerSigningKeyId| keys.for_event(id, None).is_some();
            keys.valid_until() >= valid_at && question.ids.iter().all(known)
        });
        if !is_enough {
            self.refresh(&question.server, &mut slot).await?;
        }
        let Some(keys) = slot.keys.clone() else {
            return Ok(Vec::new());
        };
        let lists = slot.lists_with(&question.ids).into_iter();
        let signed = lists.map(|json| server_keys::countersign(json, &keys, us, &self.0.key));
        Ok(signed.filter_map(Result::ok).collect())
    }
}

impl Slot {
    /// For each key the newest list in which it is.
    fn lists_with(&self, ids: &[OwnedServerSigningKeyId]) -> Vec<&RawValue> {
        let newest = |id: &OwnedServerSigningKeyId| {
            let mut lists = self.lists.iter();
            lists.position(|list| mentions(&list.json, id))
        };
        let mut found: BTreeSet<usize> = ids.iter().filter_map(newest).collect();
        if found.is_empty() {
            found.insert(0);
        }
        let lists = found.into_iter().filter_map(|place| self.lists.get(place));
        lists.map(|list| &*list.json).collect()
    }
}

fn mentions(list: &RawValue, id: &ServerSigningKeyId) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct List {
        verify_keys: Map<String, Value>,
        old_verify_keys: Map<String, Value>,
    }
    let list = serde_json::from_str::<List>(list.get()).unwrap_or_default();
    let id = id.as_str();
    list.verify_keys.contains_key(id) || list.old_verify_keys.contains_key(id)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::storage::server_keys::PublishedKeys;

    fn list(json: &str) -> PublishedKeys {
        PublishedKeys {
            json: RawValue::from_string(json.to_owned()).unwrap(),
            fetched_at: MilliSecondsSinceUnixEpoch(1_u32.into()),
        }
    }

    #[test]
    fn a_key_that_a_server_has_forgotten_is_told_as_it_was_told_last() {
        let slot = Slot {
            lists: vec![
                list(r#"{"verify_keys":{"ed25519:new":{}},"old_verify_keys":{"ed25519:old":{}}}"#),
                list(r#"{"verify_keys":{"ed25519:old":{}}}"#),
                list(r#"{"verify_keys":{"ed25519:forgotten":{}}}"#),
            ],
            ..Slot::default()
        };
        let told = |ids: &[&str]| -> Vec<usize> {
            let ids: Vec<_> = ids.iter().map(|id| (*id).try_into().unwrap()).collect();
            let place = |json: &RawValue| {
                let mut lists = slot.lists.iter();
                lists.position(|list| list.json.get() == json.get())
            };
            slot.lists_with(&ids)
                .into_iter()
                .filter_map(place)
                .collect()
        };
        assert_eq!(told(&[]), [0]);
        assert_eq!(told(&["ed25519:old"]), [0]);
        assert_eq!(told(&["ed25519:forgotten"]), [2]);
        assert_eq!(told(&["ed25519:forgotten", "ed25519:new"]), [0, 2]);
        assert_eq!(told(&["ed25519:never"]), [0]);
    }
}
