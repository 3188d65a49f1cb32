//! The tests of whole servers: one binary, a file for each area.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod chat;
mod crash;
mod encryption;
mod federation_inbound;
mod federation_out;
mod federation_pair;
mod hostile;
mod media;
mod sdk;
mod tidy;
mod user_data;
