//! Rooms with a policy server.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, Lie, Made, TestServer, User, escape, room};

const MALLORY: &str = "@mallory:b.test";

/// A room of Alice's with the other server in it, which can be its policy server.
struct Scene {
    ours: TestServer,
    fake: FakeServer,
    alice: User,
    seat: sotto_tests::Seat,
}

impl Scene {
    async fn new() -> Self {
        let (ours, mut other) = TestServer::pair().await;
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        let alice = ours.register("alice").await;
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let room_id = alice.create_room(&body).await;
        let seat = fake.peer().join(&ours, &room_id, MALLORY).await;
        Self {
            ours,
            fake,
            alice,
            seat,
        }
    }

    fn room_id(&self) -> &str {
        self.seat.room_id.as_str()
    }

    async fn set_policy(&mut self, content: &Value) {
        let path = room(self.room_id(), "state/m.room.policy/");
        self.alice.put(&path, content).await.ok();
        self.catches_up().await;
    }

    /// The other server learns of the newest event.
    async fn catches_up(&mut self) {
        let page = room(self.room_id(), "messages?dir=b&limit=1");
        let page = self.alice.get(&page).await.ok();
        let id = page["chunk"][0]["event_id"].as_str().unwrap();
        self.seat.tip = vec![ruma::EventId::parse(id).unwrap()];
        self.seat.depth += 1;
    }

    async fn try_send(&self, text: &str) -> sotto_tests::Answer {
        let path = room(self.room_id(), &format!("send/m.room.message/{text}"));
        let content = json!({ "msgtype": "m.text", "body": text });
        self.alice.put(&path, &content).await
    }

    /// Mallory says something, which is not on the tip of the room afterwards.
    async fn hears(&mut self, text: &str) -> bool {
        let tip = self.seat.tip.clone();
        let draft = Draft::text(MALLORY, text);
        let made: Made = self.fake.peer().make_after(&self.seat, &tip, &draft);
        assert_eq!(self.fake.peer().deliver(&self.ours, &made).await, None);
        let path = format!("event/{}", escape(made.id.as_str()));
        let path = room(self.room_id(), &path);
        self.alice.get(&path).await.status.is_success()
    }

