//! What is told beside rooms: messages between devices, keys, account data, receipts, typing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedRoomId, RoomId,
    api::client::sync::sync_events::v5::{
        Response,
        request::ExtensionRoomConfig,
        response::{Extensions, ToDevice},
    },
    events::room::member::MembershipState,
    serde::Raw,
};
use serde_json::json;

use super::{
    super::{Look, Sync, SyncToken, account_data, encryption, ephemeral},
    Slide,
    connection::{Memory, Told},
    window::Window,
};
use crate::{
    service::{accounts::Requester, push_rules, thread_subscriptions::Changes},
    storage::{
        Families, StorageError,
        log::{Change, StreamPosition},
    },
};

/// How many messages of other devices are in one reply.
const TO_DEVICE_LIMIT: i64 = 100;

impl Sync {
    /// Deletes the messages that the device has, as the token of the extension proves.
    pub(super) async fn confirm_sliding_to_device(
        &self,
        requester: &Requester,
        request: &ruma::api::client::sync::sync_events::v5::Request,
    ) -> Result<(), StorageError> {
        let since = request.extensions.to_device.since.as_deref();
        let token: Option<SyncToken> = since.and_then(|since| since.parse().ok());
        self.confirm_to_device(requester, token).await
    }

    /// Fills in the extensions; whether they have news.
    pub(super) async fn extend(
        &self,
        slide: &Slide<'_>,
        window: &Window,
        response: &mut Response,
        memory: &mut Arc<Memory>,
    ) -> Result<bool, StorageError> {
        let asked = &slide.request.extensions;
        let mut told = Extensions::default();
        let mut news = false;
        if asked.to_device.enabled == Some(true) {
            news |= self.extend_to_device(slide, &mut told).await?;
        }
        if asked.e2ee.enabled == Some(true) {
            let look = &slide.look;
            let requester = &look.ask.requester;
            let counts = self.keys.counts(requester).await?;
            told.e2ee
                .device_one_time_keys_count
                .clone_from(&counts.one_time_keys);
            told.e2ee.device_unused_fallback_key_types = Some(counts.unused_fallback_keys.clone());
            if !look.is_first() {
                told.e2ee.device_lists = self.device_lists(look).await?;
            }
            news |= encryption::counts_changed(look) || !told.e2ee.device_lists.is_empty();
        }
        if asked.account_data.enabled == Some(true) {
            news |= self
                .extend_account_data(slide, window, &mut told, memory)
                .await?;
        }
        if asked.receipts.enabled == Some(true) {
            news |= self
                .extend_receipts(slide, window, response, &mut told, memory)
                .await?;
        }
        if asked.typing.enabled == Some(true) {
            news |= self.extend_typing(slide, window, response, &mut told);
        }
        response.extensions = told;
        Ok(news)
    }

    async fn extend_to_device(
        &self,
        slide: &Slide<'_>,
        told: &mut Extensions,
    ) -> Result<bool, StorageError> {
        let asked = &slide.request.extensions.to_device;
        let look = &slide.look;
        let Requester {
            user_id, device_id, ..
        } = &look.ask.requester;
        let since: Option<SyncToken> = asked.since.as_deref().and_then(|s| s.parse().ok());
        let since = since.map_or(StreamPosition(0), |token| token.to_device);
        let waits = self.storage.log().since(since).is_none_or(|entries| {
            entries.iter().any(|entry| {
                matches!(&entry.change, Change::ToDevice { user_id: user, device_id: device }
                    if user == user_id && device == device_id)
            })
        });
        let mut extension = ToDevice::default();
        let mut next = since.max(look.until);
        if waits || since.0 == 0 {
            let limit = asked.limit.map(i64::from);
            let limit = limit.unwrap_or(TO_DEVICE_LIMIT).clamp(1, TO_DEVICE_LIMIT);
            let mut reader = self.storage.read().await?;
            let mut table = reader.to_device();
            let waiting = table
                .waiting(user_id, device_id, since, look.until, limit)
                .await?;
            if let Some((last, _)) = waiting.last() {
                self.told.tell(&look.ask.requester, *last);
                if i64::try_from(waiting.len()).is_ok_and(|count| count == limit) {
                    next = *last;
                }
            }
            for (_, json) in waiting {
                extension
                    .events
                    .push(encryption::to_device_event(json, user_id)?);
            }
        }
        extension.next_batch = SyncToken::at(next).to_string();
        let news = !extension.events.is_empty();
        told.to_device = Some(extension);
        Ok(news)
    }

