#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    clippy::needless_pass_by_value,
    reason = "tests, and tables of them"
)]

use ruma::{RoomVersionId, user_id};
use serde_json::{json, value::to_raw_value};
use sotto_federation::room::pdu::Pdu;

use super::*;
use crate::service::push_rules::defaults;

fn facts(event: Value) -> Facts {
    let mut whole = json!({
        "type": "m.room.message", "sender": "@bob:one.test", "room_id": "!room:one.test",
        "origin_server_ts": 1, "depth": 1, "prev_events": [], "auth_events": [], "hashes": {},
    });
    for (key, value) in event.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let rules = RoomVersionId::V5.rules().unwrap();
    let json = to_raw_value(&whole).unwrap();
    let id = Pdu::parse(&json, &rules).unwrap().event_id().to_owned();
    Facts::of(&Pdu::from_storage(id, json, false).unwrap())
}

fn text(body: &str) -> Facts {
    facts(json!({ "content": { "msgtype": "m.text", "body": body } }))
}

fn context() -> Context<'static> {
    Context {
        members: 3,
        display_name: Some("Alice the Great"),
        levels: None,
    }
}

/// Notify and highlight.
fn judged(rules: &Rules, facts: &Facts, context: Context<'_>) -> (bool, bool) {
    match Compiled::new(rules).judge(facts, context) {
        Outcome::Decided(rule) => (rule.verdict.notify, rule.verdict.highlight),
        Outcome::Nothing => (false, false),
        Outcome::Asks => panic!("asks"),
    }
}

fn default() -> Rules {
    defaults::rules(user_id!("@alice:one.test"))
}

#[test]
fn the_rules_of_the_specification() {
    let content = |content: Value| facts(json!({ "content": content }));
    let mention = |mentions: Value| content(json!({ "body": "x", "m.mentions": mentions }));
    for (event, expected) in [
        (text("hello"), (true, false)),
        (text("hello alice!"), (true, true)),
        (text("hello alice2"), (true, false)),
        (text("ALICE THE GREAT: hello"), (true, true)),
        (
            content(json!({ "msgtype": "m.notice", "body": "alice" })),
            (false, false),
        ),
        (
            mention(json!({ "user_ids": ["@alice:one.test"] })),
            (true, true),
        ),
        (
            mention(json!({ "user_ids": ["@carol:one.test"] })),
            (true, false),
        ),
        (
            // What is said about mentions counts, not what the text looks like.
            content(json!({ "body": "alice", "m.mentions": {} })),
            (true, false),
        ),
        (
            content(
                json!({ "body": "* hi", "m.relates_to": { "rel_type": "m.replace", "event_id": "$x" } }),
            ),
            (false, false),
        ),
        (
            facts(json!({ "type": "m.reaction", "content": {} })),
            (false, false),
        ),
        (
            facts(json!({ "type": "m.room.encrypted", "content": {} })),
            (true, false),
        ),
        (
            facts(json!({ "type": "m.call.invite", "content": {} })),
            (true, false),
        ),
        (
            facts(json!({ "type": "org.example.other", "content": {} })),
            (false, false),
        ),
        (
            facts(json!({ "type": "m.room.tombstone", "state_key": "", "content": {} })),
            (true, true),
        ),
        (
            facts(json!({
                "type": "m.room.member", "state_key": "@alice:one.test",
                "content": { "membership": "invite" },
            })),
            (true, false),
        ),
        (
            facts(json!({
                "type": "m.room.member", "state_key": "@bob:one.test",
                "content": { "membership": "join", "displayname": "alice" },
            })),
            (false, false),
        ),
    ] {
        assert_eq!(judged(&default(), &event, context()), expected, "{event:?}");
    }
}

#[test]
fn who_may_call_everybody_is_asked_for_only_where_it_matters() {
    let rules = Compiled::new(&default());
    let room = facts(json!({ "content": { "body": "x", "m.mentions": { "room": true } } }));
    for event in [&room, &text("hello @room")] {
        assert!(matches!(rules.judge(event, context()), Outcome::Asks));
        for (sender, needed, may) in [
            (None, Some(1_000), true),
            (Some(50), None, true),
            (Some(49), None, false),
            (Some(0), Some(0), true),
            (Some(99), Some(100), false),
        ] {
            let needed = needed.map(|needed| ("room".to_owned(), needed));
            let levels = Levels {
                sender,
                needed: needed.into_iter().collect(),
            };
            let known = Context {
                levels: Some(&levels),
                ..context()
            };
            assert_eq!(judged(&default(), event, known), (true, may));
        }
    }
    assert!(matches!(
        rules.judge(&text("hello"), context()),
        Outcome::Decided(_)
    ));
}

