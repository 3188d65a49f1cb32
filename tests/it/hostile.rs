//! What strangers send: every endpoint answers nonsense with an error of the specification, never with a fault.

use std::sync::{Arc, Mutex};

use http::Method;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use sotto_tests::{TestServer, User, escape};

/// Endpoints that wait for a body that never comes, or answer anything: none.
pub(crate) fn methods(method: &str) -> Vec<Method> {
    match method {
        "*" => vec![Method::GET, Method::PUT, Method::POST, Method::DELETE],
        method => vec![method.parse().unwrap()],
    }
}

/// Things to put where a path has a parameter.
pub(crate) fn parameter(random: &mut StdRng, name: &str, known: &[(&str, String)]) -> String {
    let real = known
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.clone());
    let strange = [
        String::new(),
        "%00".to_owned(),
        "..".to_owned(),
        "@".repeat(300),
        "!nowhere:example.org".to_owned(),
        "@nobody:one.test".to_owned(),
        "$nothing".to_owned(),
        "😀\u{0}\u{202e}".to_owned(),
        "-1".to_owned(),
    ];
    match real {
        Some(real) if random.random_bool(0.7) => real,
        _ => strange.choose(random).unwrap().clone(),
    }
}

/// A value of any kind, with the sizes and the spellings that break parsers.
fn value(random: &mut StdRng, depth: usize) -> Value {
    let keys = [
        "type",
        "content",
        "user_id",
        "auth",
        "device_keys",
        "one_time_keys",
        "messages",
        "keys",
        "signatures",
        "room_version",
        "invite",
        "initial_state",
        "state_key",
        "membership",
        "master_key",
        "timeout",
        "typing",
        "password",
        "username",
        "identifier",
        "reason",
        "pdus",
        "edus",
        "origin",
        "ed25519:A",
        "signed_curve25519:AAAAAQ",
        "algorithms",
        "creation_content",
        "power_level_content_override",
        "m.fully_read",
        "displayname",
        "",
    ];
    match random.random_range(0..if depth > 3 { 9 } else { 12 }) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 => json!(random.random::<i64>()),
        3 => json!(1.5e300),
        4 => json!(-0.0),
        5 => json!("x".repeat(random.random_range(0..2_000))),
        // Keys of 33 and 31 bytes, padded and not.
        6 => json!("A".repeat(44)),
        7 => json!(["A".repeat(42) + "=", "A".repeat(42) + "==", "A".repeat(43)]),
        8 => json!("\u{0}\u{feff}😀@user:one.test"),
        9 => json!(
            (0..random.random_range(0..5))
                .map(|_| value(random, depth + 1))
                .collect::<Vec<_>>()
        ),
        _ => (0..random.random_range(0..6))
            .map(|_| {
                (
                    (*keys.choose(random).unwrap()).to_owned(),
                    value(random, depth + 1),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

pub(crate) fn body(random: &mut StdRng) -> Vec<u8> {
    match random.random_range(0..10) {
        0 => Vec::new(),
        1 => b"{".to_vec(),
        2 => b"not json".to_vec(),
        3 => vec![0xff; 64],
        4 => [b"[".repeat(5_000), b"]".repeat(5_000)].concat(),
        5 => b"{\"a\":1,\"a\":2,\"n\":1e999}".to_vec(),
        6 => format!("{{\"body\":\"{}\"}}", "y".repeat(70_000)).into_bytes(),
        _ => value(random, 0).to_string().into_bytes(),
    }
}

async fn storm(alice: &User, random: &mut StdRng, known: &[(&str, String)], rounds: usize) {
    let skipped = ["/logout", "/account/deactivate", "/delete_devices"];
    for (method, path) in sotto_homeserver::endpoints() {
        if skipped.iter().any(|part| path.contains(part)) || path.contains("/sync") {
            continue;
        }
        for method in methods(&method) {
            for _ in 0..rounds {
                let mut filled = String::new();
                let mut rest = path.as_str();
                while let Some((before, after)) = rest.split_once('{') {
                    let (name, after) = after.split_once('}').unwrap();
                    filled.push_str(before);
                    filled.push_str(&escape(&parameter(random, name, known)));
                    rest = after;
                }
                filled.push_str(rest);
                if random.random_bool(0.3) {
                    let query = [
                        "?limit=-1",
                        "?from=%00",
                        "?dir=x",
                        "?since=99999999999999999999",
                        "?ts=a&at=s",
                    ];
                    filled.push_str(query.choose(random).unwrap());
                }
                // Deleting the session would end the test, not the server.
                if method == Method::DELETE && filled.contains(&alice.device_id) {
                    continue;
                }
                let sent = (method != Method::GET).then(|| body(random));
                let answer = alice
                    .try_request(method.clone(), &filled, sent.clone())
                    .await;
                let shown = || {
                    let text = String::from_utf8_lossy(sent.as_deref().unwrap_or(b""));
                    text.chars().take(200).collect::<String>()
                };
                let answer = answer.unwrap_or_else(|| panic!("{method} {filled} {}", shown()));
                let (status, said) = (answer.status.as_u16(), &answer.body);
                // 502: another server, named by the request, could not be asked.
                let fault = status >= 500 && status != 502;
                assert!(!fault, "{status} {said}\n{method} {filled}\n{}", shown());
                if answer.status.is_client_error() {
                    let uia = answer.status.as_u16() == 401 && answer.body["flows"].is_array();
                    // Our own pages, which are opened from e-mails, are for people.
                    let page = path.starts_with("/_sotto/");
                    let named = answer.body["errcode"].is_string() || uia || page;
                    assert!(named, "{method} {filled}: {}", answer.body);
                }
            }
        }
    }
}

/// From now on, where in our own code something panicked. That the edge turns a panic into an answer does not make it
/// right.
pub(crate) fn our_panics() -> Arc<Mutex<Vec<String>>> {
    panics_in(&["homeserver/", "federation/"])
}

fn panics_in(folders: &'static [&'static str]) -> Arc<Mutex<Vec<String>>> {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let (before, seen) = (std::panic::take_hook(), panics.clone());
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        if folders.iter().any(|ours| place.starts_with(ours)) {
            seen.lock().unwrap().push(place);
        }
        before(info);
    }));
    panics
}

