//! The same for what devices need for encryption: messages between them, and one-time keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use http::Method;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};
use sotto_tests::{Database, User};
use vodozemac::Ed25519SecretKey;

use super::{KILLS, Victim, insist, register};
use crate::encryption::{CLAIM, UPLOAD, one_time_key, upload_device};

/// How many send, and how many claim, at once.
const TASKS: usize = 3;
/// How many keys one upload has.
const KEYS: usize = 5;
/// What the tasks share.
#[derive(Default)]
struct Course {
    stop: AtomicBool,
    next: AtomicUsize,
    sent: Mutex<BTreeSet<usize>>,
    uploaded: Mutex<BTreeMap<String, Value>>,
    claimed: Mutex<Vec<(String, Value)>>,
    /// Claims without an answer. Each may have cost a key.
    lost: AtomicUsize,
}

impl Course {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sends numbers to all devices of a user.
    async fn send(&self, user: &User, to: &User) {
        while self.goes_on() {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let path = format!("/_matrix/client/v3/sendToDevice/m.test/n{n}");
            let messages = json!({ "messages": { &to.user_id: { "*": { "n": n } } } });
            insist(user, Method::PUT, &path, &messages).await;
            self.sent.lock().unwrap().insert(n);
        }
    }

    /// Uploads keys when all are gone: claimers are quick to reach those whose upload was not acknowledged.
    async fn upload(&self, user: &User, key: &Ed25519SecretKey) {
        let mut batch = 0;
        while self.goes_on() {
            let keys: Map<_, _> = (0..KEYS)
                .map(|n| {
                    let id = format!("signed_curve25519:{batch}x{n}");
                    (id, one_time_key(user, key))
                })
                .collect();
            batch += 1;
            // Before the upload: it may be claimed before the answer is here.
            self.uploaded.lock().unwrap().extend(keys.clone());
            let body = json!({ "one_time_keys": keys });
            let mut answer = insist(user, Method::POST, UPLOAD, &body).await;
            while self.goes_on() && stock(&answer) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                answer = insist(user, Method::POST, UPLOAD, &json!({})).await;
            }
        }
    }

    /// Claims a key; nothing if the answer got lost, or if there is no key.
    async fn claim(&self, user: &User, of: &User) -> Option<(String, Value)> {
        let body =
            json!({ "one_time_keys": { &of.user_id: { &of.device_id: "signed_curve25519" } } });
        let bytes = Some(body.to_string().into_bytes());
        let Some(answer) = user.try_request(Method::POST, CLAIM, bytes).await else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if answer.status.as_u16() == 503 {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let answer = answer.ok();
        let keys = answer["one_time_keys"][&of.user_id][&of.device_id].as_object()?;
        assert_eq!(keys.len(), 1);
        let (id, key) = keys.iter().next()?;
        Some((id.clone(), key.clone()))
    }

    async fn claim_all_the_time(&self, user: &User, of: &User) {
        while self.goes_on() {
            match self.claim(user, of).await {
                Some(key) => self.claimed.lock().unwrap().push(key),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn kill(&self, victim: &mut Victim, random: &mut StdRng) {
        for _ in 0..KILLS {
            tokio::time::sleep(Duration::from_millis(random.random_range(20..150))).await;
            victim.kill().await;
        }
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn stock(answer: &Value) -> u64 {
    let count = &answer["one_time_key_counts"]["signed_curve25519"];
    count.as_u64().unwrap_or_default()
}

/// Syncs until nothing more can come; how often each number came. The token moves on only with an answer.
async fn receive(user: &User, all_sent: &AtomicBool) -> BTreeMap<u64, usize> {
    let mut came = BTreeMap::new();
    let mut since = String::new();
    loop {
        let last = all_sent.load(Ordering::Relaxed);
        let timeout = if last { 0 } else { 300 };
        let path = format!("/_matrix/client/v3/sync?timeout={timeout}{since}");
        let sync = insist(user, Method::GET, &path, &json!({})).await;
        let events = sync["to_device"]["events"].as_array();
        let events = events.map(Vec::as_slice).unwrap_or_default();
        if last && events.is_empty() {
            return came;
        }
        for event in events {
            *came
                .entry(event["content"]["n"].as_u64().unwrap())
                .or_default() += 1;
        }
        since = format!("&since={}", sync["next_batch"].as_str().unwrap());
    }
}

async fn second_device(victim: &Victim, user: &User) -> User {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user.user_id },
        "password": "a password",
    });
    let nobody = User::anonymous(victim.url.clone());
    let session = nobody.post("/_matrix/client/v3/login", &body).await.ok();
    User::new(victim.url.clone(), &session)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_once_and_keys_go_once() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::TempDir::new().unwrap();
    let database = Database::fresh().await;
    let mut victim = Victim::start(directory.path(), &database).await;
    let alice = register(&victim, "alice").await;
    let bob = register(&victim, "bob").await;
    let tablet = second_device(&victim, &bob).await;
    let signing_key = upload_device(&alice).await;

    let course = Course::default();
    let all_sent = AtomicBool::new(false);
    let work = async {
        tokio::join!(
            course.kill(&mut victim, &mut random),
            join_all((0..TASKS).map(|_| course.send(&alice, &bob))),
            course.upload(&alice, &signing_key),
            join_all((0..TASKS).map(|_| course.claim_all_the_time(&bob, &alice))),
        );
        all_sent.store(true, Ordering::Relaxed);
    };
    let ((), by_bob, by_tablet) =
        tokio::join!(work, receive(&bob, &all_sent), receive(&tablet, &all_sent));

    let sent = course.sent.lock().unwrap().len();
    assert!(sent > KILLS, "only {sent} messages in all");
    let once: BTreeMap<_, _> = (0..sent as u64).map(|n| (n, 1)).collect();
    assert_eq!(by_bob, once, "seed {seed}");
    assert_eq!(by_tablet, once, "seed {seed}");

    let mut claimed = std::mem::take(&mut *course.claimed.lock().unwrap());
    assert!(
        claimed.len() > KILLS,
        "only {} claims in all",
        claimed.len()
    );
    while let Some(key) = course.claim(&bob, &alice).await {
        claimed.push(key);
    }
    let uploaded = course.uploaded.lock().unwrap();
    let mut handed_out = BTreeSet::new();
    for (id, key) in &claimed {
        assert_eq!(uploaded.get(id), Some(key));
        assert!(handed_out.insert(id), "{id} went twice, seed {seed}");
    }
    let lost = course.lost.load(Ordering::Relaxed);
    assert!(
        handed_out.len() + lost >= uploaded.len(),
        "{} of {} keys, {lost} answers lost, seed {seed}",
        handed_out.len(),
        uploaded.len()
    );
    println!(
        "{sent} messages, {} keys, {lost} claims lost, {KILLS} kills",
        claimed.len()
    );
}
