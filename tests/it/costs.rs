//! How many statements requests cost, and how often something is written: counted in a server in a process of its
//! own. What it costs in time is in the benchmarks.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Registration},
};
use sotto_tests::{Database, User, escape, room};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Set for the process that is the server: data directory and database, as JSON.
const CHILD: &str = "SOTTO_COSTS_TEST_SERVER";
const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// For how long nothing happens after a request is done with.
const SHORT: Duration = Duration::from_millis(20);
/// The same after all that follows from many requests, or from a start.
const LONG: Duration = Duration::from_millis(500);

/// What the server did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    /// SQL statements, but for those that begin and end transactions.
    statements: usize,
    /// Transactions that write, each with one fsync.
    batches: usize,
}

#[derive(Default)]
struct Counters {
    statements: AtomicUsize,
    batches: AtomicUsize,
}

/// Counts what sqlx logs.
struct Counting(Arc<Counters>);

impl<S: tracing::Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "sqlx::query" {
            return;
        }
        let mut summary = Summary::default();
        event.record(&mut summary);
        let counter = match summary.0.split_whitespace().next().unwrap_or_default() {
            "BEGIN" => &self.0.batches,
            "COMMIT" | "ROLLBACK" | "SAVEPOINT" | "RELEASE" | "PRAGMA" => return,
            _ => &self.0.statements,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The first words of a statement.
#[derive(Default)]
struct Summary(String);

impl Visit for Summary {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "summary" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, format!("{value:?}").trim_matches('"'));
    }
}

/// Not a test but the server that is counted, in a process of its own: this program started again.
#[test]
fn server_process() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let counters = Arc::new(Counters::default());
    let subscriber = tracing_subscriber::registry().with(Counting(counters.clone()));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let setting: Value = serde_json::from_str(&text).unwrap();
    let mut config = Config::new(ruma::owned_server_name!("costs.test"));
    config.data_dir = setting["data_dir"].as_str().unwrap().into();
    config.listen = ([127, 0, 0, 1], 0).into();
    config.database = setting["database"].as_str().map(ToOwned::to_owned);
    config.registration = Registration::Open;
    config.guests = true;
    config.rate_limits.enabled = false;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let server = Homeserver::start(config, Clock::system()).await.unwrap();
        println!("\nat http://{}", server.address());
        let asked = tokio::task::spawn_blocking(move || {
            for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
                let spent = [&counters.statements, &counters.batches];
                let [statements, batches] = spent.map(|count| count.load(Ordering::Relaxed));
                println!("\nspent {statements} {batches}");
            }
        });
        asked.await.unwrap();
        server.stop().await;
    });
}

/// A server that counts what it does.
struct Counted {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    url: String,
}

