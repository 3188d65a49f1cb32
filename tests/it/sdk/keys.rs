//! Room keys that come in another way than from their owners.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use serde_json::json;
use sotto_client::{
    client::{RoomOptions, StateSecrecy},
    crypto::{Machine, Secret, SenderTrust},
    timeline::Protection,
};
use sotto_tests::{TestServer, User};
use vodozemac::{Curve25519PublicKey, Curve25519SecretKey};

use super::{NOW, SOON, alice_and_bob, log_in, person, wait_for};

/// Longer than anybody waits for a test.
const LONG: Duration = Duration::from_mins(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_key_from_a_file_wakes_who_waits_for_it() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    alice.room(&room_id).send_text("before").await.unwrap();
    wait_for(&bob, &room_id, "before").await;
    let phone = log_in(&server, "bob").await;
    let history = phone.room(&room_id).messages(None, 10).await.unwrap();
    assert!(
        history.events.iter().all(|event| event.body().is_none()),
        "control: the device cannot read this"
    );

    // The message is in what it syncs as well. After that there is no news for a long time.
    let passphrase = Secret::new("correct horse");
    let machine = bob.machine().unwrap();
    let file = machine.export_room_keys(&passphrase).await.unwrap();
    phone.sync_once(NOW).await.unwrap();
    let waiting = async {
        loop {
            let update = phone.sync_once(LONG).await.unwrap();
            let mut late = update.decrypted_late.into_iter().map(|(_, event)| event);
            if let Some(event) = late.find(|event| event.body() == Some("before")) {
                return event;
            }
        }
    };
    let waiting = tokio::time::timeout(LONG / 10, waiting);
    let import = async {
        let machine = phone.machine().unwrap();
        machine.import_room_keys(&file, &passphrase).await.unwrap()
    };
    let (read, imported) = tokio::join!(waiting, import);
    assert!(imported > 0);
    let Protection::Encrypted(sender) = read.unwrap().protection else {
        panic!("it is not decrypted");
    };
    assert_eq!(sender.trust, SenderTrust::Imported);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_room_can_be_hidden_from_servers() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let options = RoomOptions {
        name: Some("the plan".to_owned()),
        state: StateSecrecy::Encrypted,
        invite: vec![bob.user_id().unwrap().to_owned()],
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    bob.join(room.id().into(), &[]).await.unwrap();
    alice.sync_once(NOW).await.unwrap();
    // Bob came after the first name, and hears the second one.
    room.set_name("another plan").await.unwrap();
    let hidden = bob.room(room.id());
    for _ in 0..10 {
        bob.sync_once(SOON).await.unwrap();
        if hidden.name().await.unwrap().as_deref() == Some("another plan") {
            break;
        }
    }
    assert_eq!(hidden.name().await.unwrap().unwrap(), "another plan");
    // The server has neither.
    let helper = server.log_in("alice").await;
    let state = helper
        .get(&sotto_tests::room(room.id().as_str(), "state"))
        .await;
    assert!(!state.body.to_string().contains("plan"));
    assert!(state.body.to_string().contains("m.room.name:"), "control");
}

/// The version of the backup that the server has, and how many keys are in it.
async fn backup(helper: &User) -> (String, u64) {
    let info = helper
        .get("/_matrix/client/v3/room_keys/version")
        .await
        .ok();
    let version = info["version"].as_str().unwrap().to_owned();
    (version, info["count"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn t_bk_2_a_version_that_somebody_else_has_made_gets_no_keys() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    bob.enable_recovery(None).await.unwrap();
    let helper = server.log_in("bob").await;
    let hears = async |text: &str| {
        let machine = alice.machine().unwrap();
        machine.discard_room_key(&room_id).await.unwrap();
        alice.room(&room_id).send_text(text).await.unwrap();
        wait_for(&bob, &room_id, text).await;
        bob.sync_once(NOW).await.unwrap();
    };
    hears("one").await;
    let (ours, before) = backup(&helper).await;
    hears("two").await;
    let (version, after) = backup(&helper).await;
    assert!(version == ours && after > before, "control");

    // The server makes a version, with a key that it knows.
    let key = Curve25519PublicKey::from(&Curve25519SecretKey::new());
    let foreign = json!({
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": { "public_key": key.to_base64(), "signatures": {} },
    });
    let path = "/_matrix/client/v3/room_keys/version";
    helper.post(path, &foreign).await.ok();
    let (theirs, none) = backup(&helper).await;
    assert!(theirs != ours && none == 0);
    for text in ["three", "four"] {
        hears(text).await;
        assert_eq!(backup(&helper).await, (theirs.clone(), 0));
        let used = bob.machine().unwrap().backup_version().await;
        assert_eq!(used.unwrap(), None, "the person is asked");
    }
}

/// Who sends many things at once makes one session, and leaves nobody out.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_sent_at_once_share_a_session() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let room = alice.room(&room_id);
    let texts: BTreeSet<String> = (0..8).map(|number| number.to_string()).collect();
    let sent = join_all(texts.iter().map(|text| room.send_text(text.as_str()))).await;
    assert!(sent.iter().all(Result::is_ok));
    let update = bob.sync_once(SOON).await.unwrap();
    let events = super::events(&update, &room_id).iter();
    let read: Vec<_> = events.filter(|event| event.body().is_some()).collect();
    let heard = read.iter().filter_map(|event| event.body());
    assert_eq!(heard.map(str::to_owned).collect::<BTreeSet<_>>(), texts);
    let sessions = read.iter().map(|event| Machine::session_id_of(&event.raw));
    assert_eq!(sessions.collect::<BTreeSet<_>>().len(), 1);
}
