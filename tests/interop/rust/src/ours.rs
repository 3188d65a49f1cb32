//! Our machine on the server in memory.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedUserId, RoomId, UserId,
    api::{IncomingResponse, IncomingResponseExt as _, client::sync::sync_events::DeviceLists},
    serde::Raw,
};
use serde_json::{Map, Value, json};
use sotto_client::{
    SystemEnvironment,
    crypto::{
        Bootstrap, DecryptedEvent, HistorySharing, InRoom, InboxItem, Machine, OutgoingRequest,
        RejectedToDevice, Request, Response, RoomChange, Share, SyncChanges,
    },
    store::{Changes, MemoryStore, Store},
};

use crate::{ROOM, Server, event};

/// A device with our machine.
pub struct Ours {
    /// The machine.
    pub machine: Machine,
    since: Option<u64>,
    name: (String, String),
}

impl Ours {
    /// A device that has uploaded its keys and knows the encrypted room.
    pub async fn new(server: &mut Server, user: &str, device: &str) -> Self {
        Self::over(Arc::new(MemoryStore::new()), server, user, device).await
    }

    /// As [`Self::new`], with a store.
    pub async fn over(
        store: Arc<dyn Store>,
        server: &mut Server,
        user: &str,
        device: &str,
    ) -> Self {
        let user_id = <&UserId>::try_from(user).unwrap();
        let device_id = <&DeviceId>::from(device);
        let environment = Arc::new(SystemEnvironment);
        let machine = Machine::open(store, environment, user_id, device_id);
        let mut ours = Self {
            machine: machine.await.unwrap(),
            since: None,
            name: (user.to_owned(), device.to_owned()),
        };
        let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        let algorithm = algorithm.as_object().unwrap().clone();
        let change = RoomChange::Encryption(ROOM.try_into().unwrap(), algorithm);
        ours.machine
            .receive_room_changes(&[change], Changes::default())
            .await
            .unwrap();
        ours.sync(server).await;
        ours
    }

    /// As [`Self::new`], and the user has an identity.
    pub async fn with_identity(server: &mut Server, user: &str, device: &str) -> Self {
        let mut ours = Self::new(server, user, device).await;
        ours.bootstrap(server).await;
        ours
    }

