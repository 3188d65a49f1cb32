//! A large room, whose events were signed by many servers. All of them are this one.

mod answers;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName,
    UserId, room_version_rules::RoomVersionRules,
};
use serde_json::{json, value::to_raw_value};
use sotto_federation::room::{
    builder::{Basis, Hashes, Template, build},
    signing::SigningKey,
};
use sotto_homeserver::config::Config;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use self::answers::{answer, router, short, state};
use crate::{Draft, Made, Peer, Seat, TestServer, server::certificates, tls::Tls};

/// Who made the room.
const FOUNDER: &str = "@u0:s0.test";

/// How large the room is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Members.
    pub members: usize,
    /// Servers to which they belong.
    pub servers: usize,
    /// Of these servers, so many do not answer any more; the first one tells their keys.
    pub gone: usize,
    /// How often the power levels changed, each change allowed by the one before.
    pub levels: usize,
    /// Whether members are left out for who can do without them.
    pub omits: bool,
    /// Whether one of the members was banned.
    pub banned: bool,
}

/// The servers and their room. They end when this is dropped.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    directory: TempDir,
    address: SocketAddr,
    /// A line that nobody answers.
    _dead: std::net::TcpListener,
    dead: SocketAddr,
    task: JoinHandle<()>,
}

struct Shared {
    keys: BTreeMap<OwnedServerName, Arc<SigningKey>>,
    gone: Vec<OwnedServerName>,
    room: Room,
    rules: RoomVersionRules,
    version: RoomVersionId,
    /// The answer to `send_join`, and the one without members.
    answer: String,
    short: String,
    /// The answer to who asks for the state.
    state: String,
    /// Whether members are left out for who can do without them.
    omits: bool,
    joins: AtomicUsize,
    asked: AtomicUsize,
    /// Whether who asks for the state has to wait.
    held: watch::Sender<bool>,
    /// What servers were told, and which.
    heard: watch::Sender<Vec<(String, String)>>,
    pause: Duration,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// The room as it is made.
struct Room {
    id: ruma::OwnedRoomId,
    state: BTreeMap<(String, String), Made>,
    /// What is in no state any more, but in auth chains.
    before: Vec<Made>,
    tip: OwnedEventId,
    depth: u64,
    joins_on: Vec<OwnedEventId>,
}

impl Room {
    /// Adds an event that refers to these parts of the state.
    fn add(
        &mut self,
        draft: &Draft<'_>,
        auth: &[(&str, &str)],
        keys: &BTreeMap<OwnedServerName, Arc<SigningKey>>,
        rules: &RoomVersionRules,
    ) {
        let key = |(kind, state_key): &(&str, &str)| ((*kind).to_owned(), (*state_key).to_owned());
        let auth = auth.iter().filter_map(|part| self.state.get(&key(part)));
        let before = (self.depth > 0).then(|| self.tip.clone());
        let basis = Basis {
            room_id: Some(self.id.clone()),
            prev_events: before.into_iter().collect(),
            auth_events: auth.map(|made| made.id.clone()).collect(),
            hashes: Hashes::default(),
            depth: self.depth + 1,
        };
        let made = sign(draft, &basis, keys, rules);
        self.depth += 1;
        self.tip = made.id.clone();
        let key = key(&(draft.kind, draft.state_key.unwrap_or_default()));
        self.before.extend(self.state.insert(key, made));
    }
}

impl Crowd {
    /// Makes the room, and tells of it after a pause.
    pub async fn gather(size: Size, pause: Duration) -> Self {
        let names: Vec<_> = (0..size.servers)
            .map(|number| format!("s{number}.test"))
            .collect();
        Self::named(&names, size, pause).await
    }

