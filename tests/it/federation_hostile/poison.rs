//! Events that are rightly made and say nonsense, and other units that do: they are taken in, and nothing breaks.

use http::Method;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};
use sotto_tests::{Draft, Seat, User, escape, room};

use super::{MALLORY, Scene};
use crate::hostile::our_panics;

/// How many of each kind there are.
const EVENTS: usize = 280;
const UNITS: usize = 150;
const INVITES: usize = 70;
/// After so many it is seen whether everything still works.
const SOME: usize = 70;

/// Types whose content somebody reads, as state events and as others.
const STATE: [&str; 13] = [
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.pinned_events",
    "m.room.policy",
    "m.room.third_party_invite",
    "m.room.tombstone",
    "m.space.child",
    "m.space.parent",
];
const OTHER: [&str; 6] = [
    "m.room.message",
    "m.room.encrypted",
    "m.room.redaction",
    "m.reaction",
    "m.poll.start",
    "m.call.invite",
];
const KEYS: [&str; 30] = [
    "",
    "alias",
    "alt_aliases",
    "algorithm",
    "avatar_url",
    "body",
    "devices",
    "displayname",
    "event_id",
    "event_ids",
    "history_visibility",
    "keys",
    "m.mentions",
    "m.relates_to",
    "m.new_content",
    "m.read",
    "membership",
    "messages",
    "name",
    "pinned",
    "public_keys",
    "redacts",
    "rel_type",
    "replacement_room",
    "room_id",
    "suggested",
    "topic",
    "user_id",
    "url",
    "via",
];

/// Any value that canonical JSON has.
fn nonsense(random: &mut StdRng, depth: usize) -> Value {
    match random.random_range(0..if depth > 2 { 7 } else { 11 }) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 => json!(random.random_range(-(1_i64 << 53) + 1..1 << 53)),
        3 => json!("x".repeat(random.random_range(0..300))),
        4 => json!("\u{0}\u{feff}😀@user:one.test"),
        5 => json!(["m.replace", "m.thread", "m.reference", "joined"].choose(random)),
        6 => json!([MALLORY, "$nothing", "!nowhere:b.test", "@alice:a.test"].choose(random)),
        7 | 8 => {
            let count = random.random_range(0..5);
            (0..count).map(|_| nonsense(random, depth + 1)).collect()
        }
        _ => Value::Object(object(random, depth + 1)),
    }
}

fn object(random: &mut StdRng, depth: usize) -> Map<String, Value> {
    let count = random.random_range(0..6);
    (0..count)
        .map(|_| {
            let key = KEYS.choose(random).unwrap();
            ((*key).to_owned(), nonsense(random, depth))
        })
        .collect()
}

/// An event that is allowed, and says nonsense.
fn event<'a>(random: &mut StdRng, key: &'a str) -> Draft<'a> {
    let mut content = object(random, 0);
    if random.random_bool(0.1) {
        // Whoever has no name.
        content.insert("membership".to_owned(), json!("join"));
        return Draft::state(MALLORY, "m.room.member", MALLORY, Value::Object(content));
    }
    if random.random_bool(0.5) {
        let kind = STATE.choose(random).unwrap();
        return Draft::state(MALLORY, kind, key, Value::Object(content));
    }
    Draft {
        sender: MALLORY,
        kind: OTHER.choose(random).unwrap(),
        state_key: None,
        content: Value::Object(content),
    }
}

/// A unit of a transaction that is no event.
fn unit(random: &mut StdRng, room_id: &str) -> Value {
    let kinds = [
        "m.receipt",
        "m.typing",
        "m.presence",
        "m.device_list_update",
        "m.direct_to_device",
        "m.signing_key_update",
        "m.unknown",
    ];
    let mut content = object(random, 0);
    for (key, value) in [
        ("user_id", MALLORY),
        ("sender", MALLORY),
        ("room_id", room_id),
    ] {
        if random.random_bool(0.7) {
            content.insert(key.to_owned(), json!(value));
        }
    }
    if random.random_bool(0.3) {
        content.insert(room_id.to_owned(), nonsense(random, 0));
    }
    json!({ "edu_type": kinds.choose(random), "content": content })
}

