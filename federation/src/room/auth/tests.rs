#![expect(clippy::unwrap_used, reason = "tests")]

use ruma::RoomVersionId;
use serde_json::json;

use super::*;
use crate::room::{
    builder::{Basis, Hashes, build},
    fixture::{ALICE, BOB, Branch, CAROL, Room},
    state::StateMap,
    version,
};

fn message(room: &mut Room, branch: &Branch, sender: &str) -> Verified {
    room.build(
        branch,
        sender,
        "m.room.message",
        None,
        &json!({ "body": "hello" }),
    )
}

fn step(judged: &Judged) -> Option<Step> {
    match judged.verdict() {
        Verdict::Accepted => None,
        Verdict::SoftFailed(rejection) | Verdict::Rejected(rejection) => Some(rejection.step()),
    }
}

#[test]
fn a_room_can_be_made_and_used_in_every_supported_version() {
    for version in version::supported() {
        let (mut room, mut branch) = Room::new(&version);
        assert!(
            room.events.values().all(|pdu| !pdu.is_rejected()),
            "version {version}"
        );
        assert!(!room.member(&mut branch, BOB, BOB, "join").is_rejected());
        let built = message(&mut room, &branch, BOB);
        let again = Verified::from_stored(
            Pdu::from_storage(
                built.pdu().event_id().to_owned(),
                built.pdu().json().to_owned(),
                false,
            )
            .unwrap(),
        );
        assert!(room.judge_own(&branch, built).verdict().is_accepted());
        assert!(
            room.judge(&branch.state, &branch.state, again)
                .verdict()
                .is_accepted()
        );
    }
}

#[test]
fn a_sender_who_is_not_joined_is_rejected_by_the_auth_events() {
    for version in [RoomVersionId::V10, RoomVersionId::V12] {
        let (mut room, branch) = Room::new(&version);
        let built = message(&mut room, &branch, BOB);
        let judged = room.judge(&branch.state, &branch.state, built);
        assert_eq!(step(&judged), Some(Step::AuthEvents));
        assert!(judged.pdu().is_rejected());
        assert!(judged.into_pdu().is_rejected());
    }
}

#[test]
fn a_ban_in_the_state_before_rejects_and_a_ban_in_the_current_state_soft_fails() {
    for version in [RoomVersionId::V10, RoomVersionId::V12] {
        let (mut room, mut joined) = Room::new(&version);
        room.member(&mut joined, BOB, BOB, "join");
        let mut banned = joined.clone();
        assert!(!room.member(&mut banned, ALICE, BOB, "ban").is_rejected());

        let built = message(&mut room, &joined, BOB);
        let judged = room.judge(&banned.state, &banned.state, built);
        assert_eq!(step(&judged), Some(Step::StateBefore));
        assert!(judged.verdict().is_rejected());

        let built = message(&mut room, &joined, BOB);
        let judged = room.judge(&joined.state, &banned.state, built);
        assert_eq!(step(&judged), Some(Step::CurrentState));
        assert!(!judged.verdict().is_rejected());
        assert!(!judged.pdu().is_rejected());

        // The other way round the ban is over.
        let built = message(&mut room, &joined, BOB);
        let judged = room.judge(&joined.state, &joined.state, built);
        assert!(judged.verdict().is_accepted());
    }
}

#[test]
fn a_rejected_auth_event_rejects() {
    let (mut room, mut branch) = Room::new(&RoomVersionId::V11);
    room.member(&mut branch, BOB, BOB, "join");
    let built = message(&mut room, &branch, BOB);
    let id = branch.state[&(StateEventType::RoomMember, BOB.to_owned())].clone();
    let json = room.events[&id].json().to_owned();
    room.events.insert(
        id.clone(),
        Arc::new(Pdu::from_storage(id, json, true).unwrap()),
    );
    let judged = room.judge(&branch.state, &branch.state, built);
    assert_eq!(step(&judged), Some(Step::Selection));
}

