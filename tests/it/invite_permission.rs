//! Users who want no invites
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#invite-permission)).

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{FakeServer, TestServer, User, escape, room};

const BLOCKED: (u16, &str) = (403, "M_INVITE_BLOCKED");

async fn permit(user: &User, content: &Value) {
    let user_id = escape(&user.user_id);
    let path = format!("/_matrix/client/v3/user/{user_id}/account_data/m.invite_permission_config");
    user.put(&path, content).await.ok();
}

/// Invites by a part of the state.
async fn put_invite(user: &User, room_id: &str, target: &User) -> sotto_tests::Answer {
    let path = format!("state/m.room.member/{}", escape(&target.user_id));
    user.put(&room(room_id, &path), &json!({ "membership": "invite" }))
        .await
}

/// The rooms that a user is invited to, by both ways to sync.
async fn invites(user: &User) -> (usize, usize) {
    let sync = user.sync(None, 0).await;
    let invited = sync["rooms"]["invite"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] });
    let body = json!({ "lists": { "all": list } });
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let slid = user.post(path, &body).await.ok();
    let listed = slid["rooms"].as_object().into_iter().flatten();
    let told = listed.filter(|(_, room)| room["invite_state"].is_array());
    (invited, told.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_no_invites_gets_none() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob, carol) = (
        a.register("alice").await,
        a.register("bob").await,
        b.register("carol").await,
    );
    let before = bob.create_room(&json!({ "invite": [alice.user_id] })).await;
    assert_eq!(invites(&alice).await, (1, 1));
    permit(&alice, &json!({ "default_action": "block" })).await;
    assert_eq!(invites(&alice).await, (0, 0));
    for inviter in [&bob, &carol] {
        let room_id = inviter.create_room(&json!({})).await;
        let refused = inviter.invite(&room_id, &alice.user_id).await;
        assert_eq!(refused.refused(), BLOCKED);
        let refused = put_invite(inviter, &room_id, &alice).await;
        assert_eq!(refused.refused(), BLOCKED);
        // A room is made with those who can be invited.
        let body = json!({ "invite": [alice.user_id, bob.user_id] });
        inviter.create_room(&body).await;
    }
    assert_eq!(invites(&alice).await, (0, 0));
    // The room that she was invited to before is still open to her.
    alice.join(&before).await.ok();
    permit(&alice, &json!({})).await;
    let again = bob.create_room(&json!({ "invite": [alice.user_id] })).await;
    assert_eq!(invites(&alice).await, (1, 1));
    alice.join(&again).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_as_a_part_of_the_state_reaches_other_servers() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = alice.create_room(&json!({})).await;
    put_invite(&alice, &room_id, &bob).await.ok();
    let invited = |sync: &Value| sync["rooms"]["invite"].get(&room_id).cloned();
    bob.sync_until(&mut None, invited).await;
    bob.join(&room_id).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_are_told_so() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V1).await;
    let alice = ours.register("alice").await;
    permit(&alice, &json!({ "default_action": "block" })).await;
    let (room_id, event) = fake.invite("@mallory:b.test", &alice.user_id);
    let (room_id, id) = (escape(room_id.as_str()), escape(event.id.as_str()));
    let whole = json!({ "room_version": "1", "event": event.json, "invite_room_state": [] });
    for (version, body) in [("v1", event.json.clone()), ("v2", whole)] {
        let path = format!("/_matrix/federation/{version}/invite/{room_id}/{id}");
        let peer = fake.peer();
        let invite = async || peer.ask(&ours, Method::PUT, &path, Some(&body)).await;
        assert_eq!(invite().await.refused(), BLOCKED, "{version}");
        permit(&alice, &json!({})).await;
        invite().await.ok();
        permit(&alice, &json!({ "default_action": "block" })).await;
    }
    assert_eq!(invites(&alice).await, (0, 0));
}
