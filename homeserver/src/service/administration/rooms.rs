//! Rooms.

use futures_util::FutureExt;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId};
use serde::Serialize;

use super::{Administration, AdministrationError};
use crate::storage::{Families, StorageError};

/// A room in a list.
#[derive(Debug, Serialize)]
pub(crate) struct ListedRoom {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) name: Option<String>,
    pub(crate) alias: Option<String>,
    pub(crate) version: String,
    pub(crate) members: usize,
    pub(crate) local_members: usize,
    pub(crate) encrypted: bool,
}

/// A room, as administrators see it.
#[derive(Debug, Serialize)]
pub(crate) struct RoomShown {
    #[serde(flatten)]
    pub(crate) room: ListedRoom,
    pub(crate) topic: Option<String>,
    pub(crate) join_rule: String,
    pub(crate) blocked: bool,
    pub(crate) users: Vec<OwnedUserId>,
    pub(crate) other_servers: Vec<OwnedServerName>,
}

impl Administration {
    /// The rooms that local users are in, the largest first.
    pub(crate) async fn rooms(&self, most: usize) -> Result<Vec<ListedRoom>, AdministrationError> {
        let roster = self.storage.log().roster();
        let mut reader = self.storage.read().await?;
        let mut ids = reader.rooms().with_head().await?;
        drop(reader);
        ids.retain(|room_id| !roster.local_members(room_id).is_empty());
        ids.sort_by_cached_key(|id| (std::cmp::Reverse(roster.member_count(id)), id.clone()));
        ids.truncate(most);
        let mut listed = Vec::new();
        for room_id in ids {
            listed.extend(self.room(&room_id).await?.map(|shown| shown.room));
        }
        Ok(listed)
    }

    /// A room.
    pub(crate) async fn room_shown(
        &self,
        room_id: &RoomId,
    ) -> Result<RoomShown, AdministrationError> {
        let shown = self.room(room_id).await?;
        shown.ok_or(AdministrationError::UnknownRoom)
    }

    async fn room(&self, room_id: &RoomId) -> Result<Option<RoomShown>, StorageError> {
        let mut reader = self.storage.read().await?;
        let room = reader.rooms().by_id(room_id).await?;
        let blocked = reader.rooms().is_blocked(room_id).await?;
        drop(reader);
        let Some(room) = room else {
            return Ok(None);
        };
        let Some(summary) = self.summaries.of(&room).await? else {
            return Ok(None);
        };
        let roster = self.storage.log().roster();
        let users: Vec<_> = roster.local_members(room_id).into_iter().collect();
        Ok(Some(RoomShown {
            room: ListedRoom {
                room_id: room_id.to_owned(),
                name: summary.name,
                alias: summary.canonical_alias.map(|alias| alias.to_string()),
                version: room.version.to_string(),
                members: roster.member_count(room_id),
                local_members: users.len(),
                encrypted: summary.encryption.is_some(),
            },
            topic: summary.topic,
            join_rule: summary.join_rule.as_str().to_owned(),
            blocked,
            users,
            other_servers: roster.remote_servers(room_id).into_iter().collect(),
        }))
    }

    /// Lets nobody of this server join a room, or lets them again.
    pub(crate) async fn set_blocked(
        &self,
        room_id: OwnedRoomId,
        blocked: bool,
    ) -> Result<(), AdministrationError> {
        let now = i64::from(self.clock.now().0);
        let write = self.storage.write(move |tx| {
            async move {
                tx.rooms()
                    .set_blocked(&room_id, blocked.then_some(now))
                    .await
            }
            .boxed()
        });
        let set: Result<(), StorageError> = write.await;
        Ok(set?)
    }

    /// Makes everybody of this server leave a room, and takes its local addresses away; who could not leave.
    pub(crate) async fn empty_room(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<OwnedUserId>, AdministrationError> {
        let users = self.storage.log().roster().local_members(room_id);
        let mut left = Vec::new();
        for user_id in users {
            if let Err(error) = self.membership.leave(&user_id, room_id, None).await {
                tracing::info!(%room_id, %error, "a user could not leave a room that is deleted");
                left.push(user_id);
            }
        }
        let room_id = room_id.to_owned();
        let write = self.storage.write(move |tx| {
            async move {
                for alias in tx.directory().aliases_of(&room_id).await? {
                    tx.directory().delete_alias(&alias, &room_id).await?;
                }
                tx.directory().unpublish(&room_id, "").await
            }
            .boxed()
        });
        let cleared: Result<(), StorageError> = write.await;
        cleared?;
        Ok(left)
    }
}
