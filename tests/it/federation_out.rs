//! What our server says to others, and what it believes of them.

use std::time::Duration;

use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_tests::{FakeServer, Lie, TestServer, User, room};

/// A server of ours, with a user, and one that is not.
async fn with_fake(version: RoomVersionId) -> (TestServer, TestServer, FakeServer, User) {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, version).await;
    let alice = ours.register("alice").await;
    (ours, other, fake, alice)
}

/// Waits until the other server has got a message with this text.
async fn arrived(fake: &FakeServer, text: &str) -> Value {
    for _ in 0..200 {
        let received = fake.received();
        if let Some(event) = received.iter().find(|e| e["content"]["body"] == text) {
            return event.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{text} did not arrive; {:?}", fake.received());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_another_server_is_joined_and_told_what_happens() {
    for version in [
        RoomVersionId::V6,
        RoomVersionId::V10,
        RoomVersionId::V11,
        RoomVersionId::V12,
    ] {
        let (_ours, _other, fake, alice) = with_fake(version).await;
        let room_id = fake.room_id().as_str();
        alice.join_via(room_id, "b.test").await.ok();
        let name = alice.get(&room(room_id, "state/m.room.name/")).await.ok();
        assert_eq!(name["name"], "Far away");
        let members = alice.get(&room(room_id, "joined_members")).await;
        if members.status.is_success() {
            assert_eq!(members.body["joined"].as_object().unwrap().len(), 2);
        }
        let sync = alice.sync(None, 0).await;
        assert!(sync["rooms"]["join"][room_id].is_object());

        alice.send(room_id, "hello over there").await;
        let event = arrived(&fake, "hello over there").await;
        assert_eq!(event["sender"], alice.user_id.as_str());
        // The join itself was handed in with `send_join` and is not sent again.
        let again = |event: &&Value| event["type"] == "m.room.member";
        assert_eq!(fake.received().iter().filter(again).count(), 0);
        alice.post(&room(room_id, "leave"), &json!({})).await.ok();
        for _ in 0..200 {
            if fake
                .received()
                .iter()
                .any(|e| e["content"]["membership"] == "leave")
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            fake.received()
                .iter()
                .any(|e| e["content"]["membership"] == "leave")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_our_own_join_is_signed() {
    let (_ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    fake.lie(Lie::MakeJoinOfOtherEvent);
    let room_id = fake.room_id().as_str();
    let answer = alice.join_via(room_id, "b.test").await;
    // Whether or not the join worked: what we signed is a join of our user to that room and no more.
    drop(answer);
    for join in fake.joins() {
        assert_eq!(join["type"], "m.room.member");
        assert_eq!(join["state_key"], alice.user_id.as_str());
        assert_eq!(join["sender"], alice.user_id.as_str());
        assert_eq!(join["room_id"], room_id);
        assert_eq!(join["content"]["membership"], "join");
        assert!(join["content"].get("users").is_none());
        assert!(join.get("extra").is_none());
    }
    assert_eq!(fake.joins().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_true_makes_no_room() {
    let (_ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    let room_id = fake.room_id().as_str();
    for lie in [Lie::OtherVersion, Lie::NoCreateEvent, Lie::Banned] {
        fake.lie(lie);
        let answer = alice.join_via(room_id, "b.test").await;
        assert!(!answer.status.is_success(), "{lie:?} {}", answer.body);
        let sync = alice.sync(None, 0).await;
        assert!(sync["rooms"]["join"].get(room_id).is_none(), "{lie:?}");
    }
    // A single event that is not signed by its sender's server is left out.
    fake.lie(Lie::ForgedEvent);
    alice.join_via(room_id, "b.test").await.ok();
    let name = alice.get(&room(room_id, "state/m.room.name/")).await;
    assert_eq!(name.refused(), (404, "M_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_gets_what_it_missed() {
    let (mut ours, _other, fake, alice) = with_fake(RoomVersionId::V12).await;
    let room_id = fake.room_id().as_str();
    alice.join_via(room_id, "b.test").await.ok();
    alice.send(room_id, "before").await;
    arrived(&fake, "before").await;
    fake.lie(Lie::RefuseTransactions);
    alice.send(room_id, "missed").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    alice.send(room_id, "missed too").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        !fake
            .received()
            .iter()
            .any(|e| e["content"]["body"] == "missed")
    );
    // Neither a restart nor the pause makes it forget.
    ours.restart().await;
    fake.lie(Lie::None);
    arrived(&fake, "missed").await;
    arrived(&fake, "missed too").await;
    alice.send(room_id, "after").await;
    arrived(&fake, "after").await;
}

/// One event that a server cannot stomach keeps nothing else from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_transaction_is_taken_apart_until_the_refused_event_is_found() {
    let (ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    let room_id = fake.room_id().as_str();
    alice.join_via(room_id, "b.test").await.ok();
    // The control: whoever takes everything gets it.
    alice.send(room_id, "poison, taken").await;
    arrived(&fake, "poison, taken").await;
    fake.lie(Lie::RefusePoison);
    for text in ["one", "two", "poison", "three", "four"] {
        alice.send(room_id, text).await;
    }
    // Signs of life, lest the pauses take long.
    let visits = async {
        loop {
            let path = "/_matrix/federation/v1/version";
            fake.peer().get(&ours, path).await;
            let path = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.test";
            fake.peer().get(&ours, path).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let others = async {
        for text in ["one", "two", "three", "four"] {
            arrived(&fake, text).await;
        }
        alice.send(room_id, "after").await;
        arrived(&fake, "after").await;
    };
    tokio::select! {
        () = visits => {}
        () = others => {}
    }
    let received = fake.received();
    let of = |text: &str| {
        let said = received.iter();
        said.filter(|e| e["content"]["body"] == text).count()
    };
    assert_eq!(of("poison"), 0);
    let refused = received.iter().filter(|e| e["refused"] == true).count();
    assert!((1..20).contains(&refused), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_nobody_knows_is_not_found() {
    let (ours, _other) = TestServer::pair().await;
    let alice = ours.register("alice").await;
    let answer = alice.join("!nowhere:a.test").await;
    assert_eq!(answer.refused().0, 404, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_a_device_waits_for_its_server() {
    let (mut ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    fake.lie(Lie::RefuseTransactions);
    let path = "/_matrix/client/v3/sendToDevice/m.test/once";
    let message = json!({ "messages": { "@mallory:b.test": { "*": { "body": "knock" } } } });
    alice.put(path, &message).await.ok();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.received().len(), 0);
    ours.restart().await;
    fake.lie(Lie::None);
    for _ in 0..200 {
        if !fake.received().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let received = fake.received();
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(received[0]["edu_type"], "m.direct_to_device");
    let messages = &received[0]["content"]["messages"];
    assert_eq!(messages["@mallory:b.test"]["*"]["body"], "knock");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_learns_of_the_devices_of_who_joins() {
    let (_ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    crate::encryption::upload_device(&alice).await;
    alice.join_via(fake.room_id().as_str(), "b.test").await.ok();
    let updates = || {
        let mut received = fake.received();
        received.retain(|unit| unit["edu_type"] == "m.device_list_update");
        received
    };
    for _ in 0..200 {
        if !updates().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let content = updates()[0]["content"].clone();
    assert_eq!(content["user_id"], alice.user_id.as_str());
    assert_eq!(content["device_id"], alice.device_id.as_str());
    assert_eq!(content["prev_id"], json!([]));
    // A new name is no arrival.
    let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user_id);
    alice.put(&path, &json!({ "displayname": "A." })).await.ok();
    alice.send(fake.room_id().as_str(), "after the name").await;
    arrived(&fake, "after the name").await;
    assert_eq!(updates().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_device_list_is_fetched_until_it_is_right() {
    let (mut ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    alice.join_via(fake.room_id().as_str(), "b.test").await.ok();
    fake.lie(Lie::RefuseDevices);
    let mallory = "@mallory:b.test";
    let content = json!({
        "user_id": mallory, "device_id": "PHONE", "stream_id": 7, "prev_id": [6],
    });
    let update = json!({ "edu_type": "m.device_list_update", "content": content });
    fake.peer().send(&ours, &[], &[update]).await.ok();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // What is to be done is written down.
    ours.restart().await;
    fake.lie(Lie::None);
    let asked = |unit: &Value| unit["asked for devices of"] == mallory;
    for _ in 0..400 {
        if fake.received().iter().any(asked) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // From now on nobody can be asked.
    drop(fake);
    let query = json!({ "device_keys": { mallory: [] } });
    let answer = alice
        .post("/_matrix/client/v3/keys/query", &query)
        .await
        .ok();
    assert!(
        answer["device_keys"][mallory]["PHONE"].is_object(),
        "{answer}"
    );
    assert_eq!(
        answer["failures"]
            .as_object()
            .map_or(0, serde_json::Map::len),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_is_not_said_to_have_no_devices() {
    let (_ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    alice.join_via(fake.room_id().as_str(), "b.test").await.ok();
    let query = json!({ "device_keys": { "@mallory:b.test": [] } });
    let path = "/_matrix/client/v3/keys/query";
    fake.lie(Lie::RefuseDevices);
    let answer = alice.post(path, &query).await.ok();
    assert!(answer["failures"]["b.test"].is_object(), "{answer}");
    assert_eq!(answer["device_keys"], json!({}));
    fake.lie(Lie::None);
    let answer = alice.post(path, &query).await.ok();
    assert_eq!(answer["failures"], json!({}), "control");
    assert!(answer["device_keys"]["@mallory:b.test"]["PHONE"].is_object());
}

/// Whoever asks while a list is being fetched gets what then comes: the other server is asked once.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_list_is_fetched_once_for_all_who_ask() {
    let (_ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    alice.join_via(fake.room_id().as_str(), "b.test").await.ok();
    fake.lie(Lie::DelayDevices);
    let mallory = "@mallory:b.test";
    let query = json!({ "device_keys": { mallory: [] } });
    let path = "/_matrix/client/v3/keys/query";
    let asked = std::iter::repeat_with(|| alice.post(path, &query)).take(5);
    for answer in futures_util::future::join_all(asked).await {
        assert!(answer.ok()["device_keys"][mallory]["PHONE"].is_object());
    }
    let mut received = fake.received();
    received.retain(|unit| unit["asked for devices of"] == mallory);
    assert_eq!(received.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_is_not_sent_what_was_before() {
    let (ours, _other, fake, alice) = with_fake(RoomVersionId::V11).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    for _ in 0..5 {
        alice.send(&room_id, "before").await;
    }
    fake.peer().join(&ours, &room_id, "@mallory:b.test").await;
    alice.send(&room_id, "after").await;
    arrived(&fake, "after").await;
    let received = fake.received();
    let before = |event: &&Value| event["content"]["body"] == "before";
    assert_eq!(received.iter().filter(before).count(), 0, "{received:?}");
}
