//! The history of a room from before this server was in it, asked of those who were
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events)).

use ruma::{RoomId, UInt, api::federation::backfill::get_backfill::v1};

use super::{federation::Federation, incoming::Incoming, timeline::Timeline};
use crate::storage::{Families, Storage, StorageError};

/// How many events are asked for at once.
const EVENTS: u32 = 100;
/// How many servers are asked before the history is taken to end here.
const SERVERS: usize = 3;
/// How many places at which the history goes on elsewhere are named in one question.
const PLACES: i64 = 20;

/// Fetches history.
#[derive(Clone)]
pub(crate) struct Backfill {
    storage: Storage,
    timeline: Timeline,
    incoming: Incoming,
    federation: Federation,
}

impl Backfill {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        incoming: Incoming,
        federation: Federation,
    ) -> Self {
        Self {
            storage,
            timeline,
            incoming,
            federation,
        }
    }

    /// Fetches a piece of what comes before all that is here; whether there is more now.
    pub(crate) async fn earlier(&self, room_id: &RoomId) -> Result<bool, StorageError> {
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(false);
        };
        let places = self
            .storage
            .read()
            .await?
            .inbound()
            .missing(room.nid, PLACES)
            .await?;
        if places.is_empty() {
            return Ok(false);
        }
        let servers = self.storage.log().roster().remote_servers(room_id);
        for server in servers.into_iter().take(SERVERS) {
            let ask = v1::Request::new(room_id.to_owned(), places.clone(), UInt::from(EVENTS));
            let given = match self.federation.send(&server, ask).await {
                Ok(given) => given,
                Err(error) => {
                    tracing::info!(%room_id, %server, %error, "a server gave no history");
                    continue;
                }
            };
            let pdus: Vec<_> = given.pdus.iter().map(AsRef::as_ref).collect();
            let outcomes = self.incoming.receive_past(&server, room_id, &pdus).await?;
            if outcomes.values().any(Result::is_ok) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
