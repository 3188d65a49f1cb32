//! The server under measurement, in a process of its own.
//!
//! The benchmark starts itself again with `--serve DIRECTORY`; so what is measured is exactly the server, and there is
//! no binary to find. The child answers questions on its standard input.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Registration},
};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// A running server.
pub struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub url: String,
    directory: PathBuf,
    counts_statements: bool,
}

/// What the server has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of CPU, of all its threads.
    pub cpu: f64,
    /// Bytes of memory that are resident.
    pub rss: u64,
    /// SQL statements, if they are counted.
    pub statements: u64,
    /// Bytes in its data directory.
    pub disk: u64,
}

impl Server {
    /// Starts a server on an empty directory. Counting statements costs time, so what is timed is not
    /// counted.
    pub fn start(directory: &Path, count_statements: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--serve").arg(directory);
        if count_statements {
            command.arg("--count-statements");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let input = child.stdin.take().expect("its input");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output
            .read_line(&mut line)
            .expect("it says where it listens");
        let url = line.trim().to_owned();
        Self {
            child,
            input,
            output,
            url,
            directory: directory.to_owned(),
            counts_statements: count_statements,
        }
    }

    /// Stops the server and starts it on what it has, at another address.
    pub fn restart(&mut self) {
        self.stop();
        let directory = self.directory.clone();
        *self = Self::start(&directory, self.counts_statements);
    }

    fn stop(&mut self) {
        // Closing its input stops the server; it is waited for, so that its directory can go.
        drop(writeln!(self.input, "stop"));
        drop(self.child.wait());
    }

    /// What it has used so far.
    pub fn usage(&mut self) -> Usage {
        let pid = self.child.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<f64> = after_name
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|text| {
            text.trim()
                .trim_end_matches(" kB")
                .trim()
                .parse::<u64>()
                .ok()
        });
        writeln!(self.input, "statements").expect("it listens");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        Usage {
            // Clock ticks are hundredths of a second on every Linux.
            cpu: (fields[11] + fields[12]) / 100.0,
            rss: rss.unwrap_or(0) * 1024,
            statements: line.trim().parse().unwrap_or(0),
            disk: size(&self.directory),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Counts the statements that sqlx logs.
struct Statements(Arc<AtomicU64>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The child's side: serves until its input says stop, or ends.
pub fn serve(directory: &Path, count_statements: bool) {
    let statements = Arc::new(AtomicU64::new(0));
    if count_statements {
        let subscriber = tracing_subscriber::registry().with(Statements(statements.clone()));
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
    } else {
        // What goes wrong must be seen, or the figures mean nothing.
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_writer(std::io::stderr)
            .init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut config = Config::new(ruma::owned_server_name!("bench.test"));
        config.data_dir = directory.to_owned();
        config.listen = ([127, 0, 0, 1], 0).into();
        config.registration = Registration::Open;
        config.guests = true;
        config.rate_limits.enabled = false;
        config.database = std::env::var("SOTTO_BENCH_DATABASE_URL").ok();
        let server = Homeserver::start(config, Clock::system())
            .await
            .expect("the server starts");
        let mut out = std::io::stdout();
        writeln!(out, "http://{}", server.address()).expect("the parent listens");
        let asked = tokio::task::spawn_blocking(move || {
            for line in std::io::stdin().lock().lines() {
                match line.as_deref() {
                    Ok("statements") => {
                        let count = statements.load(Ordering::Relaxed);
                        writeln!(std::io::stdout(), "{count}").expect("the parent listens");
                    }
                    _ => break,
                }
            }
        });
        asked.await.expect("the parent asks");
        server.stop().await;
    });
}
