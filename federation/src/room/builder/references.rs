//! How an event names others.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId,
    room_version_rules::{EventsReferenceFormatVersion, RoomVersionRules},
    serde::{Base64, base64::Standard},
};
use serde::{Deserialize, Deserializer};

use super::BuildError;
use crate::room::{object::Object, pdu::Pdu};

/// The reference hashes of events, which events of room versions 1 and 2 name beside the ids
/// ([spec](https://spec.matrix.org/v1.19/rooms/v1/#event-format)).
#[derive(Clone, Debug, Default)]
pub struct Hashes(BTreeMap<OwnedEventId, Option<String>>);

impl Hashes {
    /// Whether events of a room version name hashes.
    #[must_use]
    pub fn needed(rules: &RoomVersionRules) -> bool {
        rules.events_reference_format == EventsReferenceFormatVersion::V1
    }

    /// Adds the hash of an event.
    pub fn add(&mut self, pdu: &Pdu, rules: &RoomVersionRules) -> Result<(), BuildError> {
        let strict = rules.authorization.strict_canonical_json;
        let object = Object::parse(pdu.json(), strict)?;
        let hash = Base64::<Standard, _>::new(object.reference_hash(&rules.redaction)?);
        self.0
            .insert(pdu.event_id().to_owned(), Some(hash.encode()));
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }
}

/// Names events as the room version wants it: by their ids, or by ids and hashes.
pub fn references(
    events: &[OwnedEventId],
    hashes: &Hashes,
    rules: &RoomVersionRules,
) -> Result<CanonicalJsonValue, BuildError> {
    let name = |id: &OwnedEventId| -> Result<CanonicalJsonValue, BuildError> {
        let by_id: CanonicalJsonValue = id.as_str().into();
        if !Hashes::needed(rules) {
            return Ok(by_id);
        }
        let hash = hashes.0.get(id).ok_or(BuildError::MissingHash)?;
        let hash = hash.iter();
        let hash = hash.map(|hash| ("sha256".to_owned(), hash.as_str().into()));
        let hash = hash.collect::<CanonicalJsonObject>();
        Ok(vec![by_id, hash.into()].into())
    };
    let named: Result<Vec<_>, _> = events.iter().map(name).collect();
    Ok(named?.into())
}

/// Events as another server names them.
#[derive(Default)]
pub(super) struct Named {
    pub(super) ids: Vec<OwnedEventId>,
    pub(super) hashes: Hashes,
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Sha256 {
            // Synapse leaves it out where it did not compute it; nobody reads it.
            sha256: Option<Base64>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Id(OwnedEventId),
            Pair(OwnedEventId, Sha256),
        }

        let mut named = Self::default();
        for form in Vec::<Form>::deserialize(deserializer)? {
            named.ids.push(match form {
                Form::Id(id) => id,
                Form::Pair(id, hash) => {
                    let hash = hash.sha256.map(|hash| hash.encode());
                    named.hashes.0.insert(id.clone(), hash);
                    id
                }
            });
        }
        Ok(named)
    }
}
