//! What goes into the next transaction: a stretch of the log, as far as it concerns the service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId, events::room::member::MembershipState,
};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};

use super::{AppserviceSender, encryption::EncryptionNews, interest::Interest};
use crate::{
    service::{
        appservices::{Appservice, EphemeralForm},
        sync::ephemeral,
    },
    storage::{
        Families, StorageError,
        events::StoredEvent,
        log::{Change, Entry, StreamPosition},
        receipts::StoredReceipt,
    },
};

/// How many events and messages between devices are looked at for one transaction.
const AT_ONCE: usize = 100;

/// What a service is told at once.
#[derive(Default)]
pub(super) struct Batch {
    /// How far it reaches in the log.
    pub(super) until: StreamPosition,
    pub(super) events: Vec<Box<RawValue>>,
    ephemeral: Vec<Value>,
    to_device: Vec<Value>,
    /// The messages that nobody but the service gets: they need not wait any longer.
    pub(super) taken: Vec<Message>,
    encryption: EncryptionNews,
}

/// A message for a device of the service.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) user_id: OwnedUserId,
    pub(super) device_id: OwnedDeviceId,
    pub(super) position: StreamPosition,
}

/// What happened in a stretch of the log that is told once, however often it happened.
#[derive(Default)]
pub(super) struct Touched {
    typing: BTreeSet<OwnedRoomId>,
    receipts: BTreeSet<OwnedRoomId>,
    presence: BTreeSet<OwnedUserId>,
    to_device: bool,
    pub(super) keys: BTreeSet<(OwnedUserId, OwnedDeviceId)>,
    pub(super) lists: BTreeSet<OwnedUserId>,
    /// Who may have come into sight, or out of it.
    pub(super) moved: BTreeSet<OwnedUserId>,
}

impl AppserviceSender {
    /// Reads the log on from a place.
    pub(super) async fn gather(
        &self,
        read: StreamPosition,
        interest: &mut Interest,
    ) -> Result<Batch, StorageError> {
        let storage = &self.parts.storage;
        let (mut batch, mut touched) = (Batch::default(), Touched::default());
        if let Some(entries) = storage.log().since(read) {
            let entries = stretch(&entries);
            batch.until = entries.last().map_or(read, |entry| entry.position);
            for entry in entries {
                interest
                    .apply(storage, &self.service, &entry.change)
                    .await?;
                self.look(entry, interest, &mut batch, &mut touched).await?;
            }
        } else {
            *interest = Interest::load(storage, &self.service).await?;
            self.look_back(read, interest, &mut batch, &mut touched)
                .await?;
        }
        if self.service.ephemeral.is_some() {
            self.ephemeral(read, interest, &mut batch, &mut touched)
                .await?;
        }
        if self.service.encryption {
            batch.encryption = self.encryption_news(interest, touched).await?;
        }
        Ok(batch)
    }

    /// Takes one entry of the log in.
    async fn look(
        &self,
        entry: &Entry,
        interest: &Interest,
        batch: &mut Batch,
        touched: &mut Touched,
    ) -> Result<(), StorageError> {
        let service = &self.service;
        match &entry.change {
            Change::Event(event) => {
                self.add(event, entry.position, interest, batch).await?;
                if service.encryption {
                    self.see_moves(event, interest, touched).await?;
                }
            }
            Change::OutsideMembership(row)
                if row.place.membership == MembershipState::Invite
                    && service.covers_user(&row.user_id) =>
            {
                batch
                    .events
                    .extend(self.invite(&row.room_id, &row.user_id).await?);
            }
            Change::Typing { room_id } => drop(touched.typing.insert(room_id.clone())),
            Change::Receipt { room_id, .. } => drop(touched.receipts.insert(room_id.clone())),
            Change::Presence { user_id } => drop(touched.presence.insert(user_id.clone())),
            Change::ToDevice { user_id, .. } => touched.to_device |= service.covers_user(user_id),
            Change::DeviceList { user_id } => drop(touched.lists.insert(user_id.clone())),
            Change::OneTimeKeys { user_id, device_id } if service.covers_user(user_id) => {
                let device = (user_id.clone(), device_id.clone());
                touched.keys.insert(device);
            }
            _ => {}
        }
        Ok(())
    }

