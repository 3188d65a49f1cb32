//! A Matrix client: login, sync, rooms, and end-to-end encryption that is on by default.
//!
//! What it is:
//! - [`Client`] speaks HTTP, keeps a session and a store, and hands out decrypted messages.
//! - [`crypto::Machine`] is the encryption alone. It does no network I/O: it takes what a sync
//!   brought and gives back the requests that have to be sent, so it can be driven by any program.
//! - [`store::Store`] is the one contract between the two and the disk: a commit is all or nothing,
//!   and nothing derived from a ratchet leaves the process before that ratchet is saved.
//!
//! What it is not: a user interface, or a place for server code.
//!
//! To add an endpoint, add a method to [`Client`] or [`Room`]; to add a rule of encryption, add it
//! to the machine together with a test that attacks it.

pub mod attachment;
pub mod bot;
pub mod client;
pub mod crypto;
pub mod encryption;
pub mod environment;
pub mod login;
pub mod recovery;
pub mod room;
pub mod store;
pub mod sync;
pub mod timeline;
pub mod transport;
pub mod verification;

pub use bot::{Bot, Message};
pub use client::{Client, ClientBuilder};
pub use environment::{Environment, SystemEnvironment};
pub use room::Room;
