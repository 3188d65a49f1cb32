//! Making rooms ([spec](https://spec.matrix.org/v1.19/client-server-api/#creation)).

mod create;
mod upgrade;

use ruma::RoomVersionId;

pub(crate) use self::upgrade::{Upgrade, UpgradeError};
use super::{
    aliases::Aliases,
    succession::Succession,
    timeline::{SendError, Timeline},
};
use crate::storage::{Storage, StorageError};

/// Makes rooms.
#[derive(Clone)]
pub(crate) struct Rooms {
    storage: Storage,
    timeline: Timeline,
    aliases: Aliases,
    succession: Succession,
    default_version: RoomVersionId,
}

/// Why a room was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateRoomError {
    #[error("the room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
    #[error("the alias is taken")]
    AliasTaken,
    #[error("the alias is for an application service alone, or for another one")]
    AliasExclusive,
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
    /// Rooms that ask for no version get `default_version`.
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        aliases: Aliases,
        succession: Succession,
        default_version: RoomVersionId,
    ) -> Self {
        Self {
            storage,
            timeline,
            aliases,
            succession,
            default_version,
        }
    }

    /// The version of rooms that are made without asking for one.
    pub(crate) fn default_version(&self) -> &RoomVersionId {
        &self.default_version
    }
}
