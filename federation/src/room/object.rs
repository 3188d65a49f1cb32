//! Events as JSON objects, also those that are not canonical JSON.
//!
//! Up to room version 5 servers do not insist on
//! [canonical JSON](https://spec.matrix.org/v1.19/rooms/v5/#canonical-json): a float or a large
//! integer is hashed, signed and passed on. Canonical JSON as a type cannot hold them, so such
//! numbers are kept beside it, in the one form in which all servers write them: integers as they
//! are, floats in the shortest decimal form that reads back as the same number.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int,
    canonical_json::{RedactingSerializer, redact_in_place},
    room_version_rules::RedactionRules,
};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::pdu::{MAX_BYTES, PduError};

/// What is not part of an event's content hash
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#calculating-the-content-hash-for-an-event)).
const NOT_HASHED: [&str; 3] = ["hashes", "signatures", "unsigned"];

/// What is neither signed nor part of the reference hash
/// ([spec](https://spec.matrix.org/v1.19/server-server-api/#signing-events)).
const NOT_SIGNED: [&str; 2] = ["signatures", "unsigned"];

/// How deep arrays and objects may be nested.
const MAX_DEPTH: usize = 128;

/// An event, whatever numbers it has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Object {
    /// The event, with `null` for every odd number.
    map: CanonicalJsonObject,
    /// The numbers that canonical JSON does not have, by where they stand.
    odd: BTreeMap<Path, String>,
}

type Path = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

impl From<CanonicalJsonObject> for Object {
    fn from(map: CanonicalJsonObject) -> Self {
        Self {
            map,
            odd: BTreeMap::new(),
        }
    }
}

impl Object {
    /// Reads an object. With `strict` it must be canonical JSON.
    pub(super) fn parse(json: &RawValue, strict: bool) -> Result<Self, PduError> {
        match serde_json::from_str::<CanonicalJsonObject>(json.get()) {
            Ok(map) => Ok(map.into()),
            Err(_) if strict => Err(PduError::NotCanonical),
            Err(_) if json.get().len() > 4 * MAX_BYTES => Err(PduError::TooLarge),
            Err(_) => {
                let mut odd = BTreeMap::new();
                match read(json, &mut Vec::new(), &mut odd)? {
                    CanonicalJsonValue::Object(map) => Ok(Self { map, odd }),
                    _ => Err(PduError::NotCanonical),
                }
            }
        }
    }

    /// The event, in which odd numbers are `null`.
    pub(super) fn map(&self) -> &CanonicalJsonObject {
        &self.map
    }

    pub(super) fn insert(&mut self, field: &str, value: CanonicalJsonValue) {
        self.map.insert(field.to_owned(), value);
    }

    /// Puts an object into a field.
    pub(super) fn insert_object(&mut self, field: &str, object: Self) {
        for (mut path, number) in object.odd {
            path.insert(0, Step::Key(field.to_owned()));
            self.odd.insert(path, number);
        }
        self.insert(field, object.map.into());
    }

    /// Takes a field out, as JSON.
    pub(super) fn take(&mut self, field: &str) -> Option<Box<RawValue>> {
        let json = self.field(field);
        self.map.remove(field);
        let is_in = |path: &Path| path.first() == Some(&Step::Key(field.to_owned()));
        self.odd.retain(|path, _| !is_in(path));
        json
    }

    /// A field as JSON.
    pub(super) fn field(&self, field: &str) -> Option<Box<RawValue>> {
        let value = self.map.get(field)?;
        if self.odd.is_empty() {
            return serde_json::value::to_raw_value(value).ok();
        }
        let mut json = String::new();
        let mut path = vec![Step::Key(field.to_owned())];
        self.write(value, &mut path, &mut json).ok()?;
        RawValue::from_string(json).ok()
    }

    /// The whole as JSON, with sorted keys and without white space.
    pub(super) fn to_json(&self) -> Result<Box<RawValue>, PduError> {
        if self.odd.is_empty() {
            return serde_json::value::to_raw_value(&self.map).map_err(|_| PduError::NotCanonical);
        }
        RawValue::from_string(self.text(&self.map)?).map_err(|_| PduError::NotCanonical)
    }

    /// What servers sign, and what the reference hash is of.
    pub(super) fn signed_json(&self, rules: &RedactionRules) -> Result<String, PduError> {
        if self.odd.is_empty() {
            let serializer = RedactingSerializer::new().rules(rules);
            let serializer = serializer.custom_redacted_root_fields(&NOT_SIGNED);
            return serializer
                .serialize(&self.map)
                .map_err(|_| PduError::Format);
        }
        let mut map = self.map.clone();
        redact_in_place(&mut map, rules, None).map_err(|_| PduError::Format)?;
        map.retain(|field, _| !NOT_SIGNED.contains(&field.as_str()));
        self.text(&map)
    }

