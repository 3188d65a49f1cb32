//! Users whose devices get keys though nothing vouches for them, and who does not profit from that.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, sync::Arc};

use ruma::OwnedUserId;

use super::fake::{Peer, Server, another, room, session_id, signed, users};
use crate::{
    crypto::{
        Bootstrap, DecryptError, InboxItem, LocalTrust, SenderTrust, SharePolicy, Shield,
        TrustRequirement,
    },
    environment::tests::TestEnvironment,
};

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";
const BOT: &str = "@bot:example.org";

/// Alice and Bob, who have identities, and a program that has none.
async fn three() -> (Server, Peer, Peer, Peer) {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let mut alice = signed(&mut server, ALICE, "ALICE", &environment).await;
    let bob = signed(&mut server, BOB, "BOB", &environment).await;
    let bot = another(&mut server, BOT, "BOT", &environment).await;
    // They have met before.
    let members = users(&[&bob, &bot]);
    alice.sync(&mut server).await;
    let met = alice.try_share(&mut server, room(), &members);
    met.await.unwrap();
    (server, alice, bob, bot)
}

/// One more device of somebody, whoever has made it.
async fn added(server: &mut Server, alice: &mut Peer, user: &str, device: &str) -> Peer {
    let environment = alice.environment.clone();
    let peer = another(server, user, device, &environment).await;
    alice.sync(server).await;
    peer
}

/// Whether a device can read what Alice says now. If not, it got not one byte of a key.
async fn gets_key(server: &mut Server, alice: &mut Peer, peer: &mut Peer) -> bool {
    peer.sync(server).await;
    let members = [BOB, BOT].map(|id| OwnedUserId::try_from(id).unwrap());
    let members = BTreeSet::from(members);
    alice.try_share(server, room(), &members).await.unwrap();
    let content = alice.encrypt(room(), "secret").await.unwrap();
    let secret = server.event(alice.user(), &content);
    alice.send_outgoing(server).await;
    let inbox = &server.device(peer.user(), peer.device()).inbox;
    let keys = inbox.iter().map(|(_, event)| event["type"].clone());
    let keys: Vec<_> = keys.filter(|kind| kind != "m.room_key.withheld").collect();
    peer.sync(server).await;
    match peer.read(&secret).await {
        Ok(body) => body == "secret",
        Err(error) => {
            assert!(
                matches!(error, DecryptError::MissingRoomKey { .. }),
                "{error}"
            );
            assert!(keys.is_empty(), "{keys:?}");
            false
        }
    }
}

#[tokio::test]
async fn t_4153_3_a_program_without_identity_gets_keys_by_an_exception_alone() {
    let (mut server, mut alice, bob, mut bot) = three().await;
    let allowed = async |alice: &Peer| alice.machine.unsigned_devices_allowed().await.unwrap();
    assert!(allowed(&alice).await.is_empty(), "off unless asked for");
    let mut own = added(&mut server, &mut alice, BOT, "OWN").await;
    assert!(!gets_key(&mut server, &mut alice, &mut own).await);
    bot.sync(&mut server).await;
    let before = alice.say(&mut server, &[&bob, &bot], "before").await;

    assert!(
        alice
            .machine
            .allow_unsigned_devices(bot.user())
            .await
            .unwrap()
    );
    assert!(gets_key(&mut server, &mut alice, &mut bot).await);
    alice.restart().await;
    assert_eq!(allowed(&alice).await, [bot.user()], "stored");
    let mut late = added(&mut server, &mut alice, BOT, "LATE").await;
    assert!(gets_key(&mut server, &mut alice, &mut late).await);

    // Taken back, it gets no more keys, and not those that it has.
    alice
        .machine
        .forbid_unsigned_devices(bot.user())
        .await
        .unwrap();
    let after = alice.say(&mut server, &[&bob, &bot], "after").await;
    assert_ne!(session_id(&before), session_id(&after));
    bot.sync(&mut server).await;
    assert!(bot.read(&after).await.is_err());
    assert!(!gets_key(&mut server, &mut alice, &mut late).await);
}

