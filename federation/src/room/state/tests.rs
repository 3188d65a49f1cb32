#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use ruma::RoomVersionId;
use serde_json::{json, value::RawValue};
use sha1::Digest;

use super::*;
use crate::room::fixture::{ALICE, BOB, Branch, CAROL, Room};

const VERSIONS: [RoomVersionId; 4] = [
    RoomVersionId::V1,
    RoomVersionId::V2,
    RoomVersionId::V10,
    RoomVersionId::V12,
];

/// Those in which what somebody does while losing the power to do it is undone.
fn fair_versions() -> impl Iterator<Item = RoomVersionId> {
    VERSIONS.into_iter().skip(1)
}

fn try_resolve(room: &Room, sets: &[StateMap]) -> Result<StateMap, ResolveError> {
    let chains = sets.iter().map(|set| room.auth_chain(set)).collect();
    resolve(&room.rules, sets, chains, room.fetch())
}

fn merged(room: &Room, branches: &[&Branch]) -> StateMap {
    let sets: Vec<_> = branches.iter().map(|branch| branch.state.clone()).collect();
    try_resolve(room, &sets).unwrap()
}

fn content(room: &Room, state: &StateMap, event_type: &str, state_key: &str) -> String {
    let id = state.get(&(event_type.into(), state_key.to_owned()));
    id.map(|id| room.events[id].content().get().to_owned())
        .unwrap_or_default()
}

/// A room with Bob as moderator and Carol as member.
fn room(version: &RoomVersionId) -> (Room, Branch) {
    let (mut room, mut branch) = Room::new(version);
    room.member(&mut branch, BOB, BOB, "join");
    room.member(&mut branch, CAROL, CAROL, "join");
    levels(&mut room, &mut branch, ALICE, 50, 0);
    (room, branch)
}

fn levels(room: &mut Room, branch: &mut Branch, sender: &str, bob: i64, carol: i64) -> Arc<Pdu> {
    let mut users = json!({ BOB: bob, CAROL: carol });
    if !room.rules.authorization.explicitly_privilege_room_creators {
        users[ALICE] = json!(100);
    }
    room.send(
        branch,
        sender,
        "m.room.power_levels",
        Some(""),
        &json!({ "users": users }),
    )
}

fn topic(room: &mut Room, branch: &mut Branch, sender: &str, topic: &str) -> Arc<Pdu> {
    room.send(
        branch,
        sender,
        "m.room.topic",
        Some(""),
        &json!({ "topic": topic }),
    )
}

#[test]
fn states_that_agree_resolve_to_themselves() {
    for version in VERSIONS {
        let (room, branch) = room(&version);
        assert_eq!(merged(&room, &[&branch]), branch.state);
        assert_eq!(merged(&room, &[&branch, &branch.clone()]), branch.state);
    }
}

#[test]
fn of_two_topics_the_later_one_remains() {
    for version in VERSIONS {
        let (mut room, mut one) = room(&version);
        let mut two = one.clone();
        topic(&mut room, &mut one, ALICE, "first");
        topic(&mut room, &mut two, BOB, "second");
        let state = merged(&room, &[&one, &two]);
        assert_eq!(
            content(&room, &state, "m.room.topic", ""),
            r#"{"topic":"second"}"#
        );
    }
}

#[test]
fn a_ban_wins_over_what_the_banned_did_at_the_same_time() {
    for version in fair_versions() {
        let (mut room, mut one) = room(&version);
        let mut two = one.clone();
        room.member(&mut one, ALICE, BOB, "ban");
        assert!(!topic(&mut room, &mut two, BOB, "Bob was here").is_rejected());
        assert!(!room.member(&mut two, BOB, CAROL, "leave").is_rejected());
        let state = merged(&room, &[&one, &two]);
        assert_eq!(content(&room, &state, "m.room.topic", ""), "");
        assert_eq!(
            content(&room, &state, "m.room.member", BOB),
            r#"{"membership":"ban"}"#
        );
        assert_eq!(
            content(&room, &state, "m.room.member", CAROL),
            r#"{"membership":"join"}"#
        );
    }
}

