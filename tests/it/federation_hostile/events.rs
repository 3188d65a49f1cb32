//! Events that should not count.

use serde_json::json;
use sotto_tests::{Draft, escape, room};
use sqlx::{AnyConnection, Connection};

use super::{MALLORY, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_from_before_a_ban_that_comes_late_is_not_shown() {
    for banned in [true, false] {
        let scene = Scene::new().await;
        let (tip, depth) = (scene.seat.tip.clone(), scene.seat.depth);
        if banned {
            let ban = json!({ "user_id": MALLORY });
            scene
                .alice
                .post(&room(scene.room_id(), "ban"), &ban)
                .await
                .ok();
            // Somebody of the server stays, so that it is still heard.
            scene
                .fake
                .peer()
                .join(&scene.ours, scene.room_id(), "@nice:b.test")
                .await;
        }
        let mut late = scene.seat.clone();
        (late.tip, late.depth) = (tip, depth);
        let said = scene
            .fake
            .peer()
            .make(&mut late, &Draft::text(MALLORY, "I am still here"));
        assert_eq!(
            scene.deliver(&said).await,
            None,
            "it passes by its own state"
        );
        let shown = scene.bodies().await;
        assert_eq!(shown.is_empty(), banned, "{shown:?}");
        let path = room(
            scene.room_id(),
            &format!("event/{}", escape(said.id.as_str())),
        );
        assert_eq!(scene.alice.get(&path).await.status.is_success(), !banned);
        // Nothing of ours builds on it.
        let next = scene.alice.send(scene.room_id(), "next").await;
        let path = format!("/_matrix/federation/v1/event/{}", escape(&next));
        let event = scene.get(&path).await.ok()["pdus"][0].clone();
        let builds = event["prev_events"].to_string().contains(said.id.as_str());
        assert_eq!(builds, !banned);
    }
}

/// How many rejected events lie between two good ones.
const REJECTED: usize = 10_000;

/// How many rejected events the server has.
async fn rejected(scene: &Scene) -> usize {
    sqlx::any::install_default_drivers();
    let url = scene.ours.database_url();
    let mut connection = AnyConnection::connect(&url).await.unwrap();
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM events WHERE verdict = 2");
    let count: i64 = count.fetch_one(&mut connection).await.unwrap();
    count.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_events_change_nothing_and_hide_nothing() {
    let mut scene = Scene::new().await;
    let first = scene.make(&Draft::text(MALLORY, "first"));
    assert_eq!(scene.deliver(&first).await, None);
    let tip = scene.seat.tip.clone();
    let levels = json!({ "users": { MALLORY: 100 } });
    let grab = Draft::state(MALLORY, "m.room.power_levels", "", levels);
    let grab = scene.fake.peer().make_after(&scene.seat, &tip, &grab);
    // It was taken in as a rejected one, which is no failure of the transaction.
    assert_eq!(scene.deliver(&grab).await, None);
    let levels = scene.state("m.room.power_levels").await.ok();
    assert!(levels["users"].get(MALLORY).is_none());
    // Built on the rejected event, and named as what allows it.
    let topic = json!({ "topic": "Mine" });
    let mut seat = scene.seat.clone();
    seat.has("m.room.power_levels", "", &grab.id);
    let abuse = Draft::state(MALLORY, "m.room.topic", "", topic);
    let abuse = scene
        .fake
        .peer()
        .make_after(&seat, std::slice::from_ref(&grab.id), &abuse);
    assert_eq!(scene.deliver(&abuse).await, None);
    assert_eq!(
        scene.state("m.room.topic").await.refused(),
        (404, "M_NOT_FOUND")
    );
    // Many of them do not end anybody's reading.
    for part in 0..REJECTED / 50 {
        let mut many = Vec::new();
        for number in 0..50 {
            let levels = json!({ "users": { MALLORY: 100 }, "number": 50 * part + number });
            let grab = Draft::state(MALLORY, "m.room.power_levels", "", levels);
            many.push(scene.fake.peer().make_after(&scene.seat, &tip, &grab));
        }
        let pdus: Vec<_> = many.iter().collect();
        scene.fake.peer().send(&scene.ours, &pdus, &[]).await.ok();
        let path = format!("event/{}", escape(many[0].id.as_str()));
        let shown = scene.alice.get(&room(scene.room_id(), &path)).await;
        assert_eq!(shown.status.as_u16(), 404);
    }
    let last = scene.make(&Draft::text(MALLORY, "last"));
    assert_eq!(scene.deliver(&last).await, None);
    // The control: they are there, many more of them than a page is long.
    assert!(rejected(&scene).await >= REJECTED);
    assert_eq!(scene.bodies().await, ["last", "first"]);
    let state = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={}",
        escape(scene.room_id()),
        escape(last.id.as_str())
    );
    let ids = scene.get(&state).await.ok().to_string();
    assert!(!ids.contains(grab.id.as_str()) && !ids.contains(abuse.id.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_does_not_keep_the_others_out() {
    let mut scene = Scene::new().await;
    let good = scene.make(&Draft::text(MALLORY, "good"));
    let mut unsigned = scene.make(&Draft::text(MALLORY, "unsigned")).json;
    unsigned["signatures"] = json!({});
    let strange = [
        json!({}),
        json!([]),
        json!("event"),
        json!(null),
        json!({ "room_id": scene.room_id() }),
        json!({ "room_id": scene.room_id(), "type": 1, "depth": 1.5 }),
        json!({ "room_id": { "a": "b" } }),
        json!({ "room_id": "!nowhere:b.test", "type": "m.room.message" }),
        unsigned,
    ];
    let mut pdus = strange.to_vec();
    pdus.insert(4, good.json.clone());
    let edus = [
        json!({ "edu_type": "m.typing", "content": 1 }),
        json!({ "edu_type": 7 }),
        json!([]),
        json!({ "edu_type": "m.receipt", "content": { "x": [] } }),
    ];
    let peer = scene.fake.peer();
    let answer = peer.send_as(&scene.ours, "mixed", &pdus, &edus).await.ok();
    assert!(
        answer["pdus"][good.id.as_str()]
            .as_object()
            .is_some_and(serde_json::Map::is_empty)
    );
    assert_eq!(scene.bodies().await, ["good"]);
    // Once more is not twice.
    let again = peer.send_as(&scene.ours, "mixed", &pdus, &edus).await.ok();
    assert_eq!(again["pdus"], answer["pdus"]);
    assert_eq!(scene.bodies().await, ["good"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_transactions_are_refused_and_depth_has_an_end() {
    let mut scene = Scene::new().await;
    let peer = scene.fake.peer().clone();
    let many = vec![json!({}); 51];
    assert_eq!(peer.send_as(&scene.ours, "p", &many, &[]).await.status, 400);
    let many = vec![json!({}); 101];
    assert_eq!(peer.send_as(&scene.ours, "e", &[], &many).await.status, 400);
    scene.seat.depth = (1 << 53) - 2;
    let deep = scene.make(&Draft::text(MALLORY, "deep"));
    assert_eq!(deep.json["depth"], (1_u64 << 53) - 1);
    scene.deliver(&deep).await;
    // The room goes on.
    for number in 0..3 {
        scene
            .alice
            .send(scene.room_id(), &format!("on {number}"))
            .await;
    }
    let bodies = scene.bodies().await;
    assert!(bodies.starts_with(&["on 2".to_owned(), "on 1".to_owned(), "on 0".to_owned()]));
}
