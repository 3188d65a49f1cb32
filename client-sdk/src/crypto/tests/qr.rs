//! Verification by QR codes, and two verifications at once.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use serde_json::json;

use super::fake::{Peer, Server, another, room, signed};
use crate::{
    crypto::{
        CancelReason, IdentityState, QrSupport, VerificationError, VerificationPhase as Phase,
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
    talk(&mut server, &mut alice, &mut bob).await;
    for peer in [&alice, &bob] {
        peer.machine.set_qr_support(QrSupport::ShowAndScan);
    }
    (server, alice, bob)
}

/// Alice, who has an identity, and a phone that nobody has verified.
async fn with_phone() -> (Server, Peer, Peer) {
    let (mut server, mut alice, _) = two().await;
    let environment = alice.environment.clone();
    let mut phone = another(&mut server, ALICE, "PHONE", &environment).await;
    phone.be_strict().await;
    phone.machine.set_qr_support(QrSupport::ShowAndScan);
    talk(&mut server, &mut alice, &mut phone).await;
    (server, alice, phone)
}

async fn talk(server: &mut Server, one: &mut Peer, other: &mut Peer) {
    for _ in 0..4 {
        one.sync(server).await;
        other.sync(server).await;
    }
}

async fn phase(peer: &Peer, id: &str) -> Phase {
    let all = peer.machine.verifications().await.unwrap();
    let one = all.into_iter().find(|verification| verification.id == id);
    one.unwrap().phase
}

async fn state(one: &Peer, other: &Peer) -> IdentityState {
    one.machine.identity_state(other.user()).await.unwrap()
}

async fn until_ready(server: &mut Server, one: &mut Peer, other: &mut Peer) -> String {
    let id = one.machine.request_verification(other.user()).await;
    let id = id.unwrap();
    talk(server, one, other).await;
    other.machine.accept_verification(&id).await.unwrap();
    talk(server, one, other).await;
    for peer in [&*one, &*other] {
        assert_eq!(phase(peer, &id).await, Phase::Ready);
    }
    id
}

/// `from` shows a code, `to` scans it, and the person at `from` agrees.
async fn by_code(server: &mut Server, id: &str, from: &mut Peer, to: &mut Peer) {
    let code = from.machine.show_qr(id).await.unwrap();
    to.machine.scan_qr(id, &code).await.unwrap();
    assert_eq!(phase(to, id).await, Phase::Waiting);
    talk(server, from, to).await;
    assert_eq!(phase(from, id).await, Phase::Scanned);
    from.machine.confirm_qr(id).await.unwrap();
    talk(server, from, to).await;
    for peer in [&*from, &*to] {
        assert_eq!(phase(peer, id).await, Phase::Done);
    }
}

#[tokio::test]
async fn t_qr_1_two_people_verify_each_other_with_one_scan() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_ready(&mut server, &mut alice, &mut bob).await;
    let code = bob.machine.show_qr(&id).await.unwrap();
    alice.machine.scan_qr(&id, &code).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    // Nobody is verified before Bob says that it was Alice who scanned.
    assert_eq!(state(&bob, &alice).await, IdentityState::Pinned);
    bob.machine.confirm_qr(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    assert_eq!(state(&alice, &bob).await, IdentityState::Verified);
    assert_eq!(state(&bob, &alice).await, IdentityState::Verified);
}

#[tokio::test]
async fn t_qr_2_an_old_device_shows_a_code_to_a_new_one() {
    let (mut server, mut alice, mut phone) = with_phone().await;
    let id = until_ready(&mut server, &mut phone, &mut alice).await;
    by_code(&mut server, &id, &mut alice, &mut phone).await;
    talk(&mut server, &mut alice, &mut phone).await;
    assert!(phone.machine.is_cross_signed().await.unwrap());
    assert_eq!(state(&phone, &alice).await, IdentityState::Verified);
}

#[tokio::test]
async fn t_qr_2_a_new_device_shows_a_code_to_an_old_one() {
    let (mut server, mut alice, mut phone) = with_phone().await;
    let id = until_ready(&mut server, &mut alice, &mut phone).await;
    by_code(&mut server, &id, &mut phone, &mut alice).await;
    talk(&mut server, &mut alice, &mut phone).await;
    assert!(phone.machine.is_cross_signed().await.unwrap());
    assert_eq!(state(&phone, &alice).await, IdentityState::Verified);
}

#[tokio::test]
async fn t_qr_3_a_code_with_other_keys_is_refused() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_ready(&mut server, &mut alice, &mut bob).await;
    let good = bob.machine.show_qr(&id).await.unwrap();
    let keys = good.len() - 16 - 64;
    // Not a code of this verification: the person may hold the camera to the right one now.
    let mut foreign = good.clone();
    foreign[10] ^= 1;
    for bytes in [&b"https://example.org"[..], &foreign, &good[..keys]] {
        let error = alice.machine.scan_qr(&id, bytes).await.unwrap_err();
        assert!(matches!(error, VerificationError::NotAQrCode));
    }
    assert_eq!(phase(&alice, &id).await, Phase::Ready);
    // The server has shown Bob another key of Alice, or Alice another key of Bob.
    for at in [keys, keys + 32] {
        let (mut server, mut alice, mut bob) = two().await;
        let id = until_ready(&mut server, &mut alice, &mut bob).await;
        let mut code = bob.machine.show_qr(&id).await.unwrap();
        code[at] ^= 1;
        let error = alice.machine.scan_qr(&id, &code).await.unwrap_err();
        assert!(matches!(error, VerificationError::WrongKeys));
        let mismatch = Phase::Cancelled(CancelReason::KeyMismatch);
        talk(&mut server, &mut alice, &mut bob).await;
        assert_eq!(phase(&alice, &id).await, mismatch);
        assert_eq!(phase(&bob, &id).await, mismatch);
        assert_eq!(state(&alice, &bob).await, IdentityState::Pinned);
    }
    // A code for the user's own devices says nothing about another user.
    let mut own = good.clone();
    own[7] = 1;
    let error = alice.machine.scan_qr(&id, &own).await.unwrap_err();
    assert!(matches!(error, VerificationError::WrongKeys));
}

