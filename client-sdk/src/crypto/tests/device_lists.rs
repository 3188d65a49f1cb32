//! Device lists, and servers that lie about them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{OwnedTransactionId, api::client::keys::get_keys};
use serde_json::{Value, json};

use super::fake::{Peer, Server, alice_and_bob, another, raw, room, users};
use crate::crypto::{
    Alarm, Bootstrap, Failure, OutgoingRequest, Request, Response, Share, ShareError, keys,
};

fn queries(requests: Vec<OutgoingRequest>) -> Vec<(OwnedTransactionId, get_keys::v3::Request)> {
    let query = |request: OutgoingRequest| match request.request {
        Request::KeysQuery(query) => Some((request.id, query)),
        _ => None,
    };
    requests.into_iter().filter_map(query).collect()
}

async fn due(peer: &Peer) -> Vec<(OwnedTransactionId, get_keys::v3::Request)> {
    queries(peer.machine.outgoing_requests().await.unwrap())
}

async fn device_names(peer: &Peer, other: &Peer) -> Vec<String> {
    let devices = peer.machine.devices(other.user()).await.unwrap();
    devices
        .into_iter()
        .map(|device| device.device_id.to_string())
        .collect()
}

/// Alice knows Bob; his list has changed, and is asked for but not answered.
async fn with_a_query_under_way() -> (
    Server,
    Peer,
    Peer,
    OwnedTransactionId,
    get_keys::v3::Request,
) {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    server.note_change(bob.user());
    alice.receive(&mut server).await;
    let mut asked = queries(alice.machine.outgoing_requests().await.unwrap());
    let (id, query) = asked.remove(0);
    (server, alice, bob, id, query)
}

#[tokio::test]
async fn t_dl_1_a_late_answer_does_not_overwrite_a_newer_one() {
    let (mut server, mut alice, bob, id, query) = with_a_query_under_way().await;
    let early = server.query(&query);
    let _phone = another(
        &mut server,
        "@bob:example.org",
        "PHONE",
        &alice.environment.clone(),
    )
    .await;
    alice.receive(&mut server).await;
    // A second query overtakes the first.
    alice.share(&mut server, room(), &[&bob]).await;
    assert_eq!(device_names(&alice, &bob).await, ["BOB", "PHONE"]);
    alice
        .machine
        .mark_request_as_sent(&id, &Response::KeysQuery(early))
        .await
        .unwrap();
    assert_eq!(device_names(&alice, &bob).await, ["BOB", "PHONE"]);
}

#[tokio::test]
async fn t_dl_2_a_change_while_asking_is_asked_about_again() {
    let (mut server, mut alice, bob, id, query) = with_a_query_under_way().await;
    let early = server.query(&query);
    let _phone = another(
        &mut server,
        "@bob:example.org",
        "PHONE",
        &alice.environment.clone(),
    )
    .await;
    alice.receive(&mut server).await;
    assert!(
        queries(alice.machine.outgoing_requests().await.unwrap()).is_empty(),
        "one at a time"
    );
    alice
        .machine
        .mark_request_as_sent(&id, &Response::KeysQuery(early))
        .await
        .unwrap();
    assert_eq!(device_names(&alice, &bob).await, ["BOB"]);
    alice.send_outgoing(&mut server).await;
    assert_eq!(device_names(&alice, &bob).await, ["BOB", "PHONE"]);
}

#[tokio::test]
async fn what_nobody_waits_for_is_asked_again_at_once() {
    let (_server, alice, bob, id, _) = with_a_query_under_way().await;
    assert!(due(&alice).await.is_empty(), "control: it is being asked");
    alice.machine.give_up_requests([id]);
    let (_, query) = due(&alice).await.remove(0);
    assert!(query.device_keys.contains_key(bob.user()));
}

