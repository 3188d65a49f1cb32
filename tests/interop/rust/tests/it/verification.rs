//! Short strings and QR codes, between people and between devices of one.

use matrix_ruma::{UserId, events::key::verification::VerificationMethod};
use matrix_sdk_crypto::{
    Sas, UserIdentity, Verification, VerificationRequest, matrix_sdk_qrcode::QrVerificationData,
};
use serde_json::json;
use sotto_client::crypto::{IdentityState, QrSupport, VerificationPhase as Phase};
use sotto_interop::{Ours, Server, Theirs, event};

use crate::{ALICE, BOB, messages::two};

const METHODS: [VerificationMethod; 4] = [
    VerificationMethod::SasV1,
    VerificationMethod::QrCodeScanV1,
    VerificationMethod::QrCodeShowV1,
    VerificationMethod::ReciprocateV1,
];

/// Lets everything pass until nobody has more to say.
async fn talk(server: &mut Server, ours: &mut Ours, theirs: &mut Theirs) {
    for _ in 0..5 {
        ours.sync(server).await;
        theirs.sync(server).await;
        let mut events = std::mem::take(&mut theirs.room_events);
        events.extend(ours.room_events(server).await);
        for event in &events {
            ours.see(event).await;
            theirs.see(event).await;
        }
    }
}

async fn phase(ours: &Ours, id: &str) -> Phase {
    let all = ours.machine.verifications().await.unwrap();
    all.into_iter().find(|one| one.id == id).unwrap().phase
}

fn user(name: &str) -> &UserId {
    name.try_into().unwrap()
}

fn our_user_id(name: &str) -> &ruma::UserId {
    name.try_into().unwrap()
}

fn request(theirs: &Theirs, other: &str, id: &str) -> VerificationRequest {
    let request = theirs.machine.get_verification_request(user(other), id);
    request.unwrap()
}

/// Both are ready to verify; ours began if `ours_begins`. To devices of one user, in a room between
/// two.
async fn ready(
    server: &mut Server,
    ours: &mut Ours,
    theirs: &mut Theirs,
    ours_begins: bool,
) -> String {
    ours.machine.set_qr_support(QrSupport::ShowAndScan);
    let (our_user, their_user) = (ours.user().to_owned(), theirs.user().to_owned());
    let one_user = our_user == their_user;
    let id = if ours_begins && one_user {
        ours.machine
            .request_verification(our_user_id(&their_user))
            .await
            .unwrap()
    } else if ours_begins {
        let content = ours.machine.verification_request(our_user_id(&their_user));
        let id = server.event_id();
        let event = event(&our_user, &id, "m.room.message", json!(content));
        let room = sotto_interop::ROOM.try_into().unwrap();
        let event_id = id.as_str().try_into().unwrap();
        ours.machine
            .verification_requested(room, our_user_id(&their_user), event_id)
            .await;
        theirs.see(&event).await;
        id
    } else if one_user {
        let device = theirs
            .machine
            .get_device(user(&our_user), ours.device().into(), None);
        let device = device.await.unwrap().unwrap();
        let (request, outgoing) = device.request_verification_with_methods(METHODS.to_vec());
        theirs.verify(server, outgoing).await;
        request.flow_id().as_str().to_owned()
    } else {
        let identity = theirs
            .machine
            .get_identity(user(&our_user), None)
            .await
            .unwrap();
        let Some(UserIdentity::Other(identity)) = identity else {
            panic!("no identity")
        };
        let methods = Some(METHODS.to_vec());
        let content = identity.verification_request_content(methods.clone());
        let id = server.event_id();
        let room = sotto_interop::ROOM.try_into().unwrap();
        let event_id = id.as_str().try_into().unwrap();
        let request = identity.request_verification(room, event_id, methods);
        ours.see(&event(&their_user, &id, "m.room.message", json!(content)))
            .await;
        request.flow_id().as_str().to_owned()
    };
    talk(server, ours, theirs).await;
    if ours_begins {
        let accepted = request(theirs, &our_user, &id).accept_with_methods(METHODS.to_vec());
        theirs.verify(server, accepted.unwrap()).await;
    } else {
        assert_eq!(phase(ours, &id).await, Phase::Asked);
        ours.machine.accept_verification(&id).await.unwrap();
    }
    talk(server, ours, theirs).await;
    assert_eq!(phase(ours, &id).await, Phase::Ready);
    assert!(request(theirs, &our_user, &id).is_ready());
    id
}

