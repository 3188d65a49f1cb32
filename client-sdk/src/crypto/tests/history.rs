//! The keys to what was said before somebody came.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use ruma::room_id;
use serde_json::{Value, json};

use super::fake::{Peer, Server, another, room, session_id, signed};
use crate::{
    attachment::{self, EncryptedFile},
    crypto::{
        BundleError, HistorySharing, KeyBundleNotice, RejectedMessage, RoomChange, SenderTrust,
        Share, Shield,
    },
    environment::{SystemEnvironment, tests::TestEnvironment},
};

const BOB: &str = "@bob:example.org";

fn file() -> EncryptedFile {
    let (_, secrets) = attachment::encrypt(vec![1], &SystemEnvironment).unwrap();
    secrets.at("mxc://example.org/bundle".into())
}

/// Alice alone in a room whose history is for those who come later, or not, and Bob outside.
async fn alice_alone(sharing: HistorySharing) -> (Server, Peer, Peer) {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = signed(&mut server, "@alice:example.org", "ALICE", &environment).await;
    let bob = signed(&mut server, BOB, "BOB", &environment).await;
    alice.room_change(RoomChange::History(room().to_owned(), sharing));
    alice.sync(&mut server).await;
    (server, alice, bob)
}

/// Alice offers what she has; the bundle, and what Bob makes of the offer.
async fn offer(
    server: &mut Server,
    alice: &mut Peer,
    bob: &mut Peer,
) -> (Vec<u8>, Option<KeyBundleNotice>) {
    let bundle = alice.machine.key_bundle(room()).await.unwrap();
    reach(server, alice, bob).await;
    let file = file();
    let told = alice.machine.offer_key_bundle(bob.user(), room(), &file);
    told.await.unwrap();
    alice.send_outgoing(server).await;
    bob.sync(server).await;
    let notice = bob.machine.offered_key_bundle(room(), alice.user());
    (serde_json::to_vec(&bundle).unwrap(), notice.await.unwrap())
}

async fn reach(server: &mut Server, alice: &mut Peer, bob: &Peer) {
    for _ in 0..5 {
        match alice.machine.reach_invited(bob.user()).await.unwrap() {
            Share::Ready => return,
            Share::Pending(requests) => alice.answer(server, requests).await,
        }
    }
    panic!("Bob is not reached");
}

#[tokio::test]
async fn t_4268_1_who_is_invited_reads_what_was_said_before() {
    let (mut server, mut alice, mut bob) = alice_alone(HistorySharing::Allowed).await;
    let before = alice.say(&mut server, &[], "before").await;
    assert!(bob.read(&before).await.is_err());
    let (bundle, notice) = offer(&mut server, &mut alice, &mut bob).await;
    let notice = notice.unwrap();
    let taken = bob.machine.take_key_bundle(room(), &notice, &bundle);
    assert_eq!(taken.await.unwrap(), 1);
    let event = bob.decrypt_in(room(), &before).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::Imported);
    assert_eq!(event.sender.forwarded_by.as_deref(), Some(alice.user()));
    assert_eq!(event.sender.shield(), Some(Shield::Forwarded));
    // Bob may pass it on in his turn.
    assert!(!bob.machine.key_bundle(room()).await.unwrap().is_empty());
    let again = bob.machine.offered_key_bundle(room(), alice.user());
    assert!(again.await.unwrap().is_none(), "once");
}

#[tokio::test]
async fn t_4268_2_what_was_not_for_others_stays_here() {
    let (mut server, mut alice, mut bob) = alice_alone(HistorySharing::Forbidden).await;
    let secret = alice.say(&mut server, &[], "for nobody").await;
    let (bundle, notice) = offer(&mut server, &mut alice, &mut bob).await;
    let notice = notice.unwrap();
    let shown: Value = serde_json::from_slice(&bundle).unwrap();
    assert_eq!(shown["room_keys"], json!([]));
    assert_eq!(shown["withheld"][0]["code"], "m.history_not_shared");
    assert_eq!(shown["withheld"][0]["session_id"], session_id(&secret));
    let taken = bob.machine.take_key_bundle(room(), &notice, &bundle);
    assert_eq!(taken.await.unwrap(), 0);
    assert!(bob.read(&secret).await.is_err());
}

