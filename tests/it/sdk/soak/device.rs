//! A device that talks, and dies at any moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use ruma::{OwnedEventId, OwnedRoomId, events::AnySyncTimelineEvent, serde::Raw};
use serde_json::json;
use sotto_client::{
    Client,
    client::StoreConfig,
    store::{MemoryStore, Store},
    sync::SyncUpdate,
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
    url: String,
    disk: Disk,
    random: StdRng,
    /// The events that it has seen.
    pub(super) seen: BTreeMap<OwnedEventId, Raw<AnySyncTimelineEvent>>,
    /// Every event that it ever saw.
    ever: BTreeSet<OwnedEventId>,
    /// Where syncs left events out.
    gaps: Vec<(OwnedRoomId, String)>,
    /// The messages that it sent, as far as it knows.
    pub(super) sent: Vec<OwnedEventId>,
    /// Tokens for other devices, by their Curve25519 keys.
    pub(super) tokens_sent: Vec<(String, u64)>,
    pub(super) tokens_seen: BTreeSet<u64>,
    /// Tokens that came with the last sync of this process or of the one that died.
    fresh: BTreeSet<u64>,
    pub(super) deaths: usize,
}

impl Device {
    pub(super) async fn log_in(name: &str, user: usize, url: &str, disk: Disk, seed: u64) -> Self {
        let client = disk.client(url).await;
        let password = format!("the password of {name}");
        client.login_password(name, &password).await.unwrap();
        Self {
            client,
            user,
            is_first: false,
            url: url.to_owned(),
            disk,
            random: StdRng::seed_from_u64(seed),
            seen: BTreeMap::new(),
            ever: BTreeSet::new(),
            gaps: Vec::new(),
            sent: Vec::new(),
            tokens_sent: Vec::new(),
            tokens_seen: BTreeSet::new(),
            fresh: BTreeSet::new(),
            deaths: 0,
        }
    }

    pub(super) fn key(&self) -> String {
        self.client.machine().unwrap().curve25519_key().to_base64()
    }

    /// Ends its session; it keeps what it has.
    pub(super) async fn log_out(&self) {
        self.client.logout().await.unwrap();
    }

    /// Sends messages and listens in between.
    pub(super) async fn talk(
        mut self,
        room_id: OwnedRoomId,
        messages: usize,
        phase: usize,
    ) -> Self {
        let mut number = 0;
        while number < messages {
            let patience = match self.random.random_range(0..20) {
                // It dies on the way.
                0 => Duration::from_millis(self.random.random_range(0..40)),
                _ => Duration::from_mins(2),
            };
            let act = self.random.random_range(0..4);
            let done = tokio::time::timeout(patience, async {
                match act {
                    0 | 1 => self.listen(Duration::from_millis(20)).await,
                    2 => {
                        let text = format!("{phase} {} {number}", self.user);
                        if let Ok(event_id) = self.client.room(&room_id).send_text(text).await {
                            self.sent.push(event_id);
                            number += 1;
                        }
                    }
                    _ => self.send_token().await,
                }
            });
            if done.await.is_err() {
                self.restart().await;
            }
        }
        self
    }

    async fn restart(&mut self) {
        self.deaths += 1;
        // Whatever is left of it goes first: nobody else opens a store that is in use.
        self.client = Disk::in_memory().client(&self.url).await;
        self.client = self.disk.client(&self.url).await;
        assert!(self.client.restore().await.unwrap());
    }

    pub(super) async fn listen(&mut self, timeout: Duration) {
        if let Ok(update) = self.client.sync_once(timeout).await {
            self.take(&update);
        }
        while let Some((room_id, from)) = self.gaps.last().cloned() {
            let room = self.client.room(&room_id);
            let Ok(history) = room.messages(Some(&from), 50).await else {
                return;
            };
            self.gaps.pop();
            let known = history
                .events
                .iter()
                .any(|event| self.ever.contains(&event.event_id));
            for event in history.events {
                self.see(event.event_id, event.raw);
            }
            if let Some(end) = history.end.filter(|_| !known) {
                self.gaps.push((room_id, end));
            }
        }
    }

    fn see(&mut self, event_id: OwnedEventId, raw: Raw<AnySyncTimelineEvent>) {
        self.ever.insert(event_id.clone());
        self.seen.insert(event_id, raw);
    }

    fn take(&mut self, update: &SyncUpdate) {
        for room in &update.rooms {
            if let (true, Some(from)) = (room.limited, &room.prev_batch) {
                self.gaps.push((room.room_id.clone(), from.clone()));
            }
            for event in &room.timeline {
                self.see(event.event_id.clone(), event.raw.clone());
            }
        }
        assert!(update.rejected.is_empty(), "{:?}", update.rejected);
        assert!(update.alarms.is_empty(), "{:?}", update.alarms);
        // What came with the sync before this one was consumed by asking for more; it comes again
        // only if the process died in between.
        let mut fresh = BTreeSet::new();
        for event in update.to_device.iter().filter(|event| event.kind == TOKEN) {
            let token = event.content["token"].as_u64().unwrap();
            let again = !self.tokens_seen.insert(token);
            assert!(!again || self.fresh.contains(&token), "{token} came twice");
            assert!(fresh.insert(token), "{token} came twice at once");
        }
        self.fresh = fresh;
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
            self.tokens_sent
                .push((device.curve25519.clone(), u64::from(token)));
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
