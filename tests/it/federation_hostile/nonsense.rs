//! Nonsense, rightly signed.

use rand::{SeedableRng, rngs::StdRng};
use sotto_tests::{Draft, escape};

use super::{MALLORY, Scene};
use crate::hostile::{body, methods, our_panics, parameter};

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_of_a_server_is_refused_everywhere() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::new().await;
    let said = scene.make(&Draft::text(MALLORY, "sense"));
    assert_eq!(scene.deliver(&said).await, None);
    let panics = our_panics();
    let known = [
        ("room_id", scene.room_id().to_owned()),
        ("event_id", said.id.to_string()),
        ("user_id", MALLORY.to_owned()),
        ("server_name", "b.test".to_owned()),
        ("transaction_id", "t".to_owned()),
    ];
    let peer = scene.fake.peer().clone();
    for (method, path) in sotto_homeserver::endpoints() {
        if !path.starts_with("/_matrix/federation/") && !path.starts_with("/_matrix/key/") {
            continue;
        }
        for method in methods(&method) {
            for _ in 0..8 {
                let mut filled = String::new();
                let mut rest = path.as_str();
                while let Some((before, after)) = rest.split_once('{') {
                    let (name, after) = after.split_once('}').unwrap();
                    filled.push_str(before);
                    filled.push_str(&escape(&parameter(&mut random, name, &known)));
                    rest = after;
                }
                filled.push_str(rest);
                let bytes = (method != http::Method::GET).then(|| body(&mut random));
                let answer = peer
                    .try_ask(peer.name(), &scene.ours, method.clone(), &filled, bytes)
                    .await;
                // 502: another server, named by the request, could not be asked.
                let status = answer.map_or(0, |answer| answer.status.as_u16());
                assert!(status < 500 || status == 502, "{status} {method} {filled}");
            }
        }
    }
    assert_eq!(*panics.lock().unwrap(), Vec::<String>::new());
    let next = scene.make(&Draft::text(MALLORY, "still there"));
    assert_eq!(scene.deliver(&next).await, None);
    assert_eq!(scene.bodies().await, ["still there", "sense"]);
}
