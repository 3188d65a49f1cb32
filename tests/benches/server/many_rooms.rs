//! An account in a thousand rooms: its first sync, in each way of syncing.

use std::{io::Write, time::Duration};

use serde_json::{Value, json};
use sotto_tests::User;

use super::{child::Server, measure::Run};

/// How many rooms.
const ROOMS: usize = 1_000;
/// How often each sync is repeated.
const TIMES: usize = 10;
const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// Makes the rooms, and measures the syncs of a server that has just started. Returns its client.
pub async fn run(server: &mut Server, alice: &User, out: &mut impl Write) -> User {
    let name = format!("make a room and write in it, {ROOMS} times");
    let made = Run::of(server, &name, ROOMS, 8, |index| async move {
        // As people have them: most without a name of their own.
        let body = if index % 3 == 0 {
            json!({ "name": format!("Room {index}") })
        } else {
            json!({})
        };
        let room_id = alice.create_room(&body).await;
        alice.send(&room_id, "An ordinary sentence.").await;
    });
    made.await.print(out);
    server.restart();
    // What a server does when it starts is not what is measured.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = server.usage().rss / 1024;
    writeln!(out, "resident when idle, with all these rooms: {idle} KiB").expect("standard output");
    let client = User::anonymous(server.url.clone()).with_token(&alice.token);
    let alice = &client;
    for (name, times) in [("first sync, nothing in memory", 1), ("first sync", TIMES)] {
        let first = Run::of(server, name, times, 1, |_| async move {
            let answer = alice.sync(None, 0).await;
            assert!(count(&answer["rooms"]["join"]) >= ROOMS, "all rooms");
        });
        first.await.print(out);
    }
    let lazy = "/_matrix/client/v3/sync?filter=\
        %7B%22room%22%3A%7B%22state%22%3A%7B%22lazy_load_members%22%3Atrue%7D%7D%7D";
    let first = Run::of(
        server,
        "first sync, lazy members",
        TIMES,
        1,
        |_| async move {
            alice.get(lazy).await.ok();
        },
    );
    first.await.print(out);
    for (name, last) in [("of 20", 19), ("of all", ROOMS)] {
        let name = format!("first sliding sync, a window {name}");
        let sliding = Run::of(server, &name, TIMES, 1, |_| async move {
            slide(alice, None, last).await;
        });
        sliding.await.print(out);
    }
    let answer = slide(alice, None, ROOMS).await;
    let pos = answer["pos"].as_str().expect("a position");
    let quiet = Run::of(
        server,
        "sliding sync, nothing new",
        300,
        8,
        |_| async move {
            slide(alice, Some(pos), ROOMS).await;
        },
    );
    quiet.await.print(out);
    client
}

async fn slide(alice: &User, pos: Option<&str>, last: usize) -> Value {
    let all = json!({ "ranges": [[0, last]], "timeline_limit": 1, "required_state": [
        ["m.room.name", ""], ["m.room.encryption", ""], ["m.room.member", "$ME"],
        ["m.room.member", "$LAZY"], ["m.room.create", ""] ],
        "filters": { "not_room_types": ["m.space"] } });
    let pos = pos.map(|pos| format!("&pos={pos}")).unwrap_or_default();
    let body = json!({ "conn_id": "bench", "lists": { "all": all } });
    alice
        .post(&format!("{SLIDING}?timeout=0{pos}"), &body)
        .await
        .ok()
}

fn count(rooms: &Value) -> usize {
    rooms.as_object().map_or(0, serde_json::Map::len)
}
