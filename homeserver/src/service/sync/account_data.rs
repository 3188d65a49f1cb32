//! Account data in `/sync`
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#client-behaviour-24)).

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::client::sync::sync_events::v3::{GlobalAccountData, RoomAccountData},
    events::{AnyRoomAccountDataEvent, room::member::MembershipState},
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{Look, Sync};
use crate::{
    service::{filter, push_rules},
    storage::{
        Families, StorageError,
        account_data::Item,
        log::{Change, StreamPosition},
    },
};

/// The account data that a client must learn of.
#[derive(Debug, Default)]
pub(super) struct AccountDataNews {
    global: Vec<Item>,
    rooms: BTreeMap<OwnedRoomId, Vec<Item>>,
}

impl AccountDataNews {
    pub(super) async fn gather(sync: &Sync, look: &Look<'_>) -> Result<Self, StorageError> {
        let user_id = &look.ask.requester.user_id;
        let own = |change: &Change| matches!(change, Change::AccountData { user_id: whose } if whose == user_id);
        let new_room = look
            .places
            .iter()
            .any(|(id, place)| place.membership == MembershipState::Join && look.is_new(id, place));
        let news = look
            .entries
            .as_ref()
            .is_none_or(|entries| entries.iter().any(|entry| own(&entry.change)));
        if !news && !new_room {
            return Ok(Self::default());
        }
        // A room that is new to the client comes with all that was ever set for it.
        let above = if new_room {
            StreamPosition(0)
        } else {
            look.since
        };
        let mut reader = sync.storage.read().await?;
        let items = reader
            .account_data()
            .changed(user_id, above, look.until)
            .await?;
        let mut found = Self::default();
        for mut item in items {
            item.content = content_of(&item, user_id);
            let everything = look.is_first() || look.ask.full_state;
            let fresh = everything || item.position > look.since;
            match &item.room_id {
                None if fresh => found.global.push(item),
                Some(room_id)
                    if fresh
                        || look
                            .places
                            .get(room_id)
                            .is_some_and(|p| look.is_new(room_id, p)) =>
                {
                    found.rooms.entry(room_id.clone()).or_default().push(item);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// What belongs to no room. Push rules are there from the start, also those that nobody changed.
    pub(super) fn global(&self, look: &Look<'_>) -> GlobalAccountData {
        let filter = &look.ask.filter.account_data;
        let wanted = |item: &&Item| filter::wants_type(filter, &item.event_type);
        let mut data = GlobalAccountData::new();
        let items = self.global.iter().filter(wanted);
        data.events
            .extend(items.filter_map(event).map(Raw::cast_unchecked));
        let is_rules = |item: &Item| item.event_type == push_rules::EVENT_TYPE;
        if (look.is_first() || look.ask.full_state)
            && !self.global.iter().any(is_rules)
            && filter::wants_type(filter, push_rules::EVENT_TYPE)
        {
            let rules = default_rules(&look.ask.requester.user_id);
            data.events.extend(rules.map(Raw::cast_unchecked));
        }
        data
    }

    /// Whether there is anything of a room.
    pub(super) fn is_in(&self, room_id: &RoomId) -> bool {
        self.rooms.contains_key(room_id)
    }

    /// What belongs to a room.
    pub(super) fn of_room(&self, look: &Look<'_>, room_id: &RoomId) -> RoomAccountData {
        let filter = &look.ask.filter.room.account_data;
        let items = self.rooms.get(room_id).into_iter().flatten();
        let wanted = items.filter(|item| filter::wants_type_in(filter, room_id, &item.event_type));
        let mut data = RoomAccountData::new();
        data.events.extend(wanted.filter_map(event));
        data
    }
}

/// The content as clients get it: of push rules also those that nobody changed.
pub(super) fn content_of(item: &Item, user_id: &UserId) -> String {
    let rules = item.room_id.is_none() && item.event_type == push_rules::EVENT_TYPE;
    let whole = rules.then(|| push_rules::content(user_id, Some(&item.content)));
    whole.flatten().unwrap_or_else(|| item.content.clone())
}

/// The push rules of one who changed nothing.
pub(super) fn default_rules(user_id: &UserId) -> Option<Raw<AnyRoomAccountDataEvent>> {
    let content = push_rules::content(user_id, None);
    content.and_then(|content| to_event(push_rules::EVENT_TYPE, content))
}

pub(super) fn event(item: &Item) -> Option<Raw<AnyRoomAccountDataEvent>> {
    to_event(&item.event_type, item.content.clone())
}

fn to_event(event_type: &str, content: String) -> Option<Raw<AnyRoomAccountDataEvent>> {
    // Not through `Value`: clients write numbers that it cannot hold.
    #[derive(Serialize)]
    struct Event<'a> {
        content: Box<RawValue>,
        #[serde(rename = "type")]
        event_type: &'a str,
    }
    let content = RawValue::from_string(content).ok()?;
    let event = Event {
        content,
        event_type,
    };
    Some(Raw::from_json(to_raw_value(&event).ok()?))
}
