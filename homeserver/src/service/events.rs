//! Events and room states, read through memory, and the format in which clients get them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId, UserId,
    events::{AnySyncTimelineEvent, StateEventType},
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;
use sotto_federation::room::{pdu::Pdu, version};

use super::accounts::Requester;
use crate::storage::{
    Families, Storage, StorageError,
    events::{StoredEvent, TxnScope},
    rooms::RoomNid,
    state_map::{EventNid, NodeId, StateKeyId},
};

/// Reads events.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    storage: Storage,
}

impl Events {
    pub(crate) fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// An event by its id.
    pub(crate) async fn by_id(
        &self,
        event_id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        let found = self.by_ids(&[event_id.to_owned()]).await?;
        Ok(found.into_values().next())
    }

    /// Events by their ids; unknown ones are left out.
    pub(crate) async fn by_ids(
        &self,
        event_ids: &[OwnedEventId],
    ) -> Result<BTreeMap<OwnedEventId, Arc<StoredEvent>>, StorageError> {
        let cache = self.storage.event_cache();
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for event_id in event_ids {
            match cache.by_id(event_id) {
                Some(event) => {
                    found.insert(event_id.clone(), event);
                }
                None => missing.push(event_id.clone()),
            }
        }
        if !missing.is_empty() {
            for event in self.storage.read().await?.events().by_ids(&missing).await? {
                let event = self.keep(event);
                found.insert(event.pdu.event_id().to_owned(), event);
            }
        }
        Ok(found)
    }

    /// Events by their numbers.
    pub(crate) async fn by_nids(
        &self,
        nids: &[EventNid],
    ) -> Result<BTreeMap<EventNid, Arc<StoredEvent>>, StorageError> {
        let cache = self.storage.event_cache();
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for nid in nids {
            match cache.by_nid(*nid) {
                Some(event) => {
                    found.insert(*nid, event);
                }
                None => missing.push(*nid),
            }
        }
        if !missing.is_empty() {
            for event in self
                .storage
                .read()
                .await?
                .events()
                .by_nids(&missing)
                .await?
            {
                found.insert(event.nid, self.keep(event));
            }
        }
        Ok(found)
    }

    /// The newest events of rooms above and up to a position, at most `limit` of each room, oldest first;
    /// nothing for a room without any.
    pub(crate) async fn newest(
        &self,
        rooms: &[RoomNid],
        above: i64,
        at_most: i64,
        limit: i64,
    ) -> Result<Vec<Vec<Arc<StoredEvent>>>, StorageError> {
        let mut reader = self.storage.read().await?;
        let mut table = reader.events();
        let newest = table.newest(rooms, above, at_most, limit).await?;
        drop(reader);
        let nids: Vec<_> = newest.iter().flatten().copied().collect();
        let events = self.by_nids(&nids).await?;
        let of_room = |nids: Vec<EventNid>| {
            let found = nids.iter().filter_map(|nid| events.get(nid).cloned());
            let mut found: Vec<_> = found.collect();
            found.sort_unstable_by_key(|event| event.position);
            found
        };
        Ok(newest.into_iter().map(of_room).collect())
    }

    /// Keeps what was read from the database, unless memory has it already.
    pub(crate) fn keep(&self, event: StoredEvent) -> Arc<StoredEvent> {
        let cache = self.storage.event_cache();
        cache.by_nid(event.nid).unwrap_or_else(|| {
            let event = Arc::new(event);
            cache.replace(&event);
            event
        })
    }

    /// Brings into memory the events that states have for keys, and these events: few trips for all of them.
    pub(crate) async fn fetch(
        &self,
        keys: &[(NodeId, StateKeyId)],
        events: impl IntoIterator<Item = EventNid>,
    ) -> Result<(), StorageError> {
        let of_states = self.storage.state_gets(keys).await?;
        let nids: BTreeSet<_> = events.into_iter().chain(of_states).collect();
        let nids: Vec<_> = nids.into_iter().collect();
        self.by_nids(&nids).await.map(drop)
    }

