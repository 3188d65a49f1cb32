//! Guests, terms, and accounts by the shared secret.

use serde_json::{Value, json};
use sotto_homeserver::config::Terms;
use sotto_tests::{Setup, TestServer, User, escape, room};

const REGISTER: &str = "/_matrix/client/v3/register";

async fn guest(server: &TestServer) -> User {
    let nobody = User::anonymous(server.url());
    let path = format!("{REGISTER}?kind=guest");
    User::new(server.url(), &nobody.post(&path, &json!({})).await.ok())
}

async fn open_to_guests(user: &User, room_id: &str, access: &str) {
    let path = room(room_id, "state/m.room.guest_access");
    user.put(&path, &json!({ "guest_access": access }))
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_are_where_they_may_be() {
    let server = Setup::with(|config| config.guests = true).start().await;
    let alice = server.register("alice").await;
    let visitor = guest(&server).await;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    open_to_guests(&alice, &room_id, "forbidden").await;
    let refused = visitor.join(&room_id).await;
    assert_eq!(refused.refused(), (403, "M_GUEST_ACCESS_FORBIDDEN"));
    open_to_guests(&alice, &room_id, "can_join").await;
    visitor.join(&room_id).await.ok();
    visitor.send(&room_id, "hello").await;
    let events = "/_matrix/client/v3/events?timeout=0";
    let refused = visitor.get(events).await;
    assert_eq!(refused.refused(), (403, "M_GUEST_ACCESS_FORBIDDEN"));
    let events = format!("{events}&room_id={}", escape(&room_id));
    visitor.get(&events).await.ok();
    let name = format!(
        "/_matrix/client/v3/profile/{}/displayname",
        escape(&visitor.user_id)
    );
    visitor
        .put(&name, &json!({ "displayname": "Visitor" }))
        .await
        .ok();
    open_to_guests(&alice, &room_id, "forbidden").await;
    let member = room(
        &room_id,
        &format!("state/m.room.member/{}", escape(&visitor.user_id)),
    );
    let mut membership = Value::Null;
    for _ in 0..200 {
        membership = alice.get(&member).await.ok()["membership"].clone();
        if membership == "leave" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(membership, "leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_are_agreed_to() {
    let setup = Setup::with(|config| {
        config.terms = Some(Terms {
            version: "1".to_owned(),
            name: "House rules".to_owned(),
            url: "https://one.test/rules".to_owned(),
        });
    });
    let server = setup.start().await;
    let nobody = User::anonymous(server.url());
    let mut body = json!({ "username": "alice", "password": "x" });
    let asked = nobody.post(REGISTER, &body).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.terms"] }])
    );
    let policies = &asked.body["params"]["m.login.terms"]["policies"];
    assert_eq!(policies["terms"]["en"]["url"], "https://one.test/rules");
    body["auth"] = json!({ "type": "m.login.dummy", "session": asked.body["session"] });
    assert_eq!(nobody.post(REGISTER, &body).await.status, 401);
    body["auth"]["type"] = "m.login.terms".into();
    nobody.post(REGISTER, &body).await.ok();
}
