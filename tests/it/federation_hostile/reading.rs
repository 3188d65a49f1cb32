//! What a server may read.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, TestServer, escape, room};

use super::{MALLORY, Scene, receipt, receipts};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_may_not_see_it_gets_redacted() {
    for (visibility, hidden) in [("joined", true), ("shared", false)] {
        let content = json!({ "history_visibility": visibility });
        let state = json!([{ "type": "m.room.history_visibility", "content": content }]);
        let body = json!({ "preset": "public_chat", "initial_state": state, "topic": "Old plans" });
        let (ours, mut other) = TestServer::pair().await;
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        let alice = ours.register("alice").await;
        let room_id = alice.create_room(&body).await;
        let page = alice.get(&room(&room_id, "messages?dir=b")).await.ok();
        let events = page["chunk"].as_array().cloned().unwrap();
        let topic = events
            .iter()
            .find(|event| event["type"] == "m.room.topic")
            .unwrap();
        let topic = topic["event_id"].as_str().unwrap().to_owned();
        let new = json!({ "topic": "New plans" });
        alice
            .put(&room(&room_id, "state/m.room.topic/"), &new)
            .await
            .ok();
        let secret = alice.send(&room_id, "a secret").await;
        fake.peer().join(&ours, &room_id, MALLORY).await;
        let open = alice.send(&room_id, "not a secret").await;

        let event = async |id: &str| {
            let path = format!("/_matrix/federation/v1/event/{}", escape(id));
            fake.peer().get(&ours, &path).await.ok()["pdus"][0]["content"].clone()
        };
        assert_eq!(event(&open).await["body"], "not a secret");
        assert_eq!(event(&secret).await.get("body").is_none(), hidden);
        assert_eq!(event(&topic).await.get("topic").is_none(), hidden);
        let (room_path, id) = (escape(&room_id), escape(&open));
        let backfill = format!("/_matrix/federation/v1/backfill/{room_path}?limit=20&v={id}");
        let missing = format!("/_matrix/federation/v1/get_missing_events/{room_path}");
        let ask = json!({ "earliest_events": [], "latest_events": [open], "limit": 20 });
        let backfill = fake.peer().get(&ours, &backfill).await.ok();
        let missing = fake
            .peer()
            .ask(&ours, Method::POST, &missing, Some(&ask))
            .await
            .ok();
        for events in [&backfill["pdus"], &missing["events"]] {
            let text = events.to_string();
            assert!(events.as_array().unwrap().len() > 5, "{events}");
            assert_eq!(
                text.contains("a secret\""),
                text.contains("not a secret\"") || !hidden
            );
            assert_eq!(text.contains("\"a secret\""), !hidden, "{visibility}");
            assert_eq!(text.contains("Old plans"), !hidden, "{visibility}");
        }
        let state = format!(
            "/_matrix/federation/v1/state/{room_path}?event_id={}",
            escape(&secret)
        );
        let state = fake.peer().get(&ours, &state).await.ok().to_string();
        // What the room is now is known to who is in it.
        assert!(state.contains("New plans"));
    }
}

/// The requests that the specification keeps from servers that a room keeps out.
pub(super) fn requests(scene: &Scene) -> Vec<(Method, String, Option<Value>)> {
    let room_id = escape(scene.room_id());
    let mallory = escape(MALLORY);
    let event = escape(scene.seat.tip[0].as_str());
    let path = |rest: String| format!("/_matrix/federation/v1/{rest}");
    let ask = json!({ "earliest_events": [], "latest_events": [scene.seat.tip[0]], "limit": 1 });
    vec![
        (
            Method::GET,
            path(format!("make_join/{room_id}/{mallory}?ver=11")),
            None,
        ),
        (
            Method::GET,
            path(format!("make_leave/{room_id}/{mallory}")),
            None,
        ),
        (
            Method::GET,
            path(format!("state/{room_id}?event_id={event}")),
            None,
        ),
        (
            Method::GET,
            path(format!("state_ids/{room_id}?event_id={event}")),
            None,
        ),
        (
            Method::GET,
            path(format!("backfill/{room_id}?limit=1&v={event}")),
            None,
        ),
        (
            Method::GET,
            path(format!("event_auth/{room_id}/{event}")),
            None,
        ),
        (
            Method::POST,
            path(format!("get_missing_events/{room_id}")),
            Some(ask),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_a_room_keeps_out_gets_nothing_and_says_nothing() {
    let mut scene = Scene::new().await;
    let peer = scene.fake.peer().clone();
    for (method, path, body) in requests(&scene) {
        let answer = peer.ask(&scene.ours, method, &path, body.as_ref()).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.body);
    }
    let read = scene.alice.send(scene.room_id(), "read this").await;
    scene.catches_up().await;
    let edu = receipt(scene.room_id(), MALLORY, &read);
    peer.send(&scene.ours, &[], &[edu]).await.ok();
    assert!(receipts(&scene).await[&read]["m.read"][MALLORY].is_object());
    let before = scene.make(&Draft::text(MALLORY, "before"));
    assert_eq!(scene.deliver(&before).await, None);

    let acl = json!({ "allow": ["*"], "deny": ["b.test"], "allow_ip_literals": false });
    let path = room(scene.room_id(), "state/m.room.server_acl/");
    scene.alice.put(&path, &acl).await.ok();
    let unread = scene.alice.send(scene.room_id(), "not for b").await;
    for (method, path, body) in requests(&scene) {
        let answer = peer.ask(&scene.ours, method, &path, body.as_ref()).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"), "{path}");
    }
    let after = scene.make(&Draft::text(MALLORY, "after"));
    assert!(scene.deliver(&after).await.is_some());
    let typing = json!({ "room_id": scene.room_id(), "user_id": MALLORY, "typing": true });
    let typing = json!({ "edu_type": "m.typing", "content": typing });
    let edu = receipt(scene.room_id(), MALLORY, &unread);
    peer.send(&scene.ours, &[], &[edu, typing]).await.ok();
    let sync = scene.alice.sync(None, 0).await;
    let ephemeral = sync["rooms"]["join"][scene.room_id()]["ephemeral"].to_string();
    assert!(
        !ephemeral.contains(&unread) && !ephemeral.contains("m.typing"),
        "{ephemeral}"
    );
    assert_eq!(scene.bodies().await, ["not for b", "before", "read this"]);
}
