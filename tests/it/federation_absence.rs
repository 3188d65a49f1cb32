//! What was said while a server was away comes after its return: nothing is lost, nothing comes twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_homeserver::{
    Homeserver,
    clock::Clock,
    config::{Config, Registration},
};
use sotto_tests::{FakeServer, TestServer, User, room};
use tokio::time::Instant;

/// Set to `full` for the sizes of the real thing.
const SIZE: &str = "SOTTO_ABSENCE_TEST";
/// How long after its return a server may take to have the latest event of every room.
const LATEST: Duration = Duration::from_secs(5);
/// How long it then has for everything: a minute in all.
const REST: Duration = Duration::from_secs(55);
/// Set for the process that is the server: what its configuration has.
const CHILD: &str = "SOTTO_SENDER_TEST_SERVER";

/// Rooms, events in each of them, and messages to a device.
fn size() -> (usize, usize, usize) {
    match std::env::var(SIZE).as_deref() {
        Ok("full") => (100, 100, 2_000),
        _ => (6, 70, 120),
    }
}

async fn send_to_device(from: &User, to: &User, number: usize) {
    let messages = json!({ &to.user_id: { &to.device_id: { "number": number } } });
    let path = format!("/_matrix/client/v3/sendToDevice/m.test/n{number}");
    from.put(&path, &json!({ "messages": messages })).await.ok();
}

/// What a sync has beside events.
fn numbers(sync: &Value) -> Vec<u64> {
    let events = sync["to_device"]["events"].as_array();
    let events = events.into_iter().flatten();
    events
        .filter_map(|event| event["content"]["number"].as_u64())
        .collect()
}

/// All texts that somebody reads in a room, newest first.
async fn texts(user: &User, room_id: &str) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), String::new());
    loop {
        let path = room(room_id, &format!("messages?dir=b&limit=100{from}"));
        let page = user.get(&path).await.ok();
        let events = page["chunk"].as_array().into_iter().flatten();
        found.extend(
            events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)),
        );
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return found,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_gets_the_newest_first_and_everything_in_the_end() {
    let (rooms, events, messages) = size();
    let (a, mut b) = TestServer::pair().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let mut shared = Vec::new();
    for _ in 0..rooms {
        let room_id = alice.create_room(&json!({ "preset": "public_chat" })).await;
        bob.join_via(&room_id, "a.test").await.ok();
        shared.push(room_id);
    }
    let mut since = bob.sync(None, 0).await["next_batch"]
        .as_str()
        .map(ToOwned::to_owned);
    b.stop().await;
    for number in 0..events {
        let sent = shared.iter().map(|room_id| {
            let text = format!("{number} in {room_id}");
            let alice = alice.clone();
            async move { alice.send(room_id, &text).await }
        });
        futures_util::future::join_all(sent).await;
    }
    for number in 0..messages {
        send_to_device(&alice, &bob, number).await;
    }
    b.resume().await;
    // The return shows by the first word.
    let returned = Instant::now();
    bob.send(&shared[0], "I am back").await;
    let mut got = Vec::new();
    let latest = gets_the_latest(&bob, &mut since, &shared, events, &mut got);
    let latest = tokio::time::timeout(REST, latest).await;
    let after = returned.elapsed();
    println!("the latest event of {rooms} rooms after {after:?}");
    assert!(
        latest.is_ok() && after <= LATEST,
        "the latest event of a room comes too late"
    );
    let everything = async {
        while got.len() < messages {
            bob.sync_until(&mut since, |sync| {
                got.extend(numbers(sync));
                (!numbers(sync).is_empty()).then_some(())
            })
            .await;
        }
        for room_id in &shared {
            has_read_all(&bob, room_id, events).await;
        }
    };
    let everything = tokio::time::timeout(REST, everything).await;
    println!(
        "all {} events after {:?}",
        rooms * events,
        returned.elapsed()
    );
    assert!(everything.is_ok(), "something comes too late");
    let all: Vec<_> = (0..messages)
        .map(|number| u64::try_from(number).unwrap())
        .collect();
    assert_eq!(got, all, "each message to the device once, in order");
}

/// Waits for the latest event of each room; the messages to the device that come meanwhile are counted too.
async fn gets_the_latest(
    user: &User,
    since: &mut Option<String>,
    rooms: &[String],
    events: usize,
    got: &mut Vec<u64>,
) {
    let latest = rooms.iter().map(|id| format!("{} in {id}", events - 1));
    let latest: BTreeSet<_> = latest.collect();
    let mut seen = BTreeSet::new();
    user.sync_until(since, |sync| {
        got.extend(numbers(sync));
        for room_id in rooms {
            let timeline = &sync["rooms"]["join"][room_id]["timeline"]["events"];
            let events = timeline.as_array().into_iter().flatten();
            seen.extend(events.filter_map(|e| e["content"]["body"].as_str().map(str::to_owned)));
        }
        seen.is_superset(&latest).then_some(())
    })
    .await;
}

