//! Verification by a short string: people who succeed, and everybody who tries to come in between.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};

use super::fake::{Peer, Server, another, room, signed};
use crate::{
    crypto::{
        CancelReason, IdentityState, InRoom, LocalTrust, RoomVerificationMessage, SharePolicy,
        ShortAuthString, Verification, VerificationError, VerificationPhase as Phase,
    },
    environment::tests::TestEnvironment,
};

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";

async fn two() -> (Server, Peer, Peer) {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = signed(&mut server, ALICE, "ALICE", &environment).await;
    let mut bob = signed(&mut server, BOB, "BOB", &environment).await;
    alice.share(&mut server, room(), &[&bob]).await;
    bob.share(&mut server, room(), &[&alice]).await;
    bob.sync(&mut server).await;
    alice.sync(&mut server).await;
    (server, alice, bob)
}

async fn only(peer: &Peer) -> Verification {
    let mut all = peer.machine.verifications().await.unwrap();
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

async fn phase(peer: &Peer) -> Phase {
    only(peer).await.phase
}

async fn short(peer: &Peer) -> Box<ShortAuthString> {
    match phase(peer).await {
        Phase::Compare(short) => short,
        other => panic!("{other:?}"),
    }
}

/// Lets messages to devices pass until nobody has more to say.
async fn talk(server: &mut Server, alice: &mut Peer, bob: &mut Peer) {
    for _ in 0..4 {
        alice.sync(server).await;
        bob.sync(server).await;
    }
}

/// A verification that has come to the comparison, begun by Alice.
async fn until_compare(server: &mut Server, alice: &mut Peer, bob: &mut Peer) -> String {
    let id = alice
        .machine
        .request_verification(bob.user())
        .await
        .unwrap();
    talk(server, alice, bob).await;
    assert_eq!(phase(bob).await, Phase::Asked);
    bob.machine.accept_verification(&id).await.unwrap();
    talk(server, alice, bob).await;
    assert_eq!(phase(alice).await, Phase::Ready);
    alice.machine.start_sas(&id).await.unwrap();
    talk(server, alice, bob).await;
    id
}

#[tokio::test]
async fn t_ver_1_two_people_verify_each_other() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_compare(&mut server, &mut alice, &mut bob).await;
    assert_eq!(short(&alice).await, short(&bob).await);
    alice.machine.confirm_sas(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    assert_eq!(phase(&alice).await, Phase::Waiting);
    let unverified = bob.machine.identity_state(alice.user()).await.unwrap();
    assert_eq!(unverified, IdentityState::Pinned);
    bob.machine.confirm_sas(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        assert_eq!(phase(one).await, Phase::Done);
        let state = one.machine.identity_state(other.user()).await.unwrap();
        assert_eq!(state, IdentityState::Verified);
    }
    for peer in [&alice, &bob] {
        let policy = SharePolicy::VerifiedOnly;
        peer.machine.set_share_policy(policy).await;
    }
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn t_ver_2_a_new_device_is_verified_by_an_old_one() {
    let (mut server, mut alice, bob) = two().await;
    let environment = alice.environment.clone();
    let mut phone = another(&mut server, ALICE, "PHONE", &environment).await;
    phone.be_strict().await;
    alice.sync(&mut server).await;
    let id = until_compare(&mut server, &mut alice, &mut phone).await;
    let state = phone.machine.identity_state(alice.user()).await.unwrap();
    assert_eq!(state, IdentityState::Pinned);
    for peer in [&alice, &phone] {
        peer.machine.confirm_sas(&id).await.unwrap();
    }
    talk(&mut server, &mut alice, &mut phone).await;
    assert_eq!(phase(&phone).await, Phase::Done);
    // T-SEC-1: now that it is verified it has got the private keys as well.
    for _ in 0..3 {
        talk(&mut server, &mut alice, &mut phone).await;
    }
    assert!(phone.machine.has_private_keys().await.unwrap());
    assert!(phone.machine.is_cross_signed().await.unwrap());
    let state = phone.machine.identity_state(alice.user()).await.unwrap();
    assert_eq!(state, IdentityState::Verified);
    let mut bob = bob;
    bob.sync(&mut server).await;
    let hello = bob.say(&mut server, &[&alice], "hello").await;
    phone.sync(&mut server).await;
    assert_eq!(phone.read(&hello).await.unwrap(), "hello");
}

#[tokio::test]
async fn t_sas_1_who_comes_in_between_is_seen() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = alice
        .machine
        .request_verification(bob.user())
        .await
        .unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    bob.machine.accept_verification(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    alice.machine.start_sas(&id).await.unwrap();
    alice.send_outgoing(&mut server).await;
    bob.sync(&mut server).await;
    alice.sync(&mut server).await;
    // The server has its own key for each of them; it had to commit itself before it saw theirs.
    let evil = vodozemac::sas::Sas::new().public_key().to_base64();
    replace(&mut server, &bob, "m.key.verification.key", "key", &evil);
    bob.sync(&mut server).await;
    replace(&mut server, &alice, "m.key.verification.key", "key", &evil);
    alice.sync(&mut server).await;
    let caught = Phase::Cancelled(CancelReason::MismatchedCommitment);
    assert_eq!(phase(&alice).await, caught);
    talk(&mut server, &mut alice, &mut bob).await;
    assert_eq!(phase(&bob).await, caught);
}

/// Changes a field in the messages of a type that wait for somebody.
fn replace(server: &mut Server, peer: &Peer, kind: &str, field: &str, value: &str) {
    let inbox = &mut server.device(peer.user(), peer.device()).inbox;
    let mut count = 0;
    for (_, event) in inbox.iter_mut().filter(|(_, event)| event["type"] == kind) {
        event["content"][field] = value.into();
        count += 1;
    }
    assert_eq!(count, 1);
}

#[tokio::test]
async fn t_sas_2_the_codes_cover_the_keys_and_not_their_names() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_compare(&mut server, &mut alice, &mut bob).await;
    alice.machine.confirm_sas(&id).await.unwrap();
    alice.send_outgoing(&mut server).await;
    // A code under another name.
    let inbox = &mut server.device(bob.user(), bob.device()).inbox;
    let (_, event) = inbox
        .iter_mut()
        .find(|(_, event)| event["type"] == "m.key.verification.mac")
        .unwrap();
    let macs = event["content"]["mac"].as_object_mut().unwrap();
    let device = macs.remove("ed25519:ALICE").unwrap();
    macs.insert("ed25519:OTHER".to_owned(), device);
    bob.sync(&mut server).await;
    assert_eq!(
        phase(&bob).await,
        Phase::Cancelled(CancelReason::KeyMismatch)
    );
}

#[tokio::test]
async fn t_sas_3_people_who_see_different_things_say_so() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_compare(&mut server, &mut alice, &mut bob).await;
    bob.machine.confirm_sas(&id).await.unwrap();
    alice.machine.reject_sas(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        let mismatch = Phase::Cancelled(CancelReason::MismatchedSas);
        assert_eq!(phase(one).await, mismatch);
        let state = one.machine.identity_state(other.user()).await.unwrap();
        assert_eq!(state, IdentityState::Pinned);
    }
    let error = alice.machine.confirm_sas(&id).await.unwrap_err();
    assert!(matches!(error, VerificationError::WrongPhase));
}

