//! What a server gets of a room in which it has nobody.

use std::collections::BTreeSet;

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, Peer, Setup, TestServer, User, escape, room};

use super::MALLORY;
use crate::encryption::upload_device;

const SECRET: &str = "the plan";
const CAROL: &str = "@carol:c.test";

/// Something that a server asks.
struct Request {
    method: Method,
    /// The endpoint.
    pattern: String,
    path: String,
    body: Option<Value>,
    /// Whether the answer has the secret in it, for who may know it.
    tells: bool,
}

/// Alice's room, to which Carol was invited; Mallory was not.
struct Scene {
    ours: TestServer,
    alice: User,
    mallory: FakeServer,
    carol: FakeServer,
    room_id: String,
    said: String,
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
        let room_id = alice.create_room(&body).await;
        let (carol, mallory) = (fakes.pop().unwrap(), fakes.pop().unwrap());
        carol.peer().join(&ours, &room_id, CAROL).await;
        // From here on it is private.
        let rules = room(&room_id, "state/m.room.join_rules/");
        alice
            .put(&rules, &json!({ "join_rule": "invite" }))
            .await
            .ok();
        let path = room(&room_id, "state/m.room.topic/");
        alice.put(&path, &json!({ "topic": SECRET })).await.ok();
        let said = alice.send(&room_id, SECRET).await;
        Self {
            ours,
            alice,
            mallory,
            carol,
            room_id,
            said,
            _gone: servers,
        }
    }

    /// Every endpoint with a room or an event in its path.
    fn requests(&self, user: &str) -> Vec<Request> {
        let latest = json!({ "earliest_events": [], "latest_events": [self.said], "limit": 9 });
        let mut requests: Vec<_> = READING
            .into_iter()
            .map(|(pattern, query, tells)| Request {
                method: Method::GET,
                pattern: format!("/_matrix/federation/v1/{pattern}"),
                path: format!("/_matrix/federation/v1/{pattern}{query}"),
                body: None,
                tells,
            })
            .collect();
        let missing = "/_matrix/federation/v1/get_missing_events/{room_id}";
        requests.push(Request {
            method: Method::POST,
            pattern: missing.to_owned(),
            path: missing.to_owned(),
            body: Some(latest),
            tells: true,
        });
        for request in &mut requests {
            let path = request.path.replace("{room_id}", &escape(&self.room_id));
            let path = path.replace("{event_id}", &escape(&self.said));
            request.path = path.replace("{user_id}", &escape(user));
        }
        requests
    }

    async fn ask(&self, peer: &Peer, request: &Request) -> (u16, String) {
        let Request {
            method, path, body, ..
        } = request;
        let answer = peer
            .ask(&self.ours, method.clone(), path, body.as_ref())
            .await;
        (answer.status.as_u16(), answer.body.to_string())
    }
}

/// What can be read, and whether the secret is in it.
const READING: [(&str, &str, bool); 9] = [
    ("event/{event_id}", "", true),
    ("state/{room_id}", "?event_id={event_id}", true),
    ("state_ids/{room_id}", "?event_id={event_id}", false),
    ("backfill/{room_id}", "?v={event_id}&limit=9", true),
    ("event_auth/{room_id}/{event_id}", "", false),
    ("timestamp_to_event/{room_id}", "?ts=1&dir=f", false),
    ("hierarchy/{room_id}", "", true),
    ("make_join/{room_id}/{user_id}", "?ver=11", false),
    ("make_leave/{room_id}/{user_id}", "", false),
];

