//! Rules in the form in which events are judged by them.
//!
//! The evaluation is pure and does not wait. What few rules need to know of the room and is not at hand
//! for every event (whether the sender may notify everybody) is asked for: the answer is then
//! [`Outcome::Asks`], and whoever called finds it out and calls again.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde_json::Value;

use super::{
    defaults::LEGACY,
    facts::{Facts, Path},
    glob::Glob,
    rules::{Kind, Rule, Rules},
};

/// The rules of a user that are on, in the order in which they are looked at.
#[derive(Debug)]
pub(crate) struct Compiled {
    rules: Vec<CompiledRule>,
}

/// A rule.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    conditions: Vec<Condition>,
    /// Whether it is not looked at for events that say themselves whom they mention.
    legacy: bool,
    pub(crate) verdict: Verdict,
}

/// What is to be done about an event.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) notify: bool,
    pub(crate) highlight: bool,
    /// As the rule has them, without those of history
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#historical-actions)).
    pub(crate) actions: Vec<Value>,
}

/// What a user and a room are while an event is judged.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context<'a> {
    /// How many are in the room.
    pub(crate) members: u64,
    /// What the user is called there.
    pub(crate) display_name: Option<&'a str>,
    /// Whom the sender may notify; `None` if that was not found out.
    pub(crate) levels: Option<&'a Levels>,
}

/// Whom a sender may notify
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels)).
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    /// The power of the sender; `None` for one that has all power.
    pub(crate) sender: Option<i64>,
    /// The power that each way to notify takes.
    pub(crate) needed: BTreeMap<String, i64>,
}

impl Levels {
    fn may_notify(&self, key: &str) -> bool {
        let needed = self.needed.get(key).copied().unwrap_or(50);
        self.sender.is_none_or(|sender| sender >= needed)
    }
}

/// What the rules say.
#[derive(Debug)]
pub(crate) enum Outcome<'r> {
    /// This rule decides.
    Decided(&'r CompiledRule),
    /// No rule cares.
    Nothing,
    /// It must be known whom the sender may notify.
    Asks,
}

#[derive(Debug)]
enum Condition {
    Match(Path, Glob),
    Body(Glob),
    Is(Path, Value),
    Contains(Path, Value),
    DisplayName,
    Members(RangeInclusive<u64>),
    Permission(String),
    /// Of a kind that is not known, or malformed.
    Never,
}

impl Compiled {
    pub(crate) fn new(rules: &Rules) -> Self {
        let mut compiled = Vec::new();
        for kind in Kind::ALL {
            let on = rules.of(kind).iter().filter(|rule| rule.enabled);
            compiled.extend(on.map(|rule| CompiledRule::new(kind, rule)));
        }
        Self { rules: compiled }
    }

