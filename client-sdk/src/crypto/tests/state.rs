//! Encrypted state, and a server that moves it about.

#![expect(clippy::unwrap_used, reason = "tests")]

use ruma::{events::AnySyncTimelineEvent, serde::Raw};
use serde_json::{Map, Value, json};

use super::fake::{Peer, alice_and_bob, raw, room};
use crate::{
    crypto::{ENCRYPT_STATE, RoomChange},
    store::Changes,
    timeline::{Protection, TimelineEvent, UndecryptableReason},
};

async fn look(peer: &Peer, event: &Value) -> TimelineEvent {
    let event: Raw<AnySyncTimelineEvent> = raw(event);
    let mut events = TimelineEvent::read(&peer.machine, room(), [&event]).await;
    events.as_mut().unwrap().remove(0)
}

async fn is_refused(peer: &Peer, event: &Value) -> bool {
    let reason = UndecryptableReason::MismatchedState;
    match look(peer, event).await.protection {
        Protection::Undecryptable(refused) => refused == reason,
        _ => false,
    }
}

#[tokio::test]
async fn t_st_1_encrypted_state_stays_in_its_place() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let name = Map::from_iter([("name".to_owned(), json!("the plan"))]);
    let encrypted = alice
        .machine
        .encrypt_state_event(room(), "m.room.name", "", name);
    let (state_key, content) = encrypted.await.unwrap();
    assert_eq!(state_key, "m.room.name:");
    let mut event = server.event(alice.user(), &content);
    event["state_key"] = json!(state_key);
    let message = alice.say(&mut server, &[&bob], "hello").await;
    bob.sync(&mut server).await;

    // The server serves it in the place of other state, as a message, and a message as state.
    let mut topic = event.clone();
    topic["state_key"] = json!("m.room.topic:");
    let mut other = event.clone();
    other["state_key"] = json!("m.room.name:@bob:example.org");
    let mut bare = event.clone();
    bare.as_object_mut().unwrap().remove("state_key");
    let mut state = message.clone();
    state["state_key"] = json!("m.room.message:");
    for moved in [&topic, &other, &bare, &state] {
        assert!(is_refused(&bob, moved).await, "{moved}");
    }

    // Control: in their places both are read, also after the attempts.
    let read = look(&bob, &event).await;
    assert!(matches!(read.protection, Protection::Encrypted(_)));
    assert_eq!(
        (read.kind.as_str(), read.state_key.as_deref()),
        ("m.room.name", Some(""))
    );
    assert_eq!(read.content["name"], "the plan");
    assert_eq!(look(&bob, &message).await.body(), Some("hello"));
}

#[tokio::test]
async fn t_st_2_state_that_was_encrypted_is_never_sent_openly_again() {
    let (_, alice, _) = alice_and_bob().await;
    let encryption = |state: bool| {
        let content = json!({ "algorithm": "m.megolm.v1.aes-sha2", ENCRYPT_STATE: state });
        RoomChange::Encryption(room().to_owned(), content.as_object().unwrap().clone())
    };
    assert!(
        !alice.machine.encrypts_state(room()).await.unwrap(),
        "control"
    );
    for state in [true, false] {
        let changes = [encryption(state)];
        let taken = alice
            .machine
            .receive_room_changes(&changes, Changes::default());
        taken.await.unwrap();
        assert!(alice.machine.encrypts_state(room()).await.unwrap());
    }
}
