//! Events in the name of others, by every path by which an event comes in.

use ruma::{CanonicalJsonObject, RoomVersionId, ServerName, canonical_json::redact, server_name};
use serde_json::{Value, json};
use sotto_federation::room::signing::SigningKey;
use sotto_tests::{Draft, FakeServer, Made, Peer, Seat, Setup, TestServer, User, escape, room};

use super::{MALLORY, templates::level};

/// What is wrong with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgery {
    Unsigned,
    Garbled,
    /// Signed under the name of the right key, with another.
    OtherKey,
    /// Rightly signed by the server that tells of it.
    OtherServer,
    /// Changed after it was signed.
    OtherContent,
}

const FORGERIES: [Forgery; 5] = [
    Forgery::Unsigned,
    Forgery::Garbled,
    Forgery::OtherKey,
    Forgery::OtherServer,
    Forgery::OtherContent,
];

/// How Mallory's server tells of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In a transaction.
    Sent,
    /// As one that came before another.
    Missing,
    /// As one that allows another.
    Auth,
    /// As a part of the state before another.
    State,
}

fn key_of(server: &TestServer) -> SigningKey {
    let text = std::fs::read_to_string(server.data_dir().join("signing.key")).unwrap();
    let parts: Vec<_> = text.split_whitespace().collect();
    SigningKey::from_seed(parts[1], parts[2]).unwrap()
}

/// The event with the signature of this key alone.
fn signed(event: &Value, key: &SigningKey, server: &ServerName) -> Value {
    let object: CanonicalJsonObject = serde_json::from_value(event.clone()).unwrap();
    let rules = RoomVersionId::V11.rules().unwrap();
    let mut object = redact(object, &rules.redaction, None).unwrap();
    object.remove("signatures");
    key.sign_json(&mut object, server).unwrap();
    let mut event = event.clone();
    event["signatures"] = serde_json::to_value(&object["signatures"]).unwrap();
    event
}

/// Makes an event of a server into a forged one. The keys are the real one of that server, and that of Mallory's.
fn forge(forgery: Forgery, event: &Value, real: &SigningKey, own: &SigningKey) -> Value {
    let mut forged = event.clone();
    match forgery {
        Forgery::Unsigned => forged["signatures"] = json!({}),
        Forgery::Garbled => {
            forged["signatures"] = json!({ "c.test": { real.id().as_str(): "A".repeat(86) } });
        }
        Forgery::OtherKey => {
            let seed = SigningKey::generate().unwrap().to_seed();
            let other = SigningKey::from_seed(real.version(), &seed).unwrap();
            forged = signed(event, &other, server_name!("c.test"));
        }
        Forgery::OtherServer => forged = signed(event, own, server_name!("b.test")),
        Forgery::OtherContent => {
            let is_levels = forged["content"].get("users").is_some();
            let part = if is_levels {
                &mut forged["content"]["users"][MALLORY]
            } else {
                &mut forged["content"]["body"]
            };
            *part = if is_levels {
                json!(99)
            } else {
                json!("Forged")
            };
        }
    }
    forged
}

/// Alice's room, with Carol of an honest server, who has power as well, and Mallory.
struct Scene {
    ours: TestServer,
    honest: TestServer,
    fake: FakeServer,
    alice: User,
    carol: User,
    seat: Seat,
    keys: (SigningKey, SigningKey),
    _gone: TestServer,
}

impl Scene {
    async fn new() -> Self {
        let mut servers = Setup::default().federation(3).await;
        let honest = servers.pop().unwrap();
        let mut other = servers.pop().unwrap();
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        let ours = servers.pop().unwrap();
        let alice = ours.register("alice").await;
        let carol = honest.register("carol").await;
        let power = json!({ "users": { &alice.user_id: 100, &carol.user_id: 100 } });
        let body = json!({
            "preset": "public_chat", "room_version": "11", "power_level_content_override": power,
        });
        let room_id = alice.create_room(&body).await;
        carol.join_via(&room_id, "a.test").await.ok();
        let seat = fake.peer().join(&ours, &room_id, MALLORY).await;
        let keys = (key_of(&honest), key_of(&other));
        Self {
            ours,
            honest,
            fake,
            alice,
            carol,
            seat,
            keys,
            _gone: other,
        }
    }

    /// What Carol says, or has changed, as her own server would tell it.
    fn of_carol(&self, draft: &Draft<'_>) -> Made {
        Peer::of(&self.honest).make_after(&self.seat, &self.seat.tip, draft)
    }

    /// What Mallory says after an event.
    fn after(&self, seat: &Seat, event: &Made, text: &str) -> Made {
        let prev = std::slice::from_ref(&event.id);
        let draft = Draft::text(MALLORY, text);
        self.fake.peer().make_after(seat, prev, &draft)
    }

    async fn shown(&self, event: &Made, text: &str) -> bool {
        let path = format!("event/{}", escape(event.id.as_str()));
        let shown = self
            .alice
            .get(&room(self.seat.room_id.as_str(), &path))
            .await;
        shown.status.is_success() && shown.body["content"]["body"] == text
    }

