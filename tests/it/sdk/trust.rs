//! Recovery, and verification by emoji, between real clients.

use std::time::Duration;

use sotto_client::{
    Client,
    client::RoomOptions,
    crypto::{IdentityState, Secret, SenderTrust, VerificationPhase},
    room::RoomError,
    timeline::Protection,
};
use sotto_tests::TestServer;

use super::{NOW, SOON, alice_and_bob, person, wait_for};

async fn log_in(server: &TestServer, name: &str) -> Client {
    let builder = Client::builder().homeserver(server.url());
    let client = builder.build().await.unwrap();
    let password = format!("the password of {name}");
    client.login_password(name, &password).await.unwrap();
    client.sync_once(NOW).await.unwrap();
    client
}

async fn phase(client: &Client) -> VerificationPhase {
    let mut all = client.verifications().await.unwrap();
    all.pop().unwrap().phase
}

/// Both sync a few times.
async fn talk(one: &Client, other: &Client) {
    for _ in 0..3 {
        for client in [one, other] {
            client.sync_once(Duration::from_millis(300)).await.unwrap();
        }
    }
}

/// Carries a verification that `one` has asked for to its end.
async fn compare(one: &Client, other: &Client, id: &str) {
    talk(one, other).await;
    assert_eq!(phase(other).await, VerificationPhase::Asked);
    other.accept_verification(id).await.unwrap();
    talk(one, other).await;
    one.start_sas(id).await.unwrap();
    talk(one, other).await;
    let (seen, shown) = (phase(one).await, phase(other).await);
    assert!(matches!(seen, VerificationPhase::Compare(_)), "{seen:?}");
    assert_eq!(seen, shown);
    for client in [one, other] {
        client.confirm_sas(id).await.unwrap();
    }
    talk(one, other).await;
    for client in [one, other] {
        assert_eq!(phase(client).await, VerificationPhase::Done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_recovers_with_a_key() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let key = bob.enable_recovery(None).await.unwrap();
    alice.room(&room_id).send_text("before").await.unwrap();
    let before = wait_for(&bob, &room_id, "before").await;

    let phone = log_in(&server, "bob").await;
    let machine = phone.machine().unwrap();
    assert!(!machine.is_cross_signed().await.unwrap());
    let wrong = Secret::new("EsTc LW2K PGiF wKEA 3As5 g5c4 BXwk qeeJ ZJV8 Q9fu gUMN UE4d");
    assert!(phone.recover(&wrong).await.is_err());
    let recovered = phone.recover(&key).await.unwrap();
    assert!(recovered.identity && recovered.room_keys >= 1);
    assert!(machine.is_cross_signed().await.unwrap());
    let event = machine.decrypt_room_event(&room_id, &before.raw).await;
    assert_eq!(event.unwrap().sender.trust, SenderTrust::Imported);
    // What could not be read before is shown now.
    let update = phone.sync_once(NOW).await.unwrap();
    let late = update.decrypted_late.iter();
    assert!(
        late.clone()
            .any(|(_, event)| event.body() == Some("before"))
    );

    alice.sync_once(SOON).await.unwrap();
    alice.room(&room_id).send_text("after").await.unwrap();
    for client in [&bob, &phone] {
        let event = wait_for(client, &room_id, "after").await;
        let Protection::Encrypted(sender) = event.protection else {
            panic!("not encrypted")
        };
        assert_eq!(sender.trust, SenderTrust::SignedDevice);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_verify_each_other_in_their_room() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    alice.room(&room_id).send_text("hello").await.unwrap();
    wait_for(&bob, &room_id, "hello").await;
    let bobs = bob.user_id().unwrap();
    let room = alice.room(&room_id);
    let id = room.request_verification(bobs).await.unwrap();
    compare(&alice, &bob, &id).await;
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        let state = one.identity_state(other.user_id().unwrap()).await.unwrap();
        assert_eq!(state, IdentityState::Verified);
    }
    // Another device of Alice, once it trusts her identity, knows this as well.
    let key = alice.enable_recovery(None).await.unwrap();
    let phone = log_in(&server, "alice").await;
    phone.recover(&key).await.unwrap();
    phone.room(&room_id).send_text("from here").await.unwrap();
    phone.sync_once(NOW).await.unwrap();
    let state = phone.identity_state(bobs).await.unwrap();
    assert_eq!(state, IdentityState::Verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_verifies_a_new_device() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let phone = log_in(&server, "bob").await;
    bob.sync_once(SOON).await.unwrap();
    let own = phone.user_id().unwrap();
    let id = phone.request_verification(own).await.unwrap();
    compare(&phone, &bob, &id).await;
    let machine = phone.machine().unwrap();
    assert!(machine.is_cross_signed().await.unwrap());
    let state = phone.identity_state(own).await.unwrap();
    assert_eq!(state, IdentityState::Verified);
    alice.sync_once(SOON).await.unwrap();
    alice.room(&room_id).send_text("after").await.unwrap();
    wait_for(&phone, &room_id, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_ghost_1_who_is_put_into_a_conversation_of_two_gets_no_key() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let options = RoomOptions {
        direct: true,
        invite: vec![bob.user_id().unwrap().to_owned()],
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    bob.sync_once(NOW).await.unwrap();
    bob.join(room.id().into(), &[]).await.unwrap();
    alice.sync_once(SOON).await.unwrap();
    room.send_text("hello").await.unwrap();
    wait_for(&bob, room.id(), "hello").await;
    // The server puts somebody in, as if Alice had asked for it.
    let helper = server.log_in("alice").await;
    let spy = person(&server, "spy").await;
    let spy_id = spy.user_id().unwrap();
    helper
        .invite(room.id().as_str(), spy_id.as_str())
        .await
        .ok();
    spy.join(room.id().into(), &[]).await.unwrap();
    talk(&alice, &bob).await;
    for client in [&alice, &bob] {
        let error = client.room(room.id()).send_text("secret").await;
        let Err(RoomError::UnexpectedMembers { users }) = error else {
            panic!("sent: {error:?}")
        };
        assert_eq!(users, [spy_id]);
    }
    // Control: a person may say that this is all right.
    room.confirm_members().await.unwrap();
    room.send_text("to all three").await.unwrap();
    wait_for(&spy, room.id(), "to all three").await;
}
