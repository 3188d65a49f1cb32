//! Two servers, four people, and what each of them should be able to read.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt as _, rngs::StdRng};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, events::AnySyncTimelineEvent, serde::Raw};
use sotto_client::{Client, client::RoomOptions};
use sotto_tests::{Proxy, TestServer};
use tempfile::TempDir;

use super::device::{Device, Disk};

const PEOPLE: [&str; 4] = ["alice", "bob", "carol", "dave"];
const DEVICES: usize = 3;
/// Rounds in which everybody listens until everything should have arrived.
const ROUNDS: usize = 200;

pub(super) struct World {
    servers: Vec<TestServer>,
    proxies: Vec<Proxy>,
    devices: Vec<Device>,
    /// Devices that were logged out. They keep what they had.
    gone: Vec<Device>,
    /// Who is not in the room at present. Never the first person.
    outside: Option<usize>,
    room_id: OwnedRoomId,
    directory: TempDir,
    checked: BTreeSet<OwnedEventId>,
    messages: usize,
    made: u64,
    seed: u64,
    only_files: bool,
}

impl World {
    /// With `only_files` all devices live in processes that are killed, else one in three.
    pub(super) async fn new(seed: u64, only_files: bool) -> Self {
        let (one, two) = TestServer::pair().await;
        let mut proxies = Vec::new();
        for server in [&one, &two] {
            proxies.push(Proxy::start(&server.url(), seed).await);
        }
        let mut world = Self {
            servers: vec![one, two],
            proxies,
            devices: Vec::new(),
            gone: Vec::new(),
            outside: None,
            room_id: "!none:one.test".try_into().unwrap(),
            directory: TempDir::new().unwrap(),
            checked: BTreeSet::new(),
            messages: 0,
            made: 0,
            seed,
            only_files,
        };
        for (user, name) in PEOPLE.iter().enumerate() {
            world.servers[user % 2].register(name).await;
            for _ in 0..DEVICES {
                world.add_device(user).await;
            }
        }
        let creator = &world.first_of(0).client;
        let room = creator.create_room(RoomOptions::default()).await.unwrap();
        world.room_id = room.id().to_owned();
        for user in 1..PEOPLE.len() {
            world.bring_in(user).await;
        }
        world.settle().await;
        world
    }

    fn user_id(&self, user: usize) -> OwnedUserId {
        let server = self.servers[user % 2].name();
        let id = format!("@{}:{server}", PEOPLE[user]);
        id.try_into().unwrap()
    }

    /// The device of a person that has the private keys; it is never logged out.
    fn first_of(&self, user: usize) -> &Device {
        let mut devices = self.devices.iter();
        let first = |device: &&Device| device.user == user && device.is_first;
        devices.find(first).unwrap()
    }

    /// Logs a device in and has it vouched for by the first one of its person.
    async fn add_device(&mut self, user: usize) {
        self.made += 1;
        let disk = if self.only_files || self.made.is_multiple_of(3) {
            Disk::File(self.directory.path().join(self.made.to_string()))
        } else {
            Disk::in_memory()
        };
        let url = self.proxies[user % 2].url();
        let seed = self.seed.wrapping_add(self.made);
        let mut device = Device::log_in(PEOPLE[user], user, &url, disk, seed).await;
        device.is_first = !self.devices.iter().any(|known| known.user == user);
        self.devices.push(device);
        let device_id = self.devices.last().unwrap().client.device_id();
        let device_id = device_id.unwrap().to_owned();
        let user_id = self.user_id(user);
        for _ in 0..ROUNDS {
            let all = self.devices.iter_mut();
            for device in all.filter(|device| device.user == user) {
                device.listen(Duration::ZERO).await;
            }
            let first = self.first_of(user);
            let machine = first.client.machine().unwrap();
            if first.client.device_id() == Some(&*device_id) {
                if machine.has_private_keys().await.unwrap() {
                    return;
                }
                continue;
            }
            let devices = machine.devices(&user_id).await.unwrap();
            let new = devices.iter().find(|known| known.device_id == device_id);
            match new {
                Some(new) if new.is_signed() => return,
                Some(new) if machine.has_private_keys().await.unwrap() => {
                    machine.sign_own_device(new).await.unwrap();
                }
                _ => {}
            }
        }
        panic!("a device of {user_id} is not vouched for");
    }

