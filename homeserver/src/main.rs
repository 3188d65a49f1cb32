//! The binary `sotto`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
