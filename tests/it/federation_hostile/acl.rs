//! Servers that a room keeps out, however their names are written.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use sotto_tests::{Crowd, Draft, Setup, Size, escape, room};

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

const V4: &str = "127.0.0.1:4477";
const FOREIGN: &str = "xn--bcher-kva.test";

/// Names, patterns that are denied, and whether they name the server.
const DENIED: [(&str, &str, bool); 9] = [
    (V4, "127.0.0.1", true),
    (V4, "127.0.0.*", true),
    (V4, "127.0.0.1:4477", false),
    (V4, "127.0.0.2", false),
    (FOREIGN, "xn--bcher-kva.test", true),
    (FOREIGN, "XN--BCHER-KVA.TEST", true),
    (FOREIGN, "xn--*", true),
    (FOREIGN, "b\u{fc}cher.test", false),
    (FOREIGN, "xn--bcher-kva.test.", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn addresses_and_foreign_scripts_are_kept_out_as_others_are() {
    let names = ["s0.test", V4, FOREIGN].map(ToOwned::to_owned);
    let size = Size {
        members: 2,
        levels: 1,
        ..Size::default()
    };
    let crowd = Arc::new(Crowd::named(&names, size, Duration::ZERO).await);
    let known = crowd.clone();
    let setup = Setup::with(move |config| known.introduce(config));
    let ours = setup.federation(1).await.remove(0);
    let alice = ours.register("alice").await;
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    for name in [V4, FOREIGN] {
        let user = format!("@somebody:{name}");
        let peer = crowd.speaker(&ours, &user);
        peer.join(&ours, &room_id, &user).await;
    }
    let said = alice.send(&room_id, "Hello").await;
    let (at, from) = (escape(&room_id), escape(&said));
    let is_out = async |name: &str, list: &serde_json::Value| {
        let path = room(&room_id, "state/m.room.server_acl/");
        alice.put(&path, list).await.ok();
        let path = format!("/_matrix/federation/v1/backfill/{at}?v={from}&limit=1");
        let peer = crowd.speaker(&ours, &format!("@somebody:{name}"));
        match peer.get(&ours, &path).await.status.as_u16() {
            200 => false,
            403 => true,
            other => panic!("{name} got {other}"),
        }
    };
    for (name, pattern, named) in DENIED {
        let list = json!({ "allow": ["*"], "deny": [pattern] });
        assert_eq!(is_out(name, &list).await, named, "{name} {pattern}");
    }
    for (name, is_address) in [(V4, true), (FOREIGN, false)] {
        let list = json!({ "allow": ["*"], "allow_ip_literals": false });
        assert_eq!(is_out(name, &list).await, is_address, "{name}");
        let list = json!({ "allow": ["*"] });
        assert!(!is_out(name, &list).await, "{name}");
    }
}
