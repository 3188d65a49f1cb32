//! What clients are told of a room whose servers spoke at the same moment.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sotto_tests::{TestServer, room};

/// The state of a room as a client puts it together from its syncs.
#[derive(Default)]
struct ClientState(BTreeMap<(String, String), String>);

impl ClientState {
    fn apply(&mut self, events: &Value) {
        for event in events.as_array().into_iter().flatten() {
            let text = |name: &str| event[name].as_str().map(ToOwned::to_owned);
            if let (Some(event_type), Some(key), Some(id)) =
                (text("type"), text("state_key"), text("event_id"))
            {
                self.0.insert((event_type, key), id);
            }
        }
    }

    fn follow(&mut self, sync: &Value, room_id: &str) {
        let room = &sync["rooms"]["join"][room_id];
        self.apply(&room["state"]["events"]);
        self.apply(&room["timeline"]["events"]);
        self.apply(&room["state_after"]["events"]);
    }

    fn has(&self, event_type: &str, event: &Value) -> bool {
        let key = (event_type.to_owned(), String::new());
        self.0.get(&key).map(String::as_str) == event["event_id"].as_str()
    }
}

/// Where the room forked, the state before an event of the other branch is older than what the client has.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_does_not_take_a_client_back() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let everybody = json!({ "state_default": 0 });
    let body = json!({ "preset": "public_chat", "power_level_content_override": everybody });
    let room_id = alice.create_room(&body).await;
    let mut since = bob.sync(None, 0).await["next_batch"]
        .as_str()
        .map(ToOwned::to_owned);
    bob.join_via(&room_id, "a.test").await.ok();
    let mut known = ClientState::default();
    for round in 0..10 {
        let (here, there) = (
            room(&room_id, "state/here/"),
            room(&room_id, "state/there/"),
        );
        let body = json!({ "round": round });
        let (here, there) = tokio::join!(alice.put(&here, &body), bob.put(&there, &body));
        let (here, there) = (here.ok(), there.ok());
        let mut seen = (false, false);
        bob.sync_until(&mut since, |sync| {
            known.follow(sync, &room_id);
            seen.0 |= known.has("here", &here);
            seen.1 |= known.has("there", &there);
            (seen == (true, true)).then_some(())
        })
        .await;
        let mut current = ClientState::default();
        current.apply(&bob.get(&room(&room_id, "state")).await.ok());
        assert_eq!(known.0, current.0);
    }
}
