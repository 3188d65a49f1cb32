//! Cross-signing keys, and signatures on keys.

use serde_json::{Value, json};
use sotto_tests::{TestServer, User};
use vodozemac::Ed25519SecretKey;

use super::{CROSS_SIGNING, QUERY, SIGNATURES, lists, sign, token, upload_device};

fn cross_signing_key(user: &User, usage: &str, key: &Ed25519SecretKey) -> Value {
    let public = key.public_key().to_base64();
    json!({
        "keys": { format!("ed25519:{public}"): public },
        "usage": [usage],
        "user_id": user.user_id,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn cross_signing() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let device = upload_device(&alice).await;
    let keys: Vec<_> = (0..4).map(|_| Ed25519SecretKey::new()).collect();
    let [master, own, other, next] = keys.as_slice() else {
        panic!("four keys")
    };
    let by_master = |mut key: Value, master: &Ed25519SecretKey| {
        let id = format!("ed25519:{}", master.public_key().to_base64());
        sign(&mut key, &alice.user_id, &id, master);
        key
    };
    let self_signing = cross_signing_key(&alice, "self_signing", own);
    let answer = alice
        .post(CROSS_SIGNING, &json!({ "self_signing_key": self_signing }))
        .await;
    assert_eq!(answer.refused(), (400, "M_MISSING_PARAM"));
    let body = json!({
        "master_key": cross_signing_key(&alice, "master", master),
        "self_signing_key": by_master(self_signing.clone(), next),
    });
    let answer = alice.post(CROSS_SIGNING, &body).await;
    assert_eq!(answer.refused(), (400, "M_INVALID_SIGNATURE"));
    let body = json!({
        "master_key": cross_signing_key(&alice, "master", master),
        "self_signing_key": by_master(self_signing, master),
        "user_signing_key": by_master(cross_signing_key(&alice, "user_signing", other), master),
    });
    for _ in 0..2 {
        alice.post(CROSS_SIGNING, &body).await.ok();
    }
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    let found = bob.post(QUERY, &query).await.ok();
    assert_eq!(found["master_keys"][&alice.user_id], body["master_key"]);
    assert_eq!(found["user_signing_keys"], json!({}));
    let found = alice.post(QUERY, &query).await.ok();
    assert_eq!(
        found["user_signing_keys"][&alice.user_id],
        body["user_signing_key"]
    );

    // Somebody with a stolen token cannot replace the keys.
    let mut replaced = json!({ "master_key": cross_signing_key(&alice, "master", next) });
    let answer = alice.post(CROSS_SIGNING, &replaced).await;
    assert_eq!(answer.status, 401);
    let session = answer.body["session"].clone();
    for (password, status) in [("wrong", 401), ("the password of alice", 200)] {
        replaced["auth"] = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": alice.user_id },
            "password": password,
            "session": session,
        });
        let answer = alice.post(CROSS_SIGNING, &replaced).await;
        assert_eq!(answer.status, status);
    }
    let found = alice.post(QUERY, &query).await.ok();
    assert_eq!(found["self_signing_keys"], json!({}));
    drop(device);
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_checked_and_kept_private() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    upload_device(&alice).await;
    let setup = async |user: &User| {
        let keys: Vec<_> = (0..3).map(|_| Ed25519SecretKey::new()).collect();
        let master_id = format!("ed25519:{}", keys[0].public_key().to_base64());
        let names = ["master", "self_signing", "user_signing"];
        let mut body = json!({});
        for (name, key) in names.iter().zip(&keys) {
            let mut object = cross_signing_key(user, name, key);
            if *name != "master" {
                sign(&mut object, &user.user_id, &master_id, &keys[0]);
            }
            body[format!("{name}_key")] = object;
        }
        user.post(CROSS_SIGNING, &body).await.ok();
        (keys, body)
    };
    let (keys, _) = setup(&alice).await;
    let (bobs, bob_body) = setup(&bob).await;
    let since = alice.sync(None, 0).await;
    let key_id = |key: &Ed25519SecretKey| format!("ed25519:{}", key.public_key().to_base64());

    let query = |user: &User| json!({ "device_keys": { &user.user_id: [] } });
    let found = alice.post(QUERY, &query(&alice)).await.ok();
    let mut device = found["device_keys"][&alice.user_id][&alice.device_id].clone();
    sign(&mut device, &alice.user_id, &key_id(&keys[1]), &keys[1]);
    let mut master = bob_body["master_key"].clone();
    sign(&mut master, &alice.user_id, &key_id(&keys[2]), &keys[2]);
    let mut wrong = device.clone();
    wrong["signatures"][&alice.user_id][key_id(&keys[1])] =
        keys[2].sign(b"something else").to_base64().into();
    let public = bobs[0].public_key().to_base64();
    let body = json!({ &alice.user_id: { &alice.device_id: wrong, "NONE": device } });
    let failures = alice.post(SIGNATURES, &body).await.ok();
    let failures = &failures["failures"][&alice.user_id];
    assert_eq!(failures[&alice.device_id]["errcode"], "M_INVALID_SIGNATURE");
    assert_eq!(failures["NONE"]["errcode"], "M_NOT_FOUND");
    let body = json!({
        &alice.user_id: { &alice.device_id: device },
        &bob.user_id: { &public: master },
    });
    let answer = alice.post(SIGNATURES, &body).await.ok();
    assert_eq!(answer, json!({}));

    let found = bob.post(QUERY, &query(&alice)).await.ok();
    let seen = &found["device_keys"][&alice.user_id][&alice.device_id]["signatures"];
    assert_eq!(*seen, device["signatures"]);
    let found = alice.post(QUERY, &query(&bob)).await.ok();
    assert_eq!(found["master_keys"][&bob.user_id], master);
    // Whom Alice trusts is not even Bob's business.
    let found = bob.post(QUERY, &query(&bob)).await.ok();
    assert_eq!(found["master_keys"][&bob.user_id], bob_body["master_key"]);
    let sync = alice.sync(token(&since), 0).await;
    assert!(lists(&sync, "changed").contains(&alice.user_id));
}
