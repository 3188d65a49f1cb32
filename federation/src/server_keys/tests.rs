#![expect(clippy::unwrap_used, reason = "tests")]

use ruma::{server_name, uint};
use serde_json::{json, value::to_raw_value};

use super::*;
use crate::room::signing::SigningKey;

const DAY: u32 = 24 * 60 * 60 * 1000;

fn key(version: &str) -> SigningKey {
    SigningKey::from_seed(version, "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap()
}

fn at(day: u32) -> MilliSecondsSinceUnixEpoch {
    after(MilliSecondsSinceUnixEpoch(uint!(0)), day * DAY)
}

fn one() -> &'static ServerName {
    server_name!("one.example")
}

fn response(valid_until: MilliSecondsSinceUnixEpoch) -> CanonicalJsonObject {
    let old = OldKey {
        id: "ed25519:old".try_into().unwrap(),
        public_key: key("old").public_key(),
        expired_ts: at(5),
    };
    own_response(one(), &key("new"), &[old], valid_until).unwrap()
}

fn parse(object: &CanonicalJsonObject) -> Result<ServerKeys, KeysError> {
    ServerKeys::parse(&to_raw_value(object).unwrap(), one(), at(10))
}

fn id(id: &str) -> &ServerSigningKeyId {
    id.try_into().unwrap()
}

#[test]
fn our_own_answer_is_understood_and_its_keys_have_their_time() {
    let keys = parse(&response(at(11))).unwrap();
    assert_eq!(keys.valid_until(), at(11));
    let (new, old) = (id("ed25519:new"), id("ed25519:old"));
    assert!(keys.for_request(new, at(11)).is_some());
    assert!(keys.for_request(new, after(at(11), 1)).is_none());
    assert!(keys.for_event(new, Some(at(11))).is_some());
    assert!(keys.for_event(new, Some(after(at(11), 1))).is_none());
    assert!(keys.for_event(new, None).is_some());
    assert!(keys.for_request(old, at(4)).is_none());
    assert!(keys.for_event(old, Some(at(5))).is_some());
    assert!(keys.for_event(old, Some(after(at(5), 1))).is_none());
    assert!(keys.for_event(id("ed25519:unknown"), None).is_none());
}

#[test]
fn nobody_is_believed_for_more_than_seven_days() {
    let keys = parse(&response(at(40))).unwrap();
    assert_eq!(keys.valid_until(), at(17));
    assert!(
        keys.for_event(id("ed25519:new"), Some(after(at(17), 1)))
            .is_none()
    );
}

#[test]
fn keys_that_many_have_prove_nothing() {
    let json = to_raw_value(&response(at(11))).unwrap();
    let public = key("new").public_key_base64();
    // The control: without the list they count.
    for (shared, counts) in [(Vec::new(), true), (vec![public.as_str()], false)] {
        let keys = ServerKeys::parse_without(&shared, &json, one(), at(10)).unwrap();
        assert_eq!(
            keys.for_request(id("ed25519:new"), at(10)).is_some(),
            counts
        );
        assert_eq!(keys.for_event(id("ed25519:new"), None).is_some(), counts);
        assert_eq!(keys.for_event(id("ed25519:old"), None).is_some(), counts);
    }
    for shared in SHARED_KEYS {
        assert_eq!(
            Base64::<Standard>::parse(shared).unwrap().as_bytes().len(),
            32
        );
    }
}

#[test]
fn an_answer_must_be_signed_with_its_own_keys() {
    let wrong = Err(KeysError::WrongSignature);
    let mut object = response(at(11));
    object.insert("valid_until_ts".to_owned(), uint!(12).into());
    assert_eq!(parse(&object), wrong);

    let mut object = response(at(11));
    object.remove("signatures");
    assert_eq!(parse(&object), wrong);

    // By an expired key.
    let mut object = response(at(11));
    object.remove("signatures");
    key("old").sign_json(&mut object, one()).unwrap();
    assert_eq!(parse(&object), wrong);

    // By a key that is not in it, and by another server, beside its own.
    let mut object = response(at(11));
    key("third").sign_json(&mut object, one()).unwrap();
    key("new")
        .sign_json(&mut object, server_name!("notary.example"))
        .unwrap();
    parse(&object).unwrap();
}