    async fn bring_in(&mut self, user: usize) {
        let user_id = self.user_id(user);
        let room = self.first_of(0).client.room(&self.room_id);
        room.invite(&user_id).await.unwrap();
        let creator_server = self.servers[0].name().to_owned();
        for _ in 0..ROUNDS {
            let client = &self.first_of(user).client;
            if client
                .join((&*self.room_id).into(), &[&creator_server])
                .await
                .is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{user_id} cannot join");
    }

    fn is_inside(&self, device: &Device) -> bool {
        Some(device.user) != self.outside
    }

    /// Everybody in the room talks while things go wrong.
    pub(super) async fn talk(&mut self, phase: usize, messages: usize, random: &mut StdRng) {
        for proxy in &self.proxies {
            proxy.fail(true);
        }
        let mut talking = tokio::task::JoinSet::new();
        let outside = self.outside;
        let (inside, silent): (Vec<_>, Vec<_>) = std::mem::take(&mut self.devices)
            .into_iter()
            .partition(|device| Some(device.user) != outside);
        self.devices = silent;
        let each = messages.div_ceil(inside.len());
        for device in inside {
            let room_id = self.room_id.clone();
            let share = each + random.random_range(0..2);
            talking.spawn(device.talk(room_id, share, phase));
        }
        self.devices.extend(talking.join_all().await);
        self.devices
            .sort_by_key(|device| (device.user, !device.is_first));
        for proxy in &self.proxies {
            proxy.fail(false);
        }
        self.settle().await;
    }

    /// Waits until everybody knows the same, and nothing is under way.
    async fn settle(&mut self) {
        let mut quiet = 0;
        let mut before = self.knowledge();
        // Clients whose questions were lost pause before they ask again.
        for _ in 0..5 * ROUNDS {
            for device in &mut self.devices {
                device.listen(Duration::ZERO).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.knowledge();
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
            if quiet >= 3 && self.unsettled().await.is_none() {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.unsettled().await);
    }

    fn knowledge(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for device in &self.devices {
            all.push(device.memory.seen.len());
            all.push(device.memory.tokens_seen.len());
        }
        all
    }

    /// What is missing before everybody in the room knows who is in it, with which devices, and has
    /// got what was sent to it.
    async fn unsettled(&self) -> Option<String> {
        let mut devices: BTreeMap<OwnedUserId, BTreeSet<String>> = BTreeMap::new();
        for device in self.devices.iter().filter(|device| self.is_inside(device)) {
            let user = devices.entry(self.user_id(device.user)).or_default();
            user.insert(device.key());
        }
        for device in self.devices.iter().filter(|device| self.is_inside(device)) {
            let unknown = unknown(&device.client, &self.room_id, &devices).await;
            if unknown.is_some() {
                return unknown;
            }
        }
        let (tokens, events) = (self.missing_tokens(), self.missing_events());
        let nothing = tokens.is_empty() && events.is_empty();
        (!nothing).then(|| format!("{tokens:?} {events:?}"))
    }

    fn missing_tokens(&self) -> Vec<u64> {
        let living: BTreeMap<String, &Device> = self
            .devices
            .iter()
            .map(|device| (device.key(), device))
            .collect();
        let senders = self.devices.iter().chain(&self.gone);
        let sent = senders.flat_map(|device| &device.memory.tokens_sent);
        let missing = sent.filter(|(key, token)| {
            let device = living.get(key);
            device.is_some_and(|device| !device.memory.tokens_seen.contains(token))
        });
        missing.map(|(_, token)| *token).collect()
    }

    /// Messages that were sent and that nobody has seen on one of the servers.
    fn missing_events(&self) -> Vec<&OwnedEventId> {
        let seen = |server: usize| -> BTreeSet<&OwnedEventId> {
            let there = |device: &&Device| device.user % 2 == server && self.is_inside(device);
            let devices = self.devices.iter().filter(there);
            devices
                .flat_map(|device| device.memory.seen.keys())
                .collect()
        };
        let servers = [seen(0), seen(1)];
        let sent = self.devices.iter().flat_map(|device| &device.memory.sent);
        let new = sent.filter(|id| !self.checked.contains(*id));
        new.filter(|id| servers.iter().any(|seen| !seen.contains(id)))
            .collect()
    }

    /// Every device in the room reads all of the phase; no other reads any of it.
    pub(super) async fn check(&mut self, phase: usize) {
        let mut events: BTreeMap<OwnedEventId, Raw<AnySyncTimelineEvent>> = BTreeMap::new();
        for device in &self.devices {
            events.extend(device.memory.seen.clone());
        }
        events.retain(|id, event| {
            let kind = event.get_field::<String>("type").unwrap();
            kind.as_deref() == Some("m.room.encrypted") && !self.checked.contains(id)
        });
        let strangers = self.gone.iter().map(|device| (device, false));
        let all = self
            .devices
            .iter()
            .map(|device| (device, self.is_inside(device)));
        for (device, entitled) in all.chain(strangers) {
            for (id, event) in &events {
                let read = device.reads(&self.room_id, event).await;
                let name = (PEOPLE[device.user], device.client.device_id());
                match read {
                    Err(error) if entitled => panic!("phase {phase}: {name:?} {id}: {error}"),
                    Ok(()) if !entitled => panic!("phase {phase}: {name:?} reads {id}"),
                    _ => {}
                }
            }
        }
        assert!(!events.is_empty());
        self.messages += events.len();
        self.checked.extend(events.into_keys());
        for device in &mut self.devices {
            device.memory.seen.clear();
            device.memory.sent.clear();
        }
    }

    /// Somebody leaves or comes back, or a device is replaced.
    pub(super) async fn change(&mut self, random: &mut StdRng) {
        let user = random.random_range(1..PEOPLE.len());
        match (self.outside, random.random_range(0..2)) {
            (Some(user), 0) => {
                self.bring_in(user).await;
                self.outside = None;
            }
            (None, 0) => {
                let room = self.first_of(user).client.room(&self.room_id);
                room.leave().await.unwrap();
                self.outside = Some(user);
            }
            _ => self.replace_device(random).await,
        }
        self.settle().await;
        // What was said while nobody talked is nobody's business.
        for device in &mut self.devices {
            device.memory.seen.clear();
        }
    }

    async fn replace_device(&mut self, random: &mut StdRng) {
        let user = random.random_range(0..PEOPLE.len());
        let mut all = self.devices.iter();
        let old = all.position(|device| device.user == user && !device.is_first);
        let old = old.unwrap();
        let old = self.devices.remove(old);
        old.log_out().await;
        self.gone.push(old);
        self.add_device(user).await;
        self.devices
            .sort_by_key(|device| (device.user, !device.is_first));
    }

    pub(super) fn check_end(&self) {
        let mut twice = BTreeMap::new();
        let mut claimed = 0;
        let (mut lost, mut repeated) = (0, 0);
        for proxy in &self.proxies {
            for (key, times) in proxy.claimed() {
                claimed += times;
                *twice.entry(key).or_insert(0) += times;
            }
            lost += proxy.faults().0;
            repeated += proxy.faults().1;
        }
        twice.retain(|_, times| *times > 1);
        assert!(twice.is_empty(), "handed out twice: {twice:?}");
        let all = || self.devices.iter().chain(&self.gone);
        let deaths: usize = all().map(|device| device.deaths).sum();
        let kills: usize = all().map(|device| device.kills).sum();
        let tokens: usize = all().map(|device| device.memory.tokens_sent.len()).sum();
        assert!(deaths > 0 || self.only_files);
        assert!(kills > 0 && tokens > 0 && lost > 0 && repeated > 0 && claimed > 0);
        tracing::info!(
            messages = self.messages,
            deaths,
            kills,
            tokens,
            lost,
            repeated,
            claimed,
            "the soak is over"
        );
    }
}

/// What a client does not know about these people and devices.
async fn unknown(
    client: &Client,
    room_id: &OwnedRoomId,
    devices: &BTreeMap<OwnedUserId, BTreeSet<String>>,
) -> Option<String> {
    let name = client.device_id();
    let members = client.room(room_id).members().await.unwrap();
    let joined: BTreeSet<OwnedUserId> = members
        .into_iter()
        .filter(|member| member.membership == "join")
        .map(|member| member.user_id)
        .collect();
    if !joined.iter().eq(devices.keys()) {
        return Some(format!("{name:?} knows as members {joined:?}"));
    }
    let machine = client.machine().unwrap();
    for (user_id, expected) in devices {
        let known = machine.devices(user_id).await.unwrap();
        // Nobody is followed before the first message, nor after having been away.
        let follows = machine.follows(user_id).await.unwrap();
        let own = machine.curve25519_key().to_base64();
        let signed: BTreeSet<String> = known
            .into_iter()
            .filter(sotto_client::crypto::Device::is_signed)
            .map(|device| device.curve25519)
            .chain(expected.contains(&own).then_some(own))
            .collect();
        if follows && signed != *expected {
            return Some(format!(
                "{name:?} knows of {user_id} {signed:?}, not {expected:?}"
            ));
        }
    }
    None
}
