//! Those who ask too often wait.

use serde_json::json;
use sotto_homeserver::config::{Rate, RateLimits};
use sotto_tests::{Setup, User};

#[test]
fn there_are_limits_by_default() {
    assert!(RateLimits::default().enabled);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_many_messages_are_slowed_down() {
    let setup = Setup::with(|config| {
        let limits = &mut config.rate_limits;
        limits.enabled = true;
        limits.password = Rate {
            per_second: 0.01,
            burst: 3,
        };
        limits.messages = Rate {
            per_second: 0.01,
            burst: 2,
        };
    });
    let server = setup.start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let nobody = User::anonymous(server.url());
    let login = |word: &str| {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": "alice" },
            "password": word,
        });
        let nobody = nobody.clone();
        async move { nobody.post("/_matrix/client/v3/login", &body).await }
    };
    // What is right costs nothing.
    for _ in 0..5 {
        login("the password of alice").await.ok();
    }
    for _ in 0..3 {
        assert_eq!(login("wrong").await.refused(), (403, "M_FORBIDDEN"));
    }
    let refused = login("the password of alice").await;
    assert_eq!(refused.refused(), (429, "M_LIMIT_EXCEEDED"));
    let wait = refused.body["retry_after_ms"].as_u64().unwrap();
    assert!((90_000..=100_000).contains(&wait), "{wait}");
    server.clock().advance(101_000);
    login("the password of alice").await.ok();
    for user in [&alice, &bob] {
        let room_id = user.create_room(&json!({})).await;
        user.send(&room_id, "one").await;
        user.send(&room_id, "two").await;
        let content = json!({ "msgtype": "m.text", "body": "three" });
        let refused = user.send_event(&room_id, "m.room.message", &content).await;
        assert_eq!(refused.refused(), (429, "M_LIMIT_EXCEEDED"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_register_too_often_are_slowed_down() {
    let setup = Setup::with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.registration = Rate {
            per_second: 0.01,
            burst: 2,
        };
    });
    let server = setup.start().await;
    server.register("alice").await;
    server.register("bob").await;
    let nobody = User::anonymous(server.url());
    let refused = nobody.post("/_matrix/client/v3/register", &json!({})).await;
    assert_eq!(refused.refused(), (429, "M_LIMIT_EXCEEDED"));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/_matrix/client/v3/register", server.url());
    let refused = http.post(url).body("{}").send().await.unwrap();
    let wait = refused.headers()["retry-after"].to_str().unwrap();
    let wait: u64 = wait.parse().unwrap();
    assert!((90..=100).contains(&wait), "{wait}");
    // Looking is not asking.
    let path = "/_matrix/client/v3/register/available?username=carol";
    nobody.get(path).await.ok();
}
