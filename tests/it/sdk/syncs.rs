//! Syncs that do not come to their end.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ruma::RoomId;
use sotto_client::{Client, Room, sync::SyncUpdate, timeline::TimelineEvent};
use sotto_tests::TestServer;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{NOW, client_in, encrypted_room, events, person};

const MESSAGES: usize = 40;
/// So many are not heard yet at most: a sync leaves out the older ones of many.
const AHEAD: usize = 5;

/// Alice says so many things, but never many more than were heard.
async fn talk(room: &Room, heard: &AtomicUsize) {
    for number in 0..MESSAGES {
        while number >= heard.load(Ordering::Relaxed) + AHEAD {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        room.send_text(number.to_string()).await.unwrap();
    }
}

fn texts(update: &SyncUpdate, room_id: &RoomId) -> Vec<String> {
    let texts = events(update, room_id)
        .iter()
        .filter_map(TimelineEvent::body);
    texts.map(ToOwned::to_owned).collect()
}

/// What comes in syncs that are mostly let alone at any moment, and how many were.
async fn listen(client: &Client, room_id: &RoomId, count: &AtomicUsize) -> (Vec<String>, usize) {
    let deadline = Instant::now() + Duration::from_mins(2);
    let (mut heard, mut dropped, mut turn) = (Vec::new(), 0, 0);
    while heard.len() < MESSAGES && Instant::now() < deadline {
        // Not for ever, however slow the machine is.
        let patience = match turn % 8 {
            7 => Duration::from_mins(1),
            _ => Duration::from_millis(turn % 80),
        };
        let sync = client.sync_once(Duration::from_millis(20));
        match tokio::time::timeout(patience, sync).await {
            Ok(update) => heard.extend(texts(&update.unwrap(), room_id)),
            Err(_) => dropped += 1,
        }
        count.store(heard.len(), Ordering::Relaxed);
        turn += 1;
    }
    (heard, dropped)
}

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
    let (count, room) = (AtomicUsize::new(0), alice.room(&room_id));
    let (mut heard, dropped) = Box::pin(async {
        let mut listen = pin!(listen(&bob, &room_id, &count));
        tokio::select! {
            heard = &mut listen => heard,
            () = talk(&room, &count) => listen.await,
        }
    })
    .await;
    let rest = bob.sync_once(NOW).await.unwrap();
    heard.extend(texts(&rest, &room_id));
    let said: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
    assert_eq!(heard, said);
    assert!(dropped > 5, "{dropped}");
}
