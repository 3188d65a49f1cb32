//! Secrets that devices of a user give each other, and who else would like to take part.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value, json};

use super::fake::{Peer, Server, another, signed};
use crate::{
    crypto::{RejectedMessage, SharePolicy},
    environment::tests::TestEnvironment,
};

const ALICE: &str = "@alice:example.org";
const BACKUP: &str = "m.megolm_backup.v1";

/// Alice, and a device that the server says is hers.
async fn with_spy() -> (Server, Peer, Peer) {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = signed(&mut server, ALICE, "ALICE", &environment).await;
    let spy = another(&mut server, ALICE, "SPY", &environment).await;
    alice.sync(&mut server).await;
    (server, alice, spy)
}

fn question(id: &str, action: &str) -> Value {
    json!({
        "action": action,
        "name": "m.cross_signing.master",
        "request_id": id,
        "requesting_device_id": "SPY",
    })
}

#[tokio::test]
async fn t_sec_1_an_unverified_device_gets_no_secrets() {
    let (mut server, mut alice, spy) = with_spy().await;
    let kind = "m.secret.request";
    let answers = |server: &mut Server| server.device(spy.user(), spy.device()).inbox.len();
    server.deliver(&alice, alice.user(), kind, &question("1", "request"));
    for _ in 0..2 {
        alice.sync(&mut server).await;
    }
    assert_eq!(answers(&mut server), 0);

    let device = alice.knows(&spy).await;
    alice.machine.sign_own_device(&device).await.unwrap();
    alice.sync(&mut server).await;
    // Nor another user, whatever device they name, nor who does not ask any more.
    let carol = ruma::user_id!("@carol:example.org");
    server.deliver(&alice, carol, kind, &question("2", "request"));
    for action in ["request", "request_cancellation"] {
        server.deliver(&alice, alice.user(), kind, &question("3", action));
    }
    for _ in 0..2 {
        alice.sync(&mut server).await;
    }
    assert_eq!(answers(&mut server), 0);
    server.deliver(&alice, alice.user(), kind, &question("4", "request"));
    for _ in 0..2 {
        alice.sync(&mut server).await;
    }
    assert_eq!(answers(&mut server), 1, "control");
}

/// Sends a secret from a device to another with which it has a session.
async fn give(server: &mut Server, from: &mut Peer, to: &Peer, id: &str) {
    let device = from.knows(to).await;
    let content = json!({ "request_id": id, "secret": "c2VjcmV0" });
    let content = content.as_object().unwrap().clone();
    let sent = from
        .machine
        .send_to_device(&device, "m.secret.send", content);
    assert!(sent.await.unwrap());
    from.send_outgoing(server).await;
}

/// The name of the question for the key of the backup, as the server sees it.
fn asked(server: &mut Server, of: &Peer) -> String {
    let inbox = &server.device(of.user(), of.device()).inbox;
    let question = inbox
        .iter()
        .find(|(_, event)| event["content"]["name"] == BACKUP);
    let id = question.unwrap().1["content"]["request_id"].as_str();
    id.unwrap().to_owned()
}

#[tokio::test]
async fn t_sec_2_only_a_verified_device_gives_what_was_asked_for() {
    let (mut server, mut alice, mut spy) = with_spy().await;
    let environment = alice.environment.clone();
    let mut phone = another(&mut server, ALICE, "PHONE", &environment).await;
    let mut bob = another(&mut server, "@bob:example.org", "BOB", &environment).await;
    let own = alice.machine.secrets().await.unwrap();
    assert_eq!(phone.machine.take_private_keys(&own).await.unwrap(), 3);
    for _ in 0..3 {
        phone.sync(&mut server).await;
        alice.sync(&mut server).await;
        spy.sync(&mut server).await;
    }
    let lax = SharePolicy::AllDevices;
    alice.machine.set_share_policy(lax).await;
    for sender in [&mut alice, &mut spy, &mut bob] {
        sender.say(&mut server, &[&phone], "for a session").await;
    }
    phone.sync(&mut server).await;

    // Nobody has asked.
    give(&mut server, &mut alice, &phone, "1").await;
    let outcome = phone.sync(&mut server).await;
    assert_eq!(outcome.rejected[0].reason, RejectedMessage::Unsolicited);
    // Somebody has, and who has seen the question answers.
    let mut batch = phone.machine.batch();
    phone.machine.request_secrets(&mut batch).await.unwrap();
    batch.commit().await.unwrap();
    phone.send_outgoing(&mut server).await;
    let id = asked(&mut server, &alice);
    for sender in [&mut spy, &mut bob] {
        give(&mut server, sender, &phone, &id).await;
        let outcome = phone.sync(&mut server).await;
        assert_eq!(outcome.rejected[0].reason, RejectedMessage::Unsolicited);
        let known = phone.machine.secrets().await.unwrap();
        assert!(!known.contains_key(BACKUP));
    }
    give(&mut server, &mut alice, &phone, &id).await;
    assert!(phone.sync(&mut server).await.rejected.is_empty());
    let known = phone.machine.secrets().await.unwrap();
    assert_eq!(known[BACKUP].expose(), "c2VjcmV0", "control");
}
