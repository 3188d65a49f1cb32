//! A long conversation under bad conditions: people and devices come and go, processes are killed at
//! any moment, answers are lost and requests arrive twice. Whoever was entitled reads every message,
//! nobody else reads any.
//!
//! `SOTTO_SOAK_MESSAGES` and `SOTTO_SOAK_SEED` make it longer and different; in a longer run every
//! device lives in a process of its own.

mod device;
mod killed;
mod memory;
mod world;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use self::world::World;

/// Messages of a run, if nothing else is said.
const SHORT: u64 = 160;
/// Messages in one phase, between which people and devices come and go.
const PHASE: usize = 40;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_what_is_meant_for_them_and_nothing_else() {
    let wanted = number("SOTTO_SOAK_MESSAGES", SHORT);
    let messages = usize::try_from(wanted).unwrap();
    let mut random = StdRng::seed_from_u64(number("SOTTO_SOAK_SEED", 1));
    // A long run has longer phases: each change of members takes a while to be known.
    let size = PHASE.max(messages / 40);
    let mut world = Box::pin(World::new(random.random(), wanted > SHORT)).await;
    for phase in 0..messages.div_ceil(size) {
        Box::pin(world.talk(phase, size, &mut random)).await;
        world.check(phase).await;
        Box::pin(world.change(&mut random)).await;
    }
    world.check_end();
}