#[test]
fn who_loses_power_does_not_keep_it_by_acting_at_the_same_time() {
    for version in fair_versions() {
        let (mut room, mut one) = room(&version);
        let mut two = one.clone();
        levels(&mut room, &mut one, ALICE, 0, 0);
        assert!(!levels(&mut room, &mut two, BOB, 50, 50).is_rejected());
        assert!(!topic(&mut room, &mut two, CAROL, "Carol was here").is_rejected());
        let state = merged(&room, &[&one, &two]);
        let levels = one.state[&("m.room.power_levels".into(), String::new())].clone();
        assert_eq!(
            state[&("m.room.power_levels".into(), String::new())],
            levels
        );
        assert_eq!(content(&room, &state, "m.room.topic", ""), "");
    }
}

#[test]
fn missing_events_are_an_error_and_not_a_guess() {
    for version in VERSIONS {
        let (mut room, mut one) = room(&version);
        let mut two = one.clone();
        let conflicted = topic(&mut room, &mut one, ALICE, "first")
            .event_id()
            .to_owned();
        topic(&mut room, &mut two, BOB, "second");
        let sets = [one.state.clone(), two.state];
        let auth_event = one.state[&("m.room.power_levels".into(), String::new())].clone();
        for lost in [conflicted, auth_event] {
            let chains = sets.iter().map(|set| room.auth_chain(set)).collect();
            let fetch = |id: &EventId| (id != lost).then(|| room.fetch()(id)).flatten();
            let resolved = resolve(&room.rules, &sets, chains, fetch);
            assert_eq!(resolved, Err(ResolveError::MissingEvent(lost.clone())));
        }
    }
}

