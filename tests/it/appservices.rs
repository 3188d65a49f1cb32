//! Application services: what they may do, what they are told, what they are asked.

mod asking;
mod encryption;
mod speaking;
mod telling;

use sotto_tests::{Bridge, Setup, TestServer};

/// A server with these services.
async fn server_with(bridges: &[&Bridge]) -> TestServer {
    let files: Vec<_> = bridges.iter().map(|bridge| bridge.registration()).collect();
    let setup = Setup::with(move |config| config.appservices.clone_from(&files));
    setup.start().await
}

/// A server with one service.
async fn server_and_bridge(more: &str) -> (TestServer, Bridge) {
    let bridge = Bridge::start("irc", more).await;
    (server_with(&[&bridge]).await, bridge)
}
