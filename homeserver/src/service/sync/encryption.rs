//! What a device needs for encryption: messages of other devices, whose keys changed, and how many of its
//! own keys are left
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#e2e-extensions-to-sync)).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::FutureExt;
use ruma::{
    OwnedUserId, UserId,
    api::client::sync::sync_events::{DeviceLists, v3::Response},
    events::{AnyToDeviceEvent, room::member::MembershipState},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Look, Sync, SyncToken};
use crate::{
    service::accounts::Requester,
    storage::{
        Families, StorageError,
        events::StoredEvent,
        log::{Change, StreamPosition},
        roster::Membership,
    },
};

/// How many messages of other devices are in one reply.
const TO_DEVICE_LIMIT: i64 = 100;

/// Up to where each device was told messages that are not deleted yet. It only saves statements that
/// would delete nothing: after a restart, whoever comes with an older token has them deleted anyway.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<HashMap<Requester, StreamPosition>>>);

#[derive(Deserialize)]
struct MemberContent {
    membership: MembershipState,
}

impl Sync {
    /// Deletes the messages that the device has, as the token that it presents proves.
    pub(super) async fn confirm_to_device(
        &self,
        requester: &Requester,
        token: Option<SyncToken>,
    ) -> Result<(), StorageError> {
        let Some(token) = token else {
            return Ok(());
        };
        let known = self.storage.log().since(token.position).is_some();
        if known && !self.told.take_confirmed(requester, token.to_device) {
            return Ok(());
        }
        let Requester {
            user_id, device_id, ..
        } = requester.clone();
        let write = self.storage.write(move |tx| {
            async move {
                tx.to_device()
                    .delete_up_to(&user_id, &device_id, token.to_device)
                    .await
            }
            .boxed()
        });
        write.await
    }

    /// Fills in what a device needs for encryption; whether any of it is news.
    pub(super) async fn encryption(
        &self,
        look: &Look<'_>,
        response: &mut Response,
    ) -> Result<bool, StorageError> {
        let requester = &look.ask.requester;
        let counts = self.keys.counts(requester).await?;
        response
            .device_one_time_keys_count
            .clone_from(&counts.one_time_keys);
        response.device_unused_fallback_key_types = Some(counts.unused_fallback_keys.clone());
        let counted = counts_changed(look);
        let to_device = self.to_device(look, response).await?;
        response.device_lists = if look.is_first() {
            self.lately_changed(look)
        } else {
            self.device_lists(look).await?
        };
        Ok(counted || to_device || !response.device_lists.is_empty())
    }

    /// The messages that wait, oldest first. What does not fit into the reply is told next time: the token
    /// says how far the device is.
    async fn to_device(
        &self,
        look: &Look<'_>,
        response: &mut Response,
    ) -> Result<bool, StorageError> {
        let Requester {
            user_id, device_id, ..
        } = &look.ask.requester;
        let since = look
            .ask
            .since
            .map_or(StreamPosition(0), |token| token.to_device);
        let backlog = since < look.since;
        let waits = look.entries.as_ref().is_none_or(|entries| {
            entries.iter().any(|entry| {
                matches!(&entry.change, Change::ToDevice { user_id: user, device_id: device }
                    if user == user_id && device == device_id)
            })
        });
        if !backlog && !waits {
            return Ok(false);
        }
        let mut reader = self.storage.read().await?;
        let waiting = reader
            .to_device()
            .waiting(user_id, device_id, since, look.until, TO_DEVICE_LIMIT)
            .await?;
        let last = waiting.last().map(|(position, _)| *position);
        if let Some(last) = last
            && i64::try_from(waiting.len()).is_ok_and(|count| count == TO_DEVICE_LIMIT)
        {
            let token = SyncToken {
                position: look.until,
                to_device: last,
            };
            response.next_batch = token.to_string();
        }
        if let Some(last) = last {
            self.told.tell(&look.ask.requester, last);
        }
        for (_, json) in waiting {
            let event = to_device_event(json, user_id)?;
            response.to_device.events.push(event);
        }
        Ok(last.is_some())
    }

