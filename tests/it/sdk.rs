//! Our own clients on our own server.

mod bots;
mod examples;
mod files;
mod history;
mod keys;
mod relations;
mod rotation;
mod sharers;
mod soak;
mod syncs;
mod trust;

use std::{path::Path, time::Duration};

use ruma::{OwnedRoomId, RoomId};
use serde_json::{Map, Value, json};
use sotto_client::{
    Client, Room,
    client::RoomOptions,
    crypto::{Request, Share},
    login::{LoginError, RegisterError},
    sync::{Membership, SyncError, SyncUpdate},
    timeline::{Protection, TimelineEvent, UndecryptableReason},
};
use sotto_tests::{TestServer, User};
use tempfile::TempDir;

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_secs(2);

async fn client_in(server: &TestServer, path: &Path) -> Client {
    let builder = Client::builder().homeserver(server.url()).store(path);
    builder.build().await.unwrap()
}

/// Somebody new, who has synced once.
async fn person(server: &TestServer, name: &str) -> Client {
    let client = Client::builder()
        .homeserver(server.url())
        .build()
        .await
        .unwrap();
    let password = format!("the password of {name}");
    client.register(name, &password, None).await.unwrap();
    client.sync_once(NOW).await.unwrap();
    client
}

/// Another device of somebody, which has synced once.
async fn log_in(server: &TestServer, name: &str) -> Client {
    let builder = Client::builder().homeserver(server.url());
    let client = builder.build().await.unwrap();
    let password = format!("the password of {name}");
    client.login_password(name, &password).await.unwrap();
    client.sync_once(NOW).await.unwrap();
    client
}

/// Alice and Bob in an encrypted room, of which both know from a sync.
async fn alice_and_bob(server: &TestServer) -> (Client, Client, OwnedRoomId) {
    let (alice, bob) = (person(server, "alice").await, person(server, "bob").await);
    let room_id = encrypted_room(&alice, &bob).await;
    for client in [&alice, &bob] {
        client.sync_once(NOW).await.unwrap();
    }
    (alice, bob, room_id)
}

async fn encrypted_room(alice: &Client, bob: &Client) -> OwnedRoomId {
    let mut options = RoomOptions::default();
    options.invite.push(bob.user_id().unwrap().to_owned());
    let room_id = alice.create_room(options).await.unwrap().id().to_owned();
    bob.join((&*room_id).into(), &[]).await.unwrap();
    room_id
}

fn events<'a>(update: &'a SyncUpdate, room_id: &RoomId) -> &'a [TimelineEvent] {
    let room = update.rooms.iter().find(|room| room.room_id == room_id);
    room.map(|room| room.timeline.as_slice())
        .unwrap_or_default()
}

fn is_encrypted(event: &TimelineEvent) -> bool {
    matches!(event.protection, Protection::Encrypted(_))
}

