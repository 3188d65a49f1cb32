//! What happens behind a request: each worker reads the log forward from its own durable place, does its
//! work more than once without harm, and ends when the server stops.

pub(crate) mod appservices;
pub(crate) mod federation_sender;
pub(crate) mod guests;
pub(crate) mod profile_repeater;
pub(crate) mod push;
pub(crate) mod room_completer;
pub(crate) mod search;
pub(crate) mod succession;
pub(crate) mod user_directory;
