//! People on two servers send, join and leave at random, and their devices sync in every way: with gaps,
//! with replies that are lost, repeated, or overtaken. In the end each device of each member has every
//! message of the room, once.
//!
//! `SOTTO_MODEL_OPERATIONS` says how many operations, `SOTTO_MODEL_SEED` which.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const OPERATIONS: usize = 1_000;
const ROOMS: usize = 3;

/// How a device syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `/sync`, with a timeline of so many events.
    Classic(u64),
    /// Sliding sync, with a timeline of so many events.
    Sliding(u64),
}

/// What a device has of a room.
#[derive(Debug, Default)]
struct Seen {
    /// The messages, each by its id.
    messages: BTreeSet<String>,
    /// All events, to know where what it has begins.
    events: BTreeSet<String>,
}

#[derive(Debug)]
struct Device {
    user: User,
    person: usize,
    way: Way,
    token: Option<String>,
    rooms: BTreeMap<String, Seen>,
}

/// A piece of a timeline, as both ways of syncing give it.
struct Piece {
    room_id: String,
    events: Vec<Value>,
    limited: bool,
    prev_batch: Option<String>,
    /// Whether the room begins here for the device.
    fresh: bool,
}

impl Device {
    async fn ask(&self, wide: bool) -> Value {
        match self.way {
            Way::Classic(limit) => {
                let filter = json!({ "room": { "timeline": { "limit": limit } } });
                let since = self.token.as_ref().map(|token| format!("&since={token}"));
                let path = format!(
                    "/_matrix/client/v3/sync?timeout=0&filter={}{}",
                    escape(&filter.to_string()),
                    since.unwrap_or_default()
                );
                self.user.get(&path).await.ok()
            }
            Way::Sliding(limit) => {
                let ranges = if wide {
                    json!([[0, ROOMS]])
                } else {
                    json!([[0, 0]])
                };
                let list = json!({ "ranges": ranges, "timeline_limit": limit,
                    "required_state": [["m.room.member", "$LAZY"]] });
                let pos = self
                    .token
                    .as_ref()
                    .map(|pos| format!("&pos={}", escape(pos)));
                let path = format!("{SLIDING}?timeout=0{}", pos.unwrap_or_default());
                let body = json!({ "lists": { "all": list } });
                let answer = self.user.post(&path, &body).await;
                if answer.body["errcode"] == "M_UNKNOWN_POS" {
                    return Value::Null;
                }
                answer.ok()
            }
        }
    }

    /// The pieces of timelines in an answer, and the next token.
    fn pieces(&self, answer: &Value) -> (Option<String>, Vec<Piece>) {
        let classic = matches!(self.way, Way::Classic(_));
        let (token, rooms) = if classic {
            ("next_batch", &answer["rooms"]["join"])
        } else {
            ("pos", &answer["rooms"])
        };
        let mut pieces = Vec::new();
        for (room_id, told) in rooms.as_object().into_iter().flatten() {
            let timeline = if classic { &told["timeline"] } else { told };
            let events = &timeline[if classic { "events" } else { "timeline" }];
            let events = events.as_array().cloned().unwrap_or_default();
            // One who comes back begins anew.
            let joins = events.iter().any(|event| {
                event["state_key"] == self.user.user_id.as_str()
                    && event["content"]["membership"] == "join"
                    && event["unsigned"]["prev_content"]["membership"] != "join"
            });
            pieces.push(Piece {
                room_id: room_id.clone(),
                limited: timeline["limited"] == true,
                prev_batch: timeline["prev_batch"].as_str().map(ToOwned::to_owned),
                fresh: joins || told["initial"] == true || self.token.is_none(),
                events,
            });
        }
        (answer[token].as_str().map(ToOwned::to_owned), pieces)
    }

    /// Takes an answer in.
    async fn take(&mut self, answer: &Value, trace: &str) {
        if answer.is_null() {
            self.token = None;
            self.rooms.clear();
            return;
        }
        let (token, pieces) = self.pieces(answer);
        assert!(token.is_some(), "{trace}: no token");
        for piece in pieces {
            let name = format!(
                "{trace}: {} {:?} {}",
                self.user.user_id, self.way, piece.room_id
            );
            let seen = self.rooms.entry(piece.room_id.clone()).or_default();
            if piece.fresh {
                *seen = Seen::default();
            }
            let before = seen.events.clone();
            for event in &piece.events {
                assert!(seen.add(event), "{name}: {event} came twice");
            }
            if !piece.limited && !piece.fresh {
                continue;
            }
            // The gap, up to what the device has.
            let mut from = piece.prev_batch.clone();
            'gap: while let Some(token) = from {
                let path = format!("messages?dir=b&limit=7&from={token}");
                let page = self.user.get(&room(&piece.room_id, &path)).await;
                if page.status.as_u16() == 403 {
                    break;
                }
                let page = page.ok();
                for event in page["chunk"].as_array().unwrap() {
                    if before.contains(event["event_id"].as_str().unwrap()) {
                        break 'gap;
                    }
                    assert!(seen.add(event), "{name}: {event} came again in a page");
                }
                from = page["end"].as_str().map(ToOwned::to_owned);
            }
        }
        self.token = token;
    }

    /// Syncs; replies are lost, doubled or overtaken as `fate` says.
    async fn sync(&mut self, fate: u32, wide: bool, trace: &str) {
        match fate {
            0 => drop(self.ask(wide).await),
            1 => {
                let (first, second) = tokio::join!(self.ask(wide), self.ask(!wide));
                let answer = if wide { first } else { second };
                self.take(&answer, trace).await;
            }
            _ => {
                let answer = self.ask(wide).await;
                self.take(&answer, trace).await;
            }
        }
    }
}

