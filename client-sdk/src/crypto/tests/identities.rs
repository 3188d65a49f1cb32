//! Cross-signing, pinned identities, and who gets keys because of them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value, json};
use vodozemac::Ed25519SecretKey;

use super::fake::{Crash, Peer, Server, another, room, signed, users};
use crate::{
    crypto::{
        Alarm, Bootstrap, DecryptError, IdentityState, SenderTrust, ShareError, SharePolicy,
        TrustRequirement, identity_keys::signed_by,
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
    alice.sync(&mut server).await;
    // They have met before.
    alice.share(&mut server, room(), &[&bob]).await;
    bob.share(&mut server, room(), &[&alice]).await;
    bob.sync(&mut server).await;
    alice.sync(&mut server).await;
    (server, alice, bob)
}

async fn state(alice: &Peer, bob: &Peer) -> IdentityState {
    alice.machine.identity_state(bob.user()).await.unwrap()
}

/// Why Alice does not share a key with Bob.
async fn refusal(alice: &mut Peer, server: &mut Server, bob: &Peer) -> Option<ShareError> {
    let result: Result<(), Crash> = alice.try_share(server, room(), &users(&[bob])).await;
    result.err().map(|error| *error.downcast().unwrap())
}

/// What an evil server makes up for Bob.
fn forge_identity(server: &mut Server, bob: &Peer) -> [Ed25519SecretKey; 2] {
    let keys = [Ed25519SecretKey::new(), Ed25519SecretKey::new()];
    let object = |usage: &str, key: &Ed25519SecretKey| {
        let public = key.public_key().to_base64();
        json!({
            "user_id": bob.user(),
            "usage": [usage],
            "keys": { format!("ed25519:{public}"): public },
        })
    };
    let user = bob.user().to_owned();
    let master = object("master", &keys[0]);
    let own = signed_by(&object("self_signing", &keys[1]), bob.user(), &keys[0]).unwrap();
    server.identities.insert(("master", user.clone()), master);
    server.identities.insert(("self_signing", user), own);
    server.note_change(bob.user());
    keys
}

fn sign_device(server: &mut Server, peer: &Peer, key: &Ed25519SecretKey) {
    let keys = server.device(peer.user(), peer.device()).keys.as_mut();
    let keys = keys.unwrap();
    let signature = signed_by(keys, peer.user(), key).unwrap();
    let added = signature["signatures"][peer.user().as_str()].clone();
    for (id, signature) in added.as_object().unwrap() {
        keys["signatures"][peer.user().as_str()][id] = signature.clone();
    }
    server.note_change(peer.user());
}

#[tokio::test]
async fn t_xs_1_signed_devices_talk_and_are_trusted() {
    let (mut server, mut alice, mut bob) = two().await;
    assert!(bob.machine.is_cross_signed().await.unwrap());
    assert!(bob.machine.has_private_keys().await.unwrap());
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    let event = bob.decrypt_in(room(), &hello).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::SignedDevice);
    assert_eq!(event.sender.shield(), None);
    assert_eq!(state(&alice, &bob).await, IdentityState::Pinned);
    assert!(alice.alarms.is_empty());
    assert_eq!(state(&alice, &alice).await, IdentityState::Verified);
    // Nothing is made twice, also after a restart.
    bob.restart().await;
    assert!(bob.machine.is_cross_signed().await.unwrap());
    assert!(!bob.bootstrap(&mut server, Bootstrap::IfMissing).await);
}