/// Somebody leaves the last common room while we ask, gets a new device, and comes back.
#[tokio::test]
async fn an_answer_from_before_a_parting_does_not_count_afterwards() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let members = users(&[&bob]);
    let share = alice.machine.share_room_key(room(), &members).await;
    let Share::Pending(requests) = share.unwrap() else {
        panic!("Bob's devices are not known")
    };
    let (id, query) = queries(requests).remove(0);
    let early = server.query(&query);
    server.part(bob.user());
    alice.receive(&mut server).await;
    assert!(!alice.machine.follows(bob.user()).await.unwrap());
    let environment = alice.environment.clone();
    let _phone = another(&mut server, "@bob:example.org", "PHONE", &environment).await;
    alice.receive(&mut server).await;

    // Alice writes to him: she follows him again, and only now comes the answer.
    let share = alice.machine.share_room_key(room(), &members).await;
    assert!(matches!(share.unwrap(), Share::Pending(_)));
    let answer = Response::KeysQuery(early);
    let taken = alice.machine.mark_request_as_sent(&id, &answer).await;
    taken.unwrap();
    alice.share(&mut server, room(), &[&bob]).await;
    assert!(alice.machine.follows(bob.user()).await.unwrap());
    assert_eq!(device_names(&alice, &bob).await, ["BOB", "PHONE"]);
}

#[tokio::test]
async fn an_outdated_list_is_remembered_by_a_restart() {
    let (mut server, mut alice, bob, ..) = with_a_query_under_way().await;
    let _phone = another(
        &mut server,
        "@bob:example.org",
        "PHONE",
        &alice.environment.clone(),
    )
    .await;
    alice.restart().await;
    alice.send_outgoing(&mut server).await;
    assert_eq!(device_names(&alice, &bob).await, ["BOB", "PHONE"]);
}

/// What the server would serve for a device of `peer` with other keys, correctly signed.
fn forged(peer: &Peer) -> Value {
    let account = vodozemac::olm::Account::new();
    keys::own_device_keys(&account, peer.user(), peer.device()).unwrap()
}

async fn serve(server: &mut Server, alice: &mut Peer, bob: &Peer, keys: Value) {
    server.device(bob.user(), bob.device()).keys = Some(keys);
    server.note_change(bob.user());
    alice.sync(server).await;
}

#[tokio::test]
async fn t_dl_3_the_keys_of_a_device_never_change() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let known = alice.knows(&bob).await;

    let mut renamed = server
        .device(bob.user(), bob.device())
        .keys
        .clone()
        .unwrap();
    renamed["unsigned"] = json!({ "device_display_name": "Bob's phone" });
    serve(&mut server, &mut alice, &bob, renamed).await;
    assert_eq!(
        alice.knows(&bob).await.display_name.as_deref(),
        Some("Bob's phone"),
        "control"
    );
    assert!(alice.alarms.is_empty(), "control");

    serve(&mut server, &mut alice, &bob, forged(&bob)).await;
    assert_eq!(alice.knows(&bob).await.ed25519, known.ed25519);
    assert_eq!(alice.knows(&bob).await.curve25519, known.curve25519);
    let alarm = Alarm::DeviceKeysChanged {
        user_id: bob.user().to_owned(),
        device_id: bob.device().to_owned(),
    };
    assert_eq!(alice.alarms, [alarm]);
}

#[tokio::test]
async fn a_deleted_device_does_not_come_back_with_other_keys() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let keys = server
        .device(bob.user(), bob.device())
        .keys
        .clone()
        .unwrap();
    server.delete_device(bob.user(), bob.device());
    alice.sync(&mut server).await;
    assert!(device_names(&alice, &bob).await.is_empty());
    serve(&mut server, &mut alice, &bob, forged(&bob)).await;
    assert!(device_names(&alice, &bob).await.is_empty());
    serve(&mut server, &mut alice, &bob, keys).await;
    assert_eq!(device_names(&alice, &bob).await, ["BOB"], "control");
}

#[tokio::test]
async fn t_dl_4_a_device_whose_id_is_a_cross_signing_key_is_refused() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let name = "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQ";
    let account = vodozemac::olm::Account::new();
    let keys = keys::own_device_keys(&account, bob.user(), name.into()).unwrap();
    let answer = |with_identity: bool| {
        let mut response = get_keys::v3::Response::new();
        let devices = BTreeMap::from([(name.into(), raw(&keys))]);
        response.device_keys.insert(bob.user().to_owned(), devices);
        if with_identity {
            let master = json!({
                "user_id": bob.user(),
                "usage": ["master"],
                "keys": { format!("ed25519:{name}"): name },
            });
            response
                .master_keys
                .insert(bob.user().to_owned(), raw(&master));
        }
        Response::KeysQuery(response)
    };
    for (with_identity, expected) in [
        (true, vec![]),
        (false, vec![name.to_owned()]),
        (true, vec![]),
    ] {
        server.note_change(bob.user());
        alice.receive(&mut server).await;
        let (id, _) = queries(alice.machine.outgoing_requests().await.unwrap()).remove(0);
        alice
            .machine
            .mark_request_as_sent(&id, &answer(with_identity))
            .await
            .unwrap();
        assert_eq!(device_names(&alice, &bob).await, expected);
    }
}

