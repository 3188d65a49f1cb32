//! Servers that lose each other, and end with the same room.
//!
//! Two servers that have the same graph have the same state and rejected the same events: both follow from
//! the graph. What they show differs in one respect only, by the specification: an event that came to one
//! server after the news that its sender may not send it any more is soft-failed there, and accepted where
//! it came before ([spec](https://spec.matrix.org/v1.19/server-server-api/#soft-failure)). It becomes part
//! of the graph of both once somebody to whom it came in time says something, so everybody speaks up before
//! the rooms are compared.

mod moves;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Links, Peer, Setup, TestServer, User, escape, room};
use sqlx::{AnyConnection, Connection, Row, any::AnyRow};

use self::moves::Graph;

/// How many seeds are tried, and the first of them.
const SEEDS: &str = "SOTTO_PARTITION_SEEDS";
const FIRST: &str = "SOTTO_PARTITION_FIRST";
/// How long servers may take to agree once nothing is in their way.
const HEALED: Duration = Duration::from_secs(30);

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap())
    };
    let first = number(FIRST, 1);
    first..first + number(SEEDS, 2)
}

/// Something that a user may do; refusals are part of the game.
async fn act(random: &mut StdRng, users: &[User], room_id: &str, step: usize) {
    let user = users.choose(random).unwrap();
    let other = users.choose(random).unwrap();
    match random.random_range(0..12) {
        0..=4 => {
            let content = json!({ "msgtype": "m.text", "body": format!("{step}") });
            user.send_event(room_id, "m.room.message", &content).await;
        }
        5 | 6 => {
            let path = room(room_id, "state/m.room.topic/");
            user.put(&path, &json!({ "topic": format!("{step}") }))
                .await;
        }
        7 => {
            let path = room(room_id, "state/m.room.name/");
            user.put(&path, &json!({ "name": format!("{step}") })).await;
        }
        8 => {
            let path = format!(
                "/_matrix/client/v3/profile/{}/displayname",
                escape(&user.user_id)
            );
            user.put(&path, &json!({ "displayname": format!("{step}") }))
                .await;
        }
        9 => {
            let path = room(room_id, "state/m.room.power_levels/");
            let Value::Object(mut levels) = user.get(&path).await.body else {
                return;
            };
            if let Some(Value::Object(users)) = levels.get_mut("users") {
                users.insert(other.user_id.clone(), json!(random.random_range(0..3) * 50));
            }
            user.put(&path, &Value::Object(levels)).await;
        }
        10 => {
            let body = json!({ "user_id": other.user_id });
            let verb = ["kick", "ban", "unban"].choose(random).unwrap();
            if other.user_id != users[0].user_id {
                user.post(&room(room_id, verb), &body).await;
            }
        }
        _ => {
            user.join_via(room_id, "a.test").await;
        }
    }
}

/// The state of the room as a user's server has it.
async fn state(user: &User, room_id: &str) -> BTreeMap<(String, String), String> {
    let events = user.get(&room(room_id, "state")).await.body;
    let events = events.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |event: &Value| {
        let key = (text(&event["type"]), text(&event["state_key"]));
        (key, text(&event["event_id"]))
    };
    events.iter().map(entry).collect()
}

/// The newest events of the room that a user's server shows.
async fn events(user: &User, room_id: &str) -> BTreeSet<String> {
    let page = user
        .get(&room(room_id, "messages?dir=b&limit=1000"))
        .await
        .body;
    let events = page["chunk"].as_array().cloned().unwrap_or_default();
    let ids = events.iter().filter_map(|event| event["event_id"].as_str());
    ids.map(ToOwned::to_owned).collect()
}

/// The room as a server has it.
struct Copy {
    state: BTreeMap<(String, String), String>,
    /// What the next event will build on.
    extremities: BTreeSet<String>,
    shown: BTreeSet<String>,
    soft_failed: BTreeSet<String>,
    rejected: BTreeSet<String>,
    /// Every event, in the order in which they came, for people to read.
    graph: Vec<String>,
}

