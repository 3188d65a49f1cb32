//! For whom a server may speak.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, TestServer, escape, room};

use super::{MALLORY, Scene, receipt};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_users_of_others() {
    let scene = Scene::new().await;
    let alice = scene.alice.user_id.as_str();
    let read = scene.alice.send(scene.room_id(), "read this").await;
    let elsewhere = scene.alice.create_room(&json!({})).await;
    let other = scene.alice.send(&elsewhere, "not here").await;
    let typing = |user: &str| {
        let content = json!({ "room_id": scene.room_id(), "user_id": user, "typing": true });
        json!({ "edu_type": "m.typing", "content": content })
    };
    let message = |sender: &str, id: &str| {
        let messages = json!({ alice: { "*": { "from": sender } } });
        let content = json!({
            "sender": sender, "type": "m.test", "message_id": id, "messages": messages,
        });
        json!({ "edu_type": "m.direct_to_device", "content": content })
    };
    let peer = scene.fake.peer();
    let forged = [
        receipt(scene.room_id(), alice, &read),
        receipt(scene.room_id(), "@carol:c.test", &read),
        receipt(scene.room_id(), "@stranger:b.test", &read),
        receipt(&elsewhere, MALLORY, &other),
        receipt(scene.room_id(), MALLORY, &other),
        typing(alice),
        typing("@stranger:b.test"),
        message(alice, "1"),
        message("@carol:c.test", "2"),
    ];
    peer.send(&scene.ours, &[], &forged).await.ok();
    let sync = scene.alice.sync(None, 0).await;
    assert!(
        sync["to_device"]["events"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    let joined = &sync["rooms"]["join"];
    for room_id in [scene.room_id(), elsewhere.as_str()] {
        let events = joined[room_id]["ephemeral"]["events"].as_array();
        assert!(events.is_none_or(Vec::is_empty), "{events:?}");
    }
    let own = [
        receipt(scene.room_id(), MALLORY, &read),
        typing(MALLORY),
        message(MALLORY, "3"),
    ];
    peer.send(&scene.ours, &[], &own).await.ok();
    let sync = scene.alice.sync(None, 0).await;
    assert_eq!(sync["to_device"]["events"][0]["sender"], MALLORY);
    let events = &sync["rooms"]["join"][scene.room_id()]["ephemeral"]["events"];
    assert_eq!(events.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_counts_for_who_signed_it() {
    let scene = Scene::new().await;
    let peer = scene.fake.peer();
    let path = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={}",
        escape(scene.room_id()),
        escape(scene.seat.tip[0].as_str())
    );
    let as_other = ruma::server_name!("c.test");
    let answer = peer
        .ask_as(as_other, &scene.ours, Method::GET, &path, None)
        .await;
    assert_eq!(answer.refused(), (401, "M_UNAUTHORIZED"));
    scene.get(&path).await.ok();
    // A transaction of another server's, in an own request.
    let body = json!({ "origin": "c.test", "origin_server_ts": 1, "pdus": [] });
    let path = "/_matrix/federation/v1/send/x";
    let answer = peer.ask(&scene.ours, Method::PUT, path, Some(&body)).await;
    assert_eq!(answer.status, 403);
    // Joining and leaving is for own users only.
    let room_id = escape(scene.room_id());
    for verb in ["make_join", "make_leave", "make_knock"] {
        let user = escape("@carol:c.test");
        let path = format!("/_matrix/federation/v1/{verb}/{room_id}/{user}?ver=11");
        assert_eq!(scene.get(&path).await.status, 403, "{verb}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_in_must_be_what_the_request_says() {
    let mut scene = Scene::new().await;
    let elsewhere = scene
        .alice
        .create_room(&json!({ "preset": "public_chat", "room_version": "11" }))
        .await;
    let peer = scene.fake.peer().clone();
    let join = json!({ "membership": "join" });
    let carol = scene.make(&Draft::state(
        "@carol:b.test",
        "m.room.member",
        "@carol:b.test",
        join.clone(),
    ));
    let text = scene.make(&Draft::text(MALLORY, "no join"));
    let leave = json!({ "membership": "leave" });
    let leave = scene.make(&Draft::state(MALLORY, "m.room.member", MALLORY, leave));
    let put = async |version: &str, verb: &str, room_id: &str, id: &str, body: &Value| {
        let (room_id, id) = (escape(room_id), escape(id));
        let path = format!("/_matrix/federation/{version}/{verb}/{room_id}/{id}");
        peer.ask(&scene.ours, Method::PUT, &path, Some(body))
            .await
            .status
            .as_u16()
    };
    let id = carol.id.as_str();
    let here = scene.room_id();
    let mut unsigned = carol.json.clone();
    unsigned["signatures"] = json!({ "b.test": { "ed25519:1": "A" } });
    let mut foreign = carol.json.clone();
    foreign["sender"] = json!("@alice:a.test");
    for (room_id, id, body) in [
        (elsewhere.as_str(), id, &carol.json),
        (here, text.id.as_str(), &carol.json),
        (here, text.id.as_str(), &text.json),
        (here, leave.id.as_str(), &leave.json),
        (here, id, &unsigned),
        (here, id, &foreign),
        (here, id, &json!({})),
    ] {
        let status = put("v2", "send_join", room_id, id, body).await;
        assert!((400..404).contains(&status), "{status} {body}");
    }
    let status = put("v2", "send_leave", here, id, &carol.json).await;
    assert!((400..404).contains(&status), "{status}");
    let members = scene.alice.get(&room(here, "joined_members")).await.ok();
    assert_eq!(members["joined"].as_object().unwrap().len(), 2);
    assert_eq!(put("v2", "send_join", here, id, &carol.json).await, 200);
    let members = scene.alice.get(&room(here, "joined_members")).await.ok();
    assert_eq!(members["joined"].as_object().unwrap().len(), 3);
}

/// Invites Alice into the peer's own room, with something said of the room.
async fn invite(scene: &Scene, fake: &FakeServer, told: Vec<Value>) -> sotto_tests::Answer {
    let (room_id, event) = fake.invite(MALLORY, &scene.alice.user_id);
    let path = format!(
        "/_matrix/federation/v2/invite/{}/{}",
        escape(room_id.as_str()),
        escape(event.id.as_str())
    );
    let version = fake.version();
    let body = json!({ "room_version": version, "event": event.json, "invite_room_state": told });
    let peer = fake.peer();
    peer.ask(&scene.ours, Method::PUT, &path, Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_tells_of_its_own_room() {
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        let (ours, mut other) = TestServer::pair().await;
        other.stop().await;
        let fake = FakeServer::replace(&other, version.clone()).await;
        let alice = ours.register("alice").await;
        let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
        let seat = fake.peer().join(&ours, &room_id, MALLORY).await;
        let scene = Scene {
            ours,
            fake,
            alice,
            seat,
            _other: other,
        };
        let strict = version == RoomVersionId::V12;
        for (told, good) in told(&scene, strict) {
            let answer = invite(&scene, &scene.fake, told).await;
            assert_eq!(
                answer.status.is_success(),
                good,
                "{version} {}",
                answer.body
            );
            if !good {
                assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
            }
            let sync = scene.alice.sync(None, 0).await;
            let invites = sync["rooms"]["invite"].to_string();
            assert!(!invites.contains("Forged"), "{invites}");
            assert!(!invites.contains("Foreign"), "{invites}");
            assert!(!invites.contains("signatures"), "{invites}");
        }
        let sync = scene.alice.sync(None, 0).await;
        assert!(sync["rooms"]["invite"].to_string().contains("Far away"));
    }
}

/// What may come with an invite, and whether it may.
fn told(scene: &Scene, strict: bool) -> Vec<(Vec<Value>, bool)> {
    let whole = scene.fake.state();
    let mut forged = whole.clone();
    forged[4]["content"] = json!({ "name": "Forged" });
    forged[4]["signatures"]["b.test"] = json!({ "ed25519:x": "A".repeat(86) });
    let mut seat = scene.seat.clone();
    let name = Draft::state(MALLORY, "m.room.name", "", json!({ "name": "Foreign" }));
    let foreign = scene.fake.peer().make(&mut seat, &name).json;
    let mut odd = whole.clone();
    odd.push(json!({ "type": "m.room.topic", "content": "text" }));
    let mut huge = whole.clone();
    huge.extend((0..5_000).map(|n| json!({ "type": "m.x", "state_key": n.to_string() })));
    vec![
        (whole[1..].to_vec(), !strict),
        (forged, !strict),
        ([whole.clone(), vec![foreign]].concat(), !strict),
        (odd, !strict),
        (Vec::new(), !strict),
        (huge, !strict),
        (whole, true),
    ]
}
