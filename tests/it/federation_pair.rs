//! Two servers of ours, and people on both in one room.

use serde_json::{Value, json};
use sotto_tests::{Setup, TestServer, User, room};

/// Waits until a message with this text is in the user's timeline.
async fn hears(user: &User, since: &mut Option<String>, room_id: &str, text: &str) {
    user.sync_until(since, |sync| {
        let events = sync["rooms"]["join"][room_id]["timeline"]["events"].as_array()?;
        events
            .iter()
            .any(|event| event["content"]["body"] == text)
            .then_some(())
    })
    .await;
}

/// Waits until the user is out of the room.
async fn is_out(user: &User, since: &mut Option<String>, room_id: &str) {
    user.sync_until(since, |sync| {
        sync["rooms"]["leave"].get(room_id).map(|_| ())
    })
    .await;
}

async fn place(user: &User) -> Option<String> {
    let sync = user.sync(None, 0).await;
    sync["next_batch"].as_str().map(ToOwned::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn people_on_two_servers_talk() {
    for version in ["1", "2", "3", "4", "5", "6", "10", "11", "12"] {
        let (a, mut b) = TestServer::pair().await;
        let (alice, bob) = (a.register("alice").await, b.register("bob").await);
        let body = json!({ "room_version": version, "preset": "private_chat", "name": "Bridge" });
        let room_id = alice.create_room(&body).await;
        assert_eq!(
            bob.join_via(&room_id, "a.test").await.refused(),
            (403, "M_FORBIDDEN")
        );
        alice.invite(&room_id, &bob.user_id).await.ok();
        let mut bobs = None;
        bob.sync_until(&mut bobs, |sync| {
            sync["rooms"]["invite"].get(&room_id).map(|_| ())
        })
        .await;
        bob.join_via(&room_id, "a.test").await.ok();
        let (mut alices, mut bobs) = (place(&alice).await, place(&bob).await);
        alice.send(&room_id, "from a").await;
        hears(&bob, &mut bobs, &room_id, "from a").await;
        bob.send(&room_id, "from b").await;
        hears(&alice, &mut alices, &room_id, "from b").await;
        b.restart().await;
        alice.send(&room_id, "after the restart").await;
        hears(&bob, &mut bobs, &room_id, "after the restart").await;
        let topic = room(&room_id, "state/m.room.topic/");
        alice.put(&topic, &json!({ "topic": "Rivers" })).await.ok();
        bob.sync_until(&mut bobs, |sync| {
            let events = sync["rooms"]["join"][&room_id]["timeline"]["events"].as_array()?;
            events
                .iter()
                .any(|e| e["content"]["topic"] == "Rivers")
                .then_some(())
        })
        .await;
        let kick = json!({ "user_id": bob.user_id });
        alice.post(&room(&room_id, "kick"), &kick).await.ok();
        is_out(&bob, &mut bobs, &room_id).await;
        alice.invite(&room_id, &bob.user_id).await.ok();
        bob.sync_until(&mut bobs, |sync| {
            sync["rooms"]["invite"].get(&room_id).map(|_| ())
        })
        .await;
        bob.post(&room(&room_id, "leave"), &json!({})).await.ok();
        is_out(&bob, &mut bobs, &room_id).await;
        alice
            .sync_until(&mut alices, |sync| {
                let events = sync["rooms"]["join"][&room_id]["timeline"]["events"].as_array()?;
                let left = |event: &Value| {
                    event["sender"] == bob.user_id.as_str()
                        && event["content"]["membership"] == "leave"
                };
                events.iter().any(left).then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_server_learns_who_joined_and_who_left() {
    let servers = Setup::default().federation(3).await;
    let [a, b, c] = servers.as_slice() else {
        panic!("three servers")
    };
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = c.register("carol").await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join_via(&room_id, "a.test").await.ok();
    let mut bobs = place(&bob).await;
    carol.join_via(&room_id, "a.test").await.ok();
    let mut carols = place(&carol).await;
    let says = |sync: &Value, membership: &str| {
        let room = sync["rooms"]["join"].get(&room_id)?;
        let events = room["timeline"]["events"].as_array()?;
        let found = events.iter().any(|event| {
            event["state_key"] == carol.user_id && event["content"]["membership"] == membership
        });
        found.then_some(())
    };
    bob.sync_until(&mut bobs, |sync| says(sync, "join")).await;
    bob.send(&room_id, "hello Carol").await;
    hears(&carol, &mut carols, &room_id, "hello Carol").await;
    carol.send(&room_id, "hello Bob").await;
    hears(&bob, &mut bobs, &room_id, "hello Bob").await;
    carol.post(&room(&room_id, "leave"), &json!({})).await.ok();
    bob.sync_until(&mut bobs, |sync| says(sync, "leave")).await;
}