impl Copy {
    async fn of(server: &TestServer, user: &User, room_id: &str) -> Self {
        sqlx::any::install_default_drivers();
        let connection = AnyConnection::connect(&server.database_url()).await;
        let mut connection = connection.unwrap();
        let judged = async |connection: &mut AnyConnection, verdict: i64| {
            let ids = sqlx::query_scalar(
                "SELECT event_id FROM events WHERE verdict = $1 AND state_before IS NOT NULL",
            );
            let ids: Vec<String> = ids.bind(verdict).fetch_all(connection).await.unwrap();
            ids.into_iter().collect::<BTreeSet<_>>()
        };
        loop {
            let before = extremities(&mut connection, room_id).await;
            let copy = Self {
                state: state(user, room_id).await,
                shown: events(user, room_id).await,
                soft_failed: judged(&mut connection, 1).await,
                rejected: judged(&mut connection, 2).await,
                graph: graph(&mut connection).await,
                extremities: extremities(&mut connection, room_id).await,
            };
            // Unless the room went on meanwhile.
            if copy.extremities == before {
                return copy;
            }
        }
    }

    /// What of another copy is not so here though it should be.
    fn differs(&self, other: &Self) -> Option<String> {
        if self.extremities == other.extremities {
            let (ours, theirs) = (&self.state, &other.state);
            if ours != theirs {
                println!("{}\n---\n{}", self.graph.join("\n"), other.graph.join("\n"));
            }
            assert_eq!(ours, theirs, "the same graph, another state");
        }
        let hidden = |shown: &BTreeSet<String>, by: &Self| {
            let missing = shown.difference(&by.shown);
            let missing: Vec<_> = missing
                .filter(|id| !by.soft_failed.contains(*id))
                .cloned()
                .collect();
            missing
        };
        let missing = [hidden(&self.shown, other), hidden(&other.shown, self)];
        if missing.iter().any(|missing| !missing.is_empty()) {
            return Some(format!("events are not shown: {missing:?}"));
        }
        for (one, two) in [(self, other), (other, self)] {
            let taken = two.shown.union(&two.soft_failed).cloned().collect();
            let torn: Vec<_> = one.rejected.intersection(&taken).collect();
            assert!(
                torn.is_empty(),
                "rejected by one, taken by another: {torn:?}"
            );
        }
        if self.extremities != other.extremities {
            return Some(format!(
                "other ends: {:?} {:?}",
                self.extremities, other.extremities
            ));
        }
        None
    }
}

async fn graph(connection: &mut AnyConnection) -> Vec<String> {
    let rows = sqlx::query("SELECT nid, event_id, verdict, json FROM events ORDER BY nid");
    let rows = rows.fetch_all(connection).await.unwrap();
    let line = |row: &AnyRow| {
        let (nid, id) = (row.get::<i64, _>(0), row.get::<String, _>(1));
        let (verdict, json) = (row.get::<i64, _>(2), row.get::<String, _>(3));
        format!("{nid} {id} verdict {verdict} {json}")
    };
    rows.iter().map(line).collect()
}

async fn extremities(connection: &mut AnyConnection, room_id: &str) -> BTreeSet<String> {
    let found = sqlx::query_scalar("SELECT head_extremities FROM rooms WHERE room_id = $1");
    let found: String = found.bind(room_id).fetch_one(connection).await.unwrap();
    found.split(' ').map(ToOwned::to_owned).collect()
}

/// Those who are in the room as both the first server and their own have it. Who is not hears nothing of it.
///
/// The two can differ for good. Say that Alice kicks Carol, then gives up her own power, and later a branch from
/// before both is merged. The resolution puts the loss of power before the kick, which needs Carol's join
/// before it, and so drops the kick: Carol is in the room. Her server, which left with the kick, takes no
/// part any more and cannot learn of that.
async fn present<'a>(
    servers: &'a [TestServer],
    users: &'a [User],
    room_id: &str,
) -> Vec<(&'a TestServer, &'a User)> {
    let path = room(room_id, "joined_members");
    let joined = users[0].get(&path).await.body;
    let mut present = Vec::new();
    for (server, user) in servers.iter().zip(users) {
        let own = user.get(&path).await.body;
        let has = |members: &Value| members["joined"].get(&user.user_id).is_some();
        if has(&joined) && has(&own) {
            present.push((server, user));
        }
    }
    present
}

