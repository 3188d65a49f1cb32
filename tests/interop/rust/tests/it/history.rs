//! The keys to what was said before somebody was invited.

use std::io::Read as _;

use matrix_ruma::UserId;
use matrix_sdk_crypto::{
    AttachmentDecryptor, AttachmentEncryptor, CollectStrategy, MediaEncryptionInfo,
    types::{events::room_key_bundle::RoomKeyBundleContent, room_history::RoomKeyBundle},
};
use serde_json::{Value, json};
use sotto_client::{SystemEnvironment, attachment, crypto::HistorySharing};
use sotto_interop::ROOM;

use crate::{ALICE, BOB, messages::two};

const URL: &str = "mxc://example.org/bundle";

#[tokio::test]
async fn theirs_takes_our_history() {
    let (mut server, mut ours, mut theirs) = two().await;
    let secret = ours.say(&mut server, &[ALICE], "for nobody").await;
    ours.set_history(HistorySharing::Allowed).await;
    let before = ours.say(&mut server, &[ALICE], "before").await;
    assert_eq!(theirs.read_untrusted(&before).await, None);
    let bundle = ours
        .machine
        .key_bundle(ROOM.try_into().unwrap())
        .await
        .unwrap();
    let json = serde_json::to_vec(&bundle).unwrap();
    let (ciphertext, secrets) = attachment::encrypt(json, &SystemEnvironment).unwrap();
    let file = secrets.at(URL.into());
    ours.reach(&mut server, BOB).await;
    let (bob, room) = (BOB.try_into().unwrap(), ROOM.try_into().unwrap());
    let told = ours.machine.offer_key_bundle(bob, room, &file).await;
    assert_eq!(told.unwrap(), 1);
    ours.send_outgoing(&mut server).await;
    theirs.sync(&mut server).await;

    let store = theirs.machine.store();
    let alice = <&UserId>::try_from(ALICE).unwrap();
    let offered = store.get_received_room_key_bundle_data(ROOM.try_into().unwrap(), alice);
    let offered = offered.await.unwrap().unwrap();
    let info = json!(offered.bundle_data.file);
    let info: MediaEncryptionInfo = serde_json::from_value(info).unwrap();
    let mut json = Vec::new();
    let mut reader = &ciphertext[..];
    let mut decryptor = AttachmentDecryptor::new(&mut reader, info).unwrap();
    decryptor.read_to_end(&mut json).unwrap();
    let bundle: RoomKeyBundle = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        bundle.withheld.len(),
        2,
        "the first ones are not for others"
    );
    let taken = store.receive_room_key_bundle(&offered, bundle, |_, _| {});
    taken.await.unwrap();
    let read = theirs.read_untrusted(&before).await;
    assert_eq!(read.as_deref(), Some("before"));
    assert_eq!(theirs.read_untrusted(&secret).await, None, "control");
}

#[tokio::test]
async fn ours_takes_their_history() {
    let (mut server, mut ours, mut theirs) = two().await;
    let discarded = theirs.machine.discard_room_key(ROOM.try_into().unwrap());
    discarded.await.unwrap();
    let before = theirs.say(&mut server, &[BOB], "before").await;
    ours.sync(&mut server).await;
    assert_eq!(ours.read(&before).await, None);
    let store = theirs.machine.store();
    let bundle = store.build_room_key_bundle(ROOM.try_into().unwrap()).await;
    let json = serde_json::to_vec(&bundle.unwrap()).unwrap();
    let mut reader = &json[..];
    let mut encryptor = AttachmentEncryptor::new(&mut reader);
    let mut ciphertext = Vec::new();
    encryptor.read_to_end(&mut ciphertext).unwrap();
    let mut file: Value = json!(encryptor.finish());
    file["url"] = URL.into();
    let content: RoomKeyBundleContent =
        serde_json::from_value(json!({ "room_id": ROOM, "file": file })).unwrap();
    theirs.make_sessions(&mut server, &[ALICE]).await;
    let alice = <&UserId>::try_from(ALICE).unwrap();
    let strategy = CollectStrategy::IdentityBasedStrategy;
    let requests = theirs
        .machine
        .share_room_key_bundle_data(alice, &strategy, content);
    for request in requests.await.unwrap() {
        theirs.send_to_device(&mut server, &request).await;
    }
    ours.sync(&mut server).await;

    let (room, bob) = (ROOM.try_into().unwrap(), BOB.try_into().unwrap());
    let offered = ours.machine.offered_key_bundle(room, bob).await;
    let offered = offered.unwrap().unwrap();
    let bundle = attachment::decrypt(ciphertext, &offered.file).unwrap();
    let taken = ours.machine.take_key_bundle(room, &offered, &bundle).await;
    assert!(taken.unwrap() >= 1);
    let event = ours.decrypt(&before).await.unwrap();
    assert_eq!(event.content["body"], "before");
    let giver = event.sender.forwarded_by.unwrap();
    assert_eq!(giver.as_str(), BOB);
}