/// Waits until somebody can read all that was said, each text once.
async fn has_read_all(user: &User, room_id: &str, events: usize) {
    let all: Vec<_> = (0..events)
        .map(|number| format!("{number} in {room_id}"))
        .collect();
    loop {
        let mut read = texts(user, room_id).await;
        read.retain(|text| text != "I am back");
        read.reverse();
        if read == all {
            return;
        }
        assert!(
            read.len() < all.len(),
            "what comes twice, or in disorder: {read:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Not a test but the server that is killed, in a process of its own: this program started again.
#[test]
fn server_process() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let setting: Value = serde_json::from_str(&text).unwrap();
    let part = |name: &str| setting[name].as_str().unwrap().to_owned();
    let mut config = Config::new(part("name").try_into().unwrap());
    config.data_dir = part("data_dir").into();
    config.listen = part("listen").parse().unwrap();
    config.database = setting["database"].as_str().map(ToOwned::to_owned);
    config.registration = Registration::Open;
    let federation = &mut config.federation;
    federation.listen = Some(part("federation").parse().unwrap());
    federation.certificate = Some(part("certificate").into());
    federation.private_key = Some(part("private_key").into());
    federation.ca_file = Some(part("ca_file").into());
    federation.allow_networks = vec!["127.0.0.0/8".to_owned()];
    let names: BTreeMap<String, String> = serde_json::from_value(setting["names"].clone()).unwrap();
    federation.names = names
        .into_iter()
        .map(|(name, address)| (name.try_into().unwrap(), address.parse().unwrap()))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _server = Homeserver::start(config, Clock::system()).await.unwrap();
        std::future::pending::<()>().await;
    });
}

/// A server of ours in another process.
struct Victim {
    setting: String,
    child: Child,
}

impl Victim {
    fn start(config: &Config) -> Self {
        let federation = &config.federation;
        let names: BTreeMap<_, _> = federation.names.iter().collect();
        let setting = json!({
            "name": config.server_name,
            "data_dir": config.data_dir,
            "listen": config.listen,
            "database": config.database,
            "federation": federation.listen,
            "certificate": federation.certificate,
            "private_key": federation.private_key,
            "ca_file": federation.ca_file,
            "names": names,
        });
        let setting = setting.to_string();
        let child = Self::spawn(&setting);
        Self { setting, child }
    }

    fn spawn(setting: &str) -> Child {
        let name = "federation_absence::server_process";
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CHILD, setting)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.setting);
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Asks again, with the same words, until there is an answer.
async fn insist(user: &User, path: &str, body: &Value) -> Value {
    for _ in 0..1_000 {
        let bytes = Some(body.to_string().into_bytes());
        match user.try_request(Method::PUT, path, bytes).await {
            Some(answer) if answer.status.is_success() => return answer.body,
            Some(answer) => assert_eq!(answer.status.as_u16(), 503, "{}", answer.body),
            None => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the server does not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_is_killed_sends_everything_in_the_end() {
    let (mut a, mut b) = TestServer::pair().await;
    b.stop().await;
    let fake = FakeServer::replace(&b, RoomVersionId::V11).await;
    let alice = a.register("alice").await;
    let room_id = alice
        .create_room(&json!({ "preset": "public_chat", "room_version": "11" }))
        .await;
    fake.peer().join(&a, &room_id, "@mallory:b.test").await;
    a.stop().await;
    let mut victim = Victim::start(a.config());
    for number in 0..60 {
        let content = json!({ "msgtype": "m.text", "body": format!("{number}") });
        let path = room(&room_id, &format!("send/m.room.message/k{number}"));
        insist(&alice, &path, &content).await;
        let messages = json!({ "@mallory:b.test": { "PHONE": { "number": number } } });
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/k{number}");
        insist(&alice, &path, &json!({ "messages": messages })).await;
        if number % 10 == 9 {
            victim.kill();
        }
    }
    let last = room(&room_id, "send/m.room.message/last");
    insist(
        &alice,
        &last,
        &json!({ "msgtype": "m.text", "body": "last" }),
    )
    .await;
    for _ in 0..400 {
        let received = fake.received();
        let texts: BTreeSet<_> = received
            .iter()
            .filter_map(|unit| unit["content"]["body"].as_str())
            .collect();
        let numbers: BTreeSet<_> = received
            .iter()
            .filter(|unit| unit["edu_type"] == "m.direct_to_device")
            .filter_map(|unit| {
                unit["content"]["messages"]["@mallory:b.test"]["PHONE"]["number"].as_u64()
            })
            .collect();
        if (0..60).all(|n| texts.contains(n.to_string().as_str()) && numbers.contains(&n)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not all came: {:?}", fake.received());
}
