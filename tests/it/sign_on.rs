//! Logging in with what another system knows.

use axum::{Router, extract::RawQuery, routing::get};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use sotto_homeserver::config::{Cas, Jwt, Secret};
use sotto_tests::{Setup, TestServer, User, escape};

const LOGIN: &str = "/_matrix/client/v3/login";
const CLIENT: &str = "https://client.example?a=b&loginToken=old";

async fn login(server: &TestServer, body: Value) -> sotto_tests::Answer {
    User::anonymous(server.url()).post(LOGIN, &body).await
}

async fn flows(server: &TestServer) -> Vec<String> {
    let answer = User::anonymous(server.url()).get(LOGIN).await.ok();
    let flows = answer["flows"].as_array().unwrap().iter();
    flows
        .map(|flow| flow["type"].as_str().unwrap().to_owned())
        .collect()
}

fn jwt(change: impl Fn(&mut Jwt) + Send + Sync + 'static) -> Setup {
    Setup::with(move |config| {
        let settings = json!({ "algorithm": "HS256", "secret": "the secret" });
        let mut settings: Jwt = serde_json::from_value(settings).unwrap();
        change(&mut settings);
        config.jwt = Some(settings);
    })
}

fn token(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(algorithm), claims, &key).unwrap()
}

async fn by_token(server: &TestServer, token: &str) -> sotto_tests::Answer {
    let body = json!({ "type": "org.matrix.login.jwt", "token": token });
    login(server, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_somebody_trusted() {
    let server = jwt(|_| {}).start().await;
    assert!(
        flows(&server)
            .await
            .contains(&"org.matrix.login.jwt".to_owned())
    );
    let now = u64::from(server.clock().now().0) / 1000;
    let good = |claims: Value| token(Algorithm::HS256, "the secret", &claims);
    let claims = json!({ "sub": "carol", "exp": now + 600 });
    for _ in 0..2 {
        let session = by_token(&server, &good(claims.clone())).await.ok();
        assert_eq!(session["user_id"], "@carol:one.test");
        let carol = User::new(server.url(), &session);
        carol.get("/_matrix/client/v3/account/whoami").await.ok();
    }
    // Nobody can log in with a password that was never set.
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "carol" },
        "password": "",
    });
    assert_eq!(login(&server, body).await.refused(), (403, "M_FORBIDDEN"));
    let head = "eyJhbGciOiJub25lIn0";
    let unsigned = format!(
        "{head}.{}.",
        good(claims.clone()).split('.').nth(1).unwrap()
    );
    for bad in [
        token(Algorithm::HS256, "another secret", &claims),
        token(Algorithm::HS512, "the secret", &claims),
        unsigned,
        good(json!({ "exp": now + 600 })),
        good(json!({ "sub": "carol", "exp": now - 600 })),
        good(json!({ "sub": "carol", "exp": "tomorrow" })),
        good(json!({ "sub": "carol", "nbf": now + 600 })),
        good(json!({ "sub": "carol", "aud": "others" })),
        "nonsense".to_owned(),
        String::new(),
    ] {
        let answer = by_token(&server, &bad).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"), "{bad}");
    }
    for name in ["a b", "@carol:other.test", ""] {
        let answer = by_token(&server, &good(json!({ "sub": name }))).await;
        assert!(answer.status.is_client_error(), "{name}");
    }
    server.clock().advance(700_000);
    let answer = by_token(&server, &good(claims)).await;
    assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    let answer = login(&server, json!({ "type": "org.matrix.login.jwt" })).await;
    assert!(answer.status.is_client_error());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_say_for_whom_they_are() {
    let server = jwt(|settings| {
        settings.issuer = Some("issuer".to_owned());
        settings.audiences = vec!["matrix".to_owned()];
        settings.subject_claim = "name".to_owned();
    })
    .start()
    .await;
    let good = json!({ "name": "carol", "iss": "issuer", "aud": ["matrix", "mail"] });
    let signed = |claims: &Value| token(Algorithm::HS256, "the secret", claims);
    by_token(&server, &signed(&good)).await.ok();
    for (claim, value) in [
        ("iss", json!("other")),
        ("aud", json!("mail")),
        ("iss", Value::Null),
    ] {
        let mut bad = good.clone();
        if value.is_null() {
            bad.as_object_mut().unwrap().remove(claim);
        } else {
            bad[claim] = value;
        }
        let answer = by_token(&server, &signed(&bad)).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_secrets() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let public = pair.public_key_pem();
    let secret = public.clone();
    let server = jwt(move |settings| {
        settings.algorithm = Algorithm::ES256;
        settings.secret = Some(Secret::new("the secret".to_owned()));
        settings.public_key = Some(public.clone());
    })
    .start()
    .await;
    let claims = json!({ "sub": "carol" });
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let good = encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap();
    by_token(&server, &good).await.ok();
    for secret in [&*secret, "the secret"] {
        let bad = token(Algorithm::HS256, secret, &claims);
        let answer = by_token(&server, &bad).await;
        assert_eq!(answer.refused(), (403, "M_FORBIDDEN"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_offered_that_is_not_there() {
    let server = TestServer::start().await;
    let offered = flows(&server).await;
    for absent in ["m.login.sso", "m.login.cas", "org.matrix.login.jwt"] {
        assert!(!offered.iter().any(|flow| flow == absent), "{absent}");
    }
    let nobody = User::anonymous(server.url());
    for path in [
        "/_matrix/client/v1/auth_metadata",
        "/_matrix/client/v3/login/sso/redirect?redirectUrl=https%3A%2F%2Fclient.example",
        "/_matrix/client/v3/login/sso/redirect/cas?redirectUrl=https%3A%2F%2Fclient.example",
        "/_matrix/client/v3/login/cas/ticket?redirectUrl=https%3A%2F%2Fclient.example&ticket=1",
        "/_matrix/client/v3/auth/m.login.sso/fallback/web?session=1",
    ] {
        assert_eq!(
            nobody.get(path).await.refused(),
            (404, "M_UNRECOGNIZED"),
            "{path}"
        );
    }
    let answer = by_token(&server, "a.b.c").await;
    assert_eq!(answer.refused(), (400, "M_UNKNOWN"));
}

/// A CAS server: the ticket `ticket-NAME` is one for NAME.
async fn cas() -> String {
    let validate = get(async |RawQuery(query): RawQuery| {
        let url = format!("http://cas/?{}", query.unwrap());
        let url = reqwest::Url::parse(&url).unwrap();
        let part = |name: &str| url.query_pairs().find(|(key, _)| key == name).unwrap().1;
        let (ticket, service) = (part("ticket"), part("service"));
        let start = "https://one.test/_matrix/client/r0/login/cas/ticket?";
        let name = ticket.strip_prefix("ticket-");
        let name = name.filter(|_| service.starts_with(start));
        let inside = match name {
            Some(name) => format!(
                "<cas:authenticationSuccess><cas:user>{name}</cas:user></cas:authenticationSuccess>"
            ),
            None => "<cas:authenticationFailure code='INVALID_TICKET'/>".to_owned(),
        };
        format!(
            "<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'>{inside}</cas:serviceResponse>"
        )
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/cas/proxyValidate", validate);
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/cas")
}

async fn with_cas(change: impl Fn(&mut Cas) + Send + Sync + 'static) -> TestServer {
    let url = cas().await;
    let setup = Setup::with(move |config| {
        let mut settings: Cas = serde_json::from_value(json!({ "server_url": url })).unwrap();
        change(&mut settings);
        config.cas = Some(settings);
        config.federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
    });
    setup.start().await
}

/// What a browser gets: the status, the address that it is sent to, and the page.
async fn browse(server: &TestServer, path: &str) -> (u16, String, String) {
    let policy = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().no_proxy().redirect(policy);
    let url = format!("{}{path}", server.url());
    let answer = client.build().unwrap().get(url).send().await.unwrap();
    let location = answer.headers().get("location");
    let location = location.map_or("", |location| location.to_str().unwrap());
    let (status, location) = (answer.status().as_u16(), location.to_owned());
    (status, location, answer.text().await.unwrap())
}

/// Comes back from the CAS server with a ticket.
async fn come_back(server: &TestServer, back: &str, name: &str) -> (u16, String, String) {
    let path = format!("/_matrix/client/r0/login/cas/ticket?{back}&ticket=ticket-{name}");
    browse(server, &path).await
}

fn login_token(text: &str) -> String {
    let (_, token) = text.split_once("loginToken=").unwrap();
    token.split(['"', '&']).next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cas_server_knows_the_users() {
    let server = with_cas(|_| {}).await;
    let answer = User::anonymous(server.url()).get(LOGIN).await.ok();
    let flows = answer["flows"].as_array().unwrap();
    let sso = flows
        .iter()
        .find(|flow| flow["type"] == "m.login.sso")
        .unwrap();
    assert_eq!(sso["identity_providers"][0]["id"], "cas");
    assert!(flows.iter().any(|flow| flow["type"] == "m.login.cas"));

    let back = format!("redirectUrl={}", escape(CLIENT));
    for path in ["sso/redirect", "sso/redirect/cas", "cas/redirect"] {
        let (status, to, _) = browse(&server, &format!("{LOGIN}/{path}?{back}")).await;
        assert_eq!(status, 302);
        let to = reqwest::Url::parse(&to).unwrap();
        assert_eq!(to.path(), "/cas/login");
        let service = to
            .query_pairs()
            .find(|(name, _)| name == "service")
            .unwrap()
            .1;
        let service = reqwest::Url::parse(&service).unwrap();
        assert_eq!(service.query_pairs().next().unwrap().1, CLIENT);
    }
    let other = format!("{LOGIN}/sso/redirect/other?{back}");
    assert_eq!(browse(&server, &other).await.0, 404);
    for bad in [
        "javascript%3Aalert(1)",
        "data%3Atext%2Fhtml%2Cx",
        "nowhere",
        "",
    ] {
        let path = format!("{LOGIN}/sso/redirect?redirectUrl={bad}");
        assert_eq!(browse(&server, &path).await.0, 400, "{bad}");
        let (status, ..) = come_back(&server, &format!("redirectUrl={bad}"), "x").await;
        assert_eq!(status, 400, "{bad}");
    }

    let (status, _, page) = come_back(&server, &back, "Cas_User!").await;
    assert_eq!(status, 200);
    assert!(page.contains("<b>client.example</b>") && !page.contains("loginToken=old"));
    let body = json!({ "type": "m.login.token", "token": login_token(&page) });
    let session = login(&server, body.clone()).await.ok();
    assert_eq!(session["user_id"], "@cas_user=21:one.test");
    assert_eq!(login(&server, body).await.refused(), (403, "M_FORBIDDEN"));
    // The account is there now; logging in again finds it.
    let (_, _, page) = come_back(&server, &back, "Cas_User!").await;
    let body = json!({ "type": "m.login.token", "token": login_token(&page) });
    let session = login(&server, body).await.ok();
    assert_eq!(session["user_id"], "@cas_user=21:one.test");
    // Another name is another user, also where the difference is small.
    let (status, ..) = come_back(&server, &back, "cas_user!").await;
    assert_eq!(status, 403);
    let path = format!("{LOGIN}/cas/ticket?{back}&ticket=stolen");
    assert_eq!(browse(&server, &path).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_not_taken_over() {
    let back = format!("redirectUrl={}", escape(CLIENT));
    let server = with_cas(|_| {}).await;
    server.register("alice").await;
    assert_eq!(come_back(&server, &back, "alice").await.0, 403);

    let server = with_cas(|settings| {
        settings.claim_accounts = true;
        settings.trusted_clients = vec!["https://client.example/".to_owned()];
    })
    .await;
    server.register("alice").await;
    let (status, to, _) = come_back(&server, &back, "alice").await;
    assert_eq!(status, 302);
    assert!(
        to.starts_with("https://client.example/?a=b&loginToken="),
        "{to}"
    );
    let body = json!({ "type": "m.login.token", "token": login_token(&to) });
    assert_eq!(
        login(&server, body).await.ok()["user_id"],
        "@alice:one.test"
    );
    let elsewhere = format!("redirectUrl={}", escape("https://client.example.evil/"));
    assert_eq!(come_back(&server, &elsewhere, "alice").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_cas_server_confirm_there() {
    let server = with_cas(|_| {}).await;
    let back = format!("redirectUrl={}", escape(CLIENT));
    let log_in = async || {
        let (_, _, page) = come_back(&server, &back, "carol").await;
        let body = json!({ "type": "m.login.token", "token": login_token(&page) });
        User::new(server.url(), &login(&server, body).await.ok())
    };
    let (carol, other) = (log_in().await, log_in().await);
    let device = format!("/_matrix/client/v3/devices/{}", other.device_id);
    let delete = async |auth: Value| {
        let body = json!({ "auth": auth }).to_string().into_bytes();
        carol
            .request(http::Method::DELETE, &device, Some(body))
            .await
    };
    let answer = carol.delete(&device).await;
    assert_eq!(answer.status, 401);
    let flows = answer.body["flows"].as_array().unwrap();
    assert!(
        flows.contains(&json!({ "stages": ["m.login.sso"] })),
        "{flows:?}"
    );
    let session = answer.body["session"].as_str().unwrap().to_owned();
    let page = format!("/_matrix/client/v3/auth/m.login.sso/fallback/web?session={session}");
    let (status, _, page) = browse(&server, &page).await;
    assert_eq!(status, 200);
    assert!(page.contains("/cas/login?service="));

    let confirm = format!("session={session}");
    assert_eq!(come_back(&server, &confirm, "mallory").await.0, 403);
    assert_eq!(delete(json!({ "session": session })).await.status, 401);
    let (status, _, page) = come_back(&server, &confirm, "carol").await;
    assert_eq!(status, 200);
    assert!(page.contains("onAuthDone"));
    delete(json!({ "session": session })).await.ok();
    let whoami = other.get("/_matrix/client/v3/account/whoami").await;
    assert_eq!(whoami.refused(), (401, "M_UNKNOWN_TOKEN"));
}
