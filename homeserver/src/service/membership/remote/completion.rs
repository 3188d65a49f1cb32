//! Fetching the members of a room that were not told with the join
//! ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid)).

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedRoomId, RoomId, ServerName, api::federation::event::get_room_state, events::StateEventType,
};
use sotto_federation::room::{signing::Verified, version};

use super::{
    MOST_SERVERS, Remote, RemoteError,
    answer::{Question, Told},
    arrival::Numbers,
    join::LIMITS,
};
use crate::{
    service::incoming::Whole,
    storage::{
        Families, StorageError, events::StoredEvent, partial_joins::PartialJoin, rooms::Room,
        state_nodes::pair,
    },
};

impl Remote {
    /// The rooms with somebody of ours whose members are missing.
    pub(crate) async fn incomplete(&self) -> Result<Vec<OwnedRoomId>, StorageError> {
        let mut reader = self.storage.read().await?;
        let rooms = reader.partial_joins().all().await?;
        let roster = self.storage.log().roster();
        let rooms = rooms.into_iter().map(|(room_id, _)| room_id);
        Ok(rooms
            .filter(|room_id| !roster.local_members(room_id).is_empty())
            .collect())
    }

    /// Gets the members of a room from the first server that has them; whether nothing is left to do.
    pub(crate) async fn complete(&self, room_id: &RoomId) -> Result<bool, StorageError> {
        let Some(room) = self.timeline.heads.room(room_id).await? else {
            return Ok(true);
        };
        let mut reader = self.storage.read().await?;
        let partial = reader.partial_joins().of(room.nid).await?;
        drop(reader);
        let gone = self
            .storage
            .log()
            .roster()
            .local_members(room_id)
            .is_empty();
        let Some(partial) = partial.filter(|_| !gone) else {
            return Ok(true);
        };
        let join = self.timeline.events.by_nids(&[partial.join]).await?;
        let Some(join) = join.get(&partial.join) else {
            return Ok(true);
        };
        let servers = partial.servers.iter();
        let others = servers.filter(|server| **server != self.federation.server_name());
        for server in others.take(MOST_SERVERS) {
            match self.complete_from(server, &room, &partial, join).await {
                Ok(done) => return Ok(done),
                Err(RemoteError::Storage(error)) => return Err(error),
                Err(error) => {
                    tracing::info!(%room_id, %server, %error, "a server did not tell the members");
                }
            }
        }
        Ok(false)
    }

    async fn complete_from(
        &self,
        server: &ServerName,
        room: &Room,
        partial: &PartialJoin,
        join: &StoredEvent,
    ) -> Result<bool, RemoteError> {
        let rules = version::rules(&room.version);
        let rules = rules.ok_or_else(|| RemoteError::UnsupportedVersion(room.version.clone()))?;
        let event_id = join.pdu.event_id().to_owned();
        let request = get_room_state::v1::Request::new(event_id, room.room_id.clone());
        let answer = self.federation.open(server, request, LIMITS).await?;
        let question = Question {
            server: server.to_owned(),
            room_id: room.room_id.clone(),
            version: room.version.clone(),
            rules,
        };
        let heard = question.hear(answer, LIMITS.answer).await?;
        let join = Verified::from_stored((*join.pdu).clone());
        let told = question.check(&self.server_keys, join, heard).await?;
        let whole = self.whole(partial, told).await?;
        let incoming = &self.incoming;
        Ok(incoming.complete(&room.room_id, partial, whole).await?)
    }

    /// The room with its members. Whoever tells them can do nothing but that: all else stays as it was told
    /// with the join.
    async fn whole(&self, partial: &PartialJoin, told: Told) -> Result<Whole, StorageError> {
        let numbers: Numbers = self.number(&told.events).await?;
        let known = self.storage.state_entries(partial.state).await?;
        let (mut members, mut state_keys) = (BTreeMap::new(), Vec::new());
        for ((event_type, state_key), event_id) in &told.state {
            let key = self.storage.states().key(event_type, state_key);
            if *event_type == StateEventType::RoomMember && !known.contains_key(&key) {
                members.insert(key, numbers.get(event_id).map(|numbered| numbered.nid));
                state_keys.push((key, pair(event_type, state_key)));
            }
        }
        let state = self.storage.state_change(partial.state, &members).await?;
        let events = told.events.iter().filter_map(|judged| {
            let pdu = judged.pdu();
            let numbered = numbers.get(pdu.event_id())?;
            Some((numbered.nid, Arc::new(pdu.clone())))
        });
        Ok(Whole {
            events: events.collect(),
            state,
            state_keys,
            outliers: self.outliers(told.events, &numbers),
        })
    }
}
