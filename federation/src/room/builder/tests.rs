#![expect(clippy::unwrap_used, reason = "tests")]

use ruma::{EventId, RoomId, RoomVersionId, server_name, uint, user_id};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::room::{
    fixture::{ALICE, BOB, CAROL, Room},
    pdu::Unverified,
    signing::{SignatureError, verify},
};

fn now() -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(uint!(1_000_000))
}

fn try_content(content: &str) -> Result<Verified, BuildError> {
    let (mut room, branch) = Room::new(&RoomVersionId::V12);
    let content = RawValue::from_string(content.to_owned()).unwrap();
    let template = Template {
        content,
        ..Room::template("m.room.message", None, &json!({}))
    };
    room.try_build(&branch, ALICE, template)
}

#[test]
fn content_that_is_not_canonical_json_is_refused() {
    for content in [
        r#"{"a":1.5}"#,
        r#"{"a":{"b":[1e2]}}"#,
        r#"{"a":9007199254740992}"#,
        r#"{"a":-0}"#,
        "[]",
        "1",
        "null",
    ] {
        assert_eq!(
            try_content(content).err(),
            Some(BuildError::NotCanonical),
            "{content}"
        );
    }
    let built = try_content(r#"{ "b": "\u00e4", "a": [1, -9007199254740991] }"#).unwrap();
    assert_eq!(
        built.pdu().content().get(),
        r#"{"a":[1,-9007199254740991],"b":"ä"}"#
    );
}

#[test]
fn events_are_bounded() {
    let content = |length| format!("{{\"body\":\"{}\"}}", "x".repeat(length));
    let room_left = MAX_BYTES - try_content(&content(0)).unwrap().pdu().json().get().len();
    let built = try_content(&content(room_left)).unwrap();
    assert_eq!(built.pdu().json().get().len(), MAX_BYTES);
    assert_eq!(
        try_content(&content(room_left + 1)).err(),
        Some(BuildError::TooLarge)
    );
    assert_eq!(
        try_content(&content(2 * MAX_BYTES)).err(),
        Some(BuildError::TooLarge)
    );

    let (mut room, branch) = Room::new(&RoomVersionId::V12);
    let long = "x".repeat(256);
    let template = Room::template(&long, None, &json!({}));
    assert_eq!(
        room.try_build(&branch, ALICE, template).err(),
        Some(BuildError::FieldTooLong("type"))
    );
    let template = Room::template("x", Some(&long), &json!({}));
    let error = room.try_build(&branch, ALICE, template).err();
    assert_eq!(error, Some(BuildError::FieldTooLong("state_key")));

    let mut branch = branch;
    branch.prev_events = vec![branch.prev_events[0].clone(); 21];
    let template = Room::template("x", None, &json!({}));
    assert_eq!(
        room.try_build(&branch, ALICE, template).err(),
        Some(BuildError::TooManyReferences)
    );
}

#[test]
fn depth_stays_within_what_json_can_say() {
    let (mut room, mut branch) = Room::new(&RoomVersionId::V12);
    branch.depth = u64::MAX;
    let built = room.build(&branch, ALICE, "x", None, &json!({}));
    assert_eq!(built.pdu().depth(), 9_007_199_254_740_991);
}

#[test]
fn what_a_redaction_redacts_is_put_where_the_version_wants_it() {
    for (version, path) in [
        (RoomVersionId::V10, "/redacts"),
        (RoomVersionId::V11, "/content/redacts"),
    ] {
        let (mut room, branch) = Room::new(&version);
        let template = Template {
            redacts: Some("$a".try_into().unwrap()),
            origin_server_ts: None,
            ..Room::template("m.room.redaction", None, &json!({ "reason": "x" }))
        };
        let built = room.try_build(&branch, ALICE, template).unwrap();
        let json: Value = serde_json::from_str(built.pdu().json().get()).unwrap();
        assert_eq!(json.pointer(path).unwrap(), "$a");
        assert_eq!(built.pdu().redacts(&room.rules).unwrap(), "$a");
        assert_eq!(json.to_string().matches("\"$a\"").count(), 1);
    }
}

#[test]
fn only_our_users_send_and_only_create_events_of_version_12_have_no_room() {
    let (room, branch) = Room::new(&RoomVersionId::V12);
    let with = |event_type: &str, room_id: Option<&OwnedRoomId>, sender: &str| {
        let template = Room::template(event_type, Some(""), &json!({ "room_version": "12" }));
        let sender = <&UserId>::try_from(sender).unwrap();
        let basis = Basis {
            room_id: room_id.cloned(),
            ..room.basis(&branch, sender, &template)
        };
        build(
            template,
            &basis,
            sender,
            now(),
            &room.rules,
            server_name!("one.example"),
            &room.key,
        )
    };
    assert_eq!(
        with("x", Some(&room.id), BOB).err(),
        Some(BuildError::ForeignSender)
    );
    assert_eq!(with("x", None, ALICE).err(), Some(BuildError::RoomId));
    assert_eq!(
        with("m.room.create", Some(&room.id), ALICE).err(),
        Some(BuildError::RoomId)
    );
    with("x", Some(&room.id), ALICE).unwrap();
    with("m.room.create", None, ALICE).unwrap();
}

/// An answer to `make_join` that wants everything at once.
fn greedy_answer() -> Value {
    json!({
        "type": "m.room.power_levels",
        "room_id": "!other:evil.example",
        "sender": "@admin:two.example",
        "state_key": "",
        "origin_server_ts": 1,
        "redacts": "$x",
        "content": {
            "membership": "ban",
            "users": { "@evil:evil.example": 100 },
            "join_authorised_via_users_server": CAROL,
        },
        "prev_events": ["$p"],
        "auth_events": ["$a", "$b"],
        "depth": 7,
        "hashes": { "sha256": "x" },
        "signatures": { "two.example": {} },
        "unsigned": {},
        "extra": 1,
    })
}

fn answer_to(
    membership: RemoteMembership,
    version: &RoomVersionId,
    answer: &Value,
) -> Result<Value, BuildError> {
    let (room, _) = Room::new(version);
    let mut content = CanonicalJsonObject::new();
    content.insert("displayname".to_owned(), "Bob".into());
    content.insert("membership".to_owned(), "invite".into());
    content.insert(
        "join_authorised_via_users_server".to_owned(),
        "@me:two.example".into(),
    );
    let template = MembershipTemplate {
        room_id: &room.id,
        user_id: user_id!("@bob:two.example"),
        membership,
        content,
    };
    let answer = to_raw_value(answer).unwrap();
    let server = server_name!("two.example");
    let built = from_make_response(template, &answer, now(), &room.rules, server, &room.key)?;
    let mut json: Value = serde_json::from_str(built.pdu().json().get()).unwrap();
    for computed in ["hashes", "signatures"] {
        json.as_object_mut().unwrap().remove(computed).unwrap();
    }
    assert_eq!(json["room_id"].take(), room.id.as_str());
    Ok(json)
}

#[test]
fn only_the_place_in_the_graph_is_taken_from_a_remote_template() {
    for (membership, text) in [
        (RemoteMembership::Join, "join"),
        (RemoteMembership::Leave, "leave"),
        (RemoteMembership::Knock, "knock"),
    ] {
        let mut expected = json!({
            "type": "m.room.member",
            "room_id": null,
            "sender": BOB,
            "state_key": BOB,
            "origin_server_ts": 1_000_000,
            "content": { "membership": text, "displayname": "Bob" },
            "prev_events": ["$p"],
            "auth_events": ["$a", "$b"],
            "depth": 7,
        });
        let built = answer_to(membership, &RoomVersionId::V7, &greedy_answer()).unwrap();
        assert_eq!(built, expected);
        if membership == RemoteMembership::Join {
            expected["content"]["join_authorised_via_users_server"] = json!(CAROL);
        }
        let built = answer_to(membership, &RoomVersionId::V12, &greedy_answer()).unwrap();
        assert_eq!(built, expected);
    }
}

#[test]
fn a_malformed_remote_template_is_refused() {
    for (field, value) in [
        ("prev_events", json!(["p"])),
        ("prev_events", json!(null)),
        ("auth_events", json!([["$a", {}]])),
        ("depth", json!(-1)),
        ("depth", json!(9_007_199_254_740_992_u64)),
        (
            "content",
            json!({ "join_authorised_via_users_server": "carol" }),
        ),
    ] {
        let mut answer = greedy_answer();
        answer[field] = value.clone();
        let built = answer_to(RemoteMembership::Join, &RoomVersionId::V12, &answer);
        assert_eq!(
            built.err(),
            Some(BuildError::MalformedAnswer),
            "{field}: {value}"
        );
    }
    let mut answer = greedy_answer();
    answer["prev_events"] = json!(vec!["$p"; 21]);
    let built = answer_to(RemoteMembership::Join, &RoomVersionId::V12, &answer);
    assert_eq!(built.err(), Some(BuildError::TooManyReferences));
}

/// An event that another server sends us to sign.
fn received(
    room: &mut Room,
    sender: &str,
    event_type: &str,
    target: &str,
    content: &Value,
) -> Unverified {
    let (_, branch) = Room::new(&RoomVersionId::V12);
    let built = room.build(&branch, sender, event_type, Some(target), content);
    Pdu::parse(built.pdu().json(), &room.rules).unwrap()
}

fn sign(
    room: &Room,
    event: Unverified,
    expected: Expected<'_>,
) -> Result<Unverified, CountersignError> {
    countersign(
        event,
        expected,
        &room.rules,
        server_name!("two.example"),
        &room.key,
    )
}

/// What an invite of Alice's server, in the room and about this event, must be.
fn invite<'a>(event_id: &'a EventId, room_id: &'a RoomId) -> Expected<'a> {
    let origin = server_name!("one.example");
    Expected::Invite {
        event_id,
        room_id,
        origin,
    }
}

#[test]
fn an_invite_is_signed_by_both_servers() {
    let (mut room, _) = Room::new(&RoomVersionId::V12);
    let content = json!({ "membership": "invite" });
    let event = received(&mut room, ALICE, "m.room.member", BOB, &content);
    let event_id = event.event_id().to_owned();
    let signed = sign(&room, event, invite(&event_id, &room.id)).unwrap();
    assert_eq!(signed.event_id(), event_id);
    let verified = verify(signed, &room.keys(), &room.rules).unwrap();
    let json: Value = serde_json::from_str(verified.pdu().json().get()).unwrap();
    assert!(json["signatures"]["two.example"]["ed25519:test"].is_string());
    assert!(json["signatures"]["one.example"]["ed25519:test"].is_string());
}

#[test]
fn what_is_not_exactly_an_invite_is_not_signed() {
    use CountersignError as E;

    let (mut room, _) = Room::new(&RoomVersionId::V12);
    let member = "m.room.member";
    for (sender, event_type, target, membership, error) in [
        (CAROL, member, BOB, "invite", E::ForeignSender),
        (ALICE, member, BOB, "join", E::OtherKind),
        (ALICE, member, BOB, "ban", E::OtherKind),
        (ALICE, member, CAROL, "invite", E::ForeignUser),
        (ALICE, member, "bob", "invite", E::ForeignUser),
        (ALICE, "m.room.power_levels", BOB, "invite", E::OtherKind),
    ] {
        let content = json!({ "membership": membership });
        let event = received(&mut room, sender, event_type, target, &content);
        let event_id = event.event_id().to_owned();
        let signed = sign(&room, event, invite(&event_id, &room.id));
        assert_eq!(signed.err(), Some(error), "{target} {membership}");
    }
}

#[test]
fn an_invite_other_than_the_request_is_about_is_not_signed() {
    let (mut room, _) = Room::new(&RoomVersionId::V12);
    let content = json!({ "membership": "invite" });
    let other = EventId::parse("$other").unwrap();
    let event = received(&mut room, ALICE, "m.room.member", BOB, &content);
    let signed = sign(&room, event, invite(&other, &room.id));
    assert_eq!(signed.err(), Some(CountersignError::OtherEvent));

    let other = OwnedRoomId::try_from("!other").unwrap();
    let event = received(&mut room, ALICE, "m.room.member", BOB, &content);
    let event_id = event.event_id().to_owned();
    let signed = sign(&room, event, invite(&event_id, &other));
    assert_eq!(signed.err(), Some(CountersignError::OtherEvent));
}

#[test]
fn a_signed_invite_must_still_be_verified() {
    let (mut room, _) = Room::new(&RoomVersionId::V12);
    let content = json!({ "membership": "invite" });
    let mut event = received(&mut room, ALICE, "m.room.member", BOB, &content);
    let none = CanonicalJsonObject::new();
    event.object.insert("signatures", none.into());
    let event_id = event.event_id().to_owned();
    let signed = sign(&room, event, invite(&event_id, &room.id)).unwrap();
    let error = verify(signed, &room.keys(), &room.rules).unwrap_err();
    let one = server_name!("one.example").to_owned();
    assert_eq!(error, SignatureError::Missing(one));
}

#[test]
fn a_restricted_join_is_signed_if_our_user_opens_the_room() {
    let (mut room, _) = Room::new(&RoomVersionId::V12);
    let room = &mut room;
    let id = room.id.clone();
    let origin = server_name!("one.example");
    let via =
        |user: &str| json!({ "membership": "join", "join_authorised_via_users_server": user });
    for (sender, target, content, error) in [
        (ALICE, ALICE, via(BOB), None),
        (
            ALICE,
            ALICE,
            via(CAROL),
            Some(CountersignError::ForeignUser),
        ),
        (
            ALICE,
            ALICE,
            json!({ "membership": "join" }),
            Some(CountersignError::ForeignUser),
        ),
        (ALICE, BOB, via(BOB), Some(CountersignError::ForeignSender)),
        (
            CAROL,
            CAROL,
            via(BOB),
            Some(CountersignError::ForeignSender),
        ),
        (
            ALICE,
            ALICE,
            json!({ "membership": "invite" }),
            Some(CountersignError::OtherKind),
        ),
        (
            ALICE,
            ALICE,
            json!({ "membership": 1 }),
            Some(CountersignError::OtherKind),
        ),
    ] {
        let event = received(room, sender, "m.room.member", target, &content);
        let event_id = event.event_id().to_owned();
        let expected = Expected::RestrictedJoin {
            event_id: &event_id,
            room_id: &id,
            origin,
        };
        match sign(room, event, expected) {
            Ok(signed) => {
                assert_eq!(error, None);
                verify(signed, &room.keys(), &room.rules).unwrap();
            }
            Err(found) => assert_eq!(Some(found), error, "{content}"),
        }
    }
}

#[test]
fn an_invite_of_an_address_is_made_for_who_invited_it_by_the_server_of_whose_it_is() {
    let (room, branch) = Room::new(&RoomVersionId::V11);
    let with = |sender: &str, target: &str, content: Value| {
        let sender = <&UserId>::try_from(sender).unwrap();
        let template = Room::template("m.room.member", Some(target), &content);
        let basis = room.basis(&branch, sender, &template);
        let own = server_name!("two.example");
        build(template, &basis, sender, now(), &room.rules, own, &room.key).err()
    };
    let invite = json!({ "membership": "invite", "third_party_invite": { "signed": {} } });
    assert_eq!(with(ALICE, BOB, invite.clone()), None);
    for (target, content) in [
        (CAROL, invite),
        (BOB, json!({ "membership": "invite" })),
        (
            BOB,
            json!({ "membership": "invite", "third_party_invite": 1 }),
        ),
        (
            BOB,
            json!({ "membership": "join", "third_party_invite": {} }),
        ),
    ] {
        assert_eq!(
            with(ALICE, target, content),
            Some(BuildError::ForeignSender)
        );
    }
}
