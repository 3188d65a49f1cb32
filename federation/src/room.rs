//! The pure core: what an event is, who signed it, whether it is allowed, what the state is.
//!
//! Everything here is a function of its arguments: no I/O, no clock, no log, no panic, and the
//! same result whatever the order of a hash table.
//!
//! # Proofs are values
//!
//! A check that was skipped does not compile:
//!
//! 1. [`Pdu::parse`](pdu::Pdu::parse) gives an [`Unverified`](pdu::Unverified) event: its format
//!    is right and its id is computed by us. It cannot be stored.
//! 2. [`signing::verify`] makes it [`Verified`](signing::Verified): the servers that must have
//!    signed it did; if its content hash is wrong it is redacted.
//! 3. [`auth::judge`] makes it [`Judged`](auth::Judged): accepted, soft-failed or rejected.
//!
//! Our own events start at step 2 with [`builder::build`]: we sign only what we built from our
//! own template, never a structure that another server supplied.
//!
//! # Known state resets
//!
//! Until room version 12, state resolution (version 2.0) can bring back old state: the iterative
//! authorization checks start from the unconflicted state, and events between conflicting ones
//! are not looked at again. Version 2.1 starts from nothing and adds the conflicted subgraph
//! ([room version 12](https://spec.matrix.org/v1.19/rooms/v12/#state-resolution)). New rooms
//! therefore get [`version::DEFAULT`].

pub mod auth;
pub mod builder;
#[cfg(test)]
mod fixture;
mod object;
pub mod pdu;
pub mod redaction;
pub mod signing;
pub mod state;
pub mod version;
