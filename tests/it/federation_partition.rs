//! Servers that lose each other, and end with the same room.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use sotto_tests::{Links, Setup, TestServer, User, escape, room};
use sqlx::{AnyConnection, Connection};

/// How many seeds are tried, and the first of them.
const SEEDS: &str = "SOTTO_PARTITION_SEEDS";
const FIRST: &str = "SOTTO_PARTITION_FIRST";

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

/// The events that a server has and does not show: they came too late, when their senders were no longer
/// allowed to send them. Other servers, which had them in time, show them.
async fn soft_failed(server: &TestServer) -> BTreeSet<String> {
    sqlx::any::install_default_drivers();
    let connection = AnyConnection::connect(&server.database_url()).await;
    let found = sqlx::query_scalar("SELECT event_id FROM events WHERE verdict = 1");
    let found: Vec<String> = found.fetch_all(&mut connection.unwrap()).await.unwrap();
    found.into_iter().collect()
}

/// Whether all who are in the room have the same of it; what differs if not.
async fn same(servers: &[TestServer], users: &[User], room_id: &str) -> Result<(), String> {
    let first = state(&users[0], room_id).await;
    let all = events(&users[0], room_id).await;
    let hidden = soft_failed(&servers[0]).await;
    for (server, user) in servers.iter().zip(users).skip(1) {
        let member = ("m.room.member".to_owned(), user.user_id.clone());
        let Some(membership) = first.get(&member) else {
            continue;
        };
        let path = room(room_id, &format!("event/{}", escape(membership)));
        let event = users[0].get(&path).await.body;
        if event["content"]["membership"] != "join" {
            // Who is not in the room hears nothing of it.
            continue;
        }
        let theirs = state(user, room_id).await;
        if theirs != first {
            let differs = first
                .iter()
                .filter(|(key, id)| theirs.get(*key) != Some(id));
            return Err(format!(
                "{} has another state: {:?}",
                user.user_id,
                differs.collect::<Vec<_>>()
            ));
        }
        let theirs = events(user, room_id).await;
        let mut hidden = hidden.clone();
        hidden.extend(soft_failed(server).await);
        let differs = all.symmetric_difference(&theirs);
        let differs: Vec<_> = differs.filter(|id| !hidden.contains(*id)).collect();
        if !differs.is_empty() {
            return Err(format!("{} has other events: {differs:?}", user.user_id));
        }
    }
    Ok(())
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
    let mut outcome = Ok(());
    for _ in 0..30 {
        // What one server soft-failed and another did not is settled by what comes after it: a room that is
        // the same everywhere is one in which people go on talking.
        for user in &users {
            let content = json!({ "msgtype": "m.text", "body": "still there?" });
            user.send_event(&room_id, "m.room.message", &content).await;
        }
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            outcome = same(&servers, &users, &room_id).await;
            if outcome.is_ok() {
                return;
            }
        }
    }
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
