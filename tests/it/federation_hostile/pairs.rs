//! Requests that say in one place what they do not say in another: in the path, in the event, by who signs.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{
    Answer, Draft, FakeServer, Made, Peer, Seat, Setup, TestServer, User, escape, room,
};

use super::MALLORY;

const FRIEND: &str = "@friend:b.test";
const CAROL: &str = "@carol:c.test";

/// The ways to hand in an event, and what it makes of a user.
const VERBS: [(&str, &str); 5] = [
    ("v1/send_join", "join"),
    ("v2/send_join", "join"),
    ("v1/send_leave", "leave"),
    ("v2/send_leave", "leave"),
    ("v1/send_knock", "knock"),
];

/// What is asked for.
struct Request {
    what: String,
    by: Peer,
    room_id: String,
    event_id: String,
    event: Value,
}

struct Scene {
    ours: TestServer,
    alice: User,
    mallory: FakeServer,
    carol: FakeServer,
    /// Open to everybody, and another one like it; one at whose door one knocks.
    rooms: [String; 3],
    _gone: Vec<TestServer>,
}

impl Scene {
    async fn new() -> Self {
        let mut servers = Setup::default().federation(3).await;
        let mut fakes = Vec::new();
        for server in &mut servers[1..] {
            server.stop().await;
            fakes.push(FakeServer::replace(server, RoomVersionId::V11).await);
        }
        let ours = servers.remove(0);
        let alice = ours.register("alice").await;
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let rooms = [
            alice.create_room(&body).await,
            alice.create_room(&body).await,
            alice.create_room(&body).await,
        ];
        let (carol, mallory) = (fakes.pop().unwrap(), fakes.pop().unwrap());
        Self {
            ours,
            alice,
            mallory,
            carol,
            rooms,
            _gone: servers,
        }
    }

    async fn set(&self, room_id: &str, join_rule: &str) {
        let path = room(room_id, "state/m.room.join_rules/");
        let rule = json!({ "join_rule": join_rule });
        self.alice.put(&path, &rule).await.ok();
    }

    async fn hand_in(&self, verb: &str, request: &Request) -> u16 {
        let (room_id, event_id) = (escape(&request.room_id), escape(&request.event_id));
        let path = format!("/_matrix/federation/{verb}/{room_id}/{event_id}");
        let by = &request.by;
        let answer = by
            .ask(&self.ours, Method::PUT, &path, Some(&request.event))
            .await;
        answer.status.as_u16()
    }

    /// Gives this as an invite to Mallory's room.
    async fn invite(&self, peer: &Peer, room_id: &str, event_id: &str, event: &Value) -> Answer {
        let (room_id, event_id) = (escape(room_id), escape(event_id));
        let path = format!("/_matrix/federation/v2/invite/{room_id}/{event_id}");
        let state = self.mallory.state();
        let body = json!({ "room_version": "11", "event": event, "invite_room_state": state });
        peer.ask(&self.ours, Method::PUT, &path, Some(&body)).await
    }

    async fn membership(&self, room_id: &str, user: &str) -> Value {
        let path = room(room_id, &format!("state/m.room.member/{user}"));
        self.alice.get(&path).await.body["membership"].clone()
    }