#[tokio::test]
async fn t_ver_3_an_identity_that_changes_meanwhile_is_not_signed() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_compare(&mut server, &mut alice, &mut bob).await;
    bob.machine.confirm_sas(&id).await.unwrap();
    bob.send_outgoing(&mut server).await;
    // Between the comparison and the signature the server shows another identity.
    let name = ("master", bob.user().to_owned());
    let other = server.identities[&("master", alice.user().to_owned())].clone();
    let mut forged = other;
    forged["user_id"] = json!(bob.user());
    server.identities.insert(name, forged);
    server.note_change(bob.user());
    alice.sync(&mut server).await;
    alice.machine.confirm_sas(&id).await.unwrap();
    assert_eq!(
        phase(&alice).await,
        Phase::Cancelled(CancelReason::KeyMismatch)
    );
}

#[tokio::test]
async fn t_ver_4_a_device_alone_does_not_verify_its_user() {
    let (mut server, mut alice, _) = two().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    carol.share(&mut server, room(), &[&alice]).await;
    alice
        .machine
        .set_share_policy(SharePolicy::AllDevices)
        .await;
    alice.share(&mut server, room(), &[&carol]).await;
    let id = until_compare(&mut server, &mut alice, &mut carol).await;
    carol.machine.confirm_sas(&id).await.unwrap();
    alice.machine.confirm_sas(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut carol).await;
    assert_eq!(
        phase(&alice).await,
        Phase::Cancelled(CancelReason::KeyMismatch)
    );
}

