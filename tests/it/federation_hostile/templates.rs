//! Events that others would have us sign.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, Peer, Setup, TestServer, User, escape, room};

use super::MALLORY;

/// What an event may have that we signed at the wish of another server.
const KEYS: [&str; 11] = [
    "auth_events",
    "content",
    "depth",
    "hashes",
    "origin",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
];

/// Whether an event has nothing but what we put into one.
pub(super) fn has_only_our_keys(event: &Value) -> bool {
    let mut keys = event.as_object().unwrap().keys();
    keys.all(|key| key == "type" || KEYS.contains(&key.as_str()))
}

/// The level of Mallory in a room, as a user's server has it.
pub(super) async fn level(user: &User, room_id: &str) -> Value {
    let path = room(room_id, "state/m.room.power_levels/");
    user.get(&path).await.ok()["users"][MALLORY].clone()
}

/// What Alice's server signs for Mallory's, which gives it another event to sign whatever Alice wants.
async fn signed(ours: &TestServer, fake: &FakeServer, alice: &User) -> Vec<Value> {
    let far = fake.room_id().as_str();
    alice.join_via(far, "b.test").await;
    let path = format!("/_matrix/client/v3/knock/{}?via=b.test", escape(far));
    alice.post(&path, &json!({})).await.ok();
    alice.post(&room(far, "leave"), &json!({})).await.ok();
    let (room_id, invite) = fake.invite(MALLORY, &alice.user_id);
    let path = format!(
        "/_matrix/federation/v2/invite/{}/{}",
        escape(room_id.as_str()),
        escape(invite.id.as_str())
    );
    let state = fake.state();
    let body = json!({ "room_version": "11", "event": invite.json, "invite_room_state": state });
    let peer = fake.peer();
    peer.ask(ours, Method::PUT, &path, Some(&body)).await.ok();
    alice.post(&room(far, "leave"), &json!({})).await.ok();
    fake.joins()
}

/// Whatever is given as an invite, or handed in, is not signed unless it is that.
async fn is_refused(ours: &TestServer, fake: &FakeServer, at: (&str, &str), event: &Value) {
    let (room_id, event_id) = (escape(at.0), escape(at.1));
    for verb in [
        "v2/invite",
        "v2/send_join",
        "v2/send_leave",
        "v1/send_knock",
    ] {
        let path = format!("/_matrix/federation/{verb}/{room_id}/{event_id}");
        let mut body = event.clone();
        if verb == "v2/invite" {
            let state = fake.state();
            body = json!({ "room_version": "11", "event": body, "invite_room_state": state });
        }
        let peer = fake.peer();
        let answer = peer.ask(ours, Method::PUT, &path, Some(&body)).await;
        assert!(answer.status.is_client_error(), "{verb} {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_us_an_event_to_sign() {
    let mut servers = Setup::default().federation(3).await;
    servers[1].stop().await;
    let fake = FakeServer::replace(&servers[1], RoomVersionId::V11).await;
    let alice = servers[0].register("alice").await;
    let carol = servers[2].register("carol").await;
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    carol.join_via(&room_id, "a.test").await.ok();
    let mut seat = fake.peer().join(&servers[0], &room_id, MALLORY).await;
    let heard = |sync: &Value| {
        let joined = sync["rooms"]["join"][&room_id].to_string();
        joined.contains(MALLORY).then_some(())
    };
    carol.sync_until(&mut None, heard).await;
    // All that it lacks is the signature of Alice's server.
    let levels = json!({ "users": { &alice.user_id: 100, MALLORY: 100 } });
    let grab = Draft::state(&alice.user_id, "m.room.power_levels", "", levels);
    let wanted = Peer::of(&servers[0]).make(&mut seat, &grab);
    let mut template = wanted.json.clone();
    template.as_object_mut().unwrap().remove("signatures");
    fake.hand_out(template.clone());

    let signed = signed(&servers[0], &fake, &alice).await;
    let kinds: Vec<_> = signed
        .iter()
        .map(|event| &event["content"]["membership"])
        .collect();
    assert_eq!(kinds, ["join", "knock", "leave", "leave"]);
    for event in &signed {
        assert_eq!(event["type"], "m.room.member", "{event}");
        assert_eq!(event["sender"], alice.user_id.as_str());
        assert_eq!(event["state_key"], alice.user_id.as_str());
        assert_eq!(event["room_id"], fake.room_id().as_str());
        let content = event["content"].as_object().unwrap().keys();
        let known = ["avatar_url", "displayname", "membership"];
        assert!(
            content.clone().all(|key| known.contains(&key.as_str())),
            "{event}"
        );
        assert!(has_only_our_keys(event), "{event}");
    }
    let id = wanted.id.as_str();
    is_refused(&servers[0], &fake, (&room_id, id), &template).await;
    assert_eq!(level(&alice, &room_id).await, Value::Null);
    assert_eq!(level(&carol, &room_id).await, Value::Null);
    // The control: a server that signs what it is given gives its room away.
    assert_eq!(fake.peer().deliver(&servers[2], &wanted).await, None);
    assert_eq!(level(&carol, &room_id).await, 100);
}
