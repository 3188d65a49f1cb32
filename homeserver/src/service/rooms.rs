//! Making rooms ([spec](https://spec.matrix.org/v1.19/client-server-api/#creation)).

mod create;

use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId, RoomVersionId};

use super::timeline::{SendError, Timeline};
use crate::storage::{Families, Storage, StorageError};

/// Makes rooms.
#[derive(Clone)]
pub(crate) struct Rooms {
    storage: Storage,
    timeline: Timeline,
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
    pub(crate) fn new(storage: Storage, timeline: Timeline) -> Self {
        Self { storage, timeline }
    }

    /// The room that an alias names, and servers to join it through.
    pub(crate) async fn resolve(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, StorageError> {
        let found = self.resolve_local(alias).await?;
        Ok(found.map(|room_id| (room_id, vec![self.timeline.server_name.clone()])))
    }

    /// The room that a local alias names.
    pub(crate) async fn resolve_local(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<OwnedRoomId>, StorageError> {
        self.storage.read().await?.rooms().by_alias(alias).await
    }
}
