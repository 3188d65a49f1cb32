//! Accounts that scripts make with the secret of the configuration.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha1::Sha1;
use sotto_homeserver::config::Secret;
use sotto_tests::{Setup, TestServer, User};

const REGISTER: &str = "/_synapse/admin/v1/register";

async fn start() -> TestServer {
    let server = Setup::with(|config| {
        config.registration_shared_secret = Some(Secret::new("the secret".to_owned()));
    });
    server.start().await
}

fn mac(secret: &str, parts: &[&str]) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(parts.join("\0").as_bytes());
    let mut text = String::new();
    for byte in mac.finalize().into_bytes() {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

async fn nonce(nobody: &User) -> String {
    let nonce = nobody.get(REGISTER).await.ok();
    nonce["nonce"].as_str().unwrap().to_owned()
}

fn wish(nonce: &str, name: &str, secret: &str, admin: bool) -> Value {
    let kind = if admin { "admin" } else { "notadmin" };
    json!({
        "nonce": nonce,
        "username": name,
        "password": "a password",
        "admin": admin,
        "mac": mac(secret, &[nonce, name, "a password", kind]),
    })
}

#[tokio::test]
async fn who_knows_the_secret_makes_accounts() {
    let server = start().await;
    let nobody = User::anonymous(server.url());
    let nonce = nonce(&nobody).await;
    let wish = wish(&nonce, "Robot", "the secret", false);
    let session = nobody.post(REGISTER, &wish).await.ok();
    let robot = User::new(server.url(), &session);
    assert_eq!(robot.user_id, "@robot:one.test");
    robot.get("/_matrix/client/v3/account/whoami").await.ok();
    // A nonce is good once.
    let again = nobody.post(REGISTER, &wish).await;
    assert_eq!(again.refused(), (400, "M_UNKNOWN"));
}

#[tokio::test]
async fn administrators_can_be_made() {
    let server = start().await;
    let alice = server.register("alice").await;
    let nobody = User::anonymous(server.url());
    let wish = wish(&nonce(&nobody).await, "boss", "the secret", true);
    let boss = User::new(server.url(), &nobody.post(REGISTER, &wish).await.ok());
    let whois = |user: &User| format!("/_matrix/client/v3/admin/whois/{}", user.user_id);
    boss.get(&whois(&alice)).await.ok();
    let refused = alice.get(&whois(&boss)).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn what_is_not_right_is_refused() {
    let server = start().await;
    let nobody = User::anonymous(server.url());
    let wrong = wish(&nonce(&nobody).await, "robot", "a guess", false);
    let refused = nobody.post(REGISTER, &wrong).await;
    assert_eq!(refused.refused(), (403, "M_UNKNOWN"));
    let made_up = wish("made up", "robot", "the secret", false);
    let refused = nobody.post(REGISTER, &made_up).await;
    assert_eq!(refused.refused(), (400, "M_UNKNOWN"));
    let bad_name = wish(&nonce(&nobody).await, "r@bot", "the secret", false);
    let refused = nobody.post(REGISTER, &bad_name).await;
    assert_eq!(refused.refused(), (400, "M_INVALID_USERNAME"));
    // What was signed for a user does not make an administrator.
    let mut other = wish(&nonce(&nobody).await, "robot", "the secret", false);
    other["admin"] = json!(true);
    let refused = nobody.post(REGISTER, &other).await;
    assert_eq!(refused.refused(), (403, "M_UNKNOWN"));
    let late = nonce(&nobody).await;
    server.clock().advance(60_001);
    let late = wish(&late, "robot", "the secret", false);
    assert_eq!(
        nobody.post(REGISTER, &late).await.refused(),
        (400, "M_UNKNOWN")
    );
}

#[tokio::test]
async fn without_a_secret_nobody_makes_accounts_so() {
    let server = TestServer::start().await;
    let nobody = User::anonymous(server.url());
    assert_eq!(nobody.get(REGISTER).await.refused(), (400, "M_UNKNOWN"));
    let wish = wish("any", "robot", "", true);
    let refused = nobody.post(REGISTER, &wish).await;
    assert_eq!(refused.refused(), (400, "M_UNKNOWN"));
}
