//! Account data: what clients keep for themselves, in general or for a room, and the tags of rooms
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#client-config)).

use futures_util::FutureExt;
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::tag::{TagEventContent, Tags},
};
use serde_json::value::RawValue;

use super::push_rules;
use crate::storage::{
    Families, Storage, StorageError, log::Change, log::StreamPosition, writer::Tx,
};

/// The largest content of one type, in bytes: as large as an event may be.
const MAX_CONTENT: usize = 65_536;
/// The longest type, in bytes.
const MAX_TYPE: usize = 255;
/// The tags of a room
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-tagging)).
const TAGS: &str = "m.tag";
/// The fully read marker of a room
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#fully-read-markers)).
pub(crate) const FULLY_READ: &str = "m.fully_read";

/// Keeps account data.
#[derive(Clone, Debug)]
pub(crate) struct AccountData {
    storage: Storage,
}

/// Why account data was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetError {
    #[error("the server alone sets this type")]
    Controlled,
    #[error("the content is not an object")]
    NotAnObject,
    #[error("the content or its type is too large")]
    TooLarge,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl AccountData {
    pub(crate) fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// The content of one type, as JSON.
    pub(crate) async fn content(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
    ) -> Result<Option<String>, StorageError> {
        let mut reader = self.storage.read().await?;
        let content = reader
            .account_data()
            .content(user_id, room_id, event_type)
            .await?;
        if room_id.is_none() && event_type == push_rules::EVENT_TYPE {
            return Ok(push_rules::content(user_id, content.as_deref()));
        }
        Ok(content)
    }

    /// Sets the content of one type.
    pub(crate) async fn set(
        &self,
        user_id: OwnedUserId,
        room_id: Option<OwnedRoomId>,
        event_type: String,
        content: &RawValue,
    ) -> Result<(), SetError> {
        if event_type == FULLY_READ || event_type == push_rules::EVENT_TYPE {
            return Err(SetError::Controlled);
        }
        if !content.get().starts_with('{') {
            return Err(SetError::NotAnObject);
        }
        if content.get().len() > MAX_CONTENT || event_type.len() > MAX_TYPE {
            return Err(SetError::TooLarge);
        }
        let content = content.get().to_owned();
        let write = self.storage.write(move |tx| {
            async move { put(tx, user_id, room_id, event_type, &content).await }.boxed()
        });
        Ok(write.await.map(drop)?)
    }

    /// The tags of a room.
    pub(crate) async fn tags(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Tags, StorageError> {
        let content = self.content(user_id, Some(room_id), TAGS).await?;
        Ok(parse_tags(content))
    }

    /// Changes the tags of a room.
    pub(crate) async fn change_tags(
        &self,
        user_id: OwnedUserId,
        room_id: OwnedRoomId,
        change: impl FnOnce(&mut Tags) + Send + 'static,
    ) -> Result<(), SetError> {
        let write = self.storage.write(move |tx| {
            async move {
                let content = tx
                    .account_data()
                    .content(&user_id, Some(&room_id), TAGS)
                    .await?;
                let mut tags = parse_tags(content);
                change(&mut tags);
                let content = serde_json::to_string(&TagEventContent::new(tags))
                    .map_err(|_| SetError::NotAnObject)?;
                if content.len() > MAX_CONTENT {
                    return Err(SetError::TooLarge);
                }
                put(tx, user_id, Some(room_id), TAGS.to_owned(), &content).await?;
                Ok(())
            }
            .boxed()
        });
        write.await
    }
}

/// Sets account data, and tells the user's clients.
pub(super) async fn put(
    tx: &mut Tx,
    user_id: OwnedUserId,
    room_id: Option<OwnedRoomId>,
    event_type: String,
    content: &str,
) -> Result<StreamPosition, StorageError> {
    let position = tx.log(Change::AccountData {
        user_id: user_id.clone(),
    });
    tx.account_data()
        .set(&user_id, room_id.as_deref(), &event_type, content, position)
        .await?;
    Ok(position)
}

/// What clients wrote there themselves and is no list of tags counts as none.
fn parse_tags(content: Option<String>) -> Tags {
    content
        .and_then(|content| serde_json::from_str::<TagEventContent>(&content).ok())
        .map(|content| content.tags)
        .unwrap_or_default()
}
