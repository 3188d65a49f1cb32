//! What moves from a room to the one that replaced it: its names, and what users keep for themselves
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-18)).

use std::collections::BTreeMap;

use futures_util::FutureExt;
use ruma::{OwnedRoomId, RoomId, UserId, events::StateEventType};
use serde::Deserialize;
use serde_json::{Value, value::to_raw_value};

use super::{
    account_data::{AccountData, SetError},
    push_rules::{Kind, Placement, PushRuleError, PushRules, Rule, Rules},
    timeline::Timeline,
};
use crate::storage::{Families, Storage, StorageError, log::Change};

/// The list of rooms that are direct chats
/// ([spec](https://spec.matrix.org/v1.19/client-server-api/#mdirect)).
const DIRECT: &str = "m.direct";

/// Moves things to new rooms.
#[derive(Clone)]
pub(crate) struct Succession {
    storage: Storage,
    timeline: Timeline,
    account_data: AccountData,
    push_rules: PushRules,
}

#[derive(Deserialize)]
struct Tombstone {
    replacement_room: OwnedRoomId,
}

/// Why something was not moved.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    AccountData(#[from] SetError),
    #[error(transparent)]
    PushRule(#[from] PushRuleError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Succession {
    pub(crate) fn new(
        storage: Storage,
        timeline: Timeline,
        account_data: AccountData,
        push_rules: PushRules,
    ) -> Self {
        Self {
            storage,
            timeline,
            account_data,
            push_rules,
        }
    }

    /// A user has come into a room. If it replaced another one, what the user kept for that one holds for
    /// this one. That it does not succeed keeps nobody out.
    pub(crate) async fn follow(&self, user_id: &UserId, new: &RoomId) {
        if let Err(error) = self.try_follow(user_id, new).await {
            tracing::warn!(room_id = %new, %error, "the settings of a replaced room were not taken over");
        }
    }

    async fn try_follow(&self, user_id: &UserId, new: &RoomId) -> Result<(), FollowError> {
        let Some(old) = self.predecessor(new).await? else {
            return Ok(());
        };
        self.names(&old, new).await?;
        if self.storage.log().roster().place(user_id, &old).is_none() {
            return Ok(());
        }
        self.tags(user_id, &old, new).await?;
        self.direct(user_id, &old, new).await?;
        self.rules(user_id, &old, new).await
    }

    /// A room says that it is replaced. Local users who are in the new one already came there before this was known.
    pub(crate) async fn closed(&self, old: &RoomId) -> Result<(), StorageError> {
        let tombstone = self.state::<Tombstone>(old, StateEventType::RoomTombstone);
        let Some(Tombstone { replacement_room }) = tombstone.await? else {
            return Ok(());
        };
        for user_id in (self.storage.log().roster()).local_members(&replacement_room) {
            self.follow(&user_id, &replacement_room).await;
        }
        Ok(())
    }

    /// The room that this one replaced, as both say.
    async fn predecessor(&self, new: &RoomId) -> Result<Option<OwnedRoomId>, StorageError> {
        #[derive(Deserialize)]
        struct Predecessor {
            room_id: OwnedRoomId,
        }
        #[derive(Deserialize)]
        struct Create {
            predecessor: Predecessor,
        }
        let create = self.state::<Create>(new, StateEventType::RoomCreate);
        let Some(create) = create.await? else {
            return Ok(None);
        };
        let old = create.predecessor.room_id;
        let tombstone = self.state::<Tombstone>(&old, StateEventType::RoomTombstone);
        let tombstone = tombstone.await?;
        Ok(tombstone
            .filter(|tombstone| tombstone.replacement_room == new)
            .map(|_| old))
    }

    async fn state<T: for<'de> Deserialize<'de>>(
        &self,
        room_id: &RoomId,
        event_type: StateEventType,
    ) -> Result<Option<T>, StorageError> {
        let room = self.timeline.heads.room(room_id).await?;
        let Some(head) = room.and_then(|room| room.head) else {
            return Ok(None);
        };
        let events = &self.timeline.events;
        let found = events.state_pdu(head.state, &event_type, "").await?;
        Ok(found.and_then(|(_, pdu)| pdu.content_as().ok()))
    }

    /// The aliases of the old room on this server and its place in the list of rooms go to the new one.
    pub(crate) async fn names(&self, old: &RoomId, new: &RoomId) -> Result<(), StorageError> {
        let (old, new) = (old.to_owned(), new.to_owned());
        let write = self.storage.write(move |tx| {
            async move {
                let aliases = tx.directory().aliases_of(&old).await?;
                if !aliases.is_empty() {
                    for room in [&old, &new] {
                        let room_id = room.clone();
                        tx.log(Change::Aliases { room_id });
                    }
                }
                for alias in aliases {
                    let Some(found) = tx.directory().alias(&alias).await? else {
                        continue;
                    };
                    tx.directory().delete_alias(&alias, &old).await?;
                    tx.directory()
                        .insert_alias(&alias, &new, &found.creator)
                        .await?;
                }
                if tx.directory().is_published(&old, "").await? {
                    tx.directory().unpublish(&old, "").await?;
                    tx.directory().publish(&new, "").await?;
                }
                Ok::<_, StorageError>(())
            }
            .boxed()
        });
        write.await
    }

    async fn tags(&self, user_id: &UserId, old: &RoomId, new: &RoomId) -> Result<(), FollowError> {
        let tags = self.account_data.tags(user_id, old).await?;
        if tags.is_empty() || !self.account_data.tags(user_id, new).await?.is_empty() {
            return Ok(());
        }
        let change = move |new: &mut ruma::events::tag::Tags| new.extend(tags);
        let account_data = &self.account_data;
        account_data
            .change_tags(user_id.to_owned(), new.to_owned(), change)
            .await?;
        Ok(())
    }

    async fn direct(
        &self,
        user_id: &UserId,
        old: &RoomId,
        new: &RoomId,
    ) -> Result<(), FollowError> {
        let content = self.account_data.content(user_id, None, DIRECT).await?;
        let lists = content.and_then(|content| {
            serde_json::from_str::<BTreeMap<String, Vec<Value>>>(&content).ok()
        });
        let Some(mut lists) = lists else {
            return Ok(());
        };
        let mut changed = false;
        for rooms in lists.values_mut() {
            let has = |room_id: &RoomId| rooms.iter().any(|room| room == room_id.as_str());
            if has(old) && !has(new) {
                rooms.push(new.as_str().into());
                changed = true;
            }
        }
        if changed {
            let content = to_raw_value(&lists).map_err(|_| SetError::NotAnObject)?;
            let account_data = &self.account_data;
            account_data
                .set(user_id.to_owned(), None, DIRECT.to_owned(), &content)
                .await?;
        }
        Ok(())
    }

    async fn rules(&self, user_id: &UserId, old: &RoomId, new: &RoomId) -> Result<(), FollowError> {
        let rules = self.push_rules.of_user(user_id).await?;
        for (kind, rule) in copied_rules(&rules, old, new) {
            let placement = Placement::default();
            let user_id = user_id.to_owned();
            self.push_rules
                .insert(user_id, kind, rule, placement)
                .await?;
        }
        Ok(())
    }
}

/// The rules about the new room that correspond to those about the old one.
fn copied_rules(rules: &Rules, old: &RoomId, new: &RoomId) -> Vec<(Kind, Rule)> {
    let is_old = |condition: &Value| {
        condition.get("key").and_then(Value::as_str) == Some("room_id")
            && condition.get("pattern").and_then(Value::as_str) == Some(old.as_str())
    };
    let of_room = rules.room.iter().find(|rule| rule.rule_id == *old);
    let about_room = rules
        .overrides
        .iter()
        .find(|rule| rule.conditions.iter().flatten().any(is_old));
    let mut copied = Vec::new();
    for (kind, rule) in [(Kind::Room, of_room), (Kind::Override, about_room)] {
        let Some(mut rule) = rule.cloned() else {
            continue;
        };
        if rules.get(kind, new.as_str()).is_some() {
            continue;
        }
        rule.rule_id = new.to_string();
        for condition in rule.conditions.iter_mut().flatten() {
            if is_old(condition)
                && let Value::Object(condition) = condition
            {
                condition.insert("pattern".to_owned(), new.as_str().into());
            }
        }
        copied.push((kind, rule));
    }
    copied
}
