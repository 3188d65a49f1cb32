//! Who may see what: every kind of person, in a room of every visibility, through every endpoint that
//! reads rooms.

mod looking;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

use self::looking::seen;

const VISIBILITIES: [&str; 4] = ["world_readable", "shared", "invited", "joined"];
/// When something is said: before the people are invited, before they join, before some of them leave,
/// and after that.
const TIMES: [&str; 4] = ["before", "between", "during", "after"];
/// What the person is to the room.
const PEOPLE: [&str; 7] = [
    "never",
    "invited",
    "joined",
    "left",
    "banned",
    "forgotten",
    "remote",
];

/// Endpoints that show no event of a room to those who could not see it, by their nature: they are about
/// the requester's own things, or tell what is public.
const NOT_EVENTS: [&str; 8] = [
    "/_matrix/client/v3/joined_rooms",
    "/_matrix/client/v3/publicRooms",
    "/_matrix/client/v3/rooms/{}/aliases",
    "/_matrix/client/unstable/org.matrix.msc2432/rooms/{}/aliases",
    "/_matrix/client/unstable/io.element.msc4306/rooms/{}/thread/{}/subscription",
    "/_matrix/client/v3/user/{}/rooms/{}/account_data/{}",
    "/_matrix/client/v3/user/{}/rooms/{}/tags",
    "/_matrix/client/v1/mutual_rooms",
];

/// What an endpoint shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// One event for each request.
    Event,
    /// Events of a room that one can read.
    Timeline,
    /// The state of a room that one can read, as it is, or as it was when one left.
    State,
    /// Only rooms that one is or was in.
    Own,
    /// What a room says about itself, to those who may join it.
    Summary,
    /// What was said since one joined a room.
    Notices,
    /// What one may see, of the rooms that one is in and maybe of others.
    Found,
}

/// A path without what it had before it was part of the specification.
fn canonical(path: &str) -> String {
    let rest = path.trim_start_matches("/_matrix/client/");
    let version = |rest: &str| format!("v1/{rest}");
    let Some(unstable) = rest.strip_prefix("unstable/") else {
        return rest.to_owned();
    };
    match unstable.split_once('/') {
        Some(("rooms", _)) => version(unstable),
        Some(("im.nheko.summary", _)) => "v1/room_summary/{}".to_owned(),
        Some(("org.matrix.msc2946" | "org.matrix.msc3030" | "org.matrix.msc3856", rest)) => {
            version(rest)
        }
        _ => rest.to_owned(),
    }
}

/// What the endpoint shows that has this path; a path that is not here fails the test.
fn shows(path: &str) -> Option<Shows> {
    Some(match canonical(path).as_str() {
        "v3/rooms/{}/event/{}" | "v3/events/{}" => Shows::Event,
        "v3/rooms/{}/messages"
        | "v3/rooms/{}/context/{}"
        | "v3/rooms/{}/initialSync"
        | "v3/events"
        | "v1/rooms/{}/relations/{}"
        | "v1/rooms/{}/relations/{}/{}"
        | "v1/rooms/{}/relations/{}/{}/{}"
        | "v1/rooms/{}/threads"
        | "v1/rooms/{}/timestamp_to_event" => Shows::Timeline,
        "v3/rooms/{}/state"
        | "v3/rooms/{}/state/{}"
        | "v3/rooms/{}/state/{}/"
        | "v3/rooms/{}/state/{}/{}"
        | "v3/rooms/{}/members"
        | "v3/rooms/{}/joined_members" => Shows::State,
        "v3/sync" | "v3/initialSync" | "unstable/org.matrix.simplified_msc3575/sync" => Shows::Own,
        "v1/rooms/{}/hierarchy" | "v1/room_summary/{}" => Shows::Summary,
        "v3/notifications" => Shows::Notices,
        "v3/search" => Shows::Found,
        _ => return None,
    })
}

/// A room in which something was said at each time.
struct Scene {
    room_id: String,
    visibility: &'static str,
    /// The messages of each time that begin threads, and when they were sent.
    ids: Vec<String>,
    stamps: Vec<u64>,
    /// All events of each time.
    said: BTreeMap<&'static str, Vec<String>>,
}

