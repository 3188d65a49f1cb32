//! Push rules as clients see and change them
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#push-rules)).

use std::str::FromStr;

use ruma::UserId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kinds of rules, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Override,
    Content,
    Room,
    Sender,
    Underride,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Override,
        Self::Content,
        Self::Room,
        Self::Sender,
        Self::Underride,
    ];

    /// Whether rules of the kind have conditions.
    pub(crate) fn is_conditional(self) -> bool {
        matches!(self, Self::Override | Self::Underride)
    }
}

/// There is no such kind of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        match text {
            "override" => Ok(Self::Override),
            "content" => Ok(Self::Content),
            "room" => Ok(Self::Room),
            "sender" => Ok(Self::Sender),
            "underride" => Ok(Self::Underride),
            _ => Err(UnknownKind),
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the specification")]
pub(crate) struct Rule {
    pub(crate) actions: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) conditions: Option<Vec<Value>>,
    /// Whether it is the server's.
    pub(crate) default: bool,
    pub(crate) enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pattern: Option<String>,
    pub(crate) rule_id: String,
}

/// All rules of a user, in the order in which they are looked at within each kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Rules {
    #[serde(rename = "override")]
    pub(crate) overrides: Vec<Rule>,
    pub(crate) content: Vec<Rule>,
    pub(crate) room: Vec<Rule>,
    pub(crate) sender: Vec<Rule>,
    pub(crate) underride: Vec<Rule>,
}

/// Where a rule goes among those of its kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Placement {
    /// Just before this rule.
    pub(crate) before: Option<String>,
    /// Just after this one; without effect if `before` is given too.
    pub(crate) after: Option<String>,
}

/// Why a rule was not added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("there is no such rule")]
    NotFound,
    #[error("only the server has rules whose id begins with a dot")]
    ServerDefault,
    #[error("the id of a rule has no slashes, and is not empty")]
    InvalidId,
    #[error("there is no rule to stand before or after")]
    NoNeighbor,
    #[error("no rule can stand there")]
    Nowhere,
}

impl Rules {
    /// The rules of a kind.
    pub(crate) fn of(&self, kind: Kind) -> &Vec<Rule> {
        match kind {
            Kind::Override => &self.overrides,
            Kind::Content => &self.content,
            Kind::Room => &self.room,
            Kind::Sender => &self.sender,
            Kind::Underride => &self.underride,
        }
    }

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut Vec<Rule> {
        match kind {
            Kind::Override => &mut self.overrides,
            Kind::Content => &mut self.content,
            Kind::Room => &mut self.room,
            Kind::Sender => &mut self.sender,
            Kind::Underride => &mut self.underride,
        }
    }

    /// A rule.
    pub(crate) fn get(&self, kind: Kind, rule_id: &str) -> Option<&Rule> {
        self.of(kind).iter().find(|rule| rule.rule_id == rule_id)
    }

    pub(super) fn get_mut(&mut self, kind: Kind, rule_id: &str) -> Result<&mut Rule, ChangeError> {
        let mut rules = self.of_mut(kind).iter_mut();
        let rule = rules.find(|rule| rule.rule_id == rule_id);
        rule.ok_or(ChangeError::NotFound)
    }

    /// Adds a rule of the user, or replaces the one with its id, which stays on or off and, if nothing
    /// else is asked for, where it is
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3pushrulesglobalkindruleid)).
    pub(crate) fn insert(
        &mut self,
        kind: Kind,
        mut rule: Rule,
        placement: &Placement,
    ) -> Result<(), ChangeError> {
        let rule_id = &rule.rule_id;
        if rule_id.is_empty() || rule_id.contains(['/', '\\']) {
            return Err(ChangeError::InvalidId);
        }
        if rule_id.starts_with('.') {
            return Err(ChangeError::ServerDefault);
        }
        let rules = self.of_mut(kind);
        let known = rules.iter().position(|known| known.rule_id == rule.rule_id);
        let neighbor = |id: &Option<String>| {
            let Some(id) = id else { return Ok(None) };
            let found = rules.iter().position(|known| known.rule_id == *id);
            let found = found.filter(|index| rules.get(*index).is_some_and(|rule| !rule.default));
            found.map(Some).ok_or(ChangeError::NoNeighbor)
        };
        let (before, after) = (neighbor(&placement.before)?, neighbor(&placement.after)?);
        if let (Some(before), Some(after)) = (before, after)
            && before <= after
        {
            return Err(ChangeError::Nowhere);
        }
        // The master rule comes before everything.
        let top = usize::from(
            rules
                .first()
                .is_some_and(|rule| rule.default && kind == Kind::Override),
        );
        let wanted = before.or(after.map(|index| index + 1)).or(known);
        let mut index = wanted.unwrap_or(top);
        if let Some(known) = known {
            rule.enabled = rules.remove(known).enabled;
            index -= usize::from(known < index);
        }
        rules.insert(index.min(rules.len()), rule);
        Ok(())
    }

    /// Removes a rule of the user.
    pub(crate) fn remove(&mut self, kind: Kind, rule_id: &str) -> Result<(), ChangeError> {
        if self.get_mut(kind, rule_id)?.default {
            return Err(ChangeError::ServerDefault);
        }
        self.of_mut(kind).retain(|rule| rule.rule_id != rule_id);
        Ok(())
    }

    /// Brings the rules of the server up to date: what they are is the server's, whether they are on and
    /// what they do is the user's.
    pub(crate) fn with_defaults(mut self, user_id: &UserId) -> Self {
        let mut merged = super::defaults::rules(user_id);
        for kind in Kind::ALL {
            let mut own = std::mem::take(self.of_mut(kind));
            let defaults = merged.of_mut(kind);
            for rule in defaults.iter_mut() {
                if let Some(kept) = own
                    .iter()
                    .find(|kept| kept.default && kept.rule_id == rule.rule_id)
                {
                    rule.enabled = kept.enabled;
                    rule.actions.clone_from(&kept.actions);
                }
            }
            own.retain(|rule| !rule.default);
            let top = usize::from(kind == Kind::Override);
            defaults.splice(top..top, own);
        }
        merged
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        Kind::ALL.iter().map(|kind| self.of(*kind).len()).sum()
    }
}