    /// Makes the identity of the user.
    pub async fn bootstrap(&mut self, server: &mut Server) {
        let request = self.machine.bootstrap_cross_signing(Bootstrap::IfMissing);
        let request = request.await.unwrap();
        self.send(server, request.into_iter().collect()).await;
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

    /// One sync, and what follows from it; the messages for the application.
    pub async fn sync(&mut self, server: &mut Server) -> Vec<InboxItem> {
        let refused = self.receive(server).await;
        assert!(refused.is_empty(), "{refused:?}");
        self.send_outgoing(server).await;
        let inbox = self.machine.inbox().await.unwrap();
        inbox.into_iter().map(|(_, item)| item).collect()
    }

    /// As [`Self::sync`], where messages may be refused; how many were.
    pub async fn sync_with_refusals(&mut self, server: &mut Server) -> usize {
        let refused = self.receive(server).await;
        self.send_outgoing(server).await;
        refused.len()
    }

    async fn receive(&mut self, server: &mut Server) -> Vec<RejectedToDevice> {
        let sync = server.sync(&self.name.0, &self.name.1, self.since);
        let to_device: Vec<Raw<_>> = sync.to_device.iter().map(raw).collect();
        let mut device_lists = DeviceLists::new();
        if self.since.is_some() {
            let users = sync
                .changed
                .iter()
                .map(|user| user.as_str().try_into().unwrap());
            device_lists.changed = users.collect();
        }
        let unused: &[_] = if sync.fallback_unused {
            &[OneTimeKeyAlgorithm::SignedCurve25519]
        } else {
            &[]
        };
        let inbox = self.machine.inbox().await.unwrap();
        let consumed: Vec<String> = inbox.into_iter().map(|(id, _)| id).collect();
        let changes = SyncChanges {
            next_batch: &sync.next.to_string(),
            to_device: &to_device,
            device_lists: &device_lists,
            one_time_keys: sync.count.into(),
            unused_fallback_keys: Some(unused),
            rooms: &[],
            consumed: &consumed,
            also: Changes::default(),
        };
        let outcome = self.machine.receive_sync_changes(changes).await.unwrap();
        self.since = Some(sync.next);
        outcome.rejected
    }

    /// Sends all that the machine wants to send.
    pub async fn send_outgoing(&mut self, server: &mut Server) {
        for _ in 0..10 {
            let requests = self.machine.outgoing_requests().await.unwrap();
            if requests.is_empty() {
                return;
            }
            self.send(server, requests).await;
        }
        panic!("our machine never has enough");
    }

    async fn send(&mut self, server: &mut Server, requests: Vec<OutgoingRequest>) {
        for OutgoingRequest { id, request } in requests {
            let response = self.answer(server, request);
            self.machine
                .mark_request_as_sent(&id, &response)
                .await
                .unwrap();
        }
    }

    fn answer(&self, server: &mut Server, request: Request) -> Response {
        let (user, device) = &self.name;
        match request {
            Request::KeysUpload(request) => {
                let body = json!({
                    "device_keys": request.device_keys,
                    "one_time_keys": request.one_time_keys,
                    "fallback_keys": request.fallback_keys,
                });
                Response::KeysUpload(parse(&server.upload(user, device, &body)))
            }
            Request::KeysQuery(request) => {
                let users = request.device_keys.keys().map(ToString::to_string);
                let users: Vec<String> = users.collect();
                Response::KeysQuery(parse(&server.query(user, &users)))
            }
            Request::KeysClaim(request) => {
                let answer = server.claim(&json!(request.one_time_keys));
                Response::KeysClaim(parse(&answer))
            }
            Request::SigningKeysUpload(request) => {
                let body = json!({
                    "master_key": request.master_key,
                    "self_signing_key": request.self_signing_key,
                    "user_signing_key": request.user_signing_key,
                });
                server.signing_keys(user, &body);
                Response::SigningKeysUpload(parse(&json!({})))
            }
            Request::SignaturesUpload(request) => {
                server.signatures(&json!(request.signed_keys));
                Response::SignaturesUpload(parse(&json!({ "failures": {} })))
            }
            Request::ToDevice(request) => {
                let kind = request.event_type.to_string();
                server.send(user, &kind, &json!(request.messages));
                Response::ToDevice(parse(&json!({})))
            }
            _ => unreachable!("all requests are known here"),
        }
    }

    /// Gives the key of the room to the members.
    pub async fn share(&mut self, server: &mut Server, members: &[&str]) {
        self.share_in(server, ROOM, members).await;
    }

    /// Gives the key of a room to the members.
    pub async fn share_in(&mut self, server: &mut Server, room: &str, members: &[&str]) {
        let room_id = <&RoomId>::try_from(room).unwrap();
        let members: BTreeSet<OwnedUserId> = members
            .iter()
            .map(|user| (*user).try_into().unwrap())
            .collect();
        for _ in 0..64 {
            match self
                .machine
                .share_room_key(room_id, &members)
                .await
                .unwrap()
            {
                Share::Ready => return,
                Share::Pending(requests) => self.send(server, requests).await,
                _ => unreachable!("no other states"),
            }
        }
        panic!("the key is never shared");
    }

    /// Shares, encrypts, and returns the event.
    pub async fn say(&mut self, server: &mut Server, members: &[&str], body: &str) -> Value {
        self.share(server, members).await;
        let content = self.encrypt(body).await;
        event(self.user(), &server.event_id(), "m.room.encrypted", content)
    }

    /// Encrypts for the room.
    pub async fn encrypt(&self, body: &str) -> Value {
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        let content = json!({ "msgtype": "m.text", "body": body });
        let content = content.as_object().unwrap().clone();
        let encrypted = self
            .machine
            .encrypt_room_event(room_id, "m.room.message", content);
        Value::Object(encrypted.await.unwrap())
    }

    /// Decrypts an event of the room.
    pub async fn decrypt(&self, event: &Value) -> Option<DecryptedEvent> {
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        self.machine
            .decrypt_room_event(room_id, &raw(event))
            .await
            .ok()
    }

    /// Takes what the room says about its history.
    pub async fn set_history(&self, sharing: HistorySharing) {
        let change = RoomChange::History(ROOM.try_into().unwrap(), sharing);
        self.machine
            .receive_room_changes(&[change], Changes::default())
            .await
            .unwrap();
    }

    /// Makes sure that the devices of a user can be reached who will be invited.
    pub async fn reach(&mut self, server: &mut Server, user: &str) {
        let user_id = <&UserId>::try_from(user).unwrap();
        for _ in 0..5 {
            match self.machine.reach_invited(user_id).await.unwrap() {
                Share::Ready => return,
                Share::Pending(requests) => self.send(server, requests).await,
                _ => unreachable!("no other states"),
            }
        }
        panic!("nobody is reached");
    }

    /// The text of an event.
    pub async fn read(&self, event: &Value) -> Option<String> {
        let event = self.decrypt(event).await?;
        Some(event.content["body"].as_str()?.to_owned())
    }

    /// Shows a room event of a verification to the machine.
    pub async fn see(&self, event: &Value) {
        let text = |name: &str| event[name].as_str().unwrap();
        let event = InRoom {
            room_id: ROOM.try_into().unwrap(),
            event_id: text("event_id").try_into().unwrap(),
            sender: text("sender").try_into().unwrap(),
            timestamp: event["origin_server_ts"].as_u64().unwrap(),
            kind: text("type").to_owned(),
            content: event["content"]
                .as_object()
                .cloned()
                .unwrap_or_else(Map::new),
        };
        self.machine
            .receive_verification_event(&event)
            .await
            .unwrap();
    }

    /// The events of verifications that have to go into the room.
    pub async fn room_events(&self, server: &mut Server) -> Vec<Value> {
        let messages = self.machine.take_verification_messages().await;
        let event = |message: sotto_client::crypto::RoomVerificationMessage| {
            let content = Value::Object(message.content);
            event(self.user(), &server.event_id(), &message.kind, content)
        };
        messages.into_iter().map(event).collect()
    }
}

fn raw<T>(value: &Value) -> Raw<T> {
    Raw::from_json(serde_json::value::to_raw_value(value).unwrap())
}

fn parse<R: IncomingResponse>(body: &Value) -> R {
    let body = body.to_string();
    let response = http::Response::new(body.as_bytes());
    match R::try_from_http_response(response) {
        Ok(response) => response,
        Err(_) => panic!("an answer of the server is malformed"),
    }
}