    /// As [`Crowd::gather`], with servers of these names, the first of which is that of the founder.
    pub async fn named(names: &[String], size: Size, pause: Duration) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let names: Vec<OwnedServerName> = names
            .iter()
            .map(|name| ServerName::parse(name).expect("a name"))
            .collect();
        let keys = names.iter().map(|name| {
            let key = SigningKey::generate().expect("a key");
            (name.clone(), Arc::new(key))
        });
        let keys: BTreeMap<_, _> = keys.collect();
        let version = RoomVersionId::V11;
        let rules = version.rules().expect("a known version");
        let room = make_room(size, &names, &keys, &version, &rules);
        let gone = names.iter().rev().take(size.gone).cloned().collect();
        let (answer, short) = (answer(&room, &names), short(&room, &names));
        let state = state(&room);
        let texts: Vec<_> = names
            .iter()
            .map(|name| name.host().trim_matches(['[', ']']))
            .collect();
        certificates(directory.path(), std::iter::once(texts.as_slice()));
        let shared = Arc::new(Shared {
            keys,
            gone,
            room,
            rules,
            version,
            answer,
            short,
            state,
            omits: size.omits,
            joins: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            held: watch::Sender::new(false),
            heard: watch::Sender::default(),
            pause,
        });
        let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its number");
        let tls = Tls::over(listener, directory.path(), texts[0]);
        let router = router(shared.clone());
        #[expect(clippy::disallowed_methods, reason = "ended by the drop of the value")]
        let task = tokio::spawn(async move {
            axum::serve(tls, router).await.ok();
        });
        Self {
            shared,
            address,
            dead: dead.local_addr().expect("its number"),
            _dead: dead,
            directory,
            task,
        }
    }

    /// Lets a server find and believe these. It has to be the last change of its configuration.
    pub fn introduce(&self, config: &mut Config) {
        let federation = &mut config.federation;
        let own = federation
            .ca_file
            .as_ref()
            .expect("a server that federates");
        let mut authorities = std::fs::read_to_string(own).expect("an authority");
        let ours = self.directory.path().join("ca.crt");
        authorities += &std::fs::read_to_string(ours).expect("an authority");
        let both = self.directory.path().join("both.crt");
        std::fs::write(&both, authorities).expect("the directory can be written");
        federation.ca_file = Some(both);
        for name in self.shared.keys.keys() {
            let gone = self.shared.gone.contains(name);
            let address = if gone { self.dead } else { self.address };
            federation.names.insert(name.clone(), address);
        }
    }

