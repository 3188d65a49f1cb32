//! Joins that we sign because a user of ours opens the room.

use http::Method;
use serde_json::{Value, json};
use sotto_tests::{Draft, Made, User, escape, room};

use super::{MALLORY, Scene, pairs::catch_up};

const STRANGER: &str = "@stranger:b.test";
const MEMBER: &str = "m.room.member";

/// A room for the members of another.
async fn inner(alice: &User, club: &str) -> String {
    let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let rules = json!([{ "type": "m.room.join_rules", "content": rules }]);
    let body = json!({ "room_version": "11", "initial_state": rules });
    alice.create_room(&body).await
}

fn join(by: &str) -> Value {
    json!({ "membership": "join", "join_authorised_via_users_server": by })
}

/// What is no join of one who may.
fn wrong(alice: &str) -> Vec<(&'static str, Draft<'static>)> {
    let member = |who: &'static str, content: Value| Draft::state(who, MEMBER, who, content);
    let mut invite = join(alice);
    invite["membership"] = json!("invite");
    let mut levels = join(alice);
    levels["users"] = json!({ MALLORY: 100 });
    let alone = json!({ "membership": "join" });
    vec![
        ("not in the other room", member(STRANGER, join(alice))),
        ("opened by nobody", member(MALLORY, alone)),
        (
            "by one who is not there",
            member(MALLORY, join("@nobody:a.test")),
        ),
        ("by one of the same server", member(MALLORY, join(MALLORY))),
        ("no join", member(MALLORY, invite)),
        (
            "no member",
            Draft::state(MALLORY, "m.room.power_levels", "", levels),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn only_joins_of_those_who_may_are_signed() {
    let scene = Scene::new().await;
    let alice = scene.alice.user_id.as_str();
    let inner = inner(&scene.alice, scene.room_id()).await;
    let mut seat = scene.seat.without_state();
    seat.room_id = ruma::RoomId::parse(&inner).unwrap();
    catch_up(&scene.alice, &mut seat).await;
    let peer = scene.fake.peer();
    let hand_in = async |made: &Made| {
        let (room_id, event_id) = (escape(&inner), escape(made.id.as_str()));
        let path = format!("/_matrix/federation/v2/send_join/{room_id}/{event_id}");
        peer.ask(&scene.ours, Method::PUT, &path, Some(&made.json))
            .await
    };
    for (what, draft) in wrong(alice) {
        let made = peer.make_after(&seat, &seat.tip, &draft);
        let answer = hand_in(&made).await;
        assert!(
            answer.status.is_client_error(),
            "{what}: {} {}",
            answer.status,
            answer.body
        );
        let path = room(&inner, &format!("event/{}", escape(made.id.as_str())));
        assert_eq!(scene.alice.get(&path).await.status.as_u16(), 404, "{what}");
    }
    // The control: who may join has it signed.
    let draft = Draft::state(MALLORY, MEMBER, MALLORY, join(alice));
    let good = peer.make_after(&seat, &seat.tip, &draft);
    assert!(good.json["signatures"].get("a.test").is_none());
    let answer = hand_in(&good).await.ok();
    assert!(
        answer["event"]["signatures"]["a.test"].is_object(),
        "{answer}"
    );
}
