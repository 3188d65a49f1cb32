//! A server of this repository in a process of its own, and people who use it without any SDK: what the room list of
//! matrix-sdk is compared with.
//!
//! This is a workspace of its own, because matrix-sdk needs other versions of ruma and vodozemac than we do.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use matrix_sdk::reqwest::{Client, Method, Url};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// The password of everybody.
pub const PASSWORD: &str = "a password";

/// A running server, killed when it goes.
#[derive(Debug)]
pub struct Server {
    binary: PathBuf,
    directory: TempDir,
    port: u16,
    child: Child,
}

impl Server {
    /// Starts the binary that `SOTTO_BINARY` names, else that of a debug build, on an empty directory.
    pub async fn start() -> Result<Self> {
        let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../target/debug/sotto");
        let binary = std::env::var_os("SOTTO_BINARY").unwrap_or_else(|| built.into());
        let (binary, directory) = (PathBuf::from(binary), TempDir::new()?);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let child = spawn(&binary, &directory, port)?;
        let server = Self {
            binary,
            directory,
            port,
            child,
        };
        server.wait().await?;
        Ok(server)
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Kills it.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Starts it again on the same data.
    pub async fn resume(&mut self) -> Result<()> {
        self.child = spawn(&self.binary, &self.directory, self.port)?;
        self.wait().await
    }

    /// Registers somebody.
    pub async fn register(&self, name: &str) -> Result<Person> {
        let nobody = Person {
            base: self.url(),
            http: Client::new(),
            user_id: String::new(),
            token: None,
        };
        let body =
            json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let session = nobody.post("v3/register", &body).await?;
        let text = |name: &str| session[name].as_str().map(ToOwned::to_owned);
        Ok(Person {
            user_id: text("user_id").context("no user id")?,
            token: text("access_token"),
            ..nobody
        })
    }

    async fn wait(&self) -> Result<()> {
        let http = Client::new();
        for _ in 0..200 {
            if http
                .get(format!("{}/health", self.url()))
                .send()
                .await
                .is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the server does not answer")
    }
}

fn spawn(binary: &PathBuf, directory: &TempDir, port: u16) -> Result<Child> {
    let mut command = Command::new(binary);
    command
        .args([
            "--registration",
            "open",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--data-dir",
        ])
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

/// Somebody with an access token.
#[derive(Clone, Debug)]
pub struct Person {
    base: String,
    http: Client,
    /// Who.
    pub user_id: String,
    token: Option<String>,
}

impl Person {
    /// A request that must succeed, below `/_matrix/client`.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = Url::parse(&format!("{}/_matrix/client/{path}", self.base))?;
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// `POST`, as [`Person::call`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Makes a room and invites somebody; its id.
    pub async fn create_room(&self, name: &str, invite: &Person) -> Result<String> {
        let body = json!({ "name": name, "preset": "private_chat", "invite": [invite.user_id] });
        let answer = self.post("v3/createRoom", &body).await?;
        Ok(answer["room_id"].as_str().context("no room id")?.to_owned())
    }

    /// Joins, leaves …
    pub async fn enter(&self, room_id: &str, how: &str) -> Result<Value> {
        self.post(&format!("v3/rooms/{}/{how}", escape(room_id)), &json!({}))
            .await
    }

    /// Says something, maybe to somebody; the id of the event.
    pub async fn say(&self, room_id: &str, text: &str, to: Option<&Person>) -> Result<String> {
        static TRANSACTIONS: AtomicU64 = AtomicU64::new(0);
        let mentioned: Vec<&str> = to.iter().map(|person| person.user_id.as_str()).collect();
        let body =
            json!({ "msgtype": "m.text", "body": text, "m.mentions": { "user_ids": mentioned } });
        let transaction = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let room_id = escape(room_id);
        let path = format!("v3/rooms/{room_id}/send/m.room.message/{transaction}");
        let answer = self.call(Method::PUT, &path, Some(&body)).await?;
        Ok(answer["event_id"]
            .as_str()
            .context("no event id")?
            .to_owned())
    }

    /// Says that everything up to an event is read.
    pub async fn read(&self, room_id: &str, event_id: &str) -> Result<()> {
        let path = format!(
            "v3/rooms/{}/receipt/m.read/{}",
            escape(room_id),
            escape(event_id)
        );
        self.post(&path, &json!({})).await.map(drop)
    }

    /// A first `/sync`.
    pub async fn sync(&self) -> Result<Value> {
        let filter = json!({ "room": { "timeline": { "limit": 50 } } }).to_string();
        let path = format!("v3/sync?timeout=0&filter={}", escape(&filter));
        self.call(Method::GET, &path, None).await
    }
}

/// A text as a part of a path or a query.
pub fn escape(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
