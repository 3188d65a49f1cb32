//! An event as push rules look at it.

use std::sync::OnceLock;

use ruma::{EventId, OwnedEventId, OwnedUserId};
use serde_json::{Map, Value};
use sotto_federation::room::pdu::Pdu;

/// An event as push rules look at it: read once, and judged for everybody.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) sender: OwnedUserId,
    top: Map<String, Value>,
    /// The text of a message in lower case.
    body: OnceLock<Option<String>>,
}

/// How an event stands to others
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    None,
    /// In the thread of this root.
    Thread(OwnedEventId),
    /// Of another kind.
    Other(OwnedEventId),
}

impl Facts {
    /// Of an event of which only a part is known: `type`, `sender`, `state_key`, `content`.
    pub(crate) fn of_stripped(sender: OwnedUserId, event: Map<String, Value>) -> Self {
        Self {
            sender,
            top: event,
            body: OnceLock::new(),
        }
    }

    pub(crate) fn of(pdu: &Pdu) -> Self {
        let content: Value = serde_json::from_str(pdu.content().get()).unwrap_or_default();
        let mut top = Map::new();
        top.insert("type".to_owned(), pdu.event_type().to_string().into());
        top.insert("sender".to_owned(), pdu.sender().as_str().into());
        top.insert("room_id".to_owned(), pdu.room_id().as_str().into());
        top.insert("event_id".to_owned(), pdu.event_id().as_str().into());
        if let Some(state_key) = pdu.state_key() {
            top.insert("state_key".to_owned(), state_key.into());
        }
        top.insert("content".to_owned(), content);
        Self {
            sender: pdu.sender().to_owned(),
            top,
            body: OnceLock::new(),
        }
    }

    /// A property of the event.
    pub(super) fn get(&self, path: &Path) -> Option<&Value> {
        let (first, rest) = path.0.split_first()?;
        let top = self.top.get(first)?;
        rest.iter().try_fold(top, |value, key| value.get(key))
    }

    /// The text of a message in lower case.
    pub(super) fn body(&self) -> Option<&str> {
        let body = self.body.get_or_init(|| {
            let body = self.content()?.get("body")?.as_str()?;
            Some(body.to_lowercase())
        });
        body.as_deref()
    }

    /// Whether the event says itself whom it mentions.
    pub(super) fn has_mentions(&self) -> bool {
        self.content()
            .is_some_and(|content| content.contains_key("m.mentions"))
    }

    /// How the event stands to others.
    pub(crate) fn relation(&self) -> Relation {
        let relates = self
            .content()
            .and_then(|content| content.get("m.relates_to"));
        let text = |key: &str| relates?.get(key)?.as_str();
        let target = text("event_id").and_then(|id| EventId::parse(id).ok());
        match (text("rel_type"), target) {
            (Some("m.thread"), Some(root)) => Relation::Thread(root),
            (Some(_), Some(parent)) => Relation::Other(parent),
            _ => Relation::None,
        }
    }

    fn content(&self) -> Option<&Map<String, Value>> {
        self.top.get("content")?.as_object()
    }
}

/// The path of a property
/// ([spec](https://spec.matrix.org/v1.19/appendices/#dot-separated-property-paths)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path(Vec<String>);

impl Path {
    pub(super) fn parse(text: &str) -> Self {
        let mut keys = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let escaped =
                characters.next_if(|next| character == '\\' && matches!(next, '.' | '\\'));
            match (character, escaped, keys.last_mut()) {
                ('.', None, _) => keys.push(String::new()),
                (_, Some(escaped), Some(key)) => key.push(escaped),
                (_, None, Some(key)) => key.push(character),
                (_, _, None) => {}
            }
        }
        Self(keys)
    }

    /// Whether it is the text of messages.
    pub(super) fn is_body(&self) -> bool {
        self.0.as_slice() == ["content", "body"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let parse = |text| Path::parse(text).0;
        assert_eq!(parse("content.body"), ["content", "body"]);
        assert_eq!(
            parse("content.m\\.mentions.user_ids"),
            ["content", "m.mentions", "user_ids"]
        );
        assert_eq!(parse("a\\\\.b\\x"), ["a\\", "b\\x"]);
        assert_eq!(parse(""), [""]);
    }
}
