//! The machine of matrix-sdk-crypto on the server in memory.

use std::collections::BTreeMap;

use matrix_ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedUserId, RoomId, UInt, UserId,
    api::{IncomingResponse, client::sync::sync_events::DeviceLists},
    events::{AnyMessageLikeEvent, MessageLikeEventContent as _},
    serde::Raw,
};
use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, OlmMachine,
    TrustRequirement,
    types::requests::{
        AnyOutgoingRequest, OutgoingRequest, OutgoingVerificationRequest, ToDeviceRequest,
    },
};
use matrix_sdk_sqlite::SqliteCryptoStore;
use serde_json::{Value, json};

use crate::{ROOM, Server, event};

/// A device with their machine.
pub struct Theirs {
    /// The machine.
    pub machine: OlmMachine,
    /// Events of verifications that have to go into the room.
    pub room_events: Vec<Value>,
    since: Option<u64>,
    name: (String, String),
    strategy: CollectStrategy,
}

impl Theirs {
    /// A device that has uploaded its keys.
    pub async fn new(server: &mut Server, user: &str, device: &str) -> Self {
        let user_id = <&UserId>::try_from(user).unwrap();
        let machine = OlmMachine::new(user_id, <&DeviceId>::from(device));
        Self::with(machine.await, server, user, device).await
    }

    /// As [`Self::new`], with a store on the disk.
    pub async fn over(
        store: SqliteCryptoStore,
        server: &mut Server,
        user: &str,
        device: &str,
    ) -> Self {
        let user_id = <&UserId>::try_from(user).unwrap();
        let machine = OlmMachine::with_store(user_id, <&DeviceId>::from(device), store, None);
        Self::with(machine.await.unwrap(), server, user, device).await
    }

    async fn with(machine: OlmMachine, server: &mut Server, user: &str, device: &str) -> Self {
        let user_id = <&UserId>::try_from(user).unwrap();
        let mut theirs = Self {
            machine,
            room_events: Vec::new(),
            since: None,
            name: (user.to_owned(), device.to_owned()),
            strategy: CollectStrategy::IdentityBasedStrategy,
        };
        theirs
            .machine
            .update_tracked_users([user_id])
            .await
            .unwrap();
        theirs.sync(server).await;
        theirs
    }

    /// As [`Self::new`], and the user has an identity.
    pub async fn with_identity(server: &mut Server, user: &str, device: &str) -> Self {
        let mut theirs = Self::new(server, user, device).await;
        theirs.bootstrap(server).await;
        theirs
    }

    /// Makes the identity of the user.
    pub async fn bootstrap(&mut self, server: &mut Server) {
        let requests = self.machine.bootstrap_cross_signing(false).await.unwrap();
        assert!(requests.upload_keys_req.is_none(), "they are uploaded");
        let keys = requests.upload_signing_keys_req;
        let body = json!({
            "master_key": keys.master_key,
            "self_signing_key": keys.self_signing_key,
            "user_signing_key": keys.user_signing_key,
        });
        server.signing_keys(&self.name.0, &body);
        server.signatures(&json!(requests.upload_signatures_req.signed_keys));
        self.sync(server).await;
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.name.0
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.name.1
    }

    /// One sync, and what follows from it.
    pub async fn sync(&mut self, server: &mut Server) {
        let sync = server.sync(&self.name.0, &self.name.1, self.since);
        let mut lists = DeviceLists::new();
        if self.since.is_some() {
            let users = sync
                .changed
                .iter()
                .map(|user| user.as_str().try_into().unwrap());
            lists.changed = users.collect();
        }
        let algorithm = OneTimeKeyAlgorithm::SignedCurve25519;
        let counts = BTreeMap::from([(algorithm.clone(), UInt::from(sync.count))]);
        let unused: &[_] = if sync.fallback_unused {
            &[algorithm]
        } else {
            &[]
        };
        let changes = EncryptionSyncChanges {
            to_device_events: sync.to_device.iter().map(raw).collect(),
            changed_devices: &lists,
            one_time_keys_counts: &counts,
            unused_fallback_keys: Some(unused),
            next_batch_token: Some(sync.next.to_string()),
        };
        let settings = settings();
        let taken = self.machine.receive_sync_changes(changes, &settings);
        taken.await.unwrap();
        self.since = Some(sync.next);
        self.send_outgoing(server).await;
    }