    /// The event of a user who comes, goes or knocks, and everything that is nearly that.
    fn requests(&self, seat: &Seat, user: &str, membership: &str) -> (Request, Vec<Request>) {
        let (by, other) = (self.mallory.peer(), self.carol.peer());
        let room_id = seat.room_id.to_string();
        let make = |peer: &Peer, user: &str| -> Made {
            let content = json!({ "membership": membership });
            let draft = Draft::state(user, "m.room.member", user, content);
            peer.make_after(seat, &seat.tip, &draft)
        };
        let request = |what: &str, by: &Peer, made: &Made| Request {
            what: format!("{what} {membership}"),
            by: by.clone(),
            room_id: room_id.clone(),
            event_id: made.id.to_string(),
            event: made.json.clone(),
        };
        let good_event = make(by, user);
        let good = request("good", by, &good_event);
        let text = by.make_after(seat, &seat.tip, &Draft::text(user, "hello"));
        let mut elsewhere = request("in another room", by, &good_event);
        elsewhere.room_id.clone_from(&self.rooms[1]);
        let mut other_id = request("with the id of another event", by, &good_event);
        other_id.event_id = text.id.to_string();
        let content = json!({ "membership": membership });
        let of_friend = Draft::state(user, "m.room.member", FRIEND, content);
        let of_friend = by.make_after(seat, &seat.tip, &of_friend);
        let of_carol = make(other, CAROL);
        let wrong = vec![
            elsewhere,
            other_id,
            request("handed in by another server", other, &good_event),
            request("of another type", by, &text),
            request("of a friend", by, &of_friend),
            request("of a user of another server", by, &of_carol),
        ];
        (good, wrong)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_in_is_what_the_path_and_the_signature_say() {
    let scene = Scene::new().await;
    for (number, (verb, membership)) in VERBS.into_iter().enumerate() {
        let at = if membership == "knock" {
            &scene.rooms[2]
        } else {
            &scene.rooms[0]
        };
        let peer = scene.mallory.peer();
        let user = format!("@user{number}:b.test");
        let somebody = if membership == "leave" {
            user.as_str()
        } else {
            MALLORY
        };
        scene.set(at, "public").await;
        let mut seat = peer.join(&scene.ours, at, somebody).await;
        if membership == "knock" {
            scene.set(at, "knock").await;
        }
        catch_up(&scene.alice, &mut seat).await;
        let before = scene.membership(at, &user).await;
        let (good, wrong) = scene.requests(&seat, &user, membership);
        for request in &wrong {
            let status = scene.hand_in(verb, request).await;
            assert!(
                (400..500).contains(&status),
                "{verb} {}: {status}",
                request.what
            );
        }
        // Nor is it anything else.
        for (other, becomes) in VERBS {
            if becomes != membership {
                let status = scene.hand_in(other, &good).await;
                assert!(
                    (400..500).contains(&status),
                    "{other} {membership}: {status}"
                );
            }
        }
        assert_eq!(scene.membership(at, &user).await, before, "{verb}");
        for user in [FRIEND, CAROL] {
            assert_eq!(scene.membership(at, user).await, Value::Null, "{verb}");
        }
        // The control: the one that agrees with itself is taken in.
        assert_eq!(scene.hand_in(verb, &good).await, 200, "{verb}");
        assert_eq!(scene.membership(at, &user).await, membership, "{verb}");
    }
}

/// The seat learns of the newest rules.
pub(super) async fn catch_up(alice: &User, seat: &mut Seat) {
    let path = room(seat.room_id.as_str(), "state");
    let state = alice.get(&path).await.ok();
    for event in state.as_array().unwrap() {
        let text = |name: &str| event[name].as_str().unwrap();
        let id = ruma::EventId::parse(text("event_id")).unwrap();
        seat.has(text("type"), text("state_key"), &id);
    }
    let path = room(seat.room_id.as_str(), "messages?dir=b&limit=1");
    let page = alice.get(&path).await.ok();
    let id = page["chunk"][0]["event_id"].as_str().unwrap();
    seat.tip = vec![ruma::EventId::parse(id).unwrap()];
    seat.depth += 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_what_the_path_and_the_signature_say() {
    let scene = Scene::new().await;
    let (fake, other) = (&scene.mallory, scene.carol.peer());
    let (room_id, good) = fake.invite(MALLORY, &scene.alice.user_id);
    let (_, foreign) = fake.invite(MALLORY, "@eve:c.test");
    let (_, nobody) = fake.invite(MALLORY, "@nobody:a.test");
    let seat = fake.seat();
    let text = fake
        .peer()
        .make_after(&seat, &seat.tip, &Draft::text(MALLORY, "hello"));
    let ban = json!({ "membership": "ban" });
    let ban = Draft::state(MALLORY, "m.room.member", &scene.alice.user_id, ban);
    let ban = fake.peer().make_after(&seat, &seat.tip, &ban);
    let (here, id, peer) = (room_id.as_str(), good.id.as_str(), fake.peer());
    for (what, peer, room_id, event_id, made) in [
        ("another room", peer, scene.rooms[0].as_str(), id, &good),
        ("another id", peer, here, text.id.as_str(), &good),
        ("another server", other, here, id, &good),
        (
            "a user of another server",
            peer,
            here,
            foreign.id.as_str(),
            &foreign,
        ),
        (
            "a user who is not there",
            peer,
            here,
            nobody.id.as_str(),
            &nobody,
        ),
        ("a text", peer, here, text.id.as_str(), &text),
        ("a ban", peer, here, ban.id.as_str(), &ban),
    ] {
        let answer = scene.invite(peer, room_id, event_id, &made.json).await;
        assert!(
            answer.status.is_client_error(),
            "{what}: {} {}",
            answer.status,
            answer.body
        );
        assert!(
            !answer.body.to_string().contains("a.test\":{\"ed25519"),
            "{what}"
        );
    }
    let sync = scene.alice.sync(None, 0).await;
    assert!(sync["rooms"]["invite"].get(here).is_none(), "{sync}");
    // The control: the one that agrees with itself is signed.
    let answer = scene.invite(peer, here, id, &good.json).await.ok();
    assert!(
        answer["event"]["signatures"]["a.test"].is_object(),
        "{answer}"
    );
    let sync = scene.alice.sync(None, 0).await;
    assert!(sync["rooms"]["invite"].get(here).is_some(), "{sync}");
}
