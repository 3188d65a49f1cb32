//! The server.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, UInt, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys, upload_signatures, upload_signing_keys},
        to_device::send_event_to_device,
    },
    to_device::DeviceIdOrAllDevices,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DeviceName, Peer, json, raw};
use crate::crypto::{Request, Response};

/// What the server keeps of one device.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct ServerDevice {
    pub(crate) keys: Option<Value>,
    pub(crate) one_time_keys: Vec<(String, Value)>,
    pub(crate) fallback: Option<(String, Value)>,
    pub(crate) fallback_used: bool,
    /// Messages with their positions.
    pub(crate) inbox: Vec<(u64, Value)>,
}

/// A server that does what it is told, also evil things.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) devices: BTreeMap<DeviceName, ServerDevice>,
    /// Positions at which the list of a user changed.
    pub(super) changes: Vec<(u64, OwnedUserId)>,
    /// Positions at which the last common room with a user ended.
    pub(super) partings: Vec<(u64, OwnedUserId)>,
    pub(super) position: u64,
    transactions: BTreeSet<(DeviceName, String)>,
    events: u64,
    pub(crate) claims: u64,
    /// One-time keys that were handed out; none comes back.
    pub(crate) claimed: Vec<(DeviceName, String)>,
    /// What devices sent to devices.
    pub(crate) sent: Vec<Value>,
    /// Cross-signing keys by usage and user.
    #[serde(skip)]
    pub(crate) identities: BTreeMap<(&'static str, OwnedUserId), Value>,
}

impl Server {
    pub(crate) fn device(&mut self, user: &UserId, device: &DeviceId) -> &mut ServerDevice {
        self.devices
            .entry((user.to_owned(), device.to_owned()))
            .or_default()
    }

    pub(crate) fn delete_device(&mut self, user: &UserId, device: &DeviceId) {
        self.devices.remove(&(user.to_owned(), device.to_owned()));
        self.note_change(user);
    }

    pub(crate) fn note_change(&mut self, user: &UserId) {
        self.position += 1;
        self.changes.push((self.position, user.to_owned()));
    }

    /// Nobody shares a room with a user any more.
    pub(crate) fn part(&mut self, user: &UserId) {
        self.position += 1;
        self.partings.push((self.position, user.to_owned()));
    }

    pub(crate) fn deliver(&mut self, to: &Peer, from: &UserId, kind: &str, content: &Value) {
        self.deliver_to(to.user(), to.device(), from, kind, content);
    }

    fn deliver_to(
        &mut self,
        user: &UserId,
        device: &DeviceId,
        from: &UserId,
        kind: &str,
        content: &Value,
    ) {
        self.position += 1;
        let position = self.position;
        let event = json!({ "type": kind, "sender": from, "content": content });
        if let Some(device) = self.devices.get_mut(&(user.to_owned(), device.to_owned())) {
            device.inbox.push((position, event));
        }
    }

    pub(crate) fn handle(&mut self, name: &DeviceName, request: &Request) -> Response {
        match request {
            Request::KeysUpload(request) => Response::KeysUpload(self.upload(name, request)),
            Request::KeysQuery(request) => Response::KeysQuery(self.query(request)),
            Request::KeysClaim(request) => Response::KeysClaim(self.claim(request)),
            Request::ToDevice(request) => Response::ToDevice(self.take_messages(name, request)),
            Request::SigningKeysUpload(request) => {
                self.take_signing_keys(&name.0, request);
                Response::SigningKeysUpload(upload_signing_keys::v3::Response::new())
            }
            Request::SignaturesUpload(request) => {
                self.take_signatures(&name.0, request);
                Response::SignaturesUpload(upload_signatures::v3::Response::new())
            }
        }
    }

    fn upload(
        &mut self,
        name: &DeviceName,
        request: &upload_keys::v3::Request,
    ) -> upload_keys::v3::Response {
        let device = self.devices.entry(name.clone()).or_default();
        for (id, key) in &request.one_time_keys {
            let (id, key) = (id.to_string(), json(key.json().get()));
            if self.claimed.contains(&(name.clone(), id.clone())) {
                continue;
            }
            match device.one_time_keys.iter().find(|(known, _)| *known == id) {
                Some((_, known)) => assert_eq!(*known, key, "one-time key replaced"),
                None => device.one_time_keys.push((id, key)),
            }
        }
        for (id, key) in &request.fallback_keys {
            device.fallback = Some((id.to_string(), json(key.json().get())));
            device.fallback_used = false;
        }
        let count = UInt::try_from(device.one_time_keys.len()).unwrap();
        if let Some(keys) = &request.device_keys {
            device.keys = Some(json(keys.json().get()));
            self.note_change(&name.0);
        }
        let algorithm = ruma::OneTimeKeyAlgorithm::SignedCurve25519;
        upload_keys::v3::Response::new([(algorithm, count)].into())
    }