    async fn extend_account_data(
        &self,
        slide: &Slide<'_>,
        window: &Window,
        told: &mut Extensions,
        memory: &mut Arc<Memory>,
    ) -> Result<bool, StorageError> {
        let asked = &slide.request.extensions.account_data;
        let look = &slide.look;
        let user_id = &look.ask.requester.user_id;
        let touched = look.entries.as_ref().is_none_or(|entries| {
            entries.iter().any(|entry| {
                matches!(&entry.change, Change::AccountData { user_id: whose } if whose == user_id)
            })
        });
        let scope = scope(
            slide,
            window,
            asked.lists.as_deref(),
            asked.rooms.as_deref(),
        );
        let before = slide.memory.account_data.clone();
        let changed = |_: &RoomId| touched;
        let from = progress(look, &scope, &before, changed, |rooms| {
            Arc::make_mut(memory).account_data = rooms;
        });
        if !touched && from.values().all(|from| *from == look.since) {
            return Ok(false);
        }
        let oldest = from.values().min().copied().unwrap_or(look.since);
        let mut reader = self.storage.read().await?;
        let mut table = reader.account_data();
        let items = table
            .changed(user_id, oldest.min(look.since), look.until)
            .await?;
        let mut has_rules = false;
        for mut item in items {
            item.content = account_data::content_of(&item, user_id);
            let Some(event) = account_data::event(&item) else {
                continue;
            };
            match &item.room_id {
                None if item.position > look.since => {
                    has_rules |= item.event_type == push_rules::EVENT_TYPE;
                    told.account_data.global.push(event.cast_unchecked());
                }
                Some(room_id) if from.get(room_id).is_some_and(|from| item.position > *from) => {
                    let rooms = &mut told.account_data.rooms;
                    rooms.entry(room_id.clone()).or_default().push(event);
                }
                _ => {}
            }
        }
        if look.is_first() && !has_rules {
            // Push rules are there from the start, also those that nobody changed.
            let rules = account_data::default_rules(user_id);
            told.account_data
                .global
                .extend(rules.map(Raw::cast_unchecked));
        }
        Ok(!told.account_data.is_empty())
    }

    async fn extend_receipts(
        &self,
        slide: &Slide<'_>,
        window: &Window,
        response: &Response,
        told: &mut Extensions,
        memory: &mut Arc<Memory>,
    ) -> Result<bool, StorageError> {
        let asked = &slide.request.extensions.receipts;
        let look = &slide.look;
        let user_id = &look.ask.requester.user_id;
        let scope = scope(
            slide,
            window,
            asked.lists.as_deref(),
            asked.rooms.as_deref(),
        );
        let touched = ephemeral::touched(look);
        let changed = |room_id: &RoomId| {
            touched
                .as_ref()
                .is_none_or(|rooms| rooms.iter().any(|room| **room == room_id))
        };
        let before = slide.memory.receipts.clone();
        let from = progress(look, &scope, &before, changed, |rooms| {
            Arc::make_mut(memory).receipts = rooms;
        });
        let mut groups: BTreeMap<StreamPosition, Vec<OwnedRoomId>> = BTreeMap::new();
        for (room_id, from) in &from {
            if *from < look.since || look.is_first() || changed(room_id) {
                groups.entry(*from).or_default().push(room_id.clone());
            }
        }
        let mut found: BTreeMap<OwnedRoomId, Vec<_>> = BTreeMap::new();
        for (from, rooms) in groups {
            let mut reader = self.storage.read().await?;
            let mut table = reader.receipts();
            for receipt in table.changed(&rooms, user_id, from, look.until).await? {
                // Of what happened before the client looked, only what it sees now matters.
                let seen = from.0 > 0
                    || receipt.user_id == *user_id
                    || response.rooms.get(&receipt.room_id).is_some_and(|room| {
                        room.timeline.iter().any(|event| {
                            event
                                .get_field::<String>("event_id")
                                .ok()
                                .flatten()
                                .as_deref()
                                == Some(receipt.event_id.as_str())
                        })
                    });
                if seen {
                    let room = found.entry(receipt.room_id.clone()).or_default();
                    room.push(receipt);
                }
            }
        }
        for (room_id, receipts) in found {
            // There is place for one event.
            let event = ephemeral::receipt_events(&receipts).into_iter().next();
            if let Some(event) = event.and_then(|event| Raw::new(&event).ok()) {
                told.receipts.rooms.insert(room_id, event.cast_unchecked());
            }
        }
        Ok(!told.receipts.is_empty())
    }

