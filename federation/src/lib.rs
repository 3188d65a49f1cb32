//! What Matrix servers must agree on.
//!
//! [`room`] is the pure core: events, hashes and signatures, authorization, state resolution. It
//! does no I/O, reads no clock and never logs.
//!
//! This crate knows neither an HTTP server nor a database. To add a rule that all servers of a
//! room must share, add it to [`room`], cite the section of the specification, and give it a test
//! that needs nothing but values.

pub mod room;
