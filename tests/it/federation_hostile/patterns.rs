//! Patterns on which a simple matcher works for years.

use std::time::Duration;

use serde_json::json;
use sotto_tests::{Draft, room};

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