    /// Which threads the user began to follow, or ceased to.
    pub(super) async fn subscribed_threads(
        &self,
        slide: &Slide<'_>,
    ) -> Result<Changes, StorageError> {
        let look = &slide.look;
        let user_id = &look.ask.requester.user_id;
        let touched = look.entries.as_ref().is_none_or(|entries| {
            entries.iter().any(|entry| {
                matches!(&entry.change, Change::ThreadSubscription { user_id: who } if who == user_id)
            })
        });
        match slide.thread_subscriptions {
            Some(limit) if touched => {
                let changes = &self.thread_subscriptions;
                changes
                    .changes(user_id, look.since, look.until, limit)
                    .await
            }
            _ => Ok(Changes::default()),
        }
    }

    fn extend_typing(
        &self,
        slide: &Slide<'_>,
        window: &Window,
        response: &Response,
        told: &mut Extensions,
    ) -> bool {
        let asked = &slide.request.extensions.typing;
        let look = &slide.look;
        for room_id in scope(
            slide,
            window,
            asked.lists.as_deref(),
            asked.rooms.as_deref(),
        ) {
            let Some((position, users)) = self.typing.in_room(&room_id) else {
                continue;
            };
            let room = response.rooms.get(&room_id);
            let initial = room.is_some_and(|room| room.initial == Some(true));
            let changed = position > look.since && position <= look.until;
            if (changed && !look.is_first()) || (initial && !users.is_empty()) {
                let event = json!({ "type": "m.typing", "content": { "user_ids": users } });
                if let Ok(event) = Raw::new(&event) {
                    told.typing.rooms.insert(room_id, event.cast_unchecked());
                }
            }
        }
        !told.typing.is_empty()
    }
}

/// The joined rooms that an extension is asked for: those of some lists, of all unless it says which, and
/// those that are subscribed to.
fn scope(
    slide: &Slide<'_>,
    window: &Window,
    lists: Option<&[String]>,
    rooms: Option<&[ExtensionRoomConfig]>,
) -> BTreeSet<OwnedRoomId> {
    let subscribed = |room_id: &RoomId| slide.request.room_subscriptions.contains_key(room_id);
    let mut scope = BTreeSet::new();
    for (name, seen) in &window.lists {
        if lists.is_none_or(|lists| lists.iter().any(|list| list == name || list == "*")) {
            scope.extend(seen.iter().cloned());
        }
    }
    let all = rooms.is_none_or(|rooms| rooms.contains(&ExtensionRoomConfig::AllSubscribed));
    if all {
        let subscribed = window.rooms.keys().filter(|room_id| subscribed(room_id));
        scope.extend(subscribed.cloned());
    }
    for room in rooms.unwrap_or_default() {
        if let ExtensionRoomConfig::Room(room_id) = room
            && window.rooms.contains_key(room_id)
        {
            scope.insert(room_id.clone());
        }
    }
    scope.retain(|room_id| {
        let place = slide.look.places.get(room_id);
        place.is_some_and(|place| place.membership == MembershipState::Join)
    });
    scope
}

/// From where on each room is told; what is told now, and what had to wait, is remembered where it is not
/// already.
fn progress(
    look: &Look<'_>,
    scope: &BTreeSet<OwnedRoomId>,
    before: &BTreeMap<OwnedRoomId, Told>,
    changed: impl Fn(&RoomId) -> bool,
    remember: impl FnOnce(BTreeMap<OwnedRoomId, Told>),
) -> BTreeMap<OwnedRoomId, StreamPosition> {
    let mut after = before.clone();
    let mut from = BTreeMap::new();
    for room_id in scope {
        let told = after.insert(room_id.clone(), Told::Live);
        let position = told.map_or(StreamPosition(0), |told| told.position(look.since));
        from.insert(room_id.clone(), position);
    }
    for (room_id, told) in &mut after {
        if *told == Told::Live && !scope.contains(room_id) && changed(room_id) {
            *told = Told::Until(look.since);
        }
    }
    if after != *before {
        remember(after);
    }
    from
}
