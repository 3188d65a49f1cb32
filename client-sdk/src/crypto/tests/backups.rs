//! Backups, key files, and what the server can do with them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use ruma::room_id;
use serde_json::{Map, Value, json};

use super::fake::{Peer, Server, alice_and_bob, room, session_id, signed};
use crate::{
    crypto::{
        BackupError, DecryptError, KeyFileError, Secret, SenderTrust, Shield, TrustRequirement,
    },
    environment::tests::TestEnvironment,
};

/// Uploads everything to a backup in memory; what is in it.
async fn back_up(peer: &Peer) -> Value {
    let mut rooms = json!({});
    while let Some(upload) = peer.machine.backup_upload().await.unwrap() {
        for (room_id, sessions) in &upload.rooms {
            for (session_id, key) in sessions {
                rooms[room_id.as_str()]["sessions"][session_id] = key.clone();
            }
        }
        peer.machine.backed_up(&upload).await.unwrap();
    }
    rooms
}

async fn with_backup(peer: &Peer, version: &str) -> (Secret, Value) {
    let (secret, info) = peer.machine.new_backup().await.unwrap();
    let used = peer.machine.use_backup(version, &info, &secret);
    used.await.unwrap();
    (secret, info)
}

#[tokio::test]
async fn t_bk_0_a_new_device_reads_what_the_backup_has() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let (secret, info) = with_backup(&bob, "1").await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let rooms = back_up(&bob).await;
    assert_eq!(rooms.as_object().unwrap().len(), 1);
    assert_eq!(back_up(&bob).await, json!({}), "once");
    // A new version gets everything again.
    with_backup(&bob, "2").await;
    assert_ne!(back_up(&bob).await, json!({}));

    let environment = alice.environment.clone();
    let phone = super::fake::another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    assert!(matches!(
        phone.read(&hello).await,
        Err(DecryptError::MissingRoomKey { .. })
    ));
    let used = phone.machine.use_backup("1", &info, &secret);
    used.await.unwrap();
    assert_eq!(phone.machine.take_backup(&rooms).await.unwrap(), 1);
    let event = phone.decrypt_in(room(), &hello).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::Imported);
    assert_eq!(
        event.sender.shield(),
        Some(Shield::AuthenticityNotGuaranteed)
    );
    let requirement = TrustRequirement::SignedOrImported;
    phone.machine.set_trust_requirement(requirement);
    assert_eq!(phone.read(&hello).await.unwrap(), "hello");
    phone
        .machine
        .set_trust_requirement(TrustRequirement::Signed);
    assert!(phone.read(&hello).await.is_err());
}

#[tokio::test]
async fn t_bk_1_a_key_that_the_server_puts_into_a_backup_replaces_none_and_proves_nothing() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let (_, info) = with_backup(&bob, "1").await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    // The server has the public key, so it makes a backup entry with a session of its own, under
    // the name of Alice's: that is noticed. Under its own name it is taken, with a warning.
    let mut evil =
        vodozemac::megolm::GroupSession::new(vodozemac::megolm::SessionConfig::version_1());
    let inbound = vodozemac::megolm::InboundGroupSession::from(&evil);
    let key = json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "sender_key": alice.machine.curve25519_key().to_base64(),
        "sender_claimed_keys": { "ed25519": alice.machine.ed25519_key().to_base64() },
        "forwarding_curve25519_key_chain": [],
        "session_key": inbound.export_at_first_known_index().to_base64(),
    });
    let entry = entry(&info, &key);
    let under = |name: &str| json!({ room().as_str(): { "sessions": { name: entry } } });
    let real = session_id(&hello).to_owned();
    assert_eq!(bob.machine.take_backup(&under(&real)).await.unwrap(), 0);
    let event = bob.decrypt_in(room(), &hello).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::UnsignedDevice, "untouched");
    let name = evil.session_id();
    assert_eq!(bob.machine.take_backup(&under(&name)).await.unwrap(), 1);
    let text = json!({
        "type": "m.room.message",
        "content": { "msgtype": "m.text", "body": "forged" },
        "room_id": room(),
    });
    let content = json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": evil.encrypt(text.to_string()).to_base64(),
        "session_id": name,
    });
    let forged = server.event(alice.user(), content.as_object().unwrap());
    let event = bob.decrypt_in(room(), &forged).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::Imported);
}

/// An entry of a backup with this public key, as anybody can make it.
fn entry(info: &Value, key: &Value) -> Value {
    let public = info["auth_data"]["public_key"].as_str().unwrap();
    let public = crate::crypto::keys::curve25519(public).unwrap();
    let encrypted = vodozemac::pk_encryption::PkEncryption::from_key(public)
        .encrypt(key.to_string().as_bytes())
        .unwrap();
    json!({
        "first_message_index": 0,
        "forwarded_count": 0,
        "is_verified": true,
        "session_data": {
            "ciphertext": vodozemac::base64_encode(encrypted.ciphertext),
            "ephemeral": encrypted.ephemeral_key.to_base64(),
            "mac": vodozemac::base64_encode(encrypted.mac),
        },
    })
}