fn sas(theirs: &Theirs, other: &str, id: &str) -> Sas {
    match theirs.machine.get_verification(user(other), id) {
        Some(Verification::SasV1(sas)) => *sas,
        other => panic!("{other:?}"),
    }
}

/// Compares short strings, and agrees.
async fn compare(
    server: &mut Server,
    ours: &mut Ours,
    theirs: &mut Theirs,
    id: &str,
    ours_starts: bool,
) {
    let our_user = ours.user().to_owned();
    if ours_starts {
        ours.machine.start_sas(id).await.unwrap();
        talk(server, ours, theirs).await;
        let accepted = sas(theirs, &our_user, id).accept().unwrap();
        theirs.verify(server, accepted).await;
    } else {
        let started = request(theirs, &our_user, id).start_sas().await.unwrap();
        theirs.verify(server, started.unwrap().1).await;
    }
    talk(server, ours, theirs).await;
    let Phase::Compare(short) = phase(ours, id).await else {
        panic!("nothing to compare")
    };
    let shown = sas(theirs, &our_user, id);
    let emoji = shown.emoji().unwrap();
    assert_eq!(
        short.emoji.map(|one| one.symbol),
        emoji.map(|one| one.symbol)
    );
    assert_eq!(
        short.emoji.map(|one| one.name),
        shown.emoji().unwrap().map(|one| one.description)
    );
    assert_eq!(short.decimals, shown.decimals().unwrap());
    ours.machine.confirm_sas(id).await.unwrap();
    let (requests, signatures) = shown.confirm().await.unwrap();
    for request in requests {
        theirs.verify(server, request).await;
    }
    if let Some(signatures) = signatures {
        theirs.send(server, &signatures.into()).await;
    }
    talk(server, ours, theirs).await;
    assert_eq!(phase(ours, id).await, Phase::Done);
    assert!(shown.is_done());
}

async fn assert_users_verified(ours: &Ours, theirs: &Theirs) {
    let state = ours
        .machine
        .identity_state(our_user_id(theirs.user()))
        .await;
    assert_eq!(state.unwrap(), IdentityState::Verified);
    let identity = theirs.machine.get_identity(user(ours.user()), None).await;
    assert!(identity.unwrap().unwrap().is_verified());
}

#[tokio::test]
async fn people_compare_short_strings() {
    for ours_begins in [true, false] {
        for ours_starts in [true, false] {
            let (mut server, mut ours, mut theirs) = two().await;
            let id = ready(&mut server, &mut ours, &mut theirs, ours_begins).await;
            compare(&mut server, &mut ours, &mut theirs, &id, ours_starts).await;
            assert_users_verified(&ours, &theirs).await;
        }
    }
}

/// A device of ours that is new, and a device of theirs that vouches for it.
async fn ours_is_new() -> (Server, Ours, Theirs) {
    let mut server = Server::default();
    let mut theirs = Theirs::with_identity(&mut server, ALICE, "THEIRS").await;
    let mut ours = Ours::new(&mut server, ALICE, "OURS").await;
    talk(&mut server, &mut ours, &mut theirs).await;
    (server, ours, theirs)
}

async fn theirs_is_new() -> (Server, Ours, Theirs) {
    let mut server = Server::default();
    let mut ours = Ours::with_identity(&mut server, ALICE, "OURS").await;
    let mut theirs = Theirs::new(&mut server, ALICE, "THEIRS").await;
    talk(&mut server, &mut ours, &mut theirs).await;
    (server, ours, theirs)
}

/// The new device of ours is vouched for, and has got the private keys from theirs.
async fn assert_ours_has_all(server: &mut Server, ours: &mut Ours, theirs: &mut Theirs) {
    for _ in 0..2 {
        talk(server, ours, theirs).await;
    }
    assert!(ours.machine.is_cross_signed().await.unwrap());
    assert!(ours.machine.has_private_keys().await.unwrap());
}

async fn assert_theirs_has_all(server: &mut Server, ours: &mut Ours, theirs: &mut Theirs) {
    talk(server, ours, theirs).await;
    let own = theirs
        .machine
        .get_device(user(ALICE), theirs.device().into(), None);
    assert!(own.await.unwrap().unwrap().is_cross_signed_by_owner());
    theirs
        .machine
        .query_missing_secrets_from_other_sessions()
        .await
        .unwrap();
    for _ in 0..2 {
        talk(server, ours, theirs).await;
    }
    assert!(theirs.machine.cross_signing_status().await.is_complete());
}

