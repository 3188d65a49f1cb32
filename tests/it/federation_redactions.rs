//! Redactions of other servers: in whichever order they come, and of whatever.

use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{Draft, FakeServer, Made, Peer, Seat, TestServer, User, escape, room};

const MALLORY: &str = "@mallory:b.test";

/// A server of ours with a room of alice, into which a fake server came.
async fn begin() -> (TestServer, FakeServer, User, Seat) {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    let seat = enter(&ours, &fake, &alice).await;
    (ours, fake, alice, seat)
}

async fn enter(ours: &TestServer, fake: &FakeServer, alice: &User) -> Seat {
    let body = json!({ "preset": "public_chat", "room_version": "11" });
    let room_id = alice.create_room(&body).await;
    fake.peer().join(ours, &room_id, MALLORY).await
}

fn redaction(peer: &Peer, seat: &mut Seat, of: &Made) -> Made {
    let draft = Draft {
        sender: MALLORY,
        kind: "m.room.redaction",
        state_key: None,
        content: json!({ "redacts": of.id }),
    };
    peer.make(seat, &draft)
}

/// The ids of what somebody reads in a room.
async fn history(user: &User, seat: &Seat) -> Vec<String> {
    let path = room(seat.room_id.as_str(), "messages?dir=b&limit=100");
    let page = user.get(&path).await.ok();
    let events = page["chunk"].as_array().into_iter().flatten();
    let ids = events.filter_map(|event| event["event_id"].as_str());
    ids.map(ToOwned::to_owned).collect()
}

async fn event(user: &User, seat: &Seat, made: &Made) -> Value {
    let path = format!("event/{}", escape(made.id.as_str()));
    user.get(&room(seat.room_id.as_str(), &path)).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_with_its_redaction_is_never_shown() {
    let (ours, fake, alice, mut seat) = begin().await;
    let peer = fake.peer();
    let message = peer.make(&mut seat, &Draft::text(MALLORY, "regretted"));
    let redaction = redaction(peer, &mut seat, &message);
    peer.send(&ours, &[&message, &redaction], &[]).await.ok();
    let seen = event(&alice, &seat, &message).await;
    assert_eq!(seen["content"], json!({}));
    assert_eq!(seen["unsigned"]["redacted_by"], redaction.id.as_str());
    let path = room(seat.room_id.as_str(), "messages?dir=b&limit=100");
    let page = alice.get(&path).await.ok();
    assert!(!page.to_string().contains("regretted"), "{page}");
    let sync = alice.sync(None, 0).await;
    assert!(!sync.to_string().contains("regretted"), "{sync}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hear_of_a_redaction_when_it_takes_effect() {
    let (ours, fake, alice, mut seat) = begin().await;
    let peer = fake.peer();
    let message = peer.make(&mut seat, &Draft::text(MALLORY, "later"));
    let early = redaction(peer, &mut seat, &message);
    let mut elsewhere = enter(&ours, &fake, &alice).await;
    let foreign = redaction(peer, &mut elsewhere, &message);
    assert_eq!(peer.deliver(&ours, &foreign).await, None);
    assert!(
        !history(&alice, &elsewhere)
            .await
            .contains(&foreign.id.to_string())
    );
    // What it is about comes with it; and one of another room changes nothing.
    peer.send(&ours, &[&message, &early], &[]).await.ok();
    assert!(history(&alice, &seat).await.contains(&early.id.to_string()));
    assert!(
        !history(&alice, &elsewhere)
            .await
            .contains(&foreign.id.to_string())
    );
    let seen = event(&alice, &seat, &message).await;
    assert_eq!(seen["unsigned"]["redacted_by"], early.id.as_str());
    // Nobody redacts what others said who has no power to.
    let spoken = alice.send(seat.room_id.as_str(), "mine").await;
    let spoken = Made {
        id: spoken.try_into().unwrap(),
        json: Value::Null,
    };
    let idle = redaction(peer, &mut seat, &spoken);
    assert_eq!(peer.deliver(&ours, &idle).await, None);
    assert!(!history(&alice, &seat).await.contains(&idle.id.to_string()));
    assert_eq!(
        event(&alice, &seat, &spoken).await["content"]["body"],
        "mine"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redactions_of_redactions_are_told_one_deep() {
    let (ours, fake, alice, mut seat) = begin().await;
    let peer = fake.peer();
    let mut chain = vec![peer.make(&mut seat, &Draft::text(MALLORY, "first"))];
    for _ in 0..40 {
        let last = chain.last().unwrap().clone();
        chain.push(redaction(peer, &mut seat, &last));
    }
    for made in &chain {
        assert_eq!(peer.deliver(&ours, made).await, None);
    }
    let because = &event(&alice, &seat, &chain[0]).await["unsigned"]["redacted_because"];
    assert_eq!(because["event_id"], chain[1].id.as_str());
    assert_eq!(because["unsigned"]["redacted_because"], Value::Null);
}
