//! Who may see what: every kind of person, in a room of every visibility, through every endpoint that
//! reads rooms.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sotto_tests::{Answer, TestServer, User, escape, room};

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
const NOT_EVENTS: [&str; 6] = [
    "/_matrix/client/v3/joined_rooms",
    "/_matrix/client/v3/publicRooms",
    "/_matrix/client/v3/rooms/{}/aliases",
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
    /// Nothing here: it needs a thing that the rooms of this test do not have, and has its own test.
    Elsewhere,
}

/// What the endpoint shows that has this path; a path that is not here fails the test.
fn shows(path: &str) -> Option<Shows> {
    let rest = path.strip_prefix("/_matrix/client/")?;
    Some(match rest {
        "v3/rooms/{}/event/{}" => Shows::Event,
        "v3/rooms/{}/messages" | "v3/rooms/{}/context/{}" | "v3/rooms/{}/initialSync" => {
            Shows::Timeline
        }
        "v3/rooms/{}/state"
        | "v3/rooms/{}/state/{}"
        | "v3/rooms/{}/state/{}/{}"
        | "v3/rooms/{}/members"
        | "v3/rooms/{}/joined_members" => Shows::State,
        "v3/sync" | "v3/initialSync" | "unstable/org.matrix.simplified_msc3575/sync" => Shows::Own,
        "v1/rooms/{}/relations/{}"
        | "v1/rooms/{}/relations/{}/{}"
        | "v1/rooms/{}/relations/{}/{}/{}"
        | "v1/rooms/{}/threads"
        | "v1/rooms/{}/timestamp_to_event"
        | "v1/rooms/{}/hierarchy"
        | "v1/room_summary/{}"
        | "v3/search"
        | "v3/events"
        | "v3/events/{}"
        | "v3/notifications" => Shows::Elsewhere,
        _ => return None,
    })
}

/// A room in which something was said at each time.
struct Scene {
    room_id: String,
    visibility: &'static str,
    /// The messages.
    ids: Vec<String>,
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

fn may_open(person: &str, visibility: &str) -> bool {
    visibility == "world_readable" || matches!(person, "joined" | "remote" | "left" | "banned")
}

/// What an endpoint must show a person of a room.
fn expected(shows: Shows, person: &str, visibility: &str) -> BTreeSet<&'static str> {
    let open = may_open(person, visibility);
    let gone = matches!(person, "left" | "banned");
    match shows {
        Shows::Event => may_see(person, visibility),
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
        _ => BTreeSet::new(),
    }
}

/// The times that an answer tells of, in events of the kind that matters. What events replaced is not
/// looked at.
fn told(answer: &Value, messages: bool, found: &mut BTreeSet<&'static str>) {
    match answer {
        Value::Array(items) => items.iter().for_each(|item| told(item, messages, found)),
        Value::Object(fields) => {
            let is_message = answer["type"] == "m.room.message";
            for (name, value) in fields.iter().filter(|(name, _)| *name != "unsigned") {
                if let Some(text) = value.as_str().and_then(|text| text.strip_prefix("time ")) {
                    found.extend(TIMES.into_iter().find(|time| *time == text));
                } else if name != "content" || is_message == messages {
                    told(value, messages, found);
                }
            }
        }
        _ => {}
    }
}

/// What an endpoint shows a person of a room.
async fn seen(path: &str, user: &User, scene: &Scene) -> BTreeSet<&'static str> {
    let mut answers = Vec::new();
    let rest = path.rsplit_once("/{}").map_or(path, |(rest, _)| rest);
    match path.trim_start_matches("/_matrix/client/") {
        "v3/rooms/{}/event/{}" | "v3/rooms/{}/context/{}" => {
            for id in &scene.ids {
                let kind = rest.rsplit('/').next().unwrap();
                let path = format!("{kind}/{}?limit=100", escape(id));
                answers.push(user.get(&room(&scene.room_id, &path)).await);
            }
        }
        "v3/rooms/{}/messages" => {
            // Twice: a server that joined later fetches what came before.
            for _ in 0..2 {
                let path = "messages?dir=b&limit=100";
                answers = vec![user.get(&room(&scene.room_id, path)).await];
            }
            let path = "messages?dir=f&limit=100";
            let forwards = user.get(&room(&scene.room_id, path)).await;
            let both = [&answers[0], &forwards].map(|answer| {
                let mut found = BTreeSet::new();
                told(&answer.body, true, &mut found);
                found
            });
            assert_eq!(both[0], both[1]);
        }
        "v3/sync" | "v3/initialSync" => {
            let filter = json!({ "room": { "include_leave": true, "timeline": { "limit": 100 } } });
            let filter = escape(&filter.to_string());
            let mut sync = user.get(&format!("{path}?filter={filter}&limit=100")).await;
            let rooms = ["join", "leave", "invite", "knock"]
                .map(|section| sync.body["rooms"][section][&scene.room_id].clone());
            sync.body = json!(rooms);
            answers.push(sync);
        }
        "unstable/org.matrix.simplified_msc3575/sync" => {
            let list = json!({ "ranges": [[0, 99]], "timeline_limit": 100, "required_state": [] });
            let mut sync = user.post(path, &json!({ "lists": { "all": list } })).await;
            sync.body = sync.body["rooms"][&scene.room_id].clone();
            answers.push(sync);
        }
        "v3/rooms/{}/state/{}" | "v3/rooms/{}/state/{}/{}" => {
            let mut topic = user.get(&room(&scene.room_id, "state/m.room.topic/")).await;
            topic.body = json!({ "content": topic.body });
            answers.push(topic);
        }
        whole => {
            let name = whole.rsplit('/').next().unwrap();
            answers.push(user.get(&room(&scene.room_id, name)).await);
        }
    }
    shown(path, &answers)
}