#[tokio::test]
async fn t_ver_5_messages_out_of_turn_end_it_and_late_ones_are_nothing() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = alice
        .machine
        .request_verification(bob.user())
        .await
        .unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    let mac = json!({ "transaction_id": id, "mac": {}, "keys": "" });
    server.deliver(&bob, alice.user(), "m.key.verification.mac", &mac);
    bob.sync(&mut server).await;
    let unexpected = Phase::Cancelled(CancelReason::UnexpectedMessage);
    assert_eq!(phase(&bob).await, unexpected);
    alice.sync(&mut server).await;
    assert_eq!(phase(&alice).await, unexpected);
    let ready = json!({ "transaction_id": id, "from_device": "BOB", "methods": ["m.sas.v1"] });
    server.deliver(&alice, bob.user(), "m.key.verification.ready", &ready);
    alice.sync(&mut server).await;
    assert_eq!(phase(&alice).await, unexpected);
}

#[tokio::test]
async fn t_ver_6_somebody_else_cannot_take_part() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = alice
        .machine
        .request_verification(bob.user())
        .await
        .unwrap();
    let carol = <&ruma::UserId>::try_from("@carol:example.org").unwrap();
    let ready = json!({ "transaction_id": id, "from_device": "CAROL", "methods": ["m.sas.v1"] });
    server.deliver(&alice, carol, "m.key.verification.ready", &ready);
    let cancel = json!({ "transaction_id": id, "code": "m.user" });
    server.deliver(&alice, carol, "m.key.verification.cancel", &cancel);
    alice.sync(&mut server).await;
    assert_eq!(phase(&alice).await, Phase::Requested);
    talk(&mut server, &mut alice, &mut bob).await;
    assert_eq!(phase(&bob).await, Phase::Asked, "control");
}

#[tokio::test]
async fn t_ver_7_both_may_start_and_it_takes_ten_minutes_at_most() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = alice
        .machine
        .request_verification(bob.user())
        .await
        .unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    bob.machine.accept_verification(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    for peer in [&alice, &bob] {
        peer.machine.start_sas(&id).await.unwrap();
    }
    for peer in [&mut alice, &mut bob] {
        peer.send_outgoing(&mut server).await;
    }
    talk(&mut server, &mut alice, &mut bob).await;
    assert_eq!(short(&alice).await, short(&bob).await);
    alice.environment.advance(Duration::from_secs(601));
    let timeout = Phase::Cancelled(CancelReason::Timeout);
    assert_eq!(phase(&alice).await, timeout);
    talk(&mut server, &mut alice, &mut bob).await;
    assert_eq!(phase(&bob).await, timeout);
    // Requests of yesterday are not shown.
    let request = json!({
        "transaction_id": "old",
        "from_device": "BOB",
        "methods": ["m.sas.v1"],
        "timestamp": 1,
    });
    server.deliver(&alice, bob.user(), "m.key.verification.request", &request);
    alice.sync(&mut server).await;
    assert_eq!(phase(&alice).await, timeout);
}

