#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use ruma::{RoomVersionId, server_name};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::room::{
    builder::Template,
    fixture::{ALICE, BOB, CAROL, Room},
    version,
};

/// The key of the test vectors
/// ([spec](https://spec.matrix.org/v1.19/appendices/#cryptographic-test-vectors)).
fn key() -> SigningKey {
    SigningKey::from_seed("1", "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap()
}

fn add_hash(event: &mut Object) {
    let hash = Base64::<Standard, _>::new(event.content_hash().unwrap());
    event.insert("hashes", object(json!({ "sha256": hash.encode() })).into());
}

fn object(value: Value) -> CanonicalJsonObject {
    serde_json::from_value(value).unwrap()
}

#[test]
fn json_is_signed_as_in_the_specification() {
    let server = server_name!("domain");
    for (value, signature) in [
        (
            json!({}),
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
        ),
        (
            json!({ "one": 1, "two": "Two" }),
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ] {
        let mut signed = object(value.clone());
        key().sign_json(&mut signed, server).unwrap();
        let mut expected = value;
        expected["signatures"] = json!({ "domain": { "ed25519:1": signature } });
        assert_eq!(signed, object(expected));
    }
}

#[test]
fn an_event_is_signed_as_in_the_specification() {
    let mut event = Object::from(object(json!({
        "room_id": "!x:domain",
        "sender": "@a:domain",
        "origin": "domain",
        "origin_server_ts": 1_000_000,
        "signatures": {},
        "hashes": {},
        "type": "X",
        "content": {},
        "prev_events": [],
        "auth_events": [],
        "depth": 3,
        "unsigned": { "age_ts": 1_000_000 },
    })));
    let rules = version::rules(&RoomVersionId::V6).unwrap();
    add_hash(&mut event);
    key()
        .sign_event(&mut event, server_name!("domain"), &rules.redaction)
        .unwrap();
    let hashes = json!({ "sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos" });
    assert_eq!(event.map()["hashes"], object(hashes));
    let signature =
        "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg";
    assert_eq!(
        event.map()["signatures"],
        object(json!({ "domain": { "ed25519:1": signature } }))
    );

    // And it is verified.
    let unverified = Pdu::parse(&event.to_json().unwrap(), &rules).unwrap();
    let required = required_keys(&unverified, &rules).unwrap();
    assert_eq!(required.servers.keys().collect::<Vec<_>>(), ["domain"]);
    assert_eq!(required.valid_at, Some(unverified.origin_server_ts()));
    let keys = [(
        "domain".to_owned(),
        [("ed25519:1".to_owned(), key().public_key())].into(),
    )];
    let verified = verify(unverified, &keys.into(), &rules).unwrap();
    assert_eq!(verified.pdu().content().get(), "{}");
}

#[test]
fn a_redactable_event_is_signed_as_in_the_specification() {
    let mut event = Object::from(object(json!({
        "content": { "body": "Here is the message content" },
        "event_id": "$0:domain",
        "origin": "domain",
        "origin_server_ts": 1_000_000,
        "type": "m.room.message",
        "room_id": "!r:domain",
        "sender": "@u:domain",
        "signatures": {},
        "unsigned": { "age_ts": 1_000_000 },
    })));
    let rules = version::rules(&RoomVersionId::V6).unwrap();
    add_hash(&mut event);
    key()
        .sign_event(&mut event, server_name!("domain"), &rules.redaction)
        .unwrap();
    let hashes = json!({ "sha256": "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g" });
    assert_eq!(event.map()["hashes"], object(hashes));
    let signature =
        "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA";
    assert_eq!(
        event.map()["signatures"],
        object(json!({ "domain": { "ed25519:1": signature } }))
    );
}

/// A message of Alice's as other servers get it, after a change.
fn changed(version: &RoomVersionId, change: impl FnOnce(&mut Value)) -> (Room, Unverified) {
    let (mut room, branch) = Room::new(version);
    let content = json!({ "body": "hello" });
    let built = room.build(&branch, ALICE, "m.room.message", None, &content);
    let mut event: Value = serde_json::from_str(built.pdu().json().get()).unwrap();
    change(&mut event);
    let raw = to_raw_value(&event).unwrap();
    let unverified = Pdu::parse(&raw, &room.rules).unwrap();
    (room, unverified)
}

fn verify_changed(change: impl FnOnce(&mut Value)) -> Result<Verified, SignatureError> {
    let (room, unverified) = changed(&RoomVersionId::V11, change);
    verify(unverified, &room.keys(), &room.rules)
}

fn one() -> OwnedServerName {
    server_name!("one.example").to_owned()
}

#[test]
fn a_wrong_content_hash_redacts() {
    for hashes in [None, Some(json!({ "sha256": "AAAA" })), Some(json!({}))] {
        let change = |event: &mut Value| event["content"]["body"] = json!("bye");
        let verified = verify_changed(change).unwrap();
        assert_eq!(verified.pdu().content().get(), "{}");
        assert!(!verified.pdu().json().get().contains("bye"));
        // The hashes are signed.
        if let Some(hashes) = hashes {
            let change = |event: &mut Value| event["hashes"] = hashes;
            assert_eq!(
                verify_changed(change).err(),
                Some(SignatureError::Wrong(one()))
            );
        }
    }
}

#[test]
fn a_redacted_event_is_still_verified_and_keeps_its_id() {
    let (room, original) = changed(&RoomVersionId::V11, |_| ());
    let change = |event: &mut Value| event["content"] = json!({});
    let (_, unverified) = changed(&RoomVersionId::V11, change);
    let verified = verify(unverified, &room.keys(), &room.rules).unwrap();
    assert_eq!(verified.pdu().event_id(), original.event_id());
}

#[test]
fn signatures_must_be_there_and_right() {
    verify_changed(|_| ()).unwrap();
    let wrong = "A".repeat(86);
    for (signatures, expected) in [
        (json!({}), SignatureError::Missing(one())),
        (json!({ "one.example": {} }), SignatureError::Missing(one())),
        (json!({ "one.example": [] }), SignatureError::Malformed),
        (
            json!({ "one.example": { "ed25519:x": wrong } }),
            SignatureError::Missing(one()),
        ),
        (
            json!({ "one.example": { "ed25519:test": wrong } }),
            SignatureError::Wrong(one()),
        ),
        (
            json!({ "one.example": { "ed25519:test": "AAAA" } }),
            SignatureError::Wrong(one()),
        ),
        (
            json!({ "one.example": { "ed25519:test": 1 } }),
            SignatureError::Wrong(one()),
        ),
        (json!([]), SignatureError::Malformed),
    ] {
        let change = |event: &mut Value| event["signatures"] = signatures.clone();
        assert_eq!(verify_changed(change).err(), Some(expected), "{signatures}");
    }
    let change = |event: &mut Value| event["depth"] = json!(99);
    assert_eq!(
        verify_changed(change).err(),
        Some(SignatureError::Wrong(one()))
    );
    let change = |event: &mut Value| event["sender"] = json!("@alice:two.example");
    let two = server_name!("two.example").to_owned();
    assert_eq!(
        verify_changed(change).err(),
        Some(SignatureError::Missing(two))
    );
}

#[test]
fn one_right_signature_is_enough_but_no_known_one_may_be_wrong() {
    let add = |key_id: &str, event: &mut Value| {
        event["signatures"]["one.example"][key_id] = json!("A".repeat(86));
    };
    verify_changed(|event| add("ed25519:unknown", event)).unwrap();
    verify_changed(|event| add("future:1", event)).unwrap();
    let (room, unverified) = changed(&RoomVersionId::V11, |event| add("ed25519:other", event));
    let mut keys = room.keys();
    let of_one = keys.get_mut("one.example").unwrap();
    of_one.insert("ed25519:other".to_owned(), key().public_key());
    let error = verify(unverified, &keys, &room.rules).unwrap_err();
    assert_eq!(error, SignatureError::Wrong(one()));
}

#[test]
fn a_policy_server_does_not_sign_for_the_sender() {
    let change = |event: &mut Value| {
        let signatures = &mut event["signatures"]["one.example"];
        let signature = signatures["ed25519:test"].take();
        *signatures = json!({ POLICY_SERVER_KEY: signature });
    };
    let (room, unverified) = changed(&RoomVersionId::V11, change);
    let missing = SignatureError::Missing(one());
    assert_eq!(
        required_keys(&unverified, &room.rules),
        Err(missing.clone())
    );
    let mut keys = room.keys();
    let of_one = keys.get_mut("one.example").unwrap();
    of_one.insert(POLICY_SERVER_KEY.to_owned(), room.key.public_key());
    assert_eq!(verify(unverified, &keys, &room.rules).unwrap_err(), missing);
}

/// A membership event as other servers get it.
fn member(version: &RoomVersionId, content: &Value) -> (Room, Unverified) {
    let (mut room, branch) = Room::new(version);
    let built = room.build(&branch, BOB, "m.room.member", Some(BOB), content);
    let raw = built.pdu().json().to_owned();
    let unverified = Pdu::parse(&raw, &room.rules).unwrap();
    (room, unverified)
}

fn servers(version: &RoomVersionId, content: &Value) -> Result<Vec<String>, SignatureError> {
    let (room, unverified) = member(version, content);
    let servers = required_servers(&unverified.pdu, &room.rules)?;
    Ok(servers
        .into_iter()
        .map(|server| server.to_string())
        .collect())
}

#[test]
fn the_server_that_opens_a_restricted_room_signs_too() {
    let join = json!({ "membership": "join", "join_authorised_via_users_server": CAROL });
    let both = ["three.example", "two.example"];
    assert_eq!(servers(&RoomVersionId::V8, &join).unwrap(), both);
    assert_eq!(servers(&RoomVersionId::V12, &join).unwrap(), both);
    assert_eq!(servers(&RoomVersionId::V7, &join).unwrap(), ["two.example"]);
    let odd = json!({ "membership": "join", "join_authorised_via_users_server": "carol" });
    assert_eq!(
        servers(&RoomVersionId::V12, &odd),
        Err(SignatureError::Malformed)
    );

    let (room, unverified) = member(&RoomVersionId::V12, &join);
    let three = server_name!("three.example").to_owned();
    let missing = SignatureError::Missing(three);
    assert_eq!(
        required_keys(&unverified, &room.rules),
        Err(missing.clone())
    );
    assert_eq!(
        verify(unverified, &room.keys(), &room.rules).unwrap_err(),
        missing
    );

    // Of other events it asks nothing.
    let change = |event: &mut Value| event["content"] = join.clone();
    let (room, unverified) = changed(&RoomVersionId::V12, change);
    verify(unverified, &room.keys(), &room.rules).unwrap();
}

#[test]
fn an_invite_of_a_third_party_need_not_be_signed_by_the_sender() {
    let invite = json!({ "membership": "invite", "third_party_invite": { "signed": {} } });
    assert!(servers(&RoomVersionId::V10, &invite).unwrap().is_empty());
    for content in [
        json!({ "membership": "invite", "third_party_invite": null }),
        json!({ "membership": "invite", "third_party_invite": [] }),
        json!({ "membership": "join", "third_party_invite": {} }),
        json!({ "membership": ["invite"], "third_party_invite": {} }),
    ] {
        assert_eq!(
            servers(&RoomVersionId::V10, &content).unwrap(),
            ["two.example"],
            "{content}"
        );
    }
}

#[test]
fn keys_are_kept_as_they_are() {
    let key = SigningKey::generate().unwrap();
    let again = SigningKey::from_seed(key.version(), &key.to_seed()).unwrap();
    assert_eq!(again.id(), key.id());
    assert_eq!(again.public_key_base64(), key.public_key_base64());
    assert_ne!(SigningKey::generate().unwrap().id(), key.id());
    assert!(!format!("{key:?}").contains(&*key.to_seed()));
    assert_eq!(
        self::key().to_seed().as_str(),
        "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA0"
    );

    assert_eq!(
        SigningKey::from_seed("1", "AAAA").unwrap_err(),
        KeyError::Seed
    );
    assert_eq!(SigningKey::from_seed("1", "!").unwrap_err(), KeyError::Seed);
    let seed = key.to_seed();
    assert_eq!(
        SigningKey::from_seed("a-b", &seed).unwrap_err(),
        KeyError::Version
    );
    let mut odd = object(json!({ "signatures": [] }));
    assert_eq!(
        key.sign_json(&mut odd, server_name!("a")),
        Err(KeyError::Unsignable)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_built_is_verified(
        version in 6_u8..=12,
        event_type in "[a-z.]{1,30}",
        state_key in prop::option::of("\\PC{0,50}"),
        body in any::<String>(),
        number in -9_007_199_254_740_991_i64..=9_007_199_254_740_991,
    ) {
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let (mut room, branch) = Room::new(&version);
        let content = json!({ "body": body, "number": number });
        let template = Template {
            state_key,
            ..Room::template(&format!("x.{event_type}"), None, &content)
        };
        let built = room.try_build(&branch, ALICE, template).unwrap();
        let unverified = Pdu::parse(built.pdu().json(), &room.rules).unwrap();
        prop_assert_eq!(unverified.event_id(), built.pdu().event_id());
        let verified = verify(unverified, &room.keys(), &room.rules).unwrap();
        prop_assert_eq!(verified.pdu().json().get(), built.pdu().json().get());
    }
}