    pub(super) async fn device_lists(&self, look: &Look<'_>) -> Result<DeviceLists, StorageError> {
        let user_id = &look.ask.requester.user_id;
        let Some(entries) = &look.entries else {
            return self.device_list_changes(user_id, look.since).await;
        };
        let roster = self.storage.log().roster();
        // Who changed, and who came or went.
        let (mut changed, mut moved, mut invited) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in entries {
            match &entry.change {
                Change::DeviceList { user_id: of } => drop(changed.insert(of.clone())),
                Change::UserSignature { signer, target } if signer == user_id => {
                    changed.insert(target.clone());
                }
                Change::Event(event) => {
                    for row in &event.memberships {
                        if self.is_profile_change(event, row).await? {
                            continue;
                        }
                        let mine = row.user_id == *user_id;
                        match row.place.membership {
                            MembershipState::Join
                            | MembershipState::Leave
                            | MembershipState::Ban
                                if mine =>
                            {
                                moved.extend(roster.members(&row.room_id));
                            }
                            // Who is invited may read what is said from now on.
                            MembershipState::Invite
                                if !mine && roster.is_joined(user_id, &row.room_id) =>
                            {
                                invited.insert(row.user_id.clone());
                            }
                            MembershipState::Join
                            | MembershipState::Leave
                            | MembershipState::Ban
                                if look.places.contains_key(&row.room_id) =>
                            {
                                moved.insert(row.user_id.clone());
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(self.sort(user_id, changed, moved, invited))
    }

    /// Whose keys changed in the last while, for a device that begins: it may have asked for keys before it
    /// first syncs, or lost its place but not what it knew.
    fn lately_changed(&self, look: &Look<'_>) -> DeviceLists {
        let log = self.storage.log();
        let is_list = |change: &Change| matches!(change, Change::DeviceList { .. });
        let entries = log.since_if(log.reach(), is_list).unwrap_or_default();
        let changed = entries.iter().filter(|entry| entry.position <= look.until);
        let changed = changed.filter_map(|entry| match &entry.change {
            Change::DeviceList { user_id } => Some(user_id.clone()),
            _ => None,
        });
        let user_id = &look.ask.requester.user_id;
        self.sort(user_id, changed.collect(), BTreeSet::new(), BTreeSet::new())
    }

    /// Whose keys changed since a position, and who is out of sight, from the database
    /// ([spec](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3keyschanges)).
    pub(crate) async fn device_list_changes(
        &self,
        user_id: &UserId,
        since: StreamPosition,
    ) -> Result<DeviceLists, StorageError> {
        let mut reader = self.storage.read().await?;
        let mut changed = reader.device_lists().changed_since(since).await?;
        changed.extend(reader.cross_signing().signed_since(user_id, since).await?);
        let (mut moved, mut invited) = (BTreeSet::new(), BTreeSet::new());
        for (other, membership) in reader.device_lists().neighbors(user_id, since).await? {
            match membership {
                MembershipState::Invite => invited.insert(other),
                _ => moved.insert(other),
            };
        }
        Ok(self.sort(user_id, changed.into_iter().collect(), moved, invited))
    }

    /// Keeps those who share a room with the user, or are invited to one; who moved and does not share one
    /// any more has left.
    fn sort(
        &self,
        user_id: &UserId,
        changed: BTreeSet<OwnedUserId>,
        mut moved: BTreeSet<OwnedUserId>,
        mut invited: BTreeSet<OwnedUserId>,
    ) -> DeviceLists {
        let mut lists = DeviceLists::default();
        if changed.is_empty() && moved.is_empty() && invited.is_empty() {
            return lists;
        }
        let roster = self.storage.log().roster();
        let rooms = roster.rooms_shared_with(user_id);
        let shares = |other: &UserId| rooms.iter().any(|room_id| roster.is_joined(other, room_id));
        moved.remove(user_id);
        for other in changed {
            if other == user_id || shares(&other) {
                moved.remove(&other);
                invited.remove(&other);
                lists.changed.push(other);
            }
        }
        moved.retain(|other| !invited.contains(other));
        lists.changed.extend(invited);
        for other in moved {
            if shares(&other) {
                lists.changed.push(other);
            } else {
                lists.left.push(other);
            }
        }
        lists
    }

    /// Whether a member only changed name or picture: nobody came or went.
    async fn is_profile_change(
        &self,
        event: &StoredEvent,
        row: &Membership,
    ) -> Result<bool, StorageError> {
        let Some(replaces) = event.replaces else {
            return Ok(false);
        };
        if event.pdu.membership_target() != Some(&row.user_id)
            || row.place.membership != MembershipState::Join
        {
            return Ok(false);
        }
        let before = self.events.by_nids(&[replaces]).await?;
        Ok(before.values().any(|before| {
            let content = before.pdu.content_as::<MemberContent>();
            content.is_ok_and(|content| content.membership == MembershipState::Join)
        }))
    }
}

/// Whether the number of keys that the device has left changed.
pub(super) fn counts_changed(look: &Look<'_>) -> bool {
    let requester = &look.ask.requester;
    look.entries.iter().flatten().any(|entry| {
        matches!(&entry.change, Change::OneTimeKeys { user_id, device_id }
            if *user_id == requester.user_id && *device_id == requester.device_id)
    })
}

/// A message of another device, as it was stored.
pub(super) fn to_device_event(
    json: String,
    user_id: &UserId,
) -> Result<Raw<AnyToDeviceEvent>, StorageError> {
    let wrong = |_| StorageError::inconsistent("to_device", "json", user_id.as_str());
    Ok(Raw::from_json(RawValue::from_string(json).map_err(wrong)?))
}

impl Told {
    pub(super) fn tell(&self, requester: &Requester, position: StreamPosition) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(requester.clone(), position);
    }

    /// Whether a device confirms everything that it was told.
    fn take_confirmed(&self, requester: &Requester, position: StreamPosition) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let confirmed = told.get(requester).is_some_and(|last| *last <= position);
        if confirmed {
            told.remove(requester);
        }
        confirmed
    }
}
