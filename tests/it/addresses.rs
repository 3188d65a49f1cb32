//! E-mail addresses: showing that one is one's own, and what it is good for.

use serde_json::{Value, json};
use sotto_homeserver::config::{Email, SmtpEncryption};
use sotto_tests::{Setup, TestServer, User};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

const ADD: &str = "/_matrix/client/v3/account/3pid/email/requestToken";
const FORGOTTEN: &str = "/_matrix/client/v3/account/password/email/requestToken";
const REGISTER: &str = "/_matrix/client/v3/register/email/requestToken";
const ACCOUNT: &str = "/_matrix/client/v3/account/3pid";

/// A mail server as they were before `EHLO`: it knows `HELO` only. What comes is sent on.
async fn take_mail(stream: TcpStream, mails: mpsc::UnboundedSender<String>) {
    let mut stream = BufStream::new(stream);
    let mut data: Option<String> = None;
    stream.write_all(b"220 mail.test\r\n").await.unwrap();
    stream.flush().await.unwrap();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let answer = match &mut data {
            Some(text) if line == ".\r\n" => {
                mails.send(std::mem::take(text)).ok();
                data = None;
                "250 taken\r\n"
            }
            Some(text) => {
                text.push_str(&line);
                continue;
            }
            None if line == "DATA\r\n" => {
                data = Some(String::new());
                "354 go on\r\n"
            }
            None if line.starts_with("EHLO") => "500 what?\r\n",
            None if line.starts_with("QUIT") => "221 bye\r\n",
            None => "250 fine\r\n",
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

/// A server that sends mail, and the mails.
#[expect(
    clippy::disallowed_methods,
    reason = "the mail server ends with the test"
)]
async fn with_mail() -> (TestServer, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let smtp = listener.local_addr().unwrap().to_string();
    let (sender, mails) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(take_mail(stream, sender.clone()));
        }
    });
    let setup = Setup::with(move |config| {
        config.email = Some(Email {
            smtp: smtp.clone(),
            from: "noreply@one.test".to_owned(),
            encryption: SmtpEncryption::None,
            username: None,
            password: None,
        });
    });
    (setup.start().await, mails)
}

fn ask(email: &str, secret: &str, attempt: u32) -> Value {
    json!({ "email": email, "client_secret": secret, "send_attempt": attempt })
}

/// Asks for a mail and follows the link in it; what shows that the address is one's own.
async fn shown(
    user: &User,
    mails: &mut mpsc::UnboundedReceiver<String>,
    path: &str,
    (email, secret): (&str, &str),
) -> Value {
    let answer = user.post(path, &ask(email, secret, 1)).await.ok();
    let mail = mails.recv().await.unwrap();
    assert!(
        mail.contains(&format!("To: <{}>", email.to_lowercase())),
        "{mail}"
    );
    let mut words = mail.split_whitespace();
    let link = words
        .find(|word| word.starts_with("https://one.test/"))
        .unwrap();
    let path = link.strip_prefix("https://one.test").unwrap();
    // A link with another token confirms nothing.
    let (wrong, _) = path.rsplit_once('=').unwrap();
    assert_eq!(user.get(&format!("{wrong}=x")).await.status, 400);
    assert_eq!(user.get(path).await.status, 200);
    json!({ "sid": answer["sid"], "client_secret": secret })
}