    /// After a restart, or far behind: what the database says. Who typed then does not matter any more.
    async fn look_back(
        &self,
        read: StreamPosition,
        interest: &Interest,
        batch: &mut Batch,
        touched: &mut Touched,
    ) -> Result<(), StorageError> {
        let log = self.parts.storage.log();
        let limit = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
        let mut end = log.position();
        let mut reader = self.parts.storage.read().await?;
        let messages = reader.to_device().between(read, end, limit).await?;
        if messages.len() == AT_ONCE
            && let Some(last) = messages.last()
        {
            end = last.position;
        }
        let page = reader.events().after(read, end, limit).await?;
        let last = page.last().and_then(StoredEvent::log_position);
        batch.until = last.filter(|_| page.len() == AT_ONCE).unwrap_or(end);
        touched.lists = reader
            .device_lists()
            .changed_since(read)
            .await?
            .into_iter()
            .collect();
        drop(reader);
        for event in page {
            if let Some(position) = event.log_position() {
                self.add(&event, position, interest, batch).await?;
            }
        }
        for (room_id, users) in interest.rooms() {
            for user_id in users {
                let place = log.roster().place(user_id, room_id);
                let is_new = |since: StreamPosition| since > read && since <= batch.until;
                if place.is_some_and(|place| {
                    place.membership == MembershipState::Invite && is_new(place.since)
                }) && !self.is_resident(room_id).await?
                {
                    batch.events.extend(self.invite(room_id, user_id).await?);
                }
            }
            touched.receipts.insert(room_id.clone());
        }
        touched.to_device = true;
        Ok(())
    }

    /// Adds an event, if the service is told of it.
    async fn add(
        &self,
        event: &StoredEvent,
        at: StreamPosition,
        interest: &Interest,
        batch: &mut Batch,
    ) -> Result<(), StorageError> {
        let (events, log) = (&self.parts.events, self.parts.storage.log());
        if interest
            .is_in(event, at, (&self.service, events, log))
            .await?
        {
            batch.events.push(events.for_service(event).await?);
        }
        Ok(())
    }

    async fn is_resident(&self, room_id: &RoomId) -> Result<bool, StorageError> {
        let mut reader = self.parts.storage.read().await?;
        let room = reader.rooms().by_id(room_id).await?;
        Ok(room.is_some_and(|room| room.head.is_some()))
    }

