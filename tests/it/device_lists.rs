//! Device lists over lines that fail: whoever follows what a sync says of them ends with the list that
//! their owner has ([spec](https://spec.matrix.org/v1.19/server-server-api/#device-management)).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sotto_tests::{Links, Setup, TestServer, User, room};
use vodozemac::Ed25519SecretKey;

use crate::encryption::upload_device;

/// How many seeds are tried, and the first of them.
const SEEDS: &str = "SOTTO_DEVICE_LIST_SEEDS";
const FIRST: &str = "SOTTO_DEVICE_LIST_FIRST";
const PEOPLE: usize = 5;
const STEPS: usize = 40;
/// How often the client asks until it should know everything.
const PATIENCE: usize = 400;

/// Somebody whose devices come and go.
struct Owner {
    name: String,
    /// The first one stays.
    devices: Vec<User>,
    is_inside: bool,
    has_identity: bool,
}

/// A client that asks for keys when it is told that they changed, and only then.
struct Follower {
    user: User,
    room_id: String,
    since: Option<String>,
    lists: BTreeMap<String, Value>,
    outdated: BTreeSet<String>,
}

impl Follower {
    async fn sync(&mut self, timeout: u64) {
        let sync = self.user.sync(self.since.as_deref(), timeout).await;
        let told = |which: &str| {
            let users = sync["device_lists"][which].as_array().cloned();
            let users = users.unwrap_or_default().into_iter();
            users.map(|id| id.as_str().unwrap().to_owned())
        };
        for user_id in told("left") {
            self.lists.remove(&user_id);
            self.outdated.remove(&user_id);
        }
        self.outdated.extend(told("changed"));
        self.since = sync["next_batch"].as_str().map(ToOwned::to_owned);
    }

    /// Asks for the lists of those who changed or are new here.
    async fn ask(&mut self) {
        let members = room(&self.room_id, "joined_members");
        let members = self.user.get(&members).await.ok();
        let members = members["joined"].as_object().unwrap().keys();
        let new = members.filter(|id| !self.lists.contains_key(*id));
        let wanted: BTreeSet<String> = new.chain(&self.outdated).cloned().collect();
        if wanted.is_empty() {
            return;
        }
        let (lists, whole) = lists(&self.user, &wanted).await;
        if whole {
            self.lists.extend(lists);
            self.outdated.clear();
        }
    }
}

/// The keys of users, and whether all could be asked for.
async fn lists(asker: &User, users: &BTreeSet<String>) -> (BTreeMap<String, Value>, bool) {
    let wanted: serde_json::Map<_, _> = users.iter().map(|id| (id.clone(), json!([]))).collect();
    let query = json!({ "device_keys": wanted });
    let path = "/_matrix/client/v3/keys/query";
    let answer = asker.post(path, &query).await.ok();
    let list = |id: &String| {
        let mut devices = answer["device_keys"][id].clone();
        for keys in devices.as_object_mut().into_iter().flatten() {
            keys.1["unsigned"].take();
        }
        let list = json!({ "devices": devices, "master": answer["master_keys"][id]["keys"] });
        (id.clone(), list)
    };
    let whole = answer["failures"].as_object().unwrap().is_empty();
    (users.iter().map(list).collect(), whole)
}

async fn make_identity(user: &User) {
    let key = Ed25519SecretKey::new().public_key().to_base64();
    let master = json!({
        "keys": { format!("ed25519:{key}"): key },
        "usage": ["master"],
        "user_id": user.user_id,
    });
    let path = "/_matrix/client/v3/keys/device_signing/upload";
    user.post(path, &json!({ "master_key": master })).await.ok();
}

/// Something happens to the devices of somebody.
async fn act(random: &mut StdRng, server: &TestServer, owner: &mut Owner, room_id: &str) {
    match random.random_range(0..8) {
        0..=2 => {
            let device = server.log_in(&owner.name).await;
            upload_device(&device).await;
            owner.devices.push(device);
        }
        3 | 4 if owner.devices.len() > 1 => {
            let number = random.random_range(1..owner.devices.len());
            let device = owner.devices.remove(number);
            let path = "/_matrix/client/v3/logout";
            device.post(path, &json!({})).await.ok();
        }
        5 if !owner.has_identity => {
            make_identity(&owner.devices[0]).await;
            owner.has_identity = true;
        }
        // Who made the room stays in it.
        6 if owner.name != "owner0" => {
            let action = if owner.is_inside { "leave" } else { "join" };
            let path = room(room_id, action);
            owner.devices[0].post(&path, &json!({})).await.ok();
            owner.is_inside = !owner.is_inside;
        }
        _ => {}
    }
}

/// The line between the servers, too, has bad days.
fn disturb(random: &mut StdRng, links: &Links) {
    match random.random_range(0..12) {
        1 => links.cut(1, true),
        2..=4 => links.cut(1, false),
        _ => {}
    }
}

async fn meet(servers: &[TestServer]) -> (Vec<Owner>, Follower) {
    let mut owners = Vec::new();
    for number in 0..PEOPLE {
        let name = format!("owner{number}");
        let device = servers[0].register(&name).await;
        upload_device(&device).await;
        owners.push(Owner {
            name,
            devices: vec![device],
            is_inside: true,
            has_identity: false,
        });
    }
    let options = json!({ "preset": "public_chat" });
    let room_id = owners[0].devices[0].create_room(&options).await;
    for owner in &owners[1..] {
        let path = room(&room_id, "join");
        owner.devices[0].post(&path, &json!({})).await.ok();
    }
    let user = servers[1].register("follower").await;
    user.join_via(&room_id, "a.test").await.ok();
    let follower = Follower {
        user,
        room_id,
        since: None,
        lists: BTreeMap::new(),
        outdated: BTreeSet::new(),
    };
    (owners, follower)
}

async fn run(seed: u64) {
    let random = &mut StdRng::seed_from_u64(seed);
    let (servers, links) = Setup::default().federation_on_links(2, seed).await;
    let (mut owners, mut follower) = meet(&servers).await;
    follower.sync(0).await;
    links.fail(true);
    for _ in 0..STEPS {
        let owner = random.random_range(0..PEOPLE);
        let room_id = &follower.room_id;
        act(random, &servers[0], &mut owners[owner], room_id).await;
        disturb(random, &links);
        match random.random_range(0..4) {
            0 => follower.sync(0).await,
            1 => follower.ask().await,
            _ => {}
        }
    }
    links.cut(1, false);
    links.fail(false);
    for owner in &owners {
        let path = room(&follower.room_id, "join");
        owner.devices[0].post(&path, &json!({})).await.ok();
    }
    let mut truth = BTreeMap::new();
    for owner in &owners {
        let own = &owner.devices[0];
        let (list, _) = lists(own, &BTreeSet::from([own.user_id.clone()])).await;
        truth.extend(list);
    }
    // A server that could not be reached for long is not asked before long, but it speaks up.
    let room_id = &follower.room_id;
    follower.user.send(room_id, "are you there?").await;
    for _ in 0..PATIENCE {
        follower.sync(200).await;
        follower.ask().await;
        follower.lists.retain(|id, _| truth.contains_key(id));
        if follower.lists == truth && follower.outdated.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(follower.lists, truth, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_ends_with_the_lists_of_the_owners() {
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap())
    };
    let first = number(FIRST, 1);
    for seed in first..first + number(SEEDS, 1) {
        Box::pin(run(seed)).await;
    }
}
