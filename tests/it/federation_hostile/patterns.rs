//! Patterns on which a simple matcher works for years.

use std::time::Duration;

use serde_json::json;
use sotto_tests::{Bridge, Draft, Setup, User, room};

use super::{MALLORY, Scene};

/// How many steps the simplest matcher takes, up to a bound.
fn simple(pattern: &[u8], text: &[u8], steps: &mut u64) -> bool {
    *steps += 1;
    if *steps > 10_000_000 {
        return false;
    }
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|from| simple(rest, &text[from..], steps)),
        [first, rest @ ..] => text.first() == Some(first) && simple(rest, &text[1..], steps),
    }
}

fn slow_pattern() -> String {
    format!("{}b", "*a".repeat(25))
}

#[test]
fn the_simple_way_would_not_come_to_an_end() {
    let mut steps = 0;
    simple(slow_pattern().as_bytes(), &[b'a'; 200], &mut steps);
    assert!(steps > 10_000_000);
}

/// The same of one that goes back, for `(a+)+b`: after each letter the group goes on, or begins again.
fn going_back(text: &[u8], steps: &mut u64) -> bool {
    *steps += 1;
    if *steps > 10_000_000 {
        return false;
    }
    match text {
        [b'a', rest @ ..] => (0..2).any(|_| going_back(rest, steps)),
        [first, ..] => *first == b'b',
        [] => false,
    }
}

#[test]
fn the_way_back_would_not_come_to_an_end() {
    let mut steps = 0;
    going_back(&[b'a'; 100], &mut steps);
    assert!(steps > 10_000_000);
}

/// What a service wants to be told of is looked for in the ids of everybody.
#[tokio::test(flavor = "multi_thread")]
async fn patterns_of_services_cost_little_whatever_they_say() {
    let namespaces = "namespaces:\n  users: [{exclusive: true, regex: '@(a+)+b.*'}]\n";
    let bridge = Bridge::with_namespaces("slow", namespaces, "").await;
    let file = bridge.registration();
    let setup = Setup::with(move |config| config.appservices = vec![file.clone()]);
    let server = setup.start().await;
    let work = async {
        let slow = server.register(&"a".repeat(100)).await;
        let room_id = slow.create_room(&json!({})).await;
        for number in 0..20 {
            slow.send(&room_id, &number.to_string()).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(20), work).await;
    assert!(done.is_ok());
    // The control: the pattern is in use.
    let nobody = User::anonymous(server.url());
    let body = json!({
        "username": "aaab", "password": "x", "auth": { "type": "m.login.dummy" },
    });
    let refused = nobody.post("/_matrix/client/v3/register", &body).await;
    assert_eq!(refused.refused(), (400, "M_EXCLUSIVE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn push_rules_and_lists_of_servers_cost_little_whatever_they_say() {
    let mut scene = Scene::new().await;
    let rule = json!({ "pattern": slow_pattern(), "actions": ["notify"] });
    let path = "/_matrix/client/v3/pushrules/global/content/slow";
    scene.alice.put(path, &rule).await.ok();
    let deny: Vec<_> = (0..900).map(|n| format!("{}{n}", slow_pattern())).collect();
    let list = json!({ "allow": ["*"], "deny": deny });
    let path = room(scene.room_id(), "state/m.room.server_acl/");
    scene.alice.put(&path, &list).await.ok();
    scene.catches_up().await;
    let work = async {
        for number in 0..20 {
            let text = format!("{number} {}", "a".repeat(20_000));
            let made = scene.make(&Draft::text(MALLORY, &text));
            assert_eq!(scene.deliver(&made).await, None);
        }
        scene.alice.sync(None, 0).await
    };
    let sync = tokio::time::timeout(Duration::from_secs(20), work).await;
    let counts = &sync.unwrap()["rooms"]["join"][scene.room_id()]["unread_notifications"];
    assert!(counts["notification_count"].as_u64().unwrap() >= 20);
}
