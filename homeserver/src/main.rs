//! The binary `sotto`.

mod cli;

use std::process::ExitCode;

/// Half the memory and a tenth less CPU than the C library's allocator, measured with the benchmark.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