#[test]
fn conditions() {
    let event = facts(json!({ "content": {
        "body": "an Event", "n": 1, "t": true, "z": null, "s": "x", "f": 1.5,
        "a.b": { "c\\d": "deep" }, "list": [1, "x", null, 1.5, [2]],
    } }));
    let applies = |condition: Value| Condition::new(&condition).applies(&event, context());
    for (condition, expected) in [
        (
            json!({ "kind": "event_match", "key": "content.s", "pattern": "X" }),
            true,
        ),
        (
            json!({ "kind": "event_match", "key": "content.n", "pattern": "1" }),
            false,
        ),
        (
            json!({ "kind": "event_match", "key": "content.none", "pattern": "*" }),
            false,
        ),
        (
            json!({ "kind": "event_match", "key": "content.body", "pattern": "event" }),
            true,
        ),
        (
            json!({ "kind": "event_match", "key": "content.a\\.b.c\\\\d", "pattern": "d?*p" }),
            true,
        ),
        (
            json!({ "kind": "event_match", "key": "room_id", "pattern": "!room:one.test" }),
            true,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.n", "value": 1 }),
            true,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.n", "value": "1" }),
            false,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.t", "value": true }),
            true,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.z", "value": null }),
            true,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.none", "value": null }),
            false,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.f", "value": 1.5 }),
            false,
        ),
        (
            json!({ "kind": "event_property_is", "key": "content.s", "value": "X" }),
            false,
        ),
        (
            json!({ "kind": "event_property_contains", "key": "content.list", "value": "x" }),
            true,
        ),
        (
            json!({ "kind": "event_property_contains", "key": "content.list", "value": null }),
            true,
        ),
        (
            json!({ "kind": "event_property_contains", "key": "content.list", "value": 2 }),
            false,
        ),
        (
            json!({ "kind": "event_property_contains", "key": "content.s", "value": "x" }),
            false,
        ),
        (json!({ "kind": "org.example.unknown" }), false),
        (json!({ "kind": "event_match" }), false),
        (json!({}), false),
    ] {
        assert_eq!(applies(condition.clone()), expected, "{condition}");
    }
}

#[test]
fn numbers_of_members() {
    for (is, expected) in [
        ("3", true),
        ("==3", true),
        ("2", false),
        ("<3", false),
        ("<4", true),
        (">2", true),
        (">3", false),
        (">=3", true),
        ("<=3", true),
        ("<=2", false),
        ("<0", false),
        ("=3", false),
        ("three", false),
        ("", false),
        ("3<", false),
    ] {
        let condition = Condition::new(&json!({ "kind": "room_member_count", "is": is }));
        assert_eq!(condition.applies(&text("x"), context()), expected, "{is}");
    }
}

#[test]
fn rules_of_the_user_come_first_and_may_do_nothing() {
    let mut rules = default();
    let own = |rule_id: &str, pattern: Option<&str>, actions: Value| Rule {
        actions: actions.as_array().unwrap().clone(),
        conditions: None,
        default: false,
        enabled: true,
        pattern: pattern.map(ToOwned::to_owned),
        rule_id: rule_id.to_owned(),
    };
    let placement = crate::service::push_rules::rules::Placement::default();
    let room = own("!room:one.test", None, json!(["dont_notify"]));
    rules.insert(Kind::Room, room, &placement).unwrap();
    assert_eq!(judged(&rules, &text("hello"), context()), (false, false));
    assert_eq!(
        judged(&rules, &text("hello alice"), context()),
        (true, true)
    );
    let tea = own(
        "tea",
        Some("tea"),
        json!(["notify", { "set_tweak": "highlight", "value": false }]),
    );
    rules.insert(Kind::Content, tea, &placement).unwrap();
    assert_eq!(judged(&rules, &text("tea?"), context()), (true, false));
    rules
        .get_mut(Kind::Override, ".m.rule.master")
        .unwrap()
        .enabled = true;
    assert_eq!(
        judged(&rules, &text("alice: tea?"), context()),
        (false, false)
    );
}
