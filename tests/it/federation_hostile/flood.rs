//! One who talks all the time does not keep others from talking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sotto_tests::{Draft, User};
use tokio::{sync::Notify, time::Instant};

use super::{MALLORY, Scene};

/// The slowest but one of some sends, which go on until it is enough.
async fn slowest(user: &User, room_id: &str, enough: impl Fn() -> bool) -> Duration {
    let mut times = Vec::new();
    for number in 0.. {
        if number >= 40 && enough() {
            break;
        }
        let start = Instant::now();
        user.send(room_id, &number.to_string()).await;
        times.push(start.elapsed());
    }
    times.sort();
    times[times.len() - 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_flooded_does_not_slow_the_others_down() {
    let mut scene = Scene::new().await;
    let elsewhere = scene.alice.create_room(&json!({})).await;
    let idle = slowest(&scene.alice, &elsewhere, || true).await;

    let made: Vec<_> = (0..2_000)
        .map(|number| scene.make(&Draft::text(MALLORY, &format!("flood {number}"))))
        .collect();
    let (done, sent) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let flood = async {
        for pdus in made.chunks(50) {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let pdus: Vec<_> = pdus.iter().collect();
            scene.fake.peer().send(&scene.ours, &pdus, &[]).await.ok();
            sent.fetch_add(pdus.len(), Ordering::Relaxed);
        }
    };
    let measure = async {
        // As long as it takes until the flood is one.
        let flooded = || sent.load(Ordering::Relaxed) > 100;
        let slowest = slowest(&scene.alice, &elsewhere, flooded).await;
        done.store(true, Ordering::Relaxed);
        slowest
    };
    let (flooded, ()) = tokio::join!(measure, flood);
    assert!(sent.load(Ordering::Relaxed) > 100, "there was a flood");
    // On a machine that does other things as well times are coarse.
    let bound = (3 * idle).max(Duration::from_millis(500));
    assert!(flooded <= bound, "{flooded:?}, {idle:?} when idle");
}

/// The control: who has to wait for a flood is seen to. What comes for the same room stands behind it, as it would
/// for every room of a server that takes in one thing after another.
#[tokio::test(flavor = "multi_thread")]
async fn who_stands_behind_a_flood_is_seen_to_wait() {
    let mut scene = Scene::new().await;
    let elsewhere = scene.alice.create_room(&json!({})).await;
    let tip = scene.seat.tip.clone();
    let made: Vec<_> = (0..1_000)
        .map(|number| {
            let text = format!("flood {number}");
            let draft = Draft::text(MALLORY, &text);
            scene.fake.peer().make_after(&scene.seat, &tip, &draft)
        })
        .collect();
    let last = scene.make(&Draft::text(MALLORY, "last"));
    let (peer, ours, first) = (scene.fake.peer(), &scene.ours, Notify::new());
    let flood = made.chunks(50).map(async |pdus| {
        let pdus: Vec<_> = pdus.iter().collect();
        peer.send(ours, &pdus, &[]).await.ok();
        first.notify_one();
    });
    let measure = async {
        first.notified().await;
        let start = Instant::now();
        let behind = async {
            assert_eq!(scene.deliver(&last).await, None);
            start.elapsed()
        };
        let beside = async {
            scene.alice.send(&elsewhere, "beside").await;
            start.elapsed()
        };
        tokio::join!(behind, beside)
    };
    let (_, (behind, beside)) = tokio::join!(futures_util::future::join_all(flood), measure);
    assert!(2 * beside < behind, "{beside:?} beside, {behind:?} behind");
}
