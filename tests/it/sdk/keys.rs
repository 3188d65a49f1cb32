//! Room keys that come in another way than from their owners.

use std::time::Duration;

use sotto_client::{
    client::{RoomOptions, StateSecrecy},
    crypto::{Secret, SenderTrust},
    timeline::Protection,
};
use sotto_tests::TestServer;

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
