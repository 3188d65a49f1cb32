//! Files.

use sotto_client::client::RoomOptions;
use sotto_tests::TestServer;

use super::{alice_and_bob, person, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn t_att_3_a_file_is_for_the_room_alone() {
    let server = TestServer::start().await;
    let (alice, bob, room_id) = alice_and_bob(&server).await;
    let picture = b"not really a picture, but nobody else shall see it".to_vec();
    let sent = alice
        .room(&room_id)
        .send_attachment("us.png", "image/png", picture.clone())
        .await;
    sent.unwrap();
    let event = wait_for(&bob, &room_id, "us.png").await;
    assert_eq!(event.msgtype(), Some("m.image"));
    let file = event.attachment().unwrap();
    assert_eq!(file.mime.as_deref(), Some("image/png"));
    assert_eq!(file.size, u64::try_from(picture.len()).ok());
    assert_eq!(bob.download_attachment(&file).await.unwrap(), picture);

    // What the server keeps is neither the file nor its name or type.
    let url = event.content["file"]["url"].as_str().unwrap();
    let path = url.strip_prefix("mxc://").unwrap();
    let helper = server.log_in("alice").await;
    let url = format!("{}/_matrix/client/v1/media/download/{path}", server.url());
    let request = reqwest::Client::builder()
        .build()
        .unwrap()
        .get(url)
        .bearer_auth(&helper.token);
    let response = request.send().await.unwrap();
    let headers = format!("{:?}", response.headers());
    assert!(headers.contains("application/octet-stream"), "{headers}");
    assert!(!headers.contains("us.png"), "{headers}");
    let kept = response.bytes().await.unwrap();
    assert_eq!(kept.len(), picture.len());
    assert_ne!(kept, picture);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_an_open_room_is_open() {
    let server = TestServer::start().await;
    let alice = person(&server, "alice").await;
    let options = RoomOptions {
        encrypted: false,
        ..RoomOptions::default()
    };
    let room = alice.create_room(options).await.unwrap();
    room.send_attachment("note.txt", "text/plain", b"hello".to_vec())
        .await
        .unwrap();
    let event = wait_for(&alice, room.id(), "note.txt").await;
    assert_eq!(event.msgtype(), Some("m.file"));
    let file = event.attachment().unwrap();
    assert_eq!(alice.download_attachment(&file).await.unwrap(), b"hello");
}
