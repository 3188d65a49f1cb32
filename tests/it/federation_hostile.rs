//! What a server in the same room does that it should not. Each attack has a control: what would have
//! happened to a server without the guard happens where there is nothing to guard against.

mod acl;
mod events;
mod exchange;
mod flood;
mod forged;
mod keys;
mod nonsense;
mod numbers;
mod pairs;
mod patterns;
mod poison;
mod reading;
mod reprieve;
mod resets;
mod restricted;
mod rules;
mod sizes;
mod speaking;
mod strangers;
mod templates;
mod units;
mod watching;

use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, Made, Seat, TestServer, User, room};

const MALLORY: &str = "@mallory:b.test";

/// A server of ours with Alice's public room, and one that is not ours with Mallory in it.
struct Scene {
    ours: TestServer,
    fake: FakeServer,
    alice: User,
    seat: Seat,
    _other: TestServer,
}

impl Scene {
    async fn new() -> Self {
        Self::with(json!({ "preset": "public_chat" })).await
    }

    async fn with(mut body: Value) -> Self {
        if body["room_version"].is_null() {
            body["room_version"] = json!("11");
        }
        let (ours, mut other) = TestServer::pair().await;
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        let alice = ours.register("alice").await;
        let room_id = alice.create_room(&body).await;
        let seat = fake.peer().join(&ours, &room_id, MALLORY).await;
        Self {
            ours,
            fake,
            alice,
            seat,
            _other: other,
        }
    }

    fn room_id(&self) -> &str {
        self.seat.room_id.as_str()
    }

    fn make(&mut self, draft: &Draft<'_>) -> Made {
        self.fake.peer().make(&mut self.seat, draft)
    }

    async fn deliver(&self, made: &Made) -> Option<String> {
        self.fake.peer().deliver(&self.ours, made).await
    }

    async fn get(&self, path: &str) -> sotto_tests::Answer {
        self.fake.peer().get(&self.ours, path).await
    }

    /// The bodies that Alice reads, newest first.
    async fn bodies(&self) -> Vec<String> {
        let path = room(self.room_id(), "messages?dir=b&limit=100");
        let page = self.alice.get(&path).await.ok();
        let events = page["chunk"].as_array().cloned().unwrap_or_default();
        let body = |event: &Value| event["content"]["body"].as_str().map(ToOwned::to_owned);
        events.iter().filter_map(body).collect()
    }

    async fn state(&self, kind: &str) -> sotto_tests::Answer {
        let path = room(self.room_id(), &format!("state/{kind}/"));
        self.alice.get(&path).await
    }

    /// The peer learns of an event that Alice made.
    async fn catches_up(&mut self) {
        let path = room(self.room_id(), "messages?dir=b&limit=1");
        let page = self.alice.get(&path).await.ok();
        let event = &page["chunk"][0];
        let id = ruma::EventId::parse(event["event_id"].as_str().unwrap()).unwrap();
        if let Some(key) = event["state_key"].as_str() {
            self.seat.has(event["type"].as_str().unwrap(), key, &id);
        }
        self.seat.tip = vec![id];
        self.seat.depth += 1;
    }
}

/// Waits for something ephemeral in a sync; whether it came within half a second after `done` did.
async fn receipts(scene: &Scene) -> Value {
    let sync = scene.alice.sync(None, 0).await;
    let events = sync["rooms"]["join"][scene.room_id()]["ephemeral"]["events"].clone();
    let found = events.as_array().into_iter().flatten();
    found
        .filter(|event| event["type"] == "m.receipt")
        .fold(json!({}), |_, event| event["content"].clone())
}

fn receipt(room_id: &str, user: &str, event_id: &str) -> Value {
    let data = json!({ "event_ids": [event_id], "data": { "ts": 1 } });
    let read = json!({ "m.read": { user: data } });
    json!({ "edu_type": "m.receipt", "content": { room_id: read } })
}
