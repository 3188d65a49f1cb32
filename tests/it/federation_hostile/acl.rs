//! Servers that a room keeps out, however their names are written.

use serde_json::json;
use sotto_tests::{Draft, room};

use super::{MALLORY, Scene, reading::requests};

/// Patterns of a list, and whether `b.test` is among those whom they name.
const PATTERNS: [(&str, bool); 14] = [
    ("b.test", true),
    ("B.TeSt", true),
    ("*.test", true),
    ("?.TEST", true),
    ("b.*", true),
    ("*b*t*", true),
    ("b.test*", true),
    ("*", true),
    ("a.test", false),
    ("b.test.", false),
    ("b.test:8448", false),
    ("b?test?", false),
    ("[b].test", false),
    ("xn--b.test", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_list_means_a_server_however_it_is_written() {
    let mut scene = Scene::new().await;
    let path = room(scene.room_id(), "state/m.room.server_acl/");
    for (pattern, named) in PATTERNS {
        for denied in [true, false] {
            let list = if denied {
                json!({ "allow": ["*"], "deny": [pattern] })
            } else {
                json!({ "allow": [pattern, "a.test"] })
            };
            scene.alice.put(&path, &list).await.ok();
            scene.catches_up().await;
            let is_out = named == denied;
            for (method, path, body) in requests(&scene) {
                let peer = scene.fake.peer();
                let answer = peer.ask(&scene.ours, method, &path, body.as_ref()).await;
                let refused = answer.status.as_u16() == 403;
                assert_eq!(refused, is_out, "{list} {path}: {}", answer.body);
            }
            let tip = scene.seat.tip.clone();
            let text = Draft::text(MALLORY, &list.to_string());
            let said = scene.fake.peer().make_after(&scene.seat, &tip, &text);
            scene.deliver(&said).await;
            let shown = scene.bodies().await.contains(&list.to_string());
            assert_eq!(shown, !is_out, "{list}");
        }
    }
}
