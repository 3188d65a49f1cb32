//! Receipts and typing in `/sync`
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#receipts)).

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::sync::sync_events::v3::Ephemeral,
    events::{AnySyncEphemeralRoomEvent, room::member::MembershipState},
    serde::Raw,
};
use serde_json::{Map, Value, json};

use super::{Look, Sync};
use crate::{
    service::filter,
    storage::{
        Families, StorageError,
        log::{Change, StreamPosition},
        receipts::StoredReceipt,
    },
};

/// The receipts and the typing notices that a client must learn of.
#[derive(Debug, Default)]
pub(super) struct EphemeralNews {
    receipts: BTreeMap<OwnedRoomId, Vec<StoredReceipt>>,
    typing: BTreeMap<OwnedRoomId, Vec<OwnedUserId>>,
}

impl EphemeralNews {
    pub(super) async fn gather(sync: &Sync, look: &Look<'_>) -> Result<Self, StorageError> {
        let (mut new, mut old) = (Vec::new(), Vec::new());
        let touched = touched(look);
        let mut found = Self::default();
        for (room_id, place) in &look.places {
            if place.membership != MembershipState::Join || !look.wants(room_id) {
                continue;
            }
            let is_new = look.is_new(room_id, place);
            if is_new {
                new.push(room_id.clone());
            } else if touched.as_ref().is_none_or(|rooms| rooms.contains(room_id)) {
                old.push(room_id.clone());
            }
            if let Some((position, users)) = sync.typing.in_room(room_id) {
                // Also that nobody does any more: a client may know more than it says.
                let changed = position > look.since && position <= look.until;
                if changed || (is_new && !users.is_empty()) {
                    found.typing.insert(room_id.clone(), users);
                }
            }
        }
        for (rooms, above) in [(new, StreamPosition(0)), (old, look.since)] {
            if rooms.is_empty() {
                continue;
            }
            let mut reader = sync.storage.read().await?;
            let user_id = &look.ask.requester.user_id;
            for receipt in reader
                .receipts()
                .changed(&rooms, user_id, above, look.until)
                .await?
            {
                let room = found.receipts.entry(receipt.room_id.clone()).or_default();
                room.push(receipt);
            }
        }
        Ok(found)
    }

    /// Whether there is anything of a room.
    pub(super) fn is_in(&self, room_id: &RoomId) -> bool {
        self.receipts.contains_key(room_id) || self.typing.contains_key(room_id)
    }

    /// The rooms in which the user's own receipts changed.
    pub(super) fn own_receipts<'a>(
        &'a self,
        user_id: &'a UserId,
    ) -> impl Iterator<Item = &'a OwnedRoomId> {
        let own = move |receipts: &[StoredReceipt]| receipts.iter().any(|r| r.user_id == user_id);
        let rooms = self.receipts.iter();
        rooms
            .filter(move |(_, receipts)| own(receipts))
            .map(|(room_id, _)| room_id)
    }

    pub(super) fn of_room(&self, look: &Look<'_>, room_id: &RoomId) -> Ephemeral {
        let filter = &look.ask.filter.room.ephemeral;
        let receipts = self.receipts.get(room_id).map(|r| receipt_events(r));
        let typing = self
            .typing
            .get(room_id)
            .map(|users| json!({ "type": "m.typing", "content": { "user_ids": users } }));
        let events = [
            ("m.receipt", receipts.unwrap_or_default()),
            ("m.typing", typing.into_iter().collect()),
        ];
        let wanted = events
            .into_iter()
            .filter(|(event_type, _)| filter::wants_type_in(filter, room_id, event_type))
            .flat_map(|(_, events)| events)
            .filter_map(|event| raw(&event));
        let mut ephemeral = Ephemeral::new();
        ephemeral.events.extend(wanted);
        ephemeral
    }
}

/// The rooms with new receipts that the user may see; `None` if memory does not know.
pub(super) fn touched<'a>(look: &'a Look<'_>) -> Option<BTreeSet<&'a OwnedRoomId>> {
    let own = &look.ask.requester.user_id;
    let entries = look.entries.as_ref()?.iter();
    let rooms = entries.filter_map(|entry| match &entry.change {
        Change::Receipt {
            room_id,
            user_id,
            private,
        } if !private || user_id == own => Some(room_id),
        _ => None,
    });
    Some(rooms.collect())
}

/// The `m.receipt` events that tell receipts: event, type, user. A user can have receipts of several threads at
/// one event, for which the format has no place: each further one is in a further event. The receipt that says
/// most, that without thread, is in the first.
pub(crate) fn receipt_events(receipts: &[StoredReceipt]) -> Vec<Value> {
    type Content<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Map<String, Value>>>;
    let mut layers: Vec<Content<'_>> = Vec::new();
    let (threaded, whole): (Vec<_>, Vec<_>) = receipts.iter().partition(|r| r.thread_id.is_some());
    for receipt in whole.into_iter().chain(threaded) {
        let mut value = json!({ "ts": receipt.received_at });
        if let Some(thread_id) = &receipt.thread_id {
            value["thread_id"] = json!(thread_id);
        }
        let (event, kind) = (receipt.event_id.as_str(), receipt.receipt_type.as_str());
        let user = receipt.user_id.as_str();
        let is_taken = |layer: &Content<'_>| {
            let users = layer.get(event).and_then(|types| types.get(kind));
            users.is_some_and(|users| users.contains_key(user))
        };
        let free = layers.iter().position(|layer| !is_taken(layer));
        let free = free.unwrap_or_else(|| {
            layers.push(Content::new());
            layers.len() - 1
        });
        if let Some(layer) = layers.get_mut(free) {
            let users = layer.entry(event).or_default().entry(kind).or_default();
            users.insert(user.to_owned(), value);
        }
    }
    let event = |content| json!({ "type": "m.receipt", "content": content });
    layers.into_iter().map(event).collect()
}

fn raw(event: &Value) -> Option<Raw<AnySyncEphemeralRoomEvent>> {
    Raw::new(event).ok().map(Raw::cast_unchecked)
}
