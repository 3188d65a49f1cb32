//! The rules that everybody has
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#predefined-rules)).
//!
//! Beside those of the specification there are the three that it had until v1.16, which find mentions in
//! the text of messages: bridges and older clients send no `m.mentions`, and only messages without it are
//! looked at so. And there is that of MSC4028, with which a client is told of every encrypted event.

use ruma::UserId;
use serde_json::{Value, json};

use super::rules::{Rule, Rules};

/// Of the rules that are not looked at for events with `m.mentions`.
pub(super) const LEGACY: [&str; 3] = [
    ".m.rule.contains_display_name",
    ".m.rule.contains_user_name",
    ".m.rule.roomnotif",
];

/// The rules of one who has changed nothing.
pub(super) fn rules(user_id: &UserId) -> Rules {
    Rules {
        overrides: overrides(user_id),
        content: vec![Rule {
            pattern: Some(user_id.localpart().to_owned()),
            conditions: None,
            ..rule(".m.rule.contains_user_name", Vec::new(), mention())
        }],
        room: Vec::new(),
        sender: Vec::new(),
        underride: underrides(),
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one list, in the order in which they are looked at"
)]
fn overrides(user_id: &UserId) -> Vec<Rule> {
    let off = |rule| Rule {
        enabled: false,
        ..rule
    };
    vec![
        off(rule(".m.rule.master", Vec::new(), Vec::new())),
        rule(
            ".m.rule.suppress_notices",
            vec![matches("content.msgtype", "m.notice")],
            Vec::new(),
        ),
        rule(
            ".m.rule.invite_for_me",
            vec![
                matches("type", "m.room.member"),
                matches("content.membership", "invite"),
                matches("state_key", user_id.as_str()),
            ],
            vec![json!("notify"), sound("default")],
        ),
        rule(
            ".m.rule.member_event",
            vec![matches("type", "m.room.member")],
            Vec::new(),
        ),
        rule(
            ".m.rule.is_user_mention",
            vec![json!({
                "kind": "event_property_contains",
                "key": "content.m\\.mentions.user_ids",
                "value": user_id,
            })],
            mention(),
        ),
        rule(
            ".m.rule.contains_display_name",
            vec![json!({ "kind": "contains_display_name" })],
            mention(),
        ),
        rule(
            ".m.rule.is_room_mention",
            vec![
                is("content.m\\.mentions.room", &json!(true)),
                may_notify_room(),
            ],
            vec![json!("notify"), highlight()],
        ),
        rule(
            ".m.rule.roomnotif",
            vec![may_notify_room(), matches("content.body", "@room")],
            vec![json!("notify"), highlight()],
        ),
        rule(
            ".m.rule.tombstone",
            vec![
                matches("type", "m.room.tombstone"),
                matches("state_key", ""),
            ],
            vec![json!("notify"), highlight()],
        ),
        rule(
            ".m.rule.reaction",
            vec![matches("type", "m.reaction")],
            Vec::new(),
        ),
        rule(
            ".m.rule.room.server_acl",
            vec![
                matches("type", "m.room.server_acl"),
                matches("state_key", ""),
            ],
            Vec::new(),
        ),
        rule(
            ".m.rule.suppress_edits",
            vec![is("content.m\\.relates_to.rel_type", &json!("m.replace"))],
            Vec::new(),
        ),
        off(rule(
            ".org.matrix.msc4028.encrypted_event",
            vec![matches("type", "m.room.encrypted")],
            vec![json!("notify")],
        )),
    ]
}

fn underrides() -> Vec<Rule> {
    let two = || json!({ "kind": "room_member_count", "is": "2" });
    vec![
        rule(
            ".m.rule.call",
            vec![matches("type", "m.call.invite")],
            vec![json!("notify"), sound("ring")],
        ),
        rule(
            ".m.rule.encrypted_room_one_to_one",
            vec![two(), matches("type", "m.room.encrypted")],
            vec![json!("notify"), sound("default")],
        ),
        rule(
            ".m.rule.room_one_to_one",
            vec![two(), matches("type", "m.room.message")],
            vec![json!("notify"), sound("default")],
        ),
        rule(
            ".m.rule.message",
            vec![matches("type", "m.room.message")],
            vec![json!("notify")],
        ),
        rule(
            ".m.rule.encrypted",
            vec![matches("type", "m.room.encrypted")],
            vec![json!("notify")],
        ),
    ]
}

fn rule(rule_id: &str, conditions: Vec<Value>, actions: Vec<Value>) -> Rule {
    Rule {
        actions,
        conditions: Some(conditions),
        default: true,
        enabled: true,
        pattern: None,
        rule_id: rule_id.to_owned(),
    }
}

fn matches(key: &str, pattern: &str) -> Value {
    json!({ "kind": "event_match", "key": key, "pattern": pattern })
}

fn is(key: &str, value: &Value) -> Value {
    json!({ "kind": "event_property_is", "key": key, "value": value })
}

fn may_notify_room() -> Value {
    json!({ "kind": "sender_notification_permission", "key": "room" })
}

fn sound(name: &str) -> Value {
    json!({ "set_tweak": "sound", "value": name })
}

fn highlight() -> Value {
    json!({ "set_tweak": "highlight" })
}

fn mention() -> Vec<Value> {
    vec![json!("notify"), sound("default"), highlight()]
}
