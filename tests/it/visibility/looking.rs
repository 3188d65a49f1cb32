//! How each endpoint is asked what it shows of a room.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sotto_tests::{Answer, User, escape, room};

use super::{Scene, Shows, TIMES, canonical, shows};

/// What an endpoint shows a person of a room.
pub(super) async fn seen(path: &str, user: &User, scene: &Scene) -> BTreeSet<&'static str> {
    let room_id = &scene.room_id;
    let ask = async |rest: &[&str], query: &str| {
        let parts = [&[room_id.as_str()], rest].concat();
        user.get(&format!("{}?{query}", filled(path, &parts))).await
    };
    let mut answers = Vec::new();
    match canonical(path).as_str() {
        "v3/rooms/{}/messages" => return pages(user, scene).await,
        "v1/rooms/{}/timestamp_to_event" => return at_times(path, user, scene).await,
        "v3/rooms/{}/event/{}"
        | "v3/rooms/{}/context/{}"
        | "v1/rooms/{}/relations/{}"
        | "v1/rooms/{}/relations/{}/{}"
        | "v1/rooms/{}/relations/{}/{}/{}" => {
            for id in &scene.ids {
                let rest = [id, "m.thread", "m.room.message"];
                answers.push(ask(&rest, "limit=100").await);
            }
        }
        "v3/events/{}" => {
            for id in &scene.ids {
                answers.push(user.get(&filled(path, &[id])).await);
            }
        }
        "v3/events" => {
            let query = format!("from=s0&timeout=0&room_id={}", escape(room_id));
            answers.push(ask(&[], &query).await);
        }
        "v3/notifications" => {
            let mut list = ask(&[], "limit=500").await;
            let notices = list.body["notifications"].as_array_mut().unwrap();
            notices.retain(|notice| notice["room_id"] == room_id.as_str());
            answers.push(list);
        }
        "v3/search" => {
            let events = json!({ "search_term": "time", "order_by": "recent",
                "filter": { "rooms": [room_id], "limit": 100 } });
            let body = json!({ "search_categories": { "room_events": events } });
            answers.push(user.post(path, &body).await);
        }
        "v3/sync" | "v3/initialSync" | "unstable/org.matrix.simplified_msc3575/sync" => {
            answers.push(synced(path, user, room_id).await);
        }
        "v3/rooms/{}/state/{}" | "v3/rooms/{}/state/{}/" | "v3/rooms/{}/state/{}/{}" => {
            let mut topic = ask(&["m.room.topic", ""], "").await;
            topic.body = json!({ "content": topic.body });
            answers.push(topic);
        }
        _ => answers.push(ask(&[], "limit=100").await),
    }
    let mut found = BTreeSet::new();
    for answer in &answers {
        found.extend(shown(path, answer));
    }
    found
}

/// What a first sync says of a room.
async fn synced(path: &str, user: &User, room_id: &str) -> Answer {
    if path.ends_with("simplified_msc3575/sync") {
        let list = json!({ "ranges": [[0, 99]], "timeline_limit": 100, "required_state": [] });
        let mut sync = user.post(path, &json!({ "lists": { "all": list } })).await;
        sync.body = sync.body["rooms"][room_id].clone();
        return sync;
    }
    let filter = json!({ "room": { "include_leave": true, "timeline": { "limit": 100 } } });
    let filter = escape(&filter.to_string());
    let path = format!("{path}?filter={filter}&limit=100&archived=true");
    let mut sync = user.get(&path).await;
    let rooms = ["join", "leave", "invite", "knock"]
        .map(|section| sync.body["rooms"][section][room_id].clone());
    let old = sync.body["rooms"].as_array().into_iter().flatten();
    let old: Vec<_> = old.filter(|room| room["room_id"] == room_id).collect();
    sync.body = json!([rooms, old]);
    sync
}

/// A path with its parameters.
fn filled(path: &str, parts: &[&str]) -> String {
    let mut parts = parts.iter();
    let mut pieces = path.split("{}");
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        filled.push_str(&escape(parts.next().unwrap()));
        filled.push_str(piece);
    }
    filled
}

/// What the pages of a room show, the same in both directions.
async fn pages(user: &User, scene: &Scene) -> BTreeSet<&'static str> {
    // Twice: a server that joined later fetches what came before.
    user.get(&room(&scene.room_id, "messages?dir=b&limit=100"))
        .await;
    let mut both = Vec::new();
    for direction in ["b", "f"] {
        let path = format!("messages?dir={direction}&limit=100");
        let answer = user.get(&room(&scene.room_id, &path)).await;
        both.push(shown("messages", &answer));
    }
    assert_eq!(both[0], both[1]);
    both.remove(0)
}

/// The times of the events that are found from when each message was sent, in both directions.
async fn at_times(path: &str, user: &User, scene: &Scene) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    for stamp in &scene.stamps {
        for direction in ["b", "f"] {
            let asked = filled(path, &[&scene.room_id]);
            let answer = user
                .get(&format!("{asked}?ts={stamp}&dir={direction}"))
                .await;
            shown(path, &answer);
            let id = answer.body["event_id"].as_str();
            let told = scene
                .said
                .iter()
                .filter(|(_, ids)| ids.iter().any(|known| Some(known.as_str()) == id));
            found.extend(told.map(|(time, _)| *time));
        }
    }
    found
}

/// The times that an answer tells of.
fn shown(path: &str, answer: &Answer) -> BTreeSet<&'static str> {
    let messages = shows(path) != Some(Shows::State);
    let mut found = BTreeSet::new();
    let status = answer.status.as_u16();
    assert!(
        matches!(status, 200 | 403 | 404),
        "{path} {status} {:?}",
        answer.body
    );
    if status == 200 {
        told(&answer.body, messages, &mut found);
    }
    found
}

/// The times that an answer tells of, in events of the kind that matters. What events replaced is not
/// looked at.
fn told(answer: &Value, messages: bool, found: &mut BTreeSet<&'static str>) {
    match answer {
        Value::Array(items) => items.iter().for_each(|item| told(item, messages, found)),
        Value::Object(fields) => {
            let is_message = answer["type"] == "m.room.message";
            for (name, value) in fields {
                if let Some(text) = value.as_str().and_then(|text| text.strip_prefix("time ")) {
                    found.extend(TIMES.into_iter().find(|time| *time == text));
                } else if name == "unsigned" {
                    told(&value["m.relations"], messages, found);
                } else if name != "prev_content" && (name != "content" || is_message == messages) {
                    told(value, messages, found);
                }
            }
        }
        _ => {}
    }
}
