//! Syncs that do not come to their end.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use sotto_tests::TestServer;
use tempfile::TempDir;

use super::{NOW, client_in, encrypted_room, events, person};

const MESSAGES: usize = 40;
/// So many are not heard yet at most: a sync leaves out the older ones of many.
const AHEAD: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_nobody_waits_for_loses_and_repeats_nothing() {
    let server = TestServer::start().await;
    let directory = TempDir::new().unwrap();
    let alice = person(&server, "alice").await;
    let bob = client_in(&server, &directory.path().join("bob")).await;
    let password = "the password of bob";
    bob.register("bob", password, None).await.unwrap();
    bob.sync_once(NOW).await.unwrap();
    let room_id = encrypted_room(&alice, &bob).await;
    for client in [&alice, &bob] {
        client.sync_once(NOW).await.unwrap();
    }
    let count = AtomicUsize::new(0);
    let talk = async {
        let room = alice.room(&room_id);
        for number in 0..MESSAGES {
            while number >= count.load(Ordering::Relaxed) + AHEAD {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            room.send_text(number.to_string()).await.unwrap();
        }
    };
    let deadline = tokio::time::Instant::now() + Duration::from_mins(2);
    let listen = async {
        let (mut heard, mut dropped) = (Vec::new(), 0);
        for turn in 0.. {
            // In between it is let alone at any moment; but not for ever, however slow the machine is.
            let patience = match turn % 8 {
                7 => Duration::from_mins(1),
                _ => Duration::from_millis(turn % 80),
            };
            let sync = bob.sync_once(Duration::from_millis(20));
            match tokio::time::timeout(patience, sync).await {
                Ok(update) => {
                    let update = update.unwrap();
                    let texts = events(&update, &room_id).iter();
                    let texts = texts.filter_map(|event| event.body());
                    heard.extend(texts.map(ToOwned::to_owned));
                    count.store(heard.len(), Ordering::Relaxed);
                }
                Err(_) => dropped += 1,
            }
            if heard.len() >= MESSAGES || tokio::time::Instant::now() > deadline {
                break;
            }
        }
        (heard, dropped)
    };
    let (mut heard, dropped) = Box::pin(async {
        let (mut talk, mut listen) = (pin!(talk), pin!(listen));
        tokio::select! {
            heard = &mut listen => heard,
            () = &mut talk => listen.await,
        }
    })
    .await;
    let rest = bob.sync_once(NOW).await.unwrap();
    let texts = events(&rest, &room_id)
        .iter()
        .filter_map(|event| event.body());
    heard.extend(texts.map(ToOwned::to_owned));
    let said: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
    assert_eq!(heard, said);
    assert!(dropped > 5, "{dropped}");
}
