//! What the directory learns from the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::Value;
use sotto_federation::room::pdu::Pdu;

use super::{UserDirectory, words};
use crate::{
    service::timeline::membership,
    storage::{
        Families, StorageError, events::StoredEvent, found_users::FoundUser, state_map::EventNid,
        writer::Tx,
    },
};

/// The longest name that is kept, in bytes.
const MAX_NAME: usize = 1_024;
/// How many membership events are read at once.
const PAGE: usize = 500;

/// What is to be written.
#[derive(Debug, Default)]
pub(crate) struct News {
    users: BTreeMap<OwnedUserId, FoundUser>,
    rooms: BTreeMap<OwnedRoomId, bool>,
}

impl News {
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.rooms.is_empty()
    }

    /// How many users there are to write.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    pub(crate) async fn write(&self, tx: &mut Tx) -> Result<(), StorageError> {
        for user in self.users.values() {
            let words = words::of_user(&user.user_id, user.display_name.as_deref());
            tx.found_users().set(user, &words).await?;
        }
        for (room_id, open) in &self.rooms {
            tx.found_users().set_open(room_id, *open).await?;
        }
        Ok(())
    }
}

impl UserDirectory {
    /// Reads from memory from now on which rooms are open to all.
    pub(crate) async fn load(&self) -> Result<(), StorageError> {
        let rooms = self
            .storage
            .read()
            .await?
            .found_users()
            .open_rooms()
            .await?;
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = rooms;
        Ok(())
    }

    /// What is written counts from now on.
    pub(crate) fn apply(&self, news: &News) {
        let mut rooms = self.open.write().unwrap_or_else(PoisonError::into_inner);
        for (room_id, open) in &news.rooms {
            if *open {
                rooms.insert(room_id.clone());
            } else {
                rooms.remove(room_id);
            }
        }
    }

    /// What an event says. `arrives`: with it a room became known whose members were not in the log.
    pub(crate) async fn learn(
        &self,
        event: &StoredEvent,
        arrives: bool,
        news: &mut News,
    ) -> Result<(), StorageError> {
        let room_id = event.pdu.room_id();
        let decides = matches!(
            event.pdu.event_type(),
            TimelineEventType::RoomCreate
                | TimelineEventType::RoomJoinRules
                | TimelineEventType::RoomHistoryVisibility
        );
        if arrives {
            self.learn_room(room_id.to_owned(), news).await?;
        } else if event.pdu.state_key().is_some() && decides {
            self.learn_open(room_id.to_owned(), news).await?;
        }
        if let Some((user_id, MembershipState::Join)) = membership(&event.pdu) {
            if user_id.server_name() == self.server_name {
                self.learn_local(&user_id, news).await?;
            } else if let Some(user) = member(&event.pdu) {
                news.users.insert(user_id, user);
            }
        }
        Ok(())
    }

    /// What a local user is called now.
    pub(crate) async fn learn_local(
        &self,
        user_id: &UserId,
        news: &mut News,
    ) -> Result<(), StorageError> {
        let profile = self.timeline.profile(user_id).await?;
        let text = |name: &str| text(profile.get(name));
        let user = FoundUser {
            user_id: user_id.to_owned(),
            display_name: text("displayname"),
            avatar_url: text("avatar_url"),
        };
        news.users.insert(user_id.to_owned(), user);
        Ok(())
    }

    /// Everybody in a room, and whether it is open.
    pub(crate) async fn learn_room(
        &self,
        room_id: OwnedRoomId,
        news: &mut News,
    ) -> Result<(), StorageError> {
        let Some(room) = self.timeline.heads.room(&room_id).await? else {
            return Ok(());
        };
        let mut reader = self.storage.read().await?;
        let members = reader.memberships().of_room(room.nid).await?;
        drop(reader);
        let mut remote: Vec<EventNid> = Vec::new();
        let mut local: BTreeSet<OwnedUserId> = BTreeSet::new();
        for (user_id, membership, nid) in members {
            if membership != MembershipState::Join {
                continue;
            }
            if user_id.server_name() == self.server_name {
                local.insert(user_id);
            } else {
                remote.push(nid);
            }
        }
        for user_id in local {
            self.learn_local(&user_id, news).await?;
        }
        for nids in remote.chunks(PAGE) {
            for event in self.timeline.events.by_nids(nids).await?.into_values() {
                if let Some(user) = member(&event.pdu) {
                    news.users.insert(user.user_id.clone(), user);
                }
            }
        }
        self.learn_open(room_id, news).await
    }

    async fn learn_open(&self, room_id: OwnedRoomId, news: &mut News) -> Result<(), StorageError> {
        let room = self.timeline.heads.room(&room_id).await?;
        if let Some(head) = room.and_then(|room| room.head) {
            let open = self.summaries.facts(head.state).await?.is_public();
            news.rooms.insert(room_id, open);
        }
        Ok(())
    }
}

/// What a membership event says of its user.
pub(super) fn member(pdu: &Pdu) -> Option<FoundUser> {
    let (user_id, _) = membership(pdu)?;
    let content: Value = pdu.content_as().ok()?;
    Some(FoundUser {
        user_id,
        display_name: text(content.get("displayname")),
        avatar_url: text(content.get("avatar_url")),
    })
}

fn text(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?;
    // PostgreSQL cannot keep a null character.
    let fits = !text.is_empty() && text.len() <= MAX_NAME && !text.contains('\0');
    fits.then(|| text.to_owned())
}
