//! What is in the index of the search, and what is not any more.

use serde_json::json;
use sotto_tests::{TestServer, User, escape, room};
use sqlx::{AnyConnection, Connection};

use super::{finds, ids, search};

/// How many rows the index has.
async fn rows(server: &TestServer) -> i64 {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(&server.database_url())
        .await
        .unwrap();
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM search_words");
    count.fetch_one(&mut connection).await.unwrap()
}

async fn edit(user: &User, room_id: &str, event_id: &str, text: &str) -> String {
    let content = json!({
        "msgtype": "m.text", "body": format!("* {text}"),
        "m.new_content": { "msgtype": "m.text", "body": text },
        "m.relates_to": { "rel_type": "m.replace", "event_id": event_id },
    });
    let sent = user
        .send_event(room_id, "m.room.message", &content)
        .await
        .ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

async fn redact(user: &User, room_id: &str, event_id: &str) {
    let path = room(
        room_id,
        &format!("redact/{}/r{}", escape(event_id), escape(event_id)),
    );
    user.put(&path, &json!({})).await.ok();
}

#[tokio::test]
async fn what_was_redacted_is_not_even_in_the_index() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let empty = rows(&server).await;
    let regretted = alice.send(&room_id, "something regrettable").await;
    assert_eq!(finds(&alice, "regrettable").await, [regretted.as_str()]);
    assert_eq!(rows(&server).await, empty + 2);
    redact(&alice, &room_id, &regretted).await;
    assert_eq!(rows(&server).await, empty);
    assert!(finds(&alice, "regrettable").await.is_empty());
    // Redacted before anybody looked.
    let quickly = alice.send(&room_id, "something regrettable").await;
    redact(&alice, &room_id, &quickly).await;
    assert!(finds(&alice, "regrettable").await.is_empty());
    assert_eq!(rows(&server).await, empty);
}

#[tokio::test]
async fn an_edited_event_is_found_by_its_latest_text() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    let said = alice.send(&room_id, "I like apples").await;
    edit(&alice, &room_id, &said, "I like bananas").await;
    let last = edit(&alice, &room_id, &said, "I like cherries").await;
    let forged = edit(&bob, &room_id, &said, "I like dates").await;
    for nothing in ["apples", "bananas", "dates"] {
        assert!(finds(&alice, nothing).await.is_empty(), "{nothing}");
    }
    let found = search(&bob, "cherries", json!({})).await;
    assert_eq!(ids(&found), [said.as_str()]);
    let edit_of = &found["results"][0]["result"]["unsigned"]["m.relations"]["m.replace"];
    assert_eq!(edit_of["event_id"], last.as_str());
    assert_eq!(finds(&alice, "like").await, [said.as_str()]);
    redact(&alice, &room_id, &last).await;
    assert!(finds(&alice, "cherries").await.is_empty());
    assert_eq!(finds(&alice, "bananas").await, [said.as_str()]);
    redact(&alice, &room_id, &said).await;
    assert!(finds(&alice, "bananas").await.is_empty());
    redact(&bob, &room_id, &forged).await;
}

#[tokio::test]
async fn encrypted_rooms_are_never_in_the_index() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let empty = rows(&server).await;
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    let state = json!([{ "type": "m.room.encryption", "content": algorithm }]);
    let room_id = alice
        .create_room(&json!({ "name": "Secrets", "initial_state": state }))
        .await;
    alice
        .send(&room_id, "said without encryption by mistake")
        .await;
    assert!(finds(&alice, "mistake").await.is_empty());
    assert!(finds(&alice, "secrets").await.is_empty());
    assert_eq!(rows(&server).await, empty);

    let later = alice.create_room(&json!({ "name": "Plain" })).await;
    let said = alice.send(&later, "said before").await;
    assert_eq!(finds(&alice, "before").await, [said]);
    alice
        .put(&room(&later, "state/m.room.encryption"), &algorithm)
        .await
        .ok();
    alice.send(&later, "said after").await;
    assert!(finds(&alice, "said").await.is_empty());
    assert_eq!(rows(&server).await, empty);
}

#[tokio::test]
async fn the_index_goes_on_after_a_restart() {
    let mut server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let mut sent = Vec::new();
    for number in 0..3 {
        sent.insert(
            0,
            alice
                .send(&room_id, &format!("before a restart {number}"))
                .await,
        );
        server.restart().await;
    }
    assert_eq!(finds(&alice, "restart").await, sent);
    assert_eq!(finds(&alice, "restart 1").await, sent[1..2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_was_fetched_from_others_is_found() {
    let (a, b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let old = alice.send(&room_id, "said long ago").await;
    for number in 0..30 {
        alice.send(&room_id, &format!("filler {number}")).await;
    }
    bob.join_via(&room_id, "a.test").await.ok();
    assert!(finds(&bob, "ago").await.is_empty());
    let mut from = String::new();
    while let Some(end) = bob
        .get(&room(&room_id, &format!("messages?dir=b&limit=20{from}")))
        .await
        .ok()["end"]
        .as_str()
    {
        from = format!("&from={end}");
    }
    assert_eq!(finds(&bob, "ago").await, [old.as_str()]);
    redact(&alice, &room_id, &old).await;
    let mut since = None;
    bob.sync_until(&mut since, |news| {
        let events = news["rooms"]["join"][&room_id]["timeline"]["events"].as_array()?;
        events
            .iter()
            .any(|event| event["type"] == "m.room.redaction")
            .then_some(())
    })
    .await;
    assert!(finds(&bob, "ago").await.is_empty());
}

#[tokio::test]
async fn the_words_of_an_erased_user_are_found_only_by_who_was_there() {
    let server = TestServer::start().await;
    let (alice, bob, carol) = (
        server.register("alice").await,
        server.register("bob").await,
        server.register("carol").await,
    );
    let room_id = bob.create_room(&json!({ "preset": "public_chat" })).await;
    alice.join(&room_id).await.ok();
    let said = alice.send(&room_id, "remember this").await;
    carol.join(&room_id).await.ok();
    assert_eq!(finds(&carol, "remember").await, [said.as_str()]);
    let auth = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "the password of alice",
    });
    let body = json!({ "erase": true, "auth": auth });
    alice
        .post("/_matrix/client/v3/account/deactivate", &body)
        .await
        .ok();
    assert!(finds(&carol, "remember").await.is_empty());
    assert_eq!(finds(&bob, "remember").await, [said]);
}
