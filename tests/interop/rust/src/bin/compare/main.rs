//! Measures our machine beside that of matrix-sdk-crypto and beside vodozemac alone, in one run.
//!
//! `cargo run --release --bin compare`. First both machines keep everything in memory: that is what the
//! encryption costs. Then both keep it in a sealed SQLite file that survives a power cut, ours and that
//! of matrix-sdk-sqlite: that is what a client pays. Numbers are CPU time of all threads, so that a busy
//! machine disturbs them little; on the disk also what passes meanwhile, most of which is waiting for it.

mod crowd;
mod messages;
mod sharing;
mod stores;

use std::time::{Duration, Instant};

use self::stores::Kept;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("| what | ours | matrix-sdk-crypto | vodozemac alone |");
    println!("|---|---|---|---|");
    for kept in [Kept::InMemory, Kept::OnDisk] {
        messages::compare(kept).await;
        sharing::compare(kept).await;
    }
}

/// What something took.
#[derive(Clone, Copy, Default)]
struct Spent {
    cpu: Duration,
    elapsed: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.elapsed += other.elapsed;
    }
}

impl Spent {
    /// The best of several measurements.
    fn best(all: &[Self]) -> Self {
        Self {
            cpu: all.iter().map(|one| one.cpu).min().unwrap(),
            elapsed: all.iter().map(|one| one.elapsed).min().unwrap(),
        }
    }

    /// For each of so many.
    fn each(self, kept: Kept, times: usize) -> String {
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / times as f64;
        match kept {
            Kept::InMemory => format!("{:.1} µs", micros(self.cpu)),
            Kept::OnDisk => {
                let (cpu, elapsed) = (micros(self.cpu), micros(self.elapsed));
                format!("{cpu:.1} µs ({elapsed:.0} µs elapsed)")
            }
        }
    }

    fn whole(self, kept: Kept) -> String {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        match kept {
            Kept::InMemory => format!("{:.1} ms", millis(self.cpu)),
            Kept::OnDisk => {
                let (cpu, elapsed) = (millis(self.cpu), millis(self.elapsed));
                format!("{cpu:.1} ms ({elapsed:.0} ms elapsed)")
            }
        }
    }
}

async fn measure<T>(work: impl Future<Output = T>) -> (T, Spent) {
    let (cpu, start) = (cpu(), Instant::now());
    let done = work.await;
    let elapsed = start.elapsed();
    let cpu = self::cpu() - cpu;
    (done, Spent { cpu, elapsed })
}

/// The CPU time of this process.
///
/// The kernel counts it up when it schedules, else only at each tick, of which there may be one in
/// four milliseconds: a hundred messages would often take no time at all, and the best of several
/// measurements would be the luckiest. (The other threads are those of the stores, which wait for work
/// when this is called.)
fn cpu() -> Duration {
    std::thread::yield_now();
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = thread.unwrap().path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.split(' ').next().unwrap();
        nanoseconds += text.parse::<u64>().unwrap();
    }
    Duration::from_nanos(nanoseconds)
}

fn row(kept: Kept, what: &str, ours: &str, theirs: &str, alone: &str) {
    let place = match kept {
        Kept::InMemory => "",
        Kept::OnDisk => "on disk: ",
    };
    println!("| {place}{what} | {ours} | {theirs} | {alone} |");
}