fn password(name: &str, word: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": word,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_added_and_good_for_logging_in() {
    let (server, mut mails) = with_mail().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let nobody = User::anonymous(server.url());
    let mut body = shown(&alice, &mut mails, ADD, ("Alice@Example.org", "secret1")).await;
    let add = format!("{ACCOUNT}/add");
    assert_eq!(alice.post(&add, &body).await.status, 401);
    body["auth"] = password("alice", "the password of alice");
    alice.post(&add, &body).await.ok();
    let owned = alice.get(ACCOUNT).await.ok();
    assert_eq!(owned["threepids"][0]["address"], "alice@example.org");
    assert_eq!(owned["threepids"][0]["medium"], "email");
    assert_eq!(bob.get(ACCOUNT).await.ok(), json!({}));
    // Nobody else can have it.
    let refused = bob.post(ADD, &ask("alice@example.org", "secret2", 1)).await;
    assert_eq!(refused.refused(), (400, "M_THREEPID_IN_USE"));
    let by_address = |address: &str| {
        json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.thirdparty", "medium": "email", "address": address },
            "password": "the password of alice",
        })
    };
    let login = "/_matrix/client/v3/login";
    let session = nobody
        .post(login, &by_address("ALICE@example.org"))
        .await
        .ok();
    assert_eq!(session["user_id"], alice.user_id);
    let refused = nobody.post(login, &by_address("other@example.org")).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    let delete = json!({ "medium": "email", "address": "alice@example.org" });
    let answer = alice.post(&format!("{ACCOUNT}/delete"), &delete).await.ok();
    assert_eq!(answer["id_server_unbind_result"], "no-support");
    let refused = nobody.post(login, &by_address("alice@example.org")).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_added_as_it_was_before() {
    let (server, mut mails) = with_mail().await;
    let alice = server.register("alice").await;
    let creds = shown(&alice, &mut mails, ADD, ("alice@example.org", "secret1")).await;
    let body = json!({ "three_pid_creds": creds });
    alice.post(ACCOUNT, &body).await.ok();
    let owned = alice.get(ACCOUNT).await.ok();
    assert_eq!(owned["threepids"][0]["address"], "alice@example.org");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_shown_by_whoever_reads_its_mail() {
    let (server, mut mails) = with_mail().await;
    let alice = server.register("alice").await;
    let request = ask("alice@example.org", "secret1", 1);
    let sid = alice.post(ADD, &request).await.ok()["sid"].clone();
    mails.recv().await.unwrap();
    // The same again sends nothing; a new attempt does.
    assert_eq!(alice.post(ADD, &request).await.ok()["sid"], sid);
    let again = ask("alice@example.org", "secret1", 2);
    assert_eq!(alice.post(ADD, &again).await.ok()["sid"], sid);
    mails.recv().await.unwrap();
    assert!(mails.try_recv().is_err());
    for secret in ["secret1", "other"] {
        let body = json!({
            "sid": sid,
            "client_secret": secret,
            "auth": password("alice", "the password of alice"),
        });
        let refused = alice.post(&format!("{ACCOUNT}/add"), &body).await;
        assert_eq!(refused.refused(), (400, "M_THREEPID_AUTH_FAILED"));
    }
    for (email, next, refusal) in [
        ("alice", Value::Null, (400, "M_INVALID_PARAM")),
        ("a b@example.org", Value::Null, (400, "M_INVALID_PARAM")),
        (
            "a@example.org",
            json!("javascript:x"),
            (400, "M_INVALID_PARAM"),
        ),
    ] {
        let mut body = ask(email, "secret", 1);
        body["next_link"] = next;
        assert_eq!(alice.post(ADD, &body).await.refused(), refusal, "{email}");
    }
    let none = TestServer::start().await;
    let nobody = User::anonymous(none.url());
    let refused = nobody.post(ADD, &request).await;
    assert_eq!(refused.refused(), (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_made_with_an_address_and_found_again_by_it() {
    let (server, mut mails) = with_mail().await;
    let nobody = User::anonymous(server.url());
    let address = ("carol@example.org", "secret1");
    let creds = shown(&nobody, &mut mails, REGISTER, address).await;
    let auth = json!({ "type": "m.login.email.identity", "threepid_creds": creds });
    let body = json!({ "username": "carol", "password": "first", "auth": auth });
    let register = "/_matrix/client/v3/register";
    let answer = nobody.post(register, &body).await.ok();
    let carol = User::new(server.url(), &answer);
    let owned = carol.get(ACCOUNT).await.ok();
    assert_eq!(owned["threepids"][0]["address"], "carol@example.org");
    let mut second = body;
    second["username"] = "dave".into();
    let refused = nobody.post(register, &second).await;
    assert_eq!(refused.refused(), (400, "M_THREEPID_IN_USE"));
    // A forgotten password.
    let refused = nobody
        .post(FORGOTTEN, &ask("x@example.org", "secret", 1))
        .await;
    assert_eq!(refused.refused(), (400, "M_THREEPID_NOT_FOUND"));
    let creds = shown(
        &nobody,
        &mut mails,
        FORGOTTEN,
        ("carol@example.org", "secret2"),
    )
    .await;
    let auth = json!({ "type": "m.login.email.identity", "threepid_creds": creds });
    let body = json!({ "new_password": "second", "auth": auth });
    nobody
        .post("/_matrix/client/v3/account/password", &body)
        .await
        .ok();
    let whoami = carol.get("/_matrix/client/v3/account/whoami").await;
    assert_eq!(whoami.refused(), (401, "M_UNKNOWN_TOKEN"));
    let login = "/_matrix/client/v3/login";
    let refused = nobody.post(login, &password("carol", "first")).await;
    assert_eq!(refused.refused(), (403, "M_FORBIDDEN"));
    nobody.post(login, &password("carol", "second")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_servers_are_asked_through_the_guard() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for id_server in ["127.0.0.1:1", "a/b", "user@host", ""] {
        let body = json!({
            "id_server": id_server,
            "id_access_token": "token",
            "sid": "sid",
            "client_secret": "secret",
        });
        let refused = alice.post(&format!("{ACCOUNT}/bind"), &body).await;
        assert_eq!(refused.refused(), (400, "M_INVALID_PARAM"), "{id_server}");
        let body = json!({ "id_server": id_server, "medium": "email", "address": "a@b.c" });
        let answer = alice.post(&format!("{ACCOUNT}/unbind"), &body).await.ok();
        assert_eq!(answer["id_server_unbind_result"], "no-support");
    }
}