    /// What is to be done about an event that somebody else sent.
    pub(crate) fn judge(&self, facts: &Facts, context: Context<'_>) -> Outcome<'_> {
        let legacy = !facts.has_mentions();
        for rule in &self.rules {
            if rule.legacy && !legacy {
                continue;
            }
            let mut asks = false;
            let applies = rule.conditions.iter().all(|condition| match condition {
                Condition::Permission(key) => context.levels.map_or_else(
                    || {
                        // Everything else in the rule is looked at first.
                        asks = true;
                        true
                    },
                    |levels| levels.may_notify(key),
                ),
                condition => condition.applies(facts, context),
            });
            match (applies, asks) {
                (true, true) => return Outcome::Asks,
                (true, false) => return Outcome::Decided(rule),
                (false, _) => {}
            }
        }
        Outcome::Nothing
    }

    /// Which of the conditions on the number of members hold for this number: where these are the same,
    /// so is everything.
    pub(crate) fn of_size(&self, members: u64) -> Vec<bool> {
        let conditions = self.rules.iter().flat_map(|rule| &rule.conditions);
        conditions
            .filter_map(|condition| match condition {
                Condition::Members(range) => Some(range.contains(&members)),
                _ => None,
            })
            .collect()
    }

    /// Whether a rule looks for the name of the user.
    pub(crate) fn needs_display_name(&self) -> bool {
        let mut conditions = self.rules.iter().flat_map(|rule| &rule.conditions);
        conditions.any(|condition| matches!(condition, Condition::DisplayName))
    }
}

impl CompiledRule {
    fn new(kind: Kind, rule: &Rule) -> Self {
        let is = |key: &str| Condition::Is(Path::parse(key), rule.rule_id.clone().into());
        let conditions = match (kind, &rule.pattern) {
            (Kind::Override | Kind::Underride, _) => {
                let conditions = rule.conditions.iter().flatten();
                conditions.map(Condition::new).collect()
            }
            (Kind::Content, Some(pattern)) => vec![Condition::Body(Glob::new(pattern))],
            (Kind::Content, None) => vec![Condition::Never],
            (Kind::Room, _) => vec![is("room_id")],
            (Kind::Sender, _) => vec![is("sender")],
        };
        Self {
            conditions,
            legacy: rule.default && LEGACY.contains(&rule.rule_id.as_str()),
            verdict: Verdict::new(&rule.actions),
        }
    }
}

impl Verdict {
    fn new(actions: &[Value]) -> Self {
        let tweak = |action: &&Value| action.get("set_tweak").is_some();
        let is_highlight = |action: &Value| {
            action.get("set_tweak").and_then(Value::as_str) == Some("highlight")
                && action.get("value").is_none_or(|value| *value == true)
        };
        let known = actions
            .iter()
            .filter(|action| **action == "notify" || tweak(action));
        Self {
            notify: actions.iter().any(|action| action == "notify"),
            highlight: actions.iter().any(is_highlight),
            actions: known.cloned().collect(),
        }
    }
}

impl Condition {
    fn new(condition: &Value) -> Self {
        let text = |key: &str| condition.get(key).and_then(Value::as_str);
        let path = text("key").map(Path::parse);
        let scalar = condition.get("value").filter(|value| is_scalar(value));
        let known = match text("kind") {
            Some("event_match") => path.zip(text("pattern")).map(|(path, pattern)| {
                if path.is_body() {
                    Self::Body(Glob::new(pattern))
                } else {
                    Self::Match(path, Glob::new(pattern))
                }
            }),
            Some("event_property_is") => path
                .zip(scalar)
                .map(|(path, value)| Self::Is(path, value.clone())),
            Some("event_property_contains") => path
                .zip(scalar)
                .map(|(path, value)| Self::Contains(path, value.clone())),
            Some("contains_display_name") => Some(Self::DisplayName),
            Some("room_member_count") => text("is").and_then(range).map(Self::Members),
            Some("sender_notification_permission") => {
                text("key").map(|key| Self::Permission(key.to_owned()))
            }
            _ => None,
        };
        known.unwrap_or(Self::Never)
    }

    fn applies(&self, facts: &Facts, context: Context<'_>) -> bool {
        match self {
            Self::Match(path, glob) => {
                let text = facts.get(path).and_then(Value::as_str);
                text.is_some_and(|text| glob.matches(&text.to_lowercase()))
            }
            Self::Body(glob) => facts.body().is_some_and(|body| glob.matches_words(body)),
            Self::Is(path, value) => facts.get(path).is_some_and(|found| same(found, value)),
            Self::Contains(path, value) => {
                let array = facts.get(path).and_then(Value::as_array);
                array.is_some_and(|array| array.iter().any(|found| same(found, value)))
            }
            Self::DisplayName => {
                let name = context.display_name.filter(|name| !name.trim().is_empty());
                let body = name.and(facts.body());
                name.zip(body)
                    .is_some_and(|(name, body)| Glob::literal(name).matches_words(body))
            }
            Self::Members(range) => range.contains(&context.members),
            Self::Permission(_) | Self::Never => false,
        }
    }
}

/// Whether a value can be compared: neither compound nor a fraction.
fn is_scalar(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => number.is_i64(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn same(found: &Value, wanted: &Value) -> bool {
    is_scalar(found) && found == wanted
}

/// `2`, `==2`, `<2`, `>2`, `>=2`, `<=2`
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#conditions-1)).
fn range(text: &str) -> Option<RangeInclusive<u64>> {
    let digits = text.trim_start_matches(['<', '>', '=']);
    let number: u64 = digits.parse().ok()?;
    let empty = RangeInclusive::new(1, 0);
    Some(match text.strip_suffix(digits)? {
        "" | "==" => number..=number,
        "<" => number.checked_sub(1).map_or(empty, |last| 0..=last),
        "<=" => 0..=number,
        ">" => number
            .checked_add(1)
            .map_or(empty, |first| first..=u64::MAX),
        ">=" => number..=u64::MAX,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
