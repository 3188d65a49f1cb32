//! Measures our machine beside that of matrix-sdk-crypto and beside vodozemac alone, in one run.
//!
//! `cargo run --release --bin compare`; numbers are CPU time of the one thread, so that a busy
//! machine disturbs them little. Both machines keep everything in memory, where not said otherwise.

mod crowd;
mod messages;
mod sharing;

use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("| what | ours | matrix-sdk-crypto | vodozemac alone |");
    println!("|---|---|---|---|");
    messages::compare().await;
    sharing::compare().await;
}

/// The CPU time of this thread.
///
/// The kernel counts it up when it schedules, else only at each tick, of which there may be one in
/// four milliseconds: a hundred messages would often take no time at all, and the best of several
/// measurements would be the luckiest.
fn cpu() -> Duration {
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanoseconds)
}

fn micros(time: Duration, times: usize) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6 / times as f64)
}

/// The best of several measurements.
fn best(times: Vec<Duration>) -> Duration {
    times.into_iter().min().unwrap()
}

fn row(what: &str, ours: &str, theirs: &str, alone: &str) {
    println!("| {what} | {ours} | {theirs} | {alone} |");
}
