#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use ruma::{CanonicalJsonValue, RoomVersionId};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::room::version;

fn rules(version: &RoomVersionId) -> RoomVersionRules {
    version::rules(version).unwrap()
}

fn message() -> Value {
    json!({
        "auth_events": ["$a"],
        "content": { "body": "hello" },
        "depth": 12,
        "hashes": { "sha256": "AAAA" },
        "origin_server_ts": 1_000_000,
        "prev_events": ["$b", "$c"],
        "room_id": "!room:one.example",
        "sender": "@alice:one.example",
        "signatures": {},
        "type": "m.room.message",
        "unsigned": { "age": 5 },
    })
}

fn parse(event: &Value) -> Result<Unverified, PduError> {
    Pdu::parse(&to_raw_value(event).unwrap(), &rules(&RoomVersionId::V10))
}

fn parse_text(event: &str) -> Result<Unverified, PduError> {
    let raw = RawValue::from_string(event.to_owned()).unwrap();
    Pdu::parse(&raw, &rules(&RoomVersionId::V10))
}

#[test]
fn a_message_is_read() {
    let unverified = parse(&message()).unwrap();
    let pdu = &unverified.pdu;
    assert_eq!(pdu.room_id(), "!room:one.example");
    assert_eq!(pdu.sender(), "@alice:one.example");
    assert_eq!(pdu.event_type(), &TimelineEventType::RoomMessage);
    assert_eq!(pdu.origin_server_ts().0, ruma::uint!(1_000_000));
    assert_eq!(pdu.state_key(), None);
    assert!(!pdu.is_state());
    assert_eq!(pdu.content().get(), r#"{"body":"hello"}"#);
    assert_eq!(pdu.prev_events(), ["$b", "$c"]);
    assert_eq!(pdu.auth_events(), ["$a"]);
    assert_eq!(pdu.depth(), 12);
    assert!(!pdu.is_rejected());
    assert_eq!(pdu.unsigned().unwrap().get(), r#"{"age":5}"#);
    assert!(pdu.event_id().as_str().len() == 44);

    let mut without = message();
    without.as_object_mut().unwrap().remove("unsigned");
    assert_eq!(pdu.json().get(), without.to_string());
}

#[test]
fn the_id_follows_from_what_redaction_keeps() {
    let id = parse(&message()).unwrap().event_id().to_owned();
    for (field, value, changes) in [
        ("unsigned", json!({}), false),
        ("signatures", json!({ "a": {} }), false),
        ("content", json!({ "body": "bye" }), false),
        ("extra", json!(1), false),
        ("hashes", json!({ "sha256": "BBBB" }), true),
        ("depth", json!(13), true),
        ("state_key", json!(""), true),
        ("origin", json!("one.example"), true),
    ] {
        let mut event = message();
        event[field] = value;
        assert_eq!(parse(&event).unwrap().event_id() != id, changes, "{field}");
    }
}

#[test]
fn a_malformed_field_makes_it_no_event() {
    let none = || json!(null);
    let long = |sigil: char| json!(format!("{sigil}{}:a", "x".repeat(253)));
    let keys = [
        none(),
        json!(1),
        json!("k".repeat(256)),
        json!("ä".repeat(128)),
    ];
    for (field, values) in [
        (
            "auth_events",
            vec![none(), json!({}), json!(["a"]), json!([1])],
        ),
        ("auth_events", vec![json!(vec!["$a"; 11])]),
        (
            "prev_events",
            vec![none(), json!([[]]), json!(vec!["$a"; 21])],
        ),
        ("content", vec![none(), json!([]), json!("")]),
        ("depth", vec![none(), json!(-1), json!("1")]),
        ("origin_server_ts", vec![none(), json!(-1), json!("1")]),
        ("room_id", vec![none(), json!(1), json!("room"), long('!')]),
        (
            "sender",
            vec![none(), json!("alice"), json!("@alice"), long('@')],
        ),
        ("state_key", keys.to_vec()),
        ("type", vec![none(), json!(1), json!("t".repeat(256))]),
    ] {
        let mut event = message();
        if field != "state_key" {
            event.as_object_mut().unwrap().remove(field);
            assert!(parse(&event).is_err(), "no {field}");
        }
        for value in values {
            event[field] = value.clone();
            assert!(parse(&event).is_err(), "{field}: {value}");
        }
    }
    let mut event = message();
    event["state_key"] = json!("ä".repeat(127));
    event["prev_events"] = json!(vec!["$a"; 20]);
    event["auth_events"] = json!(vec!["$a"; 10]);
    parse(&event).unwrap();
}

#[test]
fn what_is_not_canonical_json_is_no_event() {
    for number in [
        "1.0",
        "1.5",
        "1e3",
        "-0",
        "-0.0",
        "9007199254740992",
        "-9007199254740992",
        "18446744073709551615",
        "99999999999999999999",
    ] {
        let event = message().to_string().replace("\"hello\"", number);
        assert_eq!(
            parse_text(&event).err(),
            Some(PduError::NotCanonical),
            "{number}"
        );
    }
    for number in ["9007199254740991", "-9007199254740991", "0"] {
        parse_text(&message().to_string().replace("\"hello\"", number)).unwrap();
    }
    for text in ["[]", "1", "null", "\"\""] {
        assert_eq!(
            parse_text(text).err(),
            Some(PduError::NotCanonical),
            "{text}"
        );
    }
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let event = message().to_string().replace("\"hello\"", &deep);
    assert!(parse_text(&event).is_err());
}

#[test]
fn the_size_counts_to_the_byte_with_signatures_and_without_unsigned() {
    let mut event = message();
    event.as_object_mut().unwrap().remove("unsigned");
    event["signatures"] = json!({ "one.example": { "ed25519:1": "A".repeat(86) } });
    let padding = MAX_BYTES - event.to_string().len();
    event["content"]["body"] = json!(format!("hello{}", "x".repeat(padding)));
    event["unsigned"] = json!({ "age": 1_000_000 });
    assert_eq!(parse(&event).unwrap().pdu.json().get().len(), MAX_BYTES);
    event["content"]["body"] = json!(format!("hello{}", "x".repeat(padding + 1)));
    assert_eq!(parse(&event).err(), Some(PduError::TooLarge));
}

#[test]
fn a_create_event_of_version_12_makes_its_room() {
    let mut event = message();
    event["type"] = json!("m.room.create");
    event["state_key"] = json!("");
    event["auth_events"] = json!([]);
    event.as_object_mut().unwrap().remove("room_id");
    let raw = to_raw_value(&event).unwrap();
    let unverified = Pdu::parse(&raw, &rules(&RoomVersionId::V12)).unwrap();
    assert_eq!(
        unverified.room_id().strip_sigil(),
        unverified.event_id().localpart()
    );
    assert_eq!(Event::room_id(&unverified.pdu), None);
    assert_eq!(
        Pdu::parse(&raw, &rules(&RoomVersionId::V11)).err(),
        Some(PduError::Format)
    );

    // One that names a room is to be rejected, so the rules must see the name.
    event["room_id"] = json!("!room:one.example");
    let raw = to_raw_value(&event).unwrap();
    let unverified = Pdu::parse(&raw, &rules(&RoomVersionId::V12)).unwrap();
    assert_eq!(
        Event::room_id(&unverified.pdu).unwrap(),
        "!room:one.example"
    );
}

#[test]
fn version_12_does_not_have_the_create_event_among_the_auth_events() {
    let mut event = message();
    event["room_id"] = json!("!create");
    event["auth_events"] = json!(["$a", "$create"]);
    let raw = to_raw_value(&event).unwrap();
    assert_eq!(
        Pdu::parse(&raw, &rules(&RoomVersionId::V12)).err(),
        Some(PduError::Format)
    );
    Pdu::parse(&raw, &rules(&RoomVersionId::V11)).unwrap();
}

#[test]
fn what_is_redacted_depends_on_the_version() {
    let mut event = message();
    event["type"] = json!("m.room.redaction");
    event["redacts"] = json!("$top");
    event["content"] = json!({ "redacts": "$content" });
    for (version, expected) in [
        (RoomVersionId::V10, "$top"),
        (RoomVersionId::V11, "$content"),
    ] {
        let rules = rules(&version);
        let parsed = Pdu::parse(&to_raw_value(&event).unwrap(), &rules)
            .unwrap()
            .pdu;
        assert_eq!(parsed.redacts(&rules).unwrap(), expected);
        let json = parsed.json().to_owned();
        let stored = Pdu::from_storage(parsed.event_id().to_owned(), json, false).unwrap();
        assert_eq!(stored.redacts(&rules).unwrap(), expected);
    }
    for odd in [json!(1), json!("top"), json!(null)] {
        event["redacts"] = odd;
        assert_eq!(
            parse(&event)
                .unwrap()
                .pdu
                .redacts(&rules(&RoomVersionId::V10)),
            None
        );
    }
    event["type"] = json!("m.room.message");
    event["redacts"] = json!("$top");
    assert_eq!(
        parse(&event)
            .unwrap()
            .pdu
            .redacts(&rules(&RoomVersionId::V10)),
        None
    );
}

#[test]
fn membership_events_have_a_target() {
    let mut event = message();
    event["state_key"] = json!("@bob:two.example");
    assert_eq!(parse(&event).unwrap().pdu.membership_target(), None);
    event["type"] = json!("m.room.member");
    assert_eq!(
        parse(&event).unwrap().pdu.membership_target().unwrap(),
        "@bob:two.example"
    );
    event["state_key"] = json!("bob");
    assert_eq!(parse(&event).unwrap().pdu.membership_target(), None);
}

#[test]
fn content_is_not_shown() {
    assert!(!format!("{:?}", parse(&message()).unwrap()).contains("hello"));
}

/// A message as in room versions 1 and 2.
fn first_message() -> Value {
    let mut event = message();
    event["event_id"] = json!("$a:one.example");
    event["auth_events"] = json!([["$b:two.example", { "sha256": "AAAA" }]]);
    event["prev_events"] = json!([["$c:one.example", {}]]);
    event
}

fn parse_as(version: &RoomVersionId, event: &Value) -> Result<Unverified, PduError> {
    Pdu::parse(&to_raw_value(event).unwrap(), &rules(version))
}

#[test]
fn in_the_first_versions_servers_choose_the_ids() {
    for version in [RoomVersionId::V1, RoomVersionId::V2] {
        let unverified = parse_as(&version, &first_message()).unwrap();
        assert_eq!(unverified.event_id(), "$a:one.example");
        assert_eq!(unverified.prev_events(), ["$c:one.example"]);
        assert_eq!(unverified.auth_events(), ["$b:two.example"]);
        // And it is read from the database as it was stored.
        let json = unverified.pdu.json().to_owned();
        let stored = Pdu::from_storage(unverified.event_id().to_owned(), json, false).unwrap();
        assert_eq!(stored.prev_events(), unverified.prev_events());
        assert_eq!(stored.auth_events(), unverified.auth_events());

        for id in [
            json!(null),
            json!(1),
            json!("$hash"),
            json!("a:one.example"),
            json!("$a:"),
            json!("$a b:one.example"),
            json!("$a\u{1f}:one.example"),
        ] {
            let mut event = first_message();
            event["event_id"] = id.clone();
            assert!(parse_as(&version, &event).is_err(), "{id}");
        }
        assert!(parse_as(&version, &message()).is_err());
    }
}

#[test]
fn events_are_named_as_the_version_wants_it() {
    for list in [
        json!(["$b:two.example"]),
        json!([["$b:two.example"]]),
        json!([["$b:two.example", "AAAA"]]),
        json!([["$b:two.example", {}, {}]]),
        json!([[1, {}]]),
    ] {
        let mut event = first_message();
        event["auth_events"] = list.clone();
        assert!(parse_as(&RoomVersionId::V1, &event).is_err(), "{list}");
    }
    for version in version::supported().skip(2) {
        let mut event = message();
        event["prev_events"] = first_message()["prev_events"].clone();
        assert!(parse_as(&version, &event).is_err(), "{version}");
        assert!(parse_as(&version, &message()).is_ok(), "{version}");
    }
}

#[test]
fn the_third_version_has_ids_of_another_alphabet() {
    let ids = |number: i64| {
        let mut event = message();
        event["depth"] = json!(number);
        let id = |version| parse_as(version, &event).unwrap().event_id().to_string();
        (id(&RoomVersionId::V3), id(&RoomVersionId::V4))
    };
    let mut differ = 0;
    for depth in 0..20 {
        let (third, fourth) = ids(depth);
        assert_eq!(third.replace('+', "-").replace('/', "_"), fourth);
        differ += usize::from(third != fourth);
    }
    assert!(differ > 0);
}

#[test]
fn up_to_version_five_any_number_is_kept() {
    let text = first_message().to_string();
    for (version, event) in [
        (RoomVersionId::V1, text.clone()),
        (RoomVersionId::V2, text),
        (RoomVersionId::V3, message().to_string()),
        (RoomVersionId::V5, message().to_string()),
    ] {
        let event = event.replace(r#""hello""#, "1.5e3").replace(":5}", ":0.5}");
        let raw = RawValue::from_string(event).unwrap();
        let parsed = Pdu::parse(&raw, &rules(&version)).unwrap();
        assert_eq!(parsed.pdu.content().get(), r#"{"body":1500.0}"#);
        assert_eq!(parsed.pdu.unsigned().unwrap().get(), r#"{"age":0.5}"#);
        assert!(parsed.pdu.json().get().contains("1500.0"));
        let depth = RawValue::from_string(raw.get().replace("12", "12.0")).unwrap();
        assert!(Pdu::parse(&depth, &rules(&version)).is_err());
    }
}

#[test]
fn power_levels_may_be_floats_where_numbers_may_be_odd() {
    let mut event = message();
    event["type"] = json!("m.room.power_levels");
    event["state_key"] = json!("");
    event["content"] =
        json!({ "ban": 50.9, "kick": "7", "users": { "@a:b": -1.5 }, "redact": 1e300 });
    let parsed = parse_as(&RoomVersionId::V5, &event).unwrap();
    let seen: &RawValue = Event::content(&parsed.pdu);
    let seen: Value = serde_json::from_str(seen.get()).unwrap();
    let expected = json!({
        "ban": 50, "kick": "7", "users": { "@a:b": -1 }, "redact": 9_007_199_254_740_991_i64,
    });
    assert_eq!(seen, expected);
    assert!(parsed.pdu.content().get().contains("50.9"));
    assert!(parse_as(&RoomVersionId::V6, &event).is_err());
}

/// Any value of canonical JSON.
fn canonical() -> impl Strategy<Value = CanonicalJsonValue> {
    let leaf = prop_oneof![
        Just(CanonicalJsonValue::Null),
        any::<bool>().prop_map(CanonicalJsonValue::Bool),
        (-9_007_199_254_740_991_i64..=9_007_199_254_740_991)
            .prop_map(|n| CanonicalJsonValue::Integer(n.try_into().unwrap())),
        "\\PC*".prop_map(CanonicalJsonValue::String),
        any::<String>().prop_map(CanonicalJsonValue::String),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(CanonicalJsonValue::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(CanonicalJsonValue::Object),
        ]
    })
}

proptest! {
    #[test]
    fn canonical_json_is_written_as_it_was_read(value in canonical()) {
        let text = serde_json::to_string(&value).unwrap();
        let again: CanonicalJsonValue = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&again, &value);
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }

    #[test]
    fn what_is_stored_is_what_was_read(
        content in prop::collection::btree_map(any::<String>(), canonical(), 0..4),
        state_key in prop::option::of("\\PC{0,60}"),
        depth in 0_u64..=9_007_199_254_740_991,
    ) {
        let mut event = message();
        event["content"] = serde_json::to_value(&content).unwrap();
        event["depth"] = json!(depth);
        if let Some(state_key) = &state_key {
            event["state_key"] = json!(state_key);
        }
        let parsed = parse(&event).unwrap().pdu;
        let json = parsed.json().to_owned();
        let stored = Pdu::from_storage(parsed.event_id().to_owned(), json, true).unwrap();
        prop_assert_eq!(stored.content().get(), parsed.content().get());
        prop_assert_eq!(stored.state_key(), state_key.as_deref());
        prop_assert_eq!(stored.depth(), depth);
        prop_assert_eq!(stored.room_id(), parsed.room_id());
        prop_assert!(stored.is_rejected());
        let again = parse_text(stored.json().get()).unwrap();
        prop_assert_eq!(again.event_id(), parsed.event_id());
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        if let Ok(raw) = RawValue::from_string(text) {
            let _ = Pdu::parse(&raw, &rules(&RoomVersionId::V12));
        }
    }

    #[test]
    fn no_value_makes_it_panic(
        field in prop::sample::select(vec![
            "auth_events", "content", "depth", "hashes", "origin_server_ts", "prev_events",
            "room_id", "sender", "signatures", "type", "unsigned", "state_key", "redacts",
        ]),
        value in canonical(),
    ) {
        let mut event = message();
        event[field] = value.into();
        for version in version::supported() {
            let _ = Pdu::parse(&to_raw_value(&event).unwrap(), &rules(&version));
        }
    }
}