    /// The invite of a user to a room that the server is not in: no event of its own says it, but what came
    /// with the invite.
    async fn invite(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<Option<Box<RawValue>>, StorageError> {
        let mut reader = self.parts.storage.read().await?;
        let Some(room) = reader.rooms().by_id(room_id).await? else {
            return Ok(None);
        };
        let told = reader
            .memberships()
            .outside_event(room.nid, user_id)
            .await?;
        drop(reader);
        let Some(told) = told else {
            return Ok(None);
        };
        let stripped: Vec<Value> = serde_json::from_str(&told.stripped_state).unwrap_or_default();
        let own = stripped.iter().find(|event| {
            event["type"] == "m.room.member" && event["state_key"] == user_id.as_str()
        });
        let invite = own.map(|own| {
            json!({
                "type": "m.room.member",
                "event_id": told.event_id,
                "room_id": room_id,
                "sender": own["sender"],
                "state_key": user_id,
                "content": own["content"],
                "origin_server_ts": self.parts.clock.now().0,
                "unsigned": { "invite_room_state": stripped },
            })
        });
        Ok(invite.and_then(|invite| to_raw_value(&invite).ok()))
    }

    /// Who types, who has read what, who is there, and what devices say to each other.
    async fn ephemeral(
        &self,
        read: StreamPosition,
        interest: &Interest,
        batch: &mut Batch,
        touched: &mut Touched,
    ) -> Result<(), StorageError> {
        let (service, log) = (&*self.service, self.parts.storage.log());
        let concerns = |room_id: &&OwnedRoomId| interest.is_in_room(service, room_id, log);
        for room_id in touched.typing.iter().filter(concerns) {
            if let Some((_, users)) = self.parts.typing.in_room(room_id) {
                let content = json!({ "user_ids": users });
                let event = json!({ "type": "m.typing", "room_id": room_id, "content": content });
                batch.ephemeral.push(event);
            }
        }
        let rooms: Vec<_> = touched.receipts.iter().filter(concerns).cloned().collect();
        if !rooms.is_empty() {
            let mut reader = self.parts.storage.read().await?;
            let mut receipts = reader.receipts();
            let found = receipts.all_changed(&rooms, read, batch.until).await?;
            batch.ephemeral.extend(receipt_events(service, found));
        }
        for user_id in &touched.presence {
            if service.covers_user(user_id) || interest.meets(user_id, log) {
                batch.ephemeral.push(self.parts.presence.event(user_id));
            }
        }
        if touched.to_device {
            self.messages(read, batch, touched).await?;
        }
        Ok(())
    }

    /// The messages for devices of the service.
    async fn messages(
        &self,
        read: StreamPosition,
        batch: &mut Batch,
        touched: &mut Touched,
    ) -> Result<(), StorageError> {
        let mut reader = self.parts.storage.read().await?;
        let found = reader
            .to_device()
            .between(read, batch.until, i64::MAX)
            .await?;
        for message in found {
            let Ok(mut json) = serde_json::from_str::<Map<String, Value>>(&message.json) else {
                continue;
            };
            if !self.service.covers_user(&message.user_id) {
                continue;
            }
            json.insert("to_user_id".to_owned(), message.user_id.as_str().into());
            json.insert("to_device_id".to_owned(), message.device_id.as_str().into());
            batch.to_device.push(json.into());
            let device = Message {
                user_id: message.user_id,
                device_id: message.device_id,
                position: message.position,
            };
            let of_device = (device.user_id.clone(), device.device_id.clone());
            touched.keys.insert(of_device);
            // The devices of people for whom it speaks now and then get their messages themselves.
            if self.service.reserves_user(&device.user_id) {
                batch.taken.push(device);
            }
        }
        Ok(())
    }
}

/// The next entries, until there are enough events and messages for one transaction.
fn stretch(entries: &[Arc<Entry>]) -> &[Arc<Entry>] {
    let mut counted = 0;
    let enough = entries.iter().position(|entry| {
        let counts = matches!(entry.change, Change::Event(_) | Change::ToDevice { .. });
        counted += usize::from(counts);
        counted == AT_ONCE
    });
    enough.map_or(entries, |last| entries.get(..=last).unwrap_or(entries))
}

/// The events of each room. Private receipts are for those who have them.
fn receipt_events(service: &Appservice, receipts: Vec<StoredReceipt>) -> Vec<Value> {
    let mut rooms: BTreeMap<OwnedRoomId, Vec<StoredReceipt>> = BTreeMap::new();
    for receipt in receipts {
        if !receipt.is_private() || service.covers_user(&receipt.user_id) {
            let room = rooms.entry(receipt.room_id.clone()).or_default();
            room.push(receipt);
        }
    }
    let events = rooms.into_iter().flat_map(|(room_id, receipts)| {
        let mut events = ephemeral::receipt_events(&receipts);
        for event in &mut events {
            event["room_id"] = room_id.as_str().into();
        }
        events
    });
    events.collect()
}

/// What is sent; `None` if there is nothing.
pub(super) fn body(batch: &Batch, service: &Appservice) -> Option<Value> {
    let nothing = batch.events.is_empty()
        && batch.ephemeral.is_empty()
        && batch.to_device.is_empty()
        && batch.encryption.is_empty();
    if nothing {
        return None;
    }
    let mut body = json!({ "events": batch.events });
    let prefix = match service.ephemeral {
        Some(EphemeralForm::Unstable) => "de.sorunome.msc2409.",
        _ => "",
    };
    for (name, list) in [
        ("ephemeral", &batch.ephemeral),
        ("to_device", &batch.to_device),
    ] {
        if !list.is_empty() {
            body[format!("{prefix}{name}")] = json!(list);
        }
    }
    batch.encryption.add_to(&mut body);
    Some(body)
}
