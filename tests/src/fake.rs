//! A server that is not ours: it has one room, and says about it what a test wants.

mod answers;
mod membership;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures_util::stream;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId,
    UserId, canonical_json::redact, events::TimelineEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json, value::to_raw_value};
use sotto_federation::{
    room::{
        builder::{Basis, Hashes, Template, build},
        signing::SigningKey,
    },
    server_keys::own_response,
};
use tokio::task::JoinHandle;

use crate::{Draft, Made, Peer, Seat, TestServer, tls::Tls};

/// Where a policy server is asked.
const SIGN: &str = "/_matrix/policy/v1/sign";

/// What the server does that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    None,
    /// Answers `make_join` with an event that would give its own user all power.
    MakeJoinOfOtherEvent,
    /// Answers `make_join` with another room version than the room has.
    OtherVersion,
    /// Gives a state without the create event.
    NoCreateEvent,
    /// Gives a state with an event that it did not sign.
    ForgedEvent,
    /// Gives a state by which the user is banned.
    Banned,
    /// Refuses every transaction.
    RefuseTransactions,
    /// Refuses transactions with an event that says `poison`.
    RefusePoison,
    /// Takes its time to tell of its users' devices.
    DelayDevices,
    /// Does not tell of its users' devices.
    RefuseDevices,
    /// Says of its keys that they were valid until long ago.
    OldKeys,
    /// Never ends what it says, whatever is asked.
    Endless,
    /// As a policy server, recommends nothing.
    RefuseToSign,
    /// As a policy server, thinks about who joins for a while.
    DelayJoins,
    /// Says of whoever wants to join that they are not logged in.
    NotLoggedIn,
    /// Knows the versions of no rooms to which its users are invited.
    UnknownVersions,
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct FakeServer {
    shared: Arc<Shared>,
    peer: Peer,
    task: JoinHandle<()>,
}

struct Shared {
    name: OwnedServerName,
    key: Arc<SigningKey>,
    /// With which it signs as a policy server.
    policy_key: SigningKey,
    rules: RoomVersionRules,
    version: RoomVersionId,
    room_id: OwnedRoomId,
    /// The state, in the order in which it was made.
    state: Vec<Made>,
    /// What events of the first room versions refer to that state by.
    references: Hashes,
    lie: Mutex<Lie>,
    /// What it gives to whoever wants to join, leave or knock, or invites, in place of what fits.
    template: Mutex<Option<Value>>,
    /// What `send_join`, `send_leave` and `send_knock` got.
    joins: Mutex<Vec<Value>>,
    /// The events with which its users were invited.
    invites: Mutex<Vec<Value>>,
    /// What it says where words are in the path, and where it was asked.
    answers: Mutex<Vec<(String, Value)>>,
    asked: Mutex<Vec<(String, Value)>>,
    /// Where its files are.
    elsewhere: Mutex<String>,
    /// The events and the other units of the transactions that came.
    received: Mutex<Vec<Value>>,
    /// How much of an endless answer was taken.
    endless: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl FakeServer {
    /// Takes the place of a server that was stopped: its name, address, certificate and key. It has a
    /// public room of the version.
    pub async fn replace(server: &TestServer, version: RoomVersionId) -> Self {
        let peer = Peer::of(server);
        let (name, key) = (server.name().to_owned(), peer.key().clone());
        let rules = version.rules().expect("a known version");
        let user = UserId::parse(format!("@mallory:{name}")).expect("a user id");
        let (room_id, state, references) = make_room(&user, &key, &version, &rules);
        let shared = Arc::new(Shared {
            name: name.clone(),
            key,
            policy_key: policy_key(),
            rules,
            version,
            room_id,
            state,
            references,
            lie: Mutex::new(Lie::None),
            template: Mutex::default(),
            joins: Mutex::default(),
            invites: Mutex::default(),
            answers: Mutex::default(),
            asked: Mutex::default(),
            elsewhere: Mutex::default(),
            received: Mutex::default(),
            endless: Arc::default(),
        });
        let router = Router::new()
            .route("/_matrix/key/v2/server", get(keys))
            .merge(membership::router())
            .merge(answers::files())
            .route("/_matrix/federation/v1/send/{txn}", put(transaction))
            .route("/_matrix/federation/v1/user/devices/{user}", get(devices))
            .route(SIGN, post(sign))
            .fallback(answers::prepared)
            .layer(middleware::from_fn_with_state(shared.clone(), endless))
            .with_state(shared.clone());
        let tls = Tls::bind(
            server.federation_address(),
            server.directory(),
            name.as_str(),
        )
        .await;
        #[expect(clippy::disallowed_methods, reason = "ended by the drop of the value")]
        let task = tokio::spawn(async move {
            axum::serve(tls, router).await.ok();
        });
        Self { shared, peer, task }
    }

    /// What the server says and asks.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The room.
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        &self.shared.room_id
    }

