//! An app and the extension that shows its notifications, with one device and one store.

use sotto_client::{
    Client,
    client::{BuildError, ClientBuilder},
    store::StoreError,
};
use sotto_tests::TestServer;
use tempfile::TempDir;

use super::{NOW, SOON, encrypted_room, events, person, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn t_mp_4_an_app_and_its_extension_use_one_device() {
    let server = TestServer::start().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store");
    let open = || -> ClientBuilder {
        let builder = Client::builder().homeserver(server.url());
        builder.store(&*path)
    };
    let app = open().shared_store().build().await.unwrap();
    app.register("alice", "a long password", None)
        .await
        .unwrap();
    app.sync_once(NOW).await.unwrap();
    let bob = person(&server, "bob").await;
    let room_id = encrypted_room(&app, &bob).await;
    for client in [&app, &bob] {
        client.sync_once(NOW).await.unwrap();
    }
    // Who does not know of the others is not let in.
    let refused = open().build().await;
    assert!(matches!(refused, Err(BuildError::Store(StoreError::InUse))));
    let extension = open().shared_store().build().await.unwrap();
    assert!(extension.restore().await.unwrap());
    assert_eq!(extension.device_id(), app.device_id());

    // One takes the key, the other shows the message.
    bob.room(&room_id).send_text("ring").await.unwrap();
    let ring = wait_for(&app, &room_id, "ring").await;
    let machine = extension.machine().unwrap();
    let shown = machine.decrypt_room_event(&room_id, &ring.raw).await;
    assert_eq!(shown.unwrap().content["body"], "ring");
    // Both write, one after the other, and Bob can read all of it.
    for number in 0..4 {
        let who = if number % 2 == 0 { &app } else { &extension };
        let body = format!("answer {number}");
        who.room(&room_id).send_text(&*body).await.unwrap();
        wait_for(&bob, &room_id, &body).await;
    }
    let (one, other) = (app.room(&room_id), extension.room(&room_id));
    let (one, other) = tokio::join!(one.send_text("at once"), other.send_text("at once"));
    let mut sent = [one.unwrap(), other.unwrap()];
    let mut read = Vec::new();
    while read.len() < sent.len() {
        let update = bob.sync_once(SOON).await.unwrap();
        let late = update.decrypted_late.iter().map(|(_, event)| event);
        let all = events(&update, &room_id).iter().chain(late);
        let readable = all.filter(|event| event.body() == Some("at once"));
        read.extend(readable.map(|event| event.event_id.clone()));
    }
    sent.sort();
    read.sort();
    assert_eq!(read, sent);
}