    /// The event that a state has for a type and a state key.
    pub(crate) async fn state_event(
        &self,
        state: NodeId,
        event_type: &StateEventType,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, StorageError> {
        match self.storage.state_get(state, event_type, state_key).await? {
            None => Ok(None),
            Some(nid) => Ok(self.by_nids(&[nid]).await?.remove(&nid)),
        }
    }

    /// As [`Events::state_event`], for deciding on new events: also finds what is about to be committed.
    pub(crate) async fn state_pdu(
        &self,
        state: NodeId,
        event_type: &StateEventType,
        state_key: &str,
    ) -> Result<Option<(EventNid, Arc<Pdu>)>, StorageError> {
        let Some(nid) = self.storage.state_get(state, event_type, state_key).await? else {
            return Ok(None);
        };
        if let Some(pdu) = self.storage.event_cache().pending(nid) {
            return Ok(Some((nid, pdu)));
        }
        let event = self.by_nids(&[nid]).await?.remove(&nid).ok_or_else(|| {
            StorageError::inconsistent("state_nodes", "node", &format!("{state:?}"))
        })?;
        Ok(Some((nid, event.pdu.clone())))
    }

    /// All events of a state.
    pub(crate) async fn full_state(
        &self,
        state: NodeId,
    ) -> Result<Vec<Arc<StoredEvent>>, StorageError> {
        let nids: Vec<_> = self
            .storage
            .state_entries(state)
            .await?
            .into_values()
            .collect();
        Ok(self.by_nids(&nids).await?.into_values().collect())
    }

    /// An event as a client gets it within a room, for the device that asks
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#room-event-format)).
    pub(crate) async fn for_client(
        &self,
        event: &StoredEvent,
        requester: &Requester,
    ) -> Result<Raw<AnySyncTimelineEvent>, StorageError> {
        let own = event.txn.as_ref().filter(|txn| txn.scope.is_of(requester));
        if let Some(txn) = own {
            return self.format(event, Some(txn.id.as_str()), false).await;
        }
        if let Some(json) = event.client_json.get() {
            return Ok(json.clone());
        }
        let json = self.format(event, None, false).await?;
        Ok(event.client_json.get_or_init(|| json).clone())
    }

    /// As [`Events::for_client`], with the room id: for everything but sync.
    pub(crate) async fn for_client_with_room<T>(
        &self,
        event: &StoredEvent,
        requester: &Requester,
    ) -> Result<Raw<T>, StorageError> {
        let own = event.txn.as_ref().filter(|txn| txn.scope.is_of(requester));
        let txn_id = own.map(|txn| txn.id.as_str());
        Ok(self.format(event, txn_id, true).await?.cast_unchecked())
    }

    /// An event as application services get it, which are no devices.
    pub(crate) async fn for_service(
        &self,
        event: &StoredEvent,
    ) -> Result<Box<RawValue>, StorageError> {
        Ok(self.format(event, None, true).await?.into_json())
    }

    async fn format(
        &self,
        event: &StoredEvent,
        transaction_id: Option<&str>,
        with_room: bool,
    ) -> Result<Raw<AnySyncTimelineEvent>, StorageError> {
        let redaction = match &event.redacted_by {
            Some(id) => self.by_id(id).await?,
            None => None,
        };
        // That one may be redacted as well, and so on, or by this very event: what is in it is not told.
        let redacted_because = match &redaction {
            Some(redaction) => Some(self.write(redaction, None, true, None).await?),
            None => None,
        };
        self.write(event, transaction_id, with_room, redacted_because)
            .await
    }

    async fn write(
        &self,
        event: &StoredEvent,
        transaction_id: Option<&str>,
        with_room: bool,
        redacted_because: Option<Raw<AnySyncTimelineEvent>>,
    ) -> Result<Raw<AnySyncTimelineEvent>, StorageError> {
        let replaced = match event.replaces {
            Some(nid) => self.by_nids(&[nid]).await?.remove(&nid),
            None => None,
        };
        let pdu = &event.pdu;
        let redacts = version::rules(&event.version).and_then(|rules| {
            let redaction = *pdu.event_type() == ruma::events::TimelineEventType::RoomRedaction;
            redaction.then(|| pdu.redacts(&rules)).flatten()
        });
        let client = ClientEvent {
            content: pdu.content(),
            event_id: pdu.event_id(),
            origin_server_ts: pdu.origin_server_ts().0.into(),
            redacts,
            room_id: with_room.then(|| pdu.room_id().as_str()),
            sender: pdu.sender(),
            state_key: pdu.state_key(),
            event_type: pdu.event_type().to_string(),
            unsigned: Unsigned {
                prev_content: replaced.as_ref().map(|event| event.pdu.content()),
                prev_sender: replaced.as_ref().map(|event| event.pdu.sender()),
                replaces_state: replaced.as_ref().map(|event| event.pdu.event_id()),
                redacted_by: event.redacted_by.as_deref(),
                redacted_because,
                transaction_id,
            },
        };
        let json = serde_json::value::to_raw_value(&client);
        let wrong = |_| StorageError::inconsistent("events", "json", pdu.event_id().as_str());
        json.map(Raw::from_json).map_err(wrong)
    }
}

impl TxnScope {
    /// The scope of an endpoint for a device
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#transaction-identifiers)).
    pub(crate) fn new(requester: &Requester, endpoint: &str) -> Self {
        Self(format!(
            "{}\u{1f}{}\u{1f}{endpoint}",
            requester.user_id, requester.device_id
        ))
    }

    fn is_of(&self, requester: &Requester) -> bool {
        let mut parts = self.0.split('\u{1f}');
        parts.next() == Some(requester.user_id.as_str())
            && parts.next() == Some(requester.device_id.as_str())
    }
}

#[derive(Serialize)]
struct ClientEvent<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<OwnedEventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a str>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(skip_serializing_if = "Unsigned::is_empty")]
    unsigned: Unsigned<'a>,
}

#[derive(Serialize)]
struct Unsigned<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_sender: Option<&'a UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<&'a EventId>,
    /// Only the id: what clients read before the whole event was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_by: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<Raw<AnySyncTimelineEvent>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<&'a str>,
}

impl Unsigned<'_> {
    fn is_empty(&self) -> bool {
        self.prev_content.is_none()
            && self.redacted_because.is_none()
            && self.transaction_id.is_none()
    }
}
