//! Events that did not count when they came, and count later.

use serde_json::{Value, json};
use sotto_tests::{Draft, room};

use super::{MALLORY, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn what_came_too_early_is_taken_in_when_it_comes_again() {
    let mut scene = Scene::new().await;
    let (first, second) = (
        scene.make(&Draft::text(MALLORY, "first")),
        scene.make(&Draft::text(MALLORY, "second")),
    );
    // What it builds on cannot be had: it is not known whether it is allowed.
    scene.deliver(&second).await;
    assert_eq!(scene.bodies().await, Vec::<String>::new());
    let sync = scene.alice.sync(None, 0).await;
    let since = sync["next_batch"].as_str();
    assert_eq!(scene.deliver(&first).await, None);
    assert_eq!(scene.deliver(&second).await, None);
    assert_eq!(scene.bodies().await, ["second", "first"]);
    let sync = scene.alice.sync(since, 0).await;
    let timeline = &sync["rooms"]["join"][scene.room_id()]["timeline"]["events"];
    assert_eq!(timeline.as_array().unwrap().len(), 2, "{timeline}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_that_which_allows_it_is_taken_in_when_it_comes_again() {
    let mut scene = Scene::new().await;
    let tip = scene.seat.tip.clone();
    let renamed = json!({ "membership": "join", "displayname": "M" });
    let renamed = scene.make(&Draft::state(MALLORY, "m.room.member", MALLORY, renamed));
    let text = Draft::text(MALLORY, "as M");
    let said = scene.fake.peer().make_after(&scene.seat, &tip, &text);
    let named = said.json["auth_events"].to_string();
    assert!(named.contains(renamed.id.as_str()), "{named}");
    scene.deliver(&said).await;
    assert_eq!(scene.bodies().await, Vec::<String>::new());
    assert_eq!(scene.deliver(&renamed).await, None);
    assert_eq!(scene.deliver(&said).await, None);
    assert_eq!(scene.bodies().await, ["as M"]);
}

async fn levels(scene: &Scene, mallory: i64) {
    let path = room(scene.room_id(), "state/m.room.power_levels/");
    let mut levels = scene.alice.get(&path).await.ok();
    levels["users"][MALLORY] = json!(mallory);
    scene.alice.put(&path, &levels).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_soft_failed_is_told_once_it_is_part_of_the_state() {
    for version in ["11", "12"] {
        let body = json!({ "preset": "public_chat", "room_version": version });
        let scene = Scene::with(body).await;
        let peer = scene.fake.peer().clone();
        levels(&scene, 50).await;
        let mut branch = peer.join(&scene.ours, scene.room_id(), MALLORY).await;
        levels(&scene, 0).await;
        let topic = json!({ "topic": "Mine" });
        let topic = Draft::state(MALLORY, "m.room.topic", "", topic);
        let topic = peer.make(&mut branch, &topic);
        assert_eq!(scene.deliver(&topic).await, None);
        assert_eq!(
            scene.state("m.room.topic").await.refused(),
            (404, "M_NOT_FOUND")
        );
        // Mallory may do it again, and somebody builds on it.
        levels(&scene, 50).await;
        let nice = "@nice:b.test";
        let mut seat = peer.join(&scene.ours, scene.room_id(), nice).await;
        let sync = scene.alice.sync(None, 0).await;
        let since = sync["next_batch"].as_str();
        assert!(!sync.to_string().contains(topic.id.as_str()));
        seat.tip.extend(branch.tip);
        let both = peer.make(&mut seat, &Draft::text(nice, "all together"));
        assert_eq!(scene.deliver(&both).await, None);
        assert_eq!(scene.state("m.room.topic").await.ok()["topic"], "Mine");
        let told = &scene.alice.sync(since, 0).await["rooms"]["join"][scene.room_id()];
        let has = |part: &str| {
            let events = told[part]["events"].as_array().into_iter().flatten();
            let ids: Vec<&Value> = events.map(|event| &event["event_id"]).collect();
            ids.contains(&&json!(topic.id))
        };
        assert!(has("state") || has("timeline"), "version {version}: {told}");
    }
}
