//! What is no event, in the name of users of others: where they are, which devices and keys they have.

use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{FakeServer, Setup, User};

use super::MALLORY;

const CAROL: &str = "@carol:c.test";

/// What a server says of one of its users.
fn units() -> [(&'static str, Value); 3] {
    let presence = json!({ "push": [{
        "user_id": CAROL, "presence": "unavailable", "last_active_ago": 1, "status_msg": "told",
    }] });
    let device = json!({
        "user_id": CAROL, "device_id": "EVIL", "stream_id": 8, "prev_id": [7],
        "device_display_name": "told",
    });
    let key = "l8Hft5qXKn1vfHrg3p4+W8gELQVo8N13JkluMfmn2sQ";
    let master = json!({
        "user_id": CAROL, "usage": ["master"], "keys": { format!("ed25519:{key}"): key },
    });
    let keys = json!({ "user_id": CAROL, "master_key": master });
    [
        ("m.presence", presence),
        ("m.device_list_update", device),
        ("m.signing_key_update", keys),
    ]
}

/// Whether it had an effect that Alice sees, since a position.
async fn counted(alice: &User, kind: &str, since: &str) -> bool {
    if kind == "m.presence" {
        let path = format!("/_matrix/client/v3/presence/{CAROL}/status");
        return alice.get(&path).await.body["status_msg"] == "told";
    }
    let mut since = since.to_owned();
    for _ in 0..4 {
        let sync = alice.sync(Some(&since), 500).await;
        let changed = sync["device_lists"]["changed"].as_array();
        if changed.is_some_and(|changed| changed.contains(&json!(CAROL))) {
            return true;
        }
        sync["next_batch"].as_str().unwrap().clone_into(&mut since);
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_says_where_users_of_others_are_and_what_keys_they_have() {
    let mut servers = Setup::default().federation(3).await;
    let mut fakes = Vec::new();
    for server in &mut servers[1..] {
        server.stop().await;
        fakes.push(FakeServer::replace(server, RoomVersionId::V11).await);
    }
    let ours = &servers[0];
    let alice = ours.register("alice").await;
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    fakes[0].peer().join(ours, &room_id, MALLORY).await;
    fakes[1].peer().join(ours, &room_id, CAROL).await;
    // Her devices are known here.
    let query = json!({ "device_keys": { CAROL: [] } });
    let path = "/_matrix/client/v3/keys/query";
    alice.post(path, &query).await.ok();
    for (kind, content) in units() {
        let since = alice.sync(None, 0).await["next_batch"].clone();
        let since = since.as_str().unwrap();
        let unit = json!({ "edu_type": kind, "content": content });
        let said = [unit];
        fakes[0].peer().send(ours, &[], &said).await.ok();
        assert!(!counted(&alice, kind, since).await, "{kind}");
        // The control: it is the same that counts when her own server says it.
        fakes[1].peer().send(ours, &[], &said).await.ok();
        assert!(counted(&alice, kind, since).await, "{kind}");
    }
}
