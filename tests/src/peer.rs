//! What a server that is not ours says and asks: anything, signed with its key.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::Method;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId,
    ServerName, UserId, events::StateEventType, room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json, value::to_raw_value};
use sotto_federation::{
    client::tls_config,
    room::{
        auth::auth_types,
        builder::{Basis, Hashes, Template, build},
        pdu::Pdu,
        signing::SigningKey,
    },
    x_matrix::SignedRequest,
};

use crate::{Answer, TestServer, escape};

/// A server by its name and its key, which asks servers of ours.
#[derive(Clone)]
pub struct Peer {
    name: OwnedServerName,
    key: Arc<SigningKey>,
    tls: rustls::ClientConfig,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// An event as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its id.
    pub id: OwnedEventId,
    /// What is sent.
    pub json: Value,
}

/// A room as a peer that joined it knows it.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The room.
    pub room_id: OwnedRoomId,
    rules: RoomVersionRules,
    state: BTreeMap<(StateEventType, String), OwnedEventId>,
    /// What the next event builds on.
    pub tip: Vec<OwnedEventId>,
    /// How deep the newest event is.
    pub depth: i64,
}

/// What an event is to say.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// Who says it.
    pub sender: &'a str,
    /// The type.
    pub kind: &'a str,
    /// The state key of a state event.
    pub state_key: Option<&'a str>,
    /// The content.
    pub content: Value,
}

impl<'a> Draft<'a> {
    /// A text.
    #[must_use]
    pub fn text(sender: &'a str, body: &str) -> Self {
        Self {
            sender,
            kind: "m.room.message",
            state_key: None,
            content: json!({ "msgtype": "m.text", "body": body }),
        }
    }

    /// A part of the state.
    #[must_use]
    pub fn state(sender: &'a str, kind: &'a str, state_key: &'a str, content: Value) -> Self {
        Self {
            sender,
            kind,
            state_key: Some(state_key),
            content,
        }
    }
}

impl Peer {
    /// What speaks with the name and the key of a server of ours, whether or not it runs.
    #[must_use]
    pub fn of(server: &TestServer) -> Self {
        let text = std::fs::read_to_string(server.data_dir().join("signing.key"));
        let text = text.expect("the server had a key");
        let parts: Vec<_> = text.split_whitespace().collect();
        let key = SigningKey::from_seed(parts[1], parts[2]).expect("a key");
        Self::new(server.name(), Arc::new(key), server.directory())
    }