/// The times that answers tell of.
fn shown(path: &str, answers: &[Answer]) -> BTreeSet<&'static str> {
    let messages = shows(path) != Some(Shows::State);
    let mut found = BTreeSet::new();
    for answer in answers {
        let status = answer.status.as_u16();
        assert!(matches!(status, 200 | 403 | 404), "{path} {status}");
        if status == 200 {
            told(&answer.body, messages, &mut found);
        }
    }
    found
}

async fn say(alice: &User, room_id: &str, time: &str) -> String {
    let text = format!("time {time}");
    let put = |path: String, content: Value| async move {
        alice.put(&room(room_id, &path), &content).await.ok();
    };
    put("state/m.room.topic/".to_owned(), json!({ "topic": text })).await;
    let member = json!({ "membership": "join", "displayname": text });
    put(
        format!("state/m.room.member/{}", escape(&alice.user_id)),
        member,
    )
    .await;
    alice.send(room_id, &text).await
}

/// Makes a room and lets everybody do what they are.
async fn play(alice: &User, people: &[User], visibility: &'static str) -> Scene {
    let setting = json!({ "type": "m.room.history_visibility",
        "content": { "history_visibility": visibility } });
    let body = json!({ "preset": "public_chat", "initial_state": [setting] });
    let room_id = alice.create_room(&body).await;
    let mut ids = vec![say(alice, &room_id, "before").await];
    for user in &people[1..] {
        alice.invite(&room_id, &user.user_id).await.ok();
    }
    ids.push(say(alice, &room_id, "between").await);
    for user in &people[2..] {
        user.join_via(&room_id, "a.test").await.ok();
    }
    ids.push(say(alice, &room_id, "during").await);
    let leave = room(&room_id, "leave");
    for user in [&people[3], &people[5]] {
        user.post(&leave, &json!({})).await.ok();
    }
    let ban = json!({ "user_id": people[4].user_id });
    alice.post(&room(&room_id, "ban"), &ban).await.ok();
    let forget = room(&room_id, "forget");
    people[5].post(&forget, &json!({})).await.ok();
    ids.push(say(alice, &room_id, "after").await);
    // Until the last is there as well.
    people[6]
        .sync_until(&mut None, |sync| {
            let timeline = &sync["rooms"]["join"][&room_id]["timeline"]["events"];
            let mut events = timeline.as_array()?.iter();
            events.find(|event| event["event_id"] == ids[3]).map(|_| ())
        })
        .await;
    Scene {
        room_id,
        visibility,
        ids,
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
            "search",
            "/events",
            "notifications",
        ];
        let read = method == "GET" || path.ends_with("/search") || path.ends_with("/sync");
        let old = path.contains("/r0/") || path.contains("/api/v1/");
        let people = path.contains("user_directory") || path.contains("room_keys");
        let client = path.starts_with("/_matrix/client/");
        let unstable = path.contains("/unstable/") && !path.ends_with("/sync");
        client && read && !old && !people && !unstable && words.iter().any(|w| path.contains(w))
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
            if kind == Shows::Elsewhere {
                continue;
            }
            for (person, user) in PEOPLE.into_iter().zip(&people) {
                let sees = seen(path, user, scene).await;
                let should = expected(kind, person, scene.visibility);
                // What sync shows of the past depends on when the server learned of it; it must not show
                // more than it may.
                let remote = person == "remote" && kind == Shows::Own;
                let fine = if remote {
                    sees.is_subset(&should) && sees.contains("after")
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

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_stops_seeing_when_its_user_is_out() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for visibility in ["shared", "joined"] {
        let setting = json!({ "type": "m.room.history_visibility",
            "content": { "history_visibility": visibility } });
        let body = json!({ "preset": "public_chat", "initial_state": [setting] });
        let room_id = alice.create_room(&body).await;
        bob.join(&room_id).await.ok();
        let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
        let list = json!({ "ranges": [[0, 99]], "timeline_limit": 100, "required_state": [] });
        let list = json!({ "lists": { "all": list } });
        let mut since = bob.sync(None, 0).await["next_batch"].clone();
        let mut pos = bob.post(path, &list).await.ok()["pos"].clone();
        let mut told = String::new();
        let kick = async {
            let kick = json!({ "user_id": bob.user_id });
            alice.post(&room(&room_id, "kick"), &kick).await.ok();
            alice.send(&room_id, "unheard").await;
        };
        let wait = async {
            for _ in 0..3 {
                let sync = bob.sync(since.as_str(), 300).await;
                since = sync["next_batch"].clone();
                let query = format!("{path}?timeout=300&pos={}", escape(pos.as_str().unwrap()));
                let slide = bob.post(&query, &list).await.ok();
                pos = slide["pos"].clone();
                told.push_str(&sync.to_string());
                told.push_str(&slide.to_string());
            }
        };
        tokio::join!(wait, kick);
        assert!(told.contains(&room_id) && told.contains("leave"));
        assert!(!told.contains("unheard"));
    }
}
