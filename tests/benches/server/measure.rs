//! Running something many times, and saying what it cost the server.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use super::child::{Server, Usage};

/// How something went.
pub struct Run {
    pub name: String,
    pub operations: usize,
    pub elapsed: Duration,
    pub latencies: Vec<Duration>,
    pub before: Usage,
    pub after: Usage,
}

impl Run {
    /// Does `operation` for `0..operations`, `at_once` of them at any time.
    pub async fn of<F: Future<Output = ()>>(
        server: &mut Server,
        name: &str,
        operations: usize,
        at_once: usize,
        operation: impl Fn(usize) -> F,
    ) -> Self {
        let before = server.usage();
        let start = now();
        let latencies: Vec<Duration> = stream::iter(0..operations)
            .map(|index| {
                let running = operation(index);
                async move {
                    let start = now();
                    running.await;
                    start.elapsed()
                }
            })
            .buffer_unordered(at_once)
            .collect()
            .await;
        let elapsed = start.elapsed();
        Self {
            name: name.to_owned(),
            operations,
            elapsed,
            latencies,
            before,
            after: server.usage(),
        }
    }

    /// Prints one line of the table.
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    pub fn print(mut self, out: &mut impl std::io::Write) {
        self.latencies.sort();
        let at = |part: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index"
            )]
            let index = ((self.latencies.len() - 1) as f64 * part) as usize;
            self.latencies[index].as_secs_f64() * 1000.0
        };
        let per = |amount: u64| amount as f64 / self.operations as f64;
        let cpu = (self.after.cpu - self.before.cpu) * 1000.0 / per(1).recip();
        writeln!(
            out,
            "{:<44} {:>8.0}/s {:>8.2} {:>8.2} {:>10.3} {:>8.2} {:>8.1} {:>8.0}",
            self.name,
            per(1).recip() / self.elapsed.as_secs_f64(),
            at(0.5),
            at(0.99),
            cpu,
            per(self.after.statements - self.before.statements),
            self.after.rss as f64 / 1_048_576.0,
            per(self.after.disk.saturating_sub(self.before.disk)),
        )
        .expect("standard output");
    }

    /// Prints the head of the table.
    pub fn head(out: &mut impl std::io::Write) {
        writeln!(
            out,
            "{:<44} {:>10} {:>8} {:>8} {:>10} {:>8} {:>8} {:>8}",
            "", "rate", "p50 ms", "p99 ms", "CPU s/1000", "SQL/op", "RSS MiB", "disk/op"
        )
        .expect("standard output");
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}
