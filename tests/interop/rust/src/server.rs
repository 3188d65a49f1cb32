//! A key server in memory that speaks JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A user and a device.
type Name = (String, String);

#[derive(Default)]
struct Device {
    keys: Value,
    one_time_keys: Vec<(String, Value)>,
    fallback: Option<(String, Value)>,
    fallback_used: bool,
    inbox: Vec<(u64, Value)>,
}

/// What a sync says about encryption.
pub struct Sync {
    /// Where to go on.
    pub next: u64,
    /// Messages to the device.
    pub to_device: Vec<Value>,
    /// Users whose devices changed.
    pub changed: Vec<String>,
    /// One-time keys that are left.
    pub count: u32,
    /// There is a fallback key that nobody has used.
    pub fallback_unused: bool,
}

/// The server.
#[derive(Default)]
pub struct Server {
    devices: BTreeMap<Name, Device>,
    identities: BTreeMap<(String, String), Value>,
    changes: Vec<(u64, String)>,
    position: u64,
    events: u64,
    /// The bytes of all messages to devices.
    pub sent_bytes: usize,
}

impl Server {
    /// `POST /keys/upload`.
    pub fn upload(&mut self, user: &str, device: &str, body: &Value) -> Value {
        let name = (user.to_owned(), device.to_owned());
        let known = self.devices.entry(name).or_default();
        for (id, key) in fields(&body["one_time_keys"]) {
            known.one_time_keys.push((id.clone(), key.clone()));
        }
        for (id, key) in fields(&body["fallback_keys"]) {
            known.fallback = Some((id.clone(), key.clone()));
            known.fallback_used = false;
        }
        let count = known.one_time_keys.len();
        if body["device_keys"].is_object() {
            known.keys = body["device_keys"].clone();
            self.note_change(user);
        }
        json!({ "one_time_key_counts": { "signed_curve25519": count } })
    }

    /// `POST /keys/query`.
    #[must_use]
    pub fn query(&self, asker: &str, users: &[String]) -> Value {
        let mut all = json!({
            "failures": {},
            "device_keys": {},
            "master_keys": {},
            "self_signing_keys": {},
            "user_signing_keys": {},
        });
        for ((user, device), known) in &self.devices {
            if users.contains(user) && known.keys.is_object() {
                all["device_keys"][user][device] = known.keys.clone();
            }
        }
        for ((user, usage), key) in &self.identities {
            if users.contains(user) && (usage != "user_signing" || user == asker) {
                all[format!("{usage}_keys")][user] = key.clone();
            }
        }
        all
    }

    /// `POST /keys/claim`, with the `one_time_keys` of the request.
    pub fn claim(&mut self, wanted: &Value) -> Value {
        let mut found = json!({});
        for (user, devices) in fields(wanted) {
            for (device, _) in fields(devices) {
                let name = (user.clone(), device.clone());
                let Some(known) = self.devices.get_mut(&name) else {
                    continue;
                };
                let key = if known.one_time_keys.is_empty() {
                    known.fallback_used = true;
                    known.fallback.clone()
                } else {
                    Some(known.one_time_keys.remove(0))
                };
                if let Some((id, key)) = key {
                    found[user][device][id] = key;
                }
            }
        }
        json!({ "failures": {}, "one_time_keys": found })
    }

    /// `PUT /sendToDevice`, with the `messages` of the request.
    pub fn send(&mut self, sender: &str, kind: &str, messages: &Value) {
        for (user, devices) in fields(messages) {
            for (device, content) in fields(devices) {
                self.sent_bytes += content.to_string().len();
                self.position += 1;
                let event = json!({ "type": kind, "sender": sender, "content": content });
                for ((owner, id), known) in &mut self.devices {
                    if owner == user && (device == "*" || device == id) {
                        known.inbox.push((self.position, event.clone()));
                    }
                }
            }
        }
    }

    /// `POST /keys/device_signing/upload`.
    pub fn signing_keys(&mut self, user: &str, body: &Value) {
        for usage in ["master", "self_signing", "user_signing"] {
            let key = &body[format!("{usage}_key")];
            if key.is_object() {
                let name = (user.to_owned(), usage.to_owned());
                self.identities.insert(name, key.clone());
            }
        }
        self.note_change(user);
    }

    /// `POST /keys/signatures/upload`.
    pub fn signatures(&mut self, body: &Value) {
        for (user, objects) in fields(body) {
            for (id, object) in fields(objects) {
                let name = (user.clone(), id.clone());
                if let Some(device) = self.devices.get_mut(&name) {
                    merge(&mut device.keys, object);
                }
                let master = (user.clone(), "master".to_owned());
                if let Some(key) = self.identities.get_mut(&master)
                    && key["keys"].get(format!("ed25519:{id}")).is_some()
                {
                    merge(key, object);
                }
            }
            self.note_change(user);
        }
    }

    /// `GET /sync`.
    pub fn sync(&mut self, user: &str, device: &str, since: Option<u64>) -> Sync {
        let from = since.unwrap_or(0);
        let name = (user.to_owned(), device.to_owned());
        let known = self.devices.entry(name).or_default();
        known.inbox.retain(|(at, _)| *at > from);
        let changed = self.changes.iter().filter(|(at, _)| *at > from);
        Sync {
            next: self.position,
            to_device: known.inbox.iter().map(|(_, event)| event.clone()).collect(),
            changed: changed.map(|(_, user)| user.clone()).collect(),
            count: u32::try_from(known.one_time_keys.len()).unwrap_or(u32::MAX),
            fallback_unused: known.fallback.is_some() && !known.fallback_used,
        }
    }

    /// A name for an event.
    pub fn event_id(&mut self) -> String {
        self.events += 1;
        format!("$event{}", self.events)
    }

    fn note_change(&mut self, user: &str) {
        self.position += 1;
        self.changes.push((self.position, user.to_owned()));
    }
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn merge(object: &mut Value, other: &Value) {
    for (user, signatures) in fields(&other["signatures"]) {
        if !object["signatures"].is_object() {
            object["signatures"] = Value::Object(Map::new());
        }
        for (key, signature) in fields(signatures) {
            object["signatures"][user][key] = signature.clone();
        }
    }
}