/// The server shows the identity and the device that bears its name one after the other.
#[tokio::test]
async fn t_dl_4_a_device_whose_id_is_a_pinned_key_is_refused() {
    let (mut server, mut alice, _) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let mut carol = another(&mut server, "@carol:example.org", "CAROL", &environment).await;
    assert!(carol.bootstrap(&mut server, Bootstrap::IfMissing).await);
    alice.share(&mut server, room(), &[&carol]).await;
    let master = alice.machine.master_key(carol.user()).await.unwrap();
    let own = ("self_signing", carol.user().to_owned());
    let own = server.identities[&own]["keys"].as_object().unwrap();
    let own = own.values().next().unwrap().as_str().unwrap().to_owned();
    let hidden = std::mem::take(&mut server.identities);
    for (name, refused) in [(master.unwrap(), true), (own, true), ("NEW".into(), false)] {
        let account = vodozemac::olm::Account::new();
        let keys = keys::own_device_keys(&account, carol.user(), name.as_str().into());
        server.device(carol.user(), name.as_str().into()).keys = Some(keys.unwrap());
        server.note_change(carol.user());
        alice.sync(&mut server).await;
        let known = device_names(&alice, &carol).await.contains(&name);
        assert_eq!(known, !refused, "{name}");
        server.identities.clone_from(&hidden);
        server.note_change(carol.user());
        alice.sync(&mut server).await;
        server.identities.clear();
    }
}

#[tokio::test]
async fn many_users_are_asked_about_in_several_requests() {
    let (_server, alice, _) = alice_and_bob().await;
    let members: BTreeSet<_> = (0..251)
        .map(|number| format!("@user{number}:example.org").try_into().unwrap())
        .collect();
    let share = alice.machine.share_room_key(room(), &members).await;
    let Share::Pending(requests) = share.unwrap() else {
        panic!("nobody is known")
    };
    let queries = queries(requests);
    let asked = queries.iter().map(|(_, query)| query.device_keys.len());
    assert_eq!(asked.max(), Some(250));
    let all = queries
        .iter()
        .flat_map(|(_, query)| query.device_keys.keys());
    assert!(members.is_subset(&all.cloned().collect()));
}

#[tokio::test]
async fn t_dl_5_a_server_that_does_not_answer_keeps_nobody_silent() {
    let (mut server, mut alice, mut bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    alice.share(&mut server, room(), &[&bob]).await;
    let mut far = another(&mut server, "@far:away.example", "FAR", &environment).await;
    let members = users(&[&bob, &far]);
    let Share::Pending(requests) = alice
        .machine
        .share_room_key(room(), &members)
        .await
        .unwrap()
    else {
        panic!("the list is not known")
    };
    let (id, query) = queries(requests).remove(0);
    let mut response = server.query(&query);
    response.device_keys.remove(far.user());
    response
        .failures
        .insert("away.example".to_owned(), json!({}));
    alice
        .machine
        .mark_request_as_sent(&id, &Response::KeysQuery(response))
        .await
        .unwrap();

    let hello = alice.say(&mut server, &[&bob, &far], "hello").await;
    bob.sync(&mut server).await;
    assert_eq!(bob.read(&hello).await.unwrap(), "hello");
    far.sync(&mut server).await;
    assert!(far.read(&hello).await.is_err());

    // When the pause is over it is asked again.
    environment.advance(Duration::from_secs(16));
    let again = alice.say(&mut server, &[&bob, &far], "again").await;
    far.sync(&mut server).await;
    assert_eq!(far.read(&again).await.unwrap(), "again");
}

#[tokio::test]
async fn t_dl_5_what_comes_with_a_failure_is_not_the_newest() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let environment = alice.environment.clone();
    let far = another(&mut server, "@far:away.example", "FAR", &environment).await;
    alice.share(&mut server, room(), &[&bob, &far]).await;
    let _new = another(&mut server, "@far:away.example", "NEW", &environment).await;
    alice.receive(&mut server).await;
    let (id, query) = due(&alice).await.remove(0);
    let mut response = server.query(&query);
    let list = response.device_keys.get_mut(far.user());
    list.unwrap().clear();
    response
        .failures
        .insert("away.example".to_owned(), json!({}));
    let answer = Response::KeysQuery(response);
    let taken = alice.machine.mark_request_as_sent(&id, &answer).await;
    taken.unwrap();
    assert_eq!(device_names(&alice, &far).await, ["FAR"]);
    assert!(due(&alice).await.is_empty(), "not at once");
    environment.advance(Duration::from_secs(16));
    alice.send_outgoing(&mut server).await;
    assert_eq!(device_names(&alice, &far).await, ["FAR", "NEW"]);
}

