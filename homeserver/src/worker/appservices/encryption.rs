//! What a service needs for the encryption of its users, as in
//! [MSC3202](https://github.com/matrix-org/matrix-spec-proposals/pull/3202): whose devices changed, and how many
//! keys its own devices have left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OwnedDeviceId, OwnedUserId, events::room::member::MembershipState};
use serde_json::{Value, json};

use super::{AppserviceSender, gather::Touched, interest::Interest};
use crate::{
    service::{accounts::Requester, e2e_keys::KeyCounts, timeline::membership},
    storage::{StorageError, events::StoredEvent},
};

/// Of devices of the service: user, device, and what there is.
type OfDevices<T> = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, T>>;

/// What changed.
#[derive(Default)]
pub(super) struct EncryptionNews {
    changed: BTreeSet<OwnedUserId>,
    left: BTreeSet<OwnedUserId>,
    counts: OfDevices<Arc<KeyCounts>>,
}

impl EncryptionNews {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty() && self.counts.is_empty()
    }

    /// Adds it to a transaction.
    pub(super) fn add_to(&self, body: &mut Value) {
        let mut add = |name: &str, value: Value| body[format!("org.matrix.msc3202.{name}")] = value;
        if !self.changed.is_empty() || !self.left.is_empty() {
            let lists = json!({ "changed": self.changed, "left": self.left });
            add("device_lists", lists);
        }
        if !self.counts.is_empty() {
            let counts = self.of_devices(|counts| json!(counts.one_time_keys));
            // The name of the proposal, and that which most services know.
            add("device_one_time_key_counts", counts.clone());
            add("device_one_time_keys_count", counts);
            let unused = self.of_devices(|counts| json!(counts.unused_fallback_keys));
            add("device_unused_fallback_key_types", unused);
        }
    }

    fn of_devices(&self, what: impl Fn(&KeyCounts) -> Value) -> Value {
        let of_user = |devices: &BTreeMap<OwnedDeviceId, Arc<KeyCounts>>| {
            let devices = devices.iter();
            devices
                .map(|(device_id, counts)| (device_id.to_string(), what(counts)))
                .collect::<BTreeMap<_, _>>()
        };
        let users = self.counts.iter();
        let users = users.map(|(user_id, devices)| (user_id, of_user(devices)));
        json!(users.collect::<BTreeMap<_, _>>())
    }
}

impl AppserviceSender {
    /// Who comes or goes by an event.
    pub(super) async fn see_moves(
        &self,
        event: &StoredEvent,
        interest: &Interest,
        touched: &mut Touched,
    ) -> Result<(), StorageError> {
        let log = self.parts.storage.log();
        for row in &event.memberships {
            let own = self.service.covers_user(&row.user_id);
            if !own && !interest.has_user_in(&row.room_id, log) {
                continue;
            }
            match row.place.membership {
                MembershipState::Join if self.was_joined(event).await? => {}
                MembershipState::Join | MembershipState::Leave | MembershipState::Ban => {
                    touched.moved.insert(row.user_id.clone());
                    if own {
                        touched.moved.extend(log.roster().members(&row.room_id));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether an event only changes the name or the picture of a member.
    async fn was_joined(&self, event: &StoredEvent) -> Result<bool, StorageError> {
        let Some(replaces) = event.replaces else {
            return Ok(false);
        };
        let before = self.parts.events.by_nids(&[replaces]).await?;
        let before = before.values().find_map(|before| membership(&before.pdu));
        Ok(before.is_some_and(|(_, is)| is == MembershipState::Join))
    }

    /// Sorts out what the service is told. Its devices that got a message are told of their keys as well:
    /// mostly it was one of those that brought the message.
    pub(super) async fn encryption_news(
        &self,
        interest: &Interest,
        touched: Touched,
    ) -> Result<EncryptionNews, StorageError> {
        let (service, log) = (&self.service, self.parts.storage.log());
        let mut news = EncryptionNews::default();
        for user_id in touched.lists {
            if service.covers_user(&user_id) || interest.meets(&user_id, log) {
                news.changed.insert(user_id);
            }
        }
        for user_id in touched.moved {
            if interest.meets(&user_id, log) {
                news.changed.insert(user_id);
            } else if !service.covers_user(&user_id) {
                news.left.insert(user_id);
            }
        }
        for (user_id, device_id) in touched.keys {
            let device = Requester::new(user_id, device_id);
            let counts = self.parts.keys.counts(&device).await?;
            let of_user = news.counts.entry(device.user_id).or_default();
            of_user.insert(device.device_id, counts);
        }
        Ok(news)
    }
}