#[tokio::test]
async fn t_4153_3_what_an_excepted_program_says_is_shown_and_marked() {
    let (mut server, mut alice, _bob, mut bot) = three().await;
    let hello = bot.say(&mut server, &[&alice], "hello").await;
    alice.sync(&mut server).await;
    let error = alice.read(&hello).await.unwrap_err();
    assert!(
        matches!(error, DecryptError::UntrustedSender { .. }),
        "control"
    );
    let ids = async |alice: &Peer| {
        let inbox = alice.machine.inbox().await.unwrap();
        let keys = inbox.into_iter().filter_map(|(_, item)| match item {
            InboxItem::RoomKey(key) => Some(key.session_id),
            InboxItem::Message(_) => None,
        });
        keys.collect::<Vec<_>>()
    };
    let known = ids(&alice).await.len();
    assert!(
        alice
            .machine
            .allow_unsigned_devices(bot.user())
            .await
            .unwrap()
    );
    assert_eq!(
        ids(&alice).await[known..],
        [session_id(&hello)],
        "looked at again"
    );
    for requirement in [TrustRequirement::SignedOrImported, TrustRequirement::Signed] {
        alice.machine.set_trust_requirement(requirement);
        let event = alice.decrypt_in(room(), &hello).await.unwrap();
        assert_eq!(event.sender.trust, SenderTrust::UnsignedDevice);
        assert_eq!(event.sender.shield(), Some(Shield::UnsignedDevice));
    }
    // Where only verified people count, and in the list of nobody, there are no exceptions.
    alice
        .machine
        .set_trust_requirement(TrustRequirement::Verified);
    assert!(alice.read(&hello).await.is_err());
    alice.be_strict().await;
    assert_eq!(alice.read(&hello).await.unwrap(), "hello", "control");
    let environment = alice.environment.clone();
    let mut spy = another(&mut server, BOB, "SPY", &environment).await;
    let forged = spy.say(&mut server, &[&alice], "send money").await;
    alice.sync(&mut server).await;
    let error = alice.read(&forged).await.unwrap_err();
    assert!(matches!(error, DecryptError::UntrustedSender { .. }));
}

