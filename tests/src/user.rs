//! People who use a server over HTTP.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use http::{Method, StatusCode};
use serde_json::{Value, json};

/// Somebody with a device, or nobody in particular.
#[derive(Clone, Debug)]
pub struct User {
    http: reqwest::Client,
    base: String,
    /// The id.
    pub user_id: String,
    /// The device.
    pub device_id: String,
    /// The access token; empty for nobody.
    pub token: String,
}

/// What the server said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body; null if it was not JSON.
    pub body: Value,
}

impl Answer {
    /// The body of a success. Often only that it was one matters.
    #[expect(clippy::must_use_candidate, reason = "called for its assertion")]
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.body);
        self.body
    }

    /// The status and the errcode of a refusal.
    #[must_use]
    pub fn refused(&self) -> (u16, &str) {
        assert!(
            !self.status.is_success(),
            "unexpected success: {}",
            self.body
        );
        (
            self.status.as_u16(),
            self.body["errcode"].as_str().unwrap_or("none"),
        )
    }
}

impl User {
    /// Nobody: requests without a token.
    #[must_use]
    pub fn anonymous(base: String) -> Self {
        let text = String::new;
        let http = client();
        Self {
            http,
            base,
            user_id: text(),
            device_id: text(),
            token: text(),
        }
    }

    /// The user of a session that the server opened.
    #[must_use]
    pub fn new(base: String, session: &Value) -> Self {
        let text = |name: &str| session[name].as_str().expect("a session").to_owned();
        Self {
            http: client(),
            base,
            user_id: text("user_id"),
            device_id: text("device_id"),
            token: text("access_token"),
        }
    }

    /// The same client with another token; an empty one is none.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await
    }

    /// `POST`
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path, Some(body.to_string().into_bytes()))
            .await
    }

    /// `PUT`
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::PUT, path, Some(body.to_string().into_bytes()))
            .await
    }

    /// `DELETE`
    pub async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, None).await
    }

    /// Any request with any body.
    pub async fn request(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Answer {
        self.try_request(method, path, body)
            .await
            .expect("the server answers")
    }

    /// As [`User::request`], where the server may be gone.
    pub async fn try_request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Option<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let response = request.send().await.ok()?;
        let status = response.status();
        let bytes = response.bytes().await.ok()?;
        Some(Answer {
            status,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    /// Makes a room; its id.
    pub async fn create_room(&self, body: &Value) -> String {
        let answer = self.post("/_matrix/client/v3/createRoom", body).await.ok();
        answer["room_id"].as_str().expect("a room").to_owned()
    }

    /// Joins a room.
    pub async fn join(&self, room_id: &str) -> Answer {
        self.post(
            &format!("/_matrix/client/v3/join/{}", escape(room_id)),
            &json!({}),
        )
        .await
    }

    /// Joins a room through another server.
    pub async fn join_via(&self, room_id: &str, via: &str) -> Answer {
        let path = format!(
            "/_matrix/client/v3/join/{}?via={via}&server_name={via}",
            escape(room_id)
        );
        self.post(&path, &json!({})).await
    }

    /// Invites somebody.
    pub async fn invite(&self, room_id: &str, user_id: &str) -> Answer {
        self.post(&room(room_id, "invite"), &json!({ "user_id": user_id }))
            .await
    }

    /// Sends a text; the event id.
    pub async fn send(&self, room_id: &str, text: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": text });
        let answer = self
            .send_event(room_id, "m.room.message", &content)
            .await
            .ok();
        answer["event_id"].as_str().expect("an event id").to_owned()
    }

    /// Sends an event under a new transaction id.
    pub async fn send_event(&self, room_id: &str, event_type: &str, content: &Value) -> Answer {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let txn = NEXT.fetch_add(1, Ordering::Relaxed);
        self.put(
            &room(room_id, &format!("send/{event_type}/txn{txn}")),
            content,
        )
        .await
    }

    /// Syncs.
    pub async fn sync(&self, since: Option<&str>, timeout: u64) -> Value {
        let since = since
            .map(|since| format!("&since={since}"))
            .unwrap_or_default();
        self.get(&format!("/_matrix/client/v3/sync?timeout={timeout}{since}"))
            .await
            .ok()
    }

    /// Syncs from `since` on until `wanted` gives something, for at most 30 seconds of waiting.
    pub async fn sync_until<T>(
        &self,
        since: &mut Option<String>,
        mut wanted: impl FnMut(&Value) -> Option<T>,
    ) -> T {
        for _ in 0..60 {
            let answer = self.sync(since.as_deref(), 500).await;
            *since = answer["next_batch"].as_str().map(ToOwned::to_owned);
            if let Some(found) = wanted(&answer) {
                return found;
            }
        }
        panic!("{} waited in vain", self.user_id);
    }
}

/// The path of something in a room.
#[must_use]
pub fn room(room_id: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", escape(room_id))
}

/// Percent-encodes what a path must not contain.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a string takes everything");
        }
    }
    escaped
}

fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client")
}
