//! In which form a client gets events
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3useruseridfilter)).

use ruma::{api::client::filter::EventFormat, events::AnySyncTimelineEvent, serde::Raw};
use serde_json::{Map, Value, value::to_raw_value};

use super::{Look, Sync};
use crate::{
    service::relations::Bundles,
    storage::{StorageError, events::StoredEvent},
};

impl Sync {
    /// An event in the form that the filter asks for.
    pub(super) async fn show(
        &self,
        look: &Look<'_>,
        event: &StoredEvent,
        bundles: &Bundles,
    ) -> Result<Raw<AnySyncTimelineEvent>, StorageError> {
        let filter = &look.ask.filter;
        let json = if filter.event_format == EventFormat::Federation {
            with_id(event)?
        } else {
            let json = self.events.for_client(event, &look.ask.requester).await?;
            bundles.add(event, json)?
        };
        Ok(match &filter.event_fields {
            Some(fields) => only(&json, fields).unwrap_or(json),
            None => json,
        })
    }
}

/// An event as servers send it to each other, with its id: that of most room versions is not in it.
fn with_id<T>(event: &StoredEvent) -> Result<Raw<T>, StorageError> {
    let event_id = event.pdu.event_id();
    let wrong = |_| StorageError::inconsistent("events", "json", event_id.as_str());
    let mut json: Map<String, Value> =
        serde_json::from_str(event.pdu.json().get()).map_err(wrong)?;
    json.insert("event_id".to_owned(), event_id.as_str().into());
    to_raw_value(&json).map(Raw::from_json).map_err(wrong)
}

/// Keeps the fields that are asked for.
fn only<T>(json: &Raw<T>, fields: &[String]) -> Option<Raw<T>> {
    let whole: Value = serde_json::from_str(json.json().get()).ok()?;
    let mut kept = Value::Object(Map::new());
    for field in fields {
        copy(&whole, &mut kept, &parts(field));
    }
    to_raw_value(&kept).ok().map(Raw::from_json)
}

/// Copies one field into an object; what is not there is left out.
fn copy(from: &Value, to: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let (Some(value), Some(to)) = (from.get(first), to.as_object_mut()) else {
        return;
    };
    if rest.is_empty() {
        to.insert(first.clone(), value.clone());
    } else if at(value, rest) {
        let inner = to
            .entry(first.clone())
            .or_insert_with(|| Value::Object(Map::new()));
        copy(value, inner, rest);
    }
}

/// Whether there is something at a path.
fn at(value: &Value, path: &[String]) -> bool {
    match path.split_first() {
        None => true,
        Some((first, rest)) => value.get(first).is_some_and(|value| at(value, rest)),
    }
}

/// The names in a path: separated by dots, a backslash takes away the meaning of what follows.
fn parts(field: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        if letter == '.' {
            parts.push(String::new());
            continue;
        }
        let literal = match letter {
            '\\' => letters.next().unwrap_or('\\'),
            letter => letter,
        };
        if let Some(last) = parts.last_mut() {
            last.push(literal);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_fields_that_are_asked_for() {
        let event = json!({ "type": "t", "content": { "body": "b", "a.b": 1, "c": { "d": 2 } } });
        let raw: Raw<Value> = Raw::new(&event).unwrap();
        let kept = |fields: &[&str]| {
            let fields: Vec<_> = fields.iter().map(|field| (*field).to_owned()).collect();
            serde_json::from_str::<Value>(only(&raw, &fields).unwrap().json().get()).unwrap()
        };
        assert_eq!(
            kept(&["content.body"]),
            json!({ "content": { "body": "b" } })
        );
        assert_eq!(kept(&["content.a\\.b"]), json!({ "content": { "a.b": 1 } }));
        assert_eq!(
            kept(&["type", "content.c.d", "content.x"]),
            json!({ "type": "t", "content": { "c": { "d": 2 } } })
        );
        assert_eq!(kept(&[]), json!({}));
    }
}
