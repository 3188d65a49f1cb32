//! The key of a room for a thousand devices, and the keys of many rooms for one device.

use serde_json::json;
use sotto_client::{crypto::RoomChange, store::Changes};
use sotto_interop::{Ours, ROOM, Server};

use crate::{
    Spent,
    crowd::crowd,
    measure, row,
    stores::{Kept, Stores},
};

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";
const USERS: usize = 100;
const DEVICES: usize = 10;
const ROOMS: usize = 500;
const TURNS: usize = 3;

/// What sharing took: with devices that were not known, then with the same again; the bytes of that.
#[derive(Default)]
struct Shared {
    new: Vec<Spent>,
    again: Vec<Spent>,
    bytes: usize,
}

pub(crate) async fn compare(kept: Kept) {
    let (mut ours, mut theirs) = (Shared::default(), Shared::default());
    for _ in 0..TURNS {
        share_ours(kept, &mut ours).await;
        share_theirs(kept, &mut theirs).await;
    }
    let all = USERS * DEVICES;
    let compared = |what: &str, ours: &[Spent], theirs: &[Spent]| {
        let text = |times| Spent::best(times).each(kept, all);
        row(kept, what, &text(ours), &text(theirs), "–");
    };
    let what = "share a key with 1,000 new devices, for each";
    compared(what, &ours.new, &theirs.new);
    let what = "share a key with the same 1,000 devices, for each";
    compared(what, &ours.again, &theirs.again);
    let [ours, theirs] = [ours.bytes, theirs.bytes].map(|bytes| format!("{} B", bytes / all));
    let what = "messages for that, for each device";
    row(kept, what, &ours, &theirs, "–");
    first_sync(kept).await;
}

async fn share_ours(kept: Kept, shared: &mut Shared) {
    let (stores, mut server) = (Stores::new(kept), Server::default());
    let users = crowd(&mut server, USERS, DEVICES);
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut ours = stores.ours(&mut server, ALICE).await;
    let ((), new) = measure(ours.share(&mut server, &members)).await;
    shared.new.push(new);
    let discarded = ours.machine.discard_room_key(ROOM.try_into().unwrap());
    discarded.await.unwrap();
    server.sent_bytes = 0;
    let ((), again) = measure(ours.share(&mut server, &members)).await;
    shared.again.push(again);
    shared.bytes = server.sent_bytes;
}

async fn share_theirs(kept: Kept, shared: &mut Shared) {
    let (stores, mut server) = (Stores::new(kept), Server::default());
    let users = crowd(&mut server, USERS, DEVICES);
    let members: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut theirs = stores.theirs(&mut server, ALICE).await;
    let ((), new) = measure(theirs.share(&mut server, &members)).await;
    shared.new.push(new);
    let discarded = theirs.machine.discard_room_key(ROOM.try_into().unwrap());
    discarded.await.unwrap();
    server.sent_bytes = 0;
    let ((), again) = measure(theirs.share(&mut server, &members)).await;
    shared.again.push(again);
    shared.bytes = server.sent_bytes;
}

/// The first sync after a while: a key for each of many rooms.
async fn first_sync(kept: Kept) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut sizes = None;
    for _ in 0..TURNS {
        let stores = Stores::new(kept);
        let mut server = Server::default();
        let mut sender = Ours::with_identity(&mut server, ALICE, "SENDER").await;
        let mut reader = stores.ours(&mut server, BOB).await;
        reader.share(&mut server, &[ALICE]).await;
        write(&mut server, &mut sender).await;
        let (_, spent) = measure(reader.sync(&mut server)).await;
        ours.push(spent);
        drop(reader);

        let mut server = Server::default();
        let mut sender = Ours::with_identity(&mut server, ALICE, "SENDER").await;
        let mut reader = stores.theirs(&mut server, BOB).await;
        reader.share(&mut server, &[ALICE]).await;
        write(&mut server, &mut sender).await;
        let ((), spent) = measure(reader.sync(&mut server)).await;
        theirs.push(spent);
        drop(reader);
        // Their write-ahead logs go into the files when they are closed, by other threads.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        sizes = stores.sizes();
    }
    let [ours, theirs] = [ours, theirs].map(|times| Spent::best(&times).whole(kept));
    let what = "first sync with the keys of 500 rooms";
    row(kept, what, &ours, &theirs, "–");
    if let Some((ours, theirs)) = sizes {
        let what = "size of the store after that";
        let [ours, theirs] = [ours, theirs].map(|size| format!("{size} kB"));
        row(kept, what, &ours, &theirs, "–");
    }
}

/// Somebody has written into many rooms.
async fn write(server: &mut Server, sender: &mut Ours) {
    sender.sync(server).await;
    for number in 0..ROOMS {
        let room = format!("!room{number}:example.org");
        let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        let algorithm = algorithm.as_object().unwrap().clone();
        let change = RoomChange::Encryption(room.as_str().try_into().unwrap(), algorithm);
        sender
            .machine
            .receive_room_changes(&[change], Changes::default())
            .await
            .unwrap();
        sender.share_in(server, &room, &[BOB]).await;
    }
}
