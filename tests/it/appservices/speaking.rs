//! What services do with their token.

use serde_json::{Value, json};
use sotto_homeserver::config::Rate;
use sotto_tests::{Bridge, Setup, User, escape, room};

use super::{server_and_bridge, server_with};

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const REGISTER: &str = "/_matrix/client/v3/register";

fn of_service(name: &str) -> Value {
    json!({ "type": "m.login.application_service", "username": name })
}

#[tokio::test(flavor = "multi_thread")]
async fn services_register_their_users_and_speak_for_them() {
    let (server, bridge) = server_and_bridge("").await;
    let service = bridge.client(&server);
    let whoami = service.get(WHOAMI).await.ok();
    assert_eq!(whoami, json!({ "user_id": "@ircbot:one.test" }));

    let unregistered = format!("{WHOAMI}?user_id=@irc_a:one.test");
    assert_eq!(
        service.get(&unregistered).await.refused(),
        (403, "M_FORBIDDEN")
    );
    let mut silent = of_service("irc_a");
    silent["inhibit_login"] = true.into();
    let answer = service.post(REGISTER, &silent).await.ok();
    assert_eq!(answer, json!({ "user_id": "@irc_a:one.test" }));
    let again = service.post(REGISTER, &of_service("irc_a")).await;
    assert_eq!(again.refused(), (400, "M_USER_IN_USE"));
    let whoami = service.get(&unregistered).await.ok();
    assert_eq!(whoami["user_id"], "@irc_a:one.test");

    let alice = server.register("alice").await;
    for other in [alice.user_id.as_str(), "@irc_a:elsewhere.test", "nobody"] {
        let path = format!("{WHOAMI}?user_id={}", escape(other));
        assert_eq!(service.get(&path).await.refused(), (403, "M_FORBIDDEN"));
    }
    // What only services may say, nobody else is heard with.
    let whoami = alice.get(&unregistered).await.ok();
    assert_eq!(whoami["user_id"], alice.user_id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_a_service_are_its_own() {
    let (server, bridge) = server_and_bridge("").await;
    let (service, nobody) = (bridge.client(&server), User::anonymous(server.url()));
    let outside = service.post(REGISTER, &of_service("alice")).await;
    assert_eq!(outside.refused(), (400, "M_EXCLUSIVE"));
    let missing = nobody.post(REGISTER, &of_service("irc_a")).await;
    assert_eq!(missing.refused(), (401, "M_MISSING_TOKEN"));
    let wrong = nobody
        .with_token("as_ir")
        .post(REGISTER, &of_service("irc_a"))
        .await;
    assert_eq!(wrong.refused(), (401, "M_UNKNOWN_TOKEN"));
    for name in ["irc_a", "ircbot"] {
        let body = json!({ "username": name, "password": "p4ssw0rd",
            "auth": { "type": "m.login.dummy" } });
        let refused = nobody.post(REGISTER, &body).await;
        assert_eq!(refused.refused(), (400, "M_EXCLUSIVE"));
        let available = format!("/_matrix/client/v3/register/available?username={name}");
        assert_eq!(nobody.get(&available).await.refused(), (400, "M_EXCLUSIVE"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_log_in_as_their_users() {
    let (server, bridge) = server_and_bridge("").await;
    let (service, nobody) = (bridge.client(&server), User::anonymous(server.url()));
    bridge.register(&server, "irc_a").await;
    server.register("alice").await;
    let flows = nobody.get("/_matrix/client/v3/login").await.ok();
    let kind = json!({ "type": "m.login.application_service" });
    assert!(flows["flows"].as_array().unwrap().contains(&kind));
    let login = |name: &str| {
        json!({ "type": "m.login.application_service", "device_id": "GHOST",
            "identifier": { "type": "m.id.user", "user": name } })
    };
    let path = "/_matrix/client/v3/login";
    let session = service.post(path, &login("irc_a")).await.ok();
    let ghost = User::new(server.url(), &session);
    assert_eq!(ghost.device_id, "GHOST");
    assert_eq!(ghost.get(WHOAMI).await.ok()["user_id"], "@irc_a:one.test");
    assert_eq!(
        service.post(path, &login("alice")).await.refused(),
        (400, "M_EXCLUSIVE")
    );
    assert_eq!(
        service.post(path, &login("irc_b")).await.refused(),
        (403, "M_FORBIDDEN")
    );
    assert_eq!(
        nobody.post(path, &login("irc_a")).await.refused(),
        (401, "M_MISSING_TOKEN")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn services_manage_devices_without_passwords() {
    let (server, bridge) = server_and_bridge("").await;
    let service = bridge.client(&server);
    service.post(REGISTER, &of_service("irc_a")).await.ok();
    let as_ghost = "user_id=@irc_a:one.test";
    let device = format!("/_matrix/client/v3/devices/NEW?{as_ghost}");
    let made = service
        .put(&device, &json!({ "display_name": "bridge" }))
        .await;
    assert_eq!(made.status, 201);
    assert_eq!(service.put(&device, &json!({})).await.status, 200);
    for name in ["device_id", "org.matrix.msc3202.device_id"] {
        let path = format!("{WHOAMI}?{as_ghost}&{name}=NEW");
        assert_eq!(service.get(&path).await.ok()["device_id"], "NEW");
        let path = format!("{WHOAMI}?{as_ghost}&{name}=OLD");
        assert_eq!(
            service.get(&path).await.refused(),
            (400, "M_UNKNOWN_DEVICE")
        );
    }
    let upload = format!("/_matrix/client/v3/keys/upload?{as_ghost}");
    let refused = service.post(&upload, &json!({})).await;
    assert_eq!(refused.refused(), (400, "M_MISSING_PARAM"));
    service
        .post(&format!("{upload}&device_id=NEW"), &json!({}))
        .await
        .ok();
    service.delete(&device).await.ok();
    let gone = service
        .get(&format!("{WHOAMI}?{as_ghost}&device_id=NEW"))
        .await;
    assert_eq!(gone.refused(), (400, "M_UNKNOWN_DEVICE"));
    // Nobody else makes devices, or deletes them like this.
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v3/devices/NEW";
    assert_eq!(
        alice.put(path, &json!({})).await.refused(),
        (404, "M_NOT_FOUND")
    );
    let own = format!("/_matrix/client/v3/devices/{}", alice.device_id);
    assert_eq!(alice.delete(&own).await.status, 401);
    let deactivate = format!("/_matrix/client/v3/account/deactivate?{as_ghost}");
    service.post(&deactivate, &json!({})).await.ok();
    let path = format!("{WHOAMI}?{as_ghost}");
    assert_eq!(service.get(&path).await.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_of_a_service_are_its_own() {
    let (server, bridge) = server_and_bridge("").await;
    let (service, alice) = (bridge.client(&server), server.register("alice").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let alias = |name: &str| format!("/_matrix/client/v3/directory/room/%23{name}:one.test");
    let body = json!({ "room_id": room_id });
    let own = alias("irc_a");
    assert_eq!(alice.put(&own, &body).await.refused(), (400, "M_EXCLUSIVE"));
    let create = json!({ "room_alias_name": "irc_a" });
    let path = "/_matrix/client/v3/createRoom";
    assert_eq!(
        alice.post(path, &create).await.refused(),
        (400, "M_EXCLUSIVE")
    );
    assert_eq!(
        service.put(&alias("other"), &body).await.refused(),
        (400, "M_EXCLUSIVE")
    );
    // It need not be in the room.
    service.put(&own, &body).await.ok();
    let found = alice.get(&own).await.ok();
    assert_eq!(found["room_id"], room_id.as_str());
    assert_eq!(alice.delete(&own).await.refused(), (400, "M_EXCLUSIVE"));
    service.delete(&own).await.ok();
    service.post(path, &create).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn services_say_when_something_was_sent() {
    let (server, bridge) = server_and_bridge("").await;
    let (service, alice) = (bridge.client(&server), server.register("alice").await);
    let room_id = service
        .create_room(&json!({ "invite": [alice.user_id] }))
        .await;
    alice.join(&room_id).await.ok();
    let content = json!({ "msgtype": "m.text", "body": "long ago" });
    let message = room(&room_id, "send/m.room.message/1?ts=1234567");
    let state = room(&room_id, "state/m.room.topic/?ts=1234568");
    let sent = [
        (service.put(&message, &content).await.ok(), true),
        (
            service.put(&state, &json!({ "topic": "then" })).await.ok(),
            true,
        ),
        (alice.put(&message, &content).await.ok(), false),
    ];
    for (answer, massaged) in sent {
        let event_id = answer["event_id"].as_str().unwrap();
        let path = room(&room_id, &format!("event/{}", escape(event_id)));
        let at = alice.get(&path).await.ok()["origin_server_ts"]
            .as_u64()
            .unwrap();
        assert_eq!((1_234_567..=1_234_568).contains(&at), massaged);
    }
    for wrong in ["yesterday", "-1", "99999999999999999"] {
        let path = room(&room_id, &format!("send/m.room.message/2?ts={wrong}"));
        let refused = service.put(&path, &content).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"));
    }
}

/// Which of several edits counts does not depend on the order in which they came.
#[tokio::test(flavor = "multi_thread")]
async fn the_latest_edit_is_the_one_that_was_made_last() {
    let (server, bridge) = server_and_bridge("").await;
    let service = bridge.client(&server);
    let room_id = service.create_room(&json!({})).await;
    let event_id = service.send(&room_id, "a word").await;
    for (ts, body) in [
        (2_000, "the first edit"),
        (3_000, "the last"),
        (1_000, "an old one"),
    ] {
        let content = json!({
            "msgtype": "m.text", "body": body,
            "m.new_content": { "msgtype": "m.text", "body": body },
            "m.relates_to": { "rel_type": "m.replace", "event_id": event_id },
        });
        let path = room(&room_id, &format!("send/m.room.message/{ts}?ts={ts}"));
        service.put(&path, &content).await.ok();
    }
    let path = room(&room_id, &format!("event/{}", escape(&event_id)));
    let event = service.get(&path).await.ok();
    let edit = &event["unsigned"]["m.relations"]["m.replace"];
    assert_eq!(edit["content"]["body"], "the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_be_free_of_rate_limits() {
    let free = Bridge::start("free", "rate_limited: false").await;
    let counted = Bridge::start("counted", "").await;
    let files = vec![free.registration(), counted.registration()];
    let setup = Setup::with(move |config| {
        config.appservices.clone_from(&files);
        let few = Rate {
            per_second: 0.001,
            burst: 3,
        };
        let limits = &mut config.rate_limits;
        (
            limits.enabled,
            limits.messages,
            limits.registration,
            limits.login,
        ) = (true, few, few, few);
    });
    let server = setup.start().await;
    for (bridge, name, limited) in [
        (&free, "free_a", false),
        (&counted, "counted_a", true),
        (&counted, "countedbot", false),
    ] {
        let service = bridge.client(&server);
        if !name.ends_with("bot") {
            service.post(REGISTER, &of_service(name)).await.ok();
        }
        let room_id = service.create_room(&json!({})).await;
        let ghost = format!("@{name}:one.test");
        if !name.ends_with("bot") {
            service.invite(&room_id, &ghost).await.ok();
            let join = room(&room_id, &format!("join?user_id={ghost}"));
            service.post(&join, &json!({})).await.ok();
        }
        let mut refused = 0;
        for n in 0..6 {
            let path = format!("send/m.room.message/{n}?user_id={ghost}");
            let answer = service
                .put(&room(&room_id, &path), &json!({ "body": "x" }))
                .await;
            refused += usize::from(answer.status == 429);
        }
        assert_eq!(refused > 0, limited, "{name}");
    }
    let service = free.client(&server);
    for n in 0..6 {
        service
            .post(REGISTER, &of_service(&format!("free_{n}x")))
            .await
            .ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_address_speaks_for_everybody() {
    let everybody = "namespaces:\n  users: [{exclusive: false, regex: '@.*:one.test'}]\n";
    let bridge = Bridge::with_namespaces("puppets", everybody, "").await;
    let file = std::fs::read_to_string(bridge.registration()).unwrap();
    let url = file.lines().find(|line| line.starts_with("url:")).unwrap();
    std::fs::write(bridge.registration(), file.replace(url, "url: null")).unwrap();
    let server = server_with(&[&bridge]).await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let service = bridge.client(&server);
    let path = format!("send/m.room.message/1?user_id={}", escape(&alice.user_id));
    service
        .put(&room(&room_id, &path), &json!({ "body": "from far away" }))
        .await
        .ok();
    let sync = alice.sync(None, 0).await;
    let events = &sync["rooms"]["join"][room_id]["timeline"]["events"];
    let last = events.as_array().unwrap().last().unwrap();
    assert_eq!(last["sender"], alice.user_id.as_str());
    let ping = "/_matrix/client/v1/appservice/puppets/ping";
    assert_eq!(
        service.post(ping, &json!({})).await.refused(),
        (400, "M_URL_NOT_SET")
    );
    assert!(bridge.transactions().is_empty());
}
