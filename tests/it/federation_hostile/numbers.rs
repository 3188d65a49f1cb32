//! JSON that is written in strange ways.

use http::Method;
use serde_json::json;
use sotto_tests::{Draft, escape, room};

use super::{MALLORY, Scene};

/// Puts a text into the body of an event where it is quoted.
fn strange(event: &str, what: &str) -> String {
    event.replace("\"PUT IT HERE\"", what)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_strange_json_are_left_out_and_harm_nobody() {
    let mut scene = Scene::new().await;
    let peer = scene.fake.peer().clone();
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let honest = "\"as it was made\"";
    for (number, what) in [
        "NaN",
        "Infinity",
        "1e999",
        "-0",
        "1.5",
        "9007199254740993",
        "-9007199254740993",
        "123456789012345678901234567890",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "\"a\", \"body\": \"b\"",
        deep.as_str(),
        "\"x",
        "",
        honest,
    ]
    .into_iter()
    .enumerate()
    {
        let mut draft = Draft::text(MALLORY, "PUT IT HERE");
        draft.content["number"] = json!(number);
        if what == honest {
            draft.content["body"] = json!("as it was made");
        }
        let made = peer.make_after(&scene.seat, &scene.seat.tip, &draft);
        let event = strange(&made.json.to_string(), what);
        let body = format!(
            "{{\"origin\":\"b.test\",\"origin_server_ts\":1,\"pdus\":[{event}],\"edus\":[]}}"
        );
        let path = format!("/_matrix/federation/v1/send/strange{number}");
        let answer = peer
            .try_ask(
                peer.name(),
                &scene.ours,
                Method::PUT,
                &path,
                Some(body.into_bytes()),
            )
            .await;
        let status = answer.map_or(0, |answer| answer.status.as_u16());
        assert!(status < 500, "{status}");
        // What is JSON all the same is not what was hashed, and so comes without its content.
        let path = format!("event/{}", escape(made.id.as_str()));
        let shown = scene.alice.get(&room(scene.room_id(), &path)).await;
        let has_body = shown.body["content"].get("body").is_some();
        assert_eq!(has_body, what == honest, "{what:.40}");
    }
    assert_eq!(scene.bodies().await, ["as it was made"]);
    let next = scene.make(&Draft::text(MALLORY, "and on"));
    assert_eq!(scene.deliver(&next).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_at_most_65536_bytes() {
    let mut scene = Scene::new().await;
    let empty = scene.make(&Draft::text(MALLORY, ""));
    assert_eq!(scene.deliver(&empty).await, None);
    let rest = 65_536 - empty.json.to_string().len();
    for (length, fits) in [(rest, true), (rest - 1, true)] {
        let made = scene.make(&Draft::text(MALLORY, &"x".repeat(length)));
        assert!(made.json.to_string().len() <= 65_536);
        let refused = scene.deliver(&made).await;
        assert_eq!(refused.is_none(), fits, "{length}: {refused:?}");
    }
    // One byte more, which is not signed and so does not make it another event.
    let mut made = scene.make(&Draft::text(MALLORY, &"x".repeat(rest - 9)));
    made.json["signatures"]["b.test"]["ed25519:more"] = json!("A".repeat(86));
    scene
        .fake
        .peer()
        .send(&scene.ours, &[&made], &[])
        .await
        .ok();
    let path = room(
        scene.room_id(),
        &format!("event/{}", escape(made.id.as_str())),
    );
    assert_eq!(scene.alice.get(&path).await.status.as_u16(), 404);
}
