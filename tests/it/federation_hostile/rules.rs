//! What the rules of a room do not allow, in rooms of several versions.

use serde_json::{Value, json};
use sotto_tests::{Draft, Made, User, escape, room};

use super::{MALLORY, Scene};

const VERSIONS: [&str; 6] = ["3", "6", "9", "10", "11", "12"];

async fn meet(version: &str) -> (Scene, User) {
    let levels = json!({ "events_default": 50, "invite": 50 });
    let mut scene = Scene::with(json!({
        "preset": "public_chat", "room_version": version, "power_level_content_override": levels,
    }))
    .await;
    let dora = scene.ours.register("dora").await;
    dora.join(scene.room_id()).await.ok();
    scene.catches_up().await;
    (scene, dora)
}

/// Whether it was taken in, as an event that everybody sees.
async fn counts(scene: &Scene, made: &Made) -> bool {
    scene.deliver(made).await;
    let path = format!("event/{}", escape(made.id.as_str()));
    let shown = scene.alice.get(&room(scene.room_id(), &path)).await;
    shown.status.is_success()
}

async fn give_power(scene: &mut Scene) {
    let path = room(scene.room_id(), "state/m.room.power_levels/");
    let mut levels = scene.alice.get(&path).await.ok();
    levels["users"][MALLORY] = json!(100);
    scene.alice.put(&path, &levels).await.ok();
    scene.catches_up().await;
}

/// What needs power, in an order in which one after the other can be done.
fn drafts<'a>(dora: &'a str, levels: Value) -> Vec<Draft<'a>> {
    let member = |who: &'a str, membership: &str| {
        let content = json!({ "membership": membership });
        Draft::state(MALLORY, "m.room.member", who, content)
    };
    let state = |kind: &'a str, content: Value| Draft::state(MALLORY, kind, "", content);
    vec![
        Draft::text(MALLORY, "hello"),
        state("m.room.topic", json!({ "topic": "Mine" })),
        state("m.room.join_rules", json!({ "join_rule": "invite" })),
        state("test.custom", json!({})),
        member("@friend:c.test", "invite"),
        member(dora, "leave"),
        member(dora, "ban"),
        state("m.room.power_levels", levels),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_power_is_not_done_without_it() {
    for version in VERSIONS {
        let (mut scene, dora) = meet(version).await;
        let path = room(scene.room_id(), "state/m.room.power_levels/");
        let mut levels = scene.alice.get(&path).await.ok();
        levels["users"][MALLORY] = json!(100);
        for draft in drafts(&dora.user_id, levels.clone()) {
            let made = scene
                .fake
                .peer()
                .make_after(&scene.seat, &scene.seat.tip, &draft);
            assert!(!counts(&scene, &made).await, "{version} {draft:?}");
        }
        give_power(&mut scene).await;
        // What nobody may do, whatever their power.
        let own = json!({ "membership": "join" });
        for draft in [
            Draft::state(MALLORY, "m.room.member", "@friend:b.test", own),
            Draft::state(MALLORY, "test.custom", &dora.user_id, json!({})),
            Draft::state(MALLORY, "test.custom", "@friend:b.test", json!({})),
        ] {
            let made = scene
                .fake
                .peer()
                .make_after(&scene.seat, &scene.seat.tip, &draft);
            assert!(!counts(&scene, &made).await, "{version} {draft:?}");
        }
        // The control: with power the same is done.
        for draft in drafts(&dora.user_id, levels.clone()) {
            let made = scene.make(&draft);
            assert!(counts(&scene, &made).await, "{version} {draft:?}");
        }
        let own = Draft::state(MALLORY, "test.custom", MALLORY, json!({}));
        let made = scene.make(&own);
        assert!(counts(&scene, &made).await, "{version}");
    }
}

/// Where nothing is said of what allows an event, nothing allows it.
#[tokio::test(flavor = "multi_thread")]
async fn what_names_nothing_that_allows_it_is_not_allowed() {
    for version in VERSIONS {
        let (mut scene, _) = meet(version).await;
        give_power(&mut scene).await;
        let text = Draft::text(MALLORY, "hello");
        let (tip, bare) = (scene.seat.tip.clone(), scene.seat.without_state());
        let made = scene.fake.peer().make_after(&bare, &tip, &text);
        assert_eq!(made.json["auth_events"], json!([]));
        assert!(!counts(&scene, &made).await, "{version}");
        // The control: the same, with what allows it.
        let made = scene.fake.peer().make_after(&scene.seat, &tip, &text);
        assert!(counts(&scene, &made).await, "{version}");
    }
}

/// A room goes by the rules of its own version.
#[tokio::test(flavor = "multi_thread")]
async fn levels_that_are_written_as_text_count_only_where_they_did() {
    for version in VERSIONS {
        let (mut scene, _) = meet(version).await;
        give_power(&mut scene).await;
        let path = room(scene.room_id(), "state/m.room.power_levels/");
        let mut levels = scene.alice.get(&path).await.ok();
        levels["ban"] = json!("60");
        let text = Draft::state(MALLORY, "m.room.power_levels", "", levels.clone());
        let made = scene
            .fake
            .peer()
            .make_after(&scene.seat, &scene.seat.tip, &text);
        let known_as_text = version.parse::<u32>().unwrap() < 10;
        assert_eq!(counts(&scene, &made).await, known_as_text, "{version}");
        // The control: as a number it counts everywhere.
        levels["ban"] = json!(61);
        let number = Draft::state(MALLORY, "m.room.power_levels", "", levels);
        let made = scene
            .fake
            .peer()
            .make_after(&scene.seat, &scene.seat.tip, &number);
        assert!(counts(&scene, &made).await, "{version}");
    }
}