/// Which messages a person may see.
fn may_see(person: &str, visibility: &str) -> BTreeSet<&'static str> {
    let from = match visibility {
        "world_readable" => return TIMES.into(),
        "shared" => "before",
        "invited" => "between",
        _ => "during",
    };
    let to = match person {
        "joined" | "remote" => "after",
        "left" | "banned" => "during",
        // An invite shows events one by one, but opens no room.
        "invited" if visibility == "invited" => "after",
        _ => return BTreeSet::new(),
    };
    let times = TIMES.into_iter().skip_while(|time| *time != from);
    let mut seen: BTreeSet<_> = times.collect();
    if to == "during" {
        seen.remove("after");
    }
    seen
}

/// Whoever is banned has nothing more to do with a room that is not open to the world.
fn may_open(person: &str, visibility: &str) -> bool {
    visibility == "world_readable" || matches!(person, "joined" | "remote" | "left")
}

/// What an endpoint must show a person of a room.
fn expected(shows: Shows, person: &str, visibility: &str) -> BTreeSet<&'static str> {
    let open = may_open(person, visibility);
    let gone = matches!(person, "left" | "banned");
    match shows {
        Shows::Event | Shows::Found => may_see(person, visibility),
        Shows::Timeline if open => may_see(person, visibility),
        Shows::State if open && gone && visibility != "world_readable" => ["during"].into(),
        Shows::State if open => ["after"].into(),
        Shows::Own if matches!(person, "never" | "invited" | "forgotten") => BTreeSet::new(),
        Shows::Own => {
            let mut seen = may_see(person, visibility);
            if gone {
                seen.remove("after");
            }
            seen
        }
        Shows::Summary if person == "banned" => BTreeSet::new(),
        Shows::Summary if visibility == "world_readable" => ["after"].into(),
        Shows::Summary if matches!(person, "invited" | "joined" | "remote") => ["after"].into(),
        Shows::Notices if matches!(person, "joined" | "remote") => ["during", "after"].into(),
        Shows::Timeline | Shows::State | Shows::Summary | Shows::Notices => BTreeSet::new(),
    }
}

/// Says something, and something in a thread of it and in that of the first message. The first of the ids is
/// that of what was said.
async fn say(alice: &User, room_id: &str, time: &str, first: Option<&String>) -> Vec<String> {
    let text = format!("time {time}");
    let id = |answer: &Value| answer["event_id"].as_str().unwrap().to_owned();
    let put = |path: String, content: Value| async move {
        alice.put(&room(room_id, &path), &content).await.ok()
    };
    let topic = put("state/m.room.topic/".to_owned(), json!({ "topic": text })).await;
    let member = json!({ "membership": "join", "displayname": text });
    let path = format!("state/m.room.member/{}", escape(&alice.user_id));
    let member = put(path, member).await;
    let message = alice.send(room_id, &text).await;
    let mut ids = vec![message.clone(), id(&topic), id(&member)];
    for root in [Some(&message), first].into_iter().flatten() {
        let relation = json!({ "rel_type": "m.thread", "event_id": root });
        let content = json!({ "msgtype": "m.text", "body": text, "m.relates_to": relation });
        let sent = alice.send_event(room_id, "m.room.message", &content).await;
        ids.push(id(&sent.ok()));
    }
    ids
}

