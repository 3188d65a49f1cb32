//! What a new room takes over from the one that it replaces. Pure.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    OwnedUserId, UserId, room_version_rules::RoomVersionRules, state_res::events::RoomCreateEvent,
};
use serde_json::{Map, Value, json};
use sotto_federation::room::pdu::Pdu;

use super::{Part, Upgrade};
use crate::storage::events::StoredEvent;

/// What is taken over as it is, in this order: nothing of it depends on who said it
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-18)).
const COPIED: [&str; 8] = [
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.canonical_alias",
];

/// The levels that stand beside the lists.
const PLAIN_LEVELS: [(&str, i64); 7] = [
    ("ban", 50),
    ("events_default", 0),
    ("invite", 0),
    ("kick", 50),
    ("redact", 50),
    ("state_default", 50),
    ("users_default", 0),
];

/// The parts of the old room that matter.
pub(super) struct Copies {
    create: Map<String, Value>,
    /// The levels in the old room, if it has any.
    old_levels: Option<Map<String, Value>>,
    /// The levels that the new room is to have.
    levels: Map<String, Value>,
    /// Events for the new room: type, state key, content.
    copied: Vec<(String, String, Value)>,
    has_alias: bool,
}

impl Copies {
    pub(super) fn of(
        state: &[Arc<StoredEvent>],
        old_rules: &RoomVersionRules,
        upgrade: &Upgrade<'_>,
        rules: &RoomVersionRules,
    ) -> Self {
        let find = |kind: &str| {
            let is =
                |pdu: &&Pdu| pdu.event_type().to_string() == kind && pdu.state_key() == Some("");
            state.iter().map(|event| &*event.pdu).find(is)
        };
        let map = |pdu: &Pdu| pdu.content_as::<Map<String, Value>>().ok();
        let create = find("m.room.create");
        let creators: BTreeSet<OwnedUserId> = create
            .and_then(|create| {
                RoomCreateEvent::new(create)
                    .creators(&old_rules.authorization)
                    .ok()
            })
            .into_iter()
            .flatten()
            .collect();
        let old_levels = find("m.room.power_levels").and_then(map);
        let mut copied = Vec::new();
        if let Some(rule) = find("m.room.join_rules").and_then(map) {
            let content = join_rule(rule, rules);
            copied.push(("m.room.join_rules".to_owned(), String::new(), content));
        }
        for kind in COPIED {
            let content = find(kind)
                .and_then(map)
                .filter(|content| !content.is_empty());
            copied.extend(content.map(|c| (kind.to_owned(), String::new(), Value::Object(c))));
        }
        if find("m.room.guest_access").is_none() {
            // It goes without saying in the old room; here it is said, whatever rooms may mean by silence.
            let forbidden = json!({ "guest_access": "forbidden" });
            copied.push(("m.room.guest_access".to_owned(), String::new(), forbidden));
        }
        let create = create.and_then(map).unwrap_or_default();
        let is_space = create.get("type").and_then(Value::as_str) == Some("m.space");
        for pdu in state.iter().map(|event| &*event.pdu) {
            copied.extend(keyed(pdu, is_space, upgrade.user_id));
        }
        Self {
            has_alias: copied.iter().any(|copy| copy.0 == "m.room.canonical_alias"),
            levels: levels(old_levels.as_ref(), &creators, old_rules, upgrade, rules),
            create,
            old_levels,
            copied,
        }
    }

    /// Whether the old room has names to give away.
    pub(super) fn has_alias(&self) -> bool {
        self.has_alias
    }

    /// The levels that keep people from talking in the old room and inviting to it.
    pub(super) fn closing_levels(&self) -> Option<Value> {
        let mut levels = self.old_levels.clone()?;
        let floor = (plain(&levels, "users_default", 0) + 1).max(50);
        let mut changed = false;
        for field in ["events_default", "invite"] {
            if plain(&levels, field, 0) < floor {
                levels.insert(field.to_owned(), json!(floor));
                changed = true;
            }
        }
        changed.then_some(Value::Object(levels))
    }

    /// The state events of the new room.
    pub(super) fn parts(
        &self,
        upgrade: &Upgrade<'_>,
        rules: &RoomVersionRules,
        predecessor: Value,
        member: Value,
    ) -> Vec<Part> {
        let mut create = Map::new();
        create.insert("room_version".to_owned(), json!(upgrade.version));
        create.insert("predecessor".to_owned(), predecessor);
        for field in ["type", "m.federate"] {
            if let Some(value) = self.create.get(field) {
                create.insert(field.to_owned(), value.clone());
            }
        }
        let user_id = upgrade.user_id;
        if !rules.authorization.use_room_create_sender {
            create.insert("creator".to_owned(), json!(user_id));
        }
        let others = others(upgrade);
        if rules.authorization.additional_room_creators && !others.is_empty() {
            create.insert("additional_creators".to_owned(), json!(others));
        }
        let (at_first, later) = self.in_steps(user_id, rules);
        let levels = |content| Part::new("m.room.power_levels", "", Value::Object(content));
        let mut parts = vec![
            Part::new("m.room.create", "", Value::Object(create)),
            Part::new("m.room.member", user_id.as_str(), member),
            levels(at_first),
        ];
        let copied = self.copied.iter();
        parts.extend(copied.map(|(kind, key, content)| Part::new(kind, key, content.clone())));
        parts.extend(later.map(levels));
        parts
    }

