//! Keys of devices and users, and messages between devices.

mod cross_signing;
mod limits;
mod rules;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use sotto_tests::{Answer, TestServer, User, escape};
use vodozemac::{Curve25519PublicKey, Curve25519SecretKey, Ed25519SecretKey};

pub(crate) const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
pub(crate) const CLAIM: &str = "/_matrix/client/v3/keys/claim";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const CROSS_SIGNING: &str = "/_matrix/client/v3/keys/device_signing/upload";
const SIGNATURES: &str = "/_matrix/client/v3/keys/signatures/upload";

/// Signs an object of flat texts as a user's key; `serde_json` writes keys in order, which is canonical.
fn sign(object: &mut Value, user_id: &str, key_id: &str, key: &Ed25519SecretKey) {
    let mut signed = object.clone();
    let fields = signed.as_object_mut().unwrap();
    fields.remove("signatures");
    fields.remove("unsigned");
    let signature = key.sign(signed.to_string().as_bytes()).to_base64();
    object["signatures"][user_id][key_id] = signature.into();
}

fn device_keys(user: &User, key: &Ed25519SecretKey) -> Value {
    let curve = Curve25519PublicKey::from(&Curve25519SecretKey::new());
    let (user_id, device_id) = (&user.user_id, &user.device_id);
    let mut keys = json!({
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "device_id": device_id,
        "keys": {
            format!("curve25519:{device_id}"): curve.to_base64(),
            format!("ed25519:{device_id}"): key.public_key().to_base64(),
        },
        "user_id": user_id,
    });
    sign(&mut keys, user_id, &format!("ed25519:{device_id}"), key);
    keys
}

pub(crate) fn one_time_key(user: &User, key: &Ed25519SecretKey) -> Value {
    let curve = Curve25519PublicKey::from(&Curve25519SecretKey::new());
    let mut object = json!({ "key": curve.to_base64() });
    let key_id = format!("ed25519:{}", user.device_id);
    sign(&mut object, &user.user_id, &key_id, key);
    object
}

pub(crate) async fn upload_device(user: &User) -> Ed25519SecretKey {
    let key = Ed25519SecretKey::new();
    let body = json!({ "device_keys": device_keys(user, &key) });
    user.post(UPLOAD, &body).await.ok();
    key
}

pub(crate) async fn claim(user: &User, of: &User) -> Option<(String, Value)> {
    let body = json!({ "one_time_keys": { &of.user_id: { &of.device_id: "signed_curve25519" } } });
    let answer = user.post(CLAIM, &body).await.ok();
    let keys = answer["one_time_keys"][&of.user_id][&of.device_id].as_object()?;
    let (id, key) = keys.iter().next()?;
    Some((id.clone(), key.clone()))
}

async fn send_to_device(user: &User, txn: &str, to: &User, device: &str, body: &str) -> Answer {
    let path = format!("/_matrix/client/v3/sendToDevice/m.test/{txn}");
    let messages = json!({ "messages": { &to.user_id: { device: { "body": body } } } });
    user.put(&path, &messages).await
}

fn told(sync: &Value) -> Vec<String> {
    let events = sync["to_device"]["events"].as_array();
    let bodies = events.into_iter().flatten();
    bodies
        .map(|event| event["content"]["body"].as_str().unwrap().to_owned())
        .collect()
}

fn token(sync: &Value) -> Option<&str> {
    sync["next_batch"].as_str()
}