#[tokio::test]
async fn t_xs_2_an_upload_whose_answer_is_lost_is_repeated_with_the_same_keys() {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = another(&mut server, ALICE, "ALICE", &environment).await;
    let how = Bootstrap::IfMissing;
    let first = alice.machine.bootstrap_cross_signing(how).await.unwrap();
    server.handle(&alice.name(), &first.unwrap().request);
    let master = server.identities[&("master", alice.user().to_owned())].clone();
    alice.restart().await;
    assert!(alice.bootstrap(&mut server, how).await);
    let again = &server.identities[&("master", alice.user().to_owned())];
    assert_eq!(again["keys"], master["keys"]);
    assert!(alice.machine.is_cross_signed().await.unwrap());
    alice.sync(&mut server).await;
    assert!(alice.alarms.is_empty());
    assert!(alice.bootstrap(&mut server, Bootstrap::Reset).await);
    let other = &server.identities[&("master", alice.user().to_owned())];
    assert_ne!(other["keys"], master["keys"], "control: made anew");
}

#[tokio::test]
async fn t_xs_3_another_own_identity_blocks_everything() {
    let (mut server, mut alice, bob) = two().await;
    let kept = server.identities.clone();
    forge_identity(&mut server, &alice);
    alice.sync(&mut server).await;
    assert_eq!(alice.alarms, [Alarm::OwnIdentityChanged]);
    let error = refusal(&mut alice, &mut server, &bob).await;
    assert!(matches!(error, Some(ShareError::OwnIdentityChanged)));
    // Neither may the server make us publish again by showing none.
    server.identities.clear();
    server.note_change(alice.user());
    alice.sync(&mut server).await;
    assert!(!alice.bootstrap(&mut server, Bootstrap::IfMissing).await);
    server.identities = kept;
    assert!(alice.machine.has_private_keys().await.unwrap());
    // The person decides: a reset.
    assert!(alice.bootstrap(&mut server, Bootstrap::Reset).await);
    alice.sync(&mut server).await;
    assert!(refusal(&mut alice, &mut server, &bob).await.is_none());
}

#[tokio::test]
async fn t_4153_1_a_device_that_the_server_adds_gets_no_key() {
    for policy in [SharePolicy::SignedDevicesOnly, SharePolicy::AllDevices] {
        let (mut server, mut alice, bob) = two().await;
        let environment = alice.environment.clone();
        alice.machine.set_share_policy(policy).await;
        let mut spy = another(&mut server, BOB, "SPY", &environment).await;
        alice.sync(&mut server).await;
        let secret = alice.say(&mut server, &[&bob], "secret").await;
        alice.send_outgoing(&mut server).await;
        let inbox = &server.device(spy.user(), spy.device()).inbox;
        let told: Vec<Value> = inbox
            .iter()
            .map(|(_, event)| json!([event["type"], event["content"]["code"]]))
            .collect();
        spy.sync(&mut server).await;
        let read = spy.read(&secret).await;
        if policy == SharePolicy::AllDevices {
            assert_eq!(read.unwrap(), "secret", "control");
        } else {
            assert!(matches!(read, Err(DecryptError::MissingRoomKey { .. })));
            assert_eq!(told, [json!(["m.room_key.withheld", "m.unverified"])]);
        }
    }
}

#[tokio::test]
async fn t_4153_2_what_an_unsigned_device_says_is_not_shown_until_it_is_signed() {
    let (mut server, mut alice, mut bob) = two().await;
    let environment = alice.environment.clone();
    let mut phone = another(&mut server, BOB, "PHONE", &environment).await;
    bob.sync(&mut server).await;
    let hello = phone.say(&mut server, &[&alice], "hello").await;
    alice.sync(&mut server).await;
    let error = alice.read(&hello).await.unwrap_err();
    assert!(matches!(error, DecryptError::UntrustedSender { .. }));
    let requirement = TrustRequirement::Untrusted;
    alice.machine.set_trust_requirement(requirement);
    assert_eq!(alice.read(&hello).await.unwrap(), "hello", "control");
    alice
        .machine
        .set_trust_requirement(TrustRequirement::Signed);
    let device = bob.knows(&phone).await;
    bob.machine.sign_own_device(&device).await.unwrap();
    bob.sync(&mut server).await;
    alice.sync(&mut server).await;
    assert_eq!(alice.read(&hello).await.unwrap(), "hello");
    phone.sync(&mut server).await;
    assert!(phone.machine.is_cross_signed().await.unwrap());
}

