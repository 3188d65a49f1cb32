//! Three devices, anything in any order.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use serde_json::Value;

use super::fake::{Peer, Server, another, users};
use crate::{
    crypto::{DecryptError, RoomChange, tests::fake::room},
    environment::tests::TestEnvironment,
};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A device says something to the others.
    Say(usize),
    /// A device gets the key ready and then dies.
    ShareAndDie(usize),
    /// A device takes a sync.
    Receive(usize),
    /// A device sends what it has to send.
    Send(usize),
    /// A device is started again.
    Restart(usize),
    /// Somebody left the room, as a device sees it.
    Depart(usize),
    /// Time passes.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize).prop_map(Step::Say),
        1 => (0..3_usize).prop_map(Step::ShareAndDie),
        4 => (0..3_usize).prop_map(Step::Receive),
        2 => (0..3_usize).prop_map(Step::Send),
        2 => (0..3_usize).prop_map(Step::Restart),
        1 => (0..3_usize).prop_map(Step::Depart),
        1 => (1..48_u64).prop_map(Step::Wait),
    ]
}

struct World {
    server: Server,
    peers: Vec<Peer>,
    said: BTreeMap<String, Value>,
}

impl World {
    async fn new() -> Self {
        let environment = Arc::new(TestEnvironment::default());
        let mut server = Server::default();
        let mut peers = Vec::new();
        for name in ["alice", "bob", "carol"] {
            let user = format!("@{name}:example.org");
            peers.push(another(&mut server, &user, name, &environment).await);
        }
        Self {
            server,
            peers,
            said: BTreeMap::new(),
        }
    }

    async fn take(&mut self, step: Step) {
        let members = users(&self.peers.iter().collect::<Vec<_>>());
        let Self {
            server,
            peers,
            said,
        } = self;
        match step {
            Step::Say(who) => {
                let peer = &mut peers[who];
                peer.try_share(server, room(), &members).await.unwrap();
                let body = format!("message {}", said.len());
                let content = peer.encrypt(room(), &body).await.unwrap();
                said.insert(body, server.event(peer.user(), &content));
            }
            Step::ShareAndDie(who) => {
                let peer = &mut peers[who];
                let pending = peer.machine.share_room_key(room(), &members).await.unwrap();
                drop(pending);
                peer.restart().await;
            }
            Step::Receive(who) => {
                let outcome = peers[who].receive(server).await;
                assert!(outcome.rejected.is_empty(), "{outcome:?}");
            }
            Step::Send(who) => peers[who].send_outgoing(server).await,
            Step::Restart(who) => peers[who].restart().await,
            Step::Depart(who) => peers[who].room_change(RoomChange::Departed(room().to_owned())),
            Step::Wait(hours) => {
                peers[0].environment.advance(Duration::from_hours(hours));
            }
        }
    }

    async fn all_is_read(&mut self) {
        for peer in &mut self.peers {
            peer.sync(&mut self.server).await;
        }
        for (body, event) in &self.said {
            for peer in &self.peers {
                let read: Result<String, DecryptError> = peer.read(event).await;
                assert_eq!(read.unwrap(), *body);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn everybody_reads_everything(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.take(step).await;
            }
            world.all_is_read().await;
        });
    }
}