fn in_room(sender: &Peer, event_id: &str, kind: &str, content: Map<String, Value>) -> InRoom {
    InRoom {
        room_id: room().to_owned(),
        event_id: event_id.try_into().unwrap(),
        sender: sender.user().to_owned(),
        timestamp: 1_790_000_000_000,
        kind: kind.to_owned(),
        content,
    }
}

#[tokio::test]
async fn t_ver_8_people_verify_each_other_in_a_room() {
    let (mut server, mut alice, bob) = two().await;
    let content = alice.machine.verification_request(bob.user());
    let id = "$request";
    let request = in_room(&alice, id, "m.room.message", content);
    alice
        .machine
        .verification_requested(room(), bob.user(), id.try_into().unwrap())
        .await;
    for peer in [&alice, &bob] {
        assert!(
            peer.machine
                .receive_verification_event(&request)
                .await
                .unwrap()
        );
    }
    bob.machine.accept_verification(id).await.unwrap();
    pass(&alice, &bob).await;
    bob.machine.start_sas(id).await.unwrap();
    pass(&alice, &bob).await;
    assert_eq!(short(&alice).await, short(&bob).await);
    for peer in [&alice, &bob] {
        peer.machine.confirm_sas(id).await.unwrap();
    }
    pass(&alice, &bob).await;
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        assert_eq!(phase(one).await, Phase::Done);
        let state = one.machine.identity_state(other.user()).await.unwrap();
        assert_eq!(state, IdentityState::Verified);
    }
    alice.sync(&mut server).await;
    assert_eq!(bob.knows(&alice).await.local_trust, LocalTrust::Unset);
}

/// Lets messages in the room pass; everybody sees also the own ones.
async fn pass(alice: &Peer, bob: &Peer) {
    for _ in 0..4 {
        for (from, to) in [(alice, bob), (bob, alice)] {
            let messages = from.machine.take_verification_messages().await;
            for RoomVerificationMessage { kind, content, .. } in messages {
                let event = in_room(from, "$step", &kind, content);
                for peer in [from, to] {
                    let machine = &peer.machine;
                    assert!(machine.receive_verification_event(&event).await.unwrap());
                }
            }
        }
    }
}

#[tokio::test]
async fn t_ver_6_nobody_else_takes_part_in_a_room() {
    let (_, alice, bob) = two().await;
    let id = "$request";
    let request = id.try_into().unwrap();
    let asked = alice
        .machine
        .verification_requested(room(), bob.user(), request);
    asked.await;
    let step = |kind: &str, relation: Value| {
        let content = json!({
            "from_device": "BOB", "methods": ["m.sas.v1"], "code": "m.user",
            "m.relates_to": relation,
        });
        let kind = format!("m.key.verification.{kind}");
        in_room(&bob, "$step", &kind, content.as_object().unwrap().clone())
    };
    let relation = json!({ "rel_type": "m.reference", "event_id": id });
    for kind in ["ready", "cancel"] {
        let good = step(kind, relation.clone());
        let by_carol = InRoom {
            sender: ruma::user_id!("@carol:example.org").to_owned(),
            ..good.clone()
        };
        let elsewhere = InRoom {
            room_id: ruma::room_id!("!elsewhere:example.org").to_owned(),
            ..good
        };
        let other = json!({ "rel_type": "m.reference", "event_id": "$other" });
        let lies = [
            by_carol,
            elsewhere,
            step(kind, other),
            step(kind, json!({})),
        ];
        for lie in &lies {
            let taken = alice.machine.receive_verification_event(lie);
            taken.await.unwrap();
            assert_eq!(phase(&alice).await, Phase::Requested, "{lie:?}");
        }
    }
    for (kind, expected) in [
        ("ready", Phase::Ready),
        ("cancel", Phase::Cancelled(CancelReason::User)),
    ] {
        let good = step(kind, relation.clone());
        let taken = alice.machine.receive_verification_event(&good);
        taken.await.unwrap();
        assert_eq!(phase(&alice).await, expected, "control");
    }
}
