#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use ruma::RoomVersionId;

use super::*;

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn read_back(text: &str) -> String {
    let object = Object::parse(&raw(text), false).unwrap();
    object.to_json().unwrap().get().to_owned()
}

#[test]
fn numbers_are_written_as_other_servers_write_them() {
    for (number, written) in [
        ("1", "1"),
        ("-0", "0"),
        ("0.0", "0.0"),
        ("-0.0", "-0.0"),
        ("1.50", "1.5"),
        ("1E5", "100000.0"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e+16"),
        ("1.5e-7", "1.5e-07"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("1e300", "1e+300"),
        ("9007199254740991", "9007199254740991"),
        ("9007199254740992", "9007199254740992"),
        (
            "-123456789012345678901234567890",
            "-123456789012345678901234567890",
        ),
    ] {
        let text = format!(r#"{{"a":[{{"b":{number}}}],"c":0.5}}"#);
        let expected = format!(r#"{{"a":[{{"b":{written}}}],"c":0.5}}"#);
        assert_eq!(read_back(&text), expected);
    }
    for number in ["1e400", "-1e400"] {
        let text = format!(r#"{{"a":{number}}}"#);
        assert_eq!(
            Object::parse(&raw(&text), false),
            Err(PduError::NotCanonical)
        );
    }
}

#[test]
fn a_strict_object_has_no_odd_numbers() {
    for number in ["1.0", "-0", "9007199254740992", "1e2"] {
        let text = raw(&format!(r#"{{"a":{number}}}"#));
        assert_eq!(Object::parse(&text, true), Err(PduError::NotCanonical));
        assert!(Object::parse(&text, false).is_ok());
    }
}

#[test]
fn nesting_has_an_end() {
    let deep = |depth: usize| {
        raw(&format!(
            r#"{{"a":{}1.5{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        ))
    };
    assert!(Object::parse(&deep(100), false).is_ok());
    assert_eq!(
        Object::parse(&deep(10_000), false),
        Err(PduError::NotCanonical)
    );
}

#[test]
fn what_is_not_an_object_is_refused() {
    for text in ["[1.5]", "1.5", "null", "\"\""] {
        assert_eq!(
            Object::parse(&raw(text), false),
            Err(PduError::NotCanonical)
        );
    }
}

#[test]
fn fields_keep_their_odd_numbers_wherever_they_go() {
    let content = Object::parse(&raw(r#"{"b":1.5,"a":[null,2.25]}"#), false).unwrap();
    let mut object = Object::default();
    object.insert_object("content", content);
    object.insert("depth", Int::from(1_u8).into());
    let json = r#"{"content":{"a":[null,2.25],"b":1.5},"depth":1}"#;
    assert_eq!(object.to_json().unwrap().get(), json);
    assert_eq!(
        object.field("content").unwrap().get(),
        r#"{"a":[null,2.25],"b":1.5}"#
    );
    assert_eq!(
        object.take("content").unwrap().get(),
        r#"{"a":[null,2.25],"b":1.5}"#
    );
    assert_eq!(object, Object::parse(&raw(r#"{"depth":1}"#), true).unwrap());
}

#[test]
fn redaction_keeps_odd_numbers_that_it_must_keep() {
    let rules = RoomVersionId::V3.rules().unwrap().redaction;
    let text =
        r#"{"content":{"ban":50.5,"x":1.5},"type":"m.room.power_levels","unsigned":{"age":0.5}}"#;
    let mut object = Object::parse(&raw(text), false).unwrap();
    let kept = r#"{"content":{"ban":50.5},"type":"m.room.power_levels"}"#;
    assert_eq!(object.signed_json(&rules).unwrap(), kept);
    object.redact(&rules).unwrap();
    assert_eq!(object.to_json().unwrap().get(), kept);
}

fn json(leaf: BoxedStrategy<String>) -> impl Strategy<Value = String> {
    leaf.prop_recursive(4, 32, 4, |inner| {
        let fields = prop::collection::btree_map("[a-c\u{e4}\"]{0,2}", inner.clone(), 0..4);
        let object = fields.prop_map(|fields| {
            let field = |(key, value): (String, String)| {
                format!("{}:{value}", serde_json::to_string(&key).unwrap())
            };
            format!(
                "{{{}}}",
                fields.into_iter().map(field).collect::<Vec<_>>().join(",")
            )
        });
        let array = prop::collection::vec(inner, 0..4);
        prop_oneof![
            object,
            array.prop_map(|items| format!("[{}]", items.join(",")))
        ]
    })
}

fn leaf(odd: bool) -> BoxedStrategy<String> {
    let plain = prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        "[a-z\u{e4}\"]{0,3}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just("null".to_owned()),
        Just("true".to_owned()),
    ];
    if odd {
        let float = any::<f64>().prop_filter("finite", |f| f.is_finite());
        prop_oneof![
            plain,
            float.prop_map(|f| format!("{f:?}")),
            any::<u128>().prop_map(|n| n.to_string()),
        ]
        .boxed()
    } else {
        plain.boxed()
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read_and_written_the_same(value in json(leaf(true))) {
        let once = read_back(&format!(r#"{{"a":{value}}}"#));
        prop_assert_eq!(read_back(&once), once);
    }

    #[test]
    fn the_slow_way_reads_canonical_json_as_the_fast_one_does(value in json(leaf(false))) {
        let text = raw(&format!(r#"{{"a":{value}}}"#));
        let fast = Object::parse(&text, true).unwrap();
        let mut odd = BTreeMap::new();
        let slow = read(&text, &mut Vec::new(), &mut odd).unwrap();
        prop_assert!(odd.is_empty());
        prop_assert_eq!(slow.as_object(), Some(fast.map()));
        let json = fast.to_json().unwrap();
        prop_assert_eq!(fast.text(fast.map()).unwrap(), json.get());
    }
}