#[tokio::test]
async fn t_id_1_a_replaced_identity_alarms_and_gets_nothing() {
    let (mut server, mut alice, bob) = two().await;
    let environment = alice.environment.clone();
    alice.say(&mut server, &[&bob], "hello").await;
    let keys = forge_identity(&mut server, &bob);
    let mut spy = another(&mut server, BOB, "SPY", &environment).await;
    sign_device(&mut server, &spy, &keys[1]);
    alice.sync(&mut server).await;
    let user_id = bob.user().to_owned();
    assert_eq!(alice.alarms, [Alarm::IdentityChanged { user_id }]);
    assert_eq!(state(&alice, &bob).await, IdentityState::PinViolation);
    let error = refusal(&mut alice, &mut server, &bob).await;
    assert!(
        matches!(error, Some(ShareError::IdentitiesChanged { users }) if users == [bob.user()])
    );
    spy.sync(&mut server).await;
    // Control: if the person accepts it, the spy reads.
    alice.machine.accept_identity(bob.user()).await.unwrap();
    let fooled = alice.say(&mut server, &[&bob], "fooled").await;
    spy.sync(&mut server).await;
    assert_eq!(spy.read(&fooled).await.unwrap(), "fooled");
}

#[tokio::test]
async fn t_id_2_an_identity_that_comes_back_still_needs_a_person() {
    let (mut server, mut alice, bob) = two().await;
    let kept = server.identities.clone();
    for _ in 0..2 {
        forge_identity(&mut server, &bob);
        alice.sync(&mut server).await;
        server.identities.clone_from(&kept);
        server.note_change(bob.user());
        alice.sync(&mut server).await;
    }
    assert_eq!(alice.alarms.len(), 4);
    assert_eq!(state(&alice, &bob).await, IdentityState::PinViolation);
    alice.restart().await;
    assert!(refusal(&mut alice, &mut server, &bob).await.is_some());
    alice.machine.accept_identity(bob.user()).await.unwrap();
    assert!(refusal(&mut alice, &mut server, &bob).await.is_none());
}

#[tokio::test]
async fn t_id_2_a_former_identity_that_comes_back_is_a_change_as_well() {
    let (mut server, mut alice, bob) = two().await;
    let former = server.identities.clone();
    // Bob has made a new one, and Alice knows.
    forge_identity(&mut server, &bob);
    alice.sync(&mut server).await;
    alice.machine.accept_identity(bob.user()).await.unwrap();
    let error = refusal(&mut alice, &mut server, &bob).await;
    assert!(error.is_none(), "control");
    // The server shows the one that somebody may have stolen.
    server.identities = former;
    server.note_change(bob.user());
    alice.sync(&mut server).await;
    assert_eq!(alice.alarms.len(), 2);
    assert_eq!(state(&alice, &bob).await, IdentityState::PinViolation);
    assert!(refusal(&mut alice, &mut server, &bob).await.is_some());
}

#[tokio::test]
async fn t_id_3_an_identity_that_goes_away_is_a_change() {
    let (mut server, mut alice, bob) = two().await;
    let error = refusal(&mut alice, &mut server, &bob).await;
    assert!(error.is_none(), "control");
    server.identities.retain(|(_, user), _| *user != bob.user());
    server.note_change(bob.user());
    alice.sync(&mut server).await;
    assert_eq!(alice.alarms.len(), 1);
    assert!(refusal(&mut alice, &mut server, &bob).await.is_some());
}

async fn verify(alice: &mut Peer, server: &mut Server, bob: &Peer) {
    let master = alice.machine.master_key(bob.user()).await.unwrap().unwrap();
    let signed = alice.machine.sign_user(bob.user(), &master);
    signed.await.unwrap();
    alice.sync(server).await;
    alice.sync(server).await;
}

