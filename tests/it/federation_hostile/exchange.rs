//! Invites of addresses, through which others would have us sign something else.

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_federation::room::signing::SigningKey;
use sotto_tests::{
    Draft, FakeServer, IdentityServer, Peer, Seat, Setup, TestServer, User, escape, room,
};

use super::{
    MALLORY,
    templates::{has_only_our_keys, level},
};

const MULE: &str = "@mule:b.test";

/// Alice's room with Dora of an honest server and Mallory of another, to which two addresses are invited.
struct Scene {
    ours: TestServer,
    honest: TestServer,
    fake: FakeServer,
    identity: IdentityServer,
    alice: User,
    dora: User,
    room_id: String,
    seat: Seat,
    _gone: [TestServer; 2],
}

impl Scene {
    async fn new() -> Self {
        let mut servers = Setup::default().federation(4).await;
        let mut last = servers.pop().unwrap();
        last.stop().await;
        let identity = IdentityServer::replace(&last).await;
        let honest = servers.pop().unwrap();
        let mut other = servers.pop().unwrap();
        other.stop().await;
        let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
        let ours = servers.pop().unwrap();
        let alice = ours.register("alice").await;
        let dora = honest.register("dora").await;
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let room_id = alice.create_room(&body).await;
        dora.join_via(&room_id, "a.test").await.ok();
        let (public_key, validity_url) = identity.key();
        let invite = json!({
            "display_name": "m...@b...", "key_validity_url": validity_url, "public_key": public_key,
        });
        for token in ["token", "other"] {
            let path = format!("state/m.room.third_party_invite/{token}");
            alice.put(&room(&room_id, &path), &invite).await.ok();
        }
        let seat = fake.peer().join(&ours, &room_id, MALLORY).await;
        let heard = |sync: &Value| {
            let joined = sync["rooms"]["join"][&room_id].to_string();
            joined.contains(MALLORY).then_some(())
        };
        dora.sync_until(&mut None, heard).await;
        Self {
            ours,
            honest,
            fake,
            identity,
            alice,
            dora,
            room_id,
            seat,
            _gone: [other, last],
        }
    }

    /// What the identity server signs for whose address it is.
    fn signed(&self, user_id: &str, token: &str) -> Value {
        let sender = &self.alice.user_id;
        let signed = json!({ "mxid": user_id, "sender": sender, "token": token });
        self.identity.sign(&signed)
    }

    /// The request as it should be.
    fn request(&self, user_id: &str, signed: &Value) -> Value {
        let invite = json!({ "display_name": "Mallory's words", "signed": signed });
        json!({
            "type": "m.room.member", "sender": self.alice.user_id, "state_key": user_id,
            "room_id": self.room_id,
            "content": { "membership": "invite", "third_party_invite": invite },
        })
    }

    async fn exchange(&self, peer: &Peer, room_id: &str, body: &Value) -> sotto_tests::Answer {
        let room_id = escape(room_id);
        let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{room_id}");
        peer.ask(&self.ours, Method::PUT, &path, Some(body)).await
    }

    /// Mallory's server asks.
    async fn wish(&self, body: &Value) -> sotto_tests::Answer {
        self.exchange(self.fake.peer(), &self.room_id, body).await
    }

