//! One user who asks all the time does not keep others from being served (H-16).
//!
//! Times say little on a machine that does other things as well. What is counted is how often somebody is served who
//! came later.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use sotto_tests::{TestServer, User, room};

/// How many of Mallory's messages are under way at the same time, and how many of his requests that read.
const AT_ONCE: usize = 16;
const READING: usize = 4;
/// How often Alice speaks.
const SAID: usize = 100;
/// How many of his later messages are answered before one of hers: each of the lines on which he sends gets no more than
/// three answers while she waits for one.
const BOUND: usize = 3 * AT_ONCE;

/// Two who use a server.
#[derive(Default)]
struct Crowd {
    /// Whether Alice is served when there is nobody else, as by a lock that prefers readers.
    alice_last: bool,
    /// How many of Mallory's messages are under way.
    under_way: AtomicUsize,
    /// Which of Alice's messages waits for its answer, counted from one.
    waits: AtomicUsize,
    /// How many that came later were answered before it.
    overtaken: AtomicUsize,
    enough: AtomicBool,
}

impl Crowd {
    /// Mallory talks and reads until it is enough.
    async fn flood(&self, mallory: &User, room_id: &str) {
        let talk = async |line: usize| {
            while !self.enough.load(Ordering::Relaxed) {
                let waits = self.waits.load(Ordering::Relaxed);
                self.under_way.fetch_add(1, Ordering::Relaxed);
                mallory.send(room_id, &line.to_string()).await;
                self.under_way.fetch_sub(1, Ordering::Relaxed);
                if waits != 0 && self.waits.load(Ordering::Relaxed) == waits {
                    self.overtaken.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let read = async |_| {
            while !self.enough.load(Ordering::Relaxed) {
                let page = room(room_id, "messages?dir=b&limit=20");
                mallory.get(&page).await.ok();
            }
        };
        tokio::join!(
            join_all((0..AT_ONCE).map(talk)),
            join_all((0..READING).map(read))
        );
    }

    async fn say(&self, alice: &User, room_id: &str) {
        while self.alice_last && self.under_way.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        alice.send(room_id, "hello").await;
    }

    /// How often each of Alice's messages was overtaken, in order of size. It is enough when one was too often.
    async fn speak(&self, alice: &User, room_id: &str) -> Vec<usize> {
        let mut counts = Vec::new();
        for number in 1..=SAID {
            self.overtaken.store(0, Ordering::Relaxed);
            self.waits.store(number, Ordering::Relaxed);
            let starved = async {
                while self.overtaken.load(Ordering::Relaxed) <= 10 * BOUND {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = self.say(alice, room_id) => {}
                () = starved => {}
            }
            self.waits.store(0, Ordering::Relaxed);
            counts.push(self.overtaken.load(Ordering::Relaxed));
            if counts.last() > Some(&(10 * BOUND)) {
                break;
            }
        }
        self.enough.store(true, Ordering::Relaxed);
        counts.sort_unstable();
        counts
    }

    /// [`Crowd::speak`], while Mallory does as he does.
    async fn measure(&self) -> Vec<usize> {
        let server = TestServer::start().await;
        let (alice, mallory) = (
            server.register("alice").await,
            server.register("mallory").await,
        );
        let his = mallory.create_room(&json!({})).await;
        let hers = alice.create_room(&json!({})).await;
        let (counts, ()) = tokio::join!(self.speak(&alice, &hers), self.flood(&mallory, &his));
        counts
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_all_the_time_is_not_served_before_the_others() {
    let counts = Crowd::default().measure().await;
    assert_eq!(counts.len(), SAID);
    // The slowest of a hundred does not count.
    assert!(counts[SAID - 2] <= BOUND, "{counts:?}");
}

/// The control: where she is served last, the same flood is seen to starve Alice.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_served_last_is_seen_to_be() {
    let crowd = Crowd {
        alice_last: true,
        ..Crowd::default()
    };
    let counts = crowd.measure().await;
    assert!(*counts.last().unwrap() > BOUND, "{counts:?}");
}