/// Makes a room and lets everybody do what they are.
async fn play(alice: &User, people: &[User], visibility: &'static str) -> Scene {
    let setting = json!({ "type": "m.room.history_visibility",
        "content": { "history_visibility": visibility } });
    let body = json!({ "preset": "private_chat", "initial_state": [setting] });
    let room_id = alice.create_room(&body).await;
    let before = say(alice, &room_id, "before", None).await;
    let first = before.first().cloned();
    let mut said = BTreeMap::from([("before", before)]);
    let mut say = async |time| {
        let ids = say(alice, &room_id, time, first.as_ref()).await;
        said.insert(time, ids);
    };
    for user in &people[1..] {
        alice.invite(&room_id, &user.user_id).await.ok();
    }
    say("between").await;
    for user in &people[2..] {
        user.join_via(&room_id, "a.test").await.ok();
    }
    say("during").await;
    let leave = room(&room_id, "leave");
    for user in [&people[3], &people[5]] {
        user.post(&leave, &json!({})).await.ok();
    }
    let ban = json!({ "user_id": people[4].user_id });
    alice.post(&room(&room_id, "ban"), &ban).await.ok();
    let forget = room(&room_id, "forget");
    people[5].post(&forget, &json!({})).await.ok();
    say("after").await;
    let ids = TIMES.map(|time| said[time][0].clone()).to_vec();
    let last = said["after"].last().cloned();
    let mut stamps = Vec::new();
    for id in &ids {
        let event = room(&room_id, &format!("event/{}", escape(id)));
        let event = alice.get(&event).await.ok();
        stamps.push(event["origin_server_ts"].as_u64().unwrap());
    }
    // Until the last is there as well.
    people[6]
        .sync_until(&mut None, |sync| {
            let timeline = &sync["rooms"]["join"][&room_id]["timeline"]["events"];
            let mut events = timeline.as_array()?.iter();
            events.find(|event| event["event_id"].as_str() == last.as_deref())?;
            Some(())
        })
        .await;
    Scene {
        room_id,
        visibility,
        ids,
        stamps,
        said,
    }
}

