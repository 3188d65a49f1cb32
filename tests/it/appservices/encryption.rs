//! What services need for the encryption of their users.

use serde_json::{Value, json};
use sotto_tests::{User, escape};

use super::server_and_bridge;

/// Sends a message to a device.
async fn message(sender: &User, user_id: &str, device_id: &str, n: u32) {
    let path = format!("/_matrix/client/v3/sendToDevice/x.note/{n}");
    let body = json!({ "messages": { user_id: { device_id: { "n": n } } } });
    sender.put(&path, &body).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_devices_of_a_service_come_once() {
    let (mut server, bridge) = server_and_bridge("receive_ephemeral: true").await;
    let (service, alice) = (bridge.client(&server), server.register("alice").await);
    let ghost = bridge.register(&server, "irc_a").await;
    let device = format!(
        "/_matrix/client/v3/devices/BRIDGE?user_id={}",
        escape(&ghost.user_id)
    );
    service.put(&device, &json!({})).await.ok();
    bridge.set_away(true);
    for n in 0..150 {
        message(&alice, &ghost.user_id, "BRIDGE", n).await;
    }
    message(&alice, &alice.user_id, &alice.device_id, 150).await;
    bridge.wait_for_refusals(1).await;
    server.restart().await;
    bridge.set_away(false);
    bridge
        .wait("to_device", |message| message["content"]["n"] == 149)
        .await;
    let told = bridge.told("to_device");
    let numbers: Vec<_> = told
        .iter()
        .map(|it| it["content"]["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..150).collect::<Vec<_>>());
    assert_eq!(told[0]["to_user_id"], ghost.user_id.as_str());
    assert_eq!(told[0]["to_device_id"], "BRIDGE");
    assert_eq!(told[0]["sender"], alice.user_id.as_str());
    // What the service has got waits for nobody any more; what is for others does.
    let sync = format!(
        "/_matrix/client/v3/sync?user_id={}&device_id=BRIDGE",
        escape(&ghost.user_id)
    );
    let sync = service.get(&sync).await.ok();
    assert!(
        sync["to_device"]["events"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    let own = alice.sync(None, 0).await;
    assert_eq!(own["to_device"]["events"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_of_keys() {
    let more = "de.sorunome.msc2409.push_ephemeral: true\norg.matrix.msc3202: true";
    let (server, bridge) = server_and_bridge(more).await;
    let (alice, stranger) = (
        server.register("alice").await,
        server.register("stranger").await,
    );
    let service = bridge.client(&server);
    let room_id = alice
        .create_room(&json!({ "invite": ["@ircbot:one.test"] }))
        .await;
    service.join(&room_id).await.ok();
    let lists = |body: &Value, name: &str, user: &User| {
        let list = &body["org.matrix.msc3202.device_lists"][name];
        list.as_array()
            .is_some_and(|list| list.contains(&json!(user.user_id)))
    };
    bridge.wait_for(|body| lists(body, "changed", &alice)).await;
    let before = bridge.transactions().len();
    stranger
        .post("/_matrix/client/v3/logout", &json!({}))
        .await
        .ok();
    server.log_in("alice").await;
    bridge
        .wait_for(|body| lists(body, "changed", &alice) && body["events"] == json!([]))
        .await;
    let leave = sotto_tests::room(&room_id, "leave");
    alice.post(&leave, &json!({})).await.ok();
    bridge.wait_for(|body| lists(body, "left", &alice)).await;
    assert!(bridge.transactions().len() > before);
    for (_, body) in bridge.transactions() {
        assert!(!lists(&body, "changed", &stranger) && !lists(&body, "left", &stranger));
    }

    service
        .put("/_matrix/client/v3/devices/BRIDGE", &json!({}))
        .await
        .ok();
    message(&alice, "@ircbot:one.test", "BRIDGE", 1).await;
    let body = bridge
        .wait_for(|body| body.get("de.sorunome.msc2409.to_device").is_some())
        .await;
    let of_device = |name: &str| {
        body[format!("org.matrix.msc3202.{name}")]["@ircbot:one.test"]["BRIDGE"].clone()
    };
    let counts = json!({ "signed_curve25519": 0 });
    assert_eq!(of_device("device_one_time_keys_count"), counts);
    assert_eq!(of_device("device_one_time_key_counts"), counts);
    assert_eq!(of_device("device_unused_fallback_key_types"), json!([]));
}