/// Endpoints with a room or an event in the path that give nothing to read: what is put there is looked at elsewhere.
const WRITING: [&str; 9] = [
    "/_matrix/federation/v1/exchange_third_party_invite/{room_id}",
    "/_matrix/federation/v1/invite/{room_id}/{event_id}",
    "/_matrix/federation/v1/make_knock/{room_id}/{user_id}",
    "/_matrix/federation/v1/send_join/{room_id}/{event_id}",
    "/_matrix/federation/v1/send_knock/{room_id}/{event_id}",
    "/_matrix/federation/v1/send_leave/{room_id}/{event_id}",
    "/_matrix/federation/v2/invite/{room_id}/{event_id}",
    "/_matrix/federation/v2/send_join/{room_id}/{event_id}",
    "/_matrix/federation/v2/send_leave/{room_id}/{event_id}",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_anybody_in_a_room_learns_nothing_of_it() {
    let scene = Scene::new().await;
    let learns_nothing = async || {
        for request in scene.requests(MALLORY) {
            let (status, text) = scene.ask(scene.mallory.peer(), &request).await;
            let path = request.path;
            assert!((400..500).contains(&status), "{path}: {status} {text}");
            assert!(!text.contains(SECRET), "{path}: {text}");
        }
    };
    learns_nothing().await;
    // Nor does it when it says something in the room all the same.
    let mut seat = scene.carol.seat();
    seat.room_id = ruma::RoomId::parse(&scene.room_id).unwrap();
    let peer = scene.mallory.peer();
    let tip = [ruma::EventId::parse(&scene.said).unwrap()];
    let made = peer.make_after(&seat, &tip, &Draft::text(MALLORY, "let me in"));
    peer.deliver(&scene.ours, &made).await;
    let path = format!("event/{}", escape(made.id.as_str()));
    let shown = scene.alice.get(&room(&scene.room_id, &path)).await;
    assert_eq!(shown.refused(), (404, "M_NOT_FOUND"));
    learns_nothing().await;
    // The control: whoever is in it learns it by the same requests.
    for request in scene.requests(CAROL) {
        let (status, text) = scene.ask(scene.carol.peer(), &request).await;
        let path = &request.path;
        assert_eq!(status, 200, "{path}: {text}");
        assert!(!request.tells || text.contains(SECRET), "{path}: {text}");
    }
    // No endpoint is forgotten.
    let requests = scene.requests(MALLORY);
    let known: BTreeSet<_> = requests
        .iter()
        .map(|request| request.pattern.as_str())
        .collect();
    for (_, path) in sotto_homeserver::endpoints() {
        let about_a_room = path.contains("{room_id}") || path.contains("{event_id}");
        if path.starts_with("/_matrix/federation/") && about_a_room {
            let path = path.as_str();
            assert!(known.contains(path) || WRITING.contains(&path), "{path}");
        }
    }
}

/// Keys of users of others are known here as well, and are theirs to tell.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_told_of_own_users_only() {
    let scene = Scene::new().await;
    // Alice asks for Carol's devices, so they are kept here.
    let query = json!({ "device_keys": { CAROL: [] } });
    let keys = scene
        .alice
        .post("/_matrix/client/v3/keys/query", &query)
        .await
        .ok();
    assert!(keys["device_keys"][CAROL]["PHONE"].is_object(), "{keys}");
    upload_device(&scene.alice).await;
    let peer = scene.mallory.peer();
    let devices = async |user: &str| {
        let path = format!("/_matrix/federation/v1/user/devices/{}", escape(user));
        peer.get(&scene.ours, &path).await
    };
    assert_eq!(devices(CAROL).await.refused(), (400, "M_INVALID_PARAM"));
    let asked = json!({ "device_keys": { CAROL: [], &scene.alice.user_id: [] } });
    let path = "/_matrix/federation/v1/user/keys/query";
    let told = peer
        .ask(&scene.ours, Method::POST, path, Some(&asked))
        .await
        .ok();
    assert!(told["device_keys"].get(CAROL).is_none(), "{told}");
    // The control: of Alice the same requests tell.
    devices(&scene.alice.user_id).await.ok();
    assert!(
        told["device_keys"].get(&scene.alice.user_id).is_some(),
        "{told}"
    );
}