impl Counted {
    fn start(data_dir: &std::path::Path, database: &Database) -> Self {
        let setting = json!({ "data_dir": data_dir, "database": database.url() });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "costs::server_process", "--nocapture"])
            .env(CHILD, setting.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let url = String::new();
        let mut counted = Self {
            child,
            input,
            output,
            url,
        };
        counted.url = counted.line("at ");
        counted
    }

    /// The rest of the next line that begins so.
    fn line(&mut self, begin: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    }

    fn spent(&mut self) -> Spent {
        writeln!(self.input.as_ref().unwrap()).unwrap();
        let line = self.line("spent ");
        let (statements, batches) = line.split_once(' ').unwrap();
        Spent {
            statements: statements.parse().unwrap(),
            batches: batches.parse().unwrap(),
        }
    }

    /// What it has spent once it does nothing any more, for so long.
    async fn settled(&mut self, rest: Duration) -> Spent {
        let mut before = self.spent();
        loop {
            tokio::time::sleep(rest).await;
            let now = self.spent();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// What something costs: the least of some times, because the server also does things of its own accord.
    async fn cost(&mut self, run: impl AsyncFn()) -> Spent {
        let mut least = Spent {
            statements: usize::MAX,
            batches: usize::MAX,
        };
        for _ in 0..5 {
            // A statement may be counted only after the answer was sent.
            let before = self.settled(SHORT).await;
            run().await;
            let after = self.settled(SHORT).await;
            least.statements = least.statements.min(after.statements - before.statements);
            least.batches = least.batches.min(after.batches - before.batches);
        }
        least
    }

    async fn register(&self, name: &str) -> User {
        let body = json!({ "username": name, "password": "a password",
            "auth": { "type": "m.login.dummy" } });
        let nobody = User::anonymous(self.url.clone());
        let session = nobody.post("/_matrix/client/v3/register", &body).await;
        User::new(self.url.clone(), &session.ok())
    }

    async fn guest(&self) -> User {
        let nobody = User::anonymous(self.url.clone());
        let path = "/_matrix/client/v3/register?kind=guest";
        User::new(self.url.clone(), &nobody.post(path, &json!({})).await.ok())
    }

    /// A room with so many idle members.
    async fn room_of(&self, owner: &User, members: usize) -> String {
        let body = json!({ "preset": "public_chat", "initial_state": [
            { "type": "m.room.guest_access", "content": { "guest_access": "can_join" } } ] });
        let room_id = owner.create_room(&body).await;
        for _ in 0..members {
            self.guest().await.join(&room_id).await.ok();
        }
        room_id
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // The end of its input stops it.
        drop(self.input.take());
        drop(self.child.wait());
    }
}

async fn slide(user: &User, pos: Option<&str>) -> Value {
    let list = json!({ "ranges": [[0, 99]], "timeline_limit": 20,
        "required_state": [["m.room.name", ""], ["m.room.member", "$LAZY"]] });
    let extensions = json!({ "account_data": { "enabled": true }, "receipts": { "enabled": true },
        "typing": { "enabled": true },
        "io.element.msc4308.thread_subscriptions": { "enabled": true } });
    let pos = pos.map(|pos| format!("?pos={}", escape(pos)));
    let path = format!("{SLIDING}{}", pos.unwrap_or_default());
    let body = json!({ "lists": { "all": list }, "extensions": extensions });
    user.post(&path, &body).await.ok()
}

fn token(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_cost_few_statements() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::fresh().await);
    let mut server = Counted::start(folder.path(), &database);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&room_id).await.ok();
    for index in 0..150 {
        alice.send(&room_id, &format!("{index}")).await;
    }

    let since = token(&bob.sync(None, 0).await, "next_batch");
    let since = token(&bob.sync(Some(&since), 0).await, "next_batch");
    let pos = token(&slide(&bob, None).await, "pos");
    let pos = token(&slide(&bob, Some(&pos)).await, "pos");
    let idle = server
        .cost(async || drop(bob.sync(Some(&since), 0).await))
        .await;
    assert_eq!(idle, Spent::default(), "a sync without news");
    let idle = server
        .cost(async || drop(slide(&bob, Some(&pos)).await))
        .await;
    assert_eq!(idle, Spent::default(), "a sliding sync without news");

    let sends = server
        .cost(async || drop(alice.send(&room_id, "one").await))
        .await;
    assert!(
        sends.batches <= 1 && sends.statements <= 8,
        "a send: {sends:?}"
    );
    let news = server
        .cost(async || drop(bob.sync(Some(&since), 0).await))
        .await;
    assert!(
        news.batches == 0 && news.statements <= 3,
        "a sync with news: {news:?}"
    );
    let news = server
        .cost(async || drop(slide(&bob, Some(&pos)).await))
        .await;
    assert!(
        news.batches == 0 && news.statements <= 3,
        "a sliding sync with news: {news:?}"
    );

    let messages = room(&room_id, "messages?dir=b&limit=100");
    let page = server
        .cost(async || drop(bob.get(&messages).await.ok()))
        .await;
    assert!(
        page.batches == 0 && page.statements <= 3,
        "a page: {page:?}"
    );
    let created = server
        .cost(async || drop(alice.create_room(&json!({ "name": "a" })).await))
        .await;
    assert!(created.batches <= 2, "a room: {created:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_looking_costs_nothing() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::fresh().await);
    let mut server = Counted::start(folder.path(), &database);
    let alice = server.register("alice").await;
    let mut costs = Vec::new();
    for members in [10, 200] {
        let room_id = server.room_of(&alice, members).await;
        // What follows from so many joins is over then, also on a slow machine.
        server.settled(LONG).await;
        costs.push(
            server
                .cost(async || drop(alice.send(&room_id, "hello").await))
                .await,
        );
        for path in ["members", "state", "joined_members"] {
            let path = room(&room_id, path);
            let read = server
                .cost(async || drop(alice.get(&path).await.ok()))
                .await;
            assert!(
                read.batches == 0 && read.statements <= 3,
                "{path}: {read:?}"
            );
        }
    }
    assert_eq!(costs[0], costs[1], "a send to 10 and to 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_syncs_cost_no_statement_for_each_room() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::fresh().await);
    let mut server = Counted::start(folder.path(), &database);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut costs = Vec::new();
    for _ in 0..2 {
        for _ in 0..32 {
            let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
            bob.join(&room_id).await.ok();
            alice.send(&room_id, "hello").await;
        }
        let first = server.cost(async || drop(bob.sync(None, 0).await)).await;
        let sliding = server.cost(async || drop(slide(&bob, None).await)).await;
        costs.push([first, sliding]);
    }
    for (few, many) in costs[0].iter().zip(&costs[1]) {
        let more = many.statements.saturating_sub(few.statements);
        assert!(more <= 8, "32 more rooms cost {more} more: {costs:?}");
    } // Nor is there one when nothing is in memory yet.
    for sliding in [false, true] {
        drop(server);
        server = Counted::start(folder.path(), &database);
        let bob = User::anonymous(server.url.clone()).with_token(&bob.token);
        let before = server.settled(LONG).await;
        if sliding {
            slide(&bob, None).await;
        } else {
            bob.sync(None, 0).await;
        }
        let spent = server.spent().statements - before.statements;
        assert!(spent < 64, "{spent} for 64 rooms, sliding: {sliding}");
    }
}
