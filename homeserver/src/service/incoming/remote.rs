//! The source that is really other servers.

use futures_util::future::BoxFuture;
use ruma::{
    EventId, OwnedEventId, RoomId, ServerName, UInt,
    api::federation::{
        authorization::get_event_authorization,
        event::{get_event, get_missing_events, get_room_state, get_room_state_ids},
    },
};
use serde_json::value::RawValue;
use sotto_federation::{
    client::ClientError,
    room::signing::{PublicKeyMap, RequiredKeys},
};

use super::source::{RawEvents, Source, StateIds};
use crate::service::{federation::Federation, server_keys::ServerKeys};

/// How many events are asked for at once.
const LIMIT: u32 = 50;

/// Other servers, over the network.
#[derive(Debug)]
pub(crate) struct Remote {
    federation: Federation,
    keys: ServerKeys,
}

impl Remote {
    pub(crate) fn new(federation: Federation, keys: ServerKeys) -> Self {
        Self { federation, keys }
    }
}

impl Source for Remote {
    fn keys(&self, required: Vec<RequiredKeys>) -> BoxFuture<'_, Vec<PublicKeyMap>> {
        Box::pin(async move {
            // No notaries: a server that passes on the event of another could be one, and would then
            // decide itself whether the event is genuine.
            match self.keys.known(&required, &[]).await {
                Ok(known) => required.iter().map(|keys| known.key_map(keys)).collect(),
                Err(error) => {
                    tracing::error!(%error, "keys could not be read");
                    Vec::new()
                }
            }
        })
    }

    fn is_away<'a>(&'a self, server: &'a ServerName) -> BoxFuture<'a, bool> {
        Box::pin(self.keys.is_away(server))
    }

    fn missing_events<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        earliest: Vec<OwnedEventId>,
        latest: Vec<OwnedEventId>,
    ) -> BoxFuture<'a, RawEvents> {
        let room_id = room_id.to_owned();
        let mut request = get_missing_events::v1::Request::new(room_id, earliest, latest);
        request.limit = UInt::from(LIMIT);
        Box::pin(async move { Ok(self.federation.send(server, request).await?.events) })
    }

    fn state_ids<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, Result<StateIds, ClientError>> {
        let request = get_room_state_ids::v1::Request::new(event_id.to_owned(), room_id.to_owned());
        Box::pin(async move {
            let answer = self.federation.send(server, request).await?;
            Ok(StateIds {
                state: answer.pdu_ids,
                auth_chain: answer.auth_chain_ids,
            })
        })
    }

    fn state<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, RawEvents> {
        let request = get_room_state::v1::Request::new(event_id.to_owned(), room_id.to_owned());
        Box::pin(async move {
            let mut answer = self.federation.send(server, request).await?;
            answer.pdus.append(&mut answer.auth_chain);
            Ok(answer.pdus)
        })
    }

    fn event<'a>(
        &'a self,
        server: &'a ServerName,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, Result<Box<RawValue>, ClientError>> {
        let request = get_event::v1::Request::new(event_id.to_owned());
        Box::pin(async move { Ok(self.federation.send(server, request).await?.pdu) })
    }

    fn event_auth<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, RawEvents> {
        let request =
            get_event_authorization::v1::Request::new(room_id.to_owned(), event_id.to_owned());
        Box::pin(async move { Ok(self.federation.send(server, request).await?.auth_chain) })
    }
}
