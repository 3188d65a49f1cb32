#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use ruma::RoomVersionId;
use serde_json::{Value, json};

use super::*;
use crate::room::{
    fixture::{ALICE, BOB, Room},
    signing::{Verified, verify},
};

fn redacted(version: &RoomVersionId, event_type: &str, content: &Value) -> Value {
    let (mut room, branch) = Room::new(version);
    let built = room.build(&branch, ALICE, event_type, Some(""), content);
    let redacted = redact(built.pdu(), &room.rules).unwrap();
    assert_eq!(redacted.event_id(), built.pdu().event_id());
    serde_json::from_str(redacted.content().get()).unwrap()
}

/// Checks what is kept of a content before a version, and from it on.
fn check(event_type: &str, content: &Value, before: &Value, since: u8, after: &Value) {
    for version in 6..=12_u8 {
        let kept = if version < since { before } else { after };
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let redacted = redacted(&version, event_type, content);
        assert_eq!(redacted, *kept, "{event_type} in {version}");
    }
}

#[test]
fn what_is_kept_depends_on_the_version() {
    let nothing = json!({});
    check(
        "m.room.message",
        &json!({ "body": "x" }),
        &nothing,
        6,
        &nothing,
    );
    check(
        "m.room.aliases",
        &json!({ "aliases": [] }),
        &nothing,
        6,
        &nothing,
    );

    let visibility = json!({ "history_visibility": "shared" });
    let more = json!({ "history_visibility": "shared", "x": 1 });
    check(
        "m.room.history_visibility",
        &more,
        &visibility,
        6,
        &visibility,
    );

    let rules = json!({ "join_rule": "restricted", "allow": [], "x": 1 });
    let before = json!({ "join_rule": "restricted" });
    let after = json!({ "join_rule": "restricted", "allow": [] });
    check("m.room.join_rules", &rules, &before, 8, &after);

    let join = json!({ "membership": "join", "join_authorised_via_users_server": ALICE, "x": 1 });
    let before = json!({ "membership": "join" });
    let after = json!({ "membership": "join", "join_authorised_via_users_server": ALICE });
    check("m.room.member", &join, &before, 9, &after);

    let redaction = json!({ "redacts": "$a", "x": 1 });
    check(
        "m.room.redaction",
        &redaction,
        &nothing,
        11,
        &json!({ "redacts": "$a" }),
    );

    let levels = json!({ "ban": 1, "invite": 2, "x": 1 });
    let after = json!({ "ban": 1, "invite": 2 });
    check(
        "m.room.power_levels",
        &levels,
        &json!({ "ban": 1 }),
        11,
        &after,
    );

    let invite = json!({ "membership": "invite", "third_party_invite": { "signed": {}, "x": 1 } });
    let before = json!({ "membership": "invite" });
    let after = json!({ "membership": "invite", "third_party_invite": { "signed": {} } });
    check("m.room.member", &invite, &before, 11, &after);
}

#[test]
fn the_create_event_keeps_all_since_version_11() {
    for (version, keeps) in [(RoomVersionId::V10, false), (RoomVersionId::V11, true)] {
        let (room, branch) = Room::new(&version);
        let create = &branch.state[&("m.room.create".into(), String::new())];
        let redacted = redact(&room.events[create], &room.rules).unwrap();
        assert_eq!(redacted.content().get().contains("room_version"), keeps);
    }
}

#[test]
fn a_rejected_event_remains_rejected() {
    let (mut room, branch) = Room::new(&RoomVersionId::V12);
    let built = room.build(
        &branch,
        BOB,
        "m.room.message",
        None,
        &json!({ "body": "x" }),
    );
    let rejected = room.judge_own(&branch, built).into_pdu();
    assert!(rejected.is_rejected());
    assert!(redact(&rejected, &room.rules).unwrap().is_rejected());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn to_redact_twice_is_to_redact_once_and_the_signature_remains(
        version in 6_u8..=12,
        event_type in prop::sample::select(vec![
            "m.room.message", "m.room.member", "m.room.power_levels", "m.room.join_rules",
            "m.room.redaction", "m.room.aliases", "m.room.history_visibility", "x.y",
        ]),
        body in any::<String>(),
        membership in "[a-z]{0,6}",
        level in -100_i64..100,
    ) {
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let (mut room, branch) = Room::new(&version);
        let content = json!({
            "body": body, "membership": membership, "ban": level, "users": { ALICE: level },
            "redacts": "$a", "join_rule": body, "aliases": [body], "third_party_invite": { "signed": {}, "x": body },
        });
        let built: Verified = room.build(&branch, ALICE, event_type, Some(ALICE), &content);
        let once = redact(built.pdu(), &room.rules).unwrap();
        let twice = redact(&once, &room.rules).unwrap();
        prop_assert_eq!(once.json().get(), twice.json().get());

        let unverified = Pdu::parse(once.json(), &room.rules).unwrap();
        prop_assert_eq!(unverified.event_id(), built.pdu().event_id());
        let verified = verify(unverified, &room.keys(), &room.rules).unwrap();
        prop_assert_eq!(verified.pdu().json().get(), once.json().get());
    }
}