    /// Sends all that the machine wants to send.
    pub async fn send_outgoing(&mut self, server: &mut Server) {
        for _ in 0..10 {
            let requests = self.machine.outgoing_requests().await.unwrap();
            if requests.is_empty() {
                return;
            }
            for request in requests {
                self.send(server, &request).await;
            }
        }
        panic!("their machine never has enough");
    }

    /// Sends one request.
    pub async fn send(&mut self, server: &mut Server, request: &OutgoingRequest) {
        use matrix_ruma::api::client::{
            keys::{claim_keys, get_keys, upload_keys, upload_signatures},
            message::send_message_event,
            to_device::send_event_to_device,
        };
        let (user, device) = self.name.clone();
        let id = request.request_id();
        match request.request() {
            AnyOutgoingRequest::KeysUpload(request) => {
                let body = json!({
                    "device_keys": request.device_keys,
                    "one_time_keys": request.one_time_keys,
                    "fallback_keys": request.fallback_keys,
                });
                let answer = server.upload(&user, &device, &body);
                let answer: upload_keys::v3::Response = parse(&answer);
                self.machine
                    .mark_request_as_sent(id, &answer)
                    .await
                    .unwrap();
            }
            AnyOutgoingRequest::KeysQuery(request) => {
                let users = request.device_keys.keys().map(ToString::to_string);
                let users: Vec<String> = users.collect();
                let answer: get_keys::v3::Response = parse(&server.query(&user, &users));
                self.machine
                    .mark_request_as_sent(id, &answer)
                    .await
                    .unwrap();
            }
            AnyOutgoingRequest::KeysClaim(request) => {
                let answer = server.claim(&json!(request.one_time_keys));
                let answer: claim_keys::v3::Response = parse(&answer);
                self.machine
                    .mark_request_as_sent(id, &answer)
                    .await
                    .unwrap();
            }
            AnyOutgoingRequest::ToDeviceRequest(request) => {
                server.send(
                    &user,
                    &request.event_type.to_string(),
                    &json!(request.messages),
                );
                let answer: send_event_to_device::v3::Response = parse(&json!({}));
                self.machine
                    .mark_request_as_sent(id, &answer)
                    .await
                    .unwrap();
            }
            AnyOutgoingRequest::SignatureUpload(request) => {
                server.signatures(&json!(request.signed_keys));
                let answer: upload_signatures::v3::Response = parse(&json!({ "failures": {} }));
                self.machine
                    .mark_request_as_sent(id, &answer)
                    .await
                    .unwrap();
            }
            AnyOutgoingRequest::RoomMessage(request) => {
                let event_id = server.event_id();
                let content = json!(&*request.content);
                let kind = request.content.event_type().to_string();
                self.room_events
                    .push(event(&user, &event_id, &kind, content));
                let answer: send_message_event::v3::Response =
                    parse(&json!({ "event_id": event_id }));
                self.machine
                    .mark_request_as_sent(id, &answer)
                    .await
                    .unwrap();
            }
        }
    }

    /// Sends a request of a verification.
    pub async fn verify(&mut self, server: &mut Server, request: OutgoingVerificationRequest) {
        self.send(server, &request.into()).await;
    }

    /// Sends messages to devices.
    pub async fn send_to_device(&mut self, server: &mut Server, request: &ToDeviceRequest) {
        let answer: matrix_ruma::api::client::to_device::send_event_to_device::v3::Response =
            parse(&json!({}));
        let kind = request.event_type.to_string();
        server.send(&self.name.0.clone(), &kind, &json!(request.messages));
        let id = &request.txn_id;
        self.machine
            .mark_request_as_sent(id, &answer)
            .await
            .unwrap();
    }

