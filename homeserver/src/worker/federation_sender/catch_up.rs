//! What a server missed while it did not answer
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#transactions)).

use std::{collections::BTreeMap, sync::Arc};

use ruma::ServerName;

use super::{FederationSender, queues::Waiting};
use crate::storage::{Families, StorageError, events::StoredEvent, log::StreamPosition};

/// How many of the newest events of a room are looked at. If there are more, only the last of ours is
/// sent: the server asks for what is before it, and so gets it from whoever has it.
const NEWEST: i64 = 50;

impl FederationSender {
    /// The events between two positions that the server must get: first the latest one of each room, with
    /// which it can begin to take part again, then the others, oldest first.
    pub(super) async fn missed(
        &self,
        server: &ServerName,
        after: StreamPosition,
        horizon: StreamPosition,
    ) -> Result<Vec<Waiting>, StorageError> {
        let own = self.0.federation.server_name();
        let roster = self.0.storage.log().roster();
        let mut missed: BTreeMap<StreamPosition, Arc<StoredEvent>> = BTreeMap::new();
        let mut latest = Vec::new();
        for room_id in roster.rooms_with(server) {
            let mut reader = self.0.storage.read().await?;
            let Some(room) = reader.rooms().by_id(&room_id).await? else {
                continue;
            };
            let since = reader
                .destinations()
                .in_room_since(server, &room_id)
                .await?;
            let above = since.map_or(after, |since| since.max(after));
            drop(reader);
            let events = &self.0.events;
            let newest = events
                .newest(&[room.nid], above.0, horizon.0, NEWEST)
                .await?;
            let newest: Vec<_> = newest.into_iter().flatten().collect();
            let is_all = i64::try_from(newest.len()).is_ok_and(|count| count < NEWEST);
            let mut ours: Vec<_> = newest
                .into_iter()
                .filter(|event| event.is_ours_to_send(own))
                .filter_map(|event| Some((event.log_position()?, event)))
                .collect();
            if !is_all {
                ours.drain(..ours.len().saturating_sub(1));
            }
            latest.extend(ours.pop());
            missed.extend(ours);
        }
        let mut reader = self.0.storage.read().await?;
        let departures = reader.destinations().departures(server, after).await?;
        drop(reader);
        for event in self.0.events.by_nids(&departures).await?.into_values() {
            if event.is_ours_to_send(own)
                && let Some(position) = event.log_position()
            {
                missed.insert(position, event);
            }
        }
        let waiting = |(position, event)| Waiting { position, event };
        latest.sort_unstable_by_key(|(position, _)| *position);
        Ok(latest.into_iter().chain(missed).map(waiting).collect())
    }
}
