//! Who gets a key, and when a message may follow.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use serde_json::json;

use super::fake::{Peer, Server, alice_and_bob, another, room, users};
use crate::crypto::{
    DecryptError, EncryptError, Failure, LocalTrust, OutgoingRequest, Request, Share, WithheldCode,
};

/// Shares until the keys themselves are to be sent; returns those requests.
async fn until_keys(
    server: &mut Server,
    alice: &mut Peer,
    members: &[&Peer],
) -> Vec<OutgoingRequest> {
    let members = users(members);
    for _ in 0..5 {
        let Share::Pending(requests) = alice
            .machine
            .share_room_key(room(), &members)
            .await
            .unwrap()
        else {
            panic!("nothing to send")
        };
        if requests
            .iter()
            .any(|request| matches!(request.request, Request::ToDevice(_)))
        {
            return requests;
        }
        for request in requests {
            let response = server.handle(&alice.name(), &request.request);
            alice
                .machine
                .mark_request_as_sent(&request.id, &response)
                .await
                .unwrap();
        }
    }
    panic!("no keys are sent")
}

#[tokio::test]
async fn t_shr_1_no_message_before_all_keys_are_delivered() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let requests = until_keys(&mut server, &mut alice, &[&bob]).await;
    assert!(matches!(
        alice.encrypt(room(), "x").await,
        Err(EncryptError::NotShared)
    ));
    alice.restart().await;
    assert!(matches!(
        alice.encrypt(room(), "x").await,
        Err(EncryptError::NotShared)
    ));
    // After the restart the same request is waiting, under the same transaction id.
    let members = users(&[&bob]);
    let again = alice
        .machine
        .share_room_key(room(), &members)
        .await
        .unwrap();
    let Share::Pending(again) = again else {
        panic!()
    };
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].id, requests[0].id);
    // The server got the first one already; the second does nothing.
    server.handle(&alice.name(), &requests[0].request);
    let response = server.handle(&alice.name(), &again[0].request);
    assert_eq!(server.device(bob.user(), bob.device()).inbox.len(), 1);
    alice
        .machine
        .mark_request_as_sent(&again[0].id, &response)
        .await
        .unwrap();
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_key_that_the_server_refuses_does_not_block_the_room_forever() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let requests = until_keys(&mut server, &mut alice, &[&bob]).await;
    alice
        .machine
        .mark_request_as_failed(&requests[0].id, Failure::Temporary)
        .await
        .unwrap();
    assert!(matches!(
        alice.encrypt(room(), "x").await,
        Err(EncryptError::NotShared)
    ));
    alice
        .machine
        .mark_request_as_failed(&requests[0].id, Failure::Permanent)
        .await
        .unwrap();
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert!(bob.read(&hello).await.is_err());
}

#[tokio::test]
async fn t_shr_2_a_device_without_keys_is_told_once_and_gets_the_key_later() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let keys = std::mem::take(&mut server.device(carol.user(), carol.device()).one_time_keys);
    let fallback = server.device(carol.user(), carol.device()).fallback.take();
    let told = |server: &mut Server, carol: &Peer| {
        let inbox = &server.device(carol.user(), carol.device()).inbox;
        inbox
            .iter()
            .filter(|(_, event)| event["content"]["code"] == "m.no_olm")
            .count()
    };
    let hello = alice.say(&mut server, &[&bob, &carol], "hello").await;
    alice.send_outgoing(&mut server).await;
    assert_eq!(told(&mut server, &carol), 1);
    alice.say(&mut server, &[&bob, &carol], "more").await;
    alice.send_outgoing(&mut server).await;
    assert_eq!(told(&mut server, &carol), 1, "once");
    bob.sync(&mut server).await;
    assert_eq!(
        bob.read(&hello).await.unwrap(),
        "hello",
        "others are not kept waiting"
    );

    server.device(carol.user(), carol.device()).one_time_keys = keys;
    server.device(carol.user(), carol.device()).fallback = fallback;
    environment.advance(Duration::from_mins(1));
    let later = alice.say(&mut server, &[&bob, &carol], "later").await;
    carol.sync(&mut server).await;
    assert_eq!(carol.read(&later).await.unwrap(), "later");
}

#[tokio::test]
async fn t_shr_3_a_device_whose_served_keys_changed_gets_nothing_under_the_new_keys() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    // The server replaces Bob's device by its own, with one-time keys that fit.
    let environment = alice.environment.clone();
    server.delete_device(bob.user(), bob.device());
    let mut spy = another(&mut server, "@bob:example.org", "BOB", &environment).await;
    alice.sync(&mut server).await;
    alice.machine.discard_room_key(room()).await.unwrap();
    let secret = alice.say(&mut server, &[&bob], "secret").await;
    spy.sync(&mut server).await;
    assert!(matches!(
        spy.read(&secret).await,
        Err(DecryptError::MissingRoomKey { .. })
    ));
    assert_eq!(alice.alarms.len(), 1);
}

