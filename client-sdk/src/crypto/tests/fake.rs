//! A key server in memory, and devices that talk to it, for the tests of the machine.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, RoomId, UInt, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys, upload_signatures, upload_signing_keys},
        sync::sync_events::DeviceLists,
        to_device::send_event_to_device,
    },
    events::{AnySyncTimelineEvent, AnyToDeviceEvent},
    room_id,
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::crypto::{
    Alarm, Bootstrap, DecryptError, DecryptedEvent, Device, EncryptError, Machine, OutgoingRequest,
    Request, Response, RoomChange, Share, SharePolicy, SyncChanges, SyncOutcome, TrustRequirement,
};
use crate::{
    environment::tests::TestEnvironment,
    store::{Changes, MemoryStore, Store},
};

pub(crate) fn room() -> &'static RoomId {
    room_id!("!room:example.org")
}

type DeviceName = (OwnedUserId, OwnedDeviceId);

/// What the server keeps of one device.
#[derive(Default)]
pub(crate) struct ServerDevice {
    pub(crate) keys: Option<Value>,
    pub(crate) one_time_keys: Vec<(String, Value)>,
    pub(crate) fallback: Option<(String, Value)>,
    pub(crate) fallback_used: bool,
    /// Messages with their positions.
    pub(crate) inbox: Vec<(u64, Value)>,
}

/// A server that does what it is told, also evil things.
#[derive(Default)]
pub(crate) struct Server {
    pub(crate) devices: BTreeMap<DeviceName, ServerDevice>,
    /// Positions at which the list of a user changed.
    changes: Vec<(u64, OwnedUserId)>,
    position: u64,
    transactions: BTreeSet<(DeviceName, String)>,
    events: u64,
    pub(crate) claims: u64,
    /// Cross-signing keys by usage and user.
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
                    Some(device.one_time_keys.remove(0))
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

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn raw<T>(value: &Value) -> Raw<T> {
    Raw::from_json(to_raw_value(value).unwrap())
}

pub(crate) fn text(body: &str) -> Map<String, Value> {
    let content = json!({ "msgtype": "m.text", "body": body });
    content.as_object().unwrap().clone()
}

/// A device with its machine and store.
pub(crate) struct Peer {
    pub(crate) machine: Machine,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) environment: Arc<TestEnvironment>,
    name: DeviceName,
    room_changes: Vec<RoomChange>,
    pub(crate) alarms: Vec<Alarm>,
}

/// Whatever stops a device in the middle of its work.
pub(crate) type Crash = Box<dyn std::error::Error + Send + Sync>;