fn lists(sync: &Value, which: &str) -> BTreeSet<String> {
    let users = sync["device_lists"][which].as_array();
    let users = users.into_iter().flatten();
    users.map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// Uploads as many one-time keys as may wait.
async fn upload_one_time_keys(alice: &User, key: &Ed25519SecretKey, round: usize) {
    for batch in 0..5 {
        let keys = (0..100).map(|n| {
            let id = format!("signed_curve25519:{round}{batch}{n:02}");
            (id, one_time_key(alice, key))
        });
        let keys: Map<_, _> = keys.collect();
        let body = json!({ "one_time_keys": keys });
        let counts = alice.post(UPLOAD, &body).await.ok();
        let count = &counts["one_time_key_counts"]["signed_curve25519"];
        assert_eq!(*count, 100 * (batch + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_one_time_key_is_handed_out_once() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let key = upload_device(&alice).await;
    let fallback = json!({ "signed_curve25519:last": one_time_key(&alice, &key) });
    let body = json!({ "fallback_keys": fallback });
    alice.post(UPLOAD, &body).await.ok();
    let mut distinct = BTreeSet::new();
    for round in 0..2 {
        upload_one_time_keys(&alice, &key, round).await;
        let first = claim(&bob, &alice).await.unwrap().0;
        let oldest = format!("signed_curve25519:{round}0");
        assert!(first.starts_with(&oldest), "{first}");
        let tasks = (0..64).map(|task| {
            let (alice, bob) = (&alice, &bob);
            async move {
                let count = if task < 51 { 8 } else { 7 };
                let mut ids = Vec::new();
                for _ in 0..count {
                    ids.push(claim(bob, alice).await.unwrap().0);
                }
                ids
            }
        });
        let ids: Vec<_> = join_all(tasks).await.into_iter().flatten().collect();
        assert_eq!(ids.len(), 499);
        distinct.insert(first);
        distinct.extend(ids);
    }
    assert_eq!(distinct.len(), 1000);
    assert!(!distinct.contains("signed_curve25519:last"));
    let sync = alice.sync(None, 0).await;
    assert_eq!(sync["device_one_time_keys_count"]["signed_curve25519"], 0);
    let unused = &sync["device_unused_fallback_key_types"];
    assert_eq!(*unused, json!(["signed_curve25519"]));
    for _ in 0..2 {
        let last = claim(&bob, &alice).await.unwrap().0;
        assert_eq!(last, "signed_curve25519:last");
    }
    let sync = alice.sync(token(&sync), 5000).await;
    assert_eq!(sync["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn uploading_again_changes_nothing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let key = Ed25519SecretKey::new();
    let one_time = one_time_key(&alice, &key);
    let body = json!({
        "device_keys": device_keys(&alice, &key),
        "one_time_keys": { "signed_curve25519:AAAA": one_time },
    });
    for _ in 0..2 {
        let counts = alice.post(UPLOAD, &body).await.ok();
        assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 1);
    }
    let sync = alice.sync(None, 0).await;
    alice.post(UPLOAD, &body).await.ok();
    let sync = alice.sync(token(&sync), 0).await;
    assert_eq!(lists(&sync, "changed"), BTreeSet::new());

    let other = json!({ "signed_curve25519:AAAA": one_time_key(&alice, &key) });
    let answer = alice.post(UPLOAD, &json!({ "one_time_keys": other })).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
    let sentence = answer.body["error"].as_str().unwrap();
    let start = "One time key signed_curve25519:AAAA already exists. Old key: ";
    let keys = sentence.strip_prefix(start).unwrap();
    let (old, new) = keys.split_once("; new key: ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(old).unwrap(), one_time);
    let new: Value = serde_json::from_str(new).unwrap();
    assert_eq!(new, other["signed_curve25519:AAAA"]);

    let again = json!({ "device_keys": device_keys(&alice, &Ed25519SecretKey::new()) });
    let answer = alice.post(UPLOAD, &again).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_PARAM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_went_does_not_come_back() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let key = upload_device(&alice).await;
    let (first, second) = ("signed_curve25519:A", "signed_curve25519:B");
    let keys = json!({
        "one_time_keys": { first: one_time_key(&alice, &key), second: one_time_key(&alice, &key) },
    });
    alice.post(UPLOAD, &keys).await.ok();
    assert_eq!(claim(&bob, &alice).await.unwrap().0, first);
    // The answer to the upload got lost.
    let counts = alice.post(UPLOAD, &keys).await.ok();
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 1);
    assert_eq!(claim(&bob, &alice).await.unwrap().0, second);
    assert_eq!(claim(&bob, &alice).await, None);
    // A client may count its keys from the beginning again, if only the keys are new.
    for _ in 0..2 {
        let keys = json!({ first: one_time_key(&alice, &key) });
        let body = json!({ "one_time_keys": keys });
        alice.post(UPLOAD, &body).await.ok();
        assert_eq!(claim(&bob, &alice).await.unwrap().1, keys[first]);
        alice.post(UPLOAD, &body).await.ok();
        assert_eq!(claim(&bob, &alice).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_keys_are_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let key = Ed25519SecretKey::new();
    let good = device_keys(&alice, &key);
    let refused = async |body: Value| {
        let answer = alice.post(UPLOAD, &body).await;
        let (status, code) = answer.refused();
        (status, code.to_owned())
    };
    let invalid = (400, "M_INVALID_PARAM".to_owned());
    let unsigned = (400, "M_INVALID_SIGNATURE".to_owned());
    let chars = "A".repeat(42);
    for malformed in [
        "A".repeat(44),
        format!("{chars}="),
        format!("{chars}=="),
        format!("{chars}*"),
    ] {
        for algorithm in ["ed25519", "curve25519"] {
            let mut keys = good.clone();
            keys["keys"][format!("{algorithm}:{}", alice.device_id)] = malformed.clone().into();
            assert_eq!(refused(json!({ "device_keys": keys })).await, invalid);
            keys["algorithms"] = json!(["m.invented"]);
            assert_eq!(refused(json!({ "device_keys": keys })).await, invalid);
        }
        for field in ["one_time_keys", "fallback_keys"] {
            let keys = json!({ "signed_curve25519:A": { "key": malformed, "signatures": {} } });
            assert_eq!(refused(json!({ field: keys })).await, invalid);
        }
        let master = json!({
            "keys": { format!("ed25519:{malformed}"): malformed },
            "usage": ["master"],
            "user_id": alice.user_id,
        });
        let answer = alice
            .post(CROSS_SIGNING, &json!({ "master_key": master }))
            .await;
        assert_eq!(answer.refused().0, 400);
    }
    let mut changed = good.clone();
    changed["algorithms"] = json!(["m.olm.v1.curve25519-aes-sha2"]);
    assert_eq!(refused(json!({ "device_keys": changed })).await, unsigned);
    let other = one_time_key(&alice, &Ed25519SecretKey::new());
    let both = json!({
        "device_keys": good,
        "one_time_keys": { "signed_curve25519:A": other },
    });
    assert_eq!(refused(both).await, unsigned);
    let of_bob = device_keys(&bob, &key);
    assert_eq!(refused(json!({ "device_keys": of_bob })).await, invalid);
    let malformed = (400, "M_BAD_JSON".to_owned());
    let body = json!({ "device_keys": { "user_id": alice.user_id } });
    assert_eq!(refused(body).await, malformed);
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    let found = bob.post(QUERY, &query).await.ok();
    assert_eq!(found["device_keys"][&alice.user_id], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_take_for_a_key_is_kept_as_it_is() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut opaque = device_keys(&alice, &Ed25519SecretKey::new());
    opaque["signatures"] = json!({});
    opaque["keys"] =
        json!({ format!("ed25519:{}", alice.device_id): format!("{}-_", "A".repeat(41)) });
    let body = json!({ "device_keys": opaque });
    alice.post(UPLOAD, &body).await.ok();
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    let found = bob.post(QUERY, &query).await.ok();
    let mut told = opaque;
    told["unsigned"] = json!({});
    assert_eq!(found["device_keys"][&alice.user_id][&alice.device_id], told);
    assert_eq!(found["failures"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_between_devices_come_once() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let tablet = server.log_in("bob").await;
    let mut since = token(&bob.sync(None, 0).await).unwrap().to_owned();
    let mut expected = Vec::new();
    for n in 0..250 {
        let (txn, body) = (format!("t{n}"), format!("message {n}"));
        for _ in 0..2 {
            // The first reply got lost.
            send_to_device(&alice, &txn, &bob, &bob.device_id, &body)
                .await
                .ok();
        }
        expected.push(body);
    }
    let mut all = Vec::new();
    for count in [100, 100, 50, 0] {
        // A reply that gets lost is asked for again.
        let lost = told(&bob.sync(Some(&since), 0).await);
        let sync = bob.sync(Some(&since), 0).await;
        assert_eq!(told(&sync), lost);
        assert_eq!(lost.len(), count);
        all.extend(lost);
        since = token(&sync).unwrap().to_owned();
    }
    assert_eq!(all, expected);
    assert_eq!(told(&tablet.sync(None, 0).await), Vec::<String>::new());
    // What was confirmed is gone.
    assert_eq!(told(&bob.sync(None, 0).await), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_survive_a_restart_and_wake_who_waits() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let tablet = server.log_in("bob").await;
    let since = bob.sync(None, 0).await;
    let (sync, _) = tokio::join!(
        bob.sync(token(&since), 20_000),
        send_to_device(&alice, "a", &bob, "*", "to all"),
    );
    assert_eq!(told(&sync), ["to all"]);
    server.restart().await;
    assert_eq!(told(&tablet.sync(None, 0).await), ["to all"]);
    // The token proves that the message arrived, also after a restart.
    assert_eq!(told(&bob.sync(token(&sync), 0).await), Vec::<String>::new());
    assert_eq!(told(&bob.sync(None, 0).await), Vec::<String>::new());
    assert_eq!(told(&alice.sync(None, 0).await), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shares_a_room_learns_of_changed_keys() {
    let mut server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let start = bob.sync(None, 0).await;
    assert_eq!(start["device_lists"], Value::Null);
    upload_device(&alice).await;
    let sync = bob.sync(token(&start), 0).await;
    assert_eq!(lists(&sync, "changed"), BTreeSet::new());
    let own = alice.sync(token(&start), 0).await;
    assert!(lists(&own, "changed").contains(&alice.user_id));

    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let sync = bob.sync(token(&sync), 0).await;
    assert!(lists(&sync, "changed").contains(&alice.user_id));
    let seen = alice.sync(token(&own), 0).await;
    assert!(lists(&seen, "changed").contains(&bob.user_id));

    upload_device(&server.log_in("alice").await).await;
    let next = bob.sync(token(&sync), 0).await;
    assert_eq!(lists(&next, "changed"), [alice.user_id.clone()].into());
    let path = format!(
        "/_matrix/client/v3/keys/changes?from={}&to={}",
        token(&sync).unwrap(),
        token(&next).unwrap()
    );
    let changes = bob.get(&path).await.ok();
    assert_eq!(changes["changed"], json!([alice.user_id]));
    assert_eq!(
        lists(&carol.sync(token(&start), 0).await, "changed"),
        BTreeSet::new()
    );

    // A new name is nobody's business.
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.member/{}",
        escape(&room_id),
        escape(&alice.user_id)
    );
    let content = json!({ "membership": "join", "displayname": "Alice A." });
    alice.put(&path, &content).await.ok();
    let named = bob.sync(token(&next), 0).await;
    assert_eq!(named["device_lists"], Value::Null);

    let before = token(&named).unwrap().to_owned();
    let leave = format!("/_matrix/client/v3/rooms/{}/leave", escape(&room_id));
    bob.post(&leave, &json!({})).await.ok();
    let left = bob.sync(Some(&before), 0).await;
    assert_eq!(lists(&left, "left"), [alice.user_id.clone()].into());
    let left = alice.sync(Some(&before), 0).await;
    assert_eq!(lists(&left, "left"), [bob.user_id.clone()].into());
    // The database says the same as memory.
    server.restart().await;
    let left = bob.sync(Some(&before), 0).await;
    assert_eq!(lists(&left, "left"), [alice.user_id.clone()].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_device_takes_everything_with_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let tablet = server.log_in("alice").await;
    let key = upload_device(&tablet).await;
    let keys = json!({ "signed_curve25519:A": one_time_key(&tablet, &key) });
    tablet
        .post(UPLOAD, &json!({ "one_time_keys": keys }))
        .await
        .ok();
    send_to_device(&bob, "a", &tablet, "*", "secret").await.ok();

    let path = format!("/_matrix/client/v3/devices/{}", tablet.device_id);
    alice
        .put(&path, &json!({ "display_name": "Tablet" }))
        .await
        .ok();
    assert_eq!(alice.get(&path).await.ok()["display_name"], "Tablet");
    assert_eq!(bob.get(&path).await.refused(), (404, "M_NOT_FOUND"));
    let answer = bob.put(&path, &json!({ "display_name": "Mine" })).await;
    assert_eq!(answer.refused(), (404, "M_NOT_FOUND"));

    let answer = alice.delete(&path).await;
    assert_eq!(answer.status, 401);
    let session = answer.body["session"].clone();
    let auth = |name: &str| {
        json!({ "auth": {
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": format!("the password of {name}"),
            "session": session,
        }})
    };
    for (name, status) in [("bob", 403), ("alice", 200)] {
        let body = auth(name).to_string().into_bytes();
        let answer = alice.request(http::Method::DELETE, &path, Some(body)).await;
        assert_eq!(answer.status, status);
    }
    let answer = tablet.get("/_matrix/client/v3/devices").await;
    assert_eq!(answer.refused(), (401, "M_UNKNOWN_TOKEN"));
    assert_eq!(claim(&bob, &tablet).await, None);
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    let found = bob.post(QUERY, &query).await.ok();
    assert_eq!(found["device_keys"][&alice.user_id], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_users_of_other_servers() {
    let (one, two) = TestServer::pair().await;
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let key = upload_device(&bob).await;
    let keys = json!({ "signed_curve25519:A": one_time_key(&bob, &key) });
    bob.post(UPLOAD, &json!({ "one_time_keys": keys }))
        .await
        .ok();
    let query = json!({ "device_keys": { &bob.user_id: [] } });
    let there = bob.post(QUERY, &query).await.ok();
    let here = alice.post(QUERY, &query).await.ok();
    assert_eq!(here["failures"], json!({}));
    let device = &here["device_keys"][&bob.user_id][&bob.device_id];
    // The name of a device is for its own server's users.
    let mut same = there["device_keys"][&bob.user_id][&bob.device_id].clone();
    same.as_object_mut().unwrap().remove("unsigned");
    assert_eq!(*device, same);
    let (id, claimed) = claim(&alice, &bob).await.unwrap();
    assert_eq!(
        (id.as_str(), &claimed),
        ("signed_curve25519:A", &keys["signed_curve25519:A"])
    );
    assert_eq!(claim(&alice, &bob).await, None);
    let body = json!({ "device_keys": { "@nobody:gone.invalid": [] } });
    let answer = alice.post(QUERY, &body).await.ok();
    assert!(answer["failures"]["gone.invalid"].is_object());
}
