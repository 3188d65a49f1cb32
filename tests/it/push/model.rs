//! How much is unread, against a simple model: random people say, read and take back random things.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

/// How many things happen.
const STEPS: usize = 200;
/// After how many of them the server forgets what it knows.
const RESTART_EVERY: usize = 67;

/// Notifications and highlights.
type Counts = (u64, u64);

#[derive(Clone, Debug)]
struct Said {
    id: String,
    by: usize,
    thread: Option<String>,
    mentions: Vec<usize>,
    redacted: bool,
}

/// Up to which event somebody has read: everything, or a thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Whole,
    Main,
    Thread(String),
}

#[derive(Debug, Default)]
struct Model {
    said: Vec<Said>,
    /// By user, kind of receipt and scope: the index of the event.
    read: BTreeMap<(usize, &'static str, Scope), usize>,
}

impl Model {
    /// The main timeline and the threads, counted from the beginning.
    fn counts(&self, user: usize) -> (Counts, BTreeMap<String, Counts>) {
        let mut threads: BTreeMap<Option<String>, Counts> = BTreeMap::new();
        for (index, said) in self.said.iter().enumerate() {
            if said.by == user || said.redacted || self.is_read(user, index, said) {
                continue;
            }
            let counts = threads.entry(said.thread.clone()).or_default();
            counts.0 += 1;
            counts.1 += u64::from(said.mentions.contains(&user));
        }
        let main = threads.remove(&None).unwrap_or_default();
        let threads = threads.into_iter();
        (
            main,
            threads
                .filter_map(|(root, counts)| Some((root?, counts)))
                .collect(),
        )
    }

    fn is_read(&self, user: usize, index: usize, said: &Said) -> bool {
        let of_thread = said.thread.clone().map_or(Scope::Main, Scope::Thread);
        let receipt = ["m.read", "m.read.private"].into_iter().any(|kind| {
            [Scope::Whole, of_thread.clone()].into_iter().any(|scope| {
                let up_to = self.read.get(&(user, kind, scope));
                up_to.is_some_and(|up_to| index <= *up_to)
            })
        });
        // Whoever speaks in a thread has read it up to there.
        let spoke = self.said.iter().skip(index + 1);
        let spoke = spoke
            .filter(|later| later.by == user && !later.redacted)
            .any(|later| later.thread == said.thread);
        receipt || spoke
    }
}

async fn told(user: &User, room_id: &str, since: Option<&str>) -> (Value, Option<Value>) {
    let filter =
        json!({ "room": { "timeline": { "unread_thread_notifications": true, "limit": 1 } } });
    let filter = escape(&filter.to_string());
    let since = since
        .map(|since| format!("&since={since}"))
        .unwrap_or_default();
    let sync = user
        .get(&format!("/_matrix/client/v3/sync?filter={filter}{since}"))
        .await
        .ok();
    let joined = sync["rooms"]["join"].get(room_id).cloned();
    (sync["next_batch"].clone(), joined)
}

fn counts(joined: &Value) -> (Counts, BTreeMap<String, Counts>) {
    let one = |value: &Value| {
        let number = |name: &str| value[name].as_u64().unwrap();
        (number("notification_count"), number("highlight_count"))
    };
    let threads = joined["unread_thread_notifications"].as_object();
    let threads = threads.into_iter().flatten();
    (
        one(&joined["unread_notifications"]),
        threads
            .map(|(root, value)| (root.clone(), one(value)))
            .collect(),
    )
}

/// One thing that happens.
#[expect(clippy::too_many_lines, reason = "a list of what can happen")]
async fn step(random: &mut StdRng, users: &[User], room_id: &str, model: &mut Model, n: usize) {
    let by = random.random_range(0..users.len());
    let user = &users[by];
    match random.random_range(0..10) {
        0..=5 => {
            let roots: Vec<_> = model
                .said
                .iter()
                .filter(|said| said.thread.is_none() && !said.redacted)
                .map(|said| said.id.clone())
                .take(3)
                .collect();
            let pick = random.random_range(0..=roots.len());
            let thread = roots.get(pick).cloned();
            let mentions: Vec<_> = (0..users.len())
                .filter(|_| random.random_bool(0.2))
                .collect();
            let ids: Vec<_> = mentions.iter().map(|user| &users[*user].user_id).collect();
            let mut content = json!({
                "msgtype": "m.text", "body": format!("text {n}"), "m.mentions": { "user_ids": ids },
            });
            if let Some(root) = &thread {
                content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root });
            }
            let sent = user
                .send_event(room_id, "m.room.message", &content)
                .await
                .ok();
            let id = sent["event_id"].as_str().unwrap().to_owned();
            let redacted = false;
            model.said.push(Said {
                id,
                by,
                thread,
                mentions,
                redacted,
            });
        }
        6..=8 if !model.said.is_empty() => {
            let index = random.random_range(0..model.said.len());
            let said = model.said[index].clone();
            let kind = ["m.read", "m.read.private"][random.random_range(0..2)];
            let (scope, body) = match (random.random_bool(0.5), said.thread) {
                (true, _) => (Scope::Whole, json!({})),
                (false, None) => (Scope::Main, json!({ "thread_id": "main" })),
                (false, Some(root)) => (Scope::Thread(root.clone()), json!({ "thread_id": root })),
            };
            let path = room(room_id, &format!("receipt/{kind}/{}", escape(&said.id)));
            user.post(&path, &body).await.ok();
            let up_to = model.read.entry((by, kind, scope)).or_default();
            *up_to = index.max(*up_to);
        }
        9 => {
            // Roots stay: without them nobody knows what is a thread.
            let own = |said: &&mut Said| said.by == by && said.thread.is_some() && !said.redacted;
            if let Some(said) = model.said.iter_mut().rfind(own) {
                let path = room(room_id, &format!("redact/{}/r{n}", escape(&said.id)));
                user.put(&path, &json!({})).await.ok();
                said.redacted = true;
            }
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_on_is_what_is_counted_anew() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = TestServer::start().await;
    let mut users = Vec::new();
    for name in ["ann", "ben", "cat"] {
        users.push(server.register(name).await);
    }
    let room_id = users[0]
        .create_room(&json!({ "preset": "public_chat" }))
        .await;
    for user in &users[1..] {
        user.join(&room_id).await.ok();
    }
    let mut model = Model::default();
    let mut since: Vec<Option<String>> = vec![None; users.len()];
    for n in 0..STEPS {
        step(&mut random, &users, &room_id, &mut model, n).await;
        if n % RESTART_EVERY == RESTART_EVERY - 1 {
            server.restart().await;
        }
        for (index, user) in users.iter().enumerate() {
            let (next, joined) = told(user, &room_id, since[index].as_deref()).await;
            since[index] = next.as_str().map(ToOwned::to_owned);
            // Whoever is told of the room is told the truth.
            if let Some(joined) = joined {
                assert_eq!(
                    counts(&joined),
                    model.counts(index),
                    "seed {seed}, step {n}"
                );
            }
        }
        let (_, joined) = told(&users[n % 3], &room_id, None).await;
        assert_eq!(
            counts(&joined.unwrap()),
            model.counts(n % 3),
            "seed {seed}, step {n}"
        );
    }
}