/// In room version 1, of each branch the topic that was set last, and the level of Bob there.
#[test]
fn the_first_algorithm_goes_by_depth_and_then_by_hash() {
    let (mut room, mut one) = room(&RoomVersionId::V1);
    let mut two = one.clone();
    // The deeper topic remains, whenever it was sent.
    topic(&mut room, &mut one, ALICE, "first");
    topic(&mut room, &mut one, ALICE, "deeper");
    topic(&mut room, &mut two, BOB, "later");
    let state = merged(&room, &[&one, &two]);
    let remaining = content(&room, &state, "m.room.topic", "");
    assert_eq!(remaining, r#"{"topic":"deeper"}"#);

    // Of two at the same depth that with the smaller hash of its id.
    topic(&mut room, &mut two, BOB, "as deep");
    let state = merged(&room, &[&one, &two]);
    let key = (StateEventType::RoomTopic, String::new());
    let digest = |id: &OwnedEventId| <[u8; 20]>::from(sha1::Sha1::digest(id.as_bytes()));
    let smaller = [&one.state[&key], &two.state[&key]]
        .into_iter()
        .min_by_key(|id| digest(id));
    assert_eq!(state.get(&key), smaller);
}

#[test]
fn the_first_algorithm_takes_levels_as_long_as_each_allows_the_next() {
    let (mut room, mut one) = room(&RoomVersionId::V1);
    let mut two = one.clone();
    levels(&mut room, &mut one, ALICE, 0, 0);
    topic(&mut room, &mut two, BOB, "one deeper");
    levels(&mut room, &mut two, BOB, 50, 40);
    // By the shallower levels Bob may not set the deeper ones.
    let state = merged(&room, &[&one, &two]);
    let key = (StateEventType::RoomPowerLevels, String::new());
    assert_eq!(state.get(&key), one.state.get(&key));

    // Where nothing is allowed the least deep remains.
    room.member(&mut one, ALICE, BOB, "leave");
    let (mut three, mut four) = (one.clone(), two.clone());
    topic(&mut room, &mut three, CAROL, "not allowed");
    topic(&mut room, &mut four, BOB, "a deeper one");
    let state = merged(&room, &[&three, &four]);
    assert_eq!(state.get(&key), one.state.get(&key));
}

#[test]
fn the_first_algorithm_keeps_what_only_some_states_have() {
    let (mut room, mut one) = room(&RoomVersionId::V1);
    let two = one.clone();
    topic(&mut room, &mut one, ALICE, "only here");
    let state = merged(&room, &[&two, &one]);
    assert_eq!(state, one.state);
}

/// Events that have nothing but ids and auth events.
fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<OwnedEventId, Arc<Pdu>> {
    let event = |(id, auth_events): &(&str, &[&str])| {
        let id = EventId::parse(format!("${id}")).unwrap();
        let auth_events: Vec<_> = auth_events.iter().map(|id| format!("${id}")).collect();
        let json = json!({
            "auth_events": auth_events, "content": {}, "depth": 1, "origin_server_ts": 1,
            "prev_events": [], "room_id": "!r", "sender": ALICE, "state_key": "", "type": "x",
        });
        let json = RawValue::from_string(json.to_string()).unwrap();
        (
            id.clone(),
            Arc::new(Pdu::from_storage(id, json, false).unwrap()),
        )
    };
    edges.iter().map(event).collect()
}

fn subgraph(edges: &[(&str, &[&str])], conflicted: &[&str]) -> Option<String> {
    let events = graph(edges);
    let ids: Vec<_> = conflicted
        .iter()
        .map(|id| EventId::parse(format!("${id}")).unwrap())
        .collect();
    let found = conflicted_subgraph(ids.iter(), |id| events.get(id).cloned(), |_| false)?;
    let mut ids: Vec<_> = found.iter().map(|id| id.localpart().to_owned()).collect();
    ids.sort();
    Some(ids.concat())
}

#[test]
fn the_conflicted_subgraph_is_what_lies_between() {
    // a ← b ← c ← d, b ← e ← d, a ← f ← d, a ← g
    let edges: &[(&str, &[&str])] = &[
        ("a", &[]),
        ("b", &["a"]),
        ("c", &["b"]),
        ("e", &["b"]),
        ("f", &["a"]),
        ("d", &["c", "e", "f"]),
        ("g", &["a"]),
    ];
    for (conflicted, expected) in [
        (&["d", "b"][..], "bcde"),
        (&["b", "d"], "bcde"),
        (&["c", "g"], "cg"),
        (&["a", "d"], "abcdef"),
        (&["d"], "d"),
        (&["c", "e", "f"], "cef"),
        (&["f", "d", "g"], "dfg"),
        (&[], ""),
    ] {
        assert_eq!(
            subgraph(edges, conflicted).as_deref(),
            Some(expected),
            "{conflicted:?}"
        );
    }
    assert_eq!(subgraph(&[("b", &["a"])], &["b"]), None);
}

/// One step in the life of a room that has several branches.
#[derive(Clone, Debug)]
enum Act {
    Fork(usize),
    Merge(usize, usize),
    Member(usize, usize, usize, &'static str),
    Levels(usize, usize, i64, i64),
    Topic(usize, usize, u8),
    JoinRule(usize, usize, &'static str),
}

fn act() -> impl Strategy<Value = Act> {
    let branch = 0_usize..4;
    let user = 0_usize..3;
    let membership = prop::sample::select(vec!["join", "leave", "ban", "invite"]);
    let rule = prop::sample::select(vec!["public", "invite"]);
    let level = prop::sample::select(vec![0_i64, 50, 100]);
    prop_oneof![
        2 => branch.clone().prop_map(Act::Fork),
        1 => (branch.clone(), branch.clone()).prop_map(|(a, b)| Act::Merge(a, b)),
        6 => (branch.clone(), user.clone(), user.clone(), membership)
            .prop_map(|(branch, sender, target, membership)| Act::Member(branch, sender, target, membership)),
        3 => (branch.clone(), user.clone(), level.clone(), level)
            .prop_map(|(branch, sender, bob, carol)| Act::Levels(branch, sender, bob, carol)),
        2 => (branch.clone(), user.clone(), any::<u8>())
            .prop_map(|(branch, sender, topic)| Act::Topic(branch, sender, topic)),
        1 => (branch, user, rule).prop_map(|(branch, sender, rule)| Act::JoinRule(branch, sender, rule)),
    ]
}

/// Joins the second branch into the first.
fn merge(room: &Room, one: &Branch, two: &Branch) -> Branch {
    let heads: BTreeSet<_> = one
        .prev_events
        .iter()
        .chain(&two.prev_events)
        .take(20)
        .collect();
    Branch {
        state: merged(room, &[one, two]),
        prev_events: heads.into_iter().cloned().collect(),
        depth: one.depth.max(two.depth),
    }
}

fn play(version: &RoomVersionId, acts: &[Act]) -> (Room, Vec<Branch>) {
    const USERS: [&str; 3] = [ALICE, BOB, CAROL];
    let (mut room, branch) = room(version);
    let room_ref = &mut room;
    let mut branches = vec![branch];
    for act in acts {
        let count = branches.len();
        match *act {
            Act::Fork(of) => branches.push(branches[of % count].clone()),
            Act::Merge(into, other) => {
                let branch = merge(room_ref, &branches[into % count], &branches[other % count]);
                branches[into % count] = branch;
            }
            Act::Member(branch, sender, target, membership) => {
                let branch = &mut branches[branch % count];
                room_ref.member(branch, USERS[sender], USERS[target], membership);
            }
            Act::Levels(branch, sender, bob, carol) => {
                let branch = &mut branches[branch % count];
                levels(room_ref, branch, USERS[sender], bob, carol);
            }
            Act::Topic(branch, sender, text) => {
                let branch = &mut branches[branch % count];
                topic(room_ref, branch, USERS[sender], &text.to_string());
            }
            Act::JoinRule(branch, sender, rule) => {
                let (branch, sender) = (&mut branches[branch % count], USERS[sender]);
                let rule = json!({ "join_rule": rule });
                room_ref.send(branch, sender, "m.room.join_rules", Some(""), &rule);
            }
        }
    }
    (room, branches)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn resolution_does_not_depend_on_order_and_is_idempotent(
        acts in prop::collection::vec(act(), 1..30),
        shuffle in any::<prop::sample::Index>(),
    ) {
        for version in VERSIONS {
            let (room, branches) = play(&version, &acts);
            let sets: Vec<_> = branches.into_iter().map(|branch| branch.state).collect();
            let resolved = try_resolve(&room, &sets).unwrap();

            let mut reversed = sets.clone();
            reversed.reverse();
            prop_assert_eq!(&try_resolve(&room, &reversed).unwrap(), &resolved);
            let mut rotated = sets.clone();
            rotated.rotate_left(shuffle.index(sets.len()));
            prop_assert_eq!(&try_resolve(&room, &rotated).unwrap(), &resolved);

            let twice: Vec<_> = sets.iter().chain(&sets).cloned().collect();
            prop_assert_eq!(&try_resolve(&room, &twice).unwrap(), &resolved);
            let again = [resolved.clone(), resolved.clone()];
            prop_assert_eq!(&try_resolve(&room, &again).unwrap(), &resolved);

            // What all agree on stays, and nothing is made up.
            for (key, id) in &resolved {
                let event = &room.events[id];
                prop_assert_eq!(event.state_key(), Some(key.1.as_str()));
                prop_assert!(!event.is_rejected());
            }
            for (key, id) in &sets[0] {
                if sets.iter().all(|set| set.get(key) == Some(id)) {
                    prop_assert_eq!(resolved.get(key), Some(id));
                }
            }
        }
    }

    #[test]
    fn what_differs_is_enough_to_resolve(acts in prop::collection::vec(act(), 1..30)) {
        for version in VERSIONS {
            let (room, branches) = play(&version, &acts);
            let sets: Vec<_> = branches.into_iter().map(|branch| branch.state).collect();
            let agree = |key: &(StateEventType, String)| {
                sets[0].get(key).filter(|id| sets.iter().all(|set| set.get(key) == Some(id)))
            };
            let unconflicted = |event_type: &StateEventType, state_key: &str| {
                agree(&(event_type.clone(), state_key.to_owned())).cloned()
            };
            let conflicted: Vec<StateMap> = sets
                .iter()
                .map(|set| set.iter().filter(|(key, _)| agree(key).is_none()))
                .map(|set| set.map(|(key, id)| (key.clone(), id.clone())).collect())
                .collect();
            let chains = sets.iter().map(|set| room.auth_chain(set)).collect();
            let outside = Outside {
                unconflicted,
                fetch: room.fetch(),
                older: |_: &EventId| false,
            };
            let found = resolve_conflicted(&room.rules, &conflicted, chains, outside);
            let mut expected = try_resolve(&room, &sets).unwrap();
            expected.retain(|key, _| agree(key).is_none());
            prop_assert_eq!(found.unwrap(), expected);
        }
    }

    #[test]
    fn leaving_out_what_all_chains_share_makes_no_difference(
        acts in prop::collection::vec(act(), 1..20),
    ) {
        for version in VERSIONS {
            let (room, branches) = play(&version, &acts);
            let sets: Vec<_> = branches.into_iter().map(|branch| branch.state).collect();
            let resolved = try_resolve(&room, &sets).unwrap();
            let chains: Vec<_> = sets.iter().map(|set| room.auth_chain(set)).collect();
            let shared: BTreeSet<_> = chains[0]
                .iter()
                .filter(|id| chains.iter().all(|chain| chain.contains(*id)))
                .cloned()
                .collect();
            let chains = chains.iter().map(|chain| chain - &shared).collect();
            prop_assert_eq!(resolve(&room.rules, &sets, chains, room.fetch()).unwrap(), resolved);
        }
    }
}