    pub(crate) fn query(&self, request: &get_keys::v3::Request) -> get_keys::v3::Response {
        let mut response = get_keys::v3::Response::new();
        for user in request.device_keys.keys() {
            let devices = self
                .devices
                .iter()
                .filter(|((owner, _), _)| owner == user)
                .filter_map(|((_, id), device)| Some((id.clone(), raw(device.keys.as_ref()?))))
                .collect();
            response.device_keys.insert(user.clone(), devices);
            for (usage, keys) in [
                ("master", &mut response.master_keys),
                ("self_signing", &mut response.self_signing_keys),
                ("user_signing", &mut response.user_signing_keys),
            ] {
                if let Some(key) = self.identities.get(&(usage, user.clone())) {
                    keys.insert(user.clone(), raw(key));
                }
            }
        }
        response
    }

    fn take_signing_keys(&mut self, user: &UserId, request: &upload_signing_keys::v3::Request) {
        for (usage, key) in [
            ("master", &request.master_key),
            ("self_signing", &request.self_signing_key),
            ("user_signing", &request.user_signing_key),
        ] {
            let key = json(key.as_ref().unwrap().json().get());
            self.identities.insert((usage, user.to_owned()), key);
        }
        self.note_change(user);
    }

    fn take_signatures(&mut self, user: &UserId, request: &upload_signatures::v3::Request) {
        for (target, keys) in &request.signed_keys {
            for (name, object) in keys {
                let object = json(object.get());
                let device = (target.clone(), OwnedDeviceId::from(name));
                let stored = match self.devices.get_mut(&device) {
                    Some(device) => device.keys.as_mut().unwrap(),
                    None => self
                        .identities
                        .get_mut(&("master", target.clone()))
                        .unwrap(),
                };
                let added = object["signatures"][user.as_str()].as_object().unwrap();
                for (id, signature) in added {
                    stored["signatures"][user.as_str()][id] = signature.clone();
                }
            }
            self.note_change(target);
        }
    }

    fn claim(&mut self, request: &claim_keys::v3::Request) -> claim_keys::v3::Response {
        let mut response = claim_keys::v3::Response::new(BTreeMap::new());
        for (user, devices) in &request.one_time_keys {
            for device_id in devices.keys() {
                self.claims += 1;
                let Some(device) = self.devices.get_mut(&(user.clone(), device_id.clone())) else {
                    continue;
                };
                let key = if device.one_time_keys.is_empty() {
                    device.fallback_used = true;
                    device.fallback.clone()
                } else {
                    let key = device.one_time_keys.remove(0);
                    let name = (user.clone(), device_id.clone());
                    self.claimed.push((name, key.0.clone()));
                    Some(key)
                };
                let Some((id, key)) = key else { continue };
                let user = response.one_time_keys.entry(user.clone()).or_default();
                let keys = [(id.as_str().try_into().unwrap(), raw(&key))].into();
                user.insert(device_id.clone(), keys);
            }
        }
        response
    }

    fn take_messages(
        &mut self,
        name: &DeviceName,
        request: &send_event_to_device::v3::Request,
    ) -> send_event_to_device::v3::Response {
        let transaction = (name.clone(), request.txn_id.to_string());
        if self.transactions.insert(transaction) {
            for (user, devices) in &request.messages {
                for (device, content) in devices {
                    let DeviceIdOrAllDevices::DeviceId(device) = device else {
                        panic!()
                    };
                    let kind = request.event_type.to_string();
                    let content = json(content.json().get());
                    self.sent.push(content.clone());
                    self.deliver_to(user, device, &name.0, &kind, &content);
                }
            }
        }
        send_event_to_device::v3::Response::new()
    }

    /// Delivers what waits for a device the wrong way round.
    pub(crate) fn reverse_inbox(&mut self, peer: &Peer) {
        let inbox = &mut self.device(peer.user(), peer.device()).inbox;
        let positions: Vec<u64> = inbox.iter().map(|(at, _)| *at).collect();
        inbox.reverse();
        for ((at, _), position) in inbox.iter_mut().zip(positions) {
            *at = position;
        }
    }

    /// Wraps content into a room event with a fresh id.
    pub(crate) fn event(&mut self, sender: &UserId, content: &Map<String, Value>) -> Value {
        self.events += 1;
        json!({
            "type": "m.room.encrypted",
            "event_id": format!("$event{}", self.events),
            "sender": sender,
            "origin_server_ts": 1_790_000_000_000_u64 + self.events,
            "content": content,
        })
    }
}
