//! The examples of the SDK that are more than a few calls.

#[path = "../../../client-sdk/examples/bridge/relay.rs"]
mod relay;

use sotto_client::{Client, Room, client::RoomOptions};
use sotto_tests::TestServer;

use super::{encrypted_room, is_encrypted, person, wait_for};

/// Somebody and one side of the bridge in an encrypted room.
async fn side(server: &TestServer, name: &str) -> (Client, Room) {
    let (somebody, bridge) = (person(server, name).await, person(server, "bridge").await);
    let room_id = encrypted_room(&somebody, &bridge).await;
    for client in [&somebody, &bridge] {
        client.sync_once(super::NOW).await.unwrap();
    }
    (somebody, bridge.room(&room_id))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_relays_an_encrypted_room_between_two_homeservers() {
    // They do not federate.
    let (one, two) = (TestServer::start().await, TestServer::start().await);
    let (alice, here) = side(&one, "alice").await;
    let (bob, there) = side(&two, "bob").await;
    let (near, far) = (here.id().to_owned(), there.id().to_owned());
    // The bridge is in another room as well, which is nobody's business.
    let other = alice.create_room(RoomOptions::default()).await.unwrap();
    let bridge = here.client().user_id().unwrap().to_owned();
    other.invite(&bridge).await.unwrap();
    here.client().join(other.id().into(), &[]).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = Box::pin(relay::run(here, there, async { drop(stopped.await) }));
    let talk = async {
        other.send_text("elsewhere").await.unwrap();
        alice.room(&near).send_text("hello").await.unwrap();
        let hello = wait_for(&bob, &far, "@alice:one.test: hello").await;
        assert!(is_encrypted(&hello));
        bob.room(&far).send_text("and you").await.unwrap();
        let answer = wait_for(&alice, &near, "@bob:one.test: and you").await;
        assert!(is_encrypted(&answer));
        let history = bob.room(&far).messages(None, 100).await.unwrap();
        let mut bodies = history.events.iter().filter_map(|event| event.body());
        assert!(!bodies.any(|body| body.contains("elsewhere")));
        stop.send(()).unwrap();
    };
    let (result, ()) = tokio::join!(running, talk);
    result.unwrap();
}
