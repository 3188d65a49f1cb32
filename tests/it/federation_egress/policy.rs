//! The policy server of a room, which was somewhere else when it joined.

use ruma::RoomVersionId;
use serde_json::json;
use sotto_tests::{FakeServer, TestServer, room};

use super::Trap;

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_server_inside_is_not_asked() {
    let (mut ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    fake.peer().join(&ours, &room_id, "@mallory:b.test").await;
    let policy = json!({ "via": "b.test", "public_keys": { "ed25519": fake.policy_key() } });
    let path = room(&room_id, "state/m.room.policy/");
    alice.put(&path, &policy).await.ok();

    let trap = Trap::set();
    let there = other.federation_address();
    let inside = ([127, 0, 0, 2], trap.port).into();
    let signed = || {
        let asked = fake.asked();
        let policy = asked
            .iter()
            .filter(|(path, _)| path == "/_matrix/policy/v1/sign");
        policy.count()
    };
    // Where the name leads, what the operator allows, and whether the policy server can be asked then.
    for (address, allowed, reached) in [
        (there, "127.0.0.0/8", true),
        (inside, "127.0.0.1/32", false),
        (there, "127.0.0.2/32", false),
        (there, "127.0.0.0/8", true),
    ] {
        ours.reconfigure(|config| {
            let name = other.name().to_owned();
            config.federation.names.insert(name, address);
            config.federation.allow_networks = vec![allowed.to_owned()];
        })
        .await;
        let before = signed();
        let text = json!({ "msgtype": "m.text", "body": "hello" });
        let answer = alice.send_event(&room_id, "m.room.message", &text).await;
        assert_eq!(answer.status.is_success(), reached, "{}", answer.body);
        assert_eq!(signed() > before, reached, "{address} {allowed}");
        assert_eq!(trap.reached(), 0, "{address} {allowed}");
    }
    // The control: without the guard the same place is connected to.
    ours.reconfigure(|config| {
        config
            .federation
            .names
            .insert(other.name().to_owned(), inside);
        config.federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
    })
    .await;
    let text = json!({ "msgtype": "m.text", "body": "hello" });
    alice.send_event(&room_id, "m.room.message", &text).await;
    trap.wait_for(1).await;
}