/// The control: who trusts what strangers send panics at the same nonsense, and that is seen.
#[test]
fn nonsense_breaks_who_trusts_it() {
    let panics = panics_in(&["tests/it/hostile.rs"]);
    let mut random = StdRng::seed_from_u64(1);
    let trusting = |body: &[u8]| {
        let body: Value = serde_json::from_slice(body).unwrap();
        body["user_id"].as_str().unwrap().len()
    };
    let bodies: Vec<_> = (0..20).map(|_| body(&mut random)).collect();
    let broke = bodies
        .iter()
        .filter(|body| std::panic::catch_unwind(|| trusting(body)).is_err());
    let broke = broke.count();
    assert!(broke > 10);
    assert_eq!(panics.lock().unwrap().len(), broke);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_everywhere() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let panics = our_panics();
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let event_id = alice.send(&room_id, "hello").await;
    let known = [
        ("room_id", room_id.clone()),
        ("room_id_or_alias", room_id.clone()),
        ("event_id", event_id),
        ("user_id", alice.user_id.clone()),
        ("device_id", alice.device_id.clone()),
        ("event_type", "m.room.member".to_owned()),
        ("state_key", alice.user_id.clone()),
        ("txn_id", "t".to_owned()),
        ("server_name", "one.test".to_owned()),
    ];
    storm(&alice, &mut random, &known, 12).await;
    storm(&alice.with_token(""), &mut random, &known, 3).await;
    assert_eq!(*panics.lock().unwrap(), Vec::<String>::new());
    // And the server still does its work.
    let other = alice.create_room(&json!({})).await;
    alice.send(&other, "still here").await;
    let sync = alice.sync(None, 0).await.to_string();
    assert!(
        sync.contains("still here"),
        "{}",
        &sync[..sync.len().min(3_000)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_named_as_such() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let nowhere = alice.get("/_matrix/client/v3/nowhere").await;
    assert_eq!(nowhere.refused(), (404, "M_UNRECOGNIZED"));
    let wrong = alice.delete("/_matrix/client/v3/joined_rooms").await;
    assert_eq!(wrong.refused(), (405, "M_UNRECOGNIZED"));
    let nobody = User::anonymous(server.url());
    let missing = nobody.get("/_matrix/client/v3/joined_rooms").await;
    assert_eq!(missing.refused(), (401, "M_MISSING_TOKEN"));
    let stale = alice.with_token("old");
    let unknown = stale.get("/_matrix/client/v3/joined_rooms").await;
    assert_eq!(unknown.refused(), (401, "M_UNKNOWN_TOKEN"));
    let not_json = alice.request(
        Method::POST,
        "/_matrix/client/v3/createRoom",
        Some(b"{".to_vec()),
    );
    assert_eq!(not_json.await.refused(), (400, "M_NOT_JSON"));
    let bad_json = alice
        .post("/_matrix/client/v3/createRoom", &json!({ "invite": 1 }))
        .await;
    assert_eq!(bad_json.refused(), (400, "M_BAD_JSON"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_limits() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room_id = alice.create_room(&json!({})).await;
    let large = json!({ "body": "z".repeat(66_000) });
    let refused = alice.send_event(&room_id, "m.room.message", &large).await;
    assert_eq!(refused.refused(), (413, "M_TOO_LARGE"));
    let long_type = alice
        .send_event(&room_id, &"t".repeat(256), &json!({}))
        .await;
    assert_eq!(long_type.refused(), (413, "M_TOO_LARGE"));
    let float = alice
        .send_event(&room_id, "m.room.message", &json!({ "n": 1.5 }))
        .await;
    assert_eq!(float.refused(), (400, "M_BAD_JSON"));
    let big = alice
        .send_event(
            &room_id,
            "m.room.message",
            &json!({ "n": 9_007_199_254_740_992_i64 }),
        )
        .await;
    assert_eq!(big.refused(), (400, "M_BAD_JSON"));
}
