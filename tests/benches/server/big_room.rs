//! A room with ten thousand idle members beside one with ten, and what is read of a long room.

use std::{io::Write, time::Duration};

use futures_util::{StreamExt, stream};
use serde_json::json;
use sotto_tests::{User, room};

use super::{child::Server, measure::Run, next_batch};

/// How many idle members.
const MEMBERS: [usize; 2] = [10, 10_000];
/// How many join at once.
const AT_ONCE: usize = 64;

/// Makes the rooms, and measures what is done in them.
pub async fn run(server: &mut Server, alice: &User, out: &mut impl Write) {
    let (url, alice) = (server.url.clone(), alice.clone());
    let made = Run::of(server, "create room", 300, 1, |_| async {
        alice.create_room(&json!({ "name": "A room" })).await;
    });
    made.await.print(out);
    // All of them are made before any is measured, so that each is measured on the same database.
    let mut rooms = Vec::new();
    for members in MEMBERS {
        rooms.push((members, make(&url, &alice, members).await));
    }
    // What follows from so many joins, such as the user directory, is not what is measured.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (members, room_id) in &rooms {
        let alice = &alice;
        let name = format!("send, {members} idle members");
        let sends = Run::of(server, &name, 500, 1, |_| async move {
            alice.send(room_id, "An ordinary sentence.").await;
        });
        sends.await.print(out);
        let since = &next_batch(&alice.sync(None, 0).await);
        alice.send(room_id, "News.").await;
        let name = format!("sync with one event, {members} members");
        let news = Run::of(server, &name, 500, 1, |_| async move {
            alice.sync(Some(since), 0).await;
        });
        news.await.print(out);
        for (what, path, times) in [
            ("100 messages", "messages?dir=b&limit=100", 300),
            ("members", "members", 10),
            ("state", "state", 10),
        ] {
            let (name, path) = (format!("{what}, {members} members"), room(room_id, path));
            let path = &path;
            let read = Run::of(server, &name, times, 1, |_| async move {
                alice.get(path).await.ok();
            });
            read.await.print(out);
        }
    }
}

/// A room with idle members.
async fn make(url: &str, alice: &User, members: usize) -> String {
    let body = json!({ "preset": "public_chat", "initial_state": [
        { "type": "m.room.guest_access", "content": { "guest_access": "can_join" } } ] });
    let room_id = &alice.create_room(&body).await;
    stream::iter(0..members)
        .for_each_concurrent(AT_ONCE, |_| async {
            let nobody = User::anonymous(url.to_owned());
            let path = "/_matrix/client/v3/register?kind=guest";
            let session = nobody.post(path, &json!({})).await.ok();
            User::new(url.to_owned(), &session).join(room_id).await.ok();
        })
        .await;
    room_id.clone()
}
