//! Two processes of one device with one store, killed at any moment.
//!
//! The processes are this program, started again. The server is a file, which one of them changes at a time.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    fake::{Peer, Server, another, room},
    sharers::{ALICE, alice, twice},
};
use crate::{
    crypto::{EncryptError, OutgoingRequest, RejectedMessage, Share},
    environment::tests::TestEnvironment,
    store::SqliteOptions,
};

/// Set for a process of Alice: its [`Task`].
const CHILD: &str = "SOTTO_TEST_SHARER";
/// Others than Alice, each of whom takes a one-time key of hers.
const OTHERS: usize = 4;
/// What happens in a run.
const ROUNDS: usize = 60;

/// What a process has to do.
#[derive(Clone, Serialize, Deserialize)]
struct Task {
    directory: PathBuf,
    /// Which of the two it is.
    name: String,
    careless: bool,
    /// How often it was started before.
    lives: u64,
}

/// What is outside of all processes.
#[derive(Default, Serialize, Deserialize)]
struct World {
    server: Server,
    said: Vec<Value>,
    heard: Vec<Value>,
    /// What the processes have done so far.
    done: BTreeSet<String>,
    wrong: Vec<String>,
    over: bool,
}

fn members() -> BTreeSet<OwnedUserId> {
    let others = (0..OTHERS).map(|number| format!("@other{number}:example.org"));
    let all = others.chain([ALICE.to_owned()]);
    all.map(|id| id.try_into().unwrap()).collect()
}

/// The world, with which whoever has it is alone.
struct Alone {
    directory: PathBuf,
    _lock: File,
    world: World,
}

impl Alone {
    fn with(directory: &Path) -> Self {
        let lock = File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        let world = match fs::read(directory.join("world")) {
            Ok(bytes) => rmp_serde::from_slice(&bytes).unwrap(),
            Err(_) => World::default(),
        };
        Self {
            directory: directory.to_owned(),
            _lock: lock,
            world,
        }
    }

    /// Whoever dies before the end has changed nothing.
    fn save(mut self) {
        // What was sent is looked at in the end.
        let path = self.directory.join("sent");
        let file = File::options().create(true).append(true).open(path);
        let sent = std::mem::take(&mut self.world.server.sent);
        let lines: Vec<String> = sent.iter().map(|content| format!("{content}\n")).collect();
        file.unwrap().write_all(lines.concat().as_bytes()).unwrap();
        let new = self.directory.join("new");
        fs::write(&new, rmp_serde::to_vec(&self.world).unwrap()).unwrap();
        fs::rename(new, self.directory.join("world")).unwrap();
    }
}

fn with_world<T>(directory: &Path, change: impl FnOnce(&mut World) -> T) -> T {
    let mut alone = Alone::with(directory);
    let result = change(&mut alone.world);
    alone.save();
    result
}

impl Task {
    fn spawn(&self) -> Process {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "crypto::tests::killed::sharing_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, serde_json::to_string(self).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.log()).unwrap())
            .spawn()
            .unwrap();
        Process(child)
    }

    fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    fn world<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        with_world(&self.directory, change)
    }

    fn clock(&self) -> Arc<TestEnvironment> {
        let environment = Arc::new(TestEnvironment::default());
        environment.advance(Duration::from_mins(2 * self.lives));
        environment
    }

    async fn wake(&self) -> Peer {
        let open = if self.careless {
            SqliteOptions::careless
        } else {
            SqliteOptions::shared
        };
        alice(&self.directory.join("store"), open, &self.clock()).await
    }

    async fn send(&self, peer: &Peer, requests: Vec<OutgoingRequest>) {
        for request in requests {
            let response = self.world(|world| world.server.handle(&peer.name(), &request.request));
            let taken = peer.machine.mark_request_as_sent(&request.id, &response);
            taken.await.unwrap();
        }
    }

    async fn receive(&self, peer: &mut Peer) {
        let token = peer.machine.sync_token().await.unwrap();
        let since: u64 = token.map_or(0, |token| token.parse().unwrap());
        let (user, device) = peer.name();
        // The answer is on its way while the other process does something.
        let mut server = self.world(|world| {
            let inbox = &mut world.server.device(&user, &device).inbox;
            inbox.retain(|(at, _)| *at > since);
            world.server.clone()
        });
        let count = server.device(&user, &device).inbox.len();
        let outcome = peer.receive(&mut server).await;
        let replays = |reason: &RejectedMessage| *reason == RejectedMessage::Replay;
        let reasons = outcome.rejected.iter().map(|rejected| &rejected.reason);
        let wrong = reasons.clone().filter(|reason| !replays(reason));
        let wrong: Vec<String> = wrong.map(|reason| format!("refused: {reason:?}")).collect();
        let first = count.saturating_sub(reasons.count());
        self.world(|world| {
            world.wrong.extend(wrong);
            if first > 0 {
                world.done.insert(format!("{} taken", self.name));
            }
        });
    }

    async fn say(&self, peer: &Peer, body: &str) {
        let members = members();
        loop {
            match peer.machine.share_room_key(room(), &members).await.unwrap() {
                Share::Pending(requests) => {
                    self.send(peer, requests).await;
                    continue;
                }
                Share::Ready => {}
            }
            match peer.encrypt(room(), body).await {
                Ok(content) => {
                    return self.world(|world| {
                        let event = world.server.event(peer.user(), &content);
                        world.said.push(event);
                        world.done.insert(format!("{} said", self.name));
                    });
                }
                Err(EncryptError::NotShared) => {}
                Err(error) => unreachable!("{error}"),
            }
        }
    }

    async fn read(&self, peer: &Peer) {
        let heard = self.world(|world| world.heard.clone());
        let mut some = false;
        for event in &heard {
            some |= peer.read(event).await.is_ok();
        }
        if some {
            self.world(|world| world.done.insert(format!("{} read", self.name)));
        }
    }

    async fn live(&self) {
        let seed = self.lives * 2 + u64::from(self.name == "app");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut peer = self.wake().await;
        peer.encrypt_room(room(), json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
        let mut number = 0;
        while !self.world(|world| world.over) {
            match rng.random_range(0..10) {
                0..=2 => {
                    number += 1;
                    let body = format!("{} {} {number}", self.name, self.lives);
                    self.say(&peer, &body).await;
                }
                3 => peer.machine.discard_room_key(room()).await.unwrap(),
                4..=6 => self.receive(&mut peer).await,
                7 | 8 => {
                    let requests = peer.machine.outgoing_requests().await.unwrap();
                    self.send(&peer, requests).await;
                }
                _ => self.read(&peer).await,
            }
        }
    }
}

/// Not a test but a process of Alice: this program started again.
#[test]
fn sharing_process() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let task: Task = serde_json::from_str(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(task.live());
}

/// Ends with who has started it.
struct Process(Child);