    /// The version of the room.
    #[must_use]
    pub fn version(&self) -> &RoomVersionId {
        &self.shared.version
    }

    /// The state of the room, in the order in which it was made.
    #[must_use]
    pub fn state(&self) -> Vec<Value> {
        self.shared
            .state
            .iter()
            .map(|event| event.json.clone())
            .collect()
    }

    /// An invite to the room.
    #[must_use]
    pub fn invite(&self, sender: &str, target: &str) -> (&RoomId, Made) {
        let shared = &self.shared;
        let hashed = shared.rules.authorization.room_create_event_id_as_room_id;
        let last = shared.state.last().map(|event| event.id.clone());
        let auth = shared.state.iter().take(4).skip(usize::from(hashed));
        let basis = Basis {
            room_id: Some(shared.room_id.clone()),
            prev_events: last.into_iter().collect(),
            auth_events: auth.map(|event| event.id.clone()).collect(),
            depth: 7,
            hashes: shared.references.clone(),
        };
        let invite = json!({ "membership": "invite" });
        let draft = Draft::state(sender, "m.room.member", target, invite);
        (
            &shared.room_id,
            self.peer.build(&draft, &basis, &shared.rules),
        )
    }

    /// How many bytes of endless answers were taken.
    #[must_use]
    pub fn endless(&self) -> usize {
        self.shared.endless.load(Ordering::Relaxed)
    }

    /// The key by which a room knows it as its policy server.
    #[must_use]
    pub fn policy_key(&self) -> String {
        self.shared.policy_key.public_key_base64()
    }

    /// Begins to lie.
    pub fn lie(&self, lie: Lie) {
        *lock(&self.shared.lie) = lie;
    }

    /// Gives this event to whoever wants to join, leave or knock, or invites one of its users.
    pub fn hand_out(&self, event: Value) {
        *lock(&self.shared.template) = Some(event);
    }

    /// The events that came with `send_join`, `send_leave` and `send_knock`.
    #[must_use]
    pub fn joins(&self) -> Vec<Value> {
        lock(&self.shared.joins).clone()
    }

    /// The events with which its users were invited.
    #[must_use]
    pub fn invites(&self) -> Vec<Value> {
        lock(&self.shared.invites).clone()
    }

    /// The room as its user sees it.
    #[must_use]
    pub fn seat(&self) -> Seat {
        let shared = &self.shared;
        let last = shared.state.last().map(|event| event.id.clone());
        let depth = i64::try_from(shared.state.len()).expect("a depth");
        let rules = shared.rules.clone();
        let mut seat = Seat::new(&shared.room_id, rules, last.into_iter().collect(), depth);
        for event in &shared.state {
            let text = |name: &str| event.json[name].as_str().expect("a state event");
            seat.has(text("type"), text("state_key"), &event.id);
        }
        seat
    }