impl Seen {
    /// Adds an event; whether it is new.
    fn add(&mut self, event: &Value) -> bool {
        let id = event["event_id"].as_str().unwrap().to_owned();
        if event["type"] == "m.room.message" {
            self.messages.insert(id.clone());
        }
        self.events.insert(id)
    }
}

/// What is true.
struct World {
    people: Vec<User>,
    /// The rooms, each with its messages and its members.
    rooms: Vec<(String, BTreeSet<String>, BTreeSet<usize>)>,
}

impl World {
    /// Does something at random; what.
    async fn act(&mut self, random: &mut StdRng) -> String {
        let person = random.random_range(0..self.people.len());
        let at = random.random_range(0..self.rooms.len());
        let user = &self.people[person];
        let (room_id, messages, members) = &mut self.rooms[at];
        let joined = members.contains(&person);
        match random.random_range(0..20) {
            0 if joined => {
                // Somebody of each server stays, and who made the room does.
                let neighbor = person ^ 1;
                if person == 0 || !members.contains(&neighbor) {
                    return String::new();
                }
                user.post(&room(room_id, "leave"), &json!({})).await.ok();
                members.remove(&person);
                format!("{person} leaves {at}")
            }
            1 | 2 if !joined => {
                let answer = user.join_via(room_id, "a.test").await;
                if answer.status.is_success() {
                    members.insert(person);
                }
                format!("{person} joins {at}: {}", answer.status)
            }
            3 if joined => {
                let topic = json!({ "topic": format!("{}", random.random_range(0..1_000)) });
                let path = room(room_id, &format!("state/org.example.topic/{person}"));
                user.put(&path, &topic).await.ok();
                format!("{person} sets state in {at}")
            }
            4..20 if joined => {
                let count = random.random_range(1..4);
                for _ in 0..count {
                    // Some are in threads of what others said.
                    let at = random.random_range(0..4 * messages.len().max(1));
                    let sent = match messages.iter().nth(at) {
                        Some(root) => reply(user, room_id, root).await,
                        None => user.send(room_id, "a message").await,
                    };
                    messages.insert(sent);
                }
                format!("{person} sends {count} to {at}")
            }
            _ => String::new(),
        }
    }
}

/// Says something in a thread; its id.
async fn reply(user: &User, room_id: &str, root: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "a reply", "m.relates_to": relation });
    let sent = user.send_event(room_id, "m.room.message", &content).await;
    sent.ok()["event_id"].as_str().unwrap().to_owned()
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_reaches_every_device_once() {
    let operations = setting("SOTTO_MODEL_OPERATIONS").unwrap_or(OPERATIONS);
    let seed = setting("SOTTO_MODEL_SEED").unwrap_or_else(rand::random::<u64>);
    println!("SOTTO_MODEL_SEED={seed} SOTTO_MODEL_OPERATIONS={operations}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut a, mut b) = TestServer::pair().await;
    let mut world = World {
        people: Vec::new(),
        rooms: Vec::new(),
    };
    let mut devices = Vec::new();
    for (person, (server, name)) in [(&a, "alice"), (&a, "bob"), (&b, "carol"), (&b, "dave")]
        .into_iter()
        .enumerate()
    {
        let user = server.register(name).await;
        for way in [
            Way::Classic(2),
            Way::Classic(8),
            Way::Sliding(1),
            Way::Sliding(6),
        ] {
            devices.push(Device {
                user: server.log_in(name).await,
                person,
                way,
                token: None,
                rooms: BTreeMap::new(),
            });
        }
        world.people.push(user);
    }
    for _ in 0..ROOMS {
        let levels = json!({ "state_default": 0 });
        let body = json!({ "preset": "public_chat", "power_level_content_override": levels });
        let room_id = world.people[0].create_room(&body).await;
        world
            .rooms
            .push((room_id, BTreeSet::new(), BTreeSet::from([0])));
    }
    for operation in 0..operations {
        if operation > 0 && operation % (operations / 4 + 1) == 0 {
            std::mem::swap(&mut a, &mut b);
            a.restart().await;
        }
        let at = random.random_range(0..devices.len());
        let (fate, wide) = (random.random_range(0..8), random.random());
        let trace = format!("seed {seed}, operation {operation}");
        let device = &mut devices[at];
        let ((), done) = tokio::join!(device.sync(fate, wide, &trace), world.act(&mut random));
        if !done.is_empty() {
            println!("{operation}: {done}");
        }
    }
    check(&world, &mut devices, &format!("seed {seed}, at the end")).await;
}

/// Lets all devices catch up, and compares them with what is true.
async fn check(world: &World, devices: &mut [Device], trace: &str) {
    for device in devices {
        let mut missing = Vec::new();
        // Servers take a while to tell each other.
        for _ in 0..300 {
            device.sync(9, true, trace).await;
            let mine = world
                .rooms
                .iter()
                .filter(|room| room.2.contains(&device.person));
            missing = mine
                .filter_map(|(room_id, messages, _)| {
                    let empty = Seen::default();
                    let seen = device.rooms.get(room_id).unwrap_or(&empty);
                    let lost: Vec<_> = messages.difference(&seen.messages).cloned().collect();
                    (!lost.is_empty()).then(|| (room_id.clone(), lost))
                })
                .collect();
            if missing.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let (user, way) = (&device.user.user_id, device.way);
        assert!(
            missing.is_empty(),
            "{trace}: {user} {way:?} lacks {missing:?}"
        );
    }
}