impl Process {
    fn kill(&mut self) {
        // SIGKILL, on systems that have it.
        self.0.kill().ok();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Somebody says something, with a new key.
async fn tell(directory: &Path, peer: &mut Peer, body: &str) {
    let mut alone = Alone::with(directory);
    let world = &mut alone.world;
    peer.sync(&mut world.server).await;
    peer.machine.discard_room_key(room()).await.unwrap();
    let members = members();
    let shared = peer.try_share(&mut world.server, room(), &members);
    shared.await.unwrap();
    let content = peer.encrypt(room(), body).await.unwrap();
    let event = world.server.event(peer.user(), &content);
    world.heard.push(event);
    alone.save();
}

/// Alice's device makes its keys, and the others come.
async fn begin(directory: &Path, task: &Task) -> Vec<Peer> {
    let mut alone = Alone::with(directory);
    let mut alice = task.wake().await;
    alice.encrypt_room(room(), json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    alice.sync(&mut alone.world.server).await;
    let environment = task.clock();
    let mut others = Vec::new();
    for number in 0..OTHERS {
        let id = format!("@other{number}:example.org");
        others.push(another(&mut alone.world.server, &id, "OTHER", &environment).await);
    }
    alone.save();
    others
}

/// The keys with which two things were encrypted.
fn used_twice(directory: &Path) -> Vec<String> {
    let mut alone = Alone::with(directory);
    let sent = fs::read_to_string(directory.join("sent")).unwrap();
    let sent = sent.lines().map(|line| serde_json::from_str(line).unwrap());
    alone.world.server.sent = sent.collect();
    twice(&alone.world.server, &alone.world.said)
}

/// What else went wrong, as it shows in the end.
async fn end(task: &Task, others: &mut [Peer]) -> Vec<String> {
    let mut alone = Alone::with(&task.directory);
    let world = &mut alone.world;
    let mut wrong = std::mem::take(&mut world.wrong);
    let mut alice = task.wake().await;
    alice.sync(&mut world.server).await;
    for event in &world.heard {
        if let Err(error) = alice.read(event).await {
            wrong.push(format!("heard: {error}"));
        }
    }
    for other in others {
        other.sync(&mut world.server).await;
        for event in &world.said {
            if let Err(error) = other.read(event).await {
                wrong.push(format!("said: {error}"));
            }
        }
    }
    let claimed: BTreeSet<_> = world.server.claimed.iter().collect();
    if claimed.len() != world.server.claimed.len() {
        wrong.push("a one-time key went twice".to_owned());
    }
    let both = ["app", "extension"].into_iter();
    let all = both.flat_map(|name| ["said", "taken", "read"].map(|what| format!("{name} {what}")));
    wrong.extend(all.filter(|deed| !world.done.contains(deed)));
    wrong
}

/// How it ended.
struct Outcome {
    /// Keys with which two things were encrypted.
    twice: Vec<String>,
    /// Whatever else went wrong.
    failed: Vec<String>,
}

/// Runs both processes, and kills one now and then.
async fn run(seed: u64, careless: bool) -> Outcome {
    let directory = TempDir::new().unwrap();
    let task = |name: &str, lives: u64| Task {
        directory: directory.path().to_owned(),
        name: name.to_owned(),
        careless,
        lives,
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let mut others = begin(directory.path(), &task("first", 0)).await;
    let mut tasks = ["app", "extension"].map(|name| task(name, 0));
    let mut processes = tasks.each_ref().map(Task::spawn);
    for round in 0..ROUNDS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(10..90))).await;
        let other = &mut others[rng.random_range(0..OTHERS)];
        tell(directory.path(), other, &format!("round {round}")).await;
        if round % 6 == 5 {
            let who = rng.random_range(0..2);
            processes[who].kill();
            tasks[who].lives += 1;
            processes[who] = tasks[who].spawn();
        }
    }
    with_world(directory.path(), |world| world.over = true);
    let mut failed = Vec::new();
    for (process, task) in processes.iter_mut().zip(&tasks) {
        if !process.0.wait().unwrap().success() {
            failed.push(fs::read_to_string(task.log()).unwrap());
        }
    }
    let twice = used_twice(directory.path());
    if !careless {
        failed.extend(end(&task("end", 100), &mut others).await);
    }
    Outcome { twice, failed }
}

#[tokio::test]
async fn t_mp_2_two_processes_use_one_device_whoever_is_killed() {
    let Outcome { twice, failed } = run(1, false).await;
    assert!(
        twice.is_empty() && failed.is_empty(),
        "{twice:#?} {failed:#?}"
    );
}

#[tokio::test]
async fn t_mp_2_without_turns_two_processes_use_keys_twice() {
    let Outcome { twice, failed } = run(1, true).await;
    assert!(!twice.is_empty(), "control: {failed:#?}");
}