/// Syncs until a message is there.
async fn wait_for(client: &Client, room_id: &RoomId, body: &str) -> TimelineEvent {
    for _ in 0..10 {
        let update = client.sync_once(SOON).await.unwrap();
        let late = update.decrypted_late.iter().map(|(_, event)| event);
        let mut all = events(&update, room_id).iter().chain(late);
        if let Some(event) = all.find(|event| event.body() == Some(body)) {
            return event.clone();
        }
    }
    panic!("{body:?} did not come")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_talk_in_secret() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    alice.room(&room_id).send_text("hello").await.unwrap();
    let hello = wait_for(&bob, &room_id, "hello").await;
    assert!(is_encrypted(&hello));
    assert_eq!(Some(&*hello.sender), alice.user_id());
    assert_eq!(
        hello.raw.get_field::<String>("type").unwrap().unwrap(),
        "m.room.encrypted"
    );
    let answer = bob
        .room(&room_id)
        .reply_text(&hello, "and you")
        .await
        .unwrap();
    let read = wait_for(&alice, &room_id, "and you").await;
    assert_eq!(read.event_id, answer);
    assert_eq!(
        read.content["m.relates_to"]["m.in_reply_to"]["event_id"],
        json!(hello.event_id)
    );
    let history = alice.room(&room_id).messages(None, 100).await.unwrap();
    assert!(
        history
            .events
            .iter()
            .all(|event| event.kind != "m.room.encrypted")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_carry_what_they_cannot_read() {
    let (one, two) = TestServer::pair().await;
    let (alice, bob) = (person(&one, "alice").await, person(&two, "bob").await);
    let mut options = RoomOptions::default();
    options.invite.push(bob.user_id().unwrap().to_owned());
    let room_id = alice.create_room(options).await.unwrap().id().to_owned();
    for _ in 0..10 {
        if !bob.sync_once(SOON).await.unwrap().invites.is_empty() {
            break;
        }
    }
    bob.join((&*room_id).into(), &[one.name()]).await.unwrap();
    for _ in 0..10 {
        alice.sync_once(Duration::from_millis(500)).await.unwrap();
        let members = alice.room(&room_id).members().await.unwrap();
        if members
            .iter()
            .filter(|member| member.membership == "join")
            .count()
            == 2
        {
            break;
        }
    }
    alice.room(&room_id).send_text("over there").await.unwrap();
    assert!(is_encrypted(&wait_for(&bob, &room_id, "over there").await));
    bob.room(&room_id).send_text("and back").await.unwrap();
    assert!(is_encrypted(&wait_for(&alice, &room_id, "and back").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_out_in_the_clear_before_the_first_sync_of_a_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (person(&server, "alice").await, person(&server, "bob").await);
    let room_id = encrypted_room(&alice, &bob).await;
    // Neither has synced since.
    for client in [&alice, &bob] {
        assert!(client.room(&room_id).is_encrypted().await.unwrap());
        client.room(&room_id).send_text("early").await.unwrap();
    }
    let update = alice.sync_once(NOW).await.unwrap();
    let early: Vec<_> = events(&update, &room_id)
        .iter()
        .filter(|event| event.body() == Some("early"))
        .collect();
    assert_eq!(early.len(), 2);
    assert!(early.iter().all(|event| is_encrypted(event)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_not_encrypted_is_used_as_it_is() {
    let server = TestServer::start().await;
    let alice = person(&server, "alice").await;
    let options = RoomOptions {
        encrypted: false,
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    room.send_text("in the clear").await.unwrap();
    let event = wait_for(&alice, room.id(), "in the clear").await;
    assert!(matches!(event.protection, Protection::Clear));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_on_where_it_was() {
    let server = TestServer::start().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("alice");
    let alice = client_in(&server, &path).await;
    alice
        .register("alice", "the password of alice", None)
        .await
        .unwrap();
    let bob = person(&server, "bob").await;
    alice.sync_once(NOW).await.unwrap();
    let room_id = encrypted_room(&alice, &bob).await;
    bob.room(&room_id).send_text("one").await.unwrap();
    wait_for(&alice, &room_id, "one").await;
    let device = alice.device_id().unwrap().to_owned();
    drop(alice);

    let alice = client_in(&server, &path).await;
    assert!(alice.restore().await.unwrap());
    assert_eq!(alice.device_id(), Some(&*device));
    bob.room(&room_id).send_text("two").await.unwrap();
    assert!(is_encrypted(&wait_for(&alice, &room_id, "two").await));
    alice.room(&room_id).send_text("three").await.unwrap();
    assert!(is_encrypted(&wait_for(&bob, &room_id, "three").await));
    let error = alice
        .login_password("alice", "the password of alice")
        .await
        .unwrap_err();
    assert!(matches!(error, LoginError::AlreadyLoggedIn));
}

#[tokio::test(flavor = "multi_thread")]
async fn news_that_were_not_consumed_come_again() {
    let server = TestServer::start().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("alice");
    let alice = client_in(&server, &path).await;
    alice
        .register("alice", "the password of alice", None)
        .await
        .unwrap();
    let bob = person(&server, "bob").await;
    let room_id = encrypted_room(&alice, &bob).await;
    alice.sync_once(NOW).await.unwrap();
    bob.room(&room_id).send_text("important").await.unwrap();
    let bodies = |update: &SyncUpdate| -> Vec<String> {
        let bodies = events(update, &room_id)
            .iter()
            .filter_map(TimelineEvent::body);
        bodies.map(ToOwned::to_owned).collect()
    };
    assert_eq!(bodies(&alice.sync_once(SOON).await.unwrap()), ["important"]);
    drop(alice);
    // It died before it asked for the next news.
    let alice = client_in(&server, &path).await;
    alice.restore().await.unwrap();
    assert_eq!(bodies(&alice.sync_once(NOW).await.unwrap()), ["important"]);
    assert!(bodies(&alice.sync_once(NOW).await.unwrap()).is_empty());
}

/// Sends an event whose key is kept back; returns the request that would deliver the key.
async fn send_without_key(sender: &Client, room: &Room, helper: &User) -> (String, Value) {
    let machine = sender.machine().unwrap();
    let members = room.members().await.unwrap();
    let members = members.into_iter().map(|member| member.user_id).collect();
    let mut kept_back = None;
    while let Share::Pending(requests) = machine.share_room_key(room.id(), &members).await.unwrap()
    {
        for request in requests {
            let Request::ToDevice(to_device) = request.request else {
                panic!("not yet known")
            };
            kept_back = Some(json!({ "messages": to_device.messages }));
            let answer = ruma::api::client::to_device::send_event_to_device::v3::Response::new();
            let answer = sotto_client::crypto::Response::ToDevice(answer);
            machine
                .mark_request_as_sent(&request.id, &answer)
                .await
                .unwrap();
        }
    }
    let mut content = Map::new();
    content.insert("msgtype".to_owned(), "m.text".into());
    content.insert("body".to_owned(), "patience".into());
    let content = machine
        .encrypt_room_event(room.id(), "m.room.message", content)
        .await
        .unwrap();
    let event = helper
        .send_event(room.id().as_str(), "m.room.encrypted", &content.into())
        .await;
    (
        event.ok()["event_id"].as_str().unwrap().to_owned(),
        kept_back.unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_key_comes_later_is_read_later() {
    let server = TestServer::start().await;
    // Alice's second session carries what her client is made to keep back.
    let helper = server.register("alice").await;
    let alice = Client::builder()
        .homeserver(server.url())
        .build()
        .await
        .unwrap();
    alice
        .login_password("alice", "the password of alice")
        .await
        .unwrap();
    alice.sync_once(NOW).await.unwrap();
    let bob = person(&server, "bob").await;
    let room_id = encrypted_room(&alice, &bob).await;
    alice.room(&room_id).send_text("first").await.unwrap();
    wait_for(&bob, &room_id, "first").await;
    alice
        .machine()
        .unwrap()
        .discard_room_key(&room_id)
        .await
        .unwrap();

    let (event_id, key) = send_without_key(&alice, &alice.room(&room_id), &helper).await;
    let update = bob.sync_once(SOON).await.unwrap();
    let event = &events(&update, &room_id)[0];
    assert_eq!(event.event_id, event_id);
    let missing = UndecryptableReason::MissingRoomKey { withheld: None };
    assert!(matches!(&event.protection, Protection::Undecryptable(reason) if *reason == missing));

    let path = "/_matrix/client/v3/sendToDevice/m.room.encrypted/late";
    helper.put(path, &key).await.ok();
    let late = bob.sync_once(SOON).await.unwrap().decrypted_late;
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].1.event_id, event_id);
    assert_eq!(late[0].1.body(), Some("patience"));
    assert!(bob.sync_once(NOW).await.unwrap().decrypted_late.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_left_cannot_read_on() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let carol = person(&server, "carol").await;
    alice
        .room(&room_id)
        .invite(carol.user_id().unwrap())
        .await
        .unwrap();
    carol.join((&*room_id).into(), &[]).await.unwrap();
    alice.sync_once(SOON).await.unwrap();
    alice.room(&room_id).send_text("all three").await.unwrap();
    wait_for(&carol, &room_id, "all three").await;
    carol.room(&room_id).leave().await.unwrap();
    for _ in 0..3 {
        alice.sync_once(Duration::from_millis(300)).await.unwrap();
    }
    alice
        .room(&room_id)
        .send_text("without Carol")
        .await
        .unwrap();
    let event = wait_for(&bob, &room_id, "without Carol").await;
    // The server breaks its word and gives Carol the event.
    carol.sync_once(NOW).await.unwrap();
    let machine = carol.machine().unwrap();
    assert!(
        machine
            .decrypt_room_event(&room_id, &event.raw)
            .await
            .is_err()
    );
    let bobs = bob.machine().unwrap();
    assert!(
        bobs.decrypt_room_event(&room_id, &event.raw).await.is_ok(),
        "control"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_reads_what_is_new() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    alice.room(&room_id).send_text("before").await.unwrap();
    wait_for(&bob, &room_id, "before").await;
    let phone = Client::builder()
        .homeserver(server.url())
        .build()
        .await
        .unwrap();
    phone
        .login_password("bob", "the password of bob")
        .await
        .unwrap();
    let update = phone.sync_once(NOW).await.unwrap();
    assert!(update.initial);
    let unread = events(&update, &room_id)
        .iter()
        .filter(|event| matches!(event.protection, Protection::Undecryptable(_)));
    assert_eq!(unread.count(), 1, "the message before");
    // Somebody who knows the password is not yet Bob.
    alice.sync_once(SOON).await.unwrap();
    alice.room(&room_id).send_text("between").await.unwrap();
    wait_for(&bob, &room_id, "between").await;
    let update = phone.sync_once(SOON).await.unwrap();
    let between = &events(&update, &room_id)[0].protection;
    assert!(matches!(between, Protection::Undecryptable(_)));
    // His other device says that it is.
    let machine = bob.machine().unwrap();
    let devices = machine.devices(bob.user_id().unwrap()).await.unwrap();
    let device = devices
        .iter()
        .find(|device| Some(&*device.device_id) == phone.device_id());
    machine.sign_own_device(device.unwrap()).await.unwrap();
    bob.sync_once(NOW).await.unwrap();
    alice.sync_once(SOON).await.unwrap();
    alice.room(&room_id).send_text("after").await.unwrap();
    for client in [&bob, &phone] {
        assert!(is_encrypted(&wait_for(client, &room_id, "after").await));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends() {
    let server = TestServer::start().await;
    let (alice, _, room_id) = alice_and_bob(&server).await;
    assert_eq!(alice.rooms().await.unwrap().len(), 1);
    assert_eq!(
        alice.room(&room_id).membership().await.unwrap(),
        Some(Membership::Joined)
    );
    alice.logout().await.unwrap();
    assert!(matches!(
        alice.sync_once(NOW).await,
        Err(SyncError::LoggedOut)
    ));
    assert!(alice.room(&room_id).send_text("x").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once() {
    let server = TestServer::start().await;
    person(&server, "alice").await;
    let client = Client::builder()
        .homeserver(server.url())
        .build()
        .await
        .unwrap();
    let error = client
        .register("alice", "another password", None)
        .await
        .unwrap_err();
    assert!(matches!(error, RegisterError::Request(_)), "{error:?}");
    let error = client
        .login_password("alice", "a wrong password")
        .await
        .unwrap_err();
    let LoginError::Request(error) = error else {
        panic!("{error:?}")
    };
    assert_eq!(error.errcode().as_deref(), Some("M_FORBIDDEN"));
    assert!(client.user_id().is_none());
}