#[tokio::test]
async fn t_qr_3_who_has_not_seen_the_code_cannot_say_so() {
    let (mut server, mut alice, mut bob) = two().await;
    let id = until_ready(&mut server, &mut alice, &mut bob).await;
    let start = |secret: &str| {
        json!({
            "transaction_id": id,
            "from_device": "ALICE",
            "method": "m.reciprocate.v1",
            "secret": secret,
        })
    };
    bob.machine.show_qr(&id).await.unwrap();
    let guess = start("AAAAAAAAAAAAAAAAAAAAAA");
    server.deliver(&bob, alice.user(), "m.key.verification.start", &guess);
    talk(&mut server, &mut bob, &mut alice).await;
    let mismatch = Phase::Cancelled(CancelReason::KeyMismatch);
    assert_eq!(phase(&bob, &id).await, mismatch);
    assert_eq!(state(&bob, &alice).await, IdentityState::Pinned);
    let error = bob.machine.confirm_qr(&id).await.unwrap_err();
    assert!(matches!(error, VerificationError::WrongPhase));
}

#[tokio::test]
async fn t_qr_3_nothing_is_shown_to_who_cannot_scan() {
    let (mut server, mut alice, mut bob) = two().await;
    alice.machine.set_qr_support(QrSupport::Show);
    let id = until_ready(&mut server, &mut alice, &mut bob).await;
    let error = bob.machine.show_qr(&id).await.unwrap_err();
    assert!(matches!(error, VerificationError::NoMethod));
    let code = alice.machine.show_qr(&id).await.unwrap();
    bob.machine.scan_qr(&id, &code).await.unwrap();
}

#[tokio::test]
async fn t_ver_9_a_device_has_one_verification_at_a_time() {
    let (mut server, mut alice, mut bob) = two().await;
    let first = until_ready(&mut server, &mut alice, &mut bob).await;
    let second = alice.machine.request_verification(bob.user()).await;
    let second = second.unwrap();
    talk(&mut server, &mut alice, &mut bob).await;
    let unexpected = Phase::Cancelled(CancelReason::UnexpectedMessage);
    for id in [&first, &second] {
        assert_eq!(phase(&bob, id).await, unexpected);
        assert_eq!(phase(&alice, id).await, unexpected);
    }
    // Once these are over there may be another.
    until_ready(&mut server, &mut alice, &mut bob).await;
}

#[tokio::test]
async fn t_ver_9_the_devices_that_did_not_answer_are_told() {
    let (mut server, mut alice, mut phone) = with_phone().await;
    let environment = alice.environment.clone();
    let mut tablet = another(&mut server, ALICE, "TABLET", &environment).await;
    phone.sync(&mut server).await;
    let id = phone.machine.request_verification(alice.user()).await;
    let id = id.unwrap();
    phone.send_outgoing(&mut server).await;
    for peer in [&mut alice, &mut tablet] {
        peer.sync(&mut server).await;
        assert_eq!(phase(peer, &id).await, Phase::Asked);
    }
    alice.machine.accept_verification(&id).await.unwrap();
    talk(&mut server, &mut alice, &mut phone).await;
    tablet.sync(&mut server).await;
    let elsewhere = Phase::Cancelled(CancelReason::AcceptedElsewhere);
    assert_eq!(phase(&tablet, &id).await, elsewhere);
    assert_eq!(phase(&phone, &id).await, Phase::Ready, "control");
}
