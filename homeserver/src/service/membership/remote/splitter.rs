//! An answer to `send_join`, taken apart while it comes: of a large room it has hundreds of thousands of
//! events, which are checked while the next ones are on their way.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The most bytes of one event; larger than any can be, for what surrounds it.
const MAX_ITEM: usize = 128 * 1024;
/// The most bytes of what is no list of events.
const MAX_MEMBER: usize = 16 * 1024 * 1024;

/// The lists that are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    State,
    AuthChain,
}

/// Why there is nothing to take apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SplitError {
    /// It is not JSON, or not an object.
    #[error("the answer is malformed")]
    Malformed,
    /// A part of it is too large.
    #[error("a part of the answer is too large")]
    TooLarge,
}

/// Takes an object apart, byte by byte.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    place: Place,
    /// The name of the member that is read.
    name: String,
    /// What of it was read so far.
    buffer: Vec<u8>,
    /// How deep in brackets.
    depth: usize,
    text: Text,
    items: Vec<(List, Box<RawValue>)>,
    members: BTreeMap<String, Box<RawValue>>,
}

/// Where in the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Before,
    /// Before the name of a member, or the end.
    Name,
    InName,
    Colon,
    /// Before the value of a member.
    Value,
    InValue,
    /// Between the items of a list.
    Items(List),
    InItem(List),
    After,
}

/// Whether brackets are only letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Outside,
    Inside,
    AfterBackslash,
}

impl Splitter {
    /// Reads on.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        for byte in bytes {
            self.step(*byte)?;
        }
        Ok(())
    }

    /// The events that were complete since they were last asked for.
    pub(super) fn items(&mut self) -> Vec<(List, Box<RawValue>)> {
        std::mem::take(&mut self.items)
    }

    /// What else the object had, once it is complete.
    pub(super) fn finish(self) -> Result<BTreeMap<String, Box<RawValue>>, SplitError> {
        match self.place {
            Place::After => Ok(self.members),
            _ => Err(SplitError::Malformed),
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), SplitError> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match (self.place, byte) {
            (Place::InName, _) => self.in_name(byte)?,
            (Place::InValue, _) => self.in_value(byte)?,
            (Place::InItem(list), _) => self.in_item(list, byte)?,
            (_, _) if is_space => {}
            (Place::Before, b'{') | (Place::Name, b',') | (Place::Items(_), b']') => {
                self.place = Place::Name;
            }
            (Place::Name, b'"') => {
                self.begin(Place::InName);
                self.push(byte, MAX_ITEM)?;
            }
            (Place::Name, b'}') => self.place = Place::After,
            (Place::Colon, b':') => self.place = Place::Value,
            (Place::Value, _) => self.value(byte)?,
            (Place::Items(list), b',') => self.place = Place::Items(list),
            (Place::Items(list), _) => {
                self.begin(Place::InItem(list));
                self.in_item(list, byte)?;
            }
            _ => return Err(SplitError::Malformed),
        }
        Ok(())
    }

    fn begin(&mut self, place: Place) {
        self.place = place;
        self.buffer.clear();
        (self.depth, self.text) = (0, Text::Outside);
    }

    fn push(&mut self, byte: u8, most: usize) -> Result<(), SplitError> {
        if self.buffer.len() == most {
            return Err(SplitError::TooLarge);
        }
        self.buffer.push(byte);
        self.text = match (self.text, byte) {
            (Text::Outside, b'"') | (Text::AfterBackslash, _) => Text::Inside,
            (Text::Inside, b'\\') => Text::AfterBackslash,
            (Text::Inside, b'"') => Text::Outside,
            (text, _) => text,
        };
        Ok(())
    }

    fn in_name(&mut self, byte: u8) -> Result<(), SplitError> {
        self.push(byte, MAX_ITEM)?;
        if self.text == Text::Outside {
            let name = serde_json::from_slice(&self.buffer);
            self.name = name.map_err(|_| SplitError::Malformed)?;
            self.place = Place::Colon;
        }
        Ok(())
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8) -> Result<(), SplitError> {
        let list = match self.name.as_str() {
            // The one with a join, the other without.
            "state" | "pdus" => Some(List::State),
            "auth_chain" => Some(List::AuthChain),
            _ => None,
        };
        match list {
            Some(list) if byte == b'[' => self.place = Place::Items(list),
            Some(_) => return Err(SplitError::Malformed),
            None => {
                self.begin(Place::InValue);
                self.in_value(byte)?;
            }
        }
        Ok(())
    }

    /// One more byte of a value; whether that was the last. A number ends by what comes after it, which is
    /// not of the value.
    fn take(&mut self, byte: u8, most: usize) -> Result<End, SplitError> {
        let bare = self.text == Text::Outside && self.depth == 0;
        if bare && !self.buffer.is_empty() && matches!(byte, b',' | b']' | b'}') {
            return Ok(End::Before);
        }
        let outside = self.text == Text::Outside;
        self.push(byte, most)?;
        match byte {
            b'{' | b'[' if outside => self.depth += 1,
            b'}' | b']' if outside => {
                self.depth = self.depth.checked_sub(1).ok_or(SplitError::Malformed)?;
            }
            _ => {}
        }
        Ok(End::NotYet)
    }

    fn in_value(&mut self, byte: u8) -> Result<(), SplitError> {
        if self.take(byte, MAX_MEMBER)? == End::Before {
            let value = self.parsed()?;
            let name = std::mem::take(&mut self.name);
            self.members.insert(name, value);
            self.place = Place::Name;
            self.step(byte)?;
        }
        Ok(())
    }

    fn in_item(&mut self, list: List, byte: u8) -> Result<(), SplitError> {
        if self.take(byte, MAX_ITEM)? == End::Before {
            let item = self.parsed()?;
            self.items.push((list, item));
            self.place = Place::Items(list);
            self.step(byte)?;
        }
        Ok(())
    }

    fn parsed(&self) -> Result<Box<RawValue>, SplitError> {
        let value = serde_json::from_slice(&self.buffer);
        value.map_err(|_| SplitError::Malformed)
    }
}