#[tokio::test]
async fn t_4268_3_a_session_ends_when_the_visibility_changes() {
    let (mut server, mut alice, _) = alice_alone(HistorySharing::Forbidden).await;
    let mut sessions = Vec::new();
    for sharing in [
        HistorySharing::Forbidden,
        HistorySharing::Allowed,
        HistorySharing::Allowed,
        HistorySharing::Forbidden,
    ] {
        alice.room_change(RoomChange::History(room().to_owned(), sharing));
        alice.sync(&mut server).await;
        let event = alice.say(&mut server, &[], "x").await;
        sessions.push(session_id(&event).to_owned());
    }
    assert_ne!(sessions[0], sessions[1]);
    assert_eq!(sessions[1], sessions[2]);
    assert_ne!(sessions[2], sessions[3]);
    let bundle = alice.machine.key_bundle(room()).await.unwrap();
    let shown = serde_json::to_value(&bundle).unwrap();
    assert_eq!(shown["room_keys"].as_array().unwrap().len(), 1);
    assert_eq!(shown["room_keys"][0]["session_id"], sessions[1]);
}

#[tokio::test]
async fn t_4268_4_no_other_room_is_opened_by_a_bundle() {
    let (mut server, mut alice, mut bob) = alice_alone(HistorySharing::Allowed).await;
    let before = alice.say(&mut server, &[], "before").await;
    let (bundle, notice) = offer(&mut server, &mut alice, &mut bob).await;
    let notice = notice.unwrap();
    let elsewhere = room_id!("!elsewhere:example.org");
    let taken = bob.machine.take_key_bundle(elsewhere, &notice, &bundle);
    assert_eq!(taken.await.unwrap(), 0);
    assert!(bob.read(&before).await.is_err());
    let garbage = bob.machine.take_key_bundle(room(), &notice, b"[]").await;
    assert!(matches!(garbage, Err(BundleError::Malformed)));
    let taken = bob.machine.take_key_bundle(room(), &notice, &bundle);
    assert_eq!(taken.await.unwrap(), 1, "control");
    assert_eq!(bob.read(&before).await.unwrap(), "before");
}

#[tokio::test]
async fn t_4268_5_only_signed_devices_give_and_get() {
    let (mut server, mut alice, mut bob) = alice_alone(HistorySharing::Allowed).await;
    let environment = alice.environment.clone();
    let before = alice.say(&mut server, &[], "before").await;
    let mut spy = another(&mut server, BOB, "SPY", &environment).await;
    let policy = crate::crypto::SharePolicy::AllDevices;
    alice.machine.set_share_policy(policy).await;
    let (bundle, notice) = offer(&mut server, &mut alice, &mut bob).await;
    assert!(notice.is_some(), "control");
    spy.sync(&mut server).await;
    let shown = spy.machine.offered_key_bundle(room(), alice.user()).await;
    assert!(shown.unwrap().is_none());
    // A device that the server has added to Alice offers as well.
    let mut added = another(&mut server, "@alice:example.org", "ADDED", &environment).await;
    bob.sync(&mut server).await;
    reach(&mut server, &mut added, &bob).await;
    let told = added
        .machine
        .offer_key_bundle(bob.user(), room(), &file())
        .await;
    assert_eq!(told.unwrap(), 1);
    added.send_outgoing(&mut server).await;
    bob.sync(&mut server).await;
    let notice = bob.machine.offered_key_bundle(room(), alice.user()).await;
    let notice = notice.unwrap().unwrap();
    let taken = bob.machine.take_key_bundle(room(), &notice, &bundle).await;
    assert!(matches!(taken, Err(BundleError::UntrustedSender)));
    assert!(bob.read(&before).await.is_err());
}

#[tokio::test]
async fn t_4268_6_an_offer_in_the_clear_is_none() {
    let (mut server, alice, mut bob) = alice_alone(HistorySharing::Allowed).await;
    let offer = json!({ "room_id": room(), "file": file() });
    server.deliver(&bob, alice.user(), "m.room_key_bundle", &offer);
    let outcome = bob.sync(&mut server).await;
    assert_eq!(outcome.rejected[0].reason, RejectedMessage::NotEncrypted);
    let shown = bob.machine.offered_key_bundle(room(), alice.user()).await;
    assert!(shown.unwrap().is_none());
}
