//! The binary `sotto`.

mod cli;

use std::process::ExitCode;

/// Less memory under load and a tenth less CPU than the C library's allocator, measured with the benchmark. Without huge
/// pages, which cost 15 MiB from the start on and gain nothing.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