    /// The events and the other units that came with transactions.
    #[must_use]
    pub fn received(&self) -> Vec<Value> {
        lock(&self.shared.received).clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The events of a public room.
fn make_room(
    user: &OwnedUserId,
    key: &SigningKey,
    version: &RoomVersionId,
    rules: &RoomVersionRules,
) -> (OwnedRoomId, Vec<Made>, Hashes) {
    let hashed = rules.authorization.room_create_event_id_as_room_id;
    let mut create = json!({ "room_version": version });
    if !rules.authorization.use_room_create_sender {
        create["creator"] = json!(user);
    }
    let levels = if rules.authorization.explicitly_privilege_room_creators {
        json!({ "users_default": 0 })
    } else {
        json!({ "users": { user.as_str(): 100 } })
    };
    let parts = [
        ("m.room.create", "", create),
        (
            "m.room.member",
            user.as_str(),
            json!({ "membership": "join" }),
        ),
        ("m.room.power_levels", "", levels),
        ("m.room.join_rules", "", json!({ "join_rule": "public" })),
        ("m.room.name", "", json!({ "name": "Far away" })),
    ];
    let mut room_id = (!hashed)
        .then(|| RoomId::parse(format!("!far:{}", user.server_name())).expect("a room id"));
    let mut made: Vec<Made> = Vec::new();
    let mut references = Hashes::default();
    for (depth, (event_type, state_key, content)) in (1..).zip(parts) {
        // Create, member, levels: whatever is there so far, but for the create event where it is named
        // by the room.
        let auth = made.iter().take(3).skip(usize::from(hashed));
        let basis = Basis {
            room_id: room_id.clone(),
            prev_events: made
                .last()
                .map(|event| event.id.clone())
                .into_iter()
                .collect(),
            auth_events: auth.map(|event| event.id.clone()).collect(),
            hashes: references.clone(),
            depth,
        };
        let template = Template {
            event_type: TimelineEventType::from(event_type),
            content: to_raw_value(&content).expect("JSON"),
            state_key: Some(state_key.to_owned()),
            redacts: None,
            origin_server_ts: None,
        };
        let now = MilliSecondsSinceUnixEpoch(1_700_000_000_000_u64.try_into().expect("a time"));
        let server = user.server_name();
        let built = build(template, &basis, user, now, rules, server, key).expect("an event");
        references.add(built.pdu(), rules).expect("a hash");
        room_id = Some(built.pdu().room_id().to_owned());
        made.push(Made {
            id: built.pdu().event_id().to_owned(),
            json: serde_json::from_str(built.pdu().json().get()).expect("JSON"),
        });
    }
    (room_id.expect("a room"), made, references)
}

async fn keys(State(shared): State<Arc<Shared>>) -> String {
    let until: u64 = match *lock(&shared.lie) {
        Lie::OldKeys => 1_600_000_000_000,
        _ => 4_000_000_000_000,
    };
    let until = MilliSecondsSinceUnixEpoch(until.try_into().expect("a time"));
    let response = own_response(&shared.name, &shared.key, &[], until).expect("keys");
    serde_json::to_string(&response).expect("JSON")
}

/// Answers without end, if that is the lie.
async fn endless(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    const PIECE: &[u8] = &[b' '; 64 * 1024];
    if *lock(&shared.lie) != Lie::Endless {
        return next.run(request).await;
    }
    let taken = shared.endless.clone();
    // Slower than anybody reads, so that little waits in buffers and what was sent is what was read.
    let pieces = stream::unfold(taken, |taken| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        taken.fetch_add(PIECE.len(), Ordering::Relaxed);
        Some((Ok::<_, std::convert::Infallible>(PIECE), taken))
    });
    Body::from_stream(pieces).into_response()
}

/// The id of the key of a policy server is always the same.
fn policy_key() -> SigningKey {
    let seed = SigningKey::generate().expect("a key").to_seed();
    SigningKey::from_seed("policy_server", &seed).expect("a key")
}

async fn sign(State(shared): State<Arc<Shared>>, event: String) -> (StatusCode, String) {
    if *lock(&shared.lie) == Lie::RefuseToSign {
        let error = json!({ "errcode": "M_FORBIDDEN", "error": "This looks like spam" });
        return (StatusCode::BAD_REQUEST, error.to_string());
    }
    lock(&shared.asked).push((SIGN.to_owned(), Value::Null));
    let delayed = *lock(&shared.lie) == Lie::DelayJoins;
    if delayed && event.contains(r#""membership":"join""#) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let event = serde_json::from_str(&event).expect("JSON");
    let mut signed = redact(event, &shared.rules.redaction, None).expect("an event");
    signed.remove("signatures");
    let key = &shared.policy_key;
    key.sign_json(&mut signed, &shared.name).expect("JSON");
    let signatures = serde_json::to_string(&signed["signatures"]).expect("JSON");
    (StatusCode::OK, signatures)
}

async fn devices(
    State(shared): State<Arc<Shared>>,
    UrlPath(user): UrlPath<String>,
) -> (StatusCode, String) {
    let lie = *lock(&shared.lie);
    if lie == Lie::DelayDevices {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    if lie == Lie::RefuseDevices {
        let error = json!({ "errcode": "M_UNKNOWN" });
        return (StatusCode::SERVICE_UNAVAILABLE, error.to_string());
    }
    let keys = json!({
        "user_id": user,
        "device_id": "PHONE",
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {},
        "signatures": {},
    });
    let devices = json!([{ "device_id": "PHONE", "keys": keys }]);
    let answer = json!({ "user_id": user, "stream_id": 7, "devices": devices });
    lock(&shared.received).push(json!({ "asked for devices of": user }));
    (StatusCode::OK, answer.to_string())
}

async fn transaction(State(shared): State<Arc<Shared>>, body: String) -> (StatusCode, String) {
    if *lock(&shared.lie) == Lie::RefuseTransactions {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "errcode": "M_UNKNOWN" }).to_string(),
        );
    }
    if *lock(&shared.lie) == Lie::RefusePoison && body.contains("poison") {
        lock(&shared.received).push(json!({ "refused": true }));
        let error = json!({ "errcode": "M_BAD_JSON" });
        return (StatusCode::BAD_REQUEST, error.to_string());
    }
    let body: Value = serde_json::from_str(&body).expect("JSON");
    for part in ["pdus", "edus"] {
        let units = body[part].as_array().cloned().unwrap_or_default();
        lock(&shared.received).extend(units);
    }
    (StatusCode::OK, json!({ "pdus": {} }).to_string())
}
