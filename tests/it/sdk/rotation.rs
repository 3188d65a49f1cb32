//! How long a key is used, between real clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ruma::RoomId;
use sotto_client::{
    Client, Room,
    client::RoomOptions,
    crypto::Machine,
    environment::{Environment, RandomnessError, SystemEnvironment},
};
use sotto_tests::TestServer;

use super::{NOW, person, wait_for};

/// The clock of somebody who looks at it later.
#[derive(Default)]
struct Later(AtomicU64);

impl Environment for Later {
    fn now(&self) -> Duration {
        SystemEnvironment.now() + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomnessError> {
        SystemEnvironment.fill(bytes)
    }
}

/// A room of Alice with Bob, who has come.
async fn room_with(alice: &Client, bob: &Client, direct: bool) -> Room {
    let options = RoomOptions {
        direct,
        invite: vec![bob.user_id().unwrap().to_owned()],
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    bob.join(room.id().into(), &[]).await.unwrap();
    alice.sync_once(NOW).await.unwrap();
    room
}

/// Says something; the session that carried it.
async fn session(alice: &Client, bob: &Client, room_id: &RoomId, body: &str) -> String {
    alice.room(room_id).send_text(body).await.unwrap();
    let event = wait_for(bob, room_id, body).await;
    Machine::session_id_of(&event.raw).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_rot_9_two_people_get_a_new_key_each_day() {
    let server = TestServer::start().await;
    let clock = Arc::new(Later::default());
    let builder = Client::builder().homeserver(server.url());
    let alice = builder.environment(clock.clone()).build().await.unwrap();
    alice.register("alice", "a long one", None).await.unwrap();
    alice.sync_once(NOW).await.unwrap();
    let bob = person(&server, "bob").await;
    let pair = room_with(&alice, &bob, true).await;
    let group = room_with(&alice, &bob, false).await;
    let mut before = Vec::new();
    for room in [&pair, &group] {
        before.push(session(&alice, &bob, room.id(), "before").await);
    }
    clock.0.fetch_add(24 * 60 * 60, Ordering::SeqCst);
    assert_ne!(before[0], session(&alice, &bob, pair.id(), "after").await);
    assert_eq!(
        before[1],
        session(&alice, &bob, group.id(), "after").await,
        "control"
    );
}