    /// The room.
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        &self.shared.room.id
    }

    /// The server through which to join.
    #[must_use]
    pub fn via(&self) -> &'static str {
        "s0.test"
    }

    /// How often somebody joined.
    #[must_use]
    pub fn joins(&self) -> usize {
        self.shared.joins.load(Ordering::Relaxed)
    }

    /// Whether whoever asks for the state, with its members, has to wait.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// How often the state was asked for.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// How many bytes are told to who joins.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.answer.len()
    }

    /// Who made the room, and may do everything in it.
    #[must_use]
    pub fn founder(&self) -> &'static str {
        FOUNDER
    }

    /// Who was banned, and the join of before.
    #[must_use]
    pub fn banned(&self) -> (String, OwnedEventId) {
        let joins = self.shared.room.before.iter();
        let mut joins = joins.filter(|made| made.json["type"] == "m.room.member");
        let join = joins.next().expect("somebody was banned");
        let user = join.json["state_key"].as_str().expect("a user");
        (user.to_owned(), join.id.clone())
    }

    /// Waits until a server was told something in which this text is.
    pub async fn heard_by(&self, server: &str, text: &str) {
        let mut heard = self.shared.heard.subscribe();
        let told = heard.wait_for(|heard| {
            let mut heard = heard.iter();
            heard.any(|(name, json)| name == server && json.contains(text))
        });
        let told = tokio::time::timeout(Duration::from_secs(20), told).await;
        told.expect("in time").expect("the crowd is there");
    }

    /// The server of a user.
    #[must_use]
    pub fn speaker(&self, server: &TestServer, user: &str) -> Peer {
        let user = <&UserId>::try_from(user).expect("a user id");
        let name = user.server_name();
        Peer::new(name, self.shared.keys[name].clone(), server.directory())
    }

    /// The server of the founder, and its place in the room after somebody joined by this event.
    #[must_use]
    pub fn seat(&self, server: &TestServer, join: &str) -> (Peer, Seat) {
        let (name, key) = self.shared.keys.first_key_value().expect("a server");
        let peer = Peer::new(name, key.clone(), server.directory());
        let join = OwnedEventId::try_from(join).expect("an event id");
        let depth = i64::try_from(self.shared.room.depth).expect("a depth");
        let rules = self.shared.rules.clone();
        let mut seat = Seat::new(self.room_id(), rules, vec![join], depth + 1);
        for ((kind, state_key), made) in &self.shared.room.state {
            seat.has(kind, state_key, &made.id);
        }
        (peer, seat)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn make_room(
    size: Size,
    names: &[OwnedServerName],
    keys: &BTreeMap<OwnedServerName, Arc<SigningKey>>,
    version: &RoomVersionId,
    rules: &RoomVersionRules,
) -> Room {
    let founder = FOUNDER;
    let mut room = Room {
        id: RoomId::parse("!crowd:s0.test").expect("a room id"),
        state: BTreeMap::new(),
        before: Vec::new(),
        tip: OwnedEventId::try_from("$none").expect("an event id"),
        depth: 0,
        joins_on: Vec::new(),
    };
    let join = json!({ "membership": "join" });
    let make = |room: &mut Room, draft: &Draft<'_>, auth: &[(&str, &str)]| {
        room.add(draft, auth, keys, rules);
    };
    let create = Draft::state(
        founder,
        "m.room.create",
        "",
        json!({ "room_version": version }),
    );
    make(&mut room, &create, &[]);
    let create = ("m.room.create", "");
    let member = ("m.room.member", founder);
    let levels = ("m.room.power_levels", "");
    let rule = ("m.room.join_rules", "");
    let draft = Draft::state(founder, "m.room.member", founder, join.clone());
    make(&mut room, &draft, &[create]);
    for change in 0..size.levels.max(1) {
        let content = json!({ "users": { founder: 100 }, "change": change });
        let draft = Draft::state(founder, levels.0, "", content);
        make(&mut room, &draft, &[create, levels, member]);
    }
    let public = Draft::state(founder, rule.0, "", json!({ "join_rule": "public" }));
    make(&mut room, &public, &[create, levels, member]);
    let name = Draft::state(founder, "m.room.name", "", json!({ "name": "A crowd" }));
    make(&mut room, &name, &[create, levels, member]);
    for number in 1..size.members {
        let user = format!("@u{number}:{}", names[number % names.len()]);
        let draft = Draft::state(&user, "m.room.member", &user, join.clone());
        make(&mut room, &draft, &[create, levels, rule]);
    }
    if size.banned {
        let user = format!("@u1:{}", names[1 % names.len()]);
        let ban = json!({ "membership": "ban" });
        let draft = Draft::state(founder, "m.room.member", &user, ban);
        let target = ("m.room.member", user.as_str());
        make(&mut room, &draft, &[create, levels, member, target]);
    }
    let id = |kind: &str| room.state[&(kind.to_owned(), String::new())].id.clone();
    room.joins_on = vec![id(create.0), id(levels.0), id(rule.0)];
    room
}

fn sign(
    draft: &Draft<'_>,
    basis: &Basis,
    keys: &BTreeMap<OwnedServerName, Arc<SigningKey>>,
    rules: &RoomVersionRules,
) -> Made {
    let template = Template {
        event_type: draft.kind.into(),
        content: to_raw_value(&draft.content).expect("JSON"),
        state_key: draft.state_key.map(ToOwned::to_owned),
        redacts: None,
        origin_server_ts: None,
    };
    let sender = <&UserId>::try_from(draft.sender).expect("a user id");
    let server = sender.server_name();
    let now = MilliSecondsSinceUnixEpoch(1_700_000_000_000_u64.try_into().expect("a time"));
    let built = build(template, basis, sender, now, rules, server, &keys[server]);
    let built = built.expect("an event");
    Made {
        id: built.pdu().event_id().to_owned(),
        json: serde_json::from_str(built.pdu().json().get()).expect("JSON"),
    }
}
