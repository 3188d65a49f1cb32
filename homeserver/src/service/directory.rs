//! The list of rooms that everybody may find
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#published-room-directory)).
//!
//! What is listed of a room is read from its state when somebody asks, so it is never out of date.

mod page;

use futures_util::FutureExt;
use ruma::{
    OwnedRoomId, RoomId, ServerName, UserId,
    api::federation::directory::get_public_rooms_filtered::v1 as remote,
    directory::{Filter, PublicRoomsChunk, RoomNetwork, RoomTypeFilter},
    events::StateEventType,
};
use sotto_federation::client::ClientError;

pub(crate) use self::page::List;
use self::page::Since;
use super::{
    appservices::Appservice, federation::Federation, room_summaries::RoomSummaries,
    timeline::Timeline,
};
use crate::storage::{Families, Storage, StorageError};

/// How many rooms are told at once.
const MOST_ROOMS: usize = 1_000;

/// Keeps the list.
#[derive(Clone)]
pub(crate) struct Directory {
    storage: Storage,
    timeline: Timeline,
    summaries: RoomSummaries,
    federation: Federation,
}

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListAsk {
    pub(crate) limit: Option<ruma::UInt>,
    pub(crate) since: Option<String>,
    pub(crate) filter: Filter,
    pub(crate) network: RoomNetwork,
}

/// Why there is no list, or it did not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error("the room is not known")]
    UnknownRoom,
    #[error("the user has no power over what the room is called")]
    Forbidden,
    #[error("there is no page of this token")]
    BadToken,
    /// The other server gave no list.
    #[error(transparent)]
    Remote(#[from] ClientError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Directory {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        summaries: RoomSummaries,
        federation: Federation,
    ) -> Self {
        Self {
            storage,
            timeline,
            summaries,
            federation,
        }
    }

    /// Whether a room is listed.
    pub(crate) async fn is_listed(&self, room_id: &RoomId) -> Result<bool, DirectoryError> {
        let room = self.timeline.heads.room(room_id).await?;
        if room.and_then(|room| room.head).is_none() {
            return Err(DirectoryError::UnknownRoom);
        }
        let mut reader = self.storage.read().await?;
        Ok(reader.directory().is_published(room_id, "").await?)
    }

    /// Lists a room or takes it off the list, for a user who may say what it is called.
    pub(crate) async fn set_listed(
        &self,
        user_id: &UserId,
        room_id: OwnedRoomId,
        listed: bool,
    ) -> Result<(), DirectoryError> {
        let room = self.timeline.heads.room(&room_id).await?;
        if room.and_then(|room| room.head).is_none() {
            return Err(DirectoryError::UnknownRoom);
        }
        let named_by = StateEventType::RoomCanonicalAlias;
        if !self
            .timeline
            .may_set_state(user_id, &room_id, &named_by)
            .await?
        {
            return Err(DirectoryError::Forbidden);
        }
        let write = self.storage.write(move |tx| {
            async move {
                if listed {
                    tx.directory().publish(&room_id, "").await
                } else {
                    tx.directory().unpublish(&room_id, "").await
                }
            }
            .boxed()
        });
        Ok(write.await.map_err(|error: StorageError| error)?)
    }

    /// A part of the list of this server, or of another one.
    pub(crate) async fn list(
        &self,
        server: Option<&ServerName>,
        ask: ListAsk,
    ) -> Result<List, DirectoryError> {
        match server {
            Some(server) if server != self.timeline.server_name => {
                let mut request = remote::Request::new();
                request.limit = ask.limit;
                request.since = ask.since;
                request.filter = ask.filter;
                request.room_network = ask.network;
                let answer = self.federation.send(server, request).await?;
                Ok(List {
                    chunk: answer.chunk,
                    next: answer.next_batch,
                    previous: answer.prev_batch,
                    total: answer.total_room_count_estimate,
                })
            }
            _ => self.own(ask).await,
        }
    }

    /// Puts a room on the list that an application service keeps for a network, or takes it off
    /// ([spec](https://spec.matrix.org/v1.19/application-service-api/#put_matrixclientv3directorylistappservicenetworkidroomid)).
    pub(crate) async fn set_listed_by(
        &self,
        service: &Appservice,
        network: &str,
        room_id: OwnedRoomId,
        listed: bool,
    ) -> Result<(), DirectoryError> {
        let room = self.timeline.heads.room(&room_id).await?;
        if room.and_then(|room| room.head).is_none() {
            return Err(DirectoryError::UnknownRoom);
        }
        let list = service.list(network);
        let write = self.storage.write(move |tx| {
            async move {
                if listed {
                    tx.directory().publish(&room_id, &list).await
                } else {
                    tx.directory().unpublish(&room_id, &list).await
                }
            }
            .boxed()
        });
        write.await.map_err(|error: StorageError| error.into())
    }

    async fn own(&self, ask: ListAsk) -> Result<List, DirectoryError> {
        let since = ask.since.as_deref().map(str::parse::<Since>).transpose();
        let since = since.map_err(|_| DirectoryError::BadToken)?;
        let limit = ask.limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(MOST_ROOMS);
        let network = match &ask.network {
            RoomNetwork::All => None,
            RoomNetwork::ThirdParty(network) => Some(network.as_str()),
            _ => Some(""),
        };
        let mut reader = self.storage.read().await?;
        let rooms = reader.directory().published(network).await?;
        drop(reader);
        let (mut total, mut found) = (0_u32, Vec::new());
        for room in rooms {
            let Some(head) = &room.head else { continue };
            if !self.summaries.facts(head.state).await?.is_open() {
                continue;
            }
            let Some(summary) = self.summaries.of(&room).await? else {
                continue;
            };
            let chunk = PublicRoomsChunk::from(summary);
            if chunk.num_joined_members > ruma::UInt::MIN {
                total += 1;
                if fits(&ask.filter, &chunk) {
                    found.push(chunk);
                }
            }
        }
        let mut list = page::page(found, since.as_ref(), limit.min(MOST_ROOMS));
        list.total = Some(total.into());
        Ok(list)
    }
}

/// Whether a room is what is looked for.
fn fits(filter: &Filter, room: &PublicRoomsChunk) -> bool {
    let room_type = RoomTypeFilter::from(room.room_type.clone());
    if !filter.room_types.is_empty() && !filter.room_types.contains(&room_type) {
        return false;
    }
    let Some(term) = filter.generic_search_term.as_deref().map(str::trim) else {
        return true;
    };
    let term = term.to_lowercase();
    let alias = room.canonical_alias.as_ref().map(|alias| alias.as_str());
    let texts = [room.name.as_deref(), room.topic.as_deref(), alias];
    let mut texts = texts.into_iter().flatten();
    term.is_empty() || texts.any(|text| text.to_lowercase().contains(&term))
}
