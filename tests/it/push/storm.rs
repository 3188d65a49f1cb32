//! What a gateway is told while many speak in many rooms at once, it comes and goes, and the server restarts.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use sotto_tests::{Gateway, TestServer, User, escape, room};

use super::pushers::{set, start};

/// How much everybody says before the server restarts, and again after it.
const EACH: usize = 35;

/// Three who speak in three rooms. The last room is muted, and so is the last of them.
struct Scene {
    rooms: Vec<String>,
    speakers: Vec<User>,
}

/// Something that was said.
struct Said {
    id: String,
    room: usize,
    is_told: bool,
}

impl Scene {
    async fn set(server: &TestServer, alice: &User) -> Self {
        let mut speakers = Vec::new();
        for name in ["bob", "carol", "dave"] {
            speakers.push(server.register(name).await);
        }
        let mut rooms = Vec::new();
        for name in ["One", "Two", "Muted"] {
            let room = json!({ "preset": "public_chat", "name": name });
            let room_id = alice.create_room(&room).await;
            for speaker in &speakers {
                speaker.join(&room_id).await.ok();
            }
            rooms.push(room_id);
        }
        for (kind, muted) in [("room", &rooms[2]), ("sender", &speakers[2].user_id)] {
            let rule = format!(
                "/_matrix/client/v3/pushrules/global/{kind}/{}",
                escape(muted)
            );
            alice.put(&rule, &json!({ "actions": [] })).await.ok();
        }
        Self { rooms, speakers }
    }

    /// Everybody speaks at once, one thing after the other; what each said, in order.
    async fn speak(&self, alice: &User) -> Vec<Vec<Said>> {
        let speakers = 0..self.speakers.len();
        join_all(speakers.map(|speaker| self.speak_as(speaker, alice))).await
    }

    async fn speak_as(&self, speaker: usize, alice: &User) -> Vec<Said> {
        let mut said: Vec<Said> = Vec::new();
        for n in 0..EACH {
            let room = (n + speaker) % self.rooms.len();
            let is_muted = room == 2 || speaker == 2;
            let earlier = said.iter().rfind(|earlier| earlier.room == room);
            let (event_type, content, is_told) = something(n, earlier, alice, is_muted);
            let sent = self.speakers[speaker].send_event(&self.rooms[room], event_type, &content);
            let id = sent.await.ok()["event_id"].as_str().unwrap().to_owned();
            said.push(Said { id, room, is_told });
        }
        said
    }
}

/// An event of one kind or another, and whether Alice's rules ask for a notification.
fn something(
    n: usize,
    earlier: Option<&Said>,
    alice: &User,
    is_muted: bool,
) -> (&'static str, Value, bool) {
    let text = json!({ "msgtype": "m.text", "body": format!("text {n}") });
    let mut edit = json!({ "msgtype": "m.text", "body": "* better", "m.new_content": text });
    match (n % 7, earlier) {
        (0, _) => {
            let notice = json!({ "msgtype": "m.notice", "body": "a notice" });
            ("m.room.message", notice, false)
        }
        (1, _) => {
            let mut mention = text;
            mention["m.mentions"] = json!({ "user_ids": [alice.user_id] });
            ("m.room.message", mention, true)
        }
        (2, Some(earlier)) => {
            let key = n.to_string();
            let relation =
                json!({ "rel_type": "m.annotation", "event_id": earlier.id, "key": key });
            ("m.reaction", json!({ "m.relates_to": relation }), false)
        }
        (3, Some(earlier)) => {
            edit["m.relates_to"] = json!({ "rel_type": "m.replace", "event_id": earlier.id });
            ("m.room.message", edit, false)
        }
        (4, _) => ("org.example.other", json!({ "body": "other" }), false),
        _ => ("m.room.message", text, !is_muted),
    }
}

/// All events of a room, oldest first.
async fn history(user: &User, room_id: &str) -> Vec<String> {
    let (mut ids, mut from) = (Vec::new(), String::new());
    loop {
        let path = room(room_id, &format!("messages?dir=b&limit=500{from}"));
        let page = user.get(&path).await.ok();
        let chunk = page["chunk"].as_array().unwrap().iter();
        ids.extend(chunk.map(|event| event["event_id"].as_str().unwrap().to_owned()));
        let Some(end) = page["end"].as_str() else {
            break;
        };
        from = format!("&from={end}");
    }
    ids.reverse();
    ids
}

/// Says that a gateway is away for a while, again and again.
async fn come_and_go(gateway: &Gateway) {
    loop {
        for (away, millis) in [(false, 150), (true, 350)] {
            gateway.set_away(away);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
}

/// Of what was told, that which is in `order` was told so, and once.
fn assert_in_order(told: &[&str], order: &[&str]) {
    let wanted: BTreeSet<_> = order.iter().collect();
    let told = told.iter().filter(|id| wanted.contains(id));
    assert!(
        told.eq(order.iter()),
        "{order:?} was not told in order, or not once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_told_once_and_in_order_whatever_happens() {
    let mut server = start().await;
    let alice = server.register("alice").await;
    let scene = Scene::set(&server, &alice).await;
    let gateway = Gateway::start().await;
    set(&alice, "key", &gateway).await;
    let mut said = tokio::select! {
        said = scene.speak(&alice) => said,
        () = come_and_go(&gateway) => unreachable!("it goes on for ever"),
    };
    gateway.set_away(true);
    // What is under way while a server stops may be told once more: nothing is by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.restart().await;
    let more = tokio::select! {
        said = scene.speak(&alice) => said,
        () = come_and_go(&gateway) => unreachable!("it goes on for ever"),
    };
    for (said, more) in said.iter_mut().zip(more) {
        said.extend(more);
    }
    gateway.set_away(false);
    scene.speakers[0].send(&scene.rooms[0], "the end").await;
    let end = gateway.wait_for_text("the end").await;

    let events = gateway.events();
    let told: Vec<&str> = events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap())
        .filter(|id| *id != end["event_id"])
        .collect();
    let is_told = |said: &&Said| said.is_told;
    let all: BTreeSet<&str> = said
        .iter()
        .flatten()
        .filter(is_told)
        .map(|said| &*said.id)
        .collect();
    assert_eq!(told.iter().copied().collect::<BTreeSet<_>>(), all);
    assert_eq!(told.len(), all.len(), "something was told twice");
    assert!(
        gateway.refused() > 0,
        "it was never away when it was needed"
    );
    for said in &said {
        let order: Vec<_> = said.iter().filter(is_told).map(|said| &*said.id).collect();
        assert_in_order(&told, &order);
    }
    for room_id in &scene.rooms {
        let history = history(&alice, room_id).await;
        let order = history.iter().map(|id| &**id);
        let order: Vec<_> = order.filter(|id| all.contains(id)).collect();
        assert_in_order(&told, &order);
    }
}