    /// The request, changed in each way in which it would make another event.
    fn wishes(&self) -> Vec<Value> {
        let good = self.request(MULE, &self.signed(MULE, "token"));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut body = good.clone();
            change(&mut body);
            body
        };
        let alice = &self.alice.user_id;
        let levels = json!({ alice: 100, MALLORY: 100 });
        vec![
            good.clone(),
            changed(&|body| body["type"] = json!("m.room.power_levels")),
            changed(&|body| body["sender"] = json!(MALLORY)),
            changed(&|body| body["sender"] = json!(self.dora.user_id)),
            changed(&|body| body["room_id"] = json!("!other:a.test")),
            changed(&|body| body["content"]["membership"] = json!("join")),
            changed(&|body| body["content"]["membership"] = json!("ban")),
            changed(&|body| body["content"]["users"] = levels.clone()),
            changed(&|body| body["content"]["displayname"] = json!("Alice")),
            changed(&|body| body["content"]["join_authorised_via_users_server"] = json!(alice)),
            changed(&|body| body["prev_events"] = json!([])),
            changed(&|body| body["auth_events"] = json!([])),
            changed(&|body| body["depth"] = json!(1_u64 << 52)),
            changed(&|body| body["redacts"] = json!(self.seat.tip[0])),
            changed(&|body| body["origin_server_ts"] = json!(1)),
            changed(&|body| body["unsigned"] = json!({ "redacted_because": {} })),
            self.grab(),
        ]
    }

    /// The request that would give the room away.
    fn grab(&self) -> Value {
        let mut body = self.request(MULE, &self.signed(MULE, "token"));
        body["type"] = json!("m.room.power_levels");
        body["state_key"] = json!("");
        body["content"]["users"] = json!({ &self.alice.user_id: 100, MALLORY: 100 });
        body
    }

    /// Requests for invites that nobody is to have.
    fn unfounded(&self) -> Vec<Value> {
        let key = SigningKey::generate().unwrap();
        let mut forged = json!({ "mxid": MULE, "token": "token" });
        let mut object = serde_json::from_value(forged.clone()).unwrap();
        let name = ruma::server_name!("id.test");
        key.sign_json(&mut object, name).unwrap();
        forged["signatures"] = serde_json::to_value(&object).unwrap()["signatures"].clone();
        let mut more = self.signed(MULE, "token");
        more["power"] = json!(100);
        let mut empty = self.request(MULE, &json!({}));
        empty["content"] = json!({ "membership": "invite" });
        vec![
            self.request(MULE, &forged),
            self.request(MULE, &more),
            self.request(MULE, &self.signed(MULE, "nothing")),
            self.request(MULE, &self.signed(MALLORY, "token")),
            // Rightly signed, but for users of others.
            self.request("@carol:c.test", &self.signed("@carol:c.test", "token")),
            self.request("@eve:a.test", &self.signed("@eve:a.test", "token")),
            self.request(MULE, &json!({ "mxid": MULE, "token": "token" })),
            empty,
        ]
    }

    fn assert_our_template(&self, event: &Value) {
        assert!(has_only_our_keys(event), "{event}");
        assert_eq!(event["type"], "m.room.member", "{event}");
        assert_eq!(event["sender"], self.alice.user_id, "{event}");
        assert_eq!(event["state_key"], MULE, "{event}");
        assert_eq!(event["room_id"], self.room_id, "{event}");
        let signed = self.signed(MULE, "token");
        let content = json!({
            "membership": "invite",
            "third_party_invite": { "display_name": "m...@b...", "signed": signed },
        });
        assert_eq!(event["content"], content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_for_an_invite_of_an_address_is_not_signed() {
    let mut scene = Scene::new().await;
    // Whoever is invited would sign the invite; Mallory's server does not, or gives another event back.
    let mut template = scene.grab();
    template["signatures"] = json!({ "b.test": { "ed25519:1": "A".repeat(86) } });
    for given in [None, Some(template)] {
        if let Some(event) = given {
            scene.fake.hand_out(event);
        }
        let before = scene.fake.invites().len();
        for wish in scene.wishes() {
            let answer = scene.wish(&wish).await;
            assert!(!answer.status.is_success(), "{wish}");
        }
        let invites = scene.fake.invites().split_off(before);
        // The one without a user cannot be read.
        assert_eq!(invites.len(), scene.wishes().len() - 1);
        for event in &invites {
            scene.assert_our_template(event);
        }
    }
    let before = scene.fake.invites().len();
    for wish in scene.unfounded() {
        let answer = scene.wish(&wish).await;
        assert!(answer.status.is_client_error(), "{wish} {}", answer.body);
    }
    assert_eq!(scene.fake.invites().len(), before);
    let member = room(&scene.room_id, &format!("state/m.room.member/{MULE}"));
    assert_eq!(
        scene.alice.get(&member).await.refused(),
        (404, "M_NOT_FOUND")
    );
    for user in [&scene.alice, &scene.dora] {
        assert_eq!(level(user, &scene.room_id).await, Value::Null);
    }

    // The control: who has the address, and a server that signs the invite, is invited by the same request.
    let carol = scene.honest.register("carol").await;
    let signed = scene.signed(&carol.user_id, "other");
    let body = scene.request(&carol.user_id, &signed);
    let peer = Peer::of(&scene.honest);
    scene.exchange(&peer, &scene.room_id, &body).await.ok();
    let member = format!("state/m.room.member/{}", carol.user_id);
    let member = scene.alice.get(&room(&scene.room_id, &member)).await.ok();
    assert_eq!(member["membership"], "invite");
    // And a server that signs what the request says gives its room away.
    let grab = scene.grab();
    let text = |name: &str| grab[name].as_str().unwrap();
    let draft = Draft::state(
        text("sender"),
        text("type"),
        text("state_key"),
        grab["content"].clone(),
    );
    let naive = Peer::of(&scene.ours).make(&mut scene.seat, &draft);
    let peer = scene.fake.peer();
    assert_eq!(peer.deliver(&scene.honest, &naive).await, None);
    assert_eq!(level(&scene.dora, &scene.room_id).await, 100);
}

/// Whether there is something in it that a server signed.
fn is_signed_by(server: &str, value: &Value) -> bool {
    match value {
        Value::Object(object) => object.iter().any(|(key, value)| {
            key == "signatures" && value.get(server).is_some() || is_signed_by(server, value)
        }),
        Value::Array(values) => values.iter().any(|value| is_signed_by(server, value)),
        _ => false,
    }
}

/// Anybody can say that an address is a user's of ours, and have another server asked to invite them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_on_for_an_invite_of_an_address_is_no_event_of_ours() {
    let scene = Scene::new().await;
    let far = scene.fake.room_id().as_str();
    let alice = &scene.alice.user_id;
    scene.fake.answer("exchange_third_party_invite", json!({}));
    let signed = json!({
        "mxid": alice, "token": "t", "signatures": { "id.test": { "ed25519:1": "A" } },
        "type": "m.room.power_levels", "sender": alice, "room_id": scene.room_id,
        "content": { "users": { MALLORY: 100 } }, "prev_events": scene.seat.tip,
    });
    let bound = json!({
        "mxid": alice, "medium": "email", "address": "a@b.test",
        "invites": [{ "mxid": alice, "room_id": far, "sender": MALLORY, "signed": signed }],
    });
    let nobody = User::anonymous(scene.ours.url());
    let path = "/_matrix/federation/v1/3pid/onbind";
    nobody.put(path, &bound).await.ok();
    let asked = scene.fake.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let (path, body) = &asked[0];
    assert!(path.contains("/exchange_third_party_invite/"), "{path}");
    assert!(!is_signed_by("a.test", body), "{body}");
    let invite = json!({ "display_name": "", "signed": signed });
    let expected = json!({
        "type": "m.room.member", "sender": MALLORY, "state_key": alice,
        "content": { "membership": "invite", "third_party_invite": invite },
    });
    assert_eq!(*body, expected);
    // The control: what we do sign is seen to be signed.
    scene.wish(&scene.wishes()[0]).await;
    assert!(is_signed_by("a.test", &scene.fake.invites()[0]));
}