impl Peer {
    pub(crate) async fn new(user: &str, device: &str, environment: &Arc<TestEnvironment>) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        Self::over(store, user, device, environment).await
    }

    pub(crate) async fn over(
        store: Arc<dyn Store>,
        user: &str,
        device: &str,
        environment: &Arc<TestEnvironment>,
    ) -> Self {
        let name = (
            OwnedUserId::try_from(user).unwrap(),
            OwnedDeviceId::from(device),
        );
        let machine = Machine::open(store.clone(), environment.clone(), &name.0, &name.1)
            .await
            .unwrap();
        // Most tests are about something else.
        machine.set_share_policy(SharePolicy::AllDevices).await;
        machine.set_trust_requirement(TrustRequirement::Untrusted);
        let environment = environment.clone();
        Self {
            machine,
            store,
            environment,
            name,
            room_changes: Vec::new(),
            alarms: Vec::new(),
        }
    }

    /// Throws away all that is in memory.
    pub(crate) async fn restart(&mut self) {
        let (store, environment) = (self.store.clone(), self.environment.clone());
        let (policy, trust) = (
            self.machine.share_policy(),
            self.machine.trust_requirement(),
        );
        self.machine = Machine::open(store, environment, &self.name.0, &self.name.1)
            .await
            .unwrap();
        self.machine.set_share_policy(policy).await;
        self.machine.set_trust_requirement(trust);
    }

    pub(crate) fn user(&self) -> &UserId {
        &self.name.0
    }

    pub(crate) fn device(&self) -> &DeviceId {
        &self.name.1
    }

    pub(crate) fn name(&self) -> DeviceName {
        self.name.clone()
    }

    /// Queues something that the next sync says about a room.
    pub(crate) fn room_change(&mut self, change: RoomChange) {
        self.room_changes.push(change);
    }

    pub(crate) fn encrypt_room(&mut self, room: &RoomId, content: Value) {
        let Value::Object(content) = content else {
            panic!()
        };
        self.room_change(RoomChange::Encryption(room.to_owned(), content));
    }

    /// One sync, and nothing after it.
    pub(crate) async fn receive(&mut self, server: &mut Server) -> SyncOutcome {
        self.try_receive(server).await.unwrap()
    }

    pub(crate) async fn try_receive(&mut self, server: &mut Server) -> Result<SyncOutcome, Crash> {
        let token = self.machine.sync_token().await?;
        let since: u64 = token.as_deref().map_or(Ok(0), str::parse)?;
        let mut device_lists = DeviceLists::new();
        // Only an incremental sync tells of changes.
        let is_news = |at: u64| token.is_some() && at > since;
        let outdated = server.changes.iter().filter(|(at, _)| is_news(*at));
        device_lists.changed = outdated.map(|(_, user)| user.clone()).collect();
        let position = server.position;
        let device = server.devices.entry(self.name.clone()).or_default();
        device.inbox.retain(|(at, _)| *at > since);
        let to_device: Vec<Raw<AnyToDeviceEvent>> =
            device.inbox.iter().map(|(_, event)| raw(event)).collect();
        let unused = if device.fallback.is_some() && !device.fallback_used {
            vec![ruma::OneTimeKeyAlgorithm::SignedCurve25519]
        } else {
            vec![]
        };
        let changes = SyncChanges {
            next_batch: &position.to_string(),
            to_device: &to_device,
            device_lists: &device_lists,
            one_time_keys: device.one_time_keys.len() as u64,
            unused_fallback_keys: Some(&unused),
            rooms: &self.room_changes,
            consumed: &[],
            also: Changes::default(),
        };
        let outcome = self.machine.receive_sync_changes(changes).await?;
        self.room_changes.clear();
        Ok(outcome)
    }

    /// Sends all that the machine wants to send.
    pub(crate) async fn send_outgoing(&mut self, server: &mut Server) {
        self.try_send_outgoing(server).await.unwrap();
    }

    pub(crate) async fn try_send_outgoing(&mut self, server: &mut Server) -> Result<(), Crash> {
        for _ in 0..10 {
            let requests = self.machine.outgoing_requests().await?;
            if requests.is_empty() {
                return Ok(());
            }
            self.send(server, requests).await?;
        }
        panic!("the machine never has enough");
    }

    async fn send(
        &mut self,
        server: &mut Server,
        requests: Vec<OutgoingRequest>,
    ) -> Result<(), Crash> {
        for request in requests {
            let response = server.handle(&self.name, &request.request);
            self.alarms.extend(
                self.machine
                    .mark_request_as_sent(&request.id, &response)
                    .await?,
            );
        }
        Ok(())
    }

    pub(crate) async fn sync(&mut self, server: &mut Server) -> SyncOutcome {
        let outcome = self.receive(server).await;
        self.send_outgoing(server).await;
        outcome
    }

    /// Shares the room key with the members until it is ready.
    pub(crate) async fn share(&mut self, server: &mut Server, room: &RoomId, members: &[&Peer]) {
        self.try_share(server, room, &users(members)).await.unwrap();
    }

    pub(crate) async fn try_share(
        &mut self,
        server: &mut Server,
        room: &RoomId,
        members: &BTreeSet<OwnedUserId>,
    ) -> Result<(), Crash> {
        for _ in 0..10 {
            match self.machine.share_room_key(room, members).await? {
                Share::Ready => return Ok(()),
                Share::Pending(requests) => self.send(server, requests).await?,
            }
        }
        panic!("the key is never shared");
    }

    pub(crate) async fn encrypt(
        &self,
        room: &RoomId,
        body: &str,
    ) -> Result<Map<String, Value>, EncryptError> {
        self.machine
            .encrypt_room_event(room, "m.room.message", text(body))
            .await
    }

    /// Shares, encrypts, and returns the event as the server would send it to others.
    pub(crate) async fn say(
        &mut self,
        server: &mut Server,
        members: &[&Peer],
        body: &str,
    ) -> Value {
        self.share(server, room(), members).await;
        let content = self.encrypt(room(), body).await.unwrap();
        server.event(self.user(), &content)
    }

    /// The device of another as this one knows it.
    pub(crate) async fn knows(&self, other: &Peer) -> Device {
        let devices = self.machine.devices(other.user()).await.unwrap();
        devices
            .into_iter()
            .find(|device| device.device_id == other.device())
            .unwrap()
    }

    pub(crate) async fn read(&self, event: &Value) -> Result<String, DecryptError> {
        let event = self.decrypt_in(room(), event).await?;
        Ok(event.content["body"].as_str().unwrap().to_owned())
    }

    pub(crate) async fn decrypt_in(
        &self,
        room: &RoomId,
        event: &Value,
    ) -> Result<DecryptedEvent, DecryptError> {
        let event: Raw<AnySyncTimelineEvent> = raw(event);
        self.machine.decrypt_room_event(room, &event).await
    }
}