#[tokio::test]
async fn their_device_verifies_ours_and_gives_it_the_secrets() {
    for ours_begins in [true, false] {
        let (mut server, mut ours, mut theirs) = ours_is_new().await;
        let id = ready(&mut server, &mut ours, &mut theirs, ours_begins).await;
        compare(&mut server, &mut ours, &mut theirs, &id, true).await;
        assert_ours_has_all(&mut server, &mut ours, &mut theirs).await;
        let event = ours
            .say(&mut server, &[ALICE, BOB], "from the new one")
            .await;
        theirs.sync(&mut server).await;
        assert_eq!(
            theirs.read(&event).await.as_deref(),
            Some("from the new one")
        );
    }
}

#[tokio::test]
async fn our_device_verifies_theirs_and_gives_it_the_secrets() {
    for ours_begins in [true, false] {
        let (mut server, mut ours, mut theirs) = theirs_is_new().await;
        let id = ready(&mut server, &mut ours, &mut theirs, ours_begins).await;
        compare(&mut server, &mut ours, &mut theirs, &id, false).await;
        assert_theirs_has_all(&mut server, &mut ours, &mut theirs).await;
    }
}

/// Ours shows a code, theirs scans it.
async fn ours_shows(server: &mut Server, ours: &mut Ours, theirs: &mut Theirs, id: &str) {
    let our_user = ours.user().to_owned();
    let bytes = ours.machine.show_qr(id).await.unwrap();
    let code = QrVerificationData::from_bytes(bytes).unwrap();
    let qr = request(theirs, &our_user, id)
        .scan_qr_code(code)
        .await
        .unwrap()
        .unwrap();
    theirs.verify(server, qr.reciprocate().unwrap()).await;
    talk(server, ours, theirs).await;
    assert_eq!(phase(ours, id).await, Phase::Scanned);
    ours.machine.confirm_qr(id).await.unwrap();
    talk(server, ours, theirs).await;
    assert_eq!(phase(ours, id).await, Phase::Done);
    assert!(qr.is_done());
}

/// Theirs shows a code, ours scans it.
async fn theirs_shows(server: &mut Server, ours: &mut Ours, theirs: &mut Theirs, id: &str) {
    let our_user = ours.user().to_owned();
    let qr = request(theirs, &our_user, id)
        .generate_qr_code()
        .await
        .unwrap()
        .unwrap();
    ours.machine
        .scan_qr(id, &qr.to_bytes().unwrap())
        .await
        .unwrap();
    talk(server, ours, theirs).await;
    assert!(qr.has_been_scanned());
    theirs.verify(server, qr.confirm_scanning().unwrap()).await;
    talk(server, ours, theirs).await;
    assert_eq!(phase(ours, id).await, Phase::Done);
    assert!(qr.is_done());
}

#[tokio::test]
async fn people_scan_codes() {
    for shows in [true, false] {
        let (mut server, mut ours, mut theirs) = two().await;
        let id = ready(&mut server, &mut ours, &mut theirs, shows).await;
        if shows {
            ours_shows(&mut server, &mut ours, &mut theirs, &id).await;
        } else {
            theirs_shows(&mut server, &mut ours, &mut theirs, &id).await;
        }
        assert_users_verified(&ours, &theirs).await;
    }
}

#[tokio::test]
async fn a_new_device_of_ours_is_verified_by_a_code() {
    for shows in [true, false] {
        let (mut server, mut ours, mut theirs) = ours_is_new().await;
        let id = ready(&mut server, &mut ours, &mut theirs, true).await;
        if shows {
            ours_shows(&mut server, &mut ours, &mut theirs, &id).await;
        } else {
            theirs_shows(&mut server, &mut ours, &mut theirs, &id).await;
        }
        assert_ours_has_all(&mut server, &mut ours, &mut theirs).await;
    }
}

#[tokio::test]
async fn a_new_device_of_theirs_is_verified_by_a_code() {
    for shows in [true, false] {
        let (mut server, mut ours, mut theirs) = theirs_is_new().await;
        let id = ready(&mut server, &mut ours, &mut theirs, false).await;
        if shows {
            ours_shows(&mut server, &mut ours, &mut theirs, &id).await;
        } else {
            theirs_shows(&mut server, &mut ours, &mut theirs, &id).await;
        }
        assert_theirs_has_all(&mut server, &mut ours, &mut theirs).await;
    }
}
