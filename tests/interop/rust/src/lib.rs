//! Our encryption beside that of matrix-sdk-crypto, with a key server in memory between them.
//!
//! The two know each other as they would on the network: by JSON. [`Ours`] and [`Theirs`] each
//! drive one machine; the tests let them talk in both directions, the program `compare` measures
//! them beside the primitives alone.

mod ours;
mod server;
mod theirs;

pub use self::{ours::Ours, server::Server, theirs::Theirs};

use serde_json::{Value, json};

/// The room in which all meet.
pub const ROOM: &str = "!room:example.org";

/// A room event as a server sends it to clients.
#[must_use]
pub fn event(sender: &str, id: &str, kind: &str, content: Value) -> Value {
    json!({
        "type": kind,
        "event_id": id,
        "sender": sender,
        "origin_server_ts": now_ms(),
        "room_id": ROOM,
        "content": content,
    })
}

/// Both sides look at the clock of the system.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