    /// Tells of an event that Carol made, or would have made; whether it counts then.
    async fn counts(&self, way: Way, forgery: Option<Forgery>) -> bool {
        let text = format!("{way:?} {forgery:?}");
        let levels = json!({
            "users": { &self.alice.user_id: 100, &self.carol.user_id: 100, MALLORY: 100 },
            "text": text,
        });
        let carol = &self.carol.user_id;
        let draft = match way {
            Way::Sent | Way::Missing => Draft::text(carol, &text),
            Way::Auth | Way::State => Draft::state(carol, "m.room.power_levels", "", levels),
        };
        let mut event = self.of_carol(&draft);
        if let Some(forgery) = forgery {
            event.json = forge(forgery, &event.json, &self.keys.0, &self.keys.1);
        }
        let mut seat = self.seat.clone();
        let old = seat.state_ids();
        if way == Way::Auth || way == Way::State {
            seat.has("m.room.power_levels", "", &event.id);
        }
        let (fake, tip) = (&self.fake, &self.seat.tip);
        let given = match way {
            Way::Sent => event.clone(),
            Way::Missing => {
                fake.answer("/get_missing_events/", json!({ "events": [event.json] }));
                self.after(&seat, &event, "after")
            }
            Way::Auth => {
                fake.answer("/event_auth/", json!({ "auth_chain": [event.json] }));
                let draft = Draft::text(MALLORY, &text);
                fake.peer().make_after(&seat, tip, &draft)
            }
            Way::State => {
                let ids = json!({ "pdu_ids": seat.state_ids(), "auth_chain_ids": old });
                fake.answer("/state_ids/", ids);
                let pdu =
                    json!({ "origin": "b.test", "origin_server_ts": 1, "pdus": [event.json] });
                fake.answer("/v1/event/", pdu);
                self.after(&seat, &event, "after")
            }
        };
        fake.peer().send(&self.ours, &[&given], &[]).await.ok();
        match way {
            Way::Sent | Way::Missing => self.shown(&event, &text).await,
            Way::Auth => self.shown(&given, &text).await,
            Way::State => level(&self.alice, self.seat.room_id.as_str()).await == 100,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_tells_what_others_said_without_their_signature() {
    for way in [Way::Sent, Way::Missing, Way::Auth, Way::State] {
        let scene = Scene::new().await;
        for forgery in FORGERIES {
            assert!(
                !scene.counts(way, Some(forgery)).await,
                "{way:?} {forgery:?}"
            );
        }
        // The control: with the signature it counts, whoever tells of it, so the signature was all that lacked.
        assert!(scene.counts(way, None).await, "{way:?}");
        let asked = scene.fake.asked();
        let part = match way {
            Way::Sent => continue,
            Way::Missing => "/get_missing_events/",
            Way::Auth => "/event_auth/",
            Way::State => "/v1/event/",
        };
        let times = asked.iter().filter(|(path, _)| path.contains(part)).count();
        assert!(times > FORGERIES.len(), "{way:?}: {asked:?}");
    }
}

/// A room of Carol's in which something was said before Alice came.
struct Past {
    room_id: String,
    /// The newest event before that.
    tip: String,
    forgery: Option<Forgery>,
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_tells_what_others_said_long_ago_without_their_signature() {
    let mut scene = Scene::new().await;
    let mut pasts = Vec::new();
    let forgeries = FORGERIES.map(Some).into_iter().chain([None]);
    for forgery in forgeries {
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let room_id = scene.carol.create_room(&body).await;
        scene.carol.send(&room_id, "long ago").await;
        let peer = scene.fake.peer();
        let seat = peer.join(&scene.honest, &room_id, MALLORY).await;
        scene.alice.join_via(&room_id, "c.test").await.ok();
        pasts.push(Past {
            room_id,
            tip: seat.tip[0].to_string(),
            forgery,
        });
    }
    let mut told = Vec::new();
    for past in &pasts {
        let (at, from) = (escape(&past.room_id), escape(&past.tip));
        let path = format!("/_matrix/federation/v1/backfill/{at}?v={from}&limit=50");
        let peer = scene.fake.peer();
        let page = peer.get(&scene.honest, &path).await.ok();
        told.push(page["pdus"].as_array().unwrap().clone());
    }
    // Nobody else tells.
    scene.honest.stop().await;
    for (past, mut events) in pasts.iter().zip(told) {
        let is_it = |event: &&mut Value| event["content"]["body"] == "long ago";
        let event = events.iter_mut().find(is_it).unwrap();
        if let Some(forgery) = past.forgery {
            *event = forge(forgery, event, &scene.keys.0, &scene.keys.1);
        }
        let page = json!({ "origin": "b.test", "origin_server_ts": 1, "pdus": events });
        scene.fake.answer("/backfill/", page);
        let path = room(&past.room_id, "messages?dir=b&limit=50");
        let page = scene.alice.get(&path).await.ok();
        let shown = page["chunk"].as_array().into_iter().flatten();
        let bodies: Vec<_> = shown.map(|event| &event["content"]["body"]).collect();
        let is_shown = bodies.contains(&&json!("long ago"));
        assert_eq!(is_shown, past.forgery.is_none(), "{:?}", past.forgery);
        assert!(!bodies.contains(&&json!("Forged")));
    }
    let asked = scene.fake.asked();
    let times = asked
        .iter()
        .filter(|(path, _)| path.contains("/backfill/"))
        .count();
    assert!(times >= pasts.len(), "{asked:?}");
}