pub(crate) fn users(peers: &[&Peer]) -> BTreeSet<OwnedUserId> {
    peers.iter().map(|peer| peer.user().to_owned()).collect()
}

/// The id of the session that encrypted an event.
pub(crate) fn session_id(event: &Value) -> &str {
    event["content"]["session_id"].as_str().unwrap()
}

/// A server and two devices that know an encrypted room and have uploaded their keys.
pub(crate) async fn alice_and_bob() -> (Server, Peer, Peer) {
    let environment = Arc::new(TestEnvironment::default());
    let mut server = Server::default();
    let alice = another(&mut server, "@alice:example.org", "ALICE", &environment).await;
    let bob = another(&mut server, "@bob:example.org", "BOB", &environment).await;
    (server, alice, bob)
}

/// One more device that knows the encrypted room and has uploaded its keys.
pub(crate) async fn another(
    server: &mut Server,
    user: &str,
    device: &str,
    environment: &Arc<TestEnvironment>,
) -> Peer {
    let mut peer = Peer::new(user, device, environment).await;
    peer.encrypt_room(room(), json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    peer.sync(server).await;
    peer
}

/// One more device, strict about trust, whose user has an identity that vouches for it.
pub(crate) async fn signed(
    server: &mut Server,
    user: &str,
    device: &str,
    environment: &Arc<TestEnvironment>,
) -> Peer {
    let mut peer = another(server, user, device, environment).await;
    peer.be_strict().await;
    peer.bootstrap(server, Bootstrap::IfMissing).await;
    peer.sync(server).await;
    peer
}

impl Peer {
    /// Takes the policies that are the default.
    pub(crate) async fn be_strict(&self) {
        self.machine.set_share_policy(SharePolicy::default()).await;
        self.machine
            .set_trust_requirement(TrustRequirement::default());
    }

    pub(crate) async fn bootstrap(&mut self, server: &mut Server, how: Bootstrap) -> bool {
        let request = self.machine.bootstrap_cross_signing(how).await.unwrap();
        let some = request.is_some();
        self.send(server, request.into_iter().collect())
            .await
            .unwrap();
        self.send_outgoing(server).await;
        some
    }
}