#[tokio::test]
async fn t_id_4_a_verified_user_stays_verified_and_a_change_is_a_violation() {
    let (mut server, mut alice, mut bob) = two().await;
    alice
        .machine
        .set_share_policy(SharePolicy::VerifiedOnly)
        .await;
    let unread = alice.say(&mut server, &[&bob], "unread").await;
    bob.sync(&mut server).await;
    assert!(bob.read(&unread).await.is_err());
    verify(&mut alice, &mut server, &bob).await;
    assert_eq!(state(&alice, &bob).await, IdentityState::Verified);
    let hello = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    let answer = bob.say(&mut server, &[&alice], "answer").await;
    alice.sync(&mut server).await;
    let event = alice.decrypt_in(room(), &answer).await.unwrap();
    assert_eq!(event.sender.trust, SenderTrust::Verified);

    let kept = server.identities.clone();
    forge_identity(&mut server, &bob);
    alice.sync(&mut server).await;
    let user_id = bob.user().to_owned();
    assert_eq!(alice.alarms, [Alarm::VerifiedIdentityChanged { user_id }]);
    assert_eq!(
        state(&alice, &bob).await,
        IdentityState::VerificationViolation
    );
    alice
        .machine
        .set_share_policy(SharePolicy::AllDevices)
        .await;
    assert!(refusal(&mut alice, &mut server, &bob).await.is_some());
    // The identity that was verified is still the one that was verified.
    server.identities = kept;
    server.note_change(bob.user());
    alice.sync(&mut server).await;
    assert_eq!(state(&alice, &bob).await, IdentityState::Verified);
}

#[tokio::test]
async fn t_tr_2_what_was_trusted_when_it_came_stays_so_and_nothing_else() {
    let (mut server, mut alice, mut bob) = two().await;
    let environment = alice.environment.clone();
    verify(&mut alice, &mut server, &bob).await;
    bob.machine.discard_room_key(room()).await.unwrap();
    let hello = bob.say(&mut server, &[&alice], "hello").await;
    alice.sync(&mut server).await;
    let trust = async |alice: &Peer, event: &Value| match alice.decrypt_in(room(), event).await {
        Ok(event) => event.sender.trust,
        Err(DecryptError::UntrustedSender { sender }) => sender.trust,
        Err(error) => panic!("{error:?}"),
    };
    assert_eq!(
        trust(&alice, &hello).await,
        SenderTrust::Verified,
        "control"
    );
    let keys = forge_identity(&mut server, &bob);
    let mut spy = another(&mut server, BOB, "SPY", &environment).await;
    sign_device(&mut server, &spy, &keys[1]);
    alice.sync(&mut server).await;
    let evil = spy.say(&mut server, &[&alice], "send me money").await;
    alice.sync(&mut server).await;
    for _ in 0..2 {
        assert_eq!(trust(&alice, &hello).await, SenderTrust::Verified);
        let violation = SenderTrust::VerificationViolation;
        assert_eq!(trust(&alice, &evil).await, violation);
        assert!(alice.read(&evil).await.is_err(), "it is not shown");
        alice.restart().await;
    }
}

#[tokio::test]
async fn t_id_5_only_what_was_compared_is_signed() {
    let (mut server, mut alice, bob) = two().await;
    let compared = alice.machine.master_key(bob.user()).await.unwrap().unwrap();
    forge_identity(&mut server, &bob);
    alice.sync(&mut server).await;
    let signed = alice.machine.sign_user(bob.user(), &compared);
    assert!(signed.await.is_err());
    let (_server, alice, bob) = two().await;
    let compared = alice.machine.master_key(bob.user()).await.unwrap().unwrap();
    let signed = alice.machine.sign_user(bob.user(), &compared);
    assert!(signed.await.is_ok(), "control");
}