#[tokio::test]
async fn t_shr_4_many_devices_are_served_in_several_requests() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut phones = Vec::new();
    for number in 0..260 {
        let name = format!("PHONE{number:03}");
        phones.push(another(&mut server, "@bob:example.org", &name, &environment).await);
    }
    let requests = until_keys(&mut server, &mut alice, &[&bob]).await;
    assert_eq!(requests.len(), 2);
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    for phone in &mut phones {
        phone.sync(&mut server).await;
        assert_eq!(phone.read(&hello).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_blocked_device_is_told_once_per_session() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let blocked = LocalTrust::Blocked;
    alice
        .machine
        .set_local_trust(bob.user(), bob.device(), blocked)
        .await
        .unwrap();
    server.device(bob.user(), bob.device()).inbox.clear();
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    alice.say(&mut server, &[&bob], "more").await;
    alice.send_outgoing(&mut server).await;
    let inbox = &server.device(bob.user(), bob.device()).inbox;
    assert_eq!(inbox.len(), 1);
    assert_eq!(inbox[0].1["type"], "m.room_key.withheld");
    bob.sync(&mut server).await;
    let error = bob.read(&hello).await.unwrap_err();
    let DecryptError::MissingRoomKey { withheld } = error else {
        panic!("{error:?}")
    };
    assert_eq!(withheld, Some(WithheldCode::Blacklisted));

    let unset = LocalTrust::Unset;
    alice
        .machine
        .set_local_trust(bob.user(), bob.device(), unset)
        .await
        .unwrap();
    let again = alice.say(&mut server, &[&bob], "again").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&again).await.unwrap(), "again");
}

#[tokio::test]
async fn a_device_that_cannot_decrypt_gets_no_key() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let account = vodozemac::olm::Account::new();
    let mut fields = bob.machine.device_keys().as_object().unwrap().clone();
    fields.remove("signatures");
    fields.insert("device_id".to_owned(), json!("OLD"));
    fields.insert("algorithms".to_owned(), json!(["org.example.old"]));
    let keys = json!({
        "ed25519:OLD": account.ed25519_key().to_base64(),
        "curve25519:OLD": account.curve25519_key().to_base64(),
    });
    fields.insert("keys".to_owned(), keys);
    let old = "OLD".into();
    let keys = crate::crypto::keys::sign(fields, &account, bob.user(), old).unwrap();
    server.device(bob.user(), old).keys = Some(keys);
    let claims = server.claims;
    alice.say(&mut server, &[&bob], "hello").await;
    assert_eq!(server.claims, claims + 1, "Bob's other device alone");
    assert!(server.device(bob.user(), old).inbox.is_empty());
}

#[tokio::test]
async fn what_is_settled_is_unsettled_by_any_change_of_devices() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    alice.say(&mut server, &[&bob], "settled").await;
    let mut phone = another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    alice.sync(&mut server).await;
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    phone.sync(&mut server).await;
    assert_eq!(phone.read(&hello).await.unwrap(), "hello");
    // Another set of members is another question.
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    let hello = alice.say(&mut server, &[&bob, &carol], "hello").await;
    carol.sync(&mut server).await;
    assert_eq!(carol.read(&hello).await.unwrap(), "hello");
}

/// Reports the next requests of a certain kind as failed, once.
async fn lose(server: &mut Server, alice: &mut Peer, bob: &Peer, lost: fn(&Request) -> bool) {
    loop {
        let members = users(&[bob]);
        let share = alice.machine.share_room_key(room(), &members);
        let Share::Pending(requests) = share.await.unwrap() else {
            panic!("there was no such request")
        };
        for request in requests {
            let response = server.handle(&alice.name(), &request.request);
            if lost(&request.request) {
                let failed = alice
                    .machine
                    .mark_request_as_failed(&request.id, Failure::Temporary);
                failed.await.unwrap();
                return;
            }
            let sent = alice.machine.mark_request_as_sent(&request.id, &response);
            sent.await.unwrap();
        }
    }
}

#[tokio::test]
async fn t_shr_5_a_lost_answer_costs_nobody_a_message() {
    let lost: [fn(&Request) -> bool; 2] = [
        |request| matches!(request, Request::KeysClaim(_)),
        |request| matches!(request, Request::KeysQuery(_)),
    ];
    for lost in lost {
        let (mut server, mut alice, mut bob) = alice_and_bob().await;
        lose(&mut server, &mut alice, &bob, lost).await;
        let hello = alice.say(&mut server, &[&bob], "hello").await;
        bob.sync(&mut server).await;
        assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn t_shr_5_a_server_that_never_answers_a_claim_keeps_nobody_silent() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    for _ in 0..4 {
        let claim: fn(&Request) -> bool = |request| matches!(request, Request::KeysClaim(_));
        lose(&mut server, &mut alice, &bob, claim).await;
    }
    alice.say(&mut server, &[&bob], "hello").await;
}
