//! What the server costs: `cargo bench -p sotto-tests --bench server`.
//!
//! CPU is that of the server's process alone; every send is on disk before it is answered. With `--statements` the SQL
//! statements are counted, which itself costs CPU: compare CPU only between runs without it. `SOTTO_BENCH_DATABASE_URL`
//! names an empty PostgreSQL database to use instead of SQLite. `--many-rooms` measures only an account in many rooms,
//! `--big-room` only a room of ten thousand members and what is read of it.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: a program of a few files"
)]

#[path = "server/big_room.rs"]
mod big_room;
#[path = "server/child.rs"]
mod child;
#[path = "server/many_rooms.rs"]
mod many_rooms;
#[path = "server/measure.rs"]
mod measure;

use std::{path::Path, time::Duration};

use child::Server;
use measure::{Run, now};
use serde_json::json;
use sotto_tests::User;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many sends of each kind.
const SENDS: usize = 3_000;
/// How many users wait for one event.
const WAITING: usize = 200;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if let Some(at) = arguments.iter().position(|argument| argument == "--serve") {
        child::serve(Path::new(&arguments[at + 1]), has("--count-statements"));
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let part = if has("--many-rooms") {
        Part::ManyRooms
    } else if has("--big-room") {
        Part::BigRoom
    } else {
        Part::Everything
    };
    runtime
        .expect("a runtime")
        .block_on(run(has("--statements"), part));
}

/// What is measured.
enum Part {
    Everything,
    ManyRooms,
    BigRoom,
}

async fn run(count_statements: bool, part: Part) {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let mut server = Server::start(directory.path(), count_statements);
    let mut out = std::io::stdout();
    let idle = server.usage().rss / 1024;
    println!("resident when idle, before the first request: {idle} KiB\n");
    Run::head(&mut out);
    let alice = register(&server, "alice").await;
    match part {
        Part::ManyRooms => {
            many_rooms::run(&mut server, &alice, &mut out).await;
            return;
        }
        Part::BigRoom => return big_room::run(&mut server, &alice, &mut out).await,
        Part::Everything => {}
    }
    for at_once in [1, 8, 64] {
        sends(&mut server, &alice, 1, at_once).await.print(&mut out);
        sends(&mut server, &alice, 64, at_once)
            .await
            .print(&mut out);
    }
    idle_syncs(&mut server, &alice).await.print(&mut out);
    fan_out(&mut server, &alice).await.print(&mut out);
    let alice = many_rooms::run(&mut server, &alice, &mut out).await;
    big_room::run(&mut server, &alice, &mut out).await;
}

async fn register(server: &Server, name: &str) -> User {
    let body = json!({
        "username": name, "password": "a password", "auth": { "type": "m.login.dummy" },
    });
    let nobody = User::anonymous(server.url.clone());
    let session = nobody.post("/_matrix/client/v3/register", &body).await.ok();
    User::new(server.url.clone(), &session)
}

async fn sends(server: &mut Server, alice: &User, rooms: usize, at_once: usize) -> Run {
    let mut ids = Vec::new();
    for _ in 0..rooms {
        ids.push(alice.create_room(&json!({})).await);
    }
    let name = format!("send, {rooms} room(s), {at_once} at once");
    let run = Run::of(server, &name, SENDS, at_once, |index| {
        let (alice, room_id) = (alice.clone(), ids[index % rooms].clone());
        async move {
            alice
                .send(
                    &room_id,
                    "An ordinary sentence, as people write them to each other.",
                )
                .await;
        }
    });
    run.await
}

async fn idle_syncs(server: &mut Server, alice: &User) -> Run {
    let since = next_batch(&alice.sync(None, 0).await);
    let since = next_batch(&alice.sync(Some(&since), 0).await);
    let run = Run::of(server, "incremental sync, nothing new", SENDS, 8, |_| {
        let (alice, since) = (alice.clone(), since.clone());
        async move {
            alice.sync(Some(&since), 0).await;
        }
    });
    run.await
}

fn next_batch(answer: &serde_json::Value) -> String {
    answer["next_batch"].as_str().expect("a token").to_owned()
}

/// Everybody waits, one speaks: an operation is one delivery.
async fn fan_out(server: &mut Server, alice: &User) -> Run {
    const ROUNDS: usize = 20;
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    let mut users = Vec::new();
    for index in 0..WAITING {
        let user = register(server, &format!("user{index}")).await;
        user.join(&room_id).await.ok();
        users.push((user, String::new()));
    }
    for (user, since) in &mut users {
        *since = next_batch(&user.sync(None, 0).await);
    }
    // What they tell each other by coming (that they are there) is not what is measured.
    for (user, since) in &mut users {
        *since = next_batch(&user.sync(Some(since), 0).await);
    }
    let before = server.usage();
    let (start, mut latencies) = (now(), Vec::new());
    for _ in 0..ROUNDS {
        let waiting = users.iter_mut().map(|(user, since)| async move {
            loop {
                let answer = user.sync(Some(since), 30_000).await;
                *since = next_batch(&answer);
                if answer["rooms"]["join"].is_object() {
                    return now();
                }
            }
        });
        let speaking = async {
            // Until all of them wait.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let start = now();
            alice.send(&room_id, "Dinner is ready.").await;
            start
        };
        let (delivered, sent) = tokio::join!(futures_util::future::join_all(waiting), speaking);
        latencies.extend(
            delivered
                .into_iter()
                .map(|at| at.saturating_duration_since(sent)),
        );
    }
    Run {
        name: format!("delivery to one of {WAITING} waiting syncs"),
        operations: WAITING * ROUNDS,
        elapsed: start.elapsed(),
        latencies,
        before,
        after: server.usage(),
    }
}
