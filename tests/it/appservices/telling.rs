//! What services are told, and when they are away.

use serde_json::{Value, json};
use sotto_tests::{Bridge, Setup, User, escape, room};

use super::{server_and_bridge, server_with};

#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_of_rooms_of_their_users_in_order_and_once() {
    let (server, bridge) = server_and_bridge("").await;
    let alice = server.register("alice").await;
    let ghost = bridge.register(&server, "irc_a").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let elsewhere = alice.create_room(&json!({})).await;
    alice.send(&room_id, "before").await;
    ghost.join(&room_id).await.ok();
    for n in 0..250 {
        alice.send(&room_id, &n.to_string()).await;
        if n % 50 == 0 {
            alice.send(&elsewhere, "not for the bridge").await;
        }
    }
    ghost.send(&room_id, "own").await;
    ghost.post(&room(&room_id, "leave"), &json!({})).await.ok();
    alice.send(&room_id, "after").await;
    alice.invite(&room_id, "@ircbot:one.test").await.ok();
    bridge
        .wait("events", |event| event["state_key"] == "@ircbot:one.test")
        .await;
    let mut wanted: Vec<_> = (0..250).map(|n| n.to_string()).collect();
    wanted.push("own".to_owned());
    assert_eq!(bridge.texts(), wanted);
    assert_eq!(bridge.repeated(), 0);
    let moves = bridge.told("events").into_iter();
    let moves = moves.filter(|event| event["type"] == "m.room.member");
    let moves: Vec<_> = moves
        .map(|event| event["content"]["membership"].clone())
        .collect();
    assert_eq!(moves, ["join", "leave", "invite"]);
    for (_, body) in bridge.transactions() {
        assert!(body["events"].as_array().unwrap().len() <= 100);
        let event = &body["events"][0];
        assert!(event["event_id"].is_string() && event["room_id"] == room_id.as_str());
        assert!(body.get("ephemeral").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_of_rooms_of_their_namespaces() {
    let namespaces = "namespaces:\n  rooms: [{exclusive: false, regex: '!.*'}]\n";
    let log = Bridge::with_namespaces("log", namespaces, "").await;
    let irc = Bridge::start("irc", "").await;
    let server = server_with(&[&log, &irc]).await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    alice.send(&room_id, "one").await;
    let path = "/_matrix/client/v3/directory/room/%23irc_a:one.test";
    let (service, body) = (irc.client(&server), json!({ "room_id": room_id }));
    service.put(path, &body).await.ok();
    alice.send(&room_id, "two").await;
    service.delete(path).await.ok();
    alice.send(&room_id, "three").await;
    log.wait_for_text("three").await;
    assert_eq!(log.texts(), ["one", "two", "three"]);
    // The service has come past the third when it is told of what came after.
    let own = service.create_room(&json!({})).await;
    service.send(&own, "mark").await;
    irc.wait_for_text("mark").await;
    service.put(path, &body).await.ok();
    alice.send(&room_id, "four").await;
    irc.wait_for_text("four").await;
    assert_eq!(irc.texts(), ["two", "mark", "four"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_away_gets_the_same_later_and_holds_up_nobody() {
    let (irc, other) = (
        Bridge::start("irc", "").await,
        Bridge::start("other", "").await,
    );
    let mut server = server_with(&[&irc, &other]).await;
    let alice = server.register("alice").await;
    let invite = json!({ "invite": ["@ircbot:one.test", "@otherbot:one.test"] });
    let room_id = alice.create_room(&invite).await;
    for bridge in [&irc, &other] {
        bridge.client(&server).join(&room_id).await.ok();
    }
    alice.send(&room_id, "one").await;
    irc.wait_for_text("one").await;
    irc.set_away(true);
    for text in ["two", "three"] {
        alice.send(&room_id, text).await;
        other.wait_for_text(text).await;
    }
    irc.wait_for_refusals(2).await;
    server.restart().await;
    let before = irc.refused().len();
    irc.wait_for_refusals(before + 1).await;
    let refused = irc.refused();
    assert!(
        refused.iter().all(|again| *again == refused[0]),
        "{refused:#?}"
    );
    alice.send(&room_id, "four").await;
    other.wait_for_text("four").await;
    irc.set_away(false);
    irc.wait_for_text("four").await;
    assert_eq!(irc.texts(), ["one", "two", "three", "four"]);
    let transactions = irc.transactions();
    assert!(transactions.contains(&refused[0]));
    // After the next start nothing is told anew.
    server.restart().await;
    alice.send(&room_id, "five").await;
    irc.wait_for_text("five").await;
    assert_eq!(irc.texts(), ["one", "two", "three", "four", "five"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_server_could_not_tell_is_told_as_it_was() {
    let (mut server, irc) = server_and_bridge("").await;
    let alice = server.register("alice").await;
    let ghost = irc.register(&server, "irc_a").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    irc.set_away(true);
    ghost.join(&room_id).await.ok();
    irc.wait_for_refusals(1).await;
    // While nothing can be told: the ghost is there, not there, and there again.
    let leave = room(&room_id, "leave");
    alice.send(&room_id, "there").await;
    ghost.post(&leave, &json!({})).await.ok();
    alice.send(&room_id, "gone").await;
    ghost.join(&room_id).await.ok();
    alice.send(&room_id, "there again").await;
    ghost.post(&leave, &json!({})).await.ok();
    alice.send(&room_id, "gone again").await;
    server.restart().await;
    irc.set_away(false);
    irc.wait("events", |event| event["content"]["membership"] == "leave")
        .await;
    irc.wait_for_text("there again").await;
    alice.invite(&room_id, "@ircbot:one.test").await.ok();
    irc.wait("events", |event| event["state_key"] == "@ircbot:one.test")
        .await;
    assert_eq!(irc.texts(), ["there", "there again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_events_come_in_the_form_that_is_asked_for() {
    for (flag, prefix) in [
        ("receive_ephemeral: true", ""),
        (
            "de.sorunome.msc2409.push_ephemeral: true",
            "de.sorunome.msc2409.",
        ),
    ] {
        let (server, bridge) = server_and_bridge(flag).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let room_id = alice
            .create_room(&json!({ "preset": "public_chat", "invite": ["@ircbot:one.test"] }))
            .await;
        let bot = bridge.client(&server);
        bot.join(&room_id).await.ok();
        bob.join(&room_id).await.ok();
        let name = format!("{prefix}ephemeral");
        let typing = room(&room_id, &format!("typing/{}", escape(&alice.user_id)));
        alice
            .put(&typing, &json!({ "typing": true, "timeout": 30_000 }))
            .await
            .ok();
        let event = bridge
            .wait(&name, |event| event["type"] == "m.typing")
            .await;
        assert_eq!(event["room_id"], room_id.as_str());
        assert_eq!(event["content"]["user_ids"], json!([alice.user_id]));

        let event_id = alice.send(&room_id, "read this").await;
        let read = |kind: &str| room(&room_id, &format!("receipt/{kind}/{}", escape(&event_id)));
        bob.post(&read("m.read.private"), &json!({})).await.ok();
        bot.post(&read("m.read.private"), &json!({})).await.ok();
        alice.post(&read("m.read"), &json!({})).await.ok();
        let seen = |event: &Value, kind: &str, user: &User| {
            let users = &event["content"][&event_id][kind];
            event["room_id"] == room_id.as_str() && users.get(&user.user_id).is_some()
        };
        bridge
            .wait(&name, |event| seen(event, "m.read", &alice))
            .await;
        let told = bridge.told(&name);
        assert!(!told.iter().any(|event| seen(event, "m.read.private", &bob)));
        let own = &told.iter().find(|event| {
            event["content"][&event_id]["m.read.private"]["@ircbot:one.test"].is_object()
        });
        assert!(own.is_some());

        let presence = format!(
            "/_matrix/client/v3/presence/{}/status",
            escape(&bob.user_id)
        );
        let status = json!({ "presence": "unavailable", "status_msg": "reading" });
        bob.put(&presence, &status).await.ok();
        let event = bridge
            .wait(&name, |event| event["content"]["status_msg"] == "reading")
            .await;
        assert_eq!(
            (&event["type"], &event["sender"]),
            (&json!("m.presence"), &json!(bob.user_id))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_from_other_servers_are_told() {
    let bridge = Bridge::start("irc", "").await;
    let file = bridge.registration();
    let setup = Setup::with(move |config| {
        if config.server_name == "b.test" {
            config.appservices = vec![file.clone()];
        }
    });
    let servers = setup.federation(2).await;
    let alice = servers[0].register("alice").await;
    bridge.make_users_on(&servers[1]);
    let room_id = alice.create_room(&json!({ "name": "far away" })).await;
    // Nobody has heard of the ghost: the service makes it when it is asked.
    let profile = "/_matrix/client/v3/profile/@irc_a:b.test";
    alice.get(profile).await.ok();
    assert_eq!(bridge.asked(), ["users/@irc_a:b.test"]);
    alice.invite(&room_id, "@irc_a:b.test").await.ok();
    let event = bridge
        .wait("events", |event| event["state_key"] == "@irc_a:b.test")
        .await;
    assert_eq!(event["content"]["membership"], "invite");
    assert_eq!(event["sender"], alice.user_id.as_str());
    assert_eq!(event["room_id"], room_id.as_str());
    assert!(event["event_id"].is_string());
    let state = event["unsigned"]["invite_room_state"].as_array().unwrap();
    assert!(
        state
            .iter()
            .any(|event| event["content"]["name"] == "far away")
    );
    let service = bridge.client(&servers[1]);
    let join = format!(
        "/_matrix/client/v3/join/{}?user_id=@irc_a:b.test&via=a.test",
        escape(&room_id)
    );
    service.post(&join, &json!({})).await.ok();
    alice.send(&room_id, "welcome").await;
    bridge.wait_for_text("welcome").await;
    bridge.know("rooms/%23irc_new:b.test", json!({}));
    let alias = alice
        .get("/_matrix/client/v3/directory/room/%23irc_new:b.test")
        .await;
    assert_eq!(alias.refused(), (404, "M_NOT_FOUND"));
    assert!(
        bridge
            .asked()
            .contains(&"rooms/%23irc_new:b.test".to_owned())
    );
}
