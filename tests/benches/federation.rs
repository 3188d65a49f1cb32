//! What the federation costs: `cargo bench -p sotto-tests --bench federation`, with the names of parts to run only
//! those: `join`, `inbound`, `resolution`, `chain`.
//!
//! Server and peers are in one process, so the figures include what it costs to ask. Events are made before the
//! clock runs. `SOTTO_TEST_DATABASE_URL` says where each server gets a database of its own, if not on SQLite.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark: a program that people look at"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ruma::RoomVersionId;
use serde_json::json;
use sotto_tests::{
    Crowd, Draft, FakeServer, Made, Peer, Seat, Setup, Size, TestServer, User, room,
};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MALLORY: &str = "@mallory:b.test";
/// How many events of others come in.
const INBOUND: usize = 10_000;
/// How many entries of a state are in conflict.
const CONFLICTS: usize = 100;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts = ["join", "inbound", "resolution", "chain"];
    let named = |part: &str| arguments.iter().any(|argument| argument == part);
    let all = !parts.iter().any(|part| named(part));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        if all || named("join") {
            join().await;
        }
        if all || named("inbound") {
            inbound(1).await;
            inbound(100).await;
        }
        if all || named("resolution") {
            resolution().await;
        }
        if all || named("chain") {
            chain().await;
        }
    });
}