/// Whether everything still works for everybody, after so many pieces of nonsense.
async fn works(scene: &Scene, bob: &User, number: usize) {
    let text = format!("works {number}");
    scene.alice.send(scene.room_id(), &text).await;
    let path = room(scene.room_id(), "messages?dir=b&limit=20");
    let (mut from, mut read) = (String::new(), 0);
    loop {
        let page = bob.get(&format!("{path}{from}")).await.ok();
        read += page["chunk"].as_array().unwrap().len();
        let Some(end) = page["end"].as_str() else {
            break;
        };
        from = format!("&from={end}");
    }
    assert!(read > 0);
    for user in [&scene.alice, bob] {
        let sync = user.sync(None, 0).await;
        assert!(
            sync["rooms"]["join"][scene.room_id()]
                .to_string()
                .contains(&text)
        );
        user.get(&room(scene.room_id(), "state")).await.ok();
        user.get(&room(scene.room_id(), "members")).await.ok();
    }
    let name = format!("user{number}");
    let new = scene.ours.register(&name).await;
    new.join(scene.room_id()).await.ok();
    new.post(&room(scene.room_id(), "leave"), &json!({}))
        .await
        .ok();
    let out = |told: &Value| told["content"]["body"] == text.as_str();
    for _ in 0..200 {
        if scene.fake.received().iter().any(out) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("other servers hear nothing any more");
}

/// Mallory's server hands out the events, one after another; how many were taken in.
async fn events(scene: &mut Scene, bob: &User, random: &mut StdRng) -> usize {
    let mut taken = 0;
    for number in 0..EVENTS {
        let key = ["", MALLORY, "!nowhere:b.test", "\u{0}😀"].choose(random);
        let draft = event(random, key.unwrap());
        let mut seat: Seat = scene.seat.clone();
        let made = scene.fake.peer().make(&mut seat, &draft);
        if scene.deliver(&made).await.is_none() {
            scene.seat = seat;
            let path = room(
                scene.room_id(),
                &format!("event/{}", escape(made.id.as_str())),
            );
            taken += usize::from(bob.get(&path).await.status.is_success());
        }
        if number % SOME == SOME - 1 {
            works(scene, bob, number).await;
        }
    }
    taken
}

/// Invites of which nonsense is told.
async fn invites(scene: &Scene, random: &mut StdRng) {
    let (room_id, invite) = scene.fake.invite(MALLORY, &scene.alice.user_id);
    let path = format!(
        "/_matrix/federation/v2/invite/{}/{}",
        escape(room_id.as_str()),
        escape(invite.id.as_str())
    );
    for _ in 0..INVITES {
        let mut state = scene.fake.state();
        let at = random.random_range(0..state.len());
        state[at]["content"] = Value::Object(object(random, 0));
        state.push(nonsense(random, 0));
        let mut event = invite.json.clone();
        if random.random_bool(0.5) {
            let key = ["content", "state_key", "sender", "prev_events", "unsigned"];
            event[*key.choose(random).unwrap()] = nonsense(random, 0);
        }
        let body = json!({ "room_version": "11", "event": event, "invite_room_state": state });
        let peer = scene.fake.peer();
        let answer = peer.ask(&scene.ours, Method::PUT, &path, Some(&body)).await;
        assert!(!answer.status.is_server_error(), "{} {body}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_that_is_rightly_made_poisons_nothing() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let body = json!({
        "preset": "public_chat",
        "power_level_content_override": { "state_default": 0, "events": {} },
    });
    let mut scene = Scene::with(body).await;
    let bob = scene.ours.register("bob").await;
    bob.join(scene.room_id()).await.ok();
    scene.catches_up().await;
    let panics = our_panics();
    let taken = events(&mut scene, &bob, &mut random).await;
    for number in 0..UNITS / 10 {
        let units: Vec<_> = (0..10)
            .map(|_| unit(&mut random, scene.room_id()))
            .collect();
        scene.fake.peer().send(&scene.ours, &[], &units).await.ok();
        if number % 7 == 6 {
            works(&scene, &bob, 1_000 + number).await;
        }
    }
    invites(&scene, &mut random).await;
    works(&scene, &bob, 2_000).await;
    assert_eq!(*panics.lock().unwrap(), Vec::<String>::new());
    // The control: most of it did come in, so it was there for everybody to trip over.
    assert!(taken > EVENTS / 2, "{taken}");
}
