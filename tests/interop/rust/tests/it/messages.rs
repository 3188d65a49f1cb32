//! Messages between devices of whose users' identities neither side has seen a person.

use serde_json::json;
use sotto_interop::{Ours, Server, Theirs};

use crate::{ALICE, BOB};

/// Ours is Alice, theirs is Bob, and both have identities.
pub(crate) async fn two() -> (Server, Ours, Theirs) {
    let mut server = Server::default();
    let mut ours = Ours::with_identity(&mut server, ALICE, "OURS").await;
    let mut theirs = Theirs::with_identity(&mut server, BOB, "THEIRS").await;
    // Each hears of the other.
    theirs.share(&mut server, &[ALICE, BOB]).await;
    ours.share(&mut server, &[ALICE, BOB]).await;
    for _ in 0..2 {
        ours.sync(&mut server).await;
        theirs.sync(&mut server).await;
    }
    (server, ours, theirs)
}

#[tokio::test]
async fn each_reads_what_the_other_writes() {
    let (mut server, mut ours, mut theirs) = two().await;
    let both = [ALICE, BOB];
    for turn in 0..5 {
        let text = format!("ours {turn}");
        let event = ours.say(&mut server, &both, &text).await;
        theirs.sync(&mut server).await;
        assert_eq!(theirs.read(&event).await, Some(text));
        let text = format!("theirs {turn}");
        let event = theirs.say(&mut server, &both, &text).await;
        ours.sync(&mut server).await;
        assert_eq!(ours.read(&event).await, Some(text));
    }
    // New sessions travel over the Olm sessions that exist, in both directions.
    for _ in 0..3 {
        let room = sotto_interop::ROOM;
        let discarded = ours.machine.discard_room_key(room.try_into().unwrap());
        discarded.await.unwrap();
        let event = ours.say(&mut server, &both, "again").await;
        theirs.sync(&mut server).await;
        assert_eq!(theirs.read(&event).await.as_deref(), Some("again"));
        let discarded = theirs.machine.discard_room_key(room.try_into().unwrap());
        discarded.await.unwrap();
        let event = theirs.say(&mut server, &both, "too").await;
        ours.sync(&mut server).await;
        assert_eq!(ours.read(&event).await.as_deref(), Some("too"));
    }
}

#[tokio::test]
async fn neither_gives_keys_to_a_device_that_its_user_does_not_vouch_for() {
    let (mut server, mut ours, mut theirs) = two().await;
    let mut our_spy = Ours::new(&mut server, BOB, "SPY").await;
    let mut their_spy = Theirs::new(&mut server, ALICE, "SPY").await;
    ours.sync(&mut server).await;
    theirs.sync(&mut server).await;
    let both = [ALICE, BOB];
    let event = ours.say(&mut server, &both, "ours").await;
    let other = theirs.say(&mut server, &both, "theirs").await;
    for _ in 0..2 {
        our_spy.sync(&mut server).await;
        their_spy.sync(&mut server).await;
        theirs.sync(&mut server).await;
        ours.sync(&mut server).await;
    }
    assert_eq!(
        theirs.read(&event).await.as_deref(),
        Some("ours"),
        "control"
    );
    assert_eq!(
        ours.read(&other).await.as_deref(),
        Some("theirs"),
        "control"
    );
    for event in [&event, &other] {
        assert_eq!(our_spy.read(event).await, None);
        assert_eq!(their_spy.read(event).await, None);
    }
}

#[tokio::test]
async fn a_session_that_broke_heals() {
    let (mut server, mut ours, mut theirs) = two().await;
    // What Alice gets is garbage, as after a restored backup of her store.
    let garbage = json!({ ALICE: { "OURS": {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "sender_key": theirs.machine.identity_keys().curve25519.to_base64(),
        "ciphertext": {
            ours.machine.curve25519_key().to_base64(): { "type": 1, "body": "AwogAAAA" },
        },
    } } });
    server.send(BOB, "m.room.encrypted", &garbage);
    assert_eq!(ours.sync_with_refusals(&mut server).await, 1);
    theirs.sync(&mut server).await;
    let event = theirs.say(&mut server, &[ALICE, BOB], "still here").await;
    ours.sync(&mut server).await;
    assert_eq!(ours.read(&event).await.as_deref(), Some("still here"));
}
