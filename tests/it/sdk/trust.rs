//! Recovery, and verification by emoji, between real clients.

use std::time::Duration;

use ruma::{OwnedUserId, RoomId};
use serde_json::json;
use sotto_client::{
    Client,
    client::RoomOptions,
    crypto::{IdentityState, Secret, SenderTrust, VerificationPhase},
    room::RoomError,
    timeline::Protection,
};
use sotto_tests::TestServer;

use super::{NOW, SOON, alice_and_bob, log_in, person, wait_for};

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

async fn unconfirmed(client: &Client, room_id: &RoomId) -> Vec<OwnedUserId> {
    let room = client.room(room_id);
    room.unconfirmed_members().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_ghost_2_a_group_sees_whom_nobody_has_invited() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let carol = person(&server, "carol").await;
    let room = alice.create_room(RoomOptions::default()).await.unwrap();
    let room_id = room.id().to_owned();
    room.invite(bob.user_id().unwrap()).await.unwrap();
    bob.sync_once(SOON).await.unwrap();
    bob.join((&*room_id).into(), &[]).await.unwrap();
    talk(&alice, &bob).await;
    room.invite(carol.user_id().unwrap()).await.unwrap();
    carol.sync_once(SOON).await.unwrap();
    carol.join((&*room_id).into(), &[]).await.unwrap();
    let everybody = [&alice, &bob, &carol];
    for _ in 0..2 {
        for client in everybody {
            client.sync_once(NOW).await.unwrap();
        }
    }
    // Control: Alice has asked Bob, and has told everybody that she has asked Carol.
    for client in everybody {
        assert!(unconfirmed(client, &room_id).await.is_empty());
    }
    // The server puts somebody in, as if Alice had asked for it.
    let helper = server.log_in("alice").await;
    let spy = person(&server, "spy").await;
    let spy_id = spy.user_id().unwrap().to_owned();
    let invited = helper.invite(room_id.as_str(), spy_id.as_str()).await;
    invited.ok();
    spy.join((&*room_id).into(), &[]).await.unwrap();
    // Who is not known cannot speak for themselves, nor the server for them.
    let roster = json!({ "room_id": room_id, "members": [spy_id] });
    let machine = spy.machine().unwrap();
    spy.room(&room_id).send_text("hello").await.unwrap();
    for client in everybody {
        let user_id = client.user_id().unwrap();
        let content = roster.as_object().unwrap();
        for device in machine.devices(user_id).await.unwrap() {
            let told = machine.send_to_device(&device, "org.sotto.roster", content.clone());
            assert!(told.await.unwrap(), "the spy knows them all");
        }
        let body = json!({ "messages": { user_id.as_str(): { "*": roster } } });
        let path = format!("/_matrix/client/v3/sendToDevice/org.sotto.roster/{user_id}");
        helper.put(&path, &body).await.ok();
    }
    spy.sync_once(NOW).await.unwrap();
    let strangers = [spy_id];
    for client in everybody {
        client.sync_once(SOON).await.unwrap();
        client.sync_once(NOW).await.unwrap();
        assert_eq!(unconfirmed(client, &room_id).await, strangers);
    }
    // It is a warning, and more for who wants more.
    room.send_text("is there a stranger here?").await.unwrap();
    room.require_confirmed_members(true).await.unwrap();
    let error = room.send_text("secret").await;
    let Err(RoomError::UnexpectedMembers { users }) = error else {
        panic!("sent: {error:?}")
    };
    assert_eq!(users, strangers);
    room.confirm_members().await.unwrap();
    assert!(unconfirmed(&alice, &room_id).await.is_empty());
    room.send_text("to all four").await.unwrap();
    wait_for(&spy, &room_id, "to all four").await;
}