#[tokio::test]
async fn t_4153_3_a_device_that_is_not_in_the_list_of_the_excepted_is_not_heard() {
    let (mut server, mut alice, _bob, mut bot) = three().await;
    assert!(
        alice
            .machine
            .allow_unsigned_devices(bot.user())
            .await
            .unwrap()
    );
    let hello = bot.say(&mut server, &[&alice], "hello").await;
    alice.sync(&mut server).await;
    assert_eq!(alice.read(&hello).await.unwrap(), "hello", "control");
    let environment = alice.environment.clone();
    let mut ghost = another(&mut server, BOT, "GHOST", &environment).await;
    let boo = ghost.say(&mut server, &[&alice], "boo").await;
    // The list is asked for after the message only, and does not have the device any more.
    alice.receive(&mut server).await;
    server.delete_device(ghost.user(), ghost.device());
    alice.sync(&mut server).await;
    let error = alice.read(&boo).await.unwrap_err();
    assert!(
        matches!(error, DecryptError::UntrustedSender { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn t_4153_3_an_exception_for_one_is_none_for_others() {
    let (mut server, mut alice, bob, mut bot) = three().await;
    assert!(
        alice
            .machine
            .allow_unsigned_devices(bot.user())
            .await
            .unwrap()
    );
    // The server adds a device to somebody who has an identity, and to somebody who has none.
    let mut spy = added(&mut server, &mut alice, BOB, "SPY").await;
    let mut dave = added(&mut server, &mut alice, "@dave:example.org", "DAVE").await;
    let all = users(&[&bob, &bot, &dave]);
    alice.try_share(&mut server, room(), &all).await.unwrap();
    for peer in [&mut spy, &mut dave] {
        assert!(!gets_key(&mut server, &mut alice, peer).await);
    }
    assert!(gets_key(&mut server, &mut alice, &mut bot).await, "control");
    // Nor does it help under another policy, or for a device that was blocked.
    alice
        .machine
        .set_share_policy(SharePolicy::VerifiedOnly)
        .await;
    let mut second = added(&mut server, &mut alice, BOT, "SECOND").await;
    assert!(!gets_key(&mut server, &mut alice, &mut second).await);
    alice.be_strict().await;
    let mut third = added(&mut server, &mut alice, BOT, "THIRD").await;
    alice.share(&mut server, room(), &[&bob]).await;
    let (user, device) = third.name();
    let blocked = alice
        .machine
        .set_local_trust(&user, &device, LocalTrust::Blocked);
    assert!(blocked.await.unwrap());
    assert!(!gets_key(&mut server, &mut alice, &mut third).await);
    assert!(
        gets_key(&mut server, &mut alice, &mut second).await,
        "control"
    );
}

#[tokio::test]
async fn t_4153_4_an_exception_ends_with_the_first_identity() {
    let (mut server, mut alice, bob, mut bot) = three().await;
    assert!(
        alice
            .machine
            .allow_unsigned_devices(bot.user())
            .await
            .unwrap()
    );
    let mut first = added(&mut server, &mut alice, BOT, "FIRST").await;
    // This is what is given up.
    assert!(
        gets_key(&mut server, &mut alice, &mut first).await,
        "control"
    );
    let said = first.say(&mut server, &[&alice], "said").await;
    alice.sync(&mut server).await;
    assert_eq!(alice.read(&said).await.unwrap(), "said", "control");

    assert!(bot.bootstrap(&mut server, Bootstrap::IfMissing).await);
    bot.sync(&mut server).await;
    alice.sync(&mut server).await;
    let mut spy = added(&mut server, &mut alice, BOT, "SPY").await;
    assert!(!gets_key(&mut server, &mut alice, &mut spy).await);
    let forged = spy.say(&mut server, &[&alice], "forged").await;
    alice.sync(&mut server).await;
    assert!(alice.read(&forged).await.is_err());
    // The key that the device has that nobody vouched for is used no more.
    let after = alice.say(&mut server, &[&bob, &bot], "after").await;
    first.sync(&mut server).await;
    assert!(first.read(&after).await.is_err());
    assert!(gets_key(&mut server, &mut alice, &mut bot).await, "control");

    // The server takes the identity out of sight: nothing goes out, and if a person finds that all
    // right, still nobody vouches for the device.
    server.identities.retain(|(_, user), _| user != bot.user());
    server.note_change(bot.user());
    alice.sync(&mut server).await;
    let members = users(&[&bob, &bot]);
    assert!(
        alice
            .try_share(&mut server, room(), &members)
            .await
            .is_err()
    );
    alice.machine.accept_identity(bot.user()).await.unwrap();
    assert!(!gets_key(&mut server, &mut alice, &mut spy).await);
    assert!(alice.read(&forged).await.is_err());
}

#[tokio::test]
async fn t_4153_4_no_exception_is_made_for_who_has_an_identity() {
    let (mut server, mut alice, bob, bot) = three().await;
    for user in [bob.user(), alice.user()] {
        assert!(!alice.machine.allow_unsigned_devices(user).await.unwrap());
    }
    let allowed = alice.machine.unsigned_devices_allowed().await.unwrap();
    assert!(allowed.is_empty());
    let mut spy = added(&mut server, &mut alice, BOB, "SPY").await;
    assert!(!gets_key(&mut server, &mut alice, &mut spy).await);
    assert!(
        alice
            .machine
            .allow_unsigned_devices(bot.user())
            .await
            .unwrap(),
        "control"
    );
}
