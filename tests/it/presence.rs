//! Who is there, and who learns of it.

use serde_json::{Value, json};
use sotto_tests::{Setup, TestServer, User, escape};

fn path(user_id: &str) -> String {
    format!("/_matrix/client/v3/presence/{}/status", escape(user_id))
}

async fn sync(user: &User, since: Option<&str>, presence: &str) -> Value {
    let since = since.map(|s| format!("&since={s}")).unwrap_or_default();
    let path = format!("/_matrix/client/v3/sync?set_presence={presence}{since}");
    user.get(&path).await.ok()
}

/// What a sync says of somebody.
fn told<'a>(sync: &'a Value, user_id: &str) -> Option<&'a str> {
    let mut events = sync["presence"]["events"].as_array()?.iter();
    let event = events.find(|event| event["sender"] == user_id)?;
    assert_eq!(event["type"], "m.presence");
    event["content"]["presence"].as_str()
}

/// Waits until somebody is said to be something, without being there oneself.
async fn await_presence(user: &User, since: &mut Option<String>, of: &str, wanted: &str) {
    for _ in 0..120 {
        let answer = sync(user, since.as_deref(), "offline").await;
        *since = answer["next_batch"].as_str().map(ToOwned::to_owned);
        if told(&answer, of) == Some(wanted) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{} was not told that {of} is {wanted}", user.user_id);
}

async fn two(server: &TestServer) -> (User, User, String) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    (alice, bob, room_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_set_and_asked_for() {
    let server = TestServer::start().await;
    let (alice, bob, _) = two(&server).await;
    let carol = server.register("carol").await;
    let own = path(&alice.user_id);
    assert_eq!(bob.get(&own).await.ok(), json!({ "presence": "offline" }));
    let body = json!({ "presence": "online", "status_msg": "Reading" });
    alice.put(&own, &body).await.ok();
    for user in [&alice, &bob] {
        let answer = user.get(&own).await.ok();
        assert_eq!(answer["presence"], "online");
        assert_eq!(answer["status_msg"], "Reading");
        assert_eq!(answer["currently_active"], true);
        assert!(answer["last_active_ago"].as_u64().unwrap() < 60_000);
    }
    for user_id in [&alice.user_id, "@nobody:one.test", "@nobody:far.test"] {
        let refused = carol.get(&path(user_id)).await;
        assert_eq!(refused.refused(), (403, "M_FORBIDDEN"), "{user_id}");
    }
    assert_eq!(bob.put(&own, &body).await.refused(), (403, "M_FORBIDDEN"));
    let nobody = User::anonymous(server.url());
    assert_eq!(nobody.get(&own).await.refused(), (401, "M_MISSING_TOKEN"));
    for wrong in [
        json!({ "presence": "dancing" }),
        json!({ "presence": "online", "status_msg": "x".repeat(1_025) }),
    ] {
        let refused = alice.put(&own, &wrong).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_say_who_is_there() {
    let server = TestServer::start().await;
    let (alice, bob, _) = two(&server).await;
    let carol = server.register("carol").await;
    // Who does not want to be seen is not.
    let first = sync(&alice, None, "offline").await;
    assert_eq!(told(&first, &alice.user_id), None);
    let mut since = first["next_batch"].as_str().map(ToOwned::to_owned);
    let outside = sync(&carol, None, "offline").await;
    // To sync is to be there, and whoever shares a room is told, oneself as well.
    let bobs = sync(&bob, None, "online").await;
    assert_eq!(told(&bobs, &bob.user_id), Some("online"));
    await_presence(&alice, &mut since, &bob.user_id, "online").await;
    sync(&bob, None, "unavailable").await;
    await_presence(&alice, &mut since, &bob.user_id, "unavailable").await;
    let idle = sync(&alice, since.as_deref(), "offline").await;
    assert!(idle["presence"].is_null(), "told once: {idle}");
    // Those who come later are told as well, and nobody else is.
    let again = sync(&alice, None, "offline").await;
    assert_eq!(told(&again, &bob.user_id), Some("unavailable"));
    let none = json!({ "presence": { "types": [] } }).to_string();
    let filtered = format!("/_matrix/client/v3/sync?filter={}", escape(&none));
    assert!(alice.get(&filtered).await.ok()["presence"].is_null());
    let outside = sync(&carol, outside["next_batch"].as_str(), "offline").await;
    assert_eq!(told(&outside, &bob.user_id), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_hears_of_presence() {
    let server = TestServer::start().await;
    let (alice, bob, _) = two(&server).await;
    let first = alice.sync(None, 0).await;
    let mut since = first["next_batch"].as_str().map(ToOwned::to_owned);
    let says = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let body = json!({ "presence": "unavailable", "status_msg": "Away" });
        bob.put(&path(&bob.user_id), &body).await.ok();
    };
    let hears = alice.sync_until(&mut since, |answer| {
        (told(answer, &bob.user_id) == Some("unavailable")).then_some(())
    });
    tokio::join!(says, hears);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_nothing_is_away_and_then_gone() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = two(&server).await;
    let mut since = None;
    sync(&bob, None, "online").await;
    await_presence(&alice, &mut since, &bob.user_id, "online").await;
    server.clock().advance(31_000);
    await_presence(&alice, &mut since, &bob.user_id, "offline").await;
    // Who waits for news is there, but away after five minutes without doing anything.
    let first = sync(&bob, None, "online").await;
    let next = first["next_batch"].as_str().unwrap();
    let away = format!(
        "/_matrix/client/v3/sync?timeout=20000&since={next}&filter={}",
        escape(&json!({ "presence": { "types": [] }, "room": { "rooms": [] } }).to_string())
    );
    let waits = bob.get(&away);
    let rest = async {
        await_presence(&alice, &mut since, &bob.user_id, "online").await;
        // Nothing tells that the long poll has begun.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        server.clock().advance(5 * 60_000);
        await_presence(&alice, &mut since, &bob.user_id, "unavailable").await;
        bob.send(&room_id, "I am here").await;
        await_presence(&alice, &mut since, &bob.user_id, "online").await;
    };
    tokio::select! {
        _ = waits => panic!("the long poll ended"),
        () = rest => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_meet_in_a_room_see_each_other() {
    let server = TestServer::start().await;
    let (alice, carol) = (
        server.register("alice").await,
        server.register("carol").await,
    );
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let mut of_alice = sync(&alice, None, "online").await["next_batch"]
        .as_str()
        .map(ToOwned::to_owned);
    let mut of_carol = sync(&carol, None, "online").await["next_batch"]
        .as_str()
        .map(ToOwned::to_owned);
    carol.join(&room_id).await.ok();
    await_presence(&alice, &mut of_alice, &carol.user_id, "online").await;
    await_presence(&carol, &mut of_carol, &alice.user_id, "online").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_are_told() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let mut of_alice = sync(&alice, None, "online").await["next_batch"]
        .as_str()
        .map(ToOwned::to_owned);
    let mut of_bob = sync(&bob, None, "online").await["next_batch"]
        .as_str()
        .map(ToOwned::to_owned);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join_via(&room_id, "a.test").await.ok();
    // Both learn of each other without doing anything more.
    await_presence(&alice, &mut of_alice, &bob.user_id, "online").await;
    await_presence(&bob, &mut of_bob, &alice.user_id, "online").await;
    let body = json!({ "presence": "unavailable", "status_msg": "Tea" });
    alice.put(&path(&alice.user_id), &body).await.ok();
    await_presence(&bob, &mut of_bob, &alice.user_id, "unavailable").await;
    let answer = bob.get(&path(&alice.user_id)).await.ok();
    assert_eq!(answer["status_msg"], "Tea");
    // A server that says nothing any more has nobody there.
    b.clock().advance(31 * 60_000);
    await_presence(&bob, &mut of_bob, &alice.user_id, "offline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_can_be_switched_off() {
    let server = Setup::with(|config| config.presence.enabled = false)
        .start()
        .await;
    let (alice, bob, _) = two(&server).await;
    let body = json!({ "presence": "online" });
    alice.put(&path(&alice.user_id), &body).await.ok();
    let answer = bob.get(&path(&alice.user_id)).await.ok();
    assert_eq!(answer, json!({ "presence": "offline" }));
    assert!(sync(&alice, None, "online").await["presence"].is_null());
}
