//! Filters: what a client wants to see of what it may see
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#filtering)). Kept for `/sync`, and applied
//! here for every way of reading.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use quick_cache::sync::Cache;
use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::filter::{Filter, FilterDefinition, RoomEventFilter, RoomFilter, UrlFilter},
};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest, Sha256};
use sotto_federation::room::pdu::Pdu;

use crate::storage::{Families, Storage, StorageError};

/// The largest filter, in bytes of JSON.
const MAX_FILTER: usize = 65_536;
/// How many filters stay in memory.
const CACHED: usize = 10_000;

/// Keeps filters. They never change, so what was read once is never read again.
#[derive(Clone)]
pub(crate) struct Filters {
    storage: Storage,
    cache: Arc<Cache<(OwnedUserId, String), Arc<FilterDefinition>>>,
}

/// Why a filter was not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("the filter is too large")]
    TooLarge,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Filters {
    pub(crate) fn new(storage: Storage) -> Self {
        let cache = Arc::new(Cache::new(CACHED));
        Self { storage, cache }
    }

    /// Keeps a filter; its id.
    pub(crate) async fn create(
        &self,
        user_id: OwnedUserId,
        filter: &FilterDefinition,
    ) -> Result<String, FilterError> {
        let definition = serde_json::to_string(filter).map_err(|_| FilterError::TooLarge)?;
        if definition.len() > MAX_FILTER {
            return Err(FilterError::TooLarge);
        }
        // An id must not begin with a brace; the hash makes it the same for the same filter.
        let hash = Sha256::digest(&definition);
        let id = format!("f{}", URL_SAFE_NO_PAD.encode(&hash[..16]));
        let filter_id = id.clone();
        let write = self.storage.write(move |tx| {
            async move {
                tx.filters()
                    .insert(&user_id, &filter_id, &definition)
                    .await?;
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await?;
        Ok(id)
    }

    /// A filter of a user.
    pub(crate) async fn by_id(
        &self,
        user_id: &UserId,
        filter_id: &str,
    ) -> Result<Option<Arc<FilterDefinition>>, StorageError> {
        let key = (user_id.to_owned(), filter_id.to_owned());
        if let Some(filter) = self.cache.get(&key) {
            return Ok(Some(filter));
        }
        let mut reader = self.storage.read().await?;
        let definition = reader.filters().definition(user_id, filter_id).await?;
        let Some(definition) = definition else {
            return Ok(None);
        };
        let wrong = |_| StorageError::inconsistent("filters", "definition", filter_id);
        let filter: FilterDefinition = serde_json::from_str(&definition).map_err(wrong)?;
        let filter = Arc::new(filter);
        self.cache.insert(key, filter.clone());
        Ok(Some(filter))
    }
}

/// Whether anything of a room is wanted.
pub(crate) fn wants_room(filter: &RoomFilter, room_id: &RoomId) -> bool {
    allows_room(filter.rooms.as_deref(), &filter.not_rooms, room_id)
}

/// Whether a filter lets every event of every room through.
pub(crate) fn allows_all(filter: &RoomEventFilter) -> bool {
    filter.types.is_none()
        && filter.not_types.is_empty()
        && filter.senders.is_none()
        && filter.not_senders.is_empty()
        && filter.rooms.is_none()
        && filter.not_rooms.is_empty()
        && filter.url_filter.is_none()
}

/// Whether an event of a room is wanted.
pub(crate) fn wants_event(filter: &RoomEventFilter, event: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Content {
        url: Option<IgnoredAny>,
    }
    if allows_all(filter) {
        return true;
    }
    let sender = event.sender();
    let senders = filter.senders.as_deref();
    let by_sender = senders.is_none_or(|senders| senders.iter().any(|s| s == sender))
        && !filter.not_senders.iter().any(|s| s == sender);
    by_sender
        && wants_type_in(filter, event.room_id(), &event.event_type().to_string())
        && filter.url_filter.is_none_or(|wanted| {
            let content = event.content_as::<Content>().ok();
            let has_url = content.is_some_and(|content| content.url.is_some());
            has_url == (wanted == UrlFilter::EventsWithUrl)
        })
}

/// Whether what has only a type, such as account data, is wanted of a room.
pub(crate) fn wants_type_in(filter: &RoomEventFilter, room_id: &RoomId, event_type: &str) -> bool {
    allows_type(filter.types.as_deref(), &filter.not_types, event_type)
        && allows_room(filter.rooms.as_deref(), &filter.not_rooms, room_id)
}

/// Whether what belongs to no room is wanted.
pub(crate) fn wants_type(filter: &Filter, event_type: &str) -> bool {
    allows_type(filter.types.as_deref(), &filter.not_types, event_type)
}

/// Whether what a user sends outside of rooms is wanted.
pub(crate) fn wants_sender(filter: &Filter, user_id: &UserId) -> bool {
    let wanted = filter.senders.as_ref();
    wanted.is_none_or(|senders| senders.iter().any(|sender| sender == user_id))
        && !filter.not_senders.iter().any(|sender| sender == user_id)
}

fn allows_room(
    rooms: Option<&[ruma::OwnedRoomId]>,
    not_rooms: &[ruma::OwnedRoomId],
    room_id: &RoomId,
) -> bool {
    rooms.is_none_or(|rooms| rooms.iter().any(|room| room == room_id))
        && !not_rooms.iter().any(|room| room == room_id)
}

fn allows_type(types: Option<&[String]>, not_types: &[String], event_type: &str) -> bool {
    types.is_none_or(|types| types.iter().any(|pattern| matches(pattern, event_type)))
        && !not_types.iter().any(|pattern| matches(pattern, event_type))
}

/// Whether a text fits a pattern, in which `*` stands for any sequence of characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // Without a star it must be the whole text.
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_sequence() {
        for (pattern, text, fits) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.message", true),
            ("m.room.*", "m.room.", true),
            ("m.room.*", "m.reaction", false),
            ("*", "", true),
            ("*.message", "m.room.message", true),
            ("m.*.message", "m.room.message", true),
            ("m.*.*age", "m.room.message", true),
            ("m.*e*e", "m.e", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
            ("", "m.room.message", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn exclusion_wins() {
        let types = ["m.*".to_owned()];
        assert!(allows_type(Some(&types), &[], "m.tag"));
        assert!(!allows_type(Some(&types), &["m.tag".to_owned()], "m.tag"));
        assert!(!allows_type(Some(&[]), &[], "m.tag"));
        assert!(allows_type(None, &[], "m.tag"));
    }
}
