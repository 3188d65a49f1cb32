//! What Matrix servers must agree on, and the client that speaks to other servers.
//!
//! * [`room`] is the pure core: events, hashes and signatures, authorization, state resolution.
//! * [`x_matrix`], [`server_keys`], [`discovery`] and [`transaction`] are the rest of the protocol
//!   between servers, as values and state machines without I/O.
//! * [`resolver`] and [`egress`] are what stands between a name and a connection.
//! * [`client`] is the only I/O: it finds a server, signs a request, and bounds the answer.
//!
//! This crate knows neither an HTTP server nor a database, and no clock but the one it is given.
//! To add a rule that all servers of a room must share, add it to [`room`], cite the section of the
//! specification, and give it a test that needs nothing but values.

pub mod client;
pub mod discovery;
pub mod egress;
pub mod resolver;
pub mod room;
pub mod server_keys;
pub mod transaction;
pub mod x_matrix;