#[test]
fn a_missing_auth_event_is_told_and_rejects() {
    for (version, expected) in [(RoomVersionId::V11, 3), (RoomVersionId::V12, 3)] {
        let (mut room, branch) = Room::new(&version);
        let built = message(&mut room, &branch, ALICE);
        let nothing = |_: &EventId| None;
        assert_eq!(
            missing_auth_events(&built, &nothing, &room.rules).len(),
            expected
        );
        assert!(missing_auth_events(&built, &room.fetch(), &room.rules).is_empty());
        let outlier = judge_outlier(built, &nothing, &room.rules);
        assert_eq!(
            outlier.rejection().map(Rejection::step),
            Some(Step::MissingAuthEvent)
        );
        assert!(outlier.pdu().is_rejected());
    }
}

/// Builds an event of Alice's on other auth events than those of the state.
fn with_auth_events(room: &Room, branch: &Branch, auth_events: Vec<OwnedEventId>) -> Verified {
    let basis = Basis {
        room_id: Some(room.id.clone()),
        prev_events: branch.prev_events.clone(),
        auth_events,
        hashes: Hashes::default(),
        depth: 9,
    };
    let alice = <&UserId>::try_from(ALICE).unwrap();
    let template = Room::template("m.room.message", None, &json!({ "body": "hello" }));
    let now = ruma::MilliSecondsSinceUnixEpoch(ruma::uint!(2_000_000));
    build(
        template,
        &basis,
        alice,
        now,
        &room.rules,
        alice.server_name(),
        &room.key,
    )
    .unwrap()
}

fn id(state: &StateMap, event_type: StateEventType, state_key: &str) -> OwnedEventId {
    state[&(event_type, state_key.to_owned())].clone()
}

#[test]
fn auth_events_must_be_those_that_are_selected() {
    let (mut room, mut branch) = Room::new(&RoomVersionId::V11);
    room.member(&mut branch, BOB, BOB, "join");
    let create = id(&branch.state, StateEventType::RoomCreate, "");
    let alice = id(&branch.state, StateEventType::RoomMember, ALICE);
    let bob = id(&branch.state, StateEventType::RoomMember, BOB);
    let power = id(&branch.state, StateEventType::RoomPowerLevels, "");

    let right = with_auth_events(&room, &branch, vec![create.clone(), alice.clone(), power]);
    assert!(room.judge_own(&branch, right).verdict().is_accepted());
    for wrong in [
        vec![alice.clone()],
        vec![create.clone(), alice.clone(), bob],
        vec![create.clone(), alice.clone(), alice.clone()],
    ] {
        let built = with_auth_events(&room, &branch, wrong.clone());
        let judged = room.judge(&branch.state, &branch.state, built);
        assert_eq!(step(&judged), Some(Step::Selection), "{wrong:?}");
        let built = with_auth_events(&room, &branch, wrong);
        assert_eq!(step(&room.judge_own(&branch, built)), Some(Step::Selection));
    }

    // Without the power levels the auth events allow it; only our own events must have all.
    let fewer = vec![create, alice];
    let built = with_auth_events(&room, &branch, fewer.clone());
    assert!(
        room.judge(&branch.state, &branch.state, built)
            .verdict()
            .is_accepted()
    );
    let built = with_auth_events(&room, &branch, fewer);
    assert_eq!(step(&room.judge_own(&branch, built)), Some(Step::Selection));
}

#[test]
fn auth_events_of_another_room_reject() {
    let (room, branch) = Room::new(&RoomVersionId::V10);
    let (mut other, mut other_branch) = Room::new(&RoomVersionId::V10);
    other.id = "!other:one.example".try_into().unwrap();
    let joined = other.member(&mut other_branch, CAROL, CAROL, "join");
    let create = id(&branch.state, StateEventType::RoomCreate, "");
    let built = with_auth_events(&room, &branch, vec![create, joined.event_id().to_owned()]);
    let fetch = |id: &EventId| room.fetch()(id).or_else(|| other.fetch()(id));
    let outlier = judge_outlier(built, &fetch, &room.rules);
    assert_eq!(
        outlier.rejection().map(Rejection::step),
        Some(Step::Selection)
    );
}

