//! Work for the processors, beside the threads that answer requests.

use std::{num::NonZero, thread::available_parallelism};

use tokio::task::{JoinError, spawn_blocking};

/// Fewer things than this are not worth another thread.
const FEWEST: usize = 16;

/// Does the same with many things, on as many threads as there are processors; in the order of the things.
pub(crate) async fn parallel<T, U>(
    mut things: Vec<T>,
    work: impl Fn(T) -> U + Clone + Send + 'static,
) -> Result<Vec<U>, JoinError>
where
    T: Send + 'static,
    U: Send + 'static,
{
    let threads = available_parallelism().map_or(1, NonZero::get);
    let share = things.len().div_ceil(threads).max(FEWEST);
    let mut shares = Vec::with_capacity(threads);
    while !things.is_empty() {
        let rest = things.split_off(share.min(things.len()));
        let (share, work) = (std::mem::replace(&mut things, rest), work.clone());
        let running = spawn_blocking(move || share.into_iter().map(work).collect::<Vec<_>>());
        shares.push(running);
    }
    let mut done = Vec::new();
    for share in shares {
        done.extend(share.await?);
    }
    Ok(done)
}