/// Whether all who are in the room have the same of it; what differs if not.
async fn same(servers: &[TestServer], users: &[User], room_id: &str) -> Result<(), String> {
    let present = present(servers, users, room_id).await;
    let mut first: Option<Copy> = None;
    for (server, user) in present {
        let copy = Copy::of(server, user, room_id).await;
        let Some(first) = &first else {
            first = Some(copy);
            continue;
        };
        if let Some(differs) = first.differs(&copy) {
            return Err(format!("{}: {differs}", user.user_id));
        }
    }
    Ok(())
}

/// Everybody in the room says something, one after another, each after the others had time to hear it.
async fn speak_up(servers: &[TestServer], users: &[User], room_id: &str) {
    for (_, user) in present(servers, users, room_id).await {
        let content = json!({ "msgtype": "m.text", "body": "still there?" });
        user.send_event(room_id, "m.room.message", &content).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// No part of the state went back without a reason, as the first server tells another one that is in the room.
async fn nothing_went_back(servers: &[TestServer], users: &[User], room_id: &str, version: &str) {
    let present = present(servers, users, room_id).await;
    let Some((asking, _)) = present.get(1) else {
        println!("nobody else is in the room, who could ask for its states");
        return;
    };
    let version = RoomVersionId::try_from(version).unwrap();
    let graph = Graph::of(&servers[0], &version.rules().unwrap()).await;
    let (unexplained, explained) = graph.went_back(&servers[0], &Peer::of(asking)).await;
    println!("{explained} parts of the state went back with a reason");
    if !unexplained.is_empty() {
        let connection = AnyConnection::connect(&servers[0].database_url()).await;
        println!("{}", self::graph(&mut connection.unwrap()).await.join("\n"));
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

async fn partition(seed: u64, version: &str) {
    let mut random = StdRng::seed_from_u64(seed);
    let (servers, links): (_, Links) = Setup::default().federation_on_links(3, seed).await;
    let mut users = Vec::new();
    for (server, name) in servers.iter().zip(["alice", "bob", "carol"]) {
        users.push(server.register(name).await);
    }
    let everybody = json!({ "state_default": 0, "users_default": 50, "events": {} });
    let body = json!({
        "preset": "public_chat",
        "room_version": version,
        "power_level_content_override": everybody,
    });
    let room_id = users[0].create_room(&body).await;
    for user in &users[1..] {
        user.join_via(&room_id, "a.test").await.ok();
    }
    links.fail(true);
    for round in 0..4 {
        let alone = random.random_range(0..3);
        links.cut(alone, true);
        for step in 0..8 {
            act(&mut random, &users, &room_id, round * 10 + step).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
        links.cut(alone, false);
        for step in 8..10 {
            act(&mut random, &users, &room_id, round * 10 + step).await;
        }
    }
    links.fail(false);
    let healed = async {
        loop {
            speak_up(&servers, &users, &room_id).await;
            if same(&servers, &users, &room_id).await.is_ok() {
                return;
            }
        }
    };
    if tokio::time::timeout(HEALED, healed).await.is_ok() {
        return nothing_went_back(&servers, &users, &room_id, version).await;
    }
    let outcome = same(&servers, &users, &room_id).await;
    for user in &users {
        println!("--- {} has", user.user_id);
        let path = room(&room_id, "messages?dir=b&limit=1000");
        let page = user.get(&path).await.body;
        for event in page["chunk"].as_array().into_iter().flatten().rev() {
            println!("{event}");
        }
    }
    panic!("seed {seed}, version {version}: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_partition_all_servers_have_the_same_room() {
    for seed in seeds() {
        let version = if seed % 2 == 0 { "11" } else { "12" };
        partition(seed, version).await;
        println!("seed {seed}: the same");
    }
}
