//! The history of a room from before this server was in it, asked of those who were
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events)).

use ruma::{OwnedEventId, RoomId, UInt, api::federation::backfill::get_backfill::v1};

use super::{federation::Federation, incoming::Incoming, timeline::Timeline};
use crate::{
    clock::Clock,
    storage::{Families, Storage, StorageError, inbound::Pauses, rooms::RoomNid},
};

/// How many events are asked for at once.
const EVENTS: u32 = 100;
/// How many servers are asked before the history is taken to end here.
const SERVERS: usize = 3;
/// How many places at which the history goes on elsewhere are named in one question.
const PLACES: i64 = 20;
/// For how long history that nobody gives is not asked for: every page of the oldest messages would wait
/// for servers that are gone.
const PAUSES: Pauses = Pauses {
    first: 10_000,
    longest: 24 * 60 * 60 * 1_000,
};

/// Fetches history.
#[derive(Clone)]
pub(crate) struct Backfill {
    storage: Storage,
    timeline: Timeline,
    incoming: Incoming,
    federation: Federation,
    clock: Clock,
}

impl Backfill {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        incoming: Incoming,
        federation: Federation,
        clock: Clock,
    ) -> Self {
        Self {
            storage,
            timeline,
            incoming,
            federation,
            clock,
        }
    }

    /// Fetches a piece of what comes before all that is here; whether there is more now.
    pub(crate) async fn earlier(&self, room_id: &RoomId) -> Result<bool, StorageError> {
        // What happened before goes on top of states that are not known without the members. Who asks
        // for it would take an answer without it for the beginning of the room.
        self.timeline.heads.whole(room_id).await?;
        let room = self.timeline.heads.room(room_id).await?;
        let Some(room) = room.filter(|room| !room.partial) else {
            return Ok(false);
        };
        let places = self
            .storage
            .read()
            .await?
            .inbound()
            .missing(room.nid, self.clock.now(), PLACES)
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
        self.put_off(room.nid, places).await?;
        Ok(false)
    }

    async fn put_off(
        &self,
        room_nid: RoomNid,
        places: Vec<OwnedEventId>,
    ) -> Result<(), StorageError> {
        let now = self.clock.now();
        let write = self.storage.write(move |tx| {
            Box::pin(async move {
                let mut inbound = tx.inbound();
                inbound
                    .put_off_missing(room_nid, &places, now, PAUSES)
                    .await
            })
        });
        write.await
    }
}
