//! A device that talks, and dies at any moment.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use ruma::{OwnedRoomId, events::AnySyncTimelineEvent, serde::Raw};
use serde_json::json;
use sotto_client::{
    Client,
    client::StoreConfig,
    store::{MemoryStore, Store},
    sync::SyncUpdate,
    timeline::TimelineEvent,
};

use super::{
    killed,
    memory::{Events, Memory, Note},
};

const TOKEN: &str = "org.example.token";

/// What survives the death of a program.
#[derive(Clone)]
pub(super) enum Disk {
    File(PathBuf),
    Memory(Arc<dyn Store>),
}

impl Disk {
    pub(super) fn in_memory() -> Self {
        Self::Memory(Arc::new(MemoryStore::new()))
    }

    async fn client(&self, url: &str) -> Client {
        let store = match self {
            Self::File(path) => StoreConfig::from(path.as_path()),
            Self::Memory(store) => StoreConfig::Custom(store.clone()),
        };
        let builder = Client::builder().homeserver(url).store(store);
        builder.build().await.unwrap()
    }
}

/// A device of somebody.
pub(super) struct Device {
    pub(super) client: Client,
    pub(super) user: usize,
    /// It made the identity of its person, and vouches for the others.
    pub(super) is_first: bool,
    pub(super) url: String,
    disk: Disk,
    pub(super) random: StdRng,
    pub(super) memory: Memory,
    /// How often what it did was dropped.
    pub(super) deaths: usize,
    /// How often its process was killed.
    pub(super) kills: usize,
}

impl Device {
    pub(super) async fn log_in(name: &str, user: usize, url: &str, disk: Disk, seed: u64) -> Self {
        let device = Self::on(disk, user, url, seed).await;
        let password = format!("the password of {name}");
        let login = device.client.login_password(name, &password).await;
        login.unwrap();
        device
    }

    /// A device that had logged in before.
    pub(super) async fn wake(
        user: usize,
        url: &str,
        disk: Disk,
        memory: Memory,
        seed: u64,
    ) -> Self {
        let mut device = Self::on(disk, user, url, seed).await;
        assert!(device.client.restore().await.unwrap());
        device.memory = memory;
        device
    }

    async fn on(disk: Disk, user: usize, url: &str, seed: u64) -> Self {
        Self {
            client: disk.client(url).await,
            user,
            is_first: false,
            url: url.to_owned(),
            disk,
            random: StdRng::seed_from_u64(seed),
            memory: Memory::default(),
            deaths: 0,
            kills: 0,
        }
    }

    pub(super) fn key(&self) -> String {
        self.client.machine().unwrap().curve25519_key().to_base64()
    }

    /// Ends its session; it keeps what it has.
    pub(super) async fn log_out(&self) {
        self.client.logout().await.unwrap();
    }

    /// Sends messages and listens in between: where there is a file, in a process of its own.
    pub(super) async fn talk(self, room_id: OwnedRoomId, messages: usize, phase: usize) -> Self {
        match self.disk.clone() {
            Disk::File(path) => killed::talk(self, path, room_id, messages, phase).await,
            Disk::Memory(_) => self.speak(room_id, messages, phase).await,
        }
    }

    pub(super) async fn speak(
        mut self,
        room_id: OwnedRoomId,
        messages: usize,
        phase: usize,
    ) -> Self {
        while self.memory.sent.len() < messages {
            let patience = match self.random.random_range(0..20) {
                0 => Duration::from_millis(self.random.random_range(0..40)),
                _ => Duration::from_mins(2),
            };
            let act = self.random.random_range(0..4);
            let done = tokio::time::timeout(patience, async {
                match act {
                    0 | 1 => self.listen(Duration::from_millis(20)).await,
                    2 => {
                        let number = self.memory.sent.len();
                        let text = format!("{phase} {} {number}", self.user);
                        if let Ok(event_id) = self.client.room(&room_id).send_text(text).await {
                            self.memory.note(Note::Sent(event_id));
                        }
                    }
                    _ => self.send_token().await,
                }
            });
            if done.await.is_err() {
                self.deaths += 1;
                // It stops waiting, or it dies on the way.
                if self.random.random_bool(0.5) {
                    self.close().await;
                    self.open().await;
                }
            }
        }
        self
    }

    /// Lets go of the store: nobody else opens one that is in use.
    pub(super) async fn close(&mut self) {
        self.client = Disk::in_memory().client(&self.url).await;
    }

    pub(super) async fn open(&mut self) {
        self.client = self.disk.client(&self.url).await;
        assert!(self.client.restore().await.unwrap());
    }

    pub(super) async fn listen(&mut self, timeout: Duration) {
        if let Ok(update) = self.client.sync_once(timeout).await {
            self.take(&update);
        }
        while let Some((room_id, from)) = self.memory.gaps.last().cloned() {
            let room = self.client.room(&room_id);
            let Ok(history) = room.messages(Some(&from), 50).await else {
                return;
            };
            let known = |event: &TimelineEvent| self.memory.knows(&event.event_id);
            let joined = history.events.iter().any(known);
            let rest = history.end.filter(|_| !joined).map(|end| (room_id, end));
            let events = history.events.into_iter();
            let events = events.map(|event| (event.event_id, event.raw)).collect();
            self.memory.note(Note::Page { events, rest });
        }
    }

    fn take(&mut self, update: &SyncUpdate) {
        let mut events = Events::new();
        let mut gaps = Vec::new();
        for room in &update.rooms {
            if let (true, Some(from)) = (room.limited, &room.prev_batch) {
                gaps.push((room.room_id.clone(), from.clone()));
            }
            for event in &room.timeline {
                events.insert(event.event_id.clone(), event.raw.clone());
            }
        }
        assert!(update.rejected.is_empty(), "{:?}", update.rejected);
        assert!(update.alarms.is_empty(), "{:?}", update.alarms);
        let tokens = update.to_device.iter().filter(|event| event.kind == TOKEN);
        let tokens = tokens.map(|event| event.content["token"].as_u64().unwrap());
        self.memory.note(Note::Update {
            events,
            gaps,
            tokens: tokens.collect(),
        });
    }

    /// Sends something to a device of anybody, over Olm.
    async fn send_token(&mut self) {
        let machine = self.client.machine().unwrap().clone();
        let members = self.client.rooms().await.unwrap();
        let Some(room) = members.first() else { return };
        let Ok(members) = room.members().await else {
            return;
        };
        let mut devices = Vec::new();
        for member in members {
            devices.extend(machine.devices(&member.user_id).await.unwrap());
        }
        devices.retain(|device| device.is_signed() && device.curve25519 != self.key());
        if devices.is_empty() {
            return;
        }
        let device = &devices[self.random.random_range(0..devices.len())];
        let token: u32 = self.random.random();
        let content = json!({ "token": token });
        let content = content.as_object().unwrap().clone();
        let queued = machine.send_to_device(device, TOKEN, content).await;
        if queued.unwrap() {
            let key = device.curve25519.clone();
            self.memory.note(Note::TokenSent(key, u64::from(token)));
        }
    }

    /// Whether it can read an event.
    pub(super) async fn reads(
        &self,
        room_id: &OwnedRoomId,
        event: &Raw<AnySyncTimelineEvent>,
    ) -> Result<(), String> {
        let machine = self.client.machine().unwrap();
        let read = machine.decrypt_room_event(room_id, event).await;
        read.map(drop).map_err(|error| format!("{error:?}"))
    }
}
