//! Many users with many devices, all signed.

use serde_json::{Value, json};
use sotto_interop::Server;
use vodozemac::{Curve25519PublicKey, Ed25519SecretKey, olm::Account};

/// Fills the server with users; returns their names.
pub(crate) fn crowd(server: &mut Server, users: usize, devices: usize) -> Vec<String> {
    let names: Vec<String> = (0..users)
        .map(|number| format!("@user{number}:example.org"))
        .collect();
    for user in &names {
        let self_signing = identity(server, user);
        for number in 0..devices {
            device(server, user, &format!("DEVICE{number}"), &self_signing);
        }
    }
    names
}

fn identity(server: &mut Server, user: &str) -> Ed25519SecretKey {
    let master = Ed25519SecretKey::new();
    let self_signing = Ed25519SecretKey::new();
    let user_signing = Ed25519SecretKey::new();
    let object = |usage: &str, key: &Ed25519SecretKey| {
        let text = key.public_key().to_base64();
        json!({
            "user_id": user,
            "usage": [usage],
            "keys": { format!("ed25519:{text}"): text },
        })
    };
    let signed = |usage: &str, key: &Ed25519SecretKey| {
        let mut object = object(usage, key);
        sign(&mut object, user, &master);
        object
    };
    let body = json!({
        "master_key": object("master", &master),
        "self_signing_key": signed("self_signing", &self_signing),
        "user_signing_key": signed("user_signing", &user_signing),
    });
    server.signing_keys(user, &body);
    self_signing
}

fn sign(object: &mut Value, user: &str, key: &Ed25519SecretKey) {
    let signature = key.sign(object.to_string().as_bytes()).to_base64();
    let id = format!("ed25519:{}", key.public_key().to_base64());
    object["signatures"] = json!({ user: { id: signature } });
}

fn device(server: &mut Server, user: &str, device: &str, self_signing: &Ed25519SecretKey) {
    let mut account = Account::new();
    account.generate_one_time_keys(1);
    let own = |object: &Value| account.sign(object.to_string()).to_base64();
    let mut keys = json!({
        "user_id": user,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            format!("curve25519:{device}"): account.curve25519_key().to_base64(),
            format!("ed25519:{device}"): account.ed25519_key().to_base64(),
        },
    });
    let signature = own(&keys);
    sign(&mut keys, user, self_signing);
    keys["signatures"][user][format!("ed25519:{device}")] = signature.into();
    let one_time: Vec<Curve25519PublicKey> = account.one_time_keys().into_values().collect();
    let mut key = json!({ "key": one_time[0].to_base64() });
    let signature = own(&key);
    key["signatures"] = json!({ user: { format!("ed25519:{device}"): signature } });
    let body = json!({
        "device_keys": keys,
        "one_time_keys": { "signed_curve25519:AAAAAQ": key },
        "fallback_keys": {},
    });
    server.upload(user, device, &body);
}