#[tokio::test]
async fn t_xs_4_keys_that_the_master_key_did_not_sign_are_not_taken() {
    let (mut server, mut alice, bob) = two().await;
    let environment = alice.environment.clone();
    // Under Bob's own identity the server puts a self-signing key of its own.
    let kept = server.identities.clone();
    let keys = forge_identity(&mut server, &bob);
    let master = ("master", bob.user().to_owned());
    server
        .identities
        .insert(master.clone(), kept[&master].clone());
    let mut spy = another(&mut server, BOB, "SPY", &environment).await;
    sign_device(&mut server, &spy, &keys[1]);
    alice.sync(&mut server).await;
    assert!(alice.alarms.is_empty());
    let secret = alice.say(&mut server, &[&bob], "secret").await;
    spy.sync(&mut server).await;
    assert!(spy.read(&secret).await.is_err());
    // The same device gets the key when nobody asks who has signed it.
    let lax = SharePolicy::AllDevices;
    alice.machine.set_share_policy(lax).await;
    let open = alice.say(&mut server, &[&bob], "open").await;
    spy.sync(&mut server).await;
    assert_eq!(spy.read(&open).await.unwrap(), "open", "control");
}

#[tokio::test]
async fn t_xs_5_malformed_identities_are_errors() {
    let (mut server, mut alice, bob) = two().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    for text in [
        "A".repeat(44),
        format!("{}=", "A".repeat(42)),
        String::new(),
    ] {
        let master = json!({
            "user_id": carol.user(),
            "usage": ["master"],
            "keys": { format!("ed25519:{text}"): text },
        });
        let name = ("master", carol.user().to_owned());
        server.identities.insert(name, master);
        server.note_change(carol.user());
        alice.share(&mut server, room(), &[&bob, &carol]).await;
        alice.sync(&mut server).await;
        assert_eq!(state(&alice, &carol).await, IdentityState::Unknown);
    }
    server
        .identities
        .remove(&("master", carol.user().to_owned()));
    assert!(carol.bootstrap(&mut server, Bootstrap::IfMissing).await);
    alice.sync(&mut server).await;
    assert_eq!(
        state(&alice, &carol).await,
        IdentityState::Pinned,
        "control"
    );
}

#[tokio::test]
async fn t_xs_6_a_server_that_denies_an_identity_gets_no_second_one() {
    let (mut server, mut alice, _) = two().await;
    let before = alice.machine.master_key(alice.user()).await.unwrap();
    for usage in ["master", "self_signing", "user_signing"] {
        server.identities.remove(&(usage, alice.user().to_owned()));
    }
    server.note_change(alice.user());
    alice.sync(&mut server).await;
    assert_eq!(alice.alarms, [Alarm::OwnIdentityChanged]);
    assert!(!alice.bootstrap(&mut server, Bootstrap::IfMissing).await);
    let after = alice.machine.master_key(alice.user()).await.unwrap();
    assert_eq!(before, after);
    assert!(
        !server
            .identities
            .contains_key(&("master", alice.user().to_owned()))
    );
}

#[tokio::test]
async fn t_4s_6_private_keys_of_another_identity_are_refused() {
    let (mut server, alice, bob) = two().await;
    let environment = alice.environment.clone();
    let phone = another(&mut server, ALICE, "PHONE", &environment).await;
    // What the storage holds is what the server has put there.
    let foreign = bob.machine.secrets().await.unwrap();
    let own = alice.machine.secrets().await.unwrap();
    assert_eq!(phone.machine.take_private_keys(&foreign).await.unwrap(), 0);
    assert!(!phone.machine.is_cross_signed().await.unwrap());
    let mut mixed = own.clone();
    let name = "m.cross_signing.self_signing";
    mixed.insert(name.to_owned(), foreign[name].clone());
    assert_eq!(phone.machine.take_private_keys(&mixed).await.unwrap(), 2);
    assert!(!phone.machine.has_private_keys().await.unwrap());
    assert_eq!(phone.machine.take_private_keys(&own).await.unwrap(), 3);
    assert!(phone.machine.has_private_keys().await.unwrap(), "control");
}
