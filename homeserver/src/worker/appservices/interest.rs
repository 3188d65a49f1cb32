//! What concerns an application service
//! ([spec](https://spec.matrix.org/v1.19/application-service-api/#registration)): what happens in the rooms of
//! its namespaces, and in those in which its users are.

use std::collections::{BTreeSet, HashMap, HashSet};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
};

use crate::{
    service::{appservices::Appservice, events::Events, timeline::membership},
    storage::{
        Families, Storage, StorageError,
        events::StoredEvent,
        log::{Change, Log, StreamPosition},
        roster::Membership,
    },
};

/// An index over memberships and aliases.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// The users of the service that have or had anything to do with a room.
    users: HashMap<OwnedRoomId, BTreeSet<OwnedUserId>>,
    /// The rooms that have a name in a namespace of the service.
    named: HashSet<OwnedRoomId>,
}

impl Interest {
    pub(super) async fn load(
        storage: &Storage,
        service: &Appservice,
    ) -> Result<Self, StorageError> {
        let mut reader = storage.read().await?;
        let mut interest = Self::default();
        for row in reader.memberships().all().await? {
            interest.note(service, &row);
        }
        if service.has_aliases() {
            let all = reader.directory().all_aliases().await?.into_iter();
            let named = all.filter(|(alias, _)| service.covers_alias(alias));
            interest.named = named.map(|(_, room_id)| room_id).collect();
        }
        Ok(interest)
    }

    /// Moves forward over one change.
    pub(super) async fn apply(
        &mut self,
        storage: &Storage,
        service: &Appservice,
        change: &Change,
    ) -> Result<(), StorageError> {
        match change {
            Change::Event(event) => {
                for row in &event.memberships {
                    self.note(service, row);
                }
            }
            Change::OutsideMembership(row) => self.note(service, row),
            Change::Aliases { room_id } if service.has_aliases() => {
                let mut reader = storage.read().await?;
                let aliases = reader.directory().aliases_of(room_id).await?;
                if aliases.iter().any(|alias| service.covers_alias(alias)) {
                    self.named.insert(room_id.clone());
                } else {
                    self.named.remove(room_id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn note(&mut self, service: &Appservice, row: &Membership) {
        if service.covers_user(&row.user_id) {
            let users = self.users.entry(row.room_id.clone()).or_default();
            users.insert(row.user_id.clone());
        }
    }

    /// The rooms of users of the service, with them.
    pub(super) fn rooms(&self) -> impl Iterator<Item = (&OwnedRoomId, &BTreeSet<OwnedUserId>)> {
        self.users.iter()
    }

    /// Whether the service is told of an event.
    pub(super) async fn is_in(
        &self,
        event: &StoredEvent,
        at: StreamPosition,
        (service, events, log): (&Appservice, &Events, &Log),
    ) -> Result<bool, StorageError> {
        let (pdu, room_id) = (&event.pdu, event.pdu.room_id());
        if self.is_covered(service, room_id)
            || service.covers_user(pdu.sender())
            || membership(pdu).is_some_and(|(target, _)| service.covers_user(&target))
        {
            return Ok(true);
        }
        let mut moved = Vec::new();
        for user_id in self.users.get(room_id).into_iter().flatten() {
            let Some(place) = log.roster().place(user_id, room_id) else {
                continue;
            };
            let joined = place.membership == MembershipState::Join;
            if joined && place.since <= at {
                return Ok(true);
            }
            if joined || place.joined_until.is_some_and(|until| until > at) {
                moved.push(user_id);
            }
        }
        // Whoever came or went since: the state at the event says whether they were there.
        for user_id in moved {
            if was_joined(event, user_id, events).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the service is told of what happens in a room now.
    pub(super) fn is_in_room(&self, service: &Appservice, room_id: &RoomId, log: &Log) -> bool {
        self.is_covered(service, room_id) || self.has_user_in(room_id, log)
    }

    /// Whether a user of the service is in a room.
    pub(super) fn has_user_in(&self, room_id: &RoomId, log: &Log) -> bool {
        let mut users = self.users.get(room_id).into_iter().flatten();
        users.any(|user_id| log.roster().is_joined(user_id, room_id))
    }

    /// Whether somebody is in a room with a user of the service.
    pub(super) fn meets(&self, user_id: &UserId, log: &Log) -> bool {
        let mut rooms = log.roster().rooms_shared_with(user_id).into_iter();
        rooms.any(|room_id| self.has_user_in(&room_id, log))
    }

    fn is_covered(&self, service: &Appservice, room_id: &RoomId) -> bool {
        self.named.contains(room_id) || service.covers_room(room_id)
    }
}

async fn was_joined(
    event: &StoredEvent,
    user_id: &UserId,
    events: &Events,
) -> Result<bool, StorageError> {
    let Some(states) = event.state else {
        return Ok(false);
    };
    let member = StateEventType::RoomMember;
    let found = events
        .state_event(states.after, &member, user_id.as_str())
        .await?;
    let is = found.and_then(|event| membership(&event.pdu));
    Ok(is.is_some_and(|(_, is)| is == MembershipState::Join))
}
