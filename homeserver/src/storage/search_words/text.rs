//! The texts by which events are found, and their words: pure.

use std::collections::BTreeSet;

use ruma::events::TimelineEventType;
use serde::Deserialize;
use sotto_federation::room::pdu::Pdu;

use crate::storage::events::Relation;

/// How many different words of a text are kept.
const MOST_WORDS: usize = 400;
/// How many characters of a word count.
const LONGEST: usize = 64;

/// The kinds of text
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#search-categories)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// `content.body` of messages.
    Body,
    /// `content.name` of rooms.
    Name,
    /// `content.topic` of rooms.
    Topic,
}

impl Key {
    pub(crate) const ALL: [Self; 3] = [Self::Body, Self::Name, Self::Topic];

    /// The number that stands for a word of this kind of text in the database (FNV-1a): it must stay what it is.
    pub(crate) fn hash(self, word: &str) -> i64 {
        let kind = match self {
            Self::Body => b'b',
            Self::Name => b'n',
            Self::Topic => b't',
        };
        let bytes = std::iter::once(kind).chain(word.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        hash.cast_signed()
    }
}

/// A text by which an event is found. What people wrote is not for logs: there is no `Debug`.
pub(crate) struct Text {
    pub(crate) key: Key,
    pub(crate) text: String,
}

impl Text {
    /// The text of an event, if it has one. That of an edit is the new one.
    pub(crate) fn of(pdu: &Pdu) -> Option<Self> {
        let (key, text) = match (pdu.event_type(), pdu.state_key()) {
            (TimelineEventType::RoomMessage, None) => {
                let edits = Relation::of(pdu).is_some_and(|relation| relation.is_edit());
                let text = if edits {
                    pdu.content_as::<Edit>().ok()?.new_content.body
                } else {
                    pdu.content_as::<Message>().ok()?.body
                };
                (Key::Body, text)
            }
            (TimelineEventType::RoomName, Some("")) => {
                (Key::Name, pdu.content_as::<Name>().ok()?.name)
            }
            (TimelineEventType::RoomTopic, Some("")) => (Key::Topic, topic(pdu)?),
            _ => return None,
        };
        Some(Self { key, text })
    }

    /// The numbers that stand for its words in the database.
    pub(crate) fn hashes(&self) -> BTreeSet<i64> {
        let mut found = BTreeSet::new();
        for word in words(&self.text) {
            found.insert(self.key.hash(&word));
            if found.len() == MOST_WORDS {
                break;
            }
        }
        found
    }
}

#[derive(Deserialize)]
struct Message {
    body: String,
}

#[derive(Deserialize)]
struct Edit {
    #[serde(rename = "m.new_content")]
    new_content: Message,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// The topic as it always was, and the plain one of those for which there are several representations
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mroomtopic)).
fn topic(pdu: &Pdu) -> Option<String> {
    #[derive(Deserialize)]
    struct Topic {
        topic: Option<String>,
    }
    #[derive(Deserialize)]
    struct Blocks {
        #[serde(rename = "m.topic")]
        block: Block,
    }
    #[derive(Deserialize)]
    struct Block {
        #[serde(rename = "m.text")]
        texts: Vec<Representation>,
    }
    #[derive(Deserialize)]
    struct Representation {
        body: String,
        mimetype: Option<String>,
    }
    let old = pdu
        .content_as::<Topic>()
        .ok()
        .and_then(|content| content.topic);
    let blocks = pdu.content_as::<Blocks>().ok();
    let plain = blocks
        .into_iter()
        .flat_map(|blocks| blocks.block.texts)
        .find(|text| {
            let mimetype = text.mimetype.as_deref();
            mimetype.is_none_or(|mimetype| mimetype == "text/plain")
        });
    match (old, plain.map(|text| text.body)) {
        (Some(old), Some(plain)) if old != plain => Some(format!("{old}\n{plain}")),
        (old, plain) => old.or(plain),
    }
}

/// The words of a text, in order, as they are compared. What is written without spaces has a word for each
/// character.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word = String::new();
    let mut length = 0;
    for c in text.chars() {
        let alone = is_unspaced(c) || is_picture(c);
        if alone || !c.is_alphanumeric() {
            found.extend((length > 0).then(|| std::mem::take(&mut word)));
            length = 0;
        }
        if alone {
            found.push(c.to_string());
        } else if c.is_alphanumeric() {
            length += 1;
            if length <= LONGEST {
                word.extend(c.to_lowercase());
            }
        }
    }
    found.extend((length > 0).then_some(word));
    found
}

/// Chinese, Japanese, Korean, Thai, Lao, Khmer.
pub(crate) fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c), 0x0e00..=0x0eff | 0x1780..=0x17ff | 0x2e80..=0x9fff | 0xac00..=0xd7ff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

fn is_picture(c: char) -> bool {
    matches!(u32::from(c), 0x2600..=0x27bf | 0x1_f000..=0x1_faff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_folded_and_in_order() {
        assert_eq!(words("Hello, WORLD! don't"), ["hello", "world", "don", "t"]);
        assert_eq!(words("日本語 test🎉"), ["日", "本", "語", "test", "🎉"]);
        assert_eq!(words("  ,;%* \u{0}"), Vec::<String>::new());
        assert_eq!(words(&"a".repeat(100)), ["a".repeat(LONGEST)]);
    }

    #[test]
    fn the_hash_stays_what_it_is() {
        assert_eq!(Key::Body.hash("hello"), Key::Body.hash("hello"));
        assert_eq!(Key::Body.hash(""), 0xaf63_df4c_8601_f1a5_u64.cast_signed());
        assert_ne!(Key::Body.hash("hello"), Key::Name.hash("hello"));
    }
}
