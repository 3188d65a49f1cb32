//! Whole servers in this process, and people who use them over HTTP.
//!
//! Every test makes its own servers on its own ports and databases. Without more said these are SQLite files in a
//! temporary directory; with `SOTTO_TEST_DATABASE_URL=postgres://…` each server gets a fresh database there.

#![expect(
    clippy::missing_panics_doc,
    reason = "test support: a panic is a failed test"
)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test support: a panic is a failed test"
)]

mod bridge;
mod crowd;
mod database;
mod fake;
mod gateway;
mod identity;
mod links;
mod peer;
mod proxy;
mod server;
mod tls;
mod user;

pub use bridge::Bridge;
pub use crowd::{Crowd, Size};
pub use database::Database;
pub use fake::{FakeServer, Lie};
pub use gateway::Gateway;
pub use identity::{ID_ACCESS_TOKEN, IdentityServer};
pub use links::Links;
pub use peer::{Draft, Made, Peer, Seat};
pub use proxy::Proxy;
pub use server::{Setup, TestServer};
pub use user::{Answer, User, escape, room};
