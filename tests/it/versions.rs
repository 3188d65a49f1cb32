//! Room versions: what differs between them, as clients and other servers see it.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape, room};

const VERSIONS: [&str; 12] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12",
];

fn number(version: &str) -> u32 {
    version.parse().unwrap()
}

async fn event(user: &User, room_id: &str, event_id: &str) -> Value {
    let path = room(room_id, &format!("event/{}", escape(event_id)));
    user.get(&path).await.ok()
}

#[tokio::test]
async fn a_room_of_each_version_works() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut rooms = Vec::new();
    for version in VERSIONS {
        let body = json!({ "room_version": version, "preset": "public_chat", "name": version });
        let room_id = alice.create_room(&body).await;
        bob.join(&room_id).await.ok();
        let sent = bob.send(&room_id, "hello").await;
        assert_eq!(sent.ends_with(":one.test"), number(version) < 3, "{sent}");
        let create = alice
            .get(&room(&room_id, "state/m.room.create/"))
            .await
            .ok();
        assert_eq!(create["room_version"], version);
        assert_eq!(create.get("creator").is_some(), number(version) < 11);

        // Only the own may be redacted without power.
        let redact = |event_id: &str| room(&room_id, &format!("redact/{}/t", escape(event_id)));
        let hers = alice.send(&room_id, "mine").await;
        let refused = bob.put(&redact(&hers), &json!({})).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
        bob.put(&redact(&sent), &json!({})).await.ok();
        assert_eq!(event(&alice, &room_id, &sent).await["content"], json!({}));
        rooms.push(room_id);
    }
    server.restart().await;
    for room_id in &rooms {
        alice.send(room_id, "after the restart").await;
        let name = alice.get(&room(room_id, "state/m.room.name/")).await.ok();
        assert!(VERSIONS.contains(&name["name"].as_str().unwrap()));
    }
    let body = json!({ "room_version": "13" });
    let answer = alice.post("/_matrix/client/v3/createRoom", &body).await;
    assert_eq!(answer.refused(), (400, "M_UNSUPPORTED_ROOM_VERSION"));
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.ok();
    let available = &capabilities["capabilities"]["m.room_versions"]["available"];
    assert!(
        VERSIONS
            .iter()
            .all(|version| available[version] == "stable")
    );
}

#[tokio::test]
async fn numbers_that_are_not_canonical_go_through_up_to_version_5() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let content = r#"{"body":"numbers","float":1.50,"small":1e-7,"large":123456789012345678}"#;
    for version in ["1", "2", "3", "4", "5", "6", "12"] {
        let body = json!({ "room_version": version, "preset": "public_chat" });
        let room_id = alice.create_room(&body).await;
        bob.join_via(&room_id, "a.test").await.ok();
        let path = room(&room_id, "send/m.room.message/t1");
        let sent = alice.request(http::Method::PUT, &path, Some(content.as_bytes().to_vec()));
        let sent = sent.await;
        if number(version) > 5 {
            assert_eq!(sent.refused(), (400, "M_BAD_JSON"));
            continue;
        }
        let event_id = sent.ok()["event_id"].as_str().unwrap().to_owned();
        let heard = |sync: &Value| {
            let events = sync["rooms"]["join"][&room_id]["timeline"]["events"].as_array()?;
            events
                .iter()
                .find(|event| event["content"]["body"] == "numbers")
                .cloned()
        };
        let heard = bob.sync_until(&mut None, heard).await;
        let expected = json!({
            "body": "numbers", "float": 1.5, "small": 1e-7, "large": 123_456_789_012_345_678_i64,
        });
        assert_eq!(heard["content"], expected);
        assert_eq!(heard["event_id"], event_id.as_str());

        // Levels may be strings and floats there.
        let mut levels = bob
            .get(&room(&room_id, "state/m.room.power_levels/"))
            .await
            .ok();
        levels["users"][&bob.user_id] = json!(50.9);
        levels["ban"] = json!(" +050 ");
        let levels = alice
            .put(&room(&room_id, "state/m.room.power_levels/"), &levels)
            .await
            .ok();
        let levels = levels["event_id"].as_str().unwrap().to_owned();
        while bob
            .get(&room(&room_id, &format!("event/{}", escape(&levels))))
            .await
            .status
            != 200
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let topic = room(&room_id, "state/m.room.topic/");
        bob.put(&topic, &json!({ "topic": "by Bob" })).await.ok();
        let heard = |sync: &Value| {
            let events = sync["rooms"]["join"][&room_id]["timeline"]["events"].as_array()?;
            events
                .iter()
                .any(|event| event["content"]["topic"] == "by Bob")
                .then_some(())
        };
        alice.sync_until(&mut None, heard).await;
    }
}