    pub(crate) fn new(name: &ServerName, key: Arc<SigningKey>, directory: &Path) -> Self {
        let authority = std::fs::read(directory.join("ca.crt")).expect("an authority");
        Self {
            name: name.to_owned(),
            key,
            tls: tls_config(&authority).expect("TLS"),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    pub(crate) fn key(&self) -> &Arc<SigningKey> {
        &self.key
    }

    /// A signed request.
    pub async fn ask(
        &self,
        to: &TestServer,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        self.ask_as(&self.name, to, method, path, body).await
    }

    /// A request that says that another server sends it.
    pub async fn ask_as(
        &self,
        origin: &ServerName,
        to: &TestServer,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let bytes = body.map(|body| body.to_string().into_bytes());
        let answer = self.try_ask(origin, to, method, path, bytes).await;
        answer.expect("the server answers")
    }

    /// A request with any body, also one that is no JSON and cannot be signed. `None` if the server ends the
    /// connection.
    pub async fn try_ask(
        &self,
        origin: &ServerName,
        to: &TestServer,
        method: Method,
        path: &str,
        bytes: Option<Vec<u8>>,
    ) -> Option<Answer> {
        let signed = SignedRequest {
            method: method.as_str(),
            uri: path,
            origin,
            destination: to.name(),
            body: bytes.as_deref().unwrap_or_default(),
        };
        let header = signed.sign(&self.key).map(|header| header.to_string());
        let header = header.unwrap_or_else(|_| self.unsigned(to));
        let address: SocketAddr = to.federation_address();
        let url = format!("https://{}:{}{path}", to.name(), address.port());
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .resolve(to.name().as_str(), address)
            .no_proxy()
            .build()
            .expect("a client");
        let mut request = http.request(method, url).header("authorization", header);
        if let Some(bytes) = bytes {
            request = request
                .header("content-type", "application/json")
                .body(bytes);
        }
        let response = request.send().await.ok()?;
        let status = response.status();
        let bytes = response.bytes().await.ok()?;
        Some(Answer {
            status,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    /// What a request says that nobody could sign.
    fn unsigned(&self, to: &TestServer) -> String {
        let (origin, destination, key) = (&self.name, to.name(), self.key.id());
        format!(
            "X-Matrix origin=\"{origin}\",destination=\"{destination}\",key=\"{key}\",sig=\"AAAA\""
        )
    }

    /// `GET`
    pub async fn get(&self, to: &TestServer, path: &str) -> Answer {
        self.ask(to, Method::GET, path, None).await
    }

    /// A transaction with a new id.
    pub async fn send(&self, to: &TestServer, pdus: &[&Made], edus: &[Value]) -> Answer {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let txn = NEXT.fetch_add(1, Ordering::Relaxed);
        let pdus: Vec<_> = pdus.iter().map(|made| made.json.clone()).collect();
        self.send_as(to, &format!("t{txn}"), &pdus, edus).await
    }

    /// A transaction with this id.
    pub async fn send_as(
        &self,
        to: &TestServer,
        txn: &str,
        pdus: &[Value],
        edus: &[Value],
    ) -> Answer {
        let body = json!({
            "origin": self.name,
            "origin_server_ts": 1_700_000_000_000_u64,
            "pdus": pdus,
            "edus": edus,
        });
        let path = format!("/_matrix/federation/v1/send/{txn}");
        self.ask(to, Method::PUT, &path, Some(&body)).await
    }

    /// Sends one event and tells the error that it got, if any.
    pub async fn deliver(&self, to: &TestServer, made: &Made) -> Option<String> {
        let answer = self.send(to, &[made], &[]).await.ok();
        answer["pdus"][made.id.as_str()]["error"]
            .as_str()
            .map(ToOwned::to_owned)
    }

    /// Joins a room of a server of ours.
    pub async fn join(&self, to: &TestServer, room_id: &str, user: &str) -> Seat {
        self.join_asking(to, room_id, user, "").await.0
    }

    /// As [`Peer::join`], with a query that says how the room is to be told; also gives what was told.
    pub async fn join_asking(
        &self,
        to: &TestServer,
        room_id: &str,
        user: &str,
        query: &str,
    ) -> (Seat, Value) {
        let (room, who) = (escape(room_id), escape(user));
        let versions: Vec<_> = (1..=12).map(|version| format!("ver={version}")).collect();
        let versions = versions.join("&");
        let path = format!("/_matrix/federation/v1/make_join/{room}/{who}?{versions}");
        let made = self.get(to, &path).await.ok();
        let version = made["room_version"].as_str().unwrap_or("1");
        let version = RoomVersionId::try_from(version).expect("a version");
        let rules = version.rules().expect("a known version");
        let ids = |name: &str| -> Vec<OwnedEventId> {
            serde_json::from_value(made["event"][name].clone()).expect("event ids")
        };
        let depth = made["event"]["depth"].as_u64().expect("a depth");
        let basis = Basis {
            room_id: Some(RoomId::parse(room_id).expect("a room id")),
            prev_events: ids("prev_events"),
            auth_events: ids("auth_events"),
            depth,
            hashes: Hashes::default(),
        };
        let join = json!({ "membership": "join" });
        let draft = Draft::state(user, "m.room.member", user, join);
        let join = self.build(&draft, &basis, &rules);
        let event = escape(join.id.as_str());
        let path = format!("/_matrix/federation/v2/send_join/{room}/{event}{query}");
        let told = self
            .ask(to, Method::PUT, &path, Some(&join.json))
            .await
            .ok();
        let mut seat = Seat {
            room_id: RoomId::parse(room_id).expect("a room id"),
            rules,
            state: BTreeMap::new(),
            tip: vec![join.id.clone()],
            depth: i64::try_from(depth).expect("a depth"),
        };
        for event in told["state"].as_array().expect("a state") {
            let raw = to_raw_value(event).expect("JSON");
            let pdu = Pdu::parse(&raw, &seat.rules).expect("an event");
            let key = event["state_key"].as_str().expect("a state event");
            seat.has(event["type"].as_str().expect("a type"), key, pdu.event_id());
        }
        seat.has("m.room.member", user, &join.id);
        (seat, told)
    }

    /// An honest event on the tip of the room, which it becomes.
    pub fn make(&self, seat: &mut Seat, draft: &Draft<'_>) -> Made {
        let tip = seat.tip.clone();
        let made = self.make_after(seat, &tip, draft);
        seat.depth += 1;
        seat.tip = vec![made.id.clone()];
        if let Some(key) = draft.state_key {
            seat.has(draft.kind, key, &made.id);
        }
        made
    }

    /// An event on any others; the room stays as it is.
    #[must_use]
    pub fn make_after(&self, seat: &Seat, prev: &[OwnedEventId], draft: &Draft<'_>) -> Made {
        let content = to_raw_value(&draft.content).expect("JSON");
        let sender = <&UserId>::try_from(draft.sender).expect("a user id");
        let types = auth_types(
            &draft.kind.into(),
            sender,
            draft.state_key,
            &content,
            &seat.rules,
        );
        let types = types.expect("an event that can be allowed");
        let auth = types.iter().filter_map(|key| seat.state.get(key));
        let basis = Basis {
            room_id: Some(seat.room_id.clone()),
            prev_events: prev.to_vec(),
            auth_events: auth.cloned().collect(),
            depth: u64::try_from(seat.depth + 1).expect("a depth"),
            hashes: Hashes::default(),
        };
        self.build(draft, &basis, &seat.rules)
    }

    pub(crate) fn build(&self, draft: &Draft<'_>, basis: &Basis, rules: &RoomVersionRules) -> Made {
        let template = Template {
            event_type: draft.kind.into(),
            content: to_raw_value(&draft.content).expect("JSON"),
            state_key: draft.state_key.map(ToOwned::to_owned),
            redacts: None,
            origin_server_ts: None,
        };
        let sender = <&UserId>::try_from(draft.sender).expect("a user id");
        let now = MilliSecondsSinceUnixEpoch::now();
        let built = build(template, basis, sender, now, rules, &self.name, &self.key);
        let built = built.expect("an event");
        Made {
            id: built.pdu().event_id().to_owned(),
            json: serde_json::from_str(built.pdu().json().get()).expect("JSON"),
        }
    }
}

impl Seat {
    /// A room at this point, with a state that is told by [`Seat::has`].
    pub(crate) fn new(
        room_id: &RoomId,
        rules: RoomVersionRules,
        tip: Vec<OwnedEventId>,
        depth: i64,
    ) -> Self {
        Self {
            room_id: room_id.to_owned(),
            rules,
            state: BTreeMap::new(),
            tip,
            depth,
        }
    }

    /// The same place, as of one who knows nothing of what allows anything.
    #[must_use]
    pub fn without_state(&self) -> Self {
        let mut seat = self.clone();
        seat.state.clear();
        seat
    }

    /// The events of the state.
    #[must_use]
    pub fn state_ids(&self) -> Vec<OwnedEventId> {
        self.state.values().cloned().collect()
    }

    /// The room has this in its state now.
    pub fn has(&mut self, kind: &str, state_key: &str, id: &ruma::EventId) {
        let key = (StateEventType::from(kind), state_key.to_owned());
        self.state.insert(key, id.to_owned());
    }
}