/// The endpoints that show clients something of rooms.
fn reading() -> BTreeSet<String> {
    let nameless = |path: &str| {
        let parts = path.split('/');
        let parts = parts.map(|part| if part.starts_with('{') { "{}" } else { part });
        parts.collect::<Vec<_>>().join("/")
    };
    let endpoints = sotto_homeserver::endpoints().into_iter();
    let endpoints = endpoints.map(|(method, path)| (method, nameless(&path)));
    let reads = endpoints.filter(|(method, path)| {
        let words = [
            "rooms",
            "room_",
            "sync",
            "Sync",
            "summary",
            "search",
            "/events",
            "notifications",
        ];
        let read = method == "GET"
            || method == "*"
            || path.ends_with("/search")
            || path.ends_with("/sync");
        let old = path.contains("/r0/") || path.contains("/api/v1/");
        let people = path.contains("user_directory") || path.contains("room_keys");
        let client = path.starts_with("/_matrix/client/");
        client && read && !old && !people && words.iter().any(|w| path.contains(w))
    });
    reads
        .map(|(_, path)| path)
        .filter(|path| !NOT_EVENTS.contains(&path.as_str()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_what_they_may_and_nothing_else() {
    let (a, b) = TestServer::pair().await;
    let alice = a.register("alice").await;
    let mut people = Vec::new();
    for person in PEOPLE {
        let server = if person == "remote" { &b } else { &a };
        people.push(server.register(person).await);
    }
    let mut scenes = Vec::new();
    for visibility in VISIBILITIES {
        scenes.push(play(&alice, &people, visibility).await);
    }
    let endpoints = reading();
    let unknown: Vec<_> = endpoints.iter().filter(|p| shows(p).is_none()).collect();
    assert!(
        unknown.is_empty(),
        "say in this matrix what these show to whom: {unknown:?}"
    );
    let mut wrong = Vec::new();
    for scene in &scenes {
        // What came before is fetched by the first page of messages.
        let backfill = room(&scene.room_id, "messages?dir=b&limit=100");
        people[6].get(&backfill).await.ok();
        for path in &endpoints {
            let kind = shows(path).unwrap();
            for (person, user) in PEOPLE.into_iter().zip(&people) {
                let sees = seen(path, user, scene).await;
                let should = expected(kind, person, scene.visibility);
                // What sync shows of the past depends on when the server learned of it; it must not show
                // more than it may.
                let news = kind == Shows::Own || path.ends_with("v3/events");
                let fine = if kind == Shows::Found && person != "joined" {
                    sees.is_subset(&should)
                } else if person == "remote" && news {
                    sees.is_subset(&should) && sees.contains("after")
                } else if kind == Shows::Own
                    && scene.visibility == "world_readable"
                    && matches!(person, "left" | "banned")
                {
                    // What is bundled with a thread may be of after one left, as everybody may read it.
                    let mut with_bundles = should.clone();
                    with_bundles.extend(may_see(person, scene.visibility));
                    should.is_subset(&sees) && sees.is_subset(&with_bundles)
                        || path.contains("simplified") && sees.is_subset(&should)
                } else if kind == Shows::Own && path.contains("simplified") && person != "joined" {
                    // Rooms that were left are not in lists.
                    sees.is_subset(&should)
                } else {
                    sees == should
                };
                if !fine {
                    let visibility = scene.visibility;
                    wrong.push(format!(
                        "{visibility} {person} {path}: {sees:?}, not {should:?}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// Somebody with a request of each kind that waits.
struct Waiting {
    user: User,
    since: String,
    pos: String,
    told: String,
}

impl Waiting {
    async fn new(user: &User) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            user: user.clone(),
            since: text(&user.sync(None, 0).await["next_batch"]),
            pos: text(&user.post(SLIDING, &Self::lists()).await.ok()["pos"]),
            told: String::new(),
        }
    }

    fn lists() -> Value {
        let list = json!({ "ranges": [[0, 99]], "timeline_limit": 100, "required_state": [] });
        json!({ "lists": { "all": list } })
    }

    /// Waits a few times in each way.
    async fn wait(&mut self) {
        for _ in 0..3 {
            let events = format!(
                "/_matrix/client/v3/events?timeout=300&from={}",
                escape(&self.since)
            );
            let path = format!("{SLIDING}?timeout=300&pos={}", escape(&self.pos));
            let lists = Self::lists();
            let (sync, slide, events) = tokio::join!(
                self.user.sync(Some(&self.since), 300),
                self.user.post(&path, &lists),
                self.user.get(&events),
            );
            let (slide, events) = (slide.ok(), events.ok());
            for (token, answer, name) in [
                (&mut self.since, &sync, "next_batch"),
                (&mut self.pos, &slide, "pos"),
            ] {
                answer[name].as_str().unwrap().clone_into(token);
            }
            self.told
                .extend([sync, slide, events].map(|answer| answer.to_string()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_stops_seeing_when_its_user_is_out() {
    let (a, b) = TestServer::pair().await;
    let alice = a.register("alice").await;
    let people = [a.register("bob").await, b.register("carol").await];
    for (visibility, how) in [("shared", "kick"), ("joined", "ban"), ("shared", "leave")] {
        let setting = json!({ "type": "m.room.history_visibility",
            "content": { "history_visibility": visibility } });
        let body = json!({ "preset": "public_chat", "initial_state": [setting] });
        let room_id = alice.create_room(&body).await;
        for user in &people {
            user.join_via(&room_id, "a.test").await.ok();
            let mut waiting = Waiting::new(user).await;
            let end = async {
                let path = room(&room_id, how);
                if how == "leave" {
                    user.post(&path, &json!({})).await.ok();
                } else {
                    let whom = json!({ "user_id": user.user_id });
                    alice.post(&path, &whom).await.ok();
                }
                alice.send(&room_id, "unheard").await;
            };
            tokio::join!(waiting.wait(), end);
            // The other server may take longer to be told.
            for _ in 0..20 {
                if waiting.told.contains("leave") || waiting.told.contains("ban") {
                    break;
                }
                waiting.wait().await;
            }
            let told = &waiting.told;
            assert!(told.contains(&room_id), "{how}: {told}");
            assert!(!told.contains("unheard"), "{how}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_begins_to_see_when_its_user_comes_in() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for visibility in ["shared", "invited", "joined"] {
        let setting = json!({ "type": "m.room.history_visibility",
            "content": { "history_visibility": visibility } });
        let body = json!({ "preset": "private_chat", "initial_state": [setting] });
        let room_id = alice.create_room(&body).await;
        let mut waiting = Waiting::new(&bob).await;
        let come = async {
            alice.send(&room_id, "before").await;
            alice.invite(&room_id, &bob.user_id).await.ok();
            alice.send(&room_id, "between").await;
            bob.join(&room_id).await.ok();
            alice.send(&room_id, "during").await;
        };
        tokio::join!(waiting.wait(), come);
        waiting.wait().await;
        let told = |text| waiting.told.contains(&format!("\"body\":\"{text}\""));
        assert!(told("during"), "{visibility}: {}", waiting.told);
        assert_eq!(told("between"), visibility != "joined", "{visibility}");
        assert_eq!(told("before"), visibility == "shared", "{visibility}");
    }
}