#[tokio::test]
async fn pauses_grow_and_end_with_news_of_the_user() {
    let (mut server, mut alice, bob, id, _) = with_a_query_under_way().await;
    alice
        .machine
        .mark_request_as_failed(&id, Failure::Temporary)
        .await
        .unwrap();
    assert!(due(&alice).await.is_empty());
    alice.environment.advance(Duration::from_secs(16));
    let (id, _) = due(&alice).await.remove(0);
    alice
        .machine
        .mark_request_as_failed(&id, Failure::Temporary)
        .await
        .unwrap();
    alice.environment.advance(Duration::from_secs(16));
    assert!(due(&alice).await.is_empty());
    server.note_change(bob.user());
    alice.receive(&mut server).await;
    assert_eq!(due(&alice).await.len(), 1);
}

#[tokio::test]
async fn a_device_that_did_not_sign_its_keys_is_not_known() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    let good = server
        .device(bob.user(), bob.device())
        .keys
        .clone()
        .unwrap();
    let other = forged(&bob);
    let tampered: [fn(&mut Value, &Value); 5] = [
        |keys, _| keys["signatures"] = json!({}),
        |keys, other| keys["signatures"] = other["signatures"].clone(),
        |keys, other| keys["keys"]["curve25519:BOB"] = other["keys"]["curve25519:BOB"].clone(),
        |keys, _| keys["user_id"] = json!("@mallory:example.org"),
        |keys, _| keys["device_id"] = json!("OTHER"),
    ];
    for tamper in tampered {
        let mut keys = good.clone();
        tamper(&mut keys, &other);
        server.device(bob.user(), bob.device()).keys = Some(keys);
        alice.share(&mut server, room(), &[&bob]).await;
        assert!(device_names(&alice, &bob).await.is_empty());
        server.note_change(bob.user());
        alice.receive(&mut server).await;
    }
    server.device(bob.user(), bob.device()).keys = Some(good);
    alice.share(&mut server, room(), &[&bob]).await;
    assert_eq!(device_names(&alice, &bob).await, ["BOB"], "control");
}

#[tokio::test]
async fn t_dev_2_a_server_that_serves_other_keys_for_this_device_stops_it() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.say(&mut server, &[&bob], "control").await;
    let keys = forged(&alice);
    server.device(alice.user(), alice.device()).keys = Some(keys);
    server.note_change(alice.user());
    alice.sync(&mut server).await;
    assert_eq!(alice.alarms, [Alarm::OwnDeviceMismatch]);
    assert!(alice.machine.own_device_mismatch().await.unwrap());
    alice.restart().await;
    let error = alice
        .machine
        .share_room_key(room(), &users(&[&bob]))
        .await
        .unwrap_err();
    assert!(matches!(error, ShareError::OwnDeviceMismatch));
}

#[tokio::test]
async fn a_lost_token_makes_all_lists_outdated() {
    let (mut server, mut alice, bob) = alice_and_bob().await;
    alice.share(&mut server, room(), &[&bob]).await;
    let mut changes = crate::store::Changes::default();
    changes.delete(crate::store::Key::new(
        crate::store::Table::Meta,
        "",
        "sync_token",
    ));
    alice.store.commit(changes).await.unwrap();
    alice.receive(&mut server).await;
    let asked = queries(alice.machine.outgoing_requests().await.unwrap());
    assert!(asked[0].1.device_keys.contains_key(bob.user()));
    assert!(asked[0].1.device_keys.contains_key(alice.user()));
}