/// What one thing took.
struct Clock {
    start: Instant,
    cpu: f64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    fn start() -> Self {
        // The peak counts from here on.
        std::fs::write("/proc/self/clear_refs", "5").ok();
        Self {
            start: Instant::now(),
            cpu: cpu(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    fn stop(&self, name: &str, operations: usize) {
        let elapsed = self.start.elapsed().as_secs_f64();
        let cpu = cpu() - self.cpu;
        let operations = operations as f64;
        println!(
            "{name:<72} {elapsed:>8.2} s {:>9.0}/s {:>9.3} ms CPU each, peak {:>5} MiB",
            operations / elapsed,
            1_000.0 * cpu / operations,
            peak()
        );
    }
}

/// Seconds of CPU of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = after_name
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    // Clock ticks are hundredths of a second on every Linux.
    (fields[11] + fields[12]) / 100.0
}

/// The most memory that was resident since the clock was started, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let digits = peak.map(|text| text.trim().trim_end_matches(" kB").trim());
    digits
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}

/// A server of ours that knows a crowd, and a user of it.
async fn meet(size: Size) -> (Arc<Crowd>, TestServer, User) {
    let crowd = Arc::new(Crowd::gather(size, Duration::ZERO).await);
    let known = crowd.clone();
    let setup = Setup::with(move |config| known.introduce(config));
    let ours = setup.federation(1).await.remove(0);
    let alice = ours.register("alice").await;
    (crowd, ours, alice)
}

async fn join() {
    for (gone, omits) in [(0, true), (0, false), (20, true)] {
        let size = Size {
            members: 10_000,
            servers: 200,
            gone,
            levels: 1,
            omits,
            banned: false,
        };
        let (crowd, _ours, alice) = meet(size).await;
        let room_id = crowd.room_id().as_str();
        let clock = Clock::start();
        alice.join_via(room_id, crowd.via()).await.ok();
        alice.send(room_id, "I am in").await;
        let mib = crowd.bytes() / (1024 * 1024);
        let how = if omits {
            "members later"
        } else {
            "all at once"
        };
        let name = format!("10,000 members, 200 servers, {gone} gone, {mib} MiB, {how}");
        clock.stop(&format!("{name}: usable"), 1);
        let path = room(room_id, "joined_members");
        let mut known = 0;
        while known != size.members + 1 {
            let joined = alice.get(&path).await.ok();
            known = joined["joined"].as_object().map_or(0, serde_json::Map::len);
        }
        clock.stop(&format!("{name}: complete"), 1);
    }
}

/// Sends events, 50 in a transaction.
async fn deliver(peer: &Peer, ours: &TestServer, made: &[Made]) {
    for made in made.chunks(50) {
        let pdus: Vec<_> = made.iter().collect();
        let answer = peer.send(ours, &pdus, &[]).await.ok();
        let results = answer["pdus"].as_object().expect("results").values();
        let refused = results.filter(|result| result["error"].is_string()).count();
        assert_eq!(refused, 0, "{answer}");
    }
}

async fn inbound(rooms: usize) {
    let (ours, mut other) = TestServer::pair().await;
    other.stop().await;
    let fake = FakeServer::replace(&other, RoomVersionId::V11).await;
    let alice = ours.register("alice").await;
    let mut seats = Vec::new();
    for _ in 0..rooms {
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let room_id = alice.create_room(&body).await;
        seats.push(fake.peer().join(&ours, &room_id, MALLORY).await);
    }
    let made: Vec<_> = (0..INBOUND)
        .map(|number| {
            let text = format!("An ordinary sentence, as people write them: {number}");
            fake.peer()
                .make(&mut seats[number % rooms], &Draft::text(MALLORY, &text))
        })
        .collect();
    let clock = Clock::start();
    deliver(fake.peer(), &ours, &made).await;
    clock.stop(&format!("inbound PDUs, {rooms} room(s)"), INBOUND);
}

/// State events of a branch.
fn branch(peer: &Peer, seat: &mut Seat, founder: &str, value: &str) -> Vec<Made> {
    let make = |number| {
        let kind = format!("org.example.n{number}");
        let draft = Draft::state(founder, &kind, "", json!({ "value": value }));
        peer.make(seat, &draft)
    };
    (0..CONFLICTS).map(make).collect()
}

async fn resolution() {
    let size = Size {
        members: 9_900,
        servers: 10,
        gone: 0,
        levels: 1,
        ..Size::default()
    };
    let (crowd, ours, alice) = meet(size).await;
    let room_id = crowd.room_id().as_str();
    alice.join_via(room_id, crowd.via()).await.ok();
    let tip = alice.send(room_id, "I am in").await;
    let (peer, mut one) = crowd.seat(&ours, &tip);
    let mut two = one.clone();
    let first = branch(&peer, &mut one, crowd.founder(), "one");
    let second = branch(&peer, &mut two, crowd.founder(), "two");
    deliver(&peer, &ours, &first).await;
    let clock = Clock::start();
    deliver(&peer, &ours, &second).await;
    clock.stop("resolve 10,000 entries, 1 to 100 conflicts", CONFLICTS);
    one.tip.extend(two.tip);
    let both = peer.make(&mut one, &Draft::text(crowd.founder(), "both"));
    let clock = Clock::start();
    deliver(&peer, &ours, &[both]).await;
    clock.stop("resolve 10,000 entries, 100 conflicts", 1);
}

async fn chain() {
    let size = Size {
        members: 10,
        servers: 2,
        gone: 0,
        levels: 100_000,
        ..Size::default()
    };
    let (crowd, ours, alice) = meet(size).await;
    let room_id = crowd.room_id().as_str();
    let clock = Clock::start();
    alice.join_via(room_id, crowd.via()).await.ok();
    clock.stop("join a room with 100,000 auth events, each", 100_000);
    let tip = alice.send(room_id, "I am in").await;
    let (peer, mut one) = crowd.seat(&ours, &tip);
    let mut two = one.clone();
    let levels = |change: u32| {
        let content = json!({ "users": { crowd.founder(): 100 }, "change": change });
        Draft::state(crowd.founder(), "m.room.power_levels", "", content)
    };
    let first = peer.make(&mut one, &levels(200_000));
    let second = peer.make(&mut two, &levels(200_001));
    deliver(&peer, &ours, &[first]).await;
    for round in ["first", "again"] {
        let clock = Clock::start();
        if round == "first" {
            deliver(&peer, &ours, std::slice::from_ref(&second)).await;
        } else {
            one.tip.append(&mut two.tip);
            let both = peer.make(&mut one, &Draft::text(crowd.founder(), "both"));
            deliver(&peer, &ours, &[both]).await;
        }
        let name = format!("auth chain difference, 100,000 events, {round}");
        clock.stop(&name, 1);
    }
}
