//! What the server refuses of what clients and other servers say of keys.

use ruma::RoomVersionId;
use serde_json::{Map, Value, json};
use sotto_tests::{FakeServer, TestServer, User};
use vodozemac::Ed25519SecretKey;

use super::{
    CROSS_SIGNING, QUERY, SIGNATURES, UPLOAD, claim, device_keys, one_time_key, sign, told,
    upload_device,
};

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_came_before_their_device_are_looked_at_again() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let key = Ed25519SecretKey::new();
    let good = one_time_key(&alice, &key);
    let keys = json!({
        "signed_curve25519:A": one_time_key(&alice, &Ed25519SecretKey::new()),
        "signed_curve25519:B": good,
    });
    let fallback = json!({ "signed_curve25519:C": one_time_key(&alice, &Ed25519SecretKey::new()) });
    let body = json!({ "one_time_keys": keys, "fallback_keys": fallback });
    let counts = alice.post(UPLOAD, &body).await.ok();
    let count = &counts["one_time_key_counts"]["signed_curve25519"];
    assert_eq!(*count, 2, "control: nobody can tell yet");
    let before = alice.sync(None, 0).await;
    let unused = &before["device_unused_fallback_key_types"];
    assert_eq!(*unused, json!(["signed_curve25519"]));
    let body = json!({ "device_keys": device_keys(&alice, &key) });
    let counts = alice.post(UPLOAD, &body).await.ok();
    // The device is told, so that it uploads others.
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 1);
    let after = alice.sync(before["next_batch"].as_str(), 0).await;
    assert_eq!(after["device_one_time_keys_count"]["signed_curve25519"], 1);
    assert_eq!(after["device_unused_fallback_key_types"], json!([]));
    let claimed = claim(&bob, &alice).await.unwrap();
    assert_eq!(claimed, ("signed_curve25519:B".to_owned(), good));
    assert_eq!(claim(&bob, &alice).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_device_that_signed_its_keys_keeps_them() {
    let server = TestServer::start().await;
    for signed in [true, false] {
        let name = if signed { "alice" } else { "bob" };
        let user = server.register(name).await;
        let upload = async || {
            let mut keys = device_keys(&user, &Ed25519SecretKey::new());
            if !signed {
                keys["signatures"] = json!({});
            }
            let answer = user.post(UPLOAD, &json!({ "device_keys": keys })).await;
            (answer.status.as_u16(), keys)
        };
        let (status, first) = upload().await;
        assert_eq!(status, 200);
        let (status, second) = upload().await;
        assert_eq!(status, if signed { 400 } else { 200 });
        let query = json!({ "device_keys": { &user.user_id: [] } });
        let found = user.post(QUERY, &query).await.ok();
        let kept = &found["device_keys"][&user.user_id][&user.device_id]["keys"];
        assert_eq!(*kept, if signed { first } else { second }["keys"]);
    }
}

fn identity_key(user: &User, usage: &str, key: &Ed25519SecretKey) -> Value {
    let public = key.public_key().to_base64();
    json!({
        "keys": { format!("ed25519:{public}"): public },
        "usage": [usage],
        "user_id": user.user_id,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_key_has_one_purpose_and_one_name() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let [master, own, other] = [0; 3].map(|_| Ed25519SecretKey::new());
    let master_id = format!("ed25519:{}", master.public_key().to_base64());
    let upload = async |own: &Ed25519SecretKey, lie: fn(&mut Value)| {
        let mut body = json!({ "master_key": identity_key(&alice, "master", &master) });
        for (name, key) in [("self_signing", own), ("user_signing", &other)] {
            let mut object = identity_key(&alice, name, key);
            lie(&mut object);
            sign(&mut object, &alice.user_id, &master_id, &master);
            body[format!("{name}_key")] = object;
        }
        alice.post(CROSS_SIGNING, &body).await
    };
    let lies: [fn(&mut Value); 4] = [
        |key| key["keys"]["ed25519:more"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        |key| key["keys"] = json!({}),
        |key| key["usage"] = json!(["master"]),
        |key| key["user_id"] = json!("@bob:a.test"),
    ];
    for lie in lies {
        let refused = upload(&own, lie).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"));
    }
    let refused = upload(&other, |_| {}).await;
    assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"));
    upload(&own, |_| {}).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_on_what_is_stored_and_by_who_may_sign() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let device_key = upload_device(&alice).await;
    let [master, own] = [0; 2].map(|_| Ed25519SecretKey::new());
    let id = |key: &Ed25519SecretKey| format!("ed25519:{}", key.public_key().to_base64());
    let mut self_signing = identity_key(&alice, "self_signing", &own);
    sign(&mut self_signing, &alice.user_id, &id(&master), &master);
    let body = json!({
        "master_key": identity_key(&alice, "master", &master),
        "self_signing_key": self_signing,
    });
    alice.post(CROSS_SIGNING, &body).await.ok();
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    let found = alice.post(QUERY, &query).await.ok();
    let device = &found["device_keys"][&alice.user_id][&alice.device_id];

    let upload = async |name: &str, object: Value| {
        let body = json!({ &alice.user_id: { name: object } });
        let answer = alice.post(SIGNATURES, &body).await.ok();
        answer["failures"][&alice.user_id][name]["errcode"].clone()
    };
    let signed = |mut object: Value, by: &str, key: &Ed25519SecretKey| {
        sign(&mut object, &alice.user_id, by, key);
        object
    };
    let mut changed = device.clone();
    changed["algorithms"] = json!([]);
    let changed = signed(changed, &id(&own), &own);
    assert!(upload(&alice.device_id, changed).await.is_string());
    // The master key vouches for keys, not for devices.
    let by_master = signed(device.clone(), &id(&master), &master);
    let refused = upload(&alice.device_id, by_master).await;
    assert_eq!(refused, "M_INVALID_SIGNATURE");
    // And the self-signing key not for the master key.
    let public = master.public_key().to_base64();
    let object = identity_key(&alice, "master", &master);
    let refused = upload(&public, signed(object.clone(), &id(&own), &own)).await;
    assert_eq!(refused, "M_INVALID_SIGNATURE");
    let good = signed(device.clone(), &id(&own), &own);
    assert_eq!(upload(&alice.device_id, good).await, Value::Null, "control");
    let by = format!("ed25519:{}", alice.device_id);
    let good = signed(object, &by, &device_key);
    assert_eq!(upload(&public, good).await, Value::Null, "control");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_messages_have_sizes() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let too_large = (413, "M_TOO_LARGE");
    let key = Ed25519SecretKey::new();
    for (size, fits) in [(6_000, true), (9_000, false)] {
        let mut keys = device_keys(&bob, &key);
        keys["org.example.more"] = json!("x".repeat(size));
        let id = format!("ed25519:{}", bob.device_id);
        sign(&mut keys, &bob.user_id, &id, &key);
        let answer = bob.post(UPLOAD, &json!({ "device_keys": keys })).await;
        let refused = !answer.status.is_success() && answer.refused() == too_large;
        assert_eq!(refused, !fits, "{size}");
    }
    for (size, fits) in [(900, true), (1_100, false)] {
        let keys = json!({ format!("m.large:{size}"): "x".repeat(size) });
        let answer = alice.post(UPLOAD, &json!({ "one_time_keys": keys })).await;
        let refused = !answer.status.is_success() && answer.refused() == too_large;
        assert_eq!(refused, !fits, "{size}");
    }
    let many: Map<_, _> = (0..501)
        .map(|n| (format!("m.many:{n}"), json!("a key")))
        .collect();
    let answer = alice.post(UPLOAD, &json!({ "one_time_keys": many })).await;
    assert_eq!(answer.refused(), too_large);
    for (size, fits) in [(60_000, true), (70_000, false)] {
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/size{size}");
        let messages = json!({ &bob.user_id: { "*": { "body": "x".repeat(size) } } });
        let answer = alice.put(&path, &json!({ "messages": messages })).await;
        let refused = !answer.status.is_success() && answer.refused() == too_large;
        assert_eq!(refused, !fits, "{size}");
    }
    let events = bob.sync(None, 0).await["to_device"]["events"].clone();
    assert_eq!(events.as_array().unwrap().len(), 1, "control");
}

/// What a server of others says of a device of its user.
fn update(number: u64, device: &str, keys: &Value) -> Value {
    let content = json!({
        "user_id": "@mallory:b.test", "device_id": device, "stream_id": number,
        "prev_id": [number - 1], "keys": keys,
    });
    json!({ "edu_type": "m.device_list_update", "content": content })
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_other_servers_whose_keys_nobody_can_use_are_dropped() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    alice.join_via(fake.room_id().as_str(), "b.test").await.ok();
    let mallory = "@mallory:b.test";
    let query = json!({ "device_keys": { mallory: [] } });
    let devices = async || {
        let found = alice.post(QUERY, &query).await.ok();
        let devices = found["device_keys"][mallory].as_object();
        devices.unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(devices().await, ["PHONE"], "the list is known");

    let good = |name: &str| {
        let session = json!({ "user_id": mallory, "device_id": name, "access_token": "" });
        device_keys(&User::new(ours.url(), &session), &Ed25519SecretKey::new())
    };
    let tampered: [fn(&mut Value); 4] = [
        |keys| keys["algorithms"] = json!(["m.olm.v1.curve25519-aes-sha2"]),
        |keys| keys["keys"]["ed25519:BAD"] = json!("A".repeat(44)),
        |keys| keys["keys"]["curve25519:BAD"] = json!("A".repeat(43)),
        |keys| keys["user_id"] = json!("@somebody:b.test"),
    ];
    let mut number = 8;
    for tamper in tampered {
        let mut keys = good("BAD");
        tamper(&mut keys);
        let updates = [
            update(number, "BAD", &keys),
            update(number + 1, "GOOD", &good("GOOD")),
        ];
        number += 2;
        fake.peer().send(&ours, &[], &updates).await.ok();
        assert_eq!(devices().await, ["GOOD", "PHONE"], "{keys}");
    }
    let honest = [update(number, "BAD", &good("BAD"))];
    fake.peer().send(&ours, &[], &honest).await.ok();
    assert_eq!(devices().await, ["BAD", "GOOD", "PHONE"], "control");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_server_that_comes_twice_is_told_once() {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    // Each time in another transaction; the last one is the control.
    for id in ["one", "one", "two"] {
        let content = json!({
            "sender": "@mallory:b.test", "type": "m.test", "message_id": id,
            "messages": { &alice.user_id: { &alice.device_id: { "body": id } } },
        });
        let edu = json!({ "edu_type": "m.direct_to_device", "content": content });
        fake.peer().send(&ours, &[], &[edu]).await.ok();
    }
    assert_eq!(told(&alice.sync(None, 0).await), ["one", "two"]);
}
