//! Making rooms ([spec](https://spec.matrix.org/v1.19/client-server-api/#creation)).

mod create;

use ruma::{
    OwnedRoomId, OwnedServerName, RoomAliasId, RoomVersionId,
    api::federation::query::get_room_information::v1 as get_room_information,
};

use super::federation::Federation;
use super::timeline::{SendError, Timeline};
use crate::storage::{Families, Storage, StorageError};

/// Makes rooms.
#[derive(Clone)]
pub(crate) struct Rooms {
    storage: Storage,
    timeline: Timeline,
    federation: Federation,
}

/// Why a room was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateRoomError {
    #[error("the room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
    #[error("the alias is taken")]
    AliasTaken,
    #[error("the alias is malformed")]
    InvalidAlias,
    /// A part of the request is not what it must be.
    #[error("`{0}` is malformed")]
    Malformed(&'static str),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Rooms {
    pub(crate) fn new(storage: Storage, timeline: Timeline, federation: Federation) -> Self {
        Self {
            storage,
            timeline,
            federation,
        }
    }

    /// The room that an alias names, and servers to join it through. Its own server is asked about an
    /// alias of another
    /// ([spec](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1querydirectory)).
    pub(crate) async fn resolve(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, StorageError> {
        let (server, own) = (alias.server_name(), &self.timeline.server_name);
        if server == own {
            let found = self.resolve_local(alias).await?;
            return Ok(found.map(|room_id| (room_id, vec![own.clone()])));
        }
        let request = get_room_information::Request::new(alias.to_owned());
        match self.federation.send(server, request).await {
            Ok(mut found) => {
                if !found.servers.iter().any(|known| known == server) {
                    found.servers.push(server.to_owned());
                }
                Ok(Some((found.room_id, found.servers)))
            }
            Err(error) => {
                tracing::debug!(%server, %error, "an alias was not resolved");
                Ok(None)
            }
        }
    }

    /// The room that a local alias names.
    pub(crate) async fn resolve_local(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<OwnedRoomId>, StorageError> {
        self.storage.read().await?.rooms().by_alias(alias).await
    }
}
