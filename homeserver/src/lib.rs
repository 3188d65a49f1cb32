//! The Sotto homeserver.
//!
//! [`Homeserver::start`] is what the binary and the tests call: many servers can run in one process.
//! A request goes `api` → `service` → `storage`; `worker`s read the log forward. `ARCHITECTURE.md` has the
//! map.

pub mod admin;
mod api;
pub mod clock;
pub mod config;
mod listen;
mod service;
mod start;
mod storage;
mod worker;

pub use api::endpoints;
pub use listen::ListenTlsError;
pub use service::{
    appservices::registration::AppserviceError, federation::FederationError, media::BucketError,
    sign_on::JwtKeyError,
};
pub use start::{Homeserver, StartError};
pub use storage::{StorageError, inspect};
