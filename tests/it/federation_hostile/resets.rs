//! Attempts to take the state of a room back.

use serde_json::{Value, json};
use sotto_tests::{Draft, Seat, room};

use super::{MALLORY, Scene};

const NICE: &str = "@nice:b.test";

async fn levels(scene: &Scene, mallory: i64) -> String {
    let path = room(scene.room_id(), "state/m.room.power_levels/");
    let mut levels = scene.alice.get(&path).await.ok();
    levels["users"][MALLORY] = json!(mallory);
    let set = scene.alice.put(&path, &levels).await.ok();
    set["event_id"].as_str().unwrap().to_owned()
}

async fn topic(scene: &Scene) -> Value {
    scene.state("m.room.topic").await.ok()["topic"].clone()
}

/// What Mallory does on the branch on which she still had power.
async fn attack(scene: &mut Scene, mut branch: Seat) -> Vec<ruma::OwnedEventId> {
    let peer = scene.fake.peer().clone();
    let ban = json!({ "membership": "ban" });
    let drafts = [
        Draft::state(MALLORY, "m.room.topic", "", json!({ "topic": "Mine" })),
        Draft::state(MALLORY, "m.room.name", "", json!({ "name": "Mine" })),
        Draft::state(MALLORY, "m.room.member", "@carol:a.test", ban),
    ];
    for draft in &drafts {
        let made = peer.make(&mut branch, draft);
        scene.deliver(&made).await;
    }
    branch.tip
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_power_cannot_act_on_a_branch_where_it_was_not_lost() {
    for version in ["10", "11", "12"] {
        for demoted in [true, false] {
            let body = json!({ "preset": "public_chat", "room_version": version });
            let mut scene = Scene::with(body).await;
            let carol = scene.ours.register("carol").await;
            carol.join(scene.room_id()).await.ok();
            let peer = scene.fake.peer().clone();
            levels(&scene, 50).await;
            // Where Mallory has power.
            let branch = peer.join(&scene.ours, scene.room_id(), MALLORY).await;
            if demoted {
                levels(&scene, 0).await;
            }
            let path = room(scene.room_id(), "state/m.room.topic/");
            scene
                .alice
                .put(&path, &json!({ "topic": "Ours" }))
                .await
                .ok();
            let mut seat = peer.join(&scene.ours, scene.room_id(), NICE).await;
            let tips = attack(&mut scene, branch).await;
            // Somebody who may speak says something on top of both.
            seat.tip.extend(tips);
            let both = peer.make(&mut seat, &Draft::text(NICE, "all together"));
            assert_eq!(scene.deliver(&both).await, None);
            assert_eq!(scene.bodies().await, ["all together"]);
            let expected = if demoted { "Ours" } else { "Mine" };
            assert_eq!(topic(&scene).await, expected, "version {version}");
            let named = scene.state("m.room.name").await.status.is_success();
            assert_eq!(named, !demoted);
            let members = room(scene.room_id(), "joined_members");
            let members = scene.alice.get(&members).await.ok();
            let carol_is_in = members["joined"].get(&carol.user_id).is_some();
            assert_eq!(carol_is_in, demoted, "version {version}");
        }
    }
}
