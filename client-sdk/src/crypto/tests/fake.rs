//! A key server in memory, and devices that talk to it, for the tests of the machine.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod server;

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, RoomId, UserId,
    api::client::sync::sync_events::DeviceLists,
    events::{AnySyncTimelineEvent, AnyToDeviceEvent},
    room_id,
    serde::Raw,
};
use serde_json::{Map, Value, json, value::to_raw_value};

pub(crate) use self::server::Server;
use crate::crypto::{
    Alarm, Bootstrap, DecryptError, DecryptedEvent, Device, EncryptError, Machine, OutgoingRequest,
    RoomChange, Share, SharePolicy, SyncChanges, SyncOutcome, TrustRequirement,
};
use crate::{
    environment::tests::TestEnvironment,
    store::{Changes, MemoryStore, Store},
};

pub(crate) fn room() -> &'static RoomId {
    room_id!("!room:example.org")
}

type DeviceName = (OwnedUserId, OwnedDeviceId);

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
        let parted = server.partings.iter().filter(|(at, _)| is_news(*at));
        device_lists.left = parted.map(|(_, user)| user.clone()).collect();
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

    /// Sends these requests of the machine.
    pub(crate) async fn answer(&mut self, server: &mut Server, requests: Vec<OutgoingRequest>) {
        self.send(server, requests).await.unwrap();
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