#[test]
fn an_answer_about_another_server_is_refused() {
    let json = to_raw_value(&response(at(11))).unwrap();
    let other = ServerKeys::parse(&json, server_name!("two.example"), at(10));
    assert_eq!(other, Err(KeysError::OtherServer));
}

#[test]
fn malformed_answers_are_refused() {
    for json in [
        json!([]),
        json!({ "server_name": "one.example" }),
        json!({ "server_name": "one.example", "valid_until_ts": -1 }),
        json!({ "server_name": "one.example", "valid_until_ts": 1, "verify_keys": { "ed25519:1": { "key": "AAAA" } } }),
        json!({ "server_name": "one.example", "valid_until_ts": 1, "verify_keys": { "ed25519:1": {} } }),
        json!({ "server_name": "one.example", "valid_until_ts": 1, "old_verify_keys": { "ed25519:1": { "key": "" } } }),
    ] {
        let raw = to_raw_value(&json).unwrap();
        let parsed = ServerKeys::parse(&raw, one(), at(10));
        assert_eq!(parsed, Err(KeysError::Malformed), "{json}");
    }
}

#[test]
fn keys_that_are_no_longer_mentioned_are_kept_for_old_events() {
    let earlier = parse(&response(at(11))).unwrap();
    let later = own_response(one(), &key("newest"), &[], at(30)).unwrap();
    let later = ServerKeys::parse(&to_raw_value(&later).unwrap(), one(), at(25)).unwrap();
    let keys = later.with_earlier(&earlier);
    assert!(keys.for_event(id("ed25519:new"), Some(at(11))).is_some());
    assert!(keys.for_event(id("ed25519:new"), Some(at(12))).is_none());
    assert!(keys.for_request(id("ed25519:new"), at(11)).is_none());
    assert!(keys.for_request(id("ed25519:newest"), at(30)).is_some());
}

#[test]
fn what_is_missing_is_told() {
    let keys = Arc::new(parse(&response(at(11))).unwrap());
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).try_into().unwrap()).collect();
    let required = |valid_at| RequiredKeys {
        servers: BTreeMap::from([
            (one().to_owned(), ids(&["ed25519:new", "ed25519:x"])),
            (server_name!("two.example").to_owned(), ids(&["ed25519:y"])),
        ]),
        valid_at: Some(valid_at),
    };
    let known = |server: &ServerName| (server == one()).then(|| Arc::clone(&keys));

    let selected = select(&required(at(11)), known);
    let found: Vec<_> = selected.keys["one.example"].keys().collect();
    assert_eq!(found, ["ed25519:new"]);
    assert_eq!(selected.missing.keys().collect::<Vec<_>>(), ["two.example"]);

    let selected = select(&required(at(12)), known);
    assert!(selected.keys.is_empty());
    assert_eq!(selected.missing.len(), 2);
}

#[test]
fn a_notary_signs_lists_of_keys_only() {
    let object = response(at(11));
    let json = to_raw_value(&object).unwrap();
    let keys = parse(&object).unwrap();
    let notary = server_name!("notary.example");
    let signed = countersign(&json, &keys, notary, &key("n")).unwrap();
    parse(&signed).unwrap();
    assert!(
        signed["signatures"]
            .as_object()
            .unwrap()
            .contains_key("notary.example")
    );

    let mut object = object;
    object.insert("type".to_owned(), "m.room.member".into());
    let json = to_raw_value(&object).unwrap();
    assert_eq!(
        countersign(&json, &keys, notary, &key("n")),
        Err(KeysError::UnknownMember)
    );
}
