//! Requests of forms that the specification has deprecated.

use http::Method;
use serde_json::json;
use sotto_tests::{Setup, TestServer};

async fn room(server: &TestServer) -> (sotto_tests::User, String) {
    let alice = server.register("alice").await;
    let made = alice
        .post("/_matrix/client/v3/createRoom", &json!({}))
        .await
        .ok();
    let room = made["room_id"].as_str().unwrap().to_owned();
    (alice, room)
}

#[tokio::test]
async fn a_token_may_be_in_the_query_string() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let nobody = alice.with_token("");
    let whoami = |token: &str| format!("/_matrix/client/v3/account/whoami?access_token={token}");
    let answer = nobody.get(&whoami(&alice.token)).await.ok();
    assert_eq!(answer["user_id"], alice.user_id.as_str());
    let answer = nobody.get(&whoami("wrong")).await;
    assert_eq!(answer.refused(), (401, "M_UNKNOWN_TOKEN"));
    let answer = nobody.get(&whoami("")).await;
    assert_eq!(answer.refused(), (401, "M_MISSING_TOKEN"));
}

#[tokio::test]
async fn old_paths_lead_to_the_new_ones() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    alice.get("/_matrix/client/r0/account/whoami").await.ok();
    alice.get("/_matrix/media/r0/config").await.ok();
    alice.get("/_matrix/media/v1/config").await.ok();
    let keys = "/_matrix/client/unstable/keys/signatures/upload";
    alice.post(keys, &json!({})).await.ok();
    let unknown = alice.get("/_matrix/client/r0/unheard_of").await;
    assert_eq!(unknown.refused(), (404, "M_UNRECOGNIZED"));
}

#[tokio::test]
async fn server_keys_may_be_asked_for_by_id() {
    let server = TestServer::start().await;
    let nobody = sotto_tests::User::anonymous(server.url());
    let keys = nobody.get("/_matrix/key/v2/server").await.ok();
    let key = keys["verify_keys"].as_object().unwrap().keys().next();
    let key = key.unwrap().replace(':', "%3A");
    let one = nobody.get(&format!("/_matrix/key/v2/server/{key}")).await;
    assert_eq!(one.ok()["verify_keys"], keys["verify_keys"]);
    let path = format!("/_matrix/key/v2/query/{}/{key}", server.name());
    let notary = nobody.get(&path).await.ok();
    assert_eq!(notary["server_keys"][0]["verify_keys"], keys["verify_keys"]);
}

#[tokio::test]
async fn events_may_come_without_a_transaction_id() {
    let server = TestServer::start().await;
    let (alice, room) = room(&server).await;
    let send = format!("/_matrix/client/r0/rooms/{room}/send/m.room.message");
    let body = json!({ "msgtype": "m.text", "body": "old" });
    let first = alice.post(&send, &body).await.ok();
    let second = alice.post(&send, &body).await.ok();
    assert_ne!(first["event_id"], second["event_id"]);
    let event = first["event_id"].as_str().unwrap();
    let redact = format!("/_matrix/client/v3/rooms/{room}/redact/{event}");
    alice.post(&redact, &json!({})).await.ok();
    let event = format!("/_matrix/client/v3/rooms/{room}/event/{event}");
    assert_eq!(alice.get(&event).await.ok()["content"], json!({}));
}

#[tokio::test]
async fn an_operator_can_do_without_them() {
    let server = Setup::with(|config| config.deprecated_requests = false);
    let server = server.start().await;
    let (alice, room) = room(&server).await;
    let nobody = alice.with_token("");
    let path = format!(
        "/_matrix/client/v3/account/whoami?access_token={}",
        alice.token
    );
    assert_eq!(nobody.get(&path).await.refused(), (401, "M_MISSING_TOKEN"));
    for (method, path) in [
        (Method::GET, "/_matrix/client/r0/account/whoami".to_owned()),
        (
            Method::POST,
            "/_matrix/client/unstable/keys/signatures/upload".to_owned(),
        ),
        (
            Method::POST,
            format!("/_matrix/client/v3/rooms/{room}/send/m.room.message"),
        ),
    ] {
        let answer = alice.request(method, &path, Some(b"{}".to_vec())).await;
        assert_eq!(answer.refused(), (404, "M_UNRECOGNIZED"), "{path}");
    }
}
