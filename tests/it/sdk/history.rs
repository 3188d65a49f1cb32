//! The history of a room for people who come later.

use sotto_client::{Client, client::RoomOptions, crypto::SenderTrust};
use sotto_tests::TestServer;

use super::{NOW, Protection, SOON, TimelineEvent, events, is_encrypted, person};

/// Everything that was said in a room, as far as it can be read.
async fn said(client: &Client, room_id: &ruma::RoomId) -> Vec<TimelineEvent> {
    let history = client.room(room_id).messages(None, 100).await.unwrap();
    let readable = history.events.into_iter().filter(is_encrypted);
    readable.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_4268_who_is_invited_reads_what_was_said_before() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let room = alice.create_room(RoomOptions::default()).await.unwrap();
    alice.sync_once(NOW).await.unwrap();
    room.send_text("before you came").await.unwrap();
    alice.sync_once(SOON).await.unwrap();
    room.invite(bob.user_id().unwrap()).await.unwrap();
    let update = bob.sync_once(SOON).await.unwrap();
    assert_eq!(update.invites.len(), 1);
    let mut found = Vec::new();
    bob.join(room.id().into(), &[]).await.unwrap();
    for _ in 0..5 {
        let update = bob.sync_once(SOON).await.unwrap();
        let late = update.decrypted_late.iter().map(|(_, event)| event);
        let new = events(&update, room.id()).iter();
        found.extend(late.chain(new).filter(|event| is_encrypted(event)).cloned());
        if !found.is_empty() {
            break;
        }
    }
    if found.is_empty() {
        found = said(&bob, room.id()).await;
    }
    let event = found.first().unwrap();
    assert_eq!(event.body(), Some("before you came"));
    let Protection::Encrypted(sender) = &event.protection else {
        panic!("not encrypted")
    };
    assert_eq!(sender.trust, SenderTrust::Imported);
    assert_eq!(sender.forwarded_by.as_deref(), alice.user_id());
    room.send_text("and after").await.unwrap();
    super::wait_for(&bob, room.id(), "and after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_4268_who_joins_uninvited_reads_nothing_of_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let options = RoomOptions {
        public: true,
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    alice.sync_once(NOW).await.unwrap();
    room.send_text("before you came").await.unwrap();
    bob.join(room.id().into(), &[]).await.unwrap();
    for _ in 0..2 {
        bob.sync_once(SOON).await.unwrap();
    }
    assert!(said(&bob, room.id()).await.is_empty());
}

/// Whoever has forged keys would like to give them to somebody who comes because of another.
#[tokio::test(flavor = "multi_thread")]
async fn t_4268_who_has_not_invited_gives_no_keys() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let carol = person(&server, "carol").await;
    let room = alice.create_room(RoomOptions::default()).await.unwrap();
    alice.sync_once(NOW).await.unwrap();
    room.invite(carol.user_id().unwrap()).await.unwrap();
    carol.sync_once(SOON).await.unwrap();
    carol.join(room.id().into(), &[]).await.unwrap();
    alice.sync_once(SOON).await.unwrap();
    room.send_text("before you came").await.unwrap();
    super::wait_for(&carol, room.id(), "before you came").await;

    let helper = server.log_in("alice").await;
    let bobs = bob.user_id().unwrap();
    helper.invite(room.id().as_str(), bobs.as_str()).await.ok();
    bob.sync_once(SOON).await.unwrap();
    bob.join(room.id().into(), &[]).await.unwrap();
    // Carol's client offers the keys first, and is told then that Bob is there already.
    let invited = carol.room(room.id()).invite(bobs).await;
    assert!(invited.is_err());
    for _ in 0..3 {
        bob.sync_once(SOON).await.unwrap();
    }
    let machine = bob.machine().unwrap();
    let offers = machine.offered_key_bundle(room.id(), carol.user_id().unwrap());
    assert!(offers.await.unwrap().is_some(), "control: it came");
    let said = said(&bob, room.id()).await;
    assert!(
        said.iter()
            .all(|event| event.body() != Some("before you came"))
    );
}