    /// Makes sure that there are sessions with all devices of the users.
    pub async fn make_sessions(&mut self, server: &mut Server, members: &[&str]) {
        let users = members
            .iter()
            .map(|user| <&UserId>::try_from(*user).unwrap());
        let tracked = self.machine.update_tracked_users(users.clone());
        tracked.await.unwrap();
        self.send_outgoing(server).await;
        if let Some((id, request)) = self.machine.get_missing_sessions(users).await.unwrap() {
            let answer = server.claim(&json!(request.one_time_keys));
            let answer: matrix_ruma::api::client::keys::claim_keys::v3::Response = parse(&answer);
            self.machine
                .mark_request_as_sent(&id, &answer)
                .await
                .unwrap();
        }
    }

    /// Gives the key of the room to the members.
    pub async fn share(&mut self, server: &mut Server, members: &[&str]) {
        self.make_sessions(server, members).await;
        let settings = EncryptionSettings {
            sharing_strategy: self.strategy.clone(),
            ..EncryptionSettings::default()
        };
        let users: Vec<OwnedUserId> = members
            .iter()
            .map(|user| (*user).try_into().unwrap())
            .collect();
        let users = users.iter().map(|user| &**user);
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        let requests = self.machine.share_room_key(room_id, users, settings);
        for request in requests.await.unwrap() {
            self.send_to_device(server, &request).await;
        }
    }

    /// Shares, encrypts, and returns the event.
    pub async fn say(&mut self, server: &mut Server, members: &[&str], body: &str) -> Value {
        self.share(server, members).await;
        let content = self.encrypt(body).await;
        event(self.user(), &server.event_id(), "m.room.encrypted", content)
    }

    /// Encrypts for the room.
    pub async fn encrypt(&self, body: &str) -> Value {
        let content = raw(&json!({ "msgtype": "m.text", "body": body }));
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        let encrypted = self
            .machine
            .encrypt_room_event_raw(room_id, "m.room.message", &content);
        let content = encrypted.await.unwrap().content;
        serde_json::from_str(content.json().get()).unwrap()
    }

    /// The text of an event, if its sender is trusted as much as everybody should be.
    pub async fn read(&self, event: &Value) -> Option<String> {
        self.read_with(event, settings()).await
    }

    /// The text of an event, whoever sent it.
    pub async fn read_untrusted(&self, event: &Value) -> Option<String> {
        let sender_device_trust_requirement = TrustRequirement::Untrusted;
        let settings = DecryptionSettings {
            sender_device_trust_requirement,
        };
        self.read_with(event, settings).await
    }

    async fn read_with(&self, event: &Value, settings: DecryptionSettings) -> Option<String> {
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        let event = raw(event);
        let decrypted = self.machine.decrypt_room_event(&event, room_id, &settings);
        let event: Value = serde_json::from_str(decrypted.await.ok()?.event.json().get()).unwrap();
        Some(event["content"]["body"].as_str()?.to_owned())
    }

    /// Shows a room event of a verification to the machine.
    pub async fn see(&self, event: &Value) {
        let event: AnyMessageLikeEvent = serde_json::from_value(event.clone()).unwrap();
        self.machine
            .receive_verification_event(&event)
            .await
            .unwrap();
    }
}

/// Only devices are believed for which the identity of their user vouches.
fn settings() -> DecryptionSettings {
    DecryptionSettings {
        sender_device_trust_requirement: TrustRequirement::CrossSignedOrLegacy,
    }
}

/// Their JSON, from ours.
pub fn raw<T>(value: &Value) -> Raw<T> {
    Raw::from_json(serde_json::value::to_raw_value(value).unwrap())
}

fn parse<R: IncomingResponse>(body: &Value) -> R {
    let response = http::Response::new(body.to_string().into_bytes());
    match R::try_from_http_response(response) {
        Ok(response) => response,
        Err(_) => panic!("an answer of the server is malformed"),
    }
}