/// Whether a value has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    NotYet,
    /// Before the byte.
    Before,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn split(text: &str, step: usize) -> Result<Value, SplitError> {
        let mut splitter = Splitter::default();
        let mut lists: [Vec<Value>; 2] = Default::default();
        let mut take = |splitter: &mut Splitter| {
            for (list, item) in splitter.items() {
                let item = serde_json::from_str(item.get()).unwrap();
                lists[usize::from(list == List::AuthChain)].push(item);
            }
        };
        for bytes in text.as_bytes().chunks(step) {
            splitter.read(bytes)?;
            take(&mut splitter);
        }
        let members = splitter.finish()?;
        let [state, auth_chain] = lists;
        let mut whole = json!({ "state": state, "auth_chain": auth_chain });
        for (name, value) in members {
            whole[name] = serde_json::from_str(value.get()).unwrap();
        }
        Ok(whole)
    }

    #[test]
    fn what_is_taken_apart_is_what_was_sent() {
        let whole = json!({
            "origin": "b.test",
            "state": [{ "a": "}]\\\"," }, { "b": [1, [2, { "c": "\u{1f600}" }]] }, 7, "x"],
            "members_omitted": true,
            "auth_chain": [{ "d": null }],
            "event": { "content": { "e": ["]"] } },
            "servers_in_room": ["a.test", "b.test"],
            "number": -1,
        });
        for text in [
            whole.to_string(),
            serde_json::to_string_pretty(&whole).unwrap(),
        ] {
            for step in [1, 2, 7, 64, 10_000] {
                assert_eq!(split(&text, step).as_ref(), Ok(&whole));
            }
        }
        let empty = json!({ "state": [], "auth_chain": [] });
        assert_eq!(
            split(" { \"state\" : [ ] , \"auth_chain\":[]} ", 1),
            Ok(empty)
        );
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            "",
            "[]",
            "{",
            "{\"state\":[",
            "{\"state\":[{]}",
            "{\"state\":{}}",
            "{\"state\":[{\"a\":}]}",
            "{\"a\":1}}",
            "{\"a\" 1}",
            "{a:1}",
            "{\"state\":[tru]}",
        ] {
            assert_eq!(split(text, 3), Err(SplitError::Malformed), "{text}");
        }
        let endless = format!("{{\"state\":[\"{}", "x".repeat(MAX_ITEM + 1));
        assert_eq!(split(&endless, 4_096), Err(SplitError::TooLarge));
    }
}