    async fn signatures(&self, event_id: &str) -> Value {
        let path = format!("/_matrix/federation/v1/event/{}", escape(event_id));
        let peer = self.fake.peer();
        let answer = peer.ask(&self.ours, Method::GET, &path, None).await.ok();
        answer["pdus"][0]["signatures"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_server_does_not_recommend_is_not_sent_and_not_shown() {
    let mut scene = Scene::new().await;
    let key = scene.fake.policy_key();
    // Without a policy server nobody is asked.
    scene.fake.lie(Lie::RefuseToSign);
    scene.try_send("free").await.ok();
    assert!(scene.hears("also free").await);
    let carol = scene.ours.register("carol").await;
    carol.join(scene.room_id()).await.ok();

    let policy = json!({ "via": "b.test", "public_keys": { "ed25519": key } });
    scene.set_policy(&policy).await;
    let refused = scene.try_send("spam").await;
    assert_eq!(refused.refused(), (400, "M_FORBIDDEN"));
    assert_eq!(refused.body["error"], "This looks like spam");
    assert!(!scene.hears("more spam").await, "it is soft-failed");
    // Nobody is kept in the room.
    carol
        .post(&room(scene.room_id(), "leave"), &json!({}))
        .await
        .ok();
    scene.catches_up().await;

    scene.fake.lie(Lie::None);
    let sent = scene.try_send("good").await.ok();
    let signatures = scene.signatures(sent["event_id"].as_str().unwrap()).await;
    assert!(signatures["a.test"].is_object());
    assert!(signatures["b.test"]["ed25519:policy_server"].is_string());
    assert!(scene.hears("good as well").await);

    // The event that names the policy server needs nobody's leave.
    scene.fake.lie(Lie::RefuseToSign);
    scene.set_policy(&json!({})).await;
    scene.try_send("free again").await.ok();
    assert!(scene.hears("free as well").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_server_is_asked_before_a_room_is_closed() {
    let mut scene = Scene::new().await;
    let key = scene.fake.policy_key();
    let policy = json!({ "via": "b.test", "public_keys": { "ed25519": key } });
    scene.set_policy(&policy).await;
    scene.fake.lie(Lie::RefuseToSign);
    let (path, version) = (
        room(scene.room_id(), "upgrade"),
        json!({ "new_version": "12" }),
    );
    let refused = scene.alice.post(&path, &version).await;
    assert_eq!(refused.refused(), (400, "M_FORBIDDEN"));
    let tombstone = room(scene.room_id(), "state/m.room.tombstone/?format=event");
    assert_eq!(
        scene.alice.get(&tombstone).await.refused(),
        (404, "M_NOT_FOUND")
    );
    scene.fake.lie(Lie::None);
    scene.alice.post(&path, &version).await.ok();
    for kind in ["tombstone", "power_levels"] {
        let path = format!("state/m.room.{kind}/?format=event");
        let closed = scene.alice.get(&room(scene.room_id(), &path)).await.ok();
        let signatures = scene.signatures(closed["event_id"].as_str().unwrap()).await;
        assert!(signatures["b.test"]["ed25519:policy_server"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_has_no_policy_server_that_is_not_in_it_or_has_no_key() {
    let mut scene = Scene::new().await;
    scene.fake.lie(Lie::RefuseToSign);
    let key = scene.fake.policy_key();
    for policy in [
        json!({ "via": "elsewhere.test", "public_keys": { "ed25519": key } }),
        json!({ "via": "b.test", "public_keys": {} }),
        json!({ "via": "b.test" }),
        json!({ "via": 1, "public_keys": { "ed25519": key } }),
    ] {
        scene.set_policy(&policy).await;
        scene.try_send("hello").await.ok();
        assert!(scene.hears(&policy.to_string()).await);
    }
    // A key with which the server does not sign: nothing passes.
    scene.fake.lie(Lie::None);
    let other = "l8Hft5qXKn1vfHrg3p4+W8gELQVo8N13JkluMfmn2sQ";
    let policy = json!({ "via": "b.test", "public_keys": { "ed25519": other } });
    scene.set_policy(&policy).await;
    assert_eq!(scene.try_send("wrongly signed").await.status.as_u16(), 502);
    assert!(!scene.hears("wrongly signed").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_a_new_name_is_told_stays_away() {
    let mut scene = Scene::new().await;
    let (carol, dave) = (
        scene.ours.register("carol").await,
        scene.ours.register("dave").await,
    );
    for user in [&carol, &dave] {
        user.join(scene.room_id()).await.ok();
    }
    scene.catches_up().await;
    let key = scene.fake.policy_key();
    let policy = json!({ "via": "b.test", "public_keys": { "ed25519": key } });
    scene.set_policy(&policy).await;
    scene.fake.lie(Lie::DelayJoins);
    let rename = async |user: &User| {
        let user_id = escape(&user.user_id);
        let path = format!("/_matrix/client/v3/profile/{user_id}/displayname");
        user.put(&path, &json!({ "displayname": "New" })).await.ok();
    };
    let member = async |user: &User| {
        let path = format!("state/m.room.member/{}", escape(&user.user_id));
        scene.alice.get(&room(scene.room_id(), &path)).await.ok()
    };
    let before = scene.fake.asked().len();
    rename(&carol).await;
    while scene.fake.asked().len() == before {
        tokio::task::yield_now().await;
    }
    let leave = room(scene.room_id(), "leave");
    carol.post(&leave, &json!({})).await.ok();
    // Names are told one after the other; this one is, when it is certain what became of the other.
    rename(&dave).await;
    while member(&dave).await["displayname"] != "New" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(member(&carol).await["membership"], "leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_cannot_log_a_user_out() {
    let scene = Scene::new().await;
    scene.fake.lie(Lie::NotLoggedIn);
    let room_id = scene.fake.room_id().as_str();
    let answer = scene.alice.join_via(room_id, "b.test").await;
    assert_eq!(answer.refused(), (502, "M_UNKNOWN"));
    scene.fake.lie(Lie::None);
    scene.alice.join_via(room_id, "b.test").await.ok();
}