#[test]
fn the_create_event_of_version_12_must_be_accepted_and_is_no_auth_event() {
    let (mut room, branch) = Room::new(&RoomVersionId::V12);
    let create = create_event_id(&room.id, &room.rules).unwrap();
    assert_eq!(id(&branch.state, StateEventType::RoomCreate, ""), create);
    let built = message(&mut room, &branch, ALICE);
    assert!(!built.pdu().auth_events().contains(&create));

    let json = room.events[&create].json().to_owned();
    let rejected = Pdu::from_storage(create.clone(), json, true).unwrap();
    room.events.insert(create, Arc::new(rejected));
    let judged = room.judge(&branch.state, &branch.state, built);
    assert_eq!(step(&judged), Some(Step::Selection));
}

#[test]
fn power_is_needed_and_power_levels_above_ones_own_cannot_be_given() {
    for version in [RoomVersionId::V9, RoomVersionId::V12] {
        let (mut room, mut branch) = Room::new(&version);
        room.member(&mut branch, BOB, BOB, "join");
        let topic = json!({ "topic": "Tea" });
        assert!(
            room.send(&mut branch, BOB, "m.room.topic", Some(""), &topic)
                .is_rejected()
        );
        assert!(
            !room
                .send(&mut branch, ALICE, "m.room.topic", Some(""), &topic)
                .is_rejected()
        );

        let levels = json!({ "users": { BOB: 60 } });
        let levels = if version == RoomVersionId::V12 {
            levels
        } else {
            json!({ "users": { ALICE: 100, BOB: 60 } })
        };
        room.send(&mut branch, ALICE, "m.room.power_levels", Some(""), &levels);
        let mut more = levels.clone();
        more["users"][BOB] = json!(61);
        assert!(
            room.send(&mut branch, BOB, "m.room.power_levels", Some(""), &more)
                .is_rejected()
        );
        let mut less = levels;
        less["users"][BOB] = json!(50);
        assert!(
            !room
                .send(&mut branch, BOB, "m.room.power_levels", Some(""), &less)
                .is_rejected()
        );
    }
}

#[test]
fn creators_cannot_be_given_power_in_version_12() {
    let (mut room, mut branch) = Room::new(&RoomVersionId::V12);
    let levels = json!({ "users": { ALICE: 100 } });
    assert!(
        room.send(&mut branch, ALICE, "m.room.power_levels", Some(""), &levels)
            .is_rejected()
    );
}

#[test]
fn the_policy_server_soft_fails_only_what_was_accepted() {
    let (mut room, branch) = Room::new(&RoomVersionId::V12);
    let built = message(&mut room, &branch, ALICE);
    let judged = room.judge_own(&branch, built).refused_by_policy_server();
    assert!(matches!(judged.verdict(), Verdict::SoftFailed(_)));
    assert_eq!(step(&judged), Some(Step::PolicyServer));
    let built = message(&mut room, &branch, BOB);
    let judged = room.judge_own(&branch, built).refused_by_policy_server();
    assert!(judged.verdict().is_rejected());
}

#[test]
fn a_rejection_shows_the_step_and_not_the_users() {
    let (mut room, branch) = Room::new(&RoomVersionId::V12);
    let built = message(&mut room, &branch, BOB);
    let judged = room.judge_own(&branch, built);
    let Verdict::Rejected(rejection) = judged.verdict() else {
        unreachable!()
    };
    assert_eq!(
        rejection.to_string(),
        "the event is not allowed by the current state"
    );
    assert_eq!(rejection.reason(), "sender's membership is not `join`");
}
