//! What the pipeline asks of other servers.

use futures_util::future::BoxFuture;
use ruma::{EventId, OwnedEventId, RoomId, ServerName};
use serde_json::value::RawValue;
use sotto_federation::{
    client::ClientError,
    room::signing::{PublicKeyMap, RequiredKeys},
};

/// Events as another server sent them: neither parsed nor verified.
pub(crate) type RawEvents = Result<Vec<Box<RawValue>>, ClientError>;

/// Other servers, as far as the pipeline needs them.
pub(crate) trait Source: Send + Sync {
    /// The keys with which to verify events, as far as they can be had: a map for each.
    fn keys(&self, required: Vec<RequiredKeys>) -> BoxFuture<'_, Vec<PublicKeyMap>>;

    /// Whether a server, when it was last asked for its keys, did not answer.
    fn is_away<'a>(&'a self, server: &'a ServerName) -> BoxFuture<'a, bool>;

    /// Events between those that are known and those that are not
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid)).
    fn missing_events<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        earliest: Vec<OwnedEventId>,
        latest: Vec<OwnedEventId>,
    ) -> BoxFuture<'a, RawEvents>;

    /// The ids of the state before an event, and of its auth chain
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid)).
    fn state_ids<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, Result<StateIds, ClientError>>;

    /// The state before an event and its auth chain, in one list
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid)).
    fn state<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, RawEvents>;

    /// One event
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid)).
    fn event<'a>(
        &'a self,
        server: &'a ServerName,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, Result<Box<RawValue>, ClientError>>;

    /// The auth chain of an event
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid)).
    fn event_auth<'a>(
        &'a self,
        server: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
    ) -> BoxFuture<'a, RawEvents>;
}

/// A state by the ids of its events.
#[derive(Clone, Debug, Default)]
pub(crate) struct StateIds {
    pub(crate) state: Vec<OwnedEventId>,
    pub(crate) auth_chain: Vec<OwnedEventId>,
}