    /// The levels with which the new room begins, and those which it gets in the end: the user may have
    /// less power than it takes to set everything.
    fn in_steps(
        &self,
        user_id: &UserId,
        rules: &RoomVersionRules,
    ) -> (Map<String, Value>, Option<Map<String, Value>>) {
        let needed = needed(&self.levels);
        let default = plain(&self.levels, "users_default", 0);
        let has = level_of(&self.levels, user_id).unwrap_or(default);
        if rules.authorization.explicitly_privilege_room_creators || has >= needed {
            return (self.levels.clone(), None);
        }
        let mut at_first = self.levels.clone();
        if let Some(Value::Object(users)) = at_first.get_mut("users") {
            users.insert(user_id.to_string(), json!(needed));
        }
        (at_first, Some(self.levels.clone()))
    }
}

/// State events that are many of a type: who is banned, and what belongs to a space.
fn keyed(pdu: &Pdu, is_space: bool, user_id: &UserId) -> Option<(String, String, Value)> {
    let (kind, key) = (pdu.event_type().to_string(), pdu.state_key()?.to_owned());
    let content: Map<String, Value> = pdu.content_as().ok()?;
    let wanted = match kind.as_str() {
        "m.room.member" => {
            content.get("membership").and_then(Value::as_str) == Some("ban") && *user_id != *key
        }
        "m.space.child" => {
            let via = content.get("via").and_then(Value::as_array);
            is_space && via.is_some_and(|via| !via.is_empty())
        }
        _ => false,
    };
    wanted.then_some((kind, key, Value::Object(content)))
}

/// A join rule that the new version knows; the most careful one otherwise.
fn join_rule(mut content: Map<String, Value>, rules: &RoomVersionRules) -> Value {
    let rules = &rules.authorization;
    let is_known = match content.get("join_rule").and_then(Value::as_str) {
        Some("knock") => rules.knocking,
        Some("restricted") => rules.restricted_join_rule,
        Some("knock_restricted") => rules.knock_restricted_join_rule,
        _ => true,
    };
    if !is_known {
        content = Map::from_iter([("join_rule".to_owned(), json!("invite"))]);
    }
    Value::Object(content)
}

/// The creators of the new room beside the user.
fn others(upgrade: &Upgrade<'_>) -> BTreeSet<OwnedUserId> {
    let others = upgrade.additional_creators.iter();
    others
        .filter(|other| **other != upgrade.user_id)
        .cloned()
        .collect()
}

/// The levels of the old room as the new version wants them.
fn levels(
    old: Option<&Map<String, Value>>,
    creators: &BTreeSet<OwnedUserId>,
    old_rules: &RoomVersionRules,
    upgrade: &Upgrade<'_>,
    rules: &RoomVersionRules,
) -> Map<String, Value> {
    let mut levels = old.cloned().unwrap_or_default();
    if rules.authorization.integer_power_levels {
        make_integers(&mut levels);
    }
    let top = needed(&levels).max(100);
    let privileged =
        |rules: &RoomVersionRules| rules.authorization.explicitly_privilege_room_creators;
    let users = levels.entry("users").or_insert_with(|| json!({}));
    if !users.is_object() {
        *users = json!({});
    }
    if let Value::Object(users) = users {
        // Creators had all power without being told, or where there were no levels.
        if privileged(old_rules) || old.is_none() {
            for creator in creators {
                users.insert(creator.to_string(), json!(top));
            }
        }
        if privileged(rules) {
            users.remove(upgrade.user_id.as_str());
            for other in others(upgrade) {
                users.remove(other.as_str());
            }
        }
    }
    levels
}

/// Makes integers of strings and floats, which older versions allow.
fn make_integers(levels: &mut Map<String, Value>) {
    for (field, value) in levels.iter_mut() {
        match value {
            Value::Object(list) => {
                for value in list.values_mut() {
                    *value = json!(integer(value).unwrap_or(0));
                }
            }
            value if PLAIN_LEVELS.iter().any(|(plain, _)| plain == field) => {
                *value = json!(integer(value).unwrap_or(0));
            }
            _ => {}
        }
    }
}

/// The level with which everything can be set that is copied.
fn needed(levels: &Map<String, Value>) -> i64 {
    let events = levels.get("events").and_then(Value::as_object);
    let of_events = events.into_iter().flat_map(Map::values).filter_map(integer);
    let plain = PLAIN_LEVELS.map(|(field, default)| plain(levels, field, default));
    of_events.chain(plain).max().unwrap_or(0)
}

fn plain(levels: &Map<String, Value>, field: &str, default: i64) -> i64 {
    levels.get(field).and_then(integer).unwrap_or(default)
}

fn level_of(levels: &Map<String, Value>, user_id: &UserId) -> Option<i64> {
    levels.get("users")?.get(user_id.as_str()).and_then(integer)
}

/// A level, however it is written.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            #[expect(clippy::cast_possible_truncation, reason = "as the rules read it")]
            let truncated = number.as_f64()?.trunc() as i64;
            Some(truncated)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}