    /// The hash of everything
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#calculating-the-content-hash-for-an-event)).
    pub(super) fn content_hash(&self) -> Result<[u8; 32], PduError> {
        let json = if self.odd.is_empty() {
            let serializer = RedactingSerializer::new().custom_redacted_root_fields(&NOT_HASHED);
            serializer
                .serialize(&self.map)
                .map_err(|_| PduError::Format)?
        } else {
            let mut map = self.map.clone();
            map.retain(|field, _| !NOT_HASHED.contains(&field.as_str()));
            self.text(&map)?
        };
        hash(&json)
    }

    /// The hash of what redaction keeps
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event)).
    pub(super) fn reference_hash(&self, rules: &RedactionRules) -> Result<[u8; 32], PduError> {
        hash(&self.signed_json(rules)?)
    }

    /// Removes what redaction does not keep
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#redactions)).
    pub(super) fn redact(&mut self, rules: &RedactionRules) -> Result<(), PduError> {
        redact_in_place(&mut self.map, rules, None).map_err(|_| PduError::Format)
    }

    fn text(&self, map: &CanonicalJsonObject) -> Result<String, PduError> {
        let mut json = String::new();
        self.write_object(map, &mut Vec::new(), &mut json)?;
        Ok(json)
    }

    fn write(
        &self,
        value: &CanonicalJsonValue,
        path: &mut Path,
        json: &mut String,
    ) -> Result<(), PduError> {
        match value {
            CanonicalJsonValue::Object(map) => self.write_object(map, path, json)?,
            CanonicalJsonValue::Array(items) => {
                json.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    path.push(Step::Index(index));
                    self.write(item, path, json)?;
                    path.pop();
                }
                json.push(']');
            }
            CanonicalJsonValue::Null if self.odd.contains_key(path) => {
                json.push_str(self.odd.get(path).map_or("null", String::as_str));
            }
            CanonicalJsonValue::Null
            | CanonicalJsonValue::String(_)
            | CanonicalJsonValue::Integer(_)
            | CanonicalJsonValue::Bool(_) => {
                let text = serde_json::to_string(value).map_err(|_| PduError::NotCanonical)?;
                json.push_str(&text);
            }
        }
        Ok(())
    }

    fn write_object(
        &self,
        map: &CanonicalJsonObject,
        path: &mut Path,
        json: &mut String,
    ) -> Result<(), PduError> {
        json.push('{');
        for (index, (key, value)) in map.iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            let text = serde_json::to_string(key).map_err(|_| PduError::NotCanonical)?;
            json.push_str(&text);
            json.push(':');
            path.push(Step::Key(key.clone()));
            self.write(value, path, json)?;
            path.pop();
        }
        json.push('}');
        Ok(())
    }
}

/// Reads a value of any JSON.
fn read(
    json: &RawValue,
    path: &mut Path,
    odd: &mut BTreeMap<Path, String>,
) -> Result<CanonicalJsonValue, PduError> {
    if path.len() > MAX_DEPTH {
        return Err(PduError::NotCanonical);
    }
    let wrong = |_| PduError::NotCanonical;
    let text = json.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(wrong)?;
            let mut map = CanonicalJsonObject::new();
            for (key, field) in fields {
                path.push(Step::Key(key.clone()));
                map.insert(key, read(field, path, odd)?);
                path.pop();
            }
            Ok(map.into())
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
            let mut array = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                path.push(Step::Index(index));
                array.push(read(item, path, odd)?);
                path.pop();
            }
            Ok(array.into())
        }
        Some(b'-' | b'0'..=b'9') => {
            let written = number(text)?;
            let canonical = written.parse::<i64>().ok().and_then(Int::new);
            Ok(canonical.map_or_else(
                || {
                    odd.insert(path.clone(), written);
                    CanonicalJsonValue::Null
                },
                CanonicalJsonValue::Integer,
            ))
        }
        _ => serde_json::from_str(text).map_err(wrong),
    }
}

/// A number as all servers write it.
fn number(text: &str) -> Result<String, PduError> {
    if !text.contains(['.', 'e', 'E']) {
        let zero = text == "-0";
        return Ok(if zero { "0" } else { text }.to_owned());
    }
    let float: f64 = text.parse().map_err(|_| PduError::NotCanonical)?;
    if !float.is_finite() {
        return Err(PduError::NotCanonical);
    }
    let shortest = format!("{float:?}");
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return Ok(shortest);
    };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    Ok(format!("{mantissa}e{sign}{digits:0>2}"))
}

fn hash(json: &str) -> Result<[u8; 32], PduError> {
    if json.len() >= MAX_BYTES {
        return Err(PduError::TooLarge);
    }
    Ok(Sha256::digest(json.as_bytes()).into())
}

#[cfg(test)]
mod tests;