#[tokio::test]
async fn t_bk_1_a_copy_with_another_ratchet_replaces_none() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let (secret, info) = with_backup(&bob, "1").await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let phone = super::fake::another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    let used = phone.machine.use_backup("1", &info, &secret);
    used.await.unwrap();
    // The name of a session is its signing key; the ratchet beside it may be anything.
    let good = super::forwarding::exported(&bob, &hello).await;
    let mut key = vodozemac::base64_decode(good["session_key"].as_str().unwrap()).unwrap();
    key[20] ^= 1;
    let mut forged = good.clone();
    forged.insert(
        "session_key".to_owned(),
        vodozemac::base64_encode(&key).into(),
    );
    let name = session_id(&hello);
    let backup = |key: Map<String, Value>| {
        let entry = entry(&info, &Value::Object(key));
        json!({ room().as_str(): { "sessions": { name: entry } } })
    };
    let taken = bob.machine.take_backup(&backup(forged.clone())).await;
    assert_eq!(taken.unwrap(), 0);
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    // Who has no other copy cannot know, and reads nothing with it.
    let taken = phone.machine.take_backup(&backup(forged)).await;
    assert_eq!(taken.unwrap(), 1);
    let error = phone.read(&hello).await.unwrap_err();
    assert!(matches!(error, DecryptError::Invalid), "{error:?}");
    let tablet = super::fake::another(&mut server, "@bob:example.org", "TABLET", &environment);
    let tablet = tablet.await;
    let used = tablet.machine.use_backup("1", &info, &secret);
    used.await.unwrap();
    let taken = tablet.machine.take_backup(&backup(good)).await;
    assert_eq!(taken.unwrap(), 1, "control");
    assert_eq!(tablet.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn t_bk_2_nothing_goes_into_a_backup_with_a_foreign_key() {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let alice = signed(&mut server, "@alice:example.org", "ALICE", &environment).await;
    let bob = signed(&mut server, "@bob:example.org", "BOB", &environment).await;
    let (secret, own) = alice.machine.new_backup().await.unwrap();
    let (_, foreign) = bob.machine.new_backup().await.unwrap();
    let machine = &alice.machine;
    assert!(machine.is_backup_trusted(&own).await.unwrap(), "control");
    assert!(!machine.is_backup_trusted(&foreign).await.unwrap());
    let mut swapped = own.clone();
    swapped["auth_data"]["public_key"] = foreign["auth_data"]["public_key"].clone();
    assert!(!machine.is_backup_trusted(&swapped).await.unwrap());
    let error = machine.use_backup("1", &swapped, &secret).await;
    assert!(matches!(error, Err(BackupError::WrongKey)));
    assert!(machine.backup_upload().await.unwrap().is_none());
    machine.use_backup("1", &own, &secret).await.unwrap();
}

#[tokio::test]
async fn t_exp_1_a_file_does_not_say_how_long_to_try() {
    let (_server, _, bob) = alice_and_bob().await;
    let passphrase = Secret::new("correct horse battery staple");
    let file = bob.machine.export_with(&passphrase, 10).await.unwrap();
    let text: String = file.lines().filter(|line| !line.contains("---")).collect();
    let with_rounds = |rounds: u32| {
        let mut data = vodozemac::base64_decode(&text).unwrap();
        data[33..37].copy_from_slice(&rounds.to_be_bytes());
        let text = vodozemac::base64_encode(data);
        format!("-----BEGIN MEGOLM SESSION DATA-----\n{text}\n-----END MEGOLM SESSION DATA-----")
    };
    for (rounds, tried) in [
        (10, true),
        (11, true),
        (0, false),
        (10_000_001, false),
        (u32::MAX, false),
    ] {
        let file = with_rounds(rounds);
        let imported = bob.machine.import_room_keys(&file, &passphrase);
        match imported.await {
            Ok(_) => assert_eq!(rounds, 10, "control"),
            Err(KeyFileError::WrongPassphrase) => assert!(tried, "{rounds}"),
            Err(error) => assert!(!tried && matches!(error, KeyFileError::Malformed)),
        }
    }
}

#[tokio::test]
async fn t_exp_1_keys_travel_in_a_file() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let passphrase = Secret::new("correct horse battery staple");
    let file = bob.machine.export_with(&passphrase, 10).await.unwrap();
    assert!(file.starts_with("-----BEGIN MEGOLM SESSION DATA-----\n"));
    let environment = alice.environment.clone();
    let phone = super::fake::another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    let import = |file: String, word: &str| {
        let word = Secret::new(word);
        let machine = &phone.machine;
        async move { machine.import_room_keys(&file, &word).await }
    };
    let error = import(file.clone(), "wrong").await.unwrap_err();
    assert!(matches!(error, KeyFileError::WrongPassphrase));
    for broken in [
        String::new(),
        file[..200].to_owned(),
        file.replace("END", "X"),
    ] {
        let error = import(broken, passphrase.expose()).await.unwrap_err();
        assert!(matches!(error, KeyFileError::Malformed));
    }
    assert_eq!(import(file.clone(), passphrase.expose()).await.unwrap(), 1);
    assert_eq!(import(file, passphrase.expose()).await.unwrap(), 0, "again");
    assert_eq!(phone.read(&hello).await.unwrap(), "hello");
    // A key of one room opens nothing in another.
    let elsewhere = room_id!("!elsewhere:example.org");
    assert!(phone.decrypt_in(elsewhere, &hello).await.is_err());
}
